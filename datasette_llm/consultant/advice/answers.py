"""Ask a model for advice, tell how its answer grows, and take no more of it than a bound."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ...errors import LLMError
from .progress import AnswerGrows, OnProgress
from .prompt import tokens_estimate

if TYPE_CHECKING:
    from ...calls.group import Group

# Of an answer; a model that goes on is stopped.
MAX_ANSWER_CHARS = 200_000
# Between two words about how an answer grows.
TICK_S = 0.25

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Attributes:
        value: the object in it.
        raw: its text, up to the bound.
        rest: a sentence about what was not taken; None where all was.
    """

    value: Any
    raw: str
    rest: str | None


async def taken_answer(
    asking: Awaitable[Any], group: Group[Any], schema: type[BaseModel], on_progress: OnProgress
) -> Answer:
    """Wait for a structured answer, or for more of it than is taken.

    Args:
        asking: the call of `structured()`.
        group: the group that its response is in.
        schema: the schema of the answer.
        on_progress: called as the answer grows.

    Raises:
        LLMError: it is too long, and its beginning does not fit the schema.
        Exception: what `structured()` raises.
    """
    task = asyncio.ensure_future(asking)
    try:
        while not task.done() and len(_text(group)) <= MAX_ANSWER_CHARS:
            await asyncio.wait([task], timeout=TICK_S)
            if text := _text(group):
                on_progress(AnswerGrows(len(text), tokens_estimate(len(text.encode()))))
        if task.done() and len(text := _text(group)) <= MAX_ANSWER_CHARS:
            return Answer(task.result().value, text, None)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        elif not task.cancelled():
            task.exception()  # or it would be logged, where the beginning is taken
    return await asyncio.to_thread(_beginning, group, schema)


def complete_part(text: str) -> str:
    """The JSON object that is cut off, closed after the last complete item of its last list."""
    open_: list[str] = []
    start = end = max(0, text.find("{"))
    for token in _TOKEN.finditer(text, start):
        match token[0]:
            case "{" | "[":
                open_.append(token[0])
            case '"':
                break  # of a text that is cut off
            case "}" | "]" if open_:
                open_.pop()
                if open_ == ["{", "["]:
                    end = token.end()
    return f"{text[start:end]}]}}"


def _text(group: Group[Any]) -> str:
    return group.responses[-1].text_so_far if group.responses else ""


def _beginning(group: Group[Any], schema: type[BaseModel]) -> Answer:
    text = _text(group)[:MAX_ANSWER_CHARS]
    rest = f"the answer: what follows the first {MAX_ANSWER_CHARS:,} characters"
    try:
        return Answer(schema.model_validate_json(complete_part(text)), text, rest)
    except ValidationError:
        raise LLMError(
            f"The answer is longer than {MAX_ANSWER_CHARS:,} characters, and its beginning cannot "
            "be read; ask for less, or another model"
        ) from None

"""`structured()`: prompt for an object, and once more if the answer does not fit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast, overload

import llm
from pydantic import BaseModel

from ..errors import StructuredOutputError
from ..redaction import cut
from ..sanitize import well_formed
from .json_extraction import UnfitError
from .strict_schema import closed_schema
from .validation import Shape

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)

# Arguments of the first prompt that are part of the history, so that a repair leaves them out.
_IN_HISTORY = frozenset({"fragments", "attachments", "tool_results", "messages"})
# What a repair would not change, by the finish reason.
_ENDINGS = {
    "length": "The answer was cut off at a limit of the model: allow more tokens, or ask for less.",
    "content_filter": "The provider's content filter has withheld the answer, or a part of it.",
    "refusal": "The model has refused to answer: {}",
}
# Of a refusal, in the error's message.
MAX_SAID_CHARS = 300
# All other arguments of prompt() are the key and options.
_PROMPT_PARAMETERS = frozenset(inspect.signature(llm.AsyncModel.prompt).parameters)


class Promptable(Protocol):
    """What `structured()` prompts: a model, or a conversation whose `model` is one.

    Attributes:
        supports_schema: of a model, whether it takes schemas.
        supports_conversation: of a model, whether it takes a history.
    """

    supports_schema: bool
    supports_conversation: bool

    async def prompt(self, prompt: str | None = None, **kwargs: Any) -> llm.AsyncResponse:
        """Send a prompt."""


@dataclass(frozen=True, slots=True)
class Structured(Generic[_T]):
    """A validated answer; `value, response = await model.structured(…)` unpacks it.

    Attributes:
        value: an instance of the pydantic model, or plain data for a JSON schema.
        attempts: the responses: one, or two where the first answer did not fit.
    """

    value: _T
    attempts: tuple[llm.AsyncResponse, ...]

    @property
    def response(self) -> llm.AsyncResponse:
        """The response that holds the value."""
        return self.attempts[-1]

    def __iter__(self) -> Iterator[Any]:
        yield self.value
        yield self.response


class Answer:
    """An answer, read once: at its end for the call log, then for the caller.

    Args:
        shape: what it has to fit.
        repaired: the response whose answer it repairs, or None.
    """

    def __init__(self, shape: Shape, repaired: llm.AsyncResponse | None = None) -> None:
        self._shape = shape
        self._before = () if repaired is None else (repaired,)
        self._found: Structured[Any] | Exception | None = None

    @property
    def repaired_id(self) -> str | None:
        """The id of the response whose answer it repairs, or None."""
        return self._before[0].id if self._before else None

    async def read(self, response: llm.AsyncResponse) -> Structured[Any] | Exception:
        """The object in the answer, or why there is none.

        Args:
            response: complete.
        """
        if self._found is None:
            attempts = (*self._before, response)
            try:
                value = await self._shape.read(response.text_or_raise())
                self._found = Structured(value, attempts)
            except UnfitError as error:
                self._found = StructuredOutputError(_problems(response, error), attempts)
            except Exception as error:  # of a caller's validator
                self._found = error
        return self._found

    async def failure(self, response: llm.AsyncResponse) -> Exception | None:
        """What the call log has of an answer without an object that will not be repaired, or None.

        Args:
            response: complete.
        """
        found = await self.read(response)
        ended = _ended(response)
        if not isinstance(found, StructuredOutputError) or not (self._before or ended):
            return None
        # Without the problems, which repeat parts of the answer.
        reason = ended.partition(": {}")[0] if ended else "The caller has its problems."
        return StructuredOutputError([reason], found.attempts)


# The answer that the next prompt of this task is to give; at most one.
_expected: ContextVar[list[Answer] | None] = ContextVar("datasette_llm_expected", default=None)


def taken_answer() -> Answer | None:
    """The answer that the prompt that begins now is to give; None for any further prompt."""
    expected = _expected.get()
    return expected.pop() if expected else None


@contextmanager
def _expecting(answer: Answer) -> Iterator[Answer]:
    token = _expected.set([answer])
    try:
        yield answer
    finally:
        _expected.reset(token)


class AsksForObjects:
    """The method `structured()` of models and conversations."""

    @overload
    async def structured(
        self, prompt: str | None = None, *, schema: type[_Model], **kwargs: Any
    ) -> Structured[_Model]: ...

    @overload
    async def structured(
        self, prompt: str | None = None, *, schema: Mapping[str, Any], **kwargs: Any
    ) -> Structured[dict[str, Any]]: ...

    async def structured(
        self,
        prompt: str | None = None,
        *,
        schema: type[BaseModel] | Mapping[str, Any],
        **kwargs: Any,
    ) -> Structured[Any]:
        """Prompt for an object that fits a schema, and validate the answer.

        A model that supports schemas gets the closed schema (`closed_schema()`); for others it
        is part of the prompt. If the answer does not fit, the model is asked once to repair it,
        with its answer as history and a list of the problems; not if it was cut off at a limit, was
        filtered or is a refusal, which a repair would not change. The repair is a separate prompt,
        with the same key, purpose, actor and options (a fallback that has answered uses its
        own); it enters the contexts of the hooks again and has its own row in the call log. In
        a conversation both are turns.

        Args:
            prompt: the text; optional.
            schema: a pydantic model, or a JSON schema for an object.
            **kwargs: all arguments of `prompt()`, except tools.

        Returns:
            The value and its response, which is complete.

        Raises:
            SchemaError: the schema cannot be closed. Before any hook runs.
            TypeError: tools were passed, or `schema` is no schema. Before any hook runs.
            StructuredOutputError: no answer fits; if the repair failed, with its error as the
                cause.
            Exception: what `prompt()` raises for the first prompt.
        """
        # No other classes inherit from this one.
        asked = cast(Promptable, self)
        if kwargs.get("tools") or getattr(asked, "tools", None):
            raise TypeError(
                "structured() takes no tools; run them with chain(), and then ask for the object"
            )
        return await _asked(asked, prompt, await Shape.of(schema), kwargs)


def prompt_text(
    model: Promptable, prompt: str | None, schema: type[BaseModel] | Mapping[str, Any]
) -> str | None:
    """The text that `structured()` sends, to show it before.

    Args:
        model: the model.
        prompt: the caller's text.
        schema: a pydantic model, or a JSON schema.

    Returns:
        The same text for a model that supports schemas, otherwise followed by the schema.

    Raises:
        SchemaError: the schema cannot be closed.
    """
    return _text(model, prompt, closed_schema(schema))


async def _asked(
    asked: Promptable,
    prompt: str | None,
    shape: Shape,
    arguments: Mapping[str, Any],
) -> Structured[Any]:
    model = _model_of(asked)
    native = {"schema": shape.sent} if model.supports_schema else {}
    text = _text(model, prompt, shape.sent)
    with _expecting(Answer(shape)) as answer:
        first = await asked.prompt(text, **arguments, **native)
    await first.text()
    found = await answer.read(first)
    if isinstance(found, Structured):
        return found
    if not isinstance(found, StructuredOutputError) or _ended(first):
        raise found
    problems = found.problems
    try:
        with _expecting(Answer(shape, first)) as answer:
            second = await _repaired(asked, text, first, problems, {**arguments, **native})
        await second.text()
    except Exception as error:  # a provider's or a hook's; the first answer must not be lost
        problem = f"It could not be repaired, because of {type(error).__name__}: {error}"
        raise StructuredOutputError([*problems, problem], [first]) from error
    found = await answer.read(second)
    if isinstance(found, Structured):
        return found
    raise found


def _ended(response: llm.AsyncResponse) -> str | None:
    """Why there can be no object in an answer, or None."""
    # Only responses of ours have it.
    return _ENDINGS.get(getattr(response, "finish_reason", None) or "")


def _problems(response: llm.AsyncResponse, error: UnfitError) -> list[str]:
    ended = _ended(response)
    said = cut(well_formed(response.text_or_raise().strip()), MAX_SAID_CHARS)
    return [*([ended.format(said)] if ended else ()), *error.problems]


async def _repaired(
    asked: Promptable,
    text: str | None,
    first: llm.AsyncResponse,
    problems: Sequence[str],
    arguments: Mapping[str, Any],
) -> llm.AsyncResponse:
    """Prompt for a repair, with the first answer as history."""
    wish = _wish(problems)
    new = {name: value for name, value in arguments.items() if name not in _IN_HISTORY}
    model = _model_of(asked)
    answering = _answering(first)
    # No provider takes a history with a call of a tool, unasked here, and without its result.
    if not first.tool_calls_or_raise():
        if asked is not model:
            return await asked.prompt(wish, **new)
        if answering.supports_conversation:
            if answering is not model:
                new = _for_fallback(first, new)
            return await first.reply(wish, **new)
    parts = [text, f"You have answered:\n{first.text_or_raise()}", wish]
    return await asked.prompt("\n\n".join(filter(None, parts)), **arguments)


def _answering(response: llm.AsyncResponse) -> Promptable:
    return cast(Promptable, response.model)  # llm's type is the base class


def _for_fallback(response: llm.AsyncResponse, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for the fallback that answered, without the key and options of the first."""
    options = response.prompt.options
    given = {name: value for name, value in arguments.items() if name in _PROMPT_PARAMETERS}
    return given | {"options": {name: getattr(options, name) for name in options.model_fields_set}}


def _model_of(asked: Promptable) -> Promptable:
    model: Promptable | None = getattr(asked, "model", None)
    # Only a conversation has the attribute.
    return model or asked


def _text(model: Promptable, prompt: str | None, sent: Mapping[str, Any]) -> str | None:
    """The prompt, followed by the schema if the model does not support schemas.

    Not in the system prompt, which llm drops beside `messages`, and in later turns.
    """
    if model.supports_schema:
        return prompt
    schema = json.dumps(sent, ensure_ascii=False, separators=(",", ":"))
    wish = (
        "Answer with one JSON object that fits this JSON schema, and with nothing else, neither "
        f"prose nor a code fence:\n{schema}"
    )
    return f"{prompt}\n\n{wish}" if prompt else wish


def _wish(problems: Sequence[str]) -> str:
    lines = "\n".join(f"- {problem}" for problem in problems)
    return (
        f"That answer cannot be used:\n{lines}\n"
        "Answer again with the whole JSON object, corrected, and with nothing else."
    )

"""A call as rows of the log: what was requested, what came of it, and its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import llm

from ..events import RequestFinished, RequestStarted, Saved
from ..redaction import Keys
from ..sanitize import MARGIN_CHARS, as_json, now
from .cost import NANODOLLARS

# Of each text. A longer prompt is a pasted file.
MAX_TEXT_CHARS = 1_000_000
# What Python needs for an event of a stream, a message or a row, besides its texts.
OVERHEAD_BYTES = 500
# More parts and events are not weighed one by one.
MAX_WEIGHED = 10_000

_INSERT_CONTENT = (
    "insert into llm_call_content (call_id, part, content) values (:call_id, :part, :content)"
)

Statement = tuple[str, Mapping[str, Any]]


def started_row(session_id: str, request: RequestStarted, at: str | None = None) -> dict[str, Any]:
    """The first part of a row.

    Args:
        session_id: the session that writes it.
        request: the request.
        at: when it started; None for now.
    """
    waited_s = request.waited_s
    return {
        "id": request.id,
        "session_id": session_id,
        "started_at": at or now(),
        "model_id": request.model_id,
        "purpose": request.purpose,
        "actor_id": request.actor_id,
        "group_id": request.group_id,
        "chain_id": request.chain_id,
        "chain_step": request.chain_step,
        "conversation_id": request.conversation_id,
        "streaming": int(request.streaming),
        "prompt_chars": request.prompt_chars,
        "system_chars": request.system_chars,
        "message_count": request.message_count,
        "attachment_count": request.attachment_count,
        "attempt": request.attempt,
        "prompt_id": request.prompt_id,
        "waited_ms": None if waited_s is None else _ms(waited_s),
        "tags": json.dumps(dict(request.tags), ensure_ascii=False) if request.tags else None,
    }


def finished_row(request: RequestFinished, at: str | None = None) -> dict[str, Any]:
    """The second part of a row, without its cost.

    Args:
        request: how the request ended.
        at: when it ended; None for now.
    """
    first_chunk_s = request.first_chunk_s
    return {
        "id": request.id,
        "finished_at": at or now(),
        "outcome": str(request.outcome),
        "blocked_by": request.blocked_by,
        "error_type": request.error_type,
        "error_message": request.error_message,
        "input_tokens": request.input_tokens,
        "output_tokens": request.output_tokens,
        "token_details": request.token_details,
        "resolved_model": request.resolved_model,
        "first_chunk_ms": None if first_chunk_s is None else _ms(first_chunk_s),
        "duration_ms": _ms(request.duration_s),
        "cost_nanodollars": None,
        "price_source": None,
        "finish_reason": request.finish_reason and str(request.finish_reason),
        "failure_kind": request.failure_kind,
        "hook_error": None,  # comes later
        "response_id": request.response_id,
        "request_id": request.request_id,
        "gateway_call_id": request.gateway_call_id,
        "gateway_model_id": request.gateway_model_id,
        "gateway_cost_nanodollars": _nanodollars(request.gateway_cost_dollars),
        "cached_from": request.saved.call_id if request.saved is not None else None,
        "saved_nanodollars": None,  # comes with the cost
    }


def original_row(saved: Saved) -> dict[str, Any]:
    """The tokens and the cost of the call that has paid for an answer, as in its row."""
    return {
        "input_tokens": saved.input_tokens,
        "output_tokens": saved.output_tokens,
        "token_details": saved.token_details,
        "gateway_cost_nanodollars": _nanodollars(saved.gateway_cost_dollars),
    }


class Content:
    """What a call sent and got, to be recorded; it may have to be dropped before.

    Attributes:
        weight: its bytes in memory, about.
    """

    __slots__ = ("_make", "weight")

    def __init__(self, make: Callable[[], Sequence[Statement]], weight: int) -> None:
        """
        Args:
            make: makes the statements that record it; called in the writing thread.
            weight: its bytes in memory, about.
        """
        self._make: Callable[[], Sequence[Statement]] | None = make
        self.weight = weight

    def drop(self) -> None:
        """Free the memory; nothing will be recorded."""
        self._make = None

    def statements(self) -> Sequence[Statement]:
        """What records it."""
        make = self._make
        return make() if make is not None else ()


def content_statements(
    call_id: str,
    prompt: llm.Prompt,
    answer: Callable[[int], tuple[Iterable[Any], Mapping[str, int]]],
    keys: Keys,
) -> list[Statement]:
    """What records the content of a call; of a call that failed, as far as it got.

    Args:
        call_id: the id of its row.
        prompt: what was sent.
        answer: takes how many characters a text may have; gives the messages that came back, and
            for each text that was cut its length.
        keys: what to take out of the texts.
    """
    parts = {
        "request": lambda: (_request(prompt), {}),
        "response": lambda: _response(*answer(MAX_TEXT_CHARS + MARGIN_CHARS + 1)),
    }
    return [
        (_INSERT_CONTENT, {"call_id": call_id, "part": part, "content": text})
        for part, text in ((part, _text(build, keys)) for part, build in parts.items())
    ]


def shortened(events: Iterable[Any], max_chars: int) -> tuple[list[Any], dict[str, int]]:
    """The events of an answer without what no text of the log has room for.

    Args:
        events: the events; each has a part, a type and a text.
        max_chars: how many characters are kept of each part.

    Returns:
        The events, and the length of each text that was cut.
    """
    kept, lengths = [], dict[tuple[int | None, str], int]()
    for event in events:
        text, chars = (event.part_index, event.type), len(event.chunk)
        before = lengths.get(text, 0)
        lengths[text] = before + chars
        if before + chars <= max_chars or not chars:
            kept.append(event)
        elif before < max_chars or event.provider_metadata:
            chunk = event.chunk[: max(0, max_chars - before)]
            kept.append(dataclasses.replace(event, chunk=chunk))
    cut = {text for text, length in lengths.items() if length > max_chars}
    texts = dict.fromkeys(cut, "") | {
        text: "".join(e.chunk for e in kept if (e.part_index, e.type) == text) for text in cut
    }
    return kept, {texts[text]: lengths[text] for text in cut}


def answer_bytes(events: Sequence[Any]) -> int:
    """How many bytes of memory the events of an answer take, about."""
    step = len(events) // MAX_WEIGHED + 1
    return step * sum(sys.getsizeof(each.chunk) + OVERHEAD_BYTES for each in events[::step])


def weighed(prompt: llm.Prompt) -> tuple[int, bool]:
    """How many bytes of memory a request takes, about, and whether attachments are in files.

    Those of its history are included.
    """
    try:
        parts = [part for message in prompt.messages for part in message.parts]
    except Exception:  # llm makes them of what a caller gave
        return OVERHEAD_BYTES, True  # perhaps
    attachments = [each for part in parts for each in _attachments(part)]
    in_files = any(each.path for each in (*prompt.attachments, *attachments))
    return sum(map(_part_bytes, parts)), in_files


def row_bytes(row: Mapping[str, Any]) -> int:
    """How many bytes of memory a row takes, about, with what writes it."""
    return 2 * OVERHEAD_BYTES + sum(map(sys.getsizeof, row.values()))


def _part_bytes(part: Any) -> int:
    texts = (getattr(part, "text", ""), getattr(part, "output", ""))
    attachments = (attachment.content or b"" for attachment in _attachments(part))
    return OVERHEAD_BYTES + sum(map(sys.getsizeof, (*texts, *attachments)))


def _nanodollars(dollars: float | None) -> int | None:
    return None if dollars is None else round(dollars * NANODOLLARS)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _text(build: Callable[[], tuple[dict[str, Any], Mapping[str, int]]], keys: Keys) -> str:
    try:
        content, lengths = build()
    except Exception as error:  # a provider's events and a plugin's tools make llm raise anything
        content, lengths = {"not_recorded": f"{type(error).__name__}: {error}"}, {}
    return as_json(content, keys, MAX_TEXT_CHARS, lengths)


def _request(prompt: llm.Prompt) -> dict[str, Any]:
    return {
        "messages": plain_messages(prompt.messages),
        "tools": [tool.name for tool in prompt.tools],
        "options": {k: v for k, v in dict(prompt.options).items() if v is not None},
        "schema": prompt.schema,
    }


def _response(
    messages: Iterable[Any], lengths: Mapping[str, int]
) -> tuple[dict[str, Any], Mapping[str, int]]:
    return {"messages": plain_messages(messages)}, lengths


def plain_messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """Messages of llm as dictionaries, in which attachments have no bytes."""
    return [_without_bytes(message) for message in messages]


def _without_bytes(message: Any) -> dict[str, Any]:
    """A message, in which the bytes of attachments, which may be many, or hold a key, are not."""
    parts = message.parts
    plain: dict[str, Any] = dataclasses.replace(message, parts=list(map(_bare, parts))).to_dict()
    for part, shown in zip(parts, plain["parts"], strict=True):
        described = [shown["attachment"]] if "attachment" in shown else shown.get("attachments", ())
        for attachment, each in zip(_attachments(part), described, strict=True):
            if attachment.content:
                each["bytes"] = len(attachment.content)
                each["sha256"] = hashlib.sha256(attachment.content).hexdigest()
    return plain


def _bare(part: Any) -> Any:
    bare = [dataclasses.replace(each, content=None) for each in _attachments(part)]
    if not bare:
        return part
    one = getattr(part, "attachment", None) is not None
    return dataclasses.replace(part, **({"attachment": bare[0]} if one else {"attachments": bare}))


def _attachments(part: Any) -> list[llm.Attachment]:
    one = getattr(part, "attachment", None)
    return [one] if one is not None else list(getattr(part, "attachments", None) or ())

"""What models yield, as text that can be encoded.

Servers cut text anywhere, also between the halves of a surrogate pair, and JSON can escape a half
without the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import llm
from llm.parts import StreamEvent

from ..errors import ProviderError
from ..sanitize import well_formed

# What tells the streams of text in one response apart.
_Key = tuple[str, int | None, str | None, int]


class WellFormedChunks:
    """Joins halves of surrogate pairs that come in two chunks, and replaces lone ones.

    Args:
        model: whose chunks they are.

    Attributes:
        pending: the halves at the ends of chunks, whose other halves may come, as events.
    """

    __slots__ = ("_model", "pending")

    def __init__(self, model: Any) -> None:
        self._model = model
        self.pending: dict[_Key, StreamEvent] = {}

    def of(self, chunk: object) -> Iterator[str | StreamEvent]:
        """What a chunk becomes, mostly itself.

        Raises:
            ProviderError: it is neither text nor an event with text.
        """
        text = chunk.chunk if isinstance(chunk, StreamEvent) else chunk
        if not isinstance(text, str):
            raise self._refusal(text)
        if self.pending or not _can_be_encoded(text):
            event = chunk if isinstance(chunk, StreamEvent) else StreamEvent("text", text)
            yield from self._joined(event)
        else:
            yield chunk  # type: ignore[misc]  # an event or a text, as is checked above

    def rest(self) -> Iterator[StreamEvent]:
        """What is left at the end: halves whose other halves have not come."""
        for event in self.pending.values():
            yield replace(event, chunk=well_formed(event.chunk))

    def _joined(self, event: StreamEvent) -> Iterator[StreamEvent]:
        call_id = event.tool_call_id if event.part_index is None else None
        key = (event.type, event.part_index, call_id, event.message_index)
        yield from self._passed_by(key)
        before = self.pending.pop(key, None)
        text = before.chunk + event.chunk if before is not None else event.chunk
        if "\ud800" <= text[-1:] <= "\udbff":
            self.pending[key] = replace(event, chunk=text[-1], provider_metadata=None)
            text = text[:-1]
        yield replace(event, chunk=well_formed(text))

    def _passed_by(self, key: _Key) -> Iterator[StreamEvent]:
        """Halves in arguments without an id, once something else comes: llm sorts by order."""
        for other in [each for each in self.pending if each != key]:
            kind, index, call_id, _ = other
            if kind.startswith("tool") and index is None and call_id is None:
                event = self.pending.pop(other)
                yield replace(event, chunk=well_formed(event.chunk))

    def _refusal(self, value: object) -> ProviderError:
        kind = type(self._model)
        what = "None" if value is None else f"an object of type {type(value).__name__}"
        return ProviderError(
            f"Model {self._model.model_id!r} yielded {what} in place of text; this is a mistake in "
            f"the llm plugin that provides it, in {kind.__module__}.{kind.__qualname__}",
            kind="bad_answer",
        )


def _can_be_encoded(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def well_formed_call(call: llm.ToolCall) -> llm.ToolCall:
    """A tool call whose name and arguments can be encoded."""
    arguments = well_formed_value(call.arguments)
    return replace(call, name=well_formed_value(call.name), arguments=arguments)


def well_formed_value(value: Any) -> Any:
    """A value of JSON whose texts can be encoded."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [well_formed_value(each) for each in value]
    if isinstance(value, dict):
        return {well_formed_value(name): well_formed_value(each) for name, each in value.items()}
    return value

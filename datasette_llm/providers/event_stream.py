"""Decode what OpenAI-compatible servers send: server-sent events, JSON lines, one whole answer.

Server-sent events are those of the HTML standard, read generously: an event may lack its blank
line at the end, and a line without a field name may be JSON or a text that says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import ProviderError
from ..redaction import cut

# An event, or a whole answer, with pictures for example; a longer one is refused unread.
MAX_EVENT_BYTES = 16 * 1024 * 1024
# Of a text that a server sends in place of an event.
MAX_QUOTED_CHARS = 500

_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({b"data", b"event", b"id", b"retry"})
_NOTHING = frozenset({b"", b"null", b"[]"})
# Events that servers send to keep a connection open.
_KEEP_ALIVES = frozenset({"ping", "heartbeat", "keepalive", "keep-alive"})
_NOTHING |= {name.encode() for name in _KEEP_ALIVES}


class Frame(NamedTuple):
    """What a server has sent.

    Attributes:
        event: an object of JSON; None for anything else.
        name: the name of the event, `""` where it has none; `done` for the mark of the end.
        text: what is neither JSON nor a keep-alive.
    """

    event: dict[str, Any] | None = None
    name: str = ""
    text: str = ""


KEEP_ALIVE = Frame(name="ping")
DONE = Frame(name="done")


class EventDecoder:
    """Turns the bytes of an answer into frames, as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which there is no end of a line
        self._after_cr = False
        self._started = False
        self._data: list[bytes] = []
        self._name = ""
        self._unframed: list[bytes] = []
        self._size = 0  # of what waits for its end
        self._kept_alive = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that are complete with these bytes.

        Raises:
            ProviderError: one is too large, or is no JSON.
        """
        if b"\r" in data or self._after_cr:
            data = self._without_cr(data)
        self._buffer += data
        if not self._started:
            if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
                return
            self._started = True
            if self._buffer.startswith(_BOM):
                del self._buffer[: len(_BOM)]
        start = 0
        end = self._buffer.find(b"\n", self._searched)
        while end >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            yield from self._line(line)
            end = self._buffer.find(b"\n", start)
        if start:
            del self._buffer[:start]
        self._searched = len(self._buffer)
        if self._searched + self._size > MAX_EVENT_BYTES:
            raise _too_large()
        if self._kept_alive:  # once, since a server may send any number of comments
            self._kept_alive = False
            yield KEEP_ALIVE

    def finish(self) -> Iterator[Frame]:
        """The frames that end with the answer.

        Raises:
            ProviderError: one is no JSON.
        """
        if self._buffer:
            line = bytes(self._buffer)
            self._buffer.clear()
            yield from self._line(line)
        yield from self._dispatch()
        yield from self._unframed_frame()

    def _without_cr(self, data: bytes) -> bytes:
        """Bytes whose lines end with a newline alone."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes) -> Iterator[Frame]:
        if not line:
            yield from self._dispatch()
            return
        if line.startswith(b":"):
            self._kept_alive = True
            return
        field, _, value = line.partition(b":")
        if field not in _FIELDS:
            yield from self._unframed_line(line)
            return
        yield from self._unframed_frame()
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace").strip().lower()
        elif field == b"data":
            yield from self._data_line(value)
        else:
            self._kept_alive = True

    def _data_line(self, value: bytes) -> Iterator[Frame]:
        """A line of data; one that is a whole object need not wait for the blank line."""
        if value[:1] != b"{" and value.strip(b' "').upper().startswith(b"[DONE]"):
            yield from self._dispatch()
            yield DONE
            return
        if not self._data:
            event = _object(value)
            if event is not None:
                yield KEEP_ALIVE if _keeps_alive(event, self._name) else Frame(event, self._name)
                return
            if value.strip(b' "').lower() in _NOTHING:
                yield KEEP_ALIVE
                return
        self._data.append(value)
        self._grow(value)

    def _dispatch(self) -> Iterator[Frame]:
        name, self._name = self._name, ""
        if not self._data:
            self._kept_alive = True  # some servers send empty lines while they compute
            return
        text = b"\n".join(self._data).decode("utf-8", "replace").strip()
        self._data.clear()
        self._size = 0
        if name in _KEEP_ALIVES or not text:
            yield KEEP_ALIVE
            return
        if name == "error":
            yield Frame(None, name, text)
            return
        yield _frame(_parsed(text), name)

    def _unframed_line(self, line: bytes) -> Iterator[Frame]:
        """A line that is no field: JSON by itself, or part of a text."""
        event = _object(line.strip()) if not self._unframed else None
        if event is not None:
            yield Frame(event)
            return
        self._unframed.append(line)
        self._grow(line)

    def _unframed_frame(self) -> Iterator[Frame]:
        if not self._unframed:
            return
        text = b"\n".join(self._unframed).decode("utf-8", "replace").strip()
        self._unframed.clear()
        self._size = 0
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            yield Frame(text=text)
        else:
            yield _frame(value, "")

    def _grow(self, line: bytes) -> None:
        self._size += len(line)
        if self._size > MAX_EVENT_BYTES:
            raise _too_large()


def _object(text: bytes) -> dict[str, Any] | None:
    """An object of JSON, or None for anything else."""
    if not (text.startswith(b"{") and text.rstrip().endswith(b"}")):
        return None
    try:
        value = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _keeps_alive(event: dict[str, Any], name: str) -> bool:
    """Whether an event is none but by name, as `{"type": "ping"}`."""
    return name in _KEEP_ALIVES or (name != "error" and not event) or event.get("type") == "ping"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = cut(text, MAX_QUOTED_CHARS)
        raise ProviderError(
            f"The server sent an event that is no JSON: {shown}", kind="bad_answer", body=text
        ) from None


def _frame(value: object, name: str) -> Frame:
    """What a value of JSON means: some gateways put an error into a list."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        return Frame(value, name)
    return KEEP_ALIVE if not isinstance(value, str) else Frame(text=value)


def _too_large() -> ProviderError:
    return ProviderError(
        f"The server sent more than {MAX_EVENT_BYTES // 2**20} MB in one event, which was not "
        "read to its end",
        kind="bad_answer",
    )

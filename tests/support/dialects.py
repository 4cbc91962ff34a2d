"""Answers as OpenAI-compatible servers really send them, as bytes for `OpenAIServer`.

server.play([sse(text("Hello"), STOP)])
"""

from __future__ import annotations

import json
from typing import Any

from .openai_server import Raw

DONE = b"data: [DONE]\n\n"


def delta(content: Any, reason: Any = None, **more: Any) -> dict[str, Any]:
    """An event with a delta."""
    return {"choices": [{"index": 0, "delta": content, "finish_reason": reason}], **more}


def text(content: Any, reason: str | None = None) -> dict[str, Any]:
    """An event with a piece of the text."""
    return delta({"content": content}, reason)


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    """An event with pieces of tool calls."""
    return delta({"tool_calls": list(pieces)})


def piece(
    name: str | None = None,
    arguments: Any = None,
    *,
    index: int | None = 0,
    call_id: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A piece of a tool call, without what is None."""
    function = {"name": name, "arguments": arguments}
    parts = {"index": index, "id": call_id, "function": _given(function), **more}
    return _given(parts) | {"type": "function"}


STOP = delta({}, "stop")
CALLED = delta({}, "tool_calls")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def events(*items: Any, done: bool = True) -> bytes:
    """Events of a stream: bytes as they are, others as JSON."""
    sent = [
        item if isinstance(item, bytes) else b"data: %s\n\n" % json.dumps(item).encode()
        for item in items
    ]
    return b"".join(sent) + (DONE if done else b"")


def http(body: bytes, *headers: str, status: int = 200, kind: str = "text/event-stream") -> Raw:
    """An HTTP answer that ends with its connection."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "connection: close", *headers]
    return Raw("\r\n".join([*lines, "", ""]).encode() + body)


def sse(*items: Any, done: bool = True) -> Raw:
    """A stream of events."""
    return http(events(*items, done=done))


def document(value: Any, status: int = 200) -> Raw:
    """One document of JSON, or bytes in its place."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return http(body, status=status, kind="application/json")


def whole(content: Any, reason: str | None = "stop", **more: Any) -> Raw:
    """A whole answer."""
    message = {"role": "assistant", "content": content}
    return document(
        {"choices": [{"index": 0, "message": message, "finish_reason": reason}], **more}
    )


def _given(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if value is not None}

"""A call as rows of the log: what was requested, what came of it, and its content."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import llm

from ..events import RequestFinished, RequestStarted
from ..redaction import Keys
from ..sanitize import as_json, now, storable

# Of each text. A longer prompt is a pasted file.
MAX_TEXT_CHARS = 1_000_000

_INSERT_CONTENT = (
    "insert into llm_call_content (call_id, part, content) values (:call_id, :part, :content)"
)

Statement = tuple[str, Mapping[str, Any]]


def started_row(session_id: str, request: RequestStarted) -> dict[str, Any]:
    """The first part of a row."""
    waited_s = request.waited_s
    return {
        "id": request.id,
        "session_id": session_id,
        "started_at": now(),
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
    }


def finished_row(request: RequestFinished) -> dict[str, Any]:
    """The second part of a row, without its cost."""
    first_chunk_s = request.first_chunk_s
    return {
        "id": request.id,
        "finished_at": now(),
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
    }


def content_statements(
    call_id: str, prompt: llm.Prompt, answer: Callable[[], Iterable[Any]], keys: Keys
) -> list[Statement]:
    """What records the content of a call; of a call that failed, as far as it got.

    Args:
        call_id: the id of its row.
        prompt: what was sent.
        answer: gives the messages that came back.
        keys: what to take out of the texts.
    """
    parts = {
        "request": lambda: _request(prompt),
        "response": lambda: {"messages": _messages(answer())},
    }
    return [
        (_INSERT_CONTENT, storable({"call_id": call_id, "part": part, "content": text}))
        for part, text in ((part, _text(build, keys)) for part, build in parts.items())
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _text(build: Callable[[], dict[str, Any]], keys: Keys) -> str:
    try:
        content = build()
    except Exception as error:  # a provider's events and a plugin's tools make llm raise anything
        content = {"not_recorded": f"{type(error).__name__}: {error}"}
    return as_json(content, keys, MAX_TEXT_CHARS)


def _request(prompt: llm.Prompt) -> dict[str, Any]:
    return {
        "messages": _messages(prompt.messages),
        "tools": [tool.name for tool in prompt.tools],
        "options": {k: v for k, v in dict(prompt.options).items() if v is not None},
        "schema": prompt.schema,
    }


def _messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    plain = [message.to_dict() for message in messages]
    for part in (part for message in plain for part in message["parts"]):
        for attachment in (part.get("attachment"), *part.get("attachments", ())):
            if attachment and "content" in attachment:
                _describe(attachment)
    return plain


def _describe(attachment: dict[str, Any]) -> None:
    """Put what identifies an attachment in place of its bytes, which may be many, or hold a key."""
    content = base64.b64decode(attachment.pop("content"))
    attachment["bytes"] = len(content)
    attachment["sha256"] = hashlib.sha256(content).hexdigest()

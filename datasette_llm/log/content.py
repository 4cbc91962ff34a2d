"""The content of a call: what was sent and what came back, where the configuration wants it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .values import as_json, storable

if TYPE_CHECKING:
    from ..redaction import Keys
    from ..responses import PromptResponse
    from .writer import Statement

# Of each text. A prompt that is longer is a file that somebody pasted.
MAX_TEXT_CHARS = 1_000_000

_INSERT = "insert into llm_call_content (call_id, part, content) values (:call_id, :part, :content)"


def content_statements(call_id: str, response: PromptResponse, key: Keys) -> list[Statement]:
    """What records the content of a call, its key apart; for a call that failed, as far as it got.

    Args:
        call_id: the id of its row.
        response: the response, which has ended.
        key: the key that was used, or None.
    """
    parts = {"request": _request, "response": _answer}
    return [
        (_INSERT, storable({"call_id": call_id, "part": part, "content": text}))
        for part, text in ((part, _written(build, response, key)) for part, build in parts.items())
    ]


def _written(
    build: Callable[[PromptResponse], dict[str, Any]], response: PromptResponse, key: Keys
) -> str:
    try:
        content = build(response)
    except Exception as error:  # a provider's events and a plugin's tools make llm raise anything
        content = {"not_recorded": f"{type(error).__name__}: {error}"}
    return as_json(content, key, MAX_TEXT_CHARS)


def _request(response: PromptResponse) -> dict[str, Any]:
    prompt = response.prompt
    return {
        "messages": _messages(prompt.messages),
        "tools": [tool.name for tool in prompt.tools],
        "options": {k: v for k, v in dict(prompt.options).items() if v is not None},
        "schema": prompt.schema,
    }


def _answer(response: PromptResponse) -> dict[str, Any]:
    return {"messages": _messages(response._messages_now())}


def _messages(messages: Iterable[Any]) -> list[dict[str, Any]]:
    told = [message.to_dict() for message in messages]
    for part in (part for message in told for part in message["parts"]):
        for attachment in (part.get("attachment"), *part.get("attachments", ())):
            if attachment and "content" in attachment:
                _describe(attachment)
    return told


def _describe(attachment: dict[str, Any]) -> None:
    """Put what identifies an attachment in place of its bytes, which may be many, or hold a key."""
    content = base64.b64decode(attachment.pop("content"))
    attachment["bytes"] = len(content)
    attachment["sha256"] = hashlib.sha256(content).hexdigest()

"""The two parts of a row of the record, as values: what was asked, and what came of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..sanitize import as_json, brief, count, now, storable
from .schema import STARTED_COLUMNS

if TYPE_CHECKING:
    from ..calls.attempt import Attempt
    from ..calls.response import PromptResponse
    from ..redaction import Keys
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


# More than any provider tells of its tokens.
MAX_DETAILS_CHARS = 20_000

_SIZES = ("streaming", "prompt_chars", "system_chars", "message_count", "attachment_count")


def started_row(
    call_id: str,
    session_id: str,
    model_id: str,
    purpose: str | None,
    actor: Mapping[str, Any] | None,
    key: Keys = None,
) -> dict[str, Any]:
    """The first part of a row, with nothing said yet about the request itself."""
    # What is no mapping breaks no rule of ours before the record is asked.
    actor_id = actor.get("id") if isinstance(actor, Mapping) else None
    return (
        dict.fromkeys(STARTED_COLUMNS)
        | dict.fromkeys(_SIZES, 0)
        | {
            "id": call_id,
            "session_id": session_id,
            "started_at": now(),
            "attempt": 1,
            "model_id": brief(model_id, key),
            # An empty name is none, as it is in the filters: they could not ask for it.
            "purpose": None if purpose in (None, "") else brief(purpose, key),
            "actor_id": None if actor_id in (None, "") else brief(actor_id, key),
        }
    )


def request_row(session_id: str, attempt: Attempt) -> dict[str, Any]:
    """The first part of the row of a request."""
    response, model, result = attempt.response, attempt.model, attempt.call.result
    conversation, key = response.conversation, attempt.key
    row = started_row(attempt.id, session_id, model.model_id, model.purpose, model.actor, key)
    return row | {
        "group_id": result.group.id if result.group else None,
        "chain_id": result.responses[0].id if result.is_chain else None,
        "chain_step": result.responses.index(response) + 1 if result.is_chain else None,
        "conversation_id": brief(conversation.id, key) if conversation else None,
        "streaming": int(bool(response.stream)),
        "attempt": attempt.number,
        "prompt_id": None if attempt.number == 1 else response.id,
        "waited_ms": None if attempt.waited_s is None else round(attempt.waited_s * 1000, 3),
        **_sizes_of(response),
    }


def answer_row(response: PromptResponse, key: Keys) -> dict[str, Any]:
    """What the provider said about its answer, for the second part of a row."""
    details, resolved = response.token_details, response.resolved_model
    text = as_json(details, key) if details else None
    if text is not None and len(text) > MAX_DETAILS_CHARS:
        text = as_json(f"{len(text):,} characters, which is too much to keep", None)
    return {
        "input_tokens": count(response.input_tokens),
        "output_tokens": count(response.output_tokens),
        "token_details": text,
        "resolved_model": brief(resolved, key) if resolved else None,
    }


def _sizes_of(response: PromptResponse) -> dict[str, int]:
    try:
        return _sizes(response.prompt.messages)
    except Exception:  # llm makes them of what a caller gave, which the model may never look at
        return {}


def _sizes(messages: list[Any]) -> dict[str, int]:
    """How large a request is: its last message is what is new, a reply's text for example."""
    last = messages[-1].parts if messages else []
    system = [part for message in messages if message.role == "system" for part in message.parts]
    return {
        "prompt_chars": _chars(last),
        "system_chars": _chars(system),
        "message_count": len(messages),
        "attachment_count": sum(
            len(getattr(part, "attachments", ())) + hasattr(part, "attachment") for part in last
        ),
    }


def _chars(parts: list[Any]) -> int:
    texts = (getattr(part, "text", None) or getattr(part, "output", None) or "" for part in parts)
    return sum(len(text) for text in texts if isinstance(text, str))

"""The two parts of a row of the record, as values: what was asked, and what came of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .schema import STARTED_COLUMNS
from .values import as_json, brief, count

if TYPE_CHECKING:
    from ..calls import Call
    from ..responses import PromptResponse

# More than any provider tells of its tokens.
MAX_DETAILS_CHARS = 20_000

_SIZES = ("streaming", "prompt_chars", "system_chars", "message_count", "attachment_count")


def started_row(
    call_id: str,
    session_id: str,
    model_id: str,
    purpose: str | None,
    actor: Mapping[str, Any] | None,
    key: str | None = None,
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
            "model_id": brief(model_id, key),
            # An empty name is none, as it is in the filters: they could not ask for it.
            "purpose": None if purpose in (None, "") else brief(purpose, key),
            "actor_id": None if actor_id in (None, "") else brief(actor_id, key),
        }
    )


def request_row(session_id: str, call: Call, response: PromptResponse) -> dict[str, Any]:
    """The first part of the row of a request."""
    model, result, conversation = call.model, call.result, response.conversation
    key = key_of(call, response)
    row = started_row(response.id, session_id, model.model_id, model.purpose, model.actor, key)
    return row | {
        "group_id": result.group.id if result.group else None,
        "chain_id": result.responses[0].id if result.is_chain else None,
        "chain_step": result.responses.index(response) + 1 if result.is_chain else None,
        "conversation_id": brief(conversation.id, key) if conversation else None,
        "streaming": int(bool(response.stream)),
        **_sizes_of(response),
    }


def answer_row(response: PromptResponse, key: str | None) -> dict[str, Any]:
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


def key_of(call: Call, response: PromptResponse) -> str | None:
    """The key to keep off the record: before one is found, what the caller gave may be one."""
    return call.used_key or response._key


def now() -> str:
    """The time in UTC, as `2026-01-31T12:00:00.000Z`."""
    moment = datetime.datetime.now(datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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

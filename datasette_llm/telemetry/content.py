"""What was said, as JSON in the form of the GenAI conventions: without keys, and bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import llm

from ..log.rows import plain_messages
from ..redaction import Keys
from ..sanitize import MARGIN_CHARS, as_json
from . import registry as names
from .attributes import Attributes

# Of each text.
MAX_TEXT_CHARS = 20_000
# Of all messages together: backends refuse, or cut, what is much larger.
MAX_CHARS = 100_000


def said(
    prompt: llm.Prompt,
    answer: Callable[[int], tuple[Iterable[Any], Mapping[str, int]]],
    reason: str,
    keys: Keys,
) -> Attributes:
    """The messages of a request and of its answer; of a call that failed, as far as it got.

    Args:
        prompt: what was sent.
        answer: takes how many characters a text may have; gives the messages that came back, and
            for each text that was cut its length.
        reason: why the answer ended.
        keys: what to take out of the texts.
    """
    messages, _ = answer(MAX_TEXT_CHARS + MARGIN_CHARS + 1)
    found = {
        names.INPUT_MESSAGES: messages_json(prompt.messages, keys),
        names.OUTPUT_MESSAGES: messages_json(messages, keys, reason),
    }
    return {name: text for name, text in found.items() if text is not None}


def messages_json(
    messages: Iterable[Any], keys: Keys, finish_reason: str | None = None
) -> str | None:
    """Messages as the conventions have them; the newest, where there are too many.

    Args:
        messages: llm's.
        keys: what to take out of the texts.
        finish_reason: why an answer ended; None for the messages of a request.

    Returns:
        JSON, an array; None where llm cannot make dictionaries of them.
    """
    try:
        plain = plain_messages(messages)
    except Exception:  # a provider's events and a plugin's tools make llm raise anything
        return None
    ended = {} if finish_reason is None else {"finish_reason": finish_reason}
    texts = [value_json(each | ended, keys) for message in plain for each in _messages(message)]
    return f"[{', '.join(_newest(texts))}]"


def value_json(value: object, keys: Keys) -> str:
    """A value as JSON, without keys; a text without its end where that is too much."""
    text = as_json(value, keys, MAX_TEXT_CHARS)
    if len(text) > MAX_CHARS:
        return json.dumps(f"More than {MAX_CHARS:,} characters, too much for a span")
    return text


def _newest(texts: list[str]) -> list[str]:
    left, kept = MAX_CHARS, 0
    for text in reversed(texts):
        left -= len(text)
        if left < 0:
            break
        kept += 1
    return texts[len(texts) - kept :]


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message of llm's; for each result of a tool one, since backends show one in a message."""
    role, parts = message["role"], [_part(part) for part in message["parts"]]
    if role == "tool":
        return [{"role": role, "parts": [part]} for part in parts]
    return [{"role": role, "parts": parts}]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "text" | "reasoning" as kind:
            return {"type": kind, "content": part["text"]}
        case "tool_call" as kind:
            return {
                "type": kind,
                "id": part.get("tool_call_id"),
                "name": part["name"],
                "arguments": part["arguments"],
            }
        case "tool_result":
            return {
                "type": "tool_call_response",
                "id": part.get("tool_call_id"),
                "response": part["output"],
            }
        case kind:
            # Of what the conventions do not name any type may be written.
            return {"type": kind, **part.get("attachment", {})}

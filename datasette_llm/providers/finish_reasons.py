"""Why an answer ended, in the words of every provider."""

from __future__ import annotations

from .exceptions import part_of

_REASONS = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "refusal": "refusal",
}


def finish_reason_of(response_json: object) -> str | None:
    """Why an answer ended, as its provider says; None where it does not.

    Args:
        response_json: what a plugin of llm has put into `response.response_json`.
    """
    if part_of(response_json, "refusal"):
        return "refusal"
    word = part_of(response_json, "finish_reason")
    return _REASONS.get(word, "other") if isinstance(word, str) and word else None

"""Why an answer ended, in the words of every provider.

llm's plugins keep what the provider's API returned as `response.response_json`, each in the shape
of its API. It is third-party data of any shape, so each part is read with `part_of`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..events import FinishReason as FinishReason
from .exceptions import part_of

# From the API references of OpenAI, Anthropic, Google, Ollama, Mistral, Cohere, AWS Bedrock,
# Hugging Face and Zhipu. Words that are not here become `other`.
_WORDS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop end_turn stop_sequence complete completed eos eos_token finish "
    "finished endoftext end stopped",
    FinishReason.LENGTH: "length max_tokens max_output_tokens max_token model_length error_limit "
    "model_context_window_exceeded max_length",
    FinishReason.CONTENT_FILTER: "content_filter content_filtered safety recitation blocklist "
    "prohibited_content spii image_safety image_prohibited_content image_recitation model_armor "
    "guardrail_intervened error_toxic sensitive",
    FinishReason.TOOL_CALLS: "tool_calls tool_call tool_use function_call",
    FinishReason.REFUSAL: "refusal",
}
_REASONS = {word: reason for reason, words in _WORDS.items() for word in words.split()}
# What stands where there is no reason yet.
_NO_WORDS = {"", "null", "none", "finish_reason_unspecified", "unspecified", "in_progress"}
_NO_WORDS |= {"queued", "block_reason_unspecified", "blocked_reason_unspecified"}

_NAMES = ("finish_reason", "stop_reason", "done_reason")
_NAMES_IN_CAMEL_CASE = ("finishReason", "stopReason", "completionReason")
# Plugins that keep every event of a stream: the reason is in one of the last.
_LAST_CHUNKS = 10


def finish_reason_of(response_json: object) -> FinishReason | None:
    """Why an answer ended, as its provider says.

    Args:
        response_json: what a plugin of llm has put into `response.response_json`.

    Returns:
        The reason, `other` for one that is not known here; None where there is none.
    """
    if response_json is None:
        return None
    places = list(parts_of(response_json))
    if any(_refused(place) for place in places):
        return FinishReason.REFUSAL
    for place in places:
        for name in (*_NAMES, *_NAMES_IN_CAMEL_CASE):
            reason = _reason(part_of(place, name))
            if reason is not None:
                return reason
    return _of_openai_responses(response_json) or _blocked(response_json)


def parts_of(answer: object) -> Iterator[object]:
    """The parts of an answer that may have a reason or an id, the outermost first.

    Args:
        answer: what a plugin of llm has put into `response.response_json`.
    """
    yield answer
    for name in ("choices", "candidates", "results", "generations"):
        yield from _items(part_of(answer, name))[:1]
    yield from (part_of(answer, name) for name in ("messageStop", "message", "response"))
    for chunk in reversed(_items(part_of(answer, "chunks"))[-_LAST_CHUNKS:]):
        yield chunk
        yield from _items(part_of(chunk, "choices"))[:1]


def words_of(reason: str) -> list[str]:
    """The words of a reason, each in one spelling; none where it stands for no reason yet.

    Gemini joins two, as in `content_filter: SPII`; "FinishReason.MAX_TOKENS" is a client's enum.
    """
    parts = (part.rpartition(".")[2].strip().lower() for part in reason.split(":"))
    return [word for each in parts if (word := re.sub(r"[\s-]+", "_", each)) not in _NO_WORDS]


def _refused(place: object) -> bool:
    """Whether a part of an answer has the text of a refusal."""
    return any(_has_text(part_of(each, "refusal")) for each in (place, part_of(place, "message")))


def _has_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _reason(word: object) -> FinishReason | None:
    if not isinstance(word, str):
        return None
    words = words_of(word)
    known = (_REASONS[each] for each in words if each in _REASONS)
    return next(known, FinishReason.OTHER) if words else None


def _of_openai_responses(answer: object) -> FinishReason | None:
    """The reason by OpenAI's Responses API, which has a status and a list of output items."""
    output = _items(part_of(answer, "output"))
    if not output and part_of(answer, "object") != "response":
        return None
    parts = (part for item in output for part in _items(part_of(item, "content")))
    if any(part_of(part, "type") == "refusal" for part in parts):
        return FinishReason.REFUSAL
    status = part_of(answer, "status")
    if status == "incomplete":
        details = part_of(answer, "incomplete_details")
        return _reason(part_of(details, "reason")) or FinishReason.OTHER
    if status == "completed" and any(part_of(item, "type") == "function_call" for item in output):
        return FinishReason.TOOL_CALLS
    return _reason(status)


def _blocked(answer: object) -> FinishReason | None:
    """Gemini has no candidates when it blocks the prompt."""
    word = part_of(part_of(answer, "promptFeedback"), "blockReason")
    return FinishReason.CONTENT_FILTER if _reason(word) is not None else None


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []

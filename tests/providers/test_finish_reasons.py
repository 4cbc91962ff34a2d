"""W3: why an answer ended, by what llm's plugins keep of each provider's API."""

from __future__ import annotations

import random

import pytest

from datasette_llm.events import FinishReason
from datasette_llm.providers.finish_reasons import finish_reason_of


def openai(word, **message):
    return {"object": "chat.completion", "choices": [{"finish_reason": word, "message": message}]}


def gemini(word):
    return {"candidates": [{"finishReason": word, "index": 0}], "modelVersion": "gemini-2.5"}


def responses(status, *output, reason=None):
    details = {"incomplete_details": {"reason": reason}} if reason else {}
    return {"object": "response", "status": status, "output": list(output)} | details


def said(kind, **part):
    return {"type": "message", "content": [{"type": kind, **part}]}


class Client:
    """An object of a provider's client, which is no dictionary."""

    def __init__(self, **values):
        vars(self).update(values)

    @property
    def choices(self):
        raise RuntimeError("lazy")


CASES = [
    # OpenAI's chat completions: whole, and of chunks as llm combines them
    (openai("stop"), "stop"),
    (openai("length"), "length"),
    (openai("content_filter"), "content_filter"),
    (openai("tool_calls"), "tool_calls"),
    (openai("function_call"), "tool_calls"),
    (openai("stop", refusal="I cannot help with that."), "refusal"),
    (openai("stop", refusal=""), "stop"),
    (openai("stop", refusal=None), "stop"),
    (openai(None), None),
    ({"content": "Hi", "finish_reason": "length", "usage": {}}, "length"),
    ({"content": "", "finish_reason": "stop", "refusal": "I cannot."}, "refusal"),
    ({"content": "Hi", "finish_reason": None}, None),
    ({"choices": [{"finish_reason": "stop", "text": "of a completion"}]}, "stop"),
    # Servers that speak it in words of their own
    (openai("eos_token"), "stop"),
    (openai("abort"), "other"),
    (openai("insufficient_system_resource"), "other"),
    (openai("null"), None),
    (openai("content_filter: PROHIBITED_CONTENT"), "content_filter"),  # Gemini
    (openai("function_call_filter: MALFORMED_FUNCTION_CALL"), "other"),
    # OpenAI's Responses
    (responses("completed", said("output_text", text="Hi")), "stop"),
    (responses("completed", said("refusal", refusal="I cannot.")), "refusal"),
    (responses("completed", {"type": "function_call", "name": "f"}), "tool_calls"),
    (responses("incomplete", reason="max_output_tokens"), "length"),
    (responses("incomplete", reason="content_filter"), "content_filter"),
    (responses("incomplete"), "other"),
    (responses("failed"), "other"),
    (responses("in_progress"), None),
    ({"status": "completed"}, None),
    # Anthropic
    ({"type": "message", "stop_reason": "end_turn"}, "stop"),
    ({"stop_reason": "stop_sequence", "stop_sequence": "."}, "stop"),
    ({"stop_reason": "max_tokens"}, "length"),
    ({"stop_reason": "model_context_window_exceeded"}, "length"),
    ({"stop_reason": "tool_use"}, "tool_calls"),
    ({"stop_reason": "refusal", "stop_details": {"category": "x"}}, "refusal"),
    ({"stop_reason": "pause_turn"}, "other"),
    # Gemini
    (gemini("STOP"), "stop"),
    (gemini("MAX_TOKENS"), "length"),
    *((gemini(word), "content_filter") for word in ("SAFETY", "RECITATION", "BLOCKLIST", "SPII")),
    (gemini("PROHIBITED_CONTENT"), "content_filter"),
    (gemini("MALFORMED_FUNCTION_CALL"), "other"),
    (gemini("FINISH_REASON_UNSPECIFIED"), None),
    ({"promptFeedback": {"blockReason": "SAFETY"}}, "content_filter"),
    ({"promptFeedback": {"blockReason": "OTHER"}}, "content_filter"),
    ({"promptFeedback": {"safetyRatings": []}}, None),
    # Ollama, Mistral, Cohere, Bedrock
    ({"done": True, "done_reason": "stop", "message": {"content": "Hi"}}, "stop"),
    ({"done": True, "done_reason": "length"}, "length"),
    ({"done_reason": "load"}, "other"),
    ({"chunks": [openai(None), openai("model_length")]}, "length"),
    ({"chunks": [openai("tool_calls"), {"usage": {}}, None]}, "tool_calls"),
    ({"chunks": []}, None),
    ({"text": "Hi", "finish_reason": "COMPLETE"}, "stop"),
    ({"finish_reason": "ERROR_TOXIC"}, "content_filter"),
    ({"finish_reason": "TOOL_CALL"}, "tool_calls"),
    ({"stopReason": "end_turn", "output": {"message": {}}}, "stop"),
    ({"stopReason": "guardrail_intervened"}, "content_filter"),
    ({"messageStop": {"stopReason": "max_tokens"}}, "length"),
    ({"results": [{"completionReason": "FINISH"}]}, "stop"),
    # A client's objects, and enums as text
    (Client(stop_reason="FinishReason.MAX_TOKENS"), "length"),
    # Not an answer of any provider
    *((garbage, None) for garbage in (None, "stop", 3, [], {}, b"stop", {"choices": "stop"})),
    *((garbage, None) for garbage in ({"choices": [None]}, {"finish_reason": {}}, {"output": [1]})),
    ({"finish_reason": "  "}, None),
    ({"finish_reason": "out of mana"}, "other"),
    ({"candidates": [[]], "chunks": {"a": 1}, "status": ["completed"]}, None),
]


@pytest.mark.parametrize(
    ("response_json", "expected"),
    CASES,
    ids=[f"{number}-{expected}" for number, (_, expected) in enumerate(CASES)],
)
def test_w3_reason_of_each_dialect(response_json, expected):
    assert finish_reason_of(response_json) == expected


def test_w3_garbage_breaks_nothing():
    """Answers of providers with values swapped at random give a reason or None."""
    known = [case for case, _ in CASES if not isinstance(case, Client)]
    chooser = random.Random(12)

    def garbled(value):
        if chooser.random() < 0.2:
            return chooser.choice([None, "", "stop", 0, -1.5, True, [], {}, [[]], known[0]])
        if isinstance(value, dict):
            return {chooser.choice([key, "refusal"]): garbled(each) for key, each in value.items()}
        return [garbled(each) for each in value] if isinstance(value, list) else value

    for _ in range(3_000):
        reason = finish_reason_of(garbled(chooser.choice(known)))
        assert reason is None or isinstance(reason, FinishReason)

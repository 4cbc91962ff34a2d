"""Content as rows: texts are cut before they are copied, and keys removed before that shows."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import llm
import pytest
from llm.parts import StreamEvent

from datasette_llm.calls.response import PromptResponse
from datasette_llm.log import rows
from datasette_llm.log.rows import MAX_TEXT_CHARS, Content, content_statements, shortened
from datasette_llm.sanitize import MARGIN_CHARS
from datasette_llm.testing import ScriptedModel

KEY = "sk-0123456789abcdef"
MB = 1_000_000


def peak_of(work: Callable[[], Any]) -> tuple[int, Any]:
    """The bytes that work allocates at most, and what it gives."""
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


async def response_of(*script: Any, **asked: Any) -> Any:
    """A response of llm's own class, as the calls of the log have it."""
    model = ScriptedModel("scripted", list(script), attachment_types=["text/plain"])
    response = model.prompt("x", **asked)
    await response.text()
    response.__class__ = PromptResponse
    return response


def recorded(response: Any, keys: Any = None) -> tuple[Any, Any]:
    made = content_statements("id", response.prompt, response.short_messages, keys)
    request, answer = (json.loads(values["content"]) for _, values in made)
    return request, answer


async def test_s2_long_answer_is_cut_before_it_is_copied() -> None:
    piece = "12345678" * (MB // 8)
    response = await response_of(*[piece] * 400)
    peak, (_, answer) = peak_of(lambda: recorded(response))
    text = answer["messages"][0]["parts"][0]["text"]
    assert text == piece + "… and 399,000,000 more characters"
    assert peak < 30 * MB


@pytest.mark.parametrize("kind", ["text", "reasoning", "tool_result"])
async def test_s2_long_event_is_cut_before_it_is_copied(kind: Any) -> None:
    response = await response_of(StreamEvent(kind, "x" * 100 * MB), "y")
    peak, (_, answer) = peak_of(lambda: recorded(response))
    [part] = [part for part in answer["messages"][0]["parts"] if part["type"] == kind][:1]
    shown = part["output" if kind == "tool_result" else "text"]
    assert len(shown) < MAX_TEXT_CHARS + 50
    assert shown.endswith(" more characters")
    assert peak < 30 * MB


async def test_s2_long_arguments_are_not_parsed() -> None:
    """Arguments of a tool of more than a million characters are recorded as their beginning."""
    script = [
        StreamEvent("tool_call_name", "tool", tool_call_id="t"),
        *[StreamEvent("tool_call_args", "[" + "1," * MB, tool_call_id="t")] * 20,
    ]
    response = await response_of(*script)
    peak, (_, answer) = peak_of(lambda: recorded(response))
    [part] = answer["messages"][0]["parts"]
    assert part["name"] == "tool"
    assert part["arguments"]["_raw"].endswith(f"… and {20 * (2 * MB + 1) - MB:,} more characters")
    assert peak < 30 * MB


async def test_s2_long_prompt_is_cut_before_it_is_copied() -> None:
    response = await response_of("a", messages=[llm.user("x" * 100 * MB), llm.user("y")])
    peak, (request, _) = peak_of(lambda: recorded(response))
    text = request["messages"][0]["parts"][0]["text"]
    assert text == "x" * MB + "… and 99,000,000 more characters"
    assert peak < 30 * MB


async def test_s2_attachment_is_not_copied() -> None:
    content = b"x" * 50 * MB
    paper = llm.Attachment(type="text/plain", content=content)
    response = await response_of("a", messages=[llm.user("x", paper)])
    peak, (request, _) = peak_of(lambda: recorded(response))
    described = {"type": "text/plain", "bytes": len(content)}
    described["sha256"] = hashlib.sha256(content).hexdigest()
    assert request["messages"][0]["parts"][1]["attachment"] == described
    assert peak < MB


@pytest.mark.parametrize("end", [MAX_TEXT_CHARS, MAX_TEXT_CHARS + MARGIN_CHARS])
@pytest.mark.parametrize("overlap", [1, len(KEY) // 2, len(KEY) - 1])
@pytest.mark.parametrize("keys_before", [0, 4_000])
async def test_s4_key_where_a_text_is_cut_is_removed(
    end: int, overlap: int, keys_before: int
) -> None:
    """Nothing is left of it, even where other keys that are gone make room for it."""
    before = KEY * keys_before
    text = before + "x" * (end - overlap - len(before)) + KEY + "y" * 3 * MB
    response = await response_of(*(text[at : at + 100_003] for at in range(0, len(text), 100_003)))
    _, answer = recorded(response, KEY)
    shown = answer["messages"][0]["parts"][0]["text"]
    assert KEY[:3] not in shown
    assert "… and 3," in shown or "… and 2," in shown


def test_s2_events_are_cut_by_part_and_type() -> None:
    events = [
        StreamEvent("text", "abc", part_index=0),
        StreamEvent("reasoning", "uvw", part_index=1),
        StreamEvent("text", "def", part_index=0),
        StreamEvent("reasoning", "", part_index=1, provider_metadata={"signature": 1}),
        StreamEvent("text", "ghi", part_index=0),
        StreamEvent("text", "jkl", part_index=0, provider_metadata={"last": 1}),
    ]
    kept, lengths = shortened(events, 5)
    assert [event.chunk for event in kept] == ["abc", "uvw", "de", "", ""]
    assert [event.provider_metadata for event in kept[3:]] == [{"signature": 1}, {"last": 1}]
    assert lengths == {"abcde": 12}
    assert events[2].chunk == "def"
    assert shortened(events[:2], 5) == (events[:2], {})


async def test_s2_weights_follow_the_texts() -> None:
    small = await response_of("a")
    assert rows.answer_bytes(small._stream_events) < 2_000
    for script in (["a" * MB], ["a" * 10] * 100_000):
        response = await response_of(*script)
        assert rows.answer_bytes(response._stream_events) >= MB
    wide = await response_of("\u4e00" * MB)
    assert rows.answer_bytes(wide._stream_events) > 2 * MB
    asked = await response_of("a", system="s" * MB)
    assert MB <= rows.weighed(asked.prompt)[0] < 1.1 * MB


def test_s2_weight_of_a_prompt_that_llm_cannot_read() -> None:
    class Broken:
        @property
        def messages(self) -> list[Any]:
            raise ValueError

    assert rows.weighed(Broken()) == (rows.OVERHEAD_BYTES, True)  # type: ignore[arg-type]  # no prompt, on purpose


def test_s2_dropped_content_frees_what_it_holds() -> None:
    content = Content(lambda: [("sql", {})], 7)
    assert content.statements() == [("sql", {})]
    content.drop()
    assert content.statements() == ()

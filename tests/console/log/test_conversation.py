"""Recorded content as people read it, whatever its shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datasette_llm.console.log import conversation
from datasette_llm.console.log.conversation import (
    Message,
    Source,
    count_parts,
    messages_of,
    shown,
    text_at,
)

from ...support.console import HOSTILE, Page, assert_harmless


def said(role: str, *parts: Any) -> dict[str, Any]:
    texts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "parts": texts}


def call(name: str, call_id: str | None = None) -> dict[str, Any]:
    return {"type": "tool_call", "name": name, "arguments": {"of": name}, "tool_call_id": call_id}


def result(name: str, output: str, call_id: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "name": name, "output": output, "tool_call_id": call_id} | more


def outline(messages: list[Message]) -> list[tuple[str, list[str]]]:
    def of(block: conversation.Block) -> str:
        text = block.passage.text if block.passage else block.label
        name = f"{block.label}: " if block.kind in ("tool", "result") else ""
        return f"{name}{text}" + (f" -> {of(block.result)}" if block.result else "")

    return [(each.speaker, [of(block) for block in each.blocks]) for each in messages]


def test_p5_tools_stand_beside_their_results() -> None:
    """By their ids, or by name where there are none; also of a later call."""
    first = [said("system", "Be kind"), said("user", "Hi"), said("assistant", call("a", "1"))]
    second = [
        said("tool", result("a", "one", "1")),
        said("assistant", "And", call("b"), call("b")),
        said("tool", result("b", "two"), result("b", "three"), result("c", "four", "9")),
    ]

    found = outline(shown([Source("x", first), Source("y", second)]))

    of_b = 'b: {\n  "of": "b"\n} -> b: '
    assert found == [
        ("System", ["Be kind"]),
        ("User", ["Hi"]),
        ("Assistant", ['a: {\n  "of": "a"\n} -> a: one']),
        ("Assistant", ["And", f"{of_b}two", f"{of_b}three"]),
        ("Tool", ["c: four"]),
    ]


def test_p5_results_are_indented_and_may_have_failed() -> None:
    nested = json.dumps({"a": [{"b": {"c": "<b>"}}]})
    attached = {"type": "image/png", "bytes": 1, "sha256": "0"}
    part = result("a", nested, exception="ValueError: no", attachments=[attached])

    ((_, [text]),) = outline(found := shown([Source("x", [said("tool", part)])]))

    assert json.loads(text.removeprefix("a: ")) == json.loads(nested)
    assert "\n      " in text
    (block,) = found[0].blocks
    assert (block.error, block.attachments) == ("ValueError: no", ["image/png, 1 byte"])


def test_p5_attachments_are_type_and_size() -> None:
    parts = [
        {"type": "attachment", "attachment": {"type": "image/png", "bytes": 5008, "sha256": "0"}},
        {"type": "attachment", "attachment": {"url": "https://example.com/a.pdf"}},
        {"type": "attachment"},
    ]

    ((_, found),) = outline(shown([Source("x", [said("user", *parts)])]))

    assert found == [
        "image/png, 5,008 bytes",
        "attachment, https://example.com/a.pdf",
        "attachment",
    ]


ODD: list[Any] = [None, 7, "", [], {}, {"parts": 7}, {"parts": [{"type": "text", "text": 7}]}]
ODD += [
    said("user", None, [], {"type": []}, {"type": {}}, {"type": "tool_call"}, {"text": "plain"})
]
ODD += [said("user", {"type": "attachment", "attachment": 7}, {"type": "reasoning", "text": ""})]


@pytest.mark.parametrize("message", ODD, ids=str)
def test_p5_odd_messages_are_shown(message: Any) -> None:
    found = shown([Source("x", [message])])

    assert outline(found)
    for number in range(1, count_parts([message]) + 1):
        assert isinstance(text_at([message], number), str)


@pytest.mark.parametrize(
    "content", [None, {}, {"request": "no JSON"}, {"request": {"messages": 7}}]
)
def test_p5_content_of_another_shape_has_no_messages(content: Any) -> None:
    assert messages_of(content) == []


def test_p5_markdown_has_no_html_of_its_own() -> None:
    (message,) = shown([Source("x", [said("assistant", f"**bold** {HOSTILE}\n\n![i](//x/y.png)")])])

    html = message.blocks[0].passage.html  # type: ignore[union-attr]
    assert "<strong>bold</strong>" in html
    assert_harmless(Page(html))


def test_p5_long_text_is_cut_and_found_whole() -> None:
    """A text of a megabyte leaves the rest of the page its room."""
    long, messages = "x" * 1_000_000, [said("user", "short")]
    messages += [said("assistant", "before", long)]

    found = shown([Source("x", messages, parts_before=4)])

    passages = [each for message in found for each in message.passages()]
    assert [each.number for each in passages] == [5, 6, 7]
    assert [each.left_out for each in passages] == [0, 0, 1_000_000 - conversation.MAX_TEXT_CHARS]
    assert [each.is_whole for each in found] == [True, False]
    assert text_at(messages, 3) == long
    assert [text_at(messages, number) for number in (0, 4)] == [None, None]


def test_p5_page_has_a_bound() -> None:
    """The newest texts come first, and of each one there is at least its beginning."""
    messages = [said("user", "x" * 10_000)] * 150

    found = shown([Source("x", messages)])

    lengths = [len(message.text) for message in found]
    assert sum(lengths) <= conversation.MAX_PAGE_CHARS + 150 * conversation.MIN_TEXT_CHARS
    assert (lengths[0], lengths[-1]) == (conversation.MIN_TEXT_CHARS, 10_000)
    assert len(shown([Source("x", messages * 3)])) == conversation.MAX_MESSAGES


def test_p5_deep_json_is_shown() -> None:
    deep = "[" * 900 + "]" * 900
    nested = json.loads(deep)

    found = shown([Source("x", [said("tool", result("a", deep)), {"parts": [nested]}, nested])])

    assert len(found) == 3

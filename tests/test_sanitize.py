"""Third-party values in a form that SQLite and JSON can hold."""

from __future__ import annotations

import enum
import json
import tracemalloc
from typing import Any

import pytest

from datasette_llm.sanitize import MARGIN_CHARS, MAX_TEXT_CHARS, as_json, brief

KEY = "sk-0123456789abcdef"


class Colour(enum.StrEnum):
    RED = "red"


class Unprintable:
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True, "x"]}, '{"a": [1, 2.5, null, true, "x"]}'),
        ((1, (2,)), "[1, [2]]"),
        (
            [float("nan"), float("inf"), float("-inf")],
            '["NaN", "Infinity", "-Infinity"]',
        ),
        ({1: "a", None: "b", False: "c", 0.5: "d", (1,): "e"}, None),
        (Colour.RED, '"red"'),
        ({Colour.RED: 1}, '{"red": 1}'),
        ({1, 2}, '"{1, 2}"'),
        (Unprintable(), '"Unprintable that cannot be shown"'),
        ("\ud83d\ude00 \ud83d", '"\U0001f600 \ufffd"'),
        pytest.param(10**5000, '"int that cannot be written as JSON"', id="huge"),
    ],
)
def test_values_as_json(value: Any, text: str | None) -> None:
    if text is None:  # as the json module writes names, without those that it cannot
        text = json.dumps({"1": "a", "null": "b", "false": "c", "0.5": "d"})
    assert json.loads(as_json(value, None)) == json.loads(text)


def test_value_that_contains_itself_has_a_placeholder() -> None:
    value: list[Any] = []
    value.append([value, value])
    assert as_json(value, None) == '"list that cannot be written as JSON"'


def test_s4_key_is_removed_from_names_and_texts() -> None:
    value = {KEY: [f"a {KEY}", {"b": f"{KEY} c"}], 123456789: 1}
    shown = as_json(value, frozenset({KEY, "123456789"}))
    assert KEY not in shown
    assert "123456789" not in shown


@pytest.mark.parametrize("end", [MAX_TEXT_CHARS, MAX_TEXT_CHARS + MARGIN_CHARS])
@pytest.mark.parametrize("overlap", [1, 3, 150, 299])
@pytest.mark.parametrize("keys_before", [0, 6, 72])
def test_s4_key_where_a_message_is_cut_is_removed(end: int, overlap: int, keys_before: int) -> None:
    """Nothing is left of it, even where other keys that are gone make room for it."""
    key = "K" + "0123456789abcde" * 20
    before = key * min(keys_before, (end - overlap) // len(key))
    text = before + "x" * (end - overlap - len(before)) + key + "y" * 2 * MARGIN_CHARS
    shown = brief(text, key)
    assert "K" not in shown
    assert len(shown) <= MAX_TEXT_CHARS


def test_s2_long_message_is_cut_before_it_is_copied() -> None:
    text = "x" * 50_000_000
    tracemalloc.start()
    try:
        assert brief(text, KEY) == "x" * MAX_TEXT_CHARS
        assert "and 49,999,000 more" in as_json({"text": text}, KEY, 1_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()

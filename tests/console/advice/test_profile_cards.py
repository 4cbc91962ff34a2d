"""Cards of profiles: of odd columns, and of what earlier versions stored."""

from __future__ import annotations

import pytest

from datasette_llm.console.advice.profile_cards import cards, value_text

NUMBERS = {
    "name": "n",
    "declared_type": "REAL",
    "observed_types": {"real": 4, "null": 1},
    "null_fraction": 0.2,
    "rows": 5,
    "min": 0.0,
    "max": 100.0,
    "quartiles": [10.0, 20.0, 30.0],
}


def card(**changes):
    (made,) = cards({"columns": [NUMBERS | changes]})
    return made


def test_quarters_are_as_wide_as_their_numbers():
    """And the narrower, the taller, so that each has the same area."""
    bars = card().spread
    assert [bar.width for bar in bars] == [10, 10, 10, 70]
    assert [bar.percent for bar in bars] == [100, 100, 100, 14.3]
    assert dict(card().facts)["Missing"] == "1 of 5 (20 %)"
    assert [bar.percent for bar in card(quartiles=[0.0, 0.0, 50.0]).spread][:2] == [100, 100]


@pytest.mark.parametrize(
    "changes",
    [
        {"quartiles": None},
        {"quartiles": [5, 5, 5], "min": 5, "max": 5},
        {"min": "a", "max": "b"},
        {"max": "Infinity"},
        {"min": -1.7e308, "max": 1.7e308},
        {"quartiles": [30, 20, 10]},
    ],
)
def test_no_spread_without_numbers_in_order(changes):
    assert card(**changes).spread == card(**changes).ends == ()


def test_s3_card_of_a_sparse_profile():
    """An earlier version, or one with `consultant.values: none`."""
    (made,) = cards({"columns": [{"name": "n"}]})
    assert (made.name, made.facts, made.values) == ("n", (), ())
    (failed,) = cards({"columns": [{"name": "n", "error": "malformed JSON"}]})
    assert failed.problem == "malformed JSON"


def test_values_are_readable():
    values = (None, "", 2024, 12_345, 0.1 + 0.2, -1e300)
    assert [value_text(each) for each in values] == [
        *("null", "(empty)", "2024", "12,345", "0.3", "-1e+300")
    ]
    assert not {"\x1b", "\u202e", "\ud800"} & set(value_text("a\x1b[31m\u202eb\ud800"))

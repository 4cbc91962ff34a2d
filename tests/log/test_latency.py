"""Durations as characters: how exact they are, and that texts can be joined."""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from datasette_llm.log import latency


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_are_exact_to_a_few_percent(seed: int) -> None:
    """However the texts are divided, joined and shortened."""
    values = random.Random(seed)
    durations = sorted(values.lognormvariate(7, 2) + 1 for _ in range(999))
    durations = [min(each, 1_500_000) for each in durations]
    texts = [latency.character(each) or "" for each in durations]
    values.shuffle(texts)
    parts = [latency.shortened(texts[:600]), latency.shortened(texts[600:])]

    for percent in (1, 50, 95, 100):
        exact = durations[math.ceil(len(durations) * percent / 100) - 1]
        for given in (texts, parts, [latency.shortened(parts)]):
            (found,) = latency.percentiles(given, percent)
            assert found == pytest.approx(exact, abs=0.036 * exact + 0.5)


def test_shortened_text_is_short() -> None:
    assert len(latency.shortened(["A" * 100_000])) < 10
    assert latency.percentiles([], 50, 95) == [None, None]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((odd, None) for odd in (None, "soon", b"x", math.nan, math.inf, -1)),
        *((0, 0), (0.4, 0), (1, 1), (60_000, 61_596), (10**15, 1_695_746)),
    ],
)
def test_odd_durations(value: Any, found: int | None) -> None:
    """As no version writes them: what is no duration does not count."""
    with closing(sqlite3.connect(":memory:")) as connection:
        latency.register(connection)
        (each,) = connection.execute(f"select {latency.FUNCTION}(?)", [value]).fetchone()
    assert latency.percentiles([each or ""], 50) == [found]

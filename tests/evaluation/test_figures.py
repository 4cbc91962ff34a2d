"""Intervals, percentiles and sentences."""

from __future__ import annotations

import pytest

from datasette_llm.evaluation.figures import Comparison, percentile, sentence, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        # Of Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_v5_interval_is_wilsons(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [([], 50, None), ([3], 95, 3), ([1, 2], 50, 1), ([1, 2, 3], 50, 2), (range(1, 101), 95, 95)],
)
def test_v5_percentile(values: list[float], percent: int, found: float | None) -> None:
    assert percentile(values, percent) == found


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            Comparison(60, 0, 3, 0.29, 1 / 2.1),
            "m: 71 % cheaper, 2.1 × faster, worse in 3 of 60 (1 to 8 with 95 % confidence)",  # noqa: RUF001  # as it is written
        ),
        (
            Comparison(10, 2, 0, 1.5, 3.0),
            "m: 50 % more expensive, 3.0 × slower, "  # noqa: RUF001  # as above
            "worse in 0 of 10 (0 to 3 with 95 % confidence), better in 2",
        ),
        (
            Comparison(1, 0, 0, 1.0, 1.0),
            "m: as expensive, as fast, worse in 0 of 1 (0 to 1 with 95 % confidence)",
        ),
        (
            Comparison(1, 0, 1),
            "m: cost unknown, speed unknown, worse in 1 of 1 (0 to 1 with 95 % confidence)",
        ),
        (
            Comparison(1, 0, 0, 1.0, 1 / 7741.7),
            "m: as expensive, 7,742 × faster, "  # noqa: RUF001  # as above
            "worse in 0 of 1 (0 to 1 with 95 % confidence)",
        ),
        (
            Comparison(1, 0, 0, 1.0, 1.04),
            "m: as expensive, as fast, worse in 0 of 1 (0 to 1 with 95 % confidence)",
        ),
        (Comparison(0, 0, 0), "m: no case has been answered by both"),
    ],
)
def test_v5_sentence_that_a_manager_reads(found: Comparison, text: str) -> None:
    assert sentence("m", found) == text

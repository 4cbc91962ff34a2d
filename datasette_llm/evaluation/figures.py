"""Figures of an evaluation: intervals, percentiles, and the sentence that sums a candidate up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Of a normal distribution, for an interval of 95 %.
_Z = 1.959963984540054
# From this on a ratio is worth a word.
_SAME = 0.02


class Interval(NamedTuple):
    """Where a share lies with a confidence of 95 %, from 0 to 1."""

    low: float
    high: float

    def of(self, total: int) -> tuple[int, int]:
        """The same as whole numbers of cases.

        Args:
            total: of how many.
        """
        return math.floor(self.low * total + 0.5), math.floor(self.high * total + 0.5)


def wilson(hits: int, total: int) -> Interval:
    """The Wilson score interval of a share, with a confidence of 95 %.

    By E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        hits: how many.
        total: of how many; without any, nothing is known.
    """
    if not total:
        return Interval(0.0, 1.0)
    share, weight = hits / total, _Z * _Z / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The smallest value that a percentage of them does not exceed; None without any.

    Args:
        ordered: the values, the smallest first.
        percent: from 1 to 100.
    """
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside what it is compared with, over the cases that both have answered.

    Attributes:
        cases: how many.
        better: in how many the candidate is better.
        worse: in how many it is worse.
        cost_ratio: its cost by the other's; None where one is unknown or the other's is 0.
        latency_ratio: its median latency by the other's; None where one is unknown or 0.
    """

    cases: int
    better: int
    worse: int
    cost_ratio: float | None = None
    latency_ratio: float | None = None

    @property
    def better_interval(self) -> Interval:
        """Where the share of the better cases lies."""
        return wilson(self.better, self.cases)

    @property
    def worse_interval(self) -> Interval:
        """Where the share of the worse cases lies."""
        return wilson(self.worse, self.cases)


def ratio(value: float | None, other: float | None) -> float | None:
    """A value by another; None where one is unknown, or the other is 0."""
    return value / other if value is not None and other else None


def sentence(label: str, found: Comparison) -> str:
    """What came of a candidate, in a sentence.

    Args:
        label: its name.
        found: how it compares.
    """
    if not found.cases:
        return f"{label}: no case has been answered by both"
    parts = [_cost(found.cost_ratio), _speed(found.latency_ratio), _quality(found)]
    return f"{label}: {', '.join(parts)}"


def _cost(value: float | None) -> str:
    if value is None:
        return "cost unknown"
    percent = round(100 * abs(1 - value))
    if percent < 100 * _SAME:
        return "as expensive"
    return f"{percent:,} % {'cheaper' if value < 1 else 'more expensive'}"


def _speed(value: float | None) -> str:
    if not value:
        return "speed unknown"
    times, word = (1 / value, "faster") if value < 1 else (value, "slower")
    if round(times, 1) == 1:
        return "as fast"
    return f"{times:,.{0 if times >= 10 else 1}f} \N{MULTIPLICATION SIGN} {word}"


def _quality(found: Comparison) -> str:
    low, high = found.worse_interval.of(found.cases)
    text = f"worse in {found.worse:,} of {found.cases:,} ({low:,} to {high:,} with 95 % confidence)"
    return f"{text}, better in {found.better:,}" if found.better else text

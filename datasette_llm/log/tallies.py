"""What some calls come to: counts, sums of what is known, percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .queries import RUNNING
from .schema import OUTCOMES

FAILURES = ("error", "lost")


@dataclass(slots=True)
class Tally:
    """What some calls come to; a sum of which no part is known is None.

    Attributes:
        outcomes: how many calls ended in each way.
        input_tokens: those that are known, added up.
        output_tokens: likewise.
        cost_nanodollars: likewise.
        calls_without_cost: how many calls succeeded at a cost that nobody knows.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanodollars: int | None = None
    calls_without_cost: int = 0

    @property
    def calls(self) -> int:
        """How many calls there are."""
        return self.outcomes.total()

    @property
    def tokens(self) -> int | None:
        """Input and output together."""
        return _plus(self.input_tokens, self.output_tokens)

    def add(self, other: Tally) -> None:
        """Count other calls in."""
        self.outcomes.update(other.outcomes)
        self.input_tokens = _plus(self.input_tokens, other.input_tokens)
        self.output_tokens = _plus(self.output_tokens, other.output_tokens)
        self.cost_nanodollars = _plus(self.cost_nanodollars, other.cost_nanodollars)
        self.calls_without_cost += other.calls_without_cost

    def summary(self) -> dict[str, Any]:
        """The totals as they stand in a payload; without any calls, nothing is unknown."""
        none = 0 if not self.calls else None
        cost = none if self.cost_nanodollars is None else self.cost_nanodollars
        return {
            "calls": self.calls,
            "failures": sum(self.outcomes[outcome] for outcome in FAILURES),
            "outcomes": {outcome: self.outcomes[outcome] for outcome in (*OUTCOMES, RUNNING)},
            "input_tokens": none if self.input_tokens is None else self.input_tokens,
            "output_tokens": none if self.output_tokens is None else self.output_tokens,
            "cost_nanodollars": cost,
            "cost_dollars": dollars(cost),
            "calls_without_cost": self.calls_without_cost,
        }


def dollars(nanodollars: int | None) -> float | None:
    """A cost in dollars; None, which is unknown, stays None."""
    return None if nanodollars is None else nanodollars / 1_000_000_000


def percentile(counts: Mapping[int, int], percent: int) -> int | None:
    """The smallest value that so many percent of the values do not exceed.

    Args:
        counts: how often each value occurs.
        percent: from 1 to 100.
    """
    wanted = sum(counts.values()) * percent
    so_far = 0
    for value in sorted(counts):
        so_far += counts[value] * 100
        if so_far >= wanted:
            return value
    return None


def _plus(a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b

"""What calls add up to, and the values that they have; for a reading thread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from datasette.utils.sqlite import sqlite3

from . import latency
from .queries import RUNNING, text_of
from .schema import OUTCOMES
from .usage_schema import PRICED

FAILURES = ("error", "lost")
Measure = Literal["cost", "calls", "tokens", "failures"]
CHOICE_COLUMNS: Mapping[str, str] = {
    "model": "model_id",
    "purpose": "purpose",
    "actor": "actor_id",
}
MAX_CHOICES = 50
# The sums that may be unknown, in the order of a row's.
_KNOWN = ("input_tokens", "output_tokens", "cost_nanodollars", *PRICED)
# The numbers of one call as `Sums.add` takes them, also of a row that no version has written.
NUMBERS_SQL = (
    "1, cost_nanodollars is not null, cast(input_tokens as real), cast(output_tokens as real), "
    f"cast(cost_nanodollars as real){', null' * len(PRICED)}"
)
# Whose durations count: of the calls that have paid for their answer, or tried to.
TIMED = "(outcome is not 'blocked' and cached_from is null)"


@dataclass(slots=True)
class Sums:
    """What some calls add up to; a sum without any known value is None.

    Attributes:
        calls: how many there are.
        failures: how many of them failed or were lost.
        lost: how many of these were lost.
        unpriced: how many succeeded at an unknown cost.
        input_tokens: the sum of the known values.
        output_tokens: likewise.
        cost_nanodollars: likewise.
        counted: how many calls have tokens; this and the following are known where they are asked.
        prompt_tokens: all of the input, the cached part included, see `cost.usage_of`.
        cache_read_tokens: those that came from the provider's cache.
        cache_write_tokens: those that were put into it.
        durations: of the calls that are `TIMED`, as `latency` writes them.
        first_chunks: the times to the first chunk, likewise.
    """

    calls: int = 0
    failures: int = 0
    lost: int = 0
    unpriced: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanodollars: int | None = None
    counted: int | None = None
    prompt_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    durations: list[str] = field(default_factory=list)
    first_chunks: list[str] = field(default_factory=list)

    def add(self, outcome: str | None, row: Sequence[Any]) -> None:
        """Add calls of an outcome; the row has the `SUMS`."""
        calls, priced, *known, durations, first_chunks = row
        self.calls += calls
        self.failures += calls if outcome in FAILURES else 0
        self.lost += calls if outcome == "lost" else 0
        self.unpriced += calls - priced if outcome == "ok" else 0
        for name, value in zip(_KNOWN, known, strict=True):
            setattr(self, name, plus(getattr(self, name), whole(value)))
        if durations:
            self.durations.append(durations)
        if first_chunks:
            self.first_chunks.append(first_chunks)

    def merge(self, other: Sums) -> None:
        """Add other calls."""
        self.calls += other.calls
        self.failures += other.failures
        self.lost += other.lost
        self.unpriced += other.unpriced
        for name in _KNOWN:
            setattr(self, name, plus(getattr(self, name), getattr(other, name)))
        self.durations += other.durations
        self.first_chunks += other.first_chunks

    @property
    def tokens(self) -> int | None:
        """Of prompts and answers."""
        return plus(self.input_tokens, self.output_tokens)

    def summary(self, *, latencies: bool = True) -> dict[str, Any]:
        """The sums as in a payload; without calls they are zero, not unknown.

        Args:
            latencies: whether with the percentiles of the durations, in whole milliseconds.
        """
        none = 0 if not self.calls else None
        cost = none if self.cost_nanodollars is None else self.cost_nanodollars
        found = {
            "calls": self.calls,
            "failures": self.failures,
            "input_tokens": none if self.input_tokens is None else self.input_tokens,
            "output_tokens": none if self.output_tokens is None else self.output_tokens,
            "cost_nanodollars": cost,
            "cost_dollars": dollars(cost),
            "calls_without_cost": self.unpriced,
        }
        if not latencies:
            return found
        median_ms, p95_ms = latency.percentiles(self.durations, 50, 95)
        (first_chunk_ms,) = latency.percentiles(self.first_chunks, 50)
        return found | {
            "median_ms": median_ms,
            "p95_ms": p95_ms,
            "first_chunk_median_ms": first_chunk_ms,
        }


def merged(every: Iterable[Sums]) -> Sums:
    """What all of these add up to."""
    found = Sums()
    for each in every:
        found.merge(each)
    return found


def numbers_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The numbers of one call as `Sums.add` takes them, without its durations."""
    cost = row["cost_nanodollars"]
    tokens = (row["input_tokens"], row["output_tokens"])
    return (1, int(cost is not None), *tokens, cost, *[None] * len(PRICED), "", "")


def totals(by_outcome: Mapping[tuple[Any, ...], Sums]) -> dict[str, Any]:
    """The sums of all outcomes as in a payload, with the number of calls of each outcome."""
    calls = {outcome or RUNNING: sums.calls for (outcome,), sums in by_outcome.items()}
    outcomes = {outcome: calls.get(outcome, 0) for outcome in (*OUTCOMES, RUNNING)}
    return merged(by_outcome.values()).summary() | {"outcomes": outcomes}


def choices(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """The choices of the filters.

    Returns:
        For `model`, `purpose` and `actor`: `values`, in order; `more`, whether there are more;
        `none`, whether there are calls without one.
    """
    return {name: _choices(connection, column) for name, column in CHOICE_COLUMNS.items()}


def dollars(nanodollars: int | None) -> float | None:
    """A cost in dollars; None for an unknown one."""
    return None if nanodollars is None else nanodollars / 1_000_000_000


def whole(sum_of: float | None) -> int | None:
    """A sum of whole numbers, which SQLite has made as a float; None for none."""
    return None if sum_of is None or not math.isfinite(sum_of) else int(sum_of)


def plus(a: int | None, b: int | None) -> int | None:
    """The sum of the known ones of two values."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _choices(connection: sqlite3.Connection, column: str) -> dict[str, Any]:
    # Steps from one value to the next in the index, however many rows each has.
    sql = f"""
        with recursive found(value) as (
            select min({column}) from llm_calls
            union all
            select (select min({column}) from llm_calls where {column} > found.value)
            from found where found.value is not null
        )
        select value from found where value is not null limit {MAX_CHOICES + 1}
    """
    values = [text_of(row[0]) for row in connection.execute(sql)]
    none = connection.execute(f"select 1 from llm_calls where {column} is null limit 1")
    return {
        "values": values[:MAX_CHOICES],
        "more": len(values) > MAX_CHOICES,
        "none": none.fetchone() is not None,
    }

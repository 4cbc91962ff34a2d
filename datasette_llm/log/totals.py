"""Totals of the record, day by day; functions over a connection that is in a reading thread.

A day is a range of ids, which begin with the time, so that each is read from where its rows
stand together. One query a day keeps what SQLite has to sort small, and locks nobody out for
longer than a day's rows take.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datasette.utils.sqlite import sqlite3

from .queries import RUNNING, Filter, first_id, moment, time_of
from .schema import OUTCOMES
from .totals_cache import QueryCache, Rows

FAILURES = ("error", "lost")


@dataclass(slots=True)
class Aggregate:
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

    def add(self, other: Aggregate) -> None:
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


By = Literal["purpose", "model"]
SERIES_COLUMNS: Mapping[str, str] = {"purpose": "purpose", "model": "model_id"}
CHOICE_COLUMNS: Mapping[str, str] = {
    "model": "model_id",
    "purpose": "purpose",
    "actor": "actor_id",
}

DEFAULT_DAYS = 30
MAX_DAYS = 366
MAX_CHOICES = 50
DAY = datetime.timedelta(days=1)
_SUMMED = ("input_tokens", "output_tokens", "cost_nanodollars")


@dataclass(frozen=True, slots=True)
class Days:
    """The totals of a filter, and of each of its days.

    Attributes:
        total: all the calls together.
        days: each day with its series; a series without a name is under None.
        earlier: whether there are calls before the first of these days.
        durations: how many calls took so many whole milliseconds; those that were blocked
            never left, and do not count.
    """

    total: Aggregate
    days: dict[datetime.date, dict[str | None, Aggregate]]
    earlier: bool
    durations: Counter[int] = field(default_factory=Counter)

    def latency(self) -> dict[str, int | None]:
        """The median and the 95th percentile of the durations, in whole milliseconds.

        Returns:
            `median_ms` and `p95_ms`, the smallest duration that so many calls do not exceed;
            None where no call has ended.
        """
        return {
            "median_ms": percentile(self.durations, 50),
            "p95_ms": percentile(self.durations, 95),
        }


def with_days(wanted: Filter, now: datetime.datetime) -> Filter:
    """The filter for totals: the last days, where it names neither a first nor a last moment."""
    if wanted.since is not None or wanted.until is not None:
        return wanted
    first = now.astimezone(datetime.UTC).date() - (DEFAULT_DAYS - 1) * DAY
    return replace(wanted, since=first.isoformat())


def totals(
    connection: sqlite3.Connection,
    wanted: Filter,
    by: By,
    now: datetime.datetime,
    kept: QueryCache,
) -> Days:
    """The totals of the calls that a filter lets through.

    Args:
        connection: a connection to the internal database.
        wanted: which calls.
        by: what makes the series of a day.
        now: the last day goes up to here, or up to the filter's end.
        kept: what was found before; what is found now is added.
    """
    result = Days(Aggregate(), {}, earlier=False)
    for day, start, end in _periods(connection, wanted, now):
        sql, values = _summing(wanted, by, start, end)
        rows = kept.rows(connection, sql, values)
        tallies = _tallies(rows)
        result.durations.update(_durations(rows))
        for tally in tallies.values():
            result.total.add(tally)
        if day is not None:
            result.days[day] = tallies
        elif tallies:
            result = replace(result, earlier=True)
    return result


def tally(connection: sqlite3.Connection, wanted: Filter) -> Aggregate:
    """The totals of a filter, all its time together."""
    total = Aggregate()
    rows = connection.execute(*_summing(wanted, "model", None, None)).fetchall()
    for each in _tallies(rows).values():
        total.add(each)
    return total


def choices(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """What can be chosen in the filters.

    Returns:
        For `model`, `purpose` and `actor`: `values`, in order; `more`, whether there are more
        than these; `none`, whether there are calls that have none.
    """
    return {name: _choices(connection, column) for name, column in CHOICE_COLUMNS.items()}


def _choices(connection: sqlite3.Connection, column: str) -> dict[str, Any]:
    # From one value to the next in the index, however many rows each has.
    sql = f"""
        with recursive found(value) as (
            select min({column}) from llm_calls
            union all
            select (select min({column}) from llm_calls where {column} > found.value)
            from found where found.value is not null
        )
        select value from found where value is not null limit {MAX_CHOICES + 1}
    """
    values = [row[0] for row in connection.execute(sql)]
    none = connection.execute(f"select 1 from llm_calls where {column} is null limit 1")
    return {
        "values": values[:MAX_CHOICES],
        "more": len(values) > MAX_CHOICES,
        "none": none.fetchone() is not None,
    }


def _periods(
    connection: sqlite3.Connection, wanted: Filter, now: datetime.datetime
) -> Iterator[tuple[datetime.date | None, str | None, str | None]]:
    """The days of a filter as ranges of ids; at first what is before them, as no day."""
    until = moment("until", wanted.until) if wanted.until else None
    end = min(until, now) if until else now
    first = _first_moment(connection, wanted) or end
    last_day = (end - datetime.timedelta(microseconds=1)).date()
    # What begins after today, a clock that is ahead has made: it is counted today.
    first_day = max(min(first.date(), last_day), last_day - (MAX_DAYS - 1) * DAY)
    midnights = [_midnight(first_day + n * DAY) for n in range((last_day - first_day).days + 1)]
    if not midnights:
        return
    if midnights[0] > first:
        yield None, None, first_id(midnights[0])
    for start, following in zip(midnights, [*midnights[1:], None], strict=True):
        yield start.date(), first_id(start), first_id(following) if following else None


def _first_moment(connection: sqlite3.Connection, wanted: Filter) -> datetime.datetime | None:
    """Where the days begin: at the filter's beginning, or at the first call that it allows."""
    since = moment("since", wanted.since) if wanted.since else None
    values = {"since": first_id(since) if since else ""}
    sql = "select min(id) from llm_calls where id >= :since"
    call_id = connection.execute(sql, values).fetchone()[0]
    called = time_of(call_id) if call_id else None
    # A beginning that is long before any call would only make empty days.
    if since and called and called - since > MAX_DAYS * DAY:
        return called
    return since or called


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC)


def _between(wanted: Filter, start: str | None, end: str | None) -> tuple[str, dict[str, Any]]:
    """The condition of a filter within a range of ids."""
    equal, _, values = wanted.conditions()
    # One bound on each side: of two, SQLite may begin with the one that is further away.
    values["start"] = max(start or "", values.pop("since", ""))
    ends = [each for each in (end, values.pop("until", None)) if each is not None]
    condition = " and ".join([*equal, "id >= :start"])
    if ends:
        condition += " and id < :end"
        values["end"] = min(ends)
    return condition, values


def _summing(
    wanted: Filter, by: By, start: str | None, end: str | None
) -> tuple[str, dict[str, Any]]:
    """The query for all that is told of a period, which is read but once, and its parameters."""
    condition, values = _between(wanted, start, end)
    # As real numbers, because a sum of whole ones that is too large is an error in SQLite. The
    # plus signs keep it from reading a whole index for the order of the groups. The durations
    # come in one text, because a row for each takes twice the time.
    sums = ", ".join(f"sum(cast({name} as real))" for name in _SUMMED)
    sql = (
        f"select {SERIES_COLUMNS[by]}, outcome, group_concat(cast(duration_ms as integer)), "
        f"count(*), count(cost_nanodollars), {sums} "
        f"from llm_calls where {condition} group by +{SERIES_COLUMNS[by]}, +outcome"
    )
    return sql, values


def _tallies(rows: Rows) -> dict[str | None, Aggregate]:
    tallies: dict[str | None, Aggregate] = {}
    for name, outcome, _, calls, priced, *known in rows:
        input_tokens, output_tokens, cost = (None if n is None else int(n) for n in known)
        part = Aggregate(Counter({outcome or RUNNING: calls}), input_tokens, output_tokens, cost)
        part.calls_without_cost = calls - priced if outcome == "ok" else 0
        tallies.setdefault(name, Aggregate()).add(part)
    return tallies


def _durations(rows: Rows) -> list[int]:
    texts = [row[2] for row in rows if row[1] != "blocked" and row[2] is not None]
    durations: list[int] = json.loads(f"[{','.join(texts)}]")
    return durations

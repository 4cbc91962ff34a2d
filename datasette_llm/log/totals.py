"""Totals of the call log, day by day; functions of a connection, for a reading thread.

A day is a range of ids, which begin with the time and are the order of the table. One query a day
keeps SQLite's sorting small, and its lock short.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datasette.utils.sqlite import sqlite3

from .queries import RUNNING, Filter, first_id, moment, text_of, time_of
from .schema import OUTCOMES
from .totals_cache import QueryCache, Rows

FAILURES = ("error", "lost")
By = Literal["purpose", "model"]
Measure = Literal["calls", "tokens", "cost"]
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


@dataclass(slots=True)
class Aggregate:
    """The sums over some calls; a sum without any known value is None.

    Attributes:
        outcomes: the number of calls by outcome.
        input_tokens: the sum of the known values.
        output_tokens: likewise.
        cost_nanodollars: likewise.
        calls_without_cost: the number of successful calls of unknown cost.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanodollars: int | None = None
    calls_without_cost: int = 0

    @property
    def calls(self) -> int:
        """The number of calls."""
        return self.outcomes.total()

    def add(self, rows: Rows) -> None:
        """Add the sums of other calls, as `_sums_query` gives them."""
        for _, outcome, _, calls, priced, *known in rows:
            input_tokens, output_tokens, cost = map(_whole, known)
            self.outcomes[outcome or RUNNING] += calls
            self.input_tokens = _plus(self.input_tokens, input_tokens)
            self.output_tokens = _plus(self.output_tokens, output_tokens)
            self.cost_nanodollars = _plus(self.cost_nanodollars, cost)
            self.calls_without_cost += calls - priced if outcome == "ok" else 0

    def summary(self) -> dict[str, Any]:
        """The totals as in a payload; without calls they are zero, not unknown."""
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


@dataclass(frozen=True, slots=True)
class Days:
    """The totals of a filter, and of each of its days.

    Attributes:
        total: all calls together.
        days: the value of each series on each day, by name; None stands for calls without a name,
            and for an unknown value. Plain numbers, since so many objects would trigger Python's
            garbage collector, which blocks the event loop.
        earlier: whether there are calls before the first of these days.
        durations: the number of calls by duration in whole milliseconds, without blocked calls.
    """

    total: Aggregate
    days: dict[datetime.date, dict[str | None, int | None]]
    earlier: bool
    durations: Counter[int] = field(default_factory=Counter)

    def latency(self) -> dict[str, int | None]:
        """The median and the 95th percentile of the durations, in whole milliseconds.

        Returns:
            `median_ms` and `p95_ms`; None if no call has ended.
        """
        return {
            "median_ms": percentile(self.durations, 50),
            "p95_ms": percentile(self.durations, 95),
        }


def with_days(log_filter: Filter, now: datetime.datetime) -> Filter:
    """The filter for totals: the last `DEFAULT_DAYS` days, unless it names a time."""
    if log_filter.since is not None or log_filter.until is not None:
        return log_filter
    first = now.astimezone(datetime.UTC).date() - (DEFAULT_DAYS - 1) * DAY
    return replace(log_filter, since=first.isoformat())


def totals(
    connection: sqlite3.Connection,
    log_filter: Filter,
    by: By,
    now: datetime.datetime,
    cache: QueryCache,
    measure: Measure = "calls",
) -> Days:
    """The totals of the calls that match a filter.

    Args:
        connection: a connection to the internal database.
        log_filter: which calls.
        by: what makes the series of a day.
        now: the end of the last day, unless the filter ends before.
        cache: results of earlier queries; new ones are added.
        measure: the values of the series.
    """
    result = Days(Aggregate(), {}, earlier=False)
    for day, start, end in _periods(connection, log_filter, now):
        sql, values = _sums_query(log_filter, by, start, end)
        rows = cache.rows(connection, sql, values)
        result.durations.update(_durations(rows))
        result.total.add(rows)
        if day is not None:
            result.days[day] = _values(rows, measure)
        elif rows:
            result = replace(result, earlier=True)
    return result


def aggregate(connection: sqlite3.Connection, log_filter: Filter) -> Aggregate:
    """The totals of a filter, without days."""
    total = Aggregate()
    total.add(connection.execute(*_sums_query(log_filter, "model", None, None)).fetchall())
    return total


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


def percentile(counts: Mapping[int, int], percent: int) -> int | None:
    """The smallest value that is not exceeded by the given percentage of values.

    Args:
        counts: the number of occurrences of each value.
        percent: from 1 to 100.
    """
    needed = sum(counts.values()) * percent
    so_far = 0
    for value in sorted(counts):
        so_far += counts[value] * 100
        if so_far >= needed:
            return value
    return None


def _whole(sum_of: float | None) -> int | None:
    return None if sum_of is None or not math.isfinite(sum_of) else int(sum_of)


def _plus(a: int | None, b: int | None) -> int | None:
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


def _periods(
    connection: sqlite3.Connection, log_filter: Filter, now: datetime.datetime
) -> Iterator[tuple[datetime.date | None, str | None, str | None]]:
    """The days of a filter as ranges of ids; before them the earlier time, as None."""
    until = moment("until", log_filter.until) if log_filter.until else None
    end = min(until, now) if until else now
    first = _first_moment(connection, log_filter) or end
    last_day = (end - datetime.timedelta(microseconds=1)).date()
    # Calls after today come from a clock that is ahead: they count as today's.
    first_day = max(min(first.date(), last_day), last_day - (MAX_DAYS - 1) * DAY)
    midnights = [_midnight(first_day + n * DAY) for n in range((last_day - first_day).days + 1)]
    if not midnights:
        return
    if midnights[0] > first:
        yield None, None, first_id(midnights[0])
    for start, following in zip(midnights, [*midnights[1:], None], strict=True):
        yield start.date(), first_id(start), first_id(following) if following else None


def _first_moment(connection: sqlite3.Connection, log_filter: Filter) -> datetime.datetime | None:
    """The first day: of the filter's start, or of the first call after it."""
    since = moment("since", log_filter.since) if log_filter.since else None
    values = {"since": first_id(since) if since else ""}
    sql = "select min(id) from llm_calls where id >= :since"
    call_id = connection.execute(sql, values).fetchone()[0]
    called = time_of(call_id) if call_id else None
    # A start long before any call would only make empty days.
    if since and called and called - since > MAX_DAYS * DAY:
        return called
    return since or called


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC)


def _between(log_filter: Filter, start: str | None, end: str | None) -> tuple[str, dict[str, Any]]:
    """The condition of a filter within a range of ids."""
    found = log_filter.conditions()
    values, between = found.values, ["id >= :start"]
    # One bound on each side: of two, SQLite may start at the more distant one.
    values["start"] = max(start or "", values.pop("since", ""))
    ends = [each for each in (end, values.pop("until", None)) if each is not None]
    if ends:
        between.append("id < :end")
        values["end"] = min(ends)
    return found._replace(between=between).on_calls(), values


def _sums_query(
    log_filter: Filter, by: By, start: str | None, end: str | None
) -> tuple[str, dict[str, Any]]:
    """The query for all sums of a period, and its parameters; it reads the rows once."""
    condition, values = _between(log_filter, start, end)
    # Cast to real, as SQLite raises an error if a sum of integers is too large. The plus signs
    # prevent it from reading a whole index for the order of the groups. The durations come as one
    # text, as a row for each takes twice the time.
    sums = ", ".join(f"sum(cast({name} as real))" for name in _SUMMED)
    sql = (
        f"select {SERIES_COLUMNS[by]}, outcome, group_concat(cast(duration_ms as integer)), "
        f"count(*), count(cost_nanodollars), {sums} "
        f"from llm_calls where {condition} group by +{SERIES_COLUMNS[by]}, +outcome"
    )
    return sql, values


def _values(rows: Rows, measure: Measure) -> dict[str | None, int | None]:
    """The value of each series."""
    values: dict[str | None, int | None] = {}
    for odd_name, _, _, calls, _, *known in rows:
        name = text_of(odd_name)
        input_tokens, output_tokens, cost = map(_whole, known)
        tokens = _plus(input_tokens, output_tokens)
        value = {"calls": calls, "tokens": tokens, "cost": cost}[measure]
        values[name] = _plus(values.get(name), value)
    return values


def _durations(rows: Rows) -> list[int]:
    texts = [row[2] for row in rows if row[1] != "blocked" and row[2] is not None]
    durations: list[int] = json.loads(f"[{','.join(texts)}]")
    return durations

"""Figures of the call log for the console's pages: the one place that asks for them."""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.utils.sqlite import sqlite3

from .. import instance
from ..log import queries
from ..log.queries import Filter, first_id, text_of
from ..log.totals import FAILURES, SERIES_COLUMNS, By, choices, dollars, percentile, totals
from ..log.totals_cache import QueryCache
from ..permissions import VIEW_LOG
from ..sanitize import message_of, well_formed

if TYPE_CHECKING:
    from datasette.app import Datasette

T = TypeVar("T")
Row = dict[str, Any]

DAYS = 30
DAY = datetime.timedelta(days=1)
WEEK = 7 * DAY
# For adding up calls that no page has added up before; then fewer days count.
LIMIT_S = 1.0
MAX_KINDS = 5
# A longer id of an actor makes no menu.
MAX_ID_CHARS = 100
_NEWEST = (
    "select id, started_at from llm_calls where model_id = :model and outcome is not 'blocked' "
    "order by id desc limit 1"
)


@dataclass(slots=True)
class Figures:
    """What the calls of a model, or for a purpose, add up to.

    Attributes:
        calls: how many there are; each attempt counts.
        failures: how many of them failed or were lost.
        cost_nanodollars: the sum of the known costs; None without any.
        durations: the number of calls by duration in whole milliseconds, without blocked ones.
    """

    calls: int = 0
    failures: int = 0
    cost_nanodollars: int | None = None
    durations: Counter[int] = field(default_factory=Counter)

    def payload(self) -> dict[str, Any]:
        """The figures as in JSON."""
        return {
            "calls": self.calls,
            "failures": self.failures,
            "cost_dollars": dollars(self.cost_nanodollars),
            "median_ms": percentile(self.durations, 50) if self.durations else None,
        }


# What rows with `figures` can be sorted by: the label, and the value of a row.
FIGURE_SORTS: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "calls": ("calls", lambda row: row["figures"] and row["figures"]["calls"]),
    "failures": ("failures", lambda row: row["figures"] and row["figures"]["failures"]),
    "latency": ("median latency", lambda row: row["figures"] and row["figures"]["median_ms"]),
    "cost": ("cost", lambda row: row["figures"] and row["figures"]["cost_dollars"]),
}


def in_order(
    rows: list[Row], sort: str, sorts: Mapping[str, tuple[str, Callable[[Row], Any]]]
) -> list[Row]:
    """The rows in the order of a value; those without it last, whichever the direction.

    Args:
        rows: the rows, in their own order.
        sort: the name of a sort, with a minus for descending; empty for their own order.
        sorts: by name the label and the value of each.
    """
    if not sort:
        return rows
    value = sorts[sort.removeprefix("-")][1]
    known = sorted(
        (row for row in rows if value(row) is not None), key=value, reverse=sort.startswith("-")
    )
    return [*known, *(row for row in rows if value(row) is None)]


def labels(sorts: Mapping[str, tuple[str, Callable[[Row], Any]]]) -> dict[str, str]:
    """The choices of a menu to sort by."""
    return {
        f"{sign}{name}": f"{label}{way}"
        for name, (label, _) in sorts.items()
        for sign, way in (("", ""), ("-", ", descending"))
    }


@dataclass(frozen=True, slots=True)
class Recent:
    """The figures of the last `DAYS` days, or of as many as could be read.

    Attributes:
        since: the first of these days, as an ISO date; None where nothing could be read.
        by_name: the figures by model or purpose; None stands for calls without one.
        problem: why nothing could be read, or None.
    """

    since: str | None = None
    by_name: Mapping[str | None, Figures] = field(default_factory=dict)
    problem: str | None = None

    def payload(self, name: str | None) -> dict[str, Any] | None:
        """The figures of a model or purpose, as in JSON; None where they could not be read."""
        return None if self.since is None else self.by_name.get(name, Figures()).payload()


async def recent(datasette: Datasette, actor: Any, by: By) -> Recent:
    """The figures of each model or purpose.

    Args:
        datasette: the Datasette instance.
        actor: who sees them; without `view-llm-log` there are none.
        by: "model" or "purpose".
    """
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return Recent()
    cache, now = instance.of(datasette, QueryCache), datetime.datetime.now(datetime.UTC)
    found, problem = await _read(datasette, lambda connection: _recent(connection, by, now, cache))
    return found or Recent(problem=problem)


def _recent(
    connection: sqlite3.Connection, by: By, now: datetime.datetime, cache: QueryCache
) -> Recent:
    column, end_s = SERIES_COLUMNS[by], time.perf_counter() + LIMIT_S
    by_name: dict[str | None, Figures] = {}
    since = now.date()
    for day, period in _days(now):
        if time.perf_counter() > end_s:
            break
        condition = "id >= :start" + (" and id < :end" if "end" in period else "")
        sql = (
            f"select {column}, outcome, group_concat(cast(duration_ms as integer)), count(*), "
            f"sum(cast(cost_nanodollars as real)) from llm_calls where {condition} "
            f"group by +{column}, +outcome"
        )
        for name, outcome, durations, calls, cost in cache.rows(connection, sql, period):
            figures = by_name.setdefault(text_of(name), Figures())
            figures.calls += calls
            figures.failures += calls if outcome in FAILURES else 0
            if cost is not None:
                figures.cost_nanodollars = (figures.cost_nanodollars or 0) + int(cost)
            if durations and outcome != "blocked":
                figures.durations.update(json.loads(f"[{durations}]"))
        since = day
    return Recent(since.isoformat(), by_name)


def _days(now: datetime.datetime) -> Iterator[tuple[datetime.date, dict[str, str]]]:
    """The last `DAYS` days, the newest first, each with its range of ids."""
    end = None
    for number in range(DAYS):
        midnight = _midnight(now) - number * DAY
        start = first_id(midnight)
        yield midnight.date(), {"start": start} | ({"end": end} if end else {})
        end = start


def _midnight(now: datetime.datetime) -> datetime.datetime:
    return datetime.datetime.combine(now.date(), datetime.time(), datetime.UTC)


@dataclass(frozen=True, slots=True)
class Wellbeing:
    """Whether the calls of these days are well.

    Attributes:
        today: the totals since midnight, and `since`.
        week: the totals of the last seven days, `since`, and `before`: those of the seven before.
        failures: the kinds of the failures of the last 24 hours, the most frequent first.
        running: how many calls run now, of all processes.
    """

    today: dict[str, Any]
    week: dict[str, Any]
    failures: dict[str, Any]
    running: int


async def wellbeing(datasette: Datasette, actor: Any) -> tuple[Wellbeing | None, str | None]:
    """Whether the calls of these days are well.

    Args:
        datasette: the Datasette instance.
        actor: who sees it; without `view-llm-log` there is nothing.

    Returns:
        It, and why it could not be read, or None.
    """
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return None, None
    cache, now = instance.of(datasette, QueryCache), datetime.datetime.now(datetime.UTC)
    return await _read(datasette, lambda connection: _wellbeing(connection, now, cache))


def _wellbeing(
    connection: sqlite3.Connection, now: datetime.datetime, cache: QueryCache
) -> Wellbeing:
    def summed(since: datetime.datetime, until: datetime.datetime | None = None) -> dict[str, Any]:
        given = Filter(since=_text(since), until=_text(until) if until else None)
        return totals(connection, given, "model", now, cache).total.summary()

    start = _midnight(now) - 6 * DAY
    running = "select count(*) from llm_calls where outcome is null"
    return Wellbeing(
        today=summed(_midnight(now)) | {"since": _midnight(now).date().isoformat()},
        week=summed(start)
        | {"since": start.date().isoformat(), "before": summed(start - WEEK, now - WEEK)},
        failures=_failures(connection, now - DAY),
        running=connection.execute(running).fetchone()[0],
    )


def _failures(connection: sqlite3.Connection, since: datetime.datetime) -> dict[str, Any]:
    places = ", ".join(f"'{outcome}'" for outcome in FAILURES)
    rows = connection.execute(
        "select outcome, failure_kind, count(*), max(id) from llm_calls "
        f"where outcome in ({places}) and id >= :since group by 1, 2 order by 3 desc",
        {"since": first_id(since)},
    ).fetchall()
    return {
        "since": _text(since),
        "kinds": [
            {"outcome": outcome, "kind": kind, "calls": calls, "newest": newest}
            for outcome, kind, calls, newest in rows[:MAX_KINDS]
        ],
    }


async def actors(datasette: Datasette, actor: Any) -> list[str]:
    """Ids of actors of the call log, for a menu; none without `view-llm-log`."""
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return []
    found, _ = await _read(datasette, choices)
    values = found["actor"]["values"] if found else []
    return [value for value in values if len(value) <= MAX_ID_CHARS]


async def newest_calls(
    datasette: Datasette, actor: Any, model_ids: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The newest call of each model that was sent: its `id` and `started_at`.

    Args:
        datasette: the Datasette instance.
        actor: who sees them; without `view-llm-log` there are none.
        model_ids: the models; those without calls are left out.
    """
    ids = list(model_ids)
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return {}

    def read(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
        found = {}
        for model_id in ids:
            row = connection.execute(_NEWEST, {"model": well_formed(model_id)}).fetchone()
            if row is not None:
                found[model_id] = {"id": row[0], "started_at": row[1]}
        return found

    return (await _read(datasette, read))[0] or {}


def _text(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def _read(
    datasette: Datasette, work: Callable[[sqlite3.Connection], T]
) -> tuple[T | None, str | None]:
    """What a reading thread finds, and why it cannot read, or None; a page goes on without it."""

    def in_thread(connection: sqlite3.Connection) -> T | None:
        return work(connection) if queries.has_tables(connection) else None

    try:
        return await datasette.get_internal_database().execute_fn(in_thread), None
    except sqlite3.Error as error:
        return None, f"The call log cannot be read at the moment: {message_of(error)}"

"""What the calls of a time add up to, by model, purpose and more; for a reading thread.

The time is divided into the longest periods whose sums are known, see `usage_schema`; the calls of
the rest are read, in pieces of an hour, the newest first, as far as a time limit allows.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from datasette.utils import sqlite_timelimit
from datasette.utils.sqlite import sqlite3

from . import latency, priced_tokens
from .queries import EPOCH, SHORT_OF_TIME, Filter, first_id, moment, text_of, time_of
from .totals import TIMED, Sums, totals
from .usage_schema import (
    COLUMNS,
    DIMENSIONS,
    PRICED,
    SUMS,
    UNITS,
    Unit,
    ceiling,
    floor,
    has_tables,
)

Key = tuple[Any, ...]
Rows = list[tuple[Any, ...]]

_MOMENT = datetime.timedelta(microseconds=1)
# By these filters, and by times, the sums of past periods can be asked.
_KEPT = frozenset({*DIMENSIONS, "since", "until"})
# The value of a tag of a call, whose tags are an object in JSON.
_TAG = (
    "select cast(value as text) from json_each(case when json_valid(tags) then tags end) "
    "where key = :tag_key"
)
# Cast to real, as SQLite raises an error if a sum of integers is too large. The plus signs prevent
# it from reading a whole index for the order of the groups.
_ROWS_SQL = f"""
    select {{columns}}, count(*), count(cost_nanodollars), sum(cast(input_tokens as real)),
    sum(cast(output_tokens as real)), sum(cast(cost_nanodollars as real)),
    {{tokens}},
    group_concat({latency.FUNCTION}(case when {TIMED} then duration_ms end), ''),
    group_concat({latency.FUNCTION}(case when {TIMED} then first_chunk_ms end), '')
    from llm_calls where {{condition}} group by {{groups}}
"""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a time.

    Attributes:
        filter: which calls, without times.
        by: names of `DIMENSIONS`, or "tag".
        unit: also by month, day or hour; its begin is then the first of the key.
        only: for some of `by`, or for any dimension, the values that calls may have.
        tag: the key of the tag, where that is asked for.
        latency: whether durations are wanted.
        tokens: whether the tokens are wanted as prices need them; then `by` may have "tier".
    """

    filter: Filter = field(default_factory=Filter)
    by: tuple[str, ...] = ()
    unit: Unit | None = None
    only: Mapping[str, frozenset[Any]] = field(default_factory=dict)
    tag: str | None = None
    latency: bool = False
    tokens: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether the sums of past periods answer it."""
        plain = self.filter.given().keys() <= _KEPT and self.filter.only is None
        return self.tag is None and plain

    @property
    def read_by(self) -> tuple[str, ...]:
        """What calls that are read are grouped by: by all, so that other questions use it too."""
        if self.is_kept:
            return tuple(COLUMNS if self.tokens else DIMENSIONS)
        if self.tag is not None:
            return (*DIMENSIONS, "tag")
        return tuple(dict.fromkeys(("outcome", *self.by, *self.only)))

    def allowed(self) -> tuple[list[str], dict[str, Any]]:
        """The same for the values that calls may have; a tag is no column."""
        conditions, values = [], dict[str, Any]()
        for name, allowed in self.only.items():
            if name not in DIMENSIONS:
                continue
            known = [value for value in allowed if value is not None]
            names = {f"{name}_{number}": value for number, value in enumerate(known)}
            column = DIMENSIONS[name]
            condition = f"{column} in ({', '.join(f':{each}' for each in names)})"
            conditions.append(
                f"({condition} or {column} is null)" if None in allowed else condition
            )
            values |= names
        return conditions, values


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a time; its sums are known as a period, or its calls have to be read."""

    begin: datetime.datetime
    end: datetime.datetime | None
    period: int | None = None


class Reader:
    """Reads sums; of one time everything is read once.

    Attributes:
        cut: from when on the sums are complete, where the time limit was reached; else None.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        now: datetime.datetime,
        limit_ms: float | None = None,
    ) -> None:
        """
        Args:
            connection: a connection to the internal database.
            now: the present; calls after it come from a clock that is ahead, and count as now's.
            limit_ms: for reading calls, in all; None for no limit.
        """
        self.cut: datetime.datetime | None = None
        self._connection = connection
        self._now = now
        self._end_s = None if limit_ms is None else time.perf_counter() + limit_ms / 1000
        self._rows: dict[Any, Rows] = {}
        self._periods = _periods(connection)
        latency.register(connection)
        priced_tokens.register(connection)

    def first(self) -> datetime.datetime | None:
        """When the first call of the log began; None without any."""
        found = self._connection.execute("select min(id) from llm_calls").fetchone()[0]
        return time_of(found) if found else None

    def sums(
        self, question: Question, begin: datetime.datetime, end: datetime.datetime | None
    ) -> dict[Key, Sums]:
        """What the calls of a time add up to.

        Args:
            question: which calls, and by what.
            begin: the start, inclusive.
            end: the end, exclusive; None for all later calls.

        Returns:
            The sums by key, which has a value for each of `by`, after the begin of the unit.
        """
        begin = max(begin, self.cut or begin)
        found: dict[Key, Sums] = {}
        periods = []
        for piece in self._pieces(question, begin, end):
            if piece.period is not None:
                periods.append(piece)
            elif not self._add_calls(found, question, piece):
                self.cut = piece.end or self._now
                break
        if periods:
            self._add_periods(found, question, periods)
        return found

    def full(
        self, begin: datetime.datetime, end: datetime.datetime, *, with_actor: bool
    ) -> list[tuple[Any, ...]]:
        """The rows of `llm_log_sums` for a period: by all of `COLUMNS`, then the `SUMS`."""
        by = tuple(name for name in COLUMNS if with_actor or name != "actor")
        found = self.sums(Question(by=by, latency=True, tokens=True), begin, end)
        rows = []
        for key, sums in found.items():
            values = dict(zip(by, key, strict=True))
            priced = sums.calls - sums.unpriced
            texts = map(latency.shortened, (sums.durations, sums.first_chunks))
            known = (sums.input_tokens, sums.output_tokens, sums.cost_nanodollars)
            tokens = (getattr(sums, name) for name in PRICED)
            rows.append((*map(values.get, COLUMNS), sums.calls, priced, *known, *tokens, *texts))
        return rows

    def _pieces(
        self, question: Question, begin: datetime.datetime, end: datetime.datetime | None
    ) -> Iterator[Piece]:
        """The pieces of a time that have calls, the newest first."""
        units = UNITS[UNITS.index(question.unit or "month") :] if question.is_kept else ()
        shortest: Unit = "hour" if units or question.unit == "hour" else "day"
        at = end
        if at is None:
            at = max(begin, floor(shortest, self._now))
            yield Piece(at, None)
        while at > begin:
            newest = self._newest(begin, at)
            if newest is None:
                return
            at = _end_of(newest, at)
            piece = self._piece(begin, at, units, shortest)
            yield piece
            at = piece.begin

    def _piece(
        self,
        begin: datetime.datetime,
        end: datetime.datetime,
        units: Sequence[Unit],
        shortest: Unit,
    ) -> Piece:
        for unit in units:
            start = floor(unit, end - _MOMENT)
            period = self._periods.get((start, end))
            if period is not None and start >= begin:
                return Piece(start, end, period)
        return Piece(max(begin, floor(shortest, end - _MOMENT)), end)

    def _newest(self, begin: datetime.datetime, end: datetime.datetime) -> datetime.datetime | None:
        sql = "select max(id) from llm_calls where id >= ? and id < ?"
        found = self._connection.execute(sql, [first_id(begin), first_id(end)]).fetchone()[0]
        return time_of(found) if found else None

    def _add_periods(
        self, found: dict[Key, Sums], question: Question, pieces: Sequence[Piece]
    ) -> None:
        asked = question.filter.conditions()
        allowed, more = question.allowed()
        uses = {*question.by, *question.only}
        with_actor = "actor" in uses or question.filter.actor is not None
        places = ", ".join(str(piece.period) for piece in pieces)
        condition = " and ".join(
            [f"period_id in ({places})", f"with_actor = {with_actor:d}", *asked.plain(), *allowed]
        )
        columns = [COLUMNS[name] for name in question.by]
        groups = ["period_id", "outcome", *columns] if question.unit else ["outcome", *columns]
        sums = ", ".join(_joined(name, question) for name in SUMS)
        sql = f"select {', '.join(groups)}, {sums} from llm_log_sums where {condition} "
        sql += f"group by {', '.join(f'+{name}' for name in groups)}"
        begins = {piece.period: piece.begin for piece in pieces}
        for row in self._connection.execute(sql, asked.values | more):
            when = [floor(question.unit, begins[row[0]])] if question.unit else []
            outcome, *rest = row[len(when) :]
            key = (*when, *map(text_of, rest[: len(columns)]))
            _of(found, key).add(outcome, rest[len(columns) :])

    def _add_calls(self, found: dict[Key, Sums], question: Question, piece: Piece) -> bool:
        """Add the calls of a piece; False where the time limit was reached."""
        rows = self._calls(question, piece)
        if rows is None:
            return False
        names = question.read_by
        places = [names.index(name) for name in question.by]
        outcome = names.index("outcome")
        when = [floor(question.unit, min(piece.begin, self._now))] if question.unit else []
        allowed = [(names.index(name), values) for name, values in question.only.items()]
        for row in rows:
            if not all(row[place] in values for place, values in allowed):
                continue
            key = (*when, *(row[place] for place in places))
            _of(found, key).add(row[outcome], row[len(names) :])
        return True

    def _calls(self, question: Question, piece: Piece) -> Rows | None:
        """The calls of a piece, grouped; None where the time limit was reached."""
        key = (piece, question.filter, question.tag, question.tokens, question.read_by)
        if key not in self._rows:
            sql, values = _calls_query(question, piece)
            try:
                rows = self._limited(sql, values)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname not in SHORT_OF_TIME:
                    raise
                return None
            width = len(question.read_by)
            self._rows[key] = [(*map(text_of, row[:width]), *row[width:]) for row in rows]
        return self._rows[key]

    def _limited(self, sql: str, values: Mapping[str, Any]) -> Rows:
        rest_s = math.inf if self._end_s is None else self._end_s - time.perf_counter()
        limit = sqlite_timelimit(self._connection, max(0.0, rest_s * 1000))
        with limit if self._end_s is not None else nullcontext():
            rows: Rows = self._connection.execute(sql, values).fetchall()
        return rows


def totals_of(reader: Reader, log_filter: Filter) -> dict[str, Any]:
    """The sums of all calls that match a filter, as in a payload."""
    return totals(sums_of(reader, log_filter, ("outcome",)))


def sums_of(reader: Reader, log_filter: Filter, by: tuple[str, ...]) -> dict[Key, Sums]:
    """The sums of all calls that match a filter, with durations.

    Args:
        reader: reads them.
        log_filter: which calls.
        by: names of `DIMENSIONS`, by which they are grouped.
    """
    begin = moment("since", log_filter.since) if log_filter.since else EPOCH
    end = moment("until", log_filter.until) if log_filter.until else None
    asked = replace(log_filter, since=None, until=None)
    return reader.sums(Question(asked, by, latency=True), begin, end)


def _periods(
    connection: sqlite3.Connection,
) -> dict[tuple[datetime.datetime, datetime.datetime], int]:
    """The ids of the periods whose sums are known, by begin and end."""
    if not has_tables(connection):
        return {}
    sql = "select id, start_id, end_id from llm_log_periods where complete"
    return {
        (time_of(start), time_of(end)): period for period, start, end in connection.execute(sql)
    }


def _end_of(newest: datetime.datetime, at: datetime.datetime) -> datetime.datetime:
    """Where the longest period ends that has the newest call, and is over at a time."""
    return next((end for unit in UNITS if (end := ceiling(unit, newest)) <= at), at)


def _calls_query(question: Question, piece: Piece) -> tuple[str, dict[str, Any]]:
    found = question.filter.conditions()
    found.between.append("id >= :begin")
    found.values["begin"] = first_id(piece.begin)
    if piece.end is not None:
        found.between.append("id < :end")
        found.values["end"] = first_id(piece.end)
    known = {**DIMENSIONS, "tier": priced_tokens.TIER, "tag": f"({_TAG})"}
    columns = [known[name] for name in question.read_by]
    if question.tag is not None:
        found.values["tag_key"] = question.tag
    sql = _ROWS_SQL.format(
        columns=", ".join(columns),
        tokens=", ".join(priced_tokens.SUMS if question.tokens else ["null"] * len(PRICED)),
        condition=found.on_calls(),
        groups=", ".join(f"+{name}" for name in columns),
    )
    return sql, found.values


def _joined(name: str, question: Question) -> str:
    """The sum of a column of `llm_log_sums`."""
    if name in ("durations", "first_chunks"):
        return f"group_concat({name}, '')" if question.latency else "null"
    if name in PRICED and not question.tokens:
        return "null"
    return f"sum(cast({name} as real))" if name not in ("calls", "priced") else f"sum({name})"


def _of(found: dict[Key, Sums], key: Key) -> Sums:
    sums = found.get(key)
    if sums is None:
        sums = found[key] = Sums()
    return sums

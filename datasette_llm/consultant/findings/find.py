"""The findings of a table: its columns are read one by one, and every family is asked.

All of it runs in a thread, on a connection of ours that can only read and stops at a time limit.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ... import instance
from .. import evidence as counting
from ..connections import own_connections
from ..profile.table import columns_left_out, quote_identifier, read_table, table_source
from ..table_access import all_viewable_tables
from . import missing, ranges, references, rows, texts
from .column_values import ColumnValues, read_values
from .configuration import suggested_config
from .finding import SEVERITIES, Finding, plain
from .time_limit import Clock, LateError, TimeLimit

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette
    from datasette.database import Database

    from ..table_access import Actor

# Of larger tables some rows are read, and what they show is counted in all.
MAX_ROWS = 200_000
MAX_CELLS = 2_000_000
# To read a column, SQLite steps over those before it, for each column and row.
MAX_STEPS = 1_000_000_000
# Rows of larger tables are read in so many runs, spread over the rowids.
RUNS = 64
MAX_FINDINGS = 200
# Shares of the time limit.
READ_SHARE, LATE_SHARE, TABLE_SHARE = 0.75, 0.85, 0.93
# Of a column that there was no time for.
LEAST_ROWS, FEW_ROWS, FEW_CELLS = 100, 2_000, 200_000
_FOREVER_S = 1e9

_COLUMN_FAMILIES: tuple[Callable[[ColumnValues], Iterator[Finding]], ...] = (
    texts.numbers_as_text,
    texts.dates_as_text,
    texts.mixed_date_formats,
    texts.mixed_types,
    texts.rare_patterns,
    texts.edge_spaces,
    texts.case_variants,
    texts.mojibake,
    texts.lost_leading_zeros,
    texts.invalid_json,
    missing.mostly_missing,
    missing.disguised_missing,
    missing.constant,
    ranges.outliers,
    ranges.gaps,
)
# The kinds of findings: each family is named as what it finds.
KINDS = tuple(
    family.__name__
    for family in (
        *_COLUMN_FAMILIES,
        ranges.impossible_values,
        rows.candidate_key,
        rows.duplicate_keys,
        references.orphans,
        references.likely_foreign_key,
        rows.identical_columns,
        rows.duplicate_rows,
    )
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in a table.

    Attributes:
        found: the findings as JSON, the most severe first.
        unread: the columns that were not looked at, for want of time or as they cannot be read.
        rows: the number of rows that were looked at; None where there was no time.
        exact: whether these are all rows.
        more: the number of findings that were left out.
        problem: why there are no findings; or None.
        config: how Datasette should show the table; None where nothing was looked at.
    """

    found: tuple[dict[str, Any], ...]
    unread: tuple[str, ...] = ()
    rows: int | None = None
    exact: bool = True
    more: int = 0
    problem: str | None = None
    config: dict[str, Any] | None = None

    @property
    def note(self) -> str | None:
        """What was not looked at, as a sentence; None where all was."""
        parts = [self.problem] if self.problem else []
        if self.more:
            parts.append(f"{self.more:,} findings more, of less severity, are left out")
        if not self.exact and self.rows is not None:
            parts.append(f"of some columns not all rows were looked at, but at most {self.rows:,}")
        if self.unread:
            names = ", ".join(self.unread[:10]) + ("…" if len(self.unread) > 10 else "")
            parts.append(f"not looked at, for want of time or as they cannot be read: {names}")
        return plain("; ".join(parts)) or None


@dataclass(frozen=True, slots=True)
class _Schema:
    """What the schema says of the table that findings need."""

    name: str
    rowid: str | None
    is_view: bool
    unique: frozenset[str]
    keyed: bool
    whole: bool


async def find(
    datasette: Datasette,
    database: str,
    profile: Mapping[str, Any],
    actor: Actor,
    *,
    exclude: Collection[str] = (),
    limit_s: float,
    unrestricted: bool = False,
    clock: Clock = time.perf_counter,
) -> Findings:
    """Find what is remarkable about a table.

    The caller checks that the actor may analyze the table.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        profile: the profile of the table, whose columns are looked at and no others.
        actor: who asks; references to tables that they may not view are not looked at.
        exclude: the setting: no reference to such a column is looked at.
        limit_s: the time limit in seconds.
        unrestricted: whether who asks may view all tables, as in a command.
        clock: gives the time in seconds.

    Raises:
        TableNotFoundError: the table is gone.
    """
    db = datasette.get_database(database)
    read = partial(other_tables, database, exclude)
    others = await asyncio.to_thread(_with_connection, db, read)
    if others and not unrestricted:
        viewable = await all_viewable_tables(datasette, actor, database)
        others = [other for other in others if other.name in viewable]
    return await _in_thread(datasette, db, profile, others, limit_s, clock)


class _TwoAtATime(asyncio.Semaphore):
    """What findings are looked for under, so that they leave a processor to the pages."""

    def __init__(self) -> None:
        super().__init__(2)


async def _in_thread(
    datasette: Datasette,
    db: Database,
    profile: Mapping[str, Any],
    others: Sequence[references.OtherTable],
    limit_s: float,
    clock: Clock,
) -> Findings:
    """Run the search in a thread, and stop it when the caller is cancelled."""
    cancelled = False
    calls = itertools.count()

    def stoppable_clock() -> float:
        return clock() + (_FOREVER_S if next(calls) and cancelled else 0.0)

    def work(connection: Connection) -> Findings:
        try:
            return search(
                connection, profile, others, TimeLimit(connection, limit_s, stoppable_clock)
            )
        except sqlite3.Error as error:
            return Findings((), problem=f"SQLite could not look for findings: {error}")

    async with instance.of(datasette, _TwoAtATime):
        try:
            return await asyncio.to_thread(_with_connection, db, work)
        finally:
            cancelled = True


def _with_connection(db: Database, work: Callable[[Connection], Any]) -> Any:
    """Run work on a connection of ours, which can only read."""
    with own_connections(db, 1) as [connection]:
        connection.execute("pragma query_only = 1")
        return work(connection)


def search(
    connection: Connection,
    profile: Mapping[str, Any],
    others: Sequence[references.OtherTable],
    budget: TimeLimit,
    today: datetime.date | None = None,
) -> Findings:
    """Look for findings on a connection of ours.

    Args:
        connection: to the database.
        profile: the profile of the table.
        others: the tables that may be referred to.
        budget: the time limit.
        today: for dates in the future; None for the day that it is.

    Raises:
        TableNotFoundError: the table is gone.
        sqlite3.Error: SQLite cannot read it.
    """
    counting.prepare(connection)
    schema = _schema(connection, profile)
    return _Search(connection, profile, schema, budget, today or datetime.date.today()).run(others)


@dataclass(slots=True)
class _Search:
    """A running search."""

    connection: Connection
    profile: Mapping[str, Any]
    schema: _Schema
    budget: TimeLimit
    today: datetime.date
    found: list[Finding] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    columns: list[ColumnValues] = field(default_factory=list)

    def run(self, others: Sequence[references.OtherTable]) -> Findings:
        clause, exact = self._clause()
        columns = self.profile["columns"]
        late = [each for each in columns if not self._read(each, clause, exact, READ_SHARE)]
        if late:
            # A few rows of each, rather than nothing of many.
            limit = max(LEAST_ROWS, min(FEW_ROWS, FEW_CELLS // len(columns)))
            few = self._spread_in_time(limit)
            late = [each for each in late if not self._read(each, few, False, LATE_SHARE)]
        self.unread += [each["name"] for each in late]
        if self.columns:
            self._look_at_table(others)
        return self._findings()

    def _clause(self) -> tuple[str, bool]:
        """Which rows to read, and whether these are all."""
        columns = max(1, len(self.profile["columns"]))
        limit = max(1, min(MAX_ROWS, MAX_CELLS // columns, MAX_STEPS // columns**2))
        rows = (self.profile.get("rows") or {}).get("count")
        if rows is not None and rows <= limit and self.profile["rows"].get("exact"):
            return "", True
        if rows is None and self._at_most(table_source(self.schema.name), limit):
            return "", True
        return self._spread_in_time(limit), False

    def _spread_in_time(self, limit: int) -> str:
        try:
            with self.budget.until(LATE_SHARE):
                return self._spread(table_source(self.schema.name), limit)
        except LateError:
            return f"limit {limit}"

    def _at_most(self, source: str, limit: int) -> bool:
        sql = f"select count(*) from (select 1 from {source} limit {limit + 1})"
        try:
            with self.budget.until(READ_SHARE / 2):
                return int(self.connection.execute(sql).fetchone()[0]) <= limit
        except LateError:
            return False

    def _spread(self, source: str, limit: int) -> str:
        rowid = self.schema.rowid
        if rowid is None:
            return f"limit {limit}"
        ends = f"select (select min({rowid}) from {source}), (select max({rowid}) from {source})"
        low, high = self.connection.execute(ends).fetchone()
        if low is None:  # all rows were deleted meanwhile
            return ""
        step = (high - low) // RUNS + 1
        taken = limit // RUNS
        if step <= taken:
            return f"limit {limit}"
        runs = (
            f"{rowid} between {low + at * step} and {low + at * step + taken - 1}"
            for at in range(RUNS)
        )
        clause = f"where {' or '.join(runs)}"
        found = self.connection.execute(f"select count(*) from {source} {clause}").fetchone()[0]
        # Where a few rowids are far from the others, most runs are empty.
        return clause if 4 * found > limit else f"limit {limit}"

    def _read(self, column: Mapping[str, Any], clause: str, exact: bool, share: float) -> bool:
        """Read a column and look at it; False if it cannot be read by then."""
        name = column["name"]
        try:
            with self.budget.until(share):
                values = read_values(
                    self.connection,
                    self.schema.name,
                    column,
                    clause,
                    exact=exact,
                    unique=name in self.schema.unique,
                    budget=self.budget,
                )
                found = [each for family in _COLUMN_FAMILIES for each in family(values)]
                found += ranges.impossible_values(values, self.today)
        except (LateError, sqlite3.Error):
            return False
        self.columns.append(values)
        self.found += found
        return True

    def _look_at_table(self, others: Sequence[references.OtherTable]) -> None:
        columns, name, keyed = self.columns, self.schema.name, self.schema.keyed
        whole = self.schema.whole and not self.unread
        for family in (
            rows.candidate_key(columns, name, keyed=keyed or self.schema.is_view),
            rows.duplicate_keys(columns, name, keyed=keyed),
            references.orphans(columns, others, self._count),
            references.likely_foreign_key(columns, others, name, self._count),
            rows.identical_columns(columns, self._count),
            rows.duplicate_rows(columns, self._count, whole=whole),
        ):
            try:
                self.found += family
            except (LateError, sqlite3.Error):
                continue  # what was counted before is kept

    def _count(self, evidence: counting.Evidence) -> int:
        with self.budget.until(TABLE_SHARE):
            return int(counting.count(self.connection, evidence, self.schema.name))

    def _findings(self) -> Findings:
        found = [each for each in map(self._counted, self.found) if each is not None]
        found.sort(key=lambda each: (SEVERITIES.index(each.severity), -(each.rows or 0)))
        values = self.profile.get("values", "none")
        seen = max((each.rows for each in self.columns), default=None)
        return Findings(
            tuple(each.payload(values) for each in found[:MAX_FINDINGS]),
            tuple(self.unread),
            seen,
            all(each.exact for each in self.columns),
            more=max(0, len(found) - MAX_FINDINGS),
            config=suggested_config(self.columns, is_view=self.schema.is_view),
        )

    def _counted(self, finding: Finding) -> Finding | None:
        """The finding, counted in all rows where that was not done; None where there are none."""
        if finding.exact:
            return finding
        try:
            with self.budget.until(1):
                rows = int(counting.count(self.connection, finding.evidence, self.schema.name))
        except (LateError, sqlite3.Error):
            return finding if finding.rows else None
        total = self._total(finding)
        return finding.counted(rows, total) if 0 < rows <= finding.most * total else None

    def _total(self, finding: Finding) -> int:
        rows = (self.profile.get("rows") or {}).get("count")
        return int(rows) if rows is not None else finding.of


def _schema(connection: Connection, profile: Mapping[str, Any]) -> _Schema:
    table = read_table(connection, profile["table"])
    unique = set()
    for row in connection.execute(f"pragma index_list({quote_identifier(table.name)})").fetchall():
        if row[2] and not row[4]:
            columns = connection.execute(
                f"pragma index_info({quote_identifier(row[1])})"
            ).fetchall()
            unique |= {column[2] for column in columns} if len(columns) == 1 else set()
    keys = [column.name for column in table.columns if column.primary_key]
    names = {column["name"] for column in profile["columns"]}
    return _Schema(
        table.name,
        table.rowid,
        table.kind == "view",
        frozenset(unique | (set(keys) if len(keys) == 1 else set())),
        bool(keys),
        names == {column.name for column in table.columns},
    )


def other_tables(
    database: str, exclude: Collection[str], connection: Connection
) -> list[references.OtherTable]:
    """The tables with a key of one column that is not excluded."""
    sql = "select name from sqlite_master where type = 'table'"
    found = []
    for (name,) in connection.execute(sql).fetchall():
        try:
            rows = connection.execute(f"pragma table_info({quote_identifier(name)})").fetchall()
        except sqlite3.Error:  # a virtual table whose module is not there
            continue
        keys = [row[1] for row in rows if row[5]]
        if len(keys) == 1 and not columns_left_out(database, name, keys, exclude):
            found.append(references.OtherTable(name, keys[0]))
    return found

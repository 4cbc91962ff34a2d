"""The figures of a table's columns, within a time limit, on as many connections as there are.

One pass over the table, in chunks, has the figures of all columns that need no grouping. Columns
are grouped before that from a sample, and after it from all rows, one by one, the cheap ones first.
Nearly all of it runs in SQLite, so that the event loop is not blocked. No transaction spans the
whole, since it would keep writers waiting.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ...errors import ProfileError
from .groups import Groups, count_distinct, display_value, group, group_unique, prepare
from .rows import LOOK_ROWS, SAMPLE_ROWS, Rows, TableRows, rows_of
from .scan import Figures, Form, add_functions, decoded, exact_sum, merged, scan, shown_sql
from .table import (
    Column,
    Table,
    column_ref,
    columns_holding_excluded,
    columns_left_out,
    read_table,
)
from .time_budget import MIN_INSTRUCTIONS, Clock, OutOfTimeError, TimeBudget, instructions_for

if TYPE_CHECKING:
    from sqlite3 import Connection

    from ...config.settings import ConsultantSettings

# The rows that a model sees whole, where the setting says so.
WHOLE_ROWS = 5
# SQLite returns at most 2,000 values at once, and a cell needs two.
COLUMNS_PER_ROW = 500
MIN_SAMPLE_ROWS = 25
# Of all columns together.
MAX_SAMPLE_CELLS = 50_000
MAX_SAMPLE_BYTES = 32 * 1024 * 1024
# In a sample: as few are looked up faster than sorted.
FEW_DISTINCT = 1_000
# The size up to which a column is sorted, which writes it to a temporary file.
MAX_SORTED_BYTES = 256 * 1024 * 1024
# Of values as large as this fewer are sorted: SQLite may compare each to its end, and merges them
# without calling the progress handler.
LARGE_BYTES = 100_000
MAX_SORTED_LARGE_BYTES = 16 * 1024 * 1024

Job = Callable[["Connection"], None]


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """What was measured of a column.

    Attributes:
        figures: those that need no grouping.
        exact: whether they are of all rows.
        mean, deviation: of the numbers, the latter of them as the whole population.
        groups: the distribution of the values; None where there was no time.
        groups_exact: whether it is of all rows.
        masks_exact: whether the masks of the groups are.
        encoding: that of the texts in the figures.
        error: why the column cannot be read; None where it can.
    """

    figures: Figures
    exact: bool
    mean: float | None = None
    deviation: float | None = None
    groups: Groups | None = None
    groups_exact: bool = False
    masks_exact: bool = False
    encoding: str = "UTF-8"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of measuring a table.

    Attributes:
        table: the table or view.
        columns: the columns that were read.
        left_out: the names of the others.
        count: the number of rows, perhaps estimated; None where unknown.
        exact: whether all rows were read, so that it and the figures are exact.
        seen: the number of rows that were read.
        stats: by column name.
        values: as the setting.
        sample_rows: a few whole rows where `values` is "sample".
    """

    table: Table
    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    count: int | None
    exact: bool
    seen: int
    stats: dict[str, ColumnStats]
    values: str
    sample_rows: list[dict[str, Any]]


def measure(
    connections: Sequence[Connection],
    *,
    database: str,
    name: str,
    exclude: Collection[str],
    settings: ConsultantSettings,
    clock: Clock,
) -> Measurement:
    """Measure a table or view, within a time limit that begins now.

    Args:
        connections: to its database, each used by a thread of its own, the first by this one.
        database: the name of the database.
        name: the name of the table or view.
        exclude: the columns to leave out, in the forms of the configuration.
        settings: which values may be read, and the time limit.
        clock: gives the time in seconds.

    Raises:
        TableNotFoundError: there is no such table or view.
        ProfileError: SQLite cannot read it, or all that it holds may be excluded.
    """
    budget = TimeBudget(settings.time_limit_ms / 1_000, clock)
    connection = connections[0]
    try:
        table = read_table(connection, name)
        excluded = _excluded(connection, database, table, exclude, settings.exclude)
        columns = tuple(each for each in table.columns if each.name not in excluded)
        values = settings.values
        encoding = connection.execute("pragma encoding").fetchone()[0]
        for each in connections:
            add_functions(each, encoding)
            prepare(each)
        work = _Work(rows_of(connection, table), columns, budget, encoding, values != "none")
        work.look_at(connection)
        sample_rows = work.whole_rows(connection) if values == "sample" else []
        work.run(connections)
        if work.errors and len(work.errors) == len(columns):
            read_table(connection, name)  # which was dropped between one query and the next
            connection.execute(f"select 1 from {work.rows.all.source()} limit 1").fetchone()
    except sqlite3.Error as error:
        raise ProfileError(f"{name!r} cannot be read: {error}") from error
    stats = {each.name: work.stats(each) for each in columns}
    count, exact = work.count
    return Measurement(
        *(table, columns, tuple(excluded), count, exact, work.seen, stats, values, sample_rows)
    )


def _excluded(
    connection: Connection,
    database: str,
    table: Table,
    exclude: Collection[str],
    configured: Collection[str],
) -> list[str]:
    """The columns of a table to leave out: those named, and those made of what is configured."""
    names = [each.name for each in table.columns]
    named = columns_left_out(database, table.name, names, exclude)
    holding = columns_holding_excluded(connection, database, table.name, configured)
    if set(names) <= {*named, *holding} and not set(holding) <= set(named):
        raise ProfileError(
            f"{table.name!r} is not analyzed: each of its columns holds, or may hold, values of "
            "columns that consultant.exclude leaves out. Analyze the table that it is made of, or "
            "a view that does not read those columns"
        )
    return [name for name in names if name in named or name in holding]


@dataclass(slots=True)
class _Work:
    """The work on a table, and its results so far; threads add to these, and replace none."""

    rows: TableRows
    columns: tuple[Column, ...]
    budget: TimeBudget
    encoding: str
    shows_values: bool
    look: dict[str, Figures] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    shifts: dict[str, int] = field(default_factory=dict)
    chunks: dict[int, tuple[int, dict[str, Figures]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    sampled: dict[str, Groups] = field(default_factory=dict)
    grouped: dict[str, Groups] = field(default_factory=dict)
    instructions: int = MIN_INSTRUCTIONS

    def look_at(self, connection: Connection) -> None:
        """Look at a few rows, to know how to read the others."""
        self.forms = {column.name: Form.ANYTHING for column in self.columns}
        self.shifts = dict.fromkeys(self.forms, 0)
        with suppress(OutOfTimeError):
            self.look = self._figures(connection, self.rows.sample(LOOK_ROWS))
        self.instructions = instructions_for(self._row_size) if self.look else MIN_INSTRUCTIONS
        for name, figures in self.look.items():
            self.forms[name], self.shifts[name] = figures.form, _shift(figures)

    def run(self, connections: Sequence[Connection]) -> None:
        """Do all of it, as far as the time allows."""
        sample = self.rows.sample(self._sample_size())
        samples: list[Job] = [
            partial(self._group_sample, each.name, sample) for each in self.columns
        ]
        scans = [partial(self._scan, index, rows) for index, rows in enumerate(self.rows.chunks)]
        # By turns, since either may have no end in time: of many columns, of a large view.
        by_turns = chain.from_iterable(zip_longest(scans[:-1], samples))
        _in_threads([*filter(None, by_turns), *scans[-1:]], connections)
        if self.count[1]:
            _in_threads(
                [partial(self._group_all, each) for each in self._affordable()], connections
            )

    @property
    def count(self) -> tuple[int | None, bool]:
        """The number of rows, and whether it is exact."""
        rows = self.seen
        if self.rows.table.rowid is None:
            return (rows, True) if 1 in self.chunks else (None, False)
        if len(self._done) == len(self.rows.spans):
            return rows, True
        return (round(rows / self.rows.share(self._done)) if self._done else None), False

    @property
    def seen(self) -> int:
        """The number of rows that were read."""
        return sum(self.chunks[index][0] for index in self._done)

    @property
    def _done(self) -> list[int]:
        """The chunks that were read, and are in no other one."""
        return [1] if self.rows.table.rowid is None and 1 in self.chunks else sorted(self.chunks)

    def figures(self, column: str) -> Figures:
        """The figures of a column, of all rows that were read."""
        parts = [self.chunks[index][1] for index in self._done]
        found = [part[column] for part in parts if column in part]
        return merged(found) if parts else self.look.get(column, Figures())

    def _query(
        self, connection: Connection, sql: str, parameters: Sequence[Any] = ()
    ) -> list[Sequence[Any]]:
        with self.budget.limit(connection, self.instructions):
            return connection.execute(sql, parameters).fetchall()

    def _figures(self, connection: Connection, rows: Rows) -> dict[str, Figures]:
        forms = {name: form for name, form in self.forms.items() if name not in self.errors}
        found, errors = scan(
            lambda *query: self._query(connection, *query)[0], rows, forms, self.shifts
        )
        self.errors |= errors
        return found

    def _scan(self, index: int, rows: Rows, connection: Connection) -> None:
        found = self._figures(connection, rows)
        counted = next(iter(found.values()), None)
        if counted is None:
            sql = f"select count(1) from {rows.source()}"
            with suppress(sqlite3.Error):
                count = self._query(connection, sql, rows.parameters)[0][0]
                self.chunks[index] = count, {}
            return
        self.chunks[index] = counted.rows, found
        for name, figures in found.items():
            self.forms[name] = max(self.forms[name], figures.form)

    def _group_sample(self, column: str, sample: Rows, connection: Connection) -> None:
        run = partial(self._query, connection)
        with suppress(sqlite3.Error):  # which the scan finds, and tells
            numbers = self.shows_values
            self.sampled[column] = group(run, sample, column, self.encoding, numbers=numbers)

    def _group_all(self, column: Column, connection: Connection) -> None:
        run, rows, name = partial(self._query, connection), self.rows.all, column.name
        figures = self.figures(name)
        numbers = figures.numbers > 0 and self.shows_values
        with suppress(sqlite3.Error):  # of sorting, such as a full disk
            if column.unique:
                groups = group_unique(run, rows, name, figures, numbers=numbers)
            elif not self.shows_values:
                sampled = self.sampled.get(name)
                few = sampled is not None and sampled.distinct <= FEW_DISTINCT
                groups = count_distinct(run, rows, name, figures, few=few)
            else:
                groups = group(run, rows, name, self.encoding, numbers=numbers)
            self.grouped[name] = groups

    @property
    def _row_size(self) -> float:
        return sum(each.mean_size for each in self.look.values())

    def _sample_size(self) -> int:
        cells = MAX_SAMPLE_CELLS // max(len(self.columns), 1)
        fitting = int(MAX_SAMPLE_BYTES / max(self._row_size, 1))
        return max(MIN_SAMPLE_ROWS, min(SAMPLE_ROWS, cells, fitting))

    def _affordable(self) -> list[Column]:
        """The columns small enough to be sorted, those expected to take the least time first."""
        figures = {each.name: self.figures(each.name) for each in self.columns}

        def bytes_of(column: Column) -> float:
            return figures[column.name].characters + figures[column.name].bytes

        def affordable(column: Column) -> bool:
            large = figures[column.name].mean_size >= LARGE_BYTES
            return bytes_of(column) <= (MAX_SORTED_LARGE_BYTES if large else MAX_SORTED_BYTES)

        def cost(column: Column) -> tuple[bool, int, float]:
            groups = self.sampled.get(column.name)
            return not column.unique, groups.distinct if groups else 0, bytes_of(column)

        readable = (each for each in self.columns if each.name not in self.errors)
        return sorted(filter(affordable, readable), key=cost)

    def stats(self, column: Column) -> ColumnStats:
        """The results about a column."""
        name = column.name
        if name in self.errors:
            return ColumnStats(Figures(), False, error=self.errors[name])
        figures, exact = self.figures(name), self.count[1]
        shift = self.shifts.get(name, 0) if self._done else 0
        mean, deviation = _moments(figures, shift)
        grouped, sampled = self.grouped.get(name), self.sampled.get(name)
        groups, masks_exact = grouped or sampled, bool(grouped and grouped.masks)
        if grouped and sampled and not grouped.masks:
            groups = replace(grouped, masks=sampled.masks)
        return ColumnStats(
            *(figures, exact, mean, deviation, groups, grouped is not None, masks_exact),
            encoding=self.encoding,
        )

    def whole_rows(self, connection: Connection) -> list[dict[str, Any]]:
        """A few whole rows, from all over the table."""
        names = [each.name for each in self.columns if each.name not in self.errors]
        rows: list[dict[str, Any]] = [{} for _ in range(WHOLE_ROWS)]
        for at in range(0, len(names), COLUMNS_PER_ROW):
            batch = names[at : at + COLUMNS_PER_ROW]
            with suppress(
                OutOfTimeError, sqlite3.Error
            ):  # what the look did not find, the scan does
                for row, cells in zip(rows, self._cells(connection, batch), strict=False):
                    row.update(cells)
        return [row for row in rows if row]

    def _cells(self, connection: Connection, columns: Sequence[str]) -> list[dict[str, Any]]:
        rows, selected = self.rows.sample(WHOLE_ROWS), []
        for v in map(column_ref, columns):
            text, blob = shown_sql(f"cast({v} as blob)"), f"length({v})"
            shown = f"case typeof({v}) when 'text' then {text} when 'blob' then {blob} else {v} end"
            selected += [f"typeof({v})", shown]
        sql = f"select {', '.join(selected)} from {rows.source(*columns)}"
        return [
            {name: self._cell(*row[2 * at : 2 * at + 2]) for at, name in enumerate(columns)}
            for row in self._query(connection, sql, rows.parameters)
        ]

    def _cell(self, kind: str, value: Any) -> Any:
        if kind == "blob":
            return {"blob_size": value}
        return display_value(decoded(value, self.encoding) if kind == "text" else value)


def _in_threads(jobs: Iterable[Job], connections: Sequence[Connection]) -> None:
    """Do jobs in their order, on each connection one at a time, until the time is used up."""
    waiting = deque(jobs)

    def work(connection: Connection) -> None:
        with suppress(OutOfTimeError):
            while True:
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                job(connection)

    with ThreadPoolExecutor(max(len(connections) - 1, 1)) as pool:
        others = [pool.submit(work, connection) for connection in connections[1:]]
        work(connections[0])
        for each in others:
            each.result()


def _shift(figures: Figures) -> int:
    """A number near the others: the squares of what is left after it lose no digits."""
    mean = exact_sum([figures.total]) / max(figures.numbers, 1)
    return round(mean) if math.isfinite(mean) else 0


def _moments(figures: Figures, shift: int) -> tuple[float | None, float | None]:
    """The mean and the deviation of the numbers; None where there are none, or too large ones."""
    count, low, high = figures.numbers, figures.low, figures.high
    if not count or low is None or high is None:
        return None, None
    total, squares = exact_sum([figures.total]), exact_sum([figures.squares])
    if not math.isfinite(total):
        infinite = [each for each in {low, high} if not math.isfinite(each)]
        return (infinite[0] if len(infinite) == 1 else None), None
    offset = total / count
    mean = min(max(_rounded(shift + offset), low), high)
    variance = squares / count - offset * offset
    deviation = _rounded(math.sqrt(max(variance, 0.0))) if math.isfinite(variance) else None
    return mean, 0.0 if low == high else deviation


def _rounded(number: float) -> float:
    # The digits beyond depend on the order in which the numbers were added up.
    return float(f"{number:.12g}")

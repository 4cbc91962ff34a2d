"""A sample of a table or view: rows from all over it, with long values truncated.

The sample is deterministic, as long as the time is enough. Where the rows have a rowid, it is many
short runs of rows, spread over the range of rowids. Elsewhere SQLite has to step over the rows
between (OFFSET), so that the runs are fewer and longer; and where the rows could not be counted in
time, the sample is the first rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .column_stats import ValueGroups, stats_sql
from .table import Table, column_ref, table_source
from .time_budget import OutOfTimeError, TimeBudget

if TYPE_CHECKING:
    from sqlite3 import Connection

MAX_SAMPLE_ROWS = 5_000
MIN_SAMPLE_ROWS = 100
# Of all columns together: bounds the memory of a sample.
MAX_SAMPLE_CELLS = 50_000
# More than is displayed, so that texts with the same beginning count as different.
SAMPLED_CHARS = 200
# SQLite returns at most 2,000 columns at once, and a cell needs two.
COLUMNS_PER_QUERY = 500
# Powers of two; see `_spread`.
ROWID_RUNS = 512
OFFSET_RUNS = 8

# The value, truncated if it is long, and the length of a text or blob.
Cell = tuple[Any, int | None]

_GROUPS = ValueGroups(
    "select v, l, count(*) as n, count(*) filter (where typeof(v) = 'real') as r "
    "from cells group by v, l",
    length="l",
    reals="r",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a table.

    Attributes:
        parts: batches of columns with their rows as SQLite returned them: for each column the
            value and the length. Cells are made on demand, since so many objects at once would
            trigger Python's garbage collector, which blocks the event loop.
        table_rows: the number of rows of the table, perhaps estimated; None where unknown.
    """

    parts: tuple[tuple[Sequence[str], list[tuple[Any, ...]]], ...]
    table_rows: int | None

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [name for names, _ in self.parts for name in names]

    @property
    def rows(self) -> int:
        """The number of rows that all columns have."""
        return min((len(rows) for _, rows in self.parts), default=0)

    def cells(self, column: str) -> Iterator[Cell]:
        """The cells of a column, in the order of the rows."""
        names, rows = next(part for part in self.parts if column in part[0])
        at = 2 * names.index(column)
        return ((row[at], row[at + 1]) for row in rows)

    @property
    def row_size(self) -> float:
        """The mean size of the texts and blobs of a row."""
        return sum(map(self.mean_size, self.names))

    def mean_size(self, column: str) -> float:
        """The mean size of the column's texts and blobs, over all rows."""
        lengths = [length or 0 for _, length in self.cells(column)]
        return sum(lengths) / len(lengths) if lengths else 0.0


def take_sample(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    count: int | None,
    budget: TimeBudget,
    shares: tuple[float, float],
) -> Sample:
    """Take a sample; a smaller one where the time is not enough.

    Args:
        connection: to the table's database.
        table: the table or view.
        names: the columns to read, and no others.
        count: the number of rows; None where unknown.
        budget: the time limit.
        shares: of the limit, at which the sample starts and must end.
    """
    start, end = shares
    parts, estimates = [], []
    limit = max(MIN_SAMPLE_ROWS, min(MAX_SAMPLE_ROWS, MAX_SAMPLE_CELLS // max(len(names), 1)))
    batches = [names[at : at + COLUMNS_PER_QUERY] for at in range(0, len(names), COLUMNS_PER_QUERY)]
    for number, batch in enumerate(batches, 1):
        reader = _Reader(connection, table, batch, budget)
        with suppress(OutOfTimeError), budget.until(start + (end - start) * number / len(batches)):
            reader.read(count, limit)
        parts.append((batch, reader.rows))
        estimates.append(reader.estimate)
    return Sample(tuple(parts), next(iter(estimates), None) if count is None else count)


def sample_results(sample: Sample, *, values: bool) -> dict[str, list[Sequence[Any]]]:
    """The results of `stats_sql` for each column of a sample.

    Args:
        sample: the sample.
        values: as for `stats_sql`.
    """
    results = {}
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table cells (v, l)")
        for name in sample.names:
            connection.executemany("insert into cells values (?, ?)", sample.cells(name))
            results[name] = connection.execute(stats_sql(_GROUPS, values=values)).fetchall()
            connection.execute("delete from cells")
    return results


class _Reader:
    """Reads a sample of some columns, run by run."""

    def __init__(
        self, connection: Connection, table: Table, names: Sequence[str], budget: TimeBudget
    ) -> None:
        self.estimate: int | None = None
        self._connection = connection
        self._budget = budget
        self._table = table
        self.rows: list[tuple[Any, ...]] = []
        self._selected = ", ".join(map(_cell_sql, map(column_ref, names)))

    def read(self, count: int | None, limit: int) -> None:
        if count is not None and count <= limit:
            self._run("limit ?", count)
            return
        if self._table.rowid:
            self._by_rowid(self._table.rowid, limit)
        # Where a few rowids are far from the others, most runs are empty.
        if len(self.rows) < limit // 2:
            self.rows.clear()
            self._by_offset(count, limit)

    def _by_rowid(self, rowid: str, limit: int) -> None:
        name = table_source(self._table.name)
        # In two subqueries, each a single B-tree lookup; one query for both would scan the table.
        ends = f"select (select min({rowid}) from {name}), (select max({rowid}) from {name})"
        low, high = self._connection.execute(ends).fetchone()
        if low is None:
            return
        run_rows = limit // ROWID_RUNS + 1
        clause = f"where {rowid} between ? and ? order by {rowid} limit {run_rows}"
        estimates = []
        for run in _spread(ROWID_RUNS):
            first, after = (low + (high - low + 1) * at // ROWID_RUNS for at in (run, run + 1))
            found = self._run(clause, first, after - 1, also=f", {rowid}")
            seen = found[-1][-1] - first + 1 if len(found) == run_rows else after - first
            estimates.append(len(found) * (after - first) / max(seen, 1))
            self.estimate = round(sum(estimates) / len(estimates) * ROWID_RUNS)

    def _by_offset(self, count: int | None, limit: int) -> None:
        if count is None:
            self._run("limit ?", limit)
            return
        for run in _spread(OFFSET_RUNS):
            self._run("limit ? offset ?", limit // OFFSET_RUNS, count * run // OFFSET_RUNS)

    def _run(self, clause: str, *numbers: int, also: str = "") -> list[tuple[Any, ...]]:
        sql = f"select {self._selected}{also} from {table_source(self._table.name)} {clause}"
        before = len(self.rows)
        # One by one, so that the rows read before the time limit are kept.
        with closing(self._connection.cursor()) as cursor:
            cursor.row_factory = None
            for row in cursor.execute(sql, numbers):
                self.rows.append(row)
                self._budget.check()
        return self.rows[before:]


def _cell_sql(value: str) -> str:
    """The two expressions for a cell; no long value leaves SQLite."""
    is_long = f"typeof({value}) in ('text', 'blob')"
    # substr() of an empty blob is NULL.
    prefix = f"coalesce(substr({value}, 1, {SAMPLED_CHARS}), {value})"
    return (
        f"case when {is_long} then {prefix} else {value} end, "
        f"case when {is_long} then length({value}) end"
    )


def _spread(runs: int) -> Iterator[int]:
    """The numbers below a power of two in bit-reversed order, so that any prefix is spread."""
    bits = runs.bit_length() - 1
    return (int(f"{run:0{bits}b}"[::-1], 2) for run in range(runs))

"""A sample of a table or view: rows from all over it, with long values cut short.

The same rows every time, as long as the table is the same and the time is enough. Where the rows
have a rowid, a sample is short runs of rows from everywhere in the range of rowids. Elsewhere
SQLite has to step over what lies between, so that there are fewer runs, which are longer; and of
what cannot even be counted in time, the sample is the first rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .column_stats import Groups, figures_sql
from .table import Table, cell, source
from .time_budget import Budget, OutOfTimeError

if TYPE_CHECKING:
    from sqlite3 import Connection

MOST_ROWS = 5_000
LEAST_ROWS = 100
# Of all columns together, which bounds what a sample takes in memory.
MOST_CELLS = 50_000
# More than is shown, so that texts that begin alike are still told apart.
KEPT_CHARS = 200
# SQLite gives at most 2,000 columns at once, and each of these needs two.
COLUMNS_AT_ONCE = 500
# Each a power of two; see `_spread`.
ROWID_RUNS = 512
OFFSET_RUNS = 8

# The value, cut if it is long, and the length of a text or blob.
Cell = tuple[Any, int | None]

_GROUPS = Groups(
    "select v, l, count(*) as n, count(*) filter (where typeof(v) = 'real') as r "
    "from cells group by v, l",
    length="l",
    reals="r",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a table.

    Attributes:
        parts: some of the columns each, with their rows as SQLite gave them: for each column the
            value and the length. A cell is made of them when it is asked for, since so many
            objects at once would have Python look for garbage, which holds up the event loop.
        table_rows: how many rows the table seems to have; None where nothing tells.
    """

    parts: tuple[tuple[Sequence[str], list[tuple[Any, ...]]], ...]
    table_rows: int | None

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [name for names, _ in self.parts for name in names]

    @property
    def rows(self) -> int:
        """How many rows all columns have."""
        return min((len(rows) for _, rows in self.parts), default=0)

    def cells(self, column: str) -> Iterator[Cell]:
        """The cells of a column, in the same order of rows for each."""
        names, rows = next(part for part in self.parts if column in part[0])
        at = 2 * names.index(column)
        return ((row[at], row[at + 1]) for row in rows)

    @property
    def row_size(self) -> float:
        """What the texts and blobs of a row take."""
        return sum(map(self.mean_size, self.names))

    def mean_size(self, column: str) -> float:
        """What a text or blob of the column takes, over all of its rows."""
        lengths = [length or 0 for _, length in self.cells(column)]
        return sum(lengths) / len(lengths) if lengths else 0.0


def take_sample(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    count: int | None,
    budget: Budget,
    shares: tuple[float, float],
) -> Sample:
    """Take a sample; a smaller one when its time is over.

    Args:
        connection: to the table's database.
        table: the table or view.
        names: the columns to read, and no others.
        count: how many rows there are; None where that is unknown.
        budget: the time limit.
        shares: of the limit, when this begins and when it must end.
    """
    begin, end = shares
    parts, estimates = [], []
    batches = [names[at : at + COLUMNS_AT_ONCE] for at in range(0, len(names), COLUMNS_AT_ONCE)]
    for number, batch in enumerate(batches, 1):
        reader = _Reader(connection, table, batch, budget)
        with suppress(OutOfTimeError), budget.until(begin + (end - begin) * number / len(batches)):
            reader.read(count, max(LEAST_ROWS, min(MOST_ROWS, MOST_CELLS // len(names))))
        parts.append((batch, reader.rows))
        estimates.append(reader.estimate)
    return Sample(tuple(parts), next(iter(estimates), None) if count is None else count)


class _Reader:
    """Reads a sample of some columns, run by run."""

    def __init__(
        self, connection: Connection, table: Table, names: Sequence[str], budget: Budget
    ) -> None:
        self.estimate: int | None = None
        self._connection = connection
        self._budget = budget
        self._table = table
        self.rows: list[tuple[Any, ...]] = []
        self._selected = ", ".join(map(_cut, map(cell, names)))

    def read(self, count: int | None, most: int) -> None:
        if count is not None and count <= most:
            self._run("limit ?", count)
            return
        if self._table.rowid:
            self._by_rowid(self._table.rowid, most)
        # Where a few rowids are far from the others, most runs find nothing.
        if len(self.rows) < most // 2:
            self.rows.clear()
            self._by_offset(count, most)

    def _by_rowid(self, rowid: str, most: int) -> None:
        name = source(self._table.name)
        # Each by itself, which is a step down the tree; both at once would read the table.
        ends = f"select (select min({rowid}) from {name}), (select max({rowid}) from {name})"
        low, high = self._connection.execute(ends).fetchone()
        if low is None:
            return
        limit = most // ROWID_RUNS + 1
        clause = f"where {rowid} between ? and ? order by {rowid} limit {limit}"
        estimates = []
        for run in _spread(ROWID_RUNS):
            first, after = (low + (high - low + 1) * at // ROWID_RUNS for at in (run, run + 1))
            found = self._run(clause, first, after - 1, also=f", {rowid}")
            seen = found[-1][-1] - first + 1 if len(found) == limit else after - first
            estimates.append(len(found) * (after - first) / max(seen, 1))
            self.estimate = round(sum(estimates) / len(estimates) * ROWID_RUNS)

    def _by_offset(self, count: int | None, most: int) -> None:
        if count is None:
            self._run("limit ?", most)
            return
        for run in _spread(OFFSET_RUNS):
            self._run("limit ? offset ?", most // OFFSET_RUNS, count * run // OFFSET_RUNS)

    def _run(self, clause: str, *numbers: int, also: str = "") -> list[tuple[Any, ...]]:
        sql = f"select {self._selected}{also} from {source(self._table.name)} {clause}"
        before = len(self.rows)
        # One by one, so that those that were read before the time was over stay.
        with closing(self._connection.cursor()) as cursor:
            cursor.row_factory = None
            for row in cursor.execute(sql, numbers):
                self.rows.append(row)
                self._budget.check()
        return self.rows[before:]


def _cut(value: str) -> str:
    """The two expressions for a cell; nothing longer leaves SQLite."""
    is_long = f"typeof({value}) in ('text', 'blob')"
    # Of an empty blob, substr() makes NULL.
    kept = f"coalesce(substr({value}, 1, {KEPT_CHARS}), {value})"
    return (
        f"case when {is_long} then {kept} else {value} end, "
        f"case when {is_long} then length({value}) end"
    )


def _spread(runs: int) -> Iterator[int]:
    """The numbers below a power of two, so that the first few are spread as all of them are."""
    bits = runs.bit_length() - 1
    return (int(f"{run:0{bits}b}"[::-1], 2) for run in range(runs))


def sample_answers(sample: Sample, *, values: bool) -> dict[str, list[Sequence[Any]]]:
    """The answers to the query for the figures of each column, over a sample.

    Args:
        sample: the rows.
        values: as for `figures_sql`.
    """
    answers = {}
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table cells (v, l)")
        for name in sample.names:
            connection.executemany("insert into cells values (?, ?)", sample.cells(name))
            answers[name] = connection.execute(figures_sql(_GROUPS, values=values)).fetchall()
            connection.execute("delete from cells")
    return answers

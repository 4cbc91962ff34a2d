"""Which rows of a table are read: all of them in chunks, or a few from all over it.

Chunks are ranges of rowids, in an order in which any first part of them is spread over the table,
so that figures are sound wherever the time ends. What has no rowid, such as a view, is read whole
after its first rows.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .table import Table, column_ref, table_source

if TYPE_CHECKING:
    from sqlite3 import Connection

# As many chunks as give an answer every few milliseconds, and each its own small cost.
MIN_CHUNKS, MAX_CHUNKS = 256, 4_096
ROWIDS_PER_CHUNK = 50_000
# Not worth splitting.
FEW_ROWIDS = 64
SAMPLE_ROWS = 5_000
SAMPLE_RUNS = 512
# The rows that are looked at first, to know what kind of table it is.
LOOK_ROWS = 50

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to read.

    Attributes:
        table: the name of the table or view.
        condition: a WHERE clause about `t`, or nothing.
        parameters: those of the clause.
        limit: how many rows at most; None for all.
        collated: whether a column may have a collation of its own.
    """

    table: str
    condition: str = ""
    parameters: tuple[Any, ...] = ()
    limit: int | None = None
    collated: bool = True

    def source(self, *columns: str) -> str:
        """A FROM clause for a query about some columns, with the table as `t`."""
        source = f"{table_source(self.table)} {self.condition}"
        if self.limit is None:
            return source
        # No other column, since SQLite may fail to compute it.
        selected = ", ".join(map(column_ref, columns)) or "1"
        return f"(select {selected} from {source} limit {self.limit}) as t"

    def bytewise(self, column: str) -> str:
        """A column of `source` whose values are compared byte by byte."""
        # Only where it must be: SQLite then sorts the column twice, with and without.
        return f"{column_ref(column)} collate binary" if self.collated else column_ref(column)


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, to be read in several ways.

    Attributes:
        table: the table or view.
        spans: ranges of rowids, which together are the table, in spread order; none for what has
            no rowid.
        sampled: rowids from all over the table, in order.
    """

    table: Table
    spans: tuple[Span, ...] = ()
    sampled: tuple[int, ...] = ()

    @property
    def all(self) -> Rows:
        """All rows."""
        return self._rows()

    @property
    def chunks(self) -> list[Rows]:
        """The rows in parts; of a table without rowids some first rows, and then all."""
        if self.table.rowid is None:
            return [self._first(SAMPLE_ROWS), self.all]
        condition = f"where t.{self.table.rowid} between ? and ?"
        return [self._rows(condition, span) for span in self.spans]

    def share(self, chunks: Collection[int]) -> float:
        """The share of the table that some chunks are, by their rowids."""
        widths = [high - low + 1 for low, high in self.spans]
        return sum(widths[index] for index in chunks) / sum(widths)

    def sample(self, limit: int) -> Rows:
        """Some rows from all over the table, or the first ones of what has no rowid."""
        if self.table.rowid is None:
            return self._first(limit)
        found, count = self.sampled, min(limit, len(self.sampled))
        chosen = [found[len(found) * number // count] for number in range(count)]
        condition = f"where t.{self.table.rowid} in (select value from json_each(?))"
        return self._rows(condition, (json.dumps(chosen),))

    def _first(self, limit: int) -> Rows:
        return self._rows(limit=limit)

    def _rows(
        self, condition: str = "", parameters: tuple[Any, ...] = (), limit: int | None = None
    ) -> Rows:
        return Rows(self.table.name, condition, parameters, limit, self.table.collated)


def rows_of(connection: Connection, table: Table) -> TableRows:
    """Find the chunks of a table; ends of ranges are rows, so that gaps are in none.

    Args:
        connection: to its database.
        table: the table or view.
    """
    rowid, name = table.rowid, table_source(table.name)
    if rowid is None:
        return TableRows(table)

    def end(order: str, condition: str, *values: int) -> int | None:
        sql = f"select t.{rowid} from {name} where {condition} order by 1 {order} limit 1"
        found: tuple[int] | None = connection.execute(sql, values).fetchone()
        return found[0] if found else None

    low, high = end("asc", "true"), end("desc", "true")
    if low is None or high is None:
        return TableRows(table)
    count = min(max((high - low) // ROWIDS_PER_CHUNK, MIN_CHUNKS), MAX_CHUNKS)
    heap = [(low - high, low, high)]
    while len(heap) < count and -heap[0][0] >= FEW_ROWIDS:
        _, low, high = heapq.heappop(heap)
        middle = (low + high) // 2
        left = end("desc", f"t.{rowid} <= ?", middle)
        right = end("asc", f"t.{rowid} > ?", middle)
        for first, last in ((low, left), (right, high)):
            if first is not None and last is not None and first <= last:
                heapq.heappush(heap, (first - last, first, last))
    spans = _spread(sorted(span[1:] for span in heap))
    # Where a run begins in its range is random, but the same each time: values may be periodic.
    chance = random.Random(0)
    run_rows = -(-SAMPLE_ROWS // min(len(spans), SAMPLE_RUNS))
    sql = f"select t.{rowid} from {name} where t.{rowid} between ? and ? order by 1 limit ?"
    sampled = set[int]()
    for low, high in spans[:SAMPLE_RUNS]:
        start = chance.randint(low, max(high - run_rows + 1, low))
        sampled.update(row[0] for row in connection.execute(sql, (start, high, run_rows)))
    return TableRows(table, tuple(spans), tuple(sorted(sampled)))


def _spread(spans: Sequence[Span]) -> list[Span]:
    """In bit-reversed order, so that any prefix is spread."""
    bits = max(len(spans) - 1, 1).bit_length()
    order = sorted(range(len(spans)), key=lambda index: f"{index:0{bits}b}"[::-1])
    return [spans[index] for index in order]

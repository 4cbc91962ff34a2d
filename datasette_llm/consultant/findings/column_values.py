"""The values of one column, with their numbers of rows, and what they look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import text_forms
from ..profile.table import column_ref, table_source

if TYPE_CHECKING:
    from sqlite3 import Connection

    from .time_limit import TimeLimit

# Of texts no more is read; longer ones count as prose.
MAX_CHARS = 200
# So few that the garbage collector does not run, which would block the event loop.
_CHUNK_ROWS = 500
# So many rows for each value are counted by SQLite.
_FEW = 20
# Whether a column has dates at all is decided by so many of its values.
_TRIED = 400
SENTINELS = (-99, -999, -9999, -99999, -999999, 999, 9999, 99999, 999999)


@dataclass(frozen=True)
class ColumnValues:
    """The values of a column, in all rows or some.

    Attributes:
        name: its name.
        declared_type: its declared type.
        primary_key: whether it is part of the primary key.
        foreign_key: the table that it refers to, as declared, and the column, where it is named.
        unique: whether the schema says that its values differ.
        counts: the rows of each number and each text of at most `MAX_CHARS` characters.
        nulls: the number of rows without a value.
        blobs: the number of rows with a blob.
        long_texts: the number of rows with a longer text.
        long_json: how many of these begin as JSON objects or lists.
        exact: whether all rows were read.
    """

    name: str
    declared_type: str
    primary_key: bool
    foreign_key: tuple[str, str | None] | None
    unique: bool
    counts: Mapping[Any, int]
    nulls: int
    blobs: int
    long_texts: int
    long_json: int
    exact: bool

    @cached_property
    def rows(self) -> int:
        """The number of rows that were read."""
        return sum(self.counts.values()) + self.nulls + self.blobs + self.long_texts

    @cached_property
    def texts(self) -> dict[str, int]:
        """The texts, without blank ones and those that stand for no value."""
        missing = self.missing_texts
        return {v: n for v, n in self.counts.items() if isinstance(v, str) and v not in missing}

    @cached_property
    def missing_texts(self) -> dict[str, int]:
        """The texts that are blank or stand for no value."""
        longest = text_forms.MISSING_CHARS
        short = (v for v in self.counts if isinstance(v, str) and len(v) <= longest)
        return {v: self.counts[v] for v in short if text_forms.is_missing(v)}

    @cached_property
    def numbers(self) -> dict[float, int]:
        """The numbers, without those that stand for no value."""
        return {v: n for v, n in self._all_numbers.items() if v not in self.sentinels}

    @cached_property
    def sentinels(self) -> dict[float, int]:
        """Numbers such as -999 that stand for no value, as they are far from all others."""
        found = {v: self._all_numbers[v] for v in SENTINELS if v in self._all_numbers}
        others = [v for v in self._all_numbers if v not in found]
        if len(others) < 5 or self.primary_key or self.foreign_key:
            return {}
        low, high = min(others), max(others)
        return {v: n for v, n in found.items() if _is_far(v, n, low, high)}

    @cached_property
    def text_rows(self) -> int:
        """The number of rows with one of `texts`."""
        return sum(self.texts.values())

    @cached_property
    def number_rows(self) -> int:
        """The number of rows with one of `numbers`."""
        return sum(self.numbers.values())

    @cached_property
    def masks(self) -> Counter[str]:
        """The rows of each mask of `texts`."""
        found: Counter[str] = Counter()
        for text, rows in self.texts.items():
            found[text_forms.mask(text)] += rows
        return found

    @cached_property
    def shapes(self) -> Counter[str]:
        """The rows of each shape of `texts`."""
        found: Counter[str] = Counter()
        for mask, rows in self.masks.items():
            found[text_forms.shape(mask)] += rows
        return found

    @cached_property
    def parsed_numbers(self) -> dict[str, int]:
        """Those of `texts` that are numbers; empty where few are."""
        if not _is_common(self.texts, text_forms.is_number):
            return {}
        return {v: n for v, n in self.texts.items() if text_forms.is_number(v)}

    @cached_property
    def date_formats(self) -> Counter[str]:
        """The rows of each format of date among `texts`; empty where few are dates."""
        found: Counter[str] = Counter()
        if not _is_common(self.texts, text_forms.date_format):
            return found
        for text, rows in self.texts.items():
            if name := text_forms.date_format(text):
                found[name] += rows
        return found

    @property
    def distinct(self) -> int:
        """The number of different values, without long texts and blobs."""
        return len(self.counts)

    @property
    def is_whole(self) -> bool:
        """True if `counts` has every value of every row."""
        return self.exact and not self.blobs and not self.long_texts

    @property
    def is_unique(self) -> bool:
        """True if no value occurs twice, and none is missing."""
        return self.unique or (self.is_whole and self.distinct == self.rows > 0)

    @cached_property
    def _all_numbers(self) -> dict[float, int]:
        return {v: n for v, n in self.counts.items() if not isinstance(v, str)}


def read_values(
    connection: Connection,
    table: str,
    column: Mapping[str, Any],
    clause: str,
    *,
    exact: bool,
    unique: bool,
    budget: TimeLimit,
) -> ColumnValues:
    """Read the values of a column.

    Args:
        connection: one of ours.
        table: the table or view.
        column: the column as the profile has it.
        clause: which rows to read.
        exact: whether these are all rows.
        unique: whether the schema says that its values differ.
        budget: the time limit, within `until`.

    Raises:
        LateError: it takes too long.
        sqlite3.Error: the column cannot be read.
    """
    name = column["name"]
    cell = column_ref(name)
    shown = cell if _is_short(column) else _shortened(cell)
    values = f"select {shown} as v from {table_source(table)} {clause}"
    if few := _has_few_values(column):
        values = f"select v, count(*) from ({values}) group by v collate binary"
    before, connection.text_factory = connection.text_factory, str
    try:
        counts = _counts(connection, values, budget, grouped=few)
    except sqlite3.OperationalError:
        # Perhaps a text that is not well-formed; a function of ours for each text takes longer.
        connection.text_factory = lambda value: str(value, "utf-8", "replace")
        counts = _counts(connection, values, budget, grouped=few)
    finally:
        connection.text_factory = before
    nulls, blobs = counts.pop(None, 0), counts.pop(b"", 0)
    long = {v: n for v, n in counts.items() if isinstance(v, str) and len(v) > MAX_CHARS}
    for text in long:
        del counts[text]
    key = column.get("foreign_key")
    return ColumnValues(
        name=name,
        declared_type=column.get("declared_type") or "",
        primary_key=bool(column.get("primary_key")),
        foreign_key=(key["table"], key.get("column")) if key else None,
        unique=unique,
        counts=dict(counts),  # which are compared faster than counters
        nulls=nulls,
        blobs=blobs,
        long_texts=sum(long.values()),
        long_json=sum(n for text, n in long.items() if text.lstrip()[:1] in ("{", "[")),
        exact=exact,
    )


def _counts(connection: Connection, sql: str, budget: TimeLimit, *, grouped: bool) -> Counter[Any]:
    """The rows of each value; of each row the query has the value, or with it their number."""
    counts: Counter[Any] = Counter()
    cursor = connection.execute(sql)
    while rows := cursor.fetchmany(_CHUNK_ROWS):
        if grouped:
            for value, number in rows:  # some are equal in Python only
                counts[value] += number
        else:
            counts.update(chain.from_iterable(rows))
        budget.check()
    return counts


def _has_few_values(column: Mapping[str, Any]) -> bool:
    """True if many rows have the same value, by the profile: SQLite then counts them faster."""
    distinct = (column.get("distinct") or {}).get("count")
    return distinct is not None and distinct * _FEW < column.get("rows", 0)


def _is_short(column: Mapping[str, Any]) -> bool:
    """True if the profile knows that no value is long, which saves half of the time."""
    length = column.get("length")
    blobs = "blob" in (column.get("observed_types") or {"blob": 1})
    return bool(column.get("exact")) and not blobs and (not length or length["max"] <= MAX_CHARS)


def _shortened(cell: str) -> str:
    # What is added makes it long, since substr() ends at a NUL character.
    text = (
        f"case when length(cast({cell} as blob)) <= {4 * MAX_CHARS} then {cell} "
        f"else substr({cell}, 1, {MAX_CHARS}) || hex(zeroblob({MAX_CHARS})) end"
    )
    return f"case typeof({cell}) when 'text' then {text} when 'blob' then x'' else {cell} end"


def _is_common(texts: Mapping[str, int], test: Any) -> bool:
    """True if a third of some values pass a test."""
    tried = list(islice(texts, _TRIED))
    return bool(tried) and 3 * sum(bool(test(text)) for text in tried) >= len(tried)


def _is_far(value: float, rows: int, low: float, high: float) -> bool:
    if value < 0:
        # A negative one among positives is enough once.
        return (low >= 0 and -value > 2 * high / 3) or (rows > 1 and low - value > 3 * (high - low))
    return rows > 1 and value - high > 3 * max(high - low, 1) and value >= 2 * high

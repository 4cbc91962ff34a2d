"""The distribution of one column: its distinct and frequent values, quartiles and masks.

The values are grouped, which is the expensive part; everything else comes from the groups. Values
are compared byte by byte, whatever collation the column has. No blob leaves SQLite, and no more of
a text than is displayed.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from .rows import Rows
from .scan import Figures, decoded, shown_sql
from .table import column_ref

if TYPE_CHECKING:
    from sqlite3 import Connection

MAX_DISPLAY_CHARS = 80
TRUNCATION_MARK = "…"
TOP_VALUES = 10
TOP_MASKS = 20
# Masks are of all texts only where there are no more different ones than this.
MASKED_TEXTS = 5_000
# Groups in order are counted by so many.
_BLOCK = 4_096
# The columns have no affinity, by which a number could be compared as text, or the reverse.
_GROUPS = "temp.llm_profile_groups"
_COUNTS = f"""
    select count(*), total(n), count(*) filter (where n = 1),
        count(*) filter (where v < ''), total(n) filter (where v < '') from {_GROUPS}
"""
_SHOWN = f"iif(typeof(v) = 'text', {shown_sql('cast(v as blob)')}, v)"
# A value of a single row is not frequent, and may identify a person.
_TOP = f"""
    select {_SHOWN}, n from {_GROUPS} where n > 1 and v < x'' order by n desc, v limit {TOP_VALUES}
"""
_TEXTS = f"select {_SHOWN}, n from {_GROUPS} where rowid >= ? and v < x'' limit {MASKED_TEXTS + 1}"
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?!\d)", re.ASCII)

Run = Callable[[str, Sequence[Any]], list[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class Masks:
    """The patterns of texts: 9 for a digit, a and A for a letter, other characters as they are.

    Attributes:
        texts: the number of texts that they are of.
        counts: the most frequent masks, with their number of texts.
        dates: how many of the texts begin with a date such as 2026-03-31.
    """

    texts: int
    counts: tuple[tuple[str, int], ...]
    dates: int


@dataclass(frozen=True, slots=True)
class Groups:
    """The values of a column, grouped.

    Attributes:
        rows: the number of rows.
        filled: the number of values that are not null.
        distinct: the number of different ones; numbers that are equal are the same.
        single: the number of values that only one row has; None where these were not counted.
        top: the most frequent numbers and texts with their number of rows, of two or more.
        quartiles: of the numbers, by linear interpolation as in `statistics.quantiles` with the
            method "inclusive"; None where there are none, or they were not asked for.
        masks: of the texts; None where these are too many.
    """

    rows: int
    filled: int
    distinct: int
    single: int | None = None
    top: tuple[tuple[float | str, int], ...] = ()
    quartiles: tuple[float, float, float] | None = None
    masks: Masks | None = None


def prepare(connection: Connection) -> None:
    """Make what `group` needs on a connection of ours: a temporary table, kept from all others."""
    connection.execute("pragma query_only = 0")  # which temporary tables are under, too
    connection.execute(f"create temp table if not exists {_GROUPS[5:]} (v, n)")


def group(run: Run, rows: Rows, column: str, encoding: str, *, numbers: bool) -> Groups:
    """Group the values of a column.

    Args:
        run: executes a query with parameters on a prepared connection, and returns its rows.
        rows: what to read.
        column: the name of the column.
        encoding: that of the database.
        numbers: whether to compute quartiles.

    Raises:
        OutOfTimeError, sqlite3.Error: by `run`.
    """
    v = rows.bytewise(column)
    run(f"delete from {_GROUPS}", ())
    # In this order the rowids are ranks: of a NULL, numbers, texts, blobs.
    grouped = f"select {v}, count(*) from {rows.source(column)} group by 1 order by 1"
    run(f"insert into {_GROUPS} {grouped}", rows.parameters)
    count, total, single, kinds, filled = map(int, run(_COUNTS, ())[0])
    nulls = next(
        (n for (n,) in run(f"select n from {_GROUPS} where rowid = 1 and v is null", ())), 0
    )
    first = 2 if nulls else 1
    ends = _at_quartiles(run, first, kinds, filled) if numbers and filled else None
    top, texts = (
        [(decoded(value, encoding) if isinstance(value, bytes) else value, n) for value, n in found]
        for found in (run(_TOP, ()), run(_TEXTS, (first + kinds,)))
    )
    return Groups(
        *(total, total - nulls, count - (nulls > 0), single - (nulls == 1)),
        top=tuple(top),
        quartiles=_quartiles(ends, filled) if ends else None,
        masks=masks_of(texts) if len(texts) <= MASKED_TEXTS else None,
    )


def _at_quartiles(run: Run, first: int, groups: int, numbers: int) -> list[Any]:
    """For each quartile the two numbers between which it is, from the groups in order."""
    wanted = [
        min(quartile * (numbers - 1) // 4 + further, numbers - 1)
        for quartile in (1, 2, 3)
        for further in (0, 1)
    ]
    found, before = [], 0
    for start in range(first, first + groups, _BLOCK):
        block = (start, min(start + _BLOCK, first + groups) - 1)
        rows = int(run(f"select sum(n) from {_GROUPS} where rowid between ? and ?", block)[0][0])
        inside = [at - before for at in wanted if before <= at < before + rows]
        if inside:
            values = run(f"select v, n from {_GROUPS} where rowid between ? and ?", block)
            upto = list(accumulate(n for _, n in values))
            found += [values[bisect_right(upto, at)][0] for at in inside]
        before += rows
    return found


def count_distinct(run: Run, rows: Rows, column: str, figures: Figures, *, few: bool) -> Groups:
    """Only count the different values of a column.

    Args:
        run: as for `group`.
        rows: all rows of the table.
        column: the name of the column.
        figures: of the column.
        few: whether few are expected, which are faster to look up than to sort.
    """
    v, source = rows.bytewise(column), rows.source(column)
    each = f"select {v} as v from {source} group by 1"
    sql = f"select count(distinct {v}) from {source}" if few else f"select count(v) from ({each})"
    distinct = int(run(sql, rows.parameters)[0][0])
    return Groups(figures.rows, figures.filled, distinct)


def group_unique(run: Run, rows: Rows, column: str, figures: Figures, *, numbers: bool) -> Groups:
    """The same for a column without duplicates, whose index has its values in order.

    Args:
        run: as for `group`.
        rows: all rows of the table.
        column: the name of the column.
        figures: of the column.
        numbers: whether it has numbers, of which to compute quartiles.
    """
    v, ends, filled = column_ref(column), list[Any](), figures.filled
    for quartile in (1, 2, 3) if numbers else ():
        sql = f"select {v} from {rows.source(column)} where +{v} < '' order by {v} limit 2 offset ?"
        found = run(sql, (*rows.parameters, quartile * (figures.numbers - 1) // 4))
        ends += (found[0][0], found[-1][0])
    quartiles = _quartiles(ends, figures.numbers) if numbers else None
    return Groups(figures.rows, filled, filled, filled, (), quartiles)


def _quartiles(ends: Sequence[Any], numbers: int) -> tuple[float, float, float]:
    def quartile(number: int) -> float:
        low, high = ends[2 * number - 2 : 2 * number]
        rest = number * (numbers - 1) % 4
        if not rest or low == high:
            return low  # type: ignore[no-any-return]  # an int or a float
        if isinstance(low, int) and isinstance(high, int):
            return (low * (4 - rest) + high * rest) / 4  # no digits of large integers are lost
        return float(low * (1 - rest / 4) + high * (rest / 4))

    return quartile(1), quartile(2), quartile(3)


def masks_of(texts: Iterable[tuple[str, int]]) -> Masks:
    """The masks of texts.

    Args:
        texts: each text, or its beginning, with its number of rows.
    """
    counts, rows, dates = Counter[str](), 0, 0
    for text, count in texts:
        rows += count
        counts[truncated(text).translate(_MASK)] += count
        dates += count if _is_date(text) else 0
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return Masks(rows, tuple(ordered[:TOP_MASKS]), dates)


_CACHED = 0x250


class _Mask(dict[int, str]):
    def __missing__(self, code: int) -> str:
        character = chr(code)
        letter = "A" if character.isupper() else "a"
        mask = "9" if character.isdigit() else letter if character.isalpha() else character
        if code < _CACHED:
            self[code] = mask
        return mask


_MASK = _Mask()


def _is_date(text: str) -> bool:
    if not _ISO_DATE.match(text):
        return False
    try:
        date.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


def truncated(text: str) -> str:
    """A text as displayed."""
    return text if len(text) <= MAX_DISPLAY_CHARS else text[:MAX_DISPLAY_CHARS] + TRUNCATION_MARK


def display_value(value: Any) -> Any:
    """A value of a cell as JSON has it: long texts truncated, infinity as text, NaN as None."""
    if isinstance(value, str):
        return truncated(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value

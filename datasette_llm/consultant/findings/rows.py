"""Families about rows and columns that repeat, or should tell rows apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import Any

from ..evidence import Aggregate, Condition, Duplicates, Evidence, Rows
from .column_values import ColumnValues
from .finding import Finding, quoted

MIN_ROWS = 10
# A key in which more than this share of the values repeats is none.
MAX_REPEATED = 0.05
# Of a table with a key only so many other columns make equal rows suspicious.
MIN_OTHERS = 4
# Columns depend on each other, so that more rows are equal than by chance alone.
MANY_TIMES = 10

Count = Callable[[Evidence], int]

_KEY_NAME = re.compile(r"^(id|key|code|uuid|guid|sku|isbn|email|e_mail|ref|reference)$")


def identical_columns(columns: Sequence[ColumnValues], count: Count) -> Iterator[Finding]:
    """Two columns have the same value in every row."""
    seen: set[str] = set()
    groups: defaultdict[Any, list[ColumnValues]] = defaultdict(list)
    for column in filter(_may_have_copies, columns):
        groups[column.nulls, column.distinct].append(column)
    for a, b in chain.from_iterable(combinations(group, 2) for group in groups.values()):
        if b.name in seen or a.name in seen or a.counts != b.counts:
            continue
        evidence = _equal_columns(a, b)
        rows = count(evidence)
        if rows < a.rows:
            continue
        seen.add(b.name)
        yield Finding(
            "identical_columns",
            (a.name, b.name),
            "info",
            f"{quoted(a.name)} and {quoted(b.name)} have the same value in all {{of}} rows.",
            rows,
            rows,
            evidence.model_copy(update={"expected": rows}),
        )


def duplicate_rows(
    columns: Sequence[ColumnValues], count: Count, *, whole: bool
) -> Iterator[Finding]:
    """Rows that are equal, in all columns or in all but the key.

    Args:
        columns: all columns of the table.
        count: counts evidence.
        whole: whether these are all columns, so that equal rows are equal indeed.
    """
    others = [each for each in columns if not each.primary_key]
    keyed = len(others) < len(columns)
    if not whole or not others or columns[0].rows < 2 or any(each.is_unique for each in others):
        return
    if keyed and (len(others) < MIN_OTHERS or not any(map(_tells_rows_apart, others))):
        return
    evidence = Duplicates(columns=tuple(each.name for each in others), expected=None)
    rows = count(evidence)
    of = columns[0].rows
    chance = _by_chance(others) if rows else 0
    if not rows or (chance > 1 and rows <= MANY_TIMES * chance):
        return
    but = " but for the key" if keyed else ""
    yield Finding(
        "duplicate_rows",
        (),
        "warning",
        f"{{rows}} repeat another row{but}.",
        rows,
        of,
        evidence.model_copy(update={"expected": rows}),
        exact=all(each.exact for each in columns),
    )


def duplicate_keys(
    columns: Sequence[ColumnValues], table: str, *, keyed: bool
) -> Iterator[Finding]:
    """A column that is named as a key, and nearly is one."""
    for at, column in enumerate(columns):
        if column.primary_key or column.unique or column.foreign_key or not column.is_whole:
            continue
        if not _is_named_as_key(column.name, table, first=at == 0 and not keyed):
            continue
        filled = column.rows - column.nulls
        rows = filled - column.distinct
        if filled < MIN_ROWS or not 0 < rows <= max(1, MAX_REPEATED * filled):
            continue
        yield Finding(
            "duplicate_keys",
            (column.name,),
            "problem",
            f"{quoted(column.name)} looks like a key, but {{rows}} repeat the one of another row.",
            rows,
            column.rows,
            Duplicates(columns=(column.name,), expected=rows),
            examples={v: n for v, n in column.counts.items() if n > 1},
        )


def candidate_key(columns: Sequence[ColumnValues], table: str, *, keyed: bool) -> Iterator[Finding]:
    """A table without a primary key has a column that could be one."""
    if keyed:
        return
    for at, column in enumerate(columns):
        if column.rows < MIN_ROWS or not column.is_unique or not column.is_whole or column.nulls:
            continue
        if not _is_named_as_key(column.name, table, first=at == 0):
            continue
        yield Finding(
            "candidate_key",
            (column.name,),
            "info",
            f"The table has no primary key; {quoted(column.name)} could be it, since it differs in "
            "all {of} rows.",
            column.rows,
            column.rows,
            Aggregate(function="distinct", column=column.name, expected=column.rows),
        )
        return


def _may_have_copies(column: ColumnValues) -> bool:
    # Two columns with few values may agree by chance.
    return column.rows >= MIN_ROWS and column.distinct >= 3 and column.is_whole


def _equal_columns(a: ColumnValues, b: ColumnValues) -> Rows:
    equal = Condition(column=a.name, op="=", other_column=b.name)
    null = tuple(Condition(column=each.name, op="is null") for each in (a, b))
    return Rows(any_of=((equal,), null), expected=None)


def _by_chance(columns: Sequence[ColumnValues]) -> float:
    """How many pairs of rows would be equal if columns had nothing to do with each other."""
    pairs = columns[0].rows ** 2 / 2
    for column in columns:
        pairs *= sum((rows / column.rows) ** 2 for rows in column.counts.values())
    return pairs


def _tells_rows_apart(column: ColumnValues) -> bool:
    return 2 * column.distinct > column.rows


def _is_named_as_key(name: str, table: str, *, first: bool) -> bool:
    short, of = name.casefold(), table.casefold()
    if _KEY_NAME.match(short):
        return True
    singular = of.removesuffix("s")
    names = {f"{each}{end}" for each in (of, singular) for end in ("_id", "id", "_code", "_key")}
    return short in names or (first and short.endswith(("_id", "_code", "_key")))

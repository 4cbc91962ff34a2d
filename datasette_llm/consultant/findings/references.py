"""Families about values that refer to rows of other tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..evidence import Orphans
from .column_values import ColumnValues
from .finding import Finding, quoted
from .rows import Count

MIN_ROWS = 5
MIN_DISTINCT = 3
# A reference of which more leads nowhere is none.
MAX_ORPHANS = 0.05


@dataclass(frozen=True, slots=True)
class OtherTable:
    """A table that the actor may view, whose key may be referred to.

    Attributes:
        name: its name.
        key: its primary key, which is one column.
    """

    name: str
    key: str


def orphans(
    columns: Sequence[ColumnValues], others: Sequence[OtherTable], count: Count
) -> Iterator[Finding]:
    """Declared references that lead to no row."""
    by_name = {other.name.casefold(): other for other in others}
    for column in columns:
        table, key = column.foreign_key or ("", None)
        other = by_name.get(table.casefold())
        if other is None or (key or other.key).casefold() != other.key.casefold():
            continue
        evidence = Orphans(
            column=column.name, other_table=other.name, other_column=other.key, expected=None
        )
        rows = count(evidence)
        if rows:
            yield Finding(
                "orphans",
                (column.name,),
                "problem",
                f"{quoted(column.name)} refers to no row of {quoted(other.name)} in {{rows}}.",
                rows,
                column.rows,
                evidence.model_copy(update={"expected": rows}),
                exact=column.exact,
            )


def likely_foreign_key(
    columns: Sequence[ColumnValues], others: Sequence[OtherTable], table: str, count: Count
) -> Iterator[Finding]:
    """Values that are keys of another table, whose name the column has."""
    named = {name: other for other in others for name in _names(other) if other.name != table}
    for column in columns:
        filled, other = column.rows - column.nulls, named.get(column.name.casefold())
        if other is None or column.foreign_key or column.primary_key or filled < MIN_ROWS:
            continue
        if column.distinct < MIN_DISTINCT:
            continue
        evidence = Orphans(
            column=column.name, other_table=other.name, other_column=other.key, expected=None
        )
        rows = count(evidence)
        if rows <= MAX_ORPHANS * filled:
            yield _likely(column, other, evidence, rows)


def _likely(column: ColumnValues, other: OtherTable, evidence: Orphans, rows: int) -> Finding:
    target = f"{quoted(other.name)}.{quoted(other.key)}"
    but = ", but in {rows}" if rows else ""
    return Finding(
        "likely_foreign_key",
        (column.name,),
        "problem" if rows else "info",
        f"{quoted(column.name)} refers to {target}{but}; no foreign key is declared.",
        rows,
        column.rows,
        evidence.model_copy(update={"expected": rows}),
        exact=column.exact,
    )


def _names(other: OtherTable) -> set[str]:
    """The names of columns that refer to a table."""
    table, key = other.name.casefold(), other.key.casefold()
    singular = {table, table.removesuffix("s"), table.removesuffix("es")}
    singular |= {f"{table.removesuffix('ies')}y"} if table.endswith("ies") else set()
    named = {
        f"{each}{joint}{end}" for each in singular for joint in ("_", "") for end in (key, "id")
    }
    # A key such as `iata` says itself what it is; `id` and `name` do not.
    return named | singular | ({key} if len(key) > 4 and key not in ("title", "label") else set())

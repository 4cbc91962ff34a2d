"""Families about values that are not there, or tell nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..evidence import Aggregate, Condition, Rows
from .column_values import ColumnValues
from .finding import Finding, quoted

MIN_ROWS = 10
# "none" and "other" may be answers; these may be too, where the values are codes or words.
_WEAK = frozenset(("none",))


def mostly_missing(column: ColumnValues) -> Iterator[Finding]:
    """At least half of the values are NULL or empty."""
    rows = column.nulls + column.counts.get("", 0)
    if column.rows < MIN_ROWS or 2 * rows < column.rows:
        return
    always = rows == column.rows
    yield Finding(
        "mostly_missing",
        (column.name,),
        "warning" if always else "info",
        f"{quoted(column.name)} is " + ("always empty: {rows}." if always else "empty in {rows}."),
        rows,
        column.rows,
        _any(column, Condition(column=column.name, op="is null"), _equal(column, "")),
        exact=column.exact,
    )


def disguised_missing(column: ColumnValues) -> Iterator[Finding]:
    """Texts such as N/A, or numbers such as -999, that stand for missing values."""
    found: dict[Any, int] = {**column.sentinels, **_missing_texts(column)}
    rows = sum(found.values())
    if not rows or (2 * rows > column.rows and not column.number_rows and not column.text_rows):
        return
    yield Finding(
        "disguised_missing",
        (column.name,),
        "problem" if column.number_rows > column.text_rows or column.sentinels else "warning",
        f"{quoted(column.name)} has values that stand for missing ones, but are no NULL: {{rows}}.",
        rows,
        column.rows,
        _any(column, *(_equal(column, value) for value in found), expected=rows),
        from_values=True,
        examples=found,
        exact=column.exact,
    )


def constant(column: ColumnValues) -> Iterator[Finding]:
    """All rows have the same value."""
    if column.rows < MIN_ROWS or not column.is_whole or column.nulls or column.distinct != 1:
        return
    yield Finding(
        "constant",
        (column.name,),
        "info",
        f"{quoted(column.name)} has the same value in all {{of}} rows.",
        column.rows,
        column.rows,
        Aggregate(function="distinct", column=column.name, expected=1),
        examples=column.counts,
    )


def _missing_texts(column: ColumnValues) -> dict[str, int]:
    if column.primary_key or column.unique:
        return {}
    numeric = column.number_rows > column.text_rows or bool(column.parsed_numbers)
    found = {}
    for text, rows in column.missing_texts.items():
        # An empty text is a missing value that everyone sees, except among numbers.
        if text.strip() or (numeric and column.number_rows):
            found[text] = rows
    if numeric or column.date_formats:
        found |= {v: n for v, n in column.texts.items() if v.strip().casefold() in _WEAK}
    elif _are_short_codes(column):
        # NA is Namibia and North America, UNK an airport.
        found = {v: n for v, n in found.items() if not v.isalpha() and len(v) > 1}
    return found


def _are_short_codes(column: ColumnValues) -> bool:
    """True if most texts have at most three characters, all letters in capitals."""
    codes = sum(n for v, n in column.texts.items() if len(v) <= 3 and v.isupper())
    return 2 * codes > column.text_rows


def _equal(column: ColumnValues, value: str | float) -> Condition:
    return Condition(column=column.name, op="=", value=value)


def _any(column: ColumnValues, *conditions: Condition, expected: int | None = None) -> Rows:
    if expected is None:
        expected = column.nulls + column.counts.get("", 0)
    return Rows(any_of=tuple((each,) for each in conditions), expected=expected)

"""A profile for people: a card for each column, with what it holds in words and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...sanitize import well_formed, without_controls

# More make a page slow, and too long to read; the JSON has all.
MAX_CARDS = 100
MAX_BARS = 6
# Of the tallest bar, in percent, so that a bar of few values can be seen.
_LEAST_PERCENT = 3


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart.

    Attributes:
        label: what it stands for.
        percent: its length, of the longest one's.
        width: its share of the width, in percent; None where all bars have one length of line.
        text: its figure.
    """

    label: str
    percent: float
    text: str
    width: float | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What a profile says of a column.

    Attributes:
        name: of the column.
        types: what it is declared as and what it holds.
        marks: such as "primary key".
        facts: pairs of label and text.
        spread: the bars of its quarters, from the least to the greatest number.
        ends: the numbers between which they are.
        values: the bars of its frequent values.
        description: from the metadata, or None.
        problem: why there are no figures, or None.
    """

    name: str
    types: str
    marks: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    spread: tuple[Bar, ...]
    ends: tuple[str, ...]
    values: tuple[Bar, ...]
    description: str | None
    problem: str | None


def cards(profile: Mapping[str, Any]) -> list[Card]:
    """The cards of a profile, of any version; at most `MAX_CARDS`.

    Args:
        profile: as JSON.
    """
    return [_card(column) for column in profile["columns"][:MAX_CARDS]]


def _card(column: Mapping[str, Any]) -> Card:
    ends = _ends(column)
    return Card(
        column["name"],
        _types(column),
        tuple(_marks(column)),
        tuple((label, text) for label, text in _facts(column) if text),
        _spread(ends),
        tuple(value_text(each) for each in ends),
        _values(column),
        column.get("description"),
        column.get("error"),
    )


def _types(column: Mapping[str, Any]) -> str:
    observed = {k: v for k, v in (column.get("observed_types") or {}).items() if k != "null"}
    declared = column.get("declared_type") or "no declared type"
    if not observed:
        return str(declared)
    if len(observed) == 1:
        (only,) = observed
        return declared if only == declared.casefold() else f"{declared}, holds {only}"
    held = ", ".join(f"{count:,} {name}" for name, count in observed.items())
    return f"{declared}, holds {held}"


def _marks(column: Mapping[str, Any]) -> Any:
    if column.get("primary_key"):
        yield "primary key"
    elif column.get("unique"):
        yield "unique"
    if column.get("foreign_key"):
        yield f"refers to {column['foreign_key']['table']}"
    if column.get("full_text_search"):
        yield "searchable"
    if column.get("generated"):
        yield "generated"


def _facts(column: Mapping[str, Any]) -> Any:
    rows, unit = column.get("rows"), column.get("unit")
    yield "Missing", _missing(column)
    low, high = column.get("min"), column.get("max")
    if low is not None:
        yield "Range", f"{value_text(low)} to {value_text(high)}" + (f" {unit}" if unit else "")
    if column.get("mean") is not None:
        yield "Mean", value_text(column["mean"])
    yield "Different values", _distinct(column.get("distinct"))
    if (length := column.get("length")) and low is None:
        yield "Length", f"{length['min']:,} to {length['max']:,}"
    if not column.get("exact", True) and rows is not None:
        yield "Looked at", f"{rows:,} rows"


def _missing(column: Mapping[str, Any]) -> str:
    share, rows = column.get("null_fraction"), column.get("rows")
    if share is None:
        return ""
    if not share:
        return "none"
    count = (column.get("observed_types") or {}).get("null")
    percent = f"{100 * share:.3g} %"
    return percent if count is None or rows is None else f"{count:,} of {rows:,} ({percent})"


def _distinct(distinct: Mapping[str, Any] | None) -> str:
    if not distinct:
        return ""
    if distinct.get("exact"):
        return f"{distinct['count']:,}"
    least, most = distinct.get("at_least"), distinct.get("at_most")
    if least is None:
        return "" if distinct.get("count") is None else f"about {distinct['count']:,}"
    return f"{least:,} to {most:,}" if most is not None else f"at least {least:,}"


def _ends(column: Mapping[str, Any]) -> list[float]:
    """The numbers between the quarters of a column of numbers; none where there is no spread."""
    ends = [column.get("min"), *(column.get("quartiles") or ()), column.get("max")]
    numbers = [each for each in ends if isinstance(each, int | float)]
    if len(numbers) != 5 or numbers != sorted(numbers) or numbers[0] == numbers[-1]:
        return []
    return numbers if math.isfinite(float(numbers[-1]) - float(numbers[0])) else []


def _spread(ends: Sequence[float]) -> tuple[Bar, ...]:
    """A bar for each quarter of the numbers: the narrower, the taller."""
    if not ends:
        return ()
    whole = float(ends[-1]) - float(ends[0])
    widths = [(high - low) / whole for low, high in pairwise(map(float, ends))]
    least = min(width for width in widths if width)
    return tuple(
        Bar(
            f"{value_text(low)} to {value_text(high)}",
            round(max(_LEAST_PERCENT, 100 * least / width), 1) if width else 100,
            "a quarter",
            round(100 * width, 2),
        )
        for (low, high), width in zip(pairwise(ends), widths, strict=True)
    )


def _values(column: Mapping[str, Any]) -> tuple[Bar, ...]:
    top = column.get("top_values") or ()
    rows = (column.get("grouped") or {}).get("rows")
    most = max((each["count"] for each in top), default=0)
    if most < 2:  # all values differ
        return ()
    return tuple(
        Bar(
            value_text(each["value"]),
            round(max(_LEAST_PERCENT, 100 * each["count"] / most), 1),
            f"{each['count']:,}" + (f" ({100 * each['count'] / rows:.3g} %)" if rows else ""),
        )
        for each in top[:MAX_BARS]
    )


def value_text(value: Any) -> str:
    """A value of a profile as text."""
    if value is None:
        return "null"
    if value == "":
        return "(empty)"
    if isinstance(value, int | float):
        form = "" if isinstance(value, int) else ".6g"
        return format(value, f",{form}" if abs(value) >= 10_000 else form)  # a year has no comma
    return without_controls(well_formed(str(value)))

"""Families about the range of values: what is far away, impossible or left out."""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise

from .. import text_forms
from ..evidence import Condition, Rows
from .column_values import ColumnValues
from .finding import Finding, quoted

MIN_OUTLIER_ROWS = 20
MIN_SERIES = 12
MAX_SORTED = 20_000
MIN_BOUNDED_ROWS = 4
# Up to this share of the numbers may be far away.
RARE = 0.01
# Tukey's far fences; of logarithms nearer ones, since these are less spread.
_FAR, _FAR_OF_LOGARITHMS = 3.0, 2.0

_WORD = r"(^|_){}(_|$)"
# The range that a quantity has, by names of columns.
_BOUNDS: tuple[tuple[re.Pattern[str], float, float, str], ...] = tuple(
    (re.compile(_WORD.format(f"({names})")), low, high, noun)
    for names, low, high, noun in (
        ("lat|latitude", -90, 90, "a latitude"),
        ("lon|lng|long|longitude", -180, 180, "a longitude"),
        ("percent|percentage|pct", 0, 100, "a percentage"),
        ("month", 1, 12, "a month"),
        ("minute", 0, 59, "a minute"),
        ("hour", 0, 23, "an hour"),
        ("age", 0, 130, "an age"),
        (
            "weight|height|width|length|depth|price|distance|area|population|quantity|qty|mass|"
            "duration|size",
            0,
            math.inf,
            "such a quantity",
        ),
    )
)
_PLACE = re.compile(_WORD.format("(lat|latitude|lon|lng|long|longitude)"))
_PAST = re.compile(_WORD.format("(birth|born|birthday|dob|birthdate|birth_date|hired|founded)"))
_TIME_NAME = re.compile(_WORD.format("(time)"))
_DAY_MASK = "9999-99-99"
_TIME_MASKS = ("99:99", "9:99", "99:99:99")


def outliers(column: ColumnValues) -> Iterator[Finding]:
    """Few numbers are far outside of the range of the others."""
    if column.primary_key or column.foreign_key or (column.is_unique and _is_counter(column)):
        return
    if _PLACE.search(_snake(column.name)):
        return  # cities lie in clusters
    if column.number_rows < MIN_OUTLIER_ROWS or len(column.numbers) < 10:
        return
    fences = _fences(column.numbers)
    if fences is None:
        return
    low, high = fences
    found = {v: n for v, n in column.numbers.items() if not low <= v <= high}
    rows = sum(found.values())
    if not rows or rows > max(2, RARE * column.number_rows):
        return
    yield Finding(
        "outliers",
        (column.name,),
        "warning",
        f"{quoted(column.name)} is far outside of the range of its other values in {{rows}}.",
        rows + sum(n for v, n in column.sentinels.items() if not low <= v <= high),
        column.rows,
        Rows(
            any_of=(
                (Condition(column=column.name, op="<", value=low),),
                (Condition(column=column.name, op=">", value=high),),
            ),
            expected=rows + sum(n for v, n in column.sentinels.items() if not low <= v <= high),
        ),
        from_values=True,
        examples=found,
        extremes=(min(column.numbers), max(column.numbers)),
        exact=column.exact,
        most=RARE,
    )


def impossible_values(column: ColumnValues, today: datetime.date) -> Iterator[Finding]:
    """Values that cannot be, by the name of the column or the form of its values."""
    yield from _out_of_bounds(column)
    yield from _impossible_texts(column)
    yield from _impossible_days(column, today)


def gaps(column: ColumnValues) -> Iterator[Finding]:
    """A regular series of days, months or years leaves some out."""
    if not column.exact or column.distinct < MIN_SERIES or column.distinct < 0.95 * column.rows:
        return
    found = _day_gap(column) or _year_gap(column)
    if found is None:
        return
    first, last, missing, noun = found
    yield Finding(
        "gaps",
        (column.name,),
        "info",
        f"{quoted(column.name)} has a row for nearly every {noun}, but none for {missing:,} of "
        "them.",
        None,
        column.rows,
        Rows(
            any_of=(
                (
                    Condition(column=column.name, op=">=", value=first),
                    Condition(column=column.name, op="<=", value=last),
                ),
            ),
            expected=0,
        ),
        from_values=True,
        hint=f"The first is {first}.",
    )


def _is_counter(column: ColumnValues) -> bool:
    """True if its numbers count the rows."""
    low, high = min(column.numbers, default=0), max(column.numbers, default=0)
    return high - low < 2 * len(column.numbers)


def _fences(numbers: Mapping[float, int]) -> tuple[float, float] | None:
    """The numbers beyond which others are far away; None where they are too alike."""
    # Of very many numbers some, since sorting them would keep other threads waiting.
    some = islice(numbers.items(), 0, None, len(numbers) // MAX_SORTED + 1)
    finite = {v: n for v, n in some if math.isfinite(v)}
    q1, q3 = _quartiles(finite)
    if q1 == q3:
        return None
    low, high = q1 - _FAR * (q3 - q1), q3 + _FAR * (q3 - q1)
    # Incomes and populations have no outliers where their logarithms have none.
    a, b = math.asinh(q1), math.asinh(q3)
    low_log, high_log = a - _FAR_OF_LOGARITHMS * (b - a), b + _FAR_OF_LOGARITHMS * (b - a)
    return min(low, _sinh(low_log)), max(high, _sinh(high_log))


def _sinh(value: float) -> float:
    return math.sinh(max(-700, min(700, value)))


def _quartiles(numbers: Mapping[float, int]) -> tuple[float, float]:
    total = sum(numbers.values())
    found, seen = [], 0
    targets = [0.25 * total, 0.75 * total]
    for value in sorted(numbers):
        seen += numbers[value]
        while targets and seen >= targets[0]:
            found.append(float(value))
            targets.pop(0)
    return (found[0], found[1]) if len(found) == 2 else (0.0, 0.0)


def _out_of_bounds(column: ColumnValues) -> Iterator[Finding]:
    name = _snake(column.name)
    for pattern, low, high, noun in _BOUNDS:
        if not pattern.search(name) or column.number_rows < MIN_BOUNDED_ROWS:
            continue
        found = {v: n for v, n in column.numbers.items() if not low <= v <= high}
        rows = sum(found.values())
        if 0 < 2 * rows < column.number_rows and rows <= max(2, 0.05 * column.number_rows):
            limits = [Condition(column=column.name, op="<", value=low)]
            if math.isfinite(high):
                limits.append(Condition(column=column.name, op=">", value=high))
            yield _impossible(
                column,
                f"{quoted(column.name)} has values that {noun} cannot have: {{rows}}.",
                tuple((each,) for each in limits),
                found,
                sum(n for v, n in column.sentinels.items() if not low <= v <= high),
            )
        return


def _impossible_texts(column: ColumnValues) -> Iterator[Finding]:
    """Texts that look like a day or a time, and are none."""
    for form, masks, test in (
        ("date", (_DAY_MASK,), lambda text: text_forms.date_format(text) is not None),
        ("time", _TIME_MASKS, text_forms.is_time),
    ):
        present = [each for each in masks if column.masks.get(each)]
        if sum(column.masks[each] for each in present) < 0.5 * column.text_rows:
            continue
        found = {
            v: n for v, n in column.texts.items() if text_forms.mask(v) in present and not test(v)
        }
        if not found or 2 * sum(found.values()) > column.text_rows:
            continue
        noun = "days that no calendar has" if form == "date" else "times that no clock shows"
        yield _impossible(
            column,
            f"{quoted(column.name)} has {noun}: {{rows}}.",
            tuple(
                (
                    Condition(column=column.name, op="mask is", value=each),
                    Condition(column=column.name, op="does not parse as", value=form),
                )
                for each in present
            ),
            found,
        )
    yield from _clock_numbers(column)


def _clock_numbers(column: ColumnValues) -> Iterator[Finding]:
    """Times as numbers, such as 1730, of which some are 2400."""
    numbers = column.numbers
    if not _TIME_NAME.search(_snake(column.name)) or len(numbers) < MIN_SERIES:
        return
    if not all(isinstance(v, int) and 0 <= v <= 2400 and v % 100 < 60 for v in numbers):
        return
    found = {v: n for v, n in numbers.items() if v >= 2400}
    if max(numbers) < 1300 or not found:
        return
    at_24 = Condition(column=column.name, op=">=", value=2400)
    sentence = f"{quoted(column.name)} has times at 24:00, which no clock shows: {{rows}}."
    yield _impossible(column, sentence, ((at_24,),), found)


def _impossible_days(column: ColumnValues, today: datetime.date) -> Iterator[Finding]:
    """Dates in a future that the column's name rules out, or in one that is far."""
    if column.masks.get(_DAY_MASK, 0) < 0.8 * max(column.text_rows, 1):
        return
    past = _PAST.search(_snake(column.name)) is not None
    latest = today.isoformat() if past else f"{today.year + 100}-01-01"
    days = {v: n for v, n in column.texts.items() if text_forms.date_format(v) == "YYYY-MM-DD"}
    found = {v: n for v, n in days.items() if v > latest or v < "1000-01-01"}
    if not found or 20 * sum(found.values()) > max(column.text_rows, 40):
        return
    mask = Condition(column=column.name, op="mask is", value=_DAY_MASK)
    form = Condition(column=column.name, op="parses as", value="date")
    yield _impossible(
        column,
        f"{quoted(column.name)} has days "
        + ("in the future" if past else "in a very far future or past")
        + ": {rows}.",
        (
            (mask, form, Condition(column=column.name, op=">", value=latest)),
            (mask, form, Condition(column=column.name, op="<", value="1000-01-01")),
        ),
        found,
    )


def _impossible(
    column: ColumnValues,
    sentence: str,
    any_of: tuple[tuple[Condition, ...], ...],
    found: Mapping[float, int] | Mapping[str, int],
    more_rows: int = 0,
) -> Finding:
    rows = sum(found.values()) + more_rows
    return Finding(
        "impossible_values",
        (column.name,),
        "problem",
        sentence,
        rows,
        column.rows,
        Rows(any_of=any_of, expected=rows),
        examples=found,
        extremes=(min(column.numbers), max(column.numbers)) if column.numbers else (),
        exact=column.exact,
    )


def _snake(name: str) -> str:
    """A name in small letters, its words joined by underscores."""
    return re.sub(r"\W+|(?<=[a-z])(?=[A-Z])", "_", name).casefold()


_STEPS = ((1, "day"), (7, "week"))


def _day_gap(column: ColumnValues) -> tuple[str, str, int, str] | None:
    """The first and the last missing day, how many are missing, and the step's name."""
    if not column.date_formats:
        return None
    days = [
        datetime.date.fromisoformat(text)
        for text in column.texts
        if text_forms.date_format(text) == "YYYY-MM-DD"
    ]
    if len(days) < max(MIN_SERIES, 0.95 * len(column.texts)):
        return None
    days.sort()
    for step, noun in _STEPS:
        found = _missing([day.toordinal() for day in days], step)
        if found:
            first, last, missing = found
            bounds = (datetime.date.fromordinal(each).isoformat() for each in (first, last))
            return (*bounds, missing, noun)  # type: ignore[return-value]  # the query gives these types
    return None


def _year_gap(column: ColumnValues) -> tuple[int, int, int, str] | None:
    if not re.search(_WORD.format("year"), _snake(column.name)):
        return None
    years = sorted(column.numbers)
    if not all(isinstance(year, int) and 1000 <= year <= 3000 for year in years):
        return None
    found = _missing([int(year) for year in years], 1)
    return (*found, "year") if found else None


def _missing(points: list[int], step: int) -> tuple[int, int, int] | None:
    """The first and the last point of the first gap, and how many points are missing in all."""
    steps = Counter(b - a for a, b in pairwise(points))
    if steps[step] < 0.9 * (len(points) - 1) or any(each % step for each in steps):
        return None
    missing = sum((each // step - 1) * times for each, times in steps.items())
    if not missing:
        return None
    a, b = next((a, b) for a, b in pairwise(points) if b - a > step)
    return a + step, b - step, missing

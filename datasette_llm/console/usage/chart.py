"""The chart of the Usage page: cost, calls, tokens or failures by time, in series."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...log.totals import Measure, Sums, dollars
from ...log.usage import Key
from ...log.usage_schema import DAY, following
from .window import written

Number = int | float
BarUnit = Literal["hour", "day", "week", "month"]

MAX_SERIES = 7
# The top of the axis is one of these times a power of ten; its half is a round number too.
STEPS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Series:
    """One of what the calls are grouped by, or the rest of them together.

    Attributes:
        name: its name; None for calls without one, and for the rest.
        is_rest: whether this is the sum of all the others.
        total: the sum of the values.
        values: one for each bar; None for bars with calls of which the value is unknown.
    """

    name: str | None
    is_rest: bool
    total: Number | None
    values: tuple[Number | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The numbers of the chart and of its table.

    Attributes:
        by: what makes a series; None for one of all calls.
        measure: what is measured; cost is in dollars.
        unit: how long a bar is.
        begins: when each bar begins.
        series: the largest first, the rest last.
    """

    by: str | None
    measure: Measure
    unit: BarUnit
    begins: tuple[datetime.datetime, ...]
    series: tuple[Series, ...]

    @classmethod
    def largest(cls, sizes: Mapping[Key, Sums], measure: Measure) -> list[Any]:
        """The names of the series, the largest first, of the sums of each."""
        ranked = sorted(
            (name for (name,) in sizes),
            key=lambda name: (-(measured(measure, sizes[name,]) or 0), name is None, name or ""),
        )
        # One more rather than a rest of one.
        return ranked if len(ranked) <= MAX_SERIES + 1 else ranked[:MAX_SERIES]

    @classmethod
    def of(
        cls,
        *,
        by: str | None,
        measure: Measure,
        unit: BarUnit,
        begins: Sequence[datetime.datetime],
        total: Mapping[Key, Sums],
        series: Mapping[Key, Sums],
        names: Sequence[Any],
        has_rest: bool,
    ) -> Chart:
        """The chart of some sums.

        Args:
            by: as the attribute.
            measure: likewise.
            unit: likewise.
            begins: likewise.
            total: the sums of all calls, by the number of the bar.
            series: the sums by the number of the bar and the name.
            names: of the series, the largest first.
            has_rest: whether there are other calls.
        """
        bars = range(len(begins))
        all_calls = [_value(measure, total.get((bar,))) for bar in bars]
        if by is None:
            return cls(by, measure, unit, tuple(begins), (_series(None, all_calls, measure),))
        shown = [
            _series(name, [_value(measure, series.get((bar, name))) for bar in bars], measure)
            for name in names
        ]
        if has_rest:
            known = [sum(each.values[bar] or 0 for each in shown) for bar in bars]
            rest = [
                None if value is None else _without(value, known[bar])
                for bar, value in enumerate(all_calls)
            ]
            shown.append(_series(None, rest, measure, is_rest=True))
        return cls(by, measure, unit, tuple(begins), tuple(shown))

    def sums(self) -> list[Number]:
        """The known sum of each bar, all series together."""
        return [
            sum(series.values[bar] or 0 for series in self.series)
            for bar in range(len(self.begins))
        ]

    def end(self, bar: int) -> datetime.datetime:
        """When a bar ends."""
        begin = self.begins[bar]
        return begin + 7 * DAY if self.unit == "week" else following(self.unit, begin)

    def payload(self) -> dict[str, Any]:
        """The chart as in JSON."""
        return {
            "by": self.by,
            "measure": self.measure,
            "unit": "dollars" if self.measure == "cost" else self.measure,
            "bar": self.unit,
            "begins": [written(begin) for begin in self.begins],
            "series": [
                {
                    "name": series.name,
                    "is_rest": series.is_rest,
                    "total": series.total,
                    "values": list(series.values),
                }
                for series in self.series
            ],
        }


def axis_steps(value: Number, measure: Measure) -> list[Number]:
    """The values at the axis from its top down, such that the top fits the largest value."""
    top = round_up(value)
    if measure != "cost" and top < 10:
        top = math.ceil(top)  # there is no half of a call
    return [top, top / 2, 0]


def round_up(value: Number) -> Number:
    """The next number that reads well at the top of an axis; 1 for zero."""
    if value <= 0:
        return 1
    exponent = math.floor(math.log10(value))
    magnitude: Number = 10**exponent if exponent >= 0 else 1 / 10**-exponent
    return next(step * magnitude for step in (*STEPS, 20) if step * magnitude >= value)


def measured(measure: Measure, sums: Sums) -> Number | None:
    """The value of a measure; a cost in dollars."""
    match measure:
        case "cost":
            return dollars(sums.cost_nanodollars)
        case "tokens":
            return sums.tokens
        case "failures":
            return sums.failures
        case "calls":
            return sums.calls


def _value(measure: Measure, sums: Sums | None) -> Number | None:
    return 0 if sums is None else measured(measure, sums)


def _without(value: Number, known: Number) -> Number:
    rest = value - known
    return max(0, rest) if isinstance(value, int) else max(0.0, round(rest, 9))


def _series(
    name: str | None, values: Sequence[Number | None], measure: Measure, *, is_rest: bool = False
) -> Series:
    known = [value for value in values if value is not None]
    total = sum(known) if known else None
    if total is not None and measure == "cost":
        total = round(total, 9)
    return Series(name, is_rest, total, tuple(values))

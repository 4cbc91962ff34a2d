"""The chart of the call log: calls, tokens or cost per day, in series."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...log.totals import By, Days, Measure, dollars

Number = int | float

MAX_SERIES = 7
# The top of the axis is one of these times a power of ten; its half is a round number too.
STEPS = (1, 2, 4, 6, 8, 10, 20)


@dataclass(frozen=True, slots=True)
class Series:
    """One purpose or model, or the rest of them together.

    Attributes:
        name: its name; None for calls without one, and for the rest.
        is_rest: whether this is the sum of all the others.
        total: the sum of the values.
        values: one for each day; None for days with calls of which the value is unknown.
    """

    name: str | None
    is_rest: bool
    total: Number | None
    values: tuple[Number | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The numbers of the chart and of its table.

    Attributes:
        by: what makes a series.
        measure: what is measured; cost is in dollars.
        days: the days, in order.
        series: the largest first, the rest last.
        earlier: whether there are calls before the first day.
    """

    by: By
    measure: Measure
    days: tuple[datetime.date, ...]
    series: tuple[Series, ...]
    earlier: bool

    @classmethod
    def of(cls, totals: Days, by: By, measure: Measure) -> Chart:
        """The chart of some totals of this measure; slow where there are many series."""
        sums: Counter[str | None] = Counter()
        for by_name in totals.days.values():
            sums.update({name: value or 0 for name, value in by_name.items()})
        ranked = sorted(sums, key=lambda name: (-sums[name], name is None, name or ""))
        # One more rather than a rest of one.
        shown = len(ranked) if len(ranked) <= MAX_SERIES + 1 else MAX_SERIES
        series = [_series(totals.days, measure, {name}, name) for name in ranked[:shown]]
        if ranked[shown:]:
            series.append(_series(totals.days, measure, set(ranked[shown:]), None, is_rest=True))
        return cls(by, measure, tuple(totals.days), tuple(series), totals.earlier)

    def day_totals(self) -> list[Number]:
        """The known sum of each day, all series together."""
        return [
            sum(series.values[index] or 0 for series in self.series)
            for index in range(len(self.days))
        ]

    def payload(self) -> dict[str, Any]:
        """The chart as in JSON."""
        return {
            "by": self.by,
            "measure": self.measure,
            "unit": "dollars" if self.measure == "cost" else self.measure,
            "days": [day.isoformat() for day in self.days],
            "series": [
                {
                    "name": series.name,
                    "is_rest": series.is_rest,
                    "total": series.total,
                    "values": list(series.values),
                }
                for series in self.series
            ],
            "earlier_calls_not_shown": self.earlier,
        }


def round_up(value: Number) -> Number:
    """The next number that reads well at the top of an axis; 1 for zero."""
    if value <= 0:
        return 1
    exponent = math.floor(math.log10(value))
    magnitude: Number = 10**exponent if exponent >= 0 else 1 / 10**-exponent
    return next(step * magnitude for step in STEPS if step * magnitude >= value)


def _series(
    days: Mapping[datetime.date, Mapping[str | None, int | None]],
    measure: Measure,
    names: set[str | None],
    name: str | None,
    *,
    is_rest: bool = False,
) -> Series:
    found = [[day[each] for each in names & day.keys()] for day in days.values()]
    total = _sum(measure, [value for values in found for value in values])
    return Series(name, is_rest, total, tuple(_sum(measure, values) for values in found))


def _sum(measure: Measure, values: Sequence[int | None]) -> Number | None:
    """The sum of the known values; None where there are only unknown ones."""
    known = [value for value in values if value is not None]
    if values and not known:
        return None
    return dollars(sum(known)) if measure == "cost" else sum(known)

"""The chart of the record: calls, tokens or cost per day, as SVG that needs no script.

The drawing has no text in it but its title and description, so that it stretches to any width;
what stands at its sides is the page's. Colours are the style sheet's, by class.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from ...log.totals import Aggregate, By, Days, dollars

Measure = Literal["calls", "tokens", "cost"]
Number = int | float

MAX_SERIES = 7
HEIGHT = 100
BAR_WIDTH = 0.8
# Half of it stands at the axis too, and is whole as well.
STEPS = (1, 2, 4, 6, 8, 10, 20)

_MEASURES: Mapping[str, Callable[[Aggregate], int | None]] = {
    "calls": lambda tally: tally.calls,
    "tokens": lambda tally: tally.tokens,
    "cost": lambda tally: tally.cost_nanodollars,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One purpose or model, or the rest of them together.

    Attributes:
        name: its name; None for calls without one, and for the rest.
        is_rest: whether this is all the others together.
        total: the sum of the values.
        values: one for each day; None where there were calls of which nothing is known.
    """

    name: str | None
    is_rest: bool
    total: Number | None
    values: tuple[Number | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn, and what stands in the table beside it.

    Attributes:
        by: what makes a series.
        measure: what is measured; cost is in dollars.
        days: the days, from the first to the last.
        series: the largest first, the rest last.
        earlier: whether there are calls before the first day that are not shown.
    """

    by: By
    measure: Measure
    days: tuple[datetime.date, ...]
    series: tuple[Series, ...]
    earlier: bool

    @classmethod
    def of(cls, totals: Days, by: By, measure: Measure) -> Chart:
        """The chart of some totals."""
        sums: Counter[str | None] = Counter()
        for tallies in totals.days.values():
            sums.update({name: _MEASURES[measure](tally) or 0 for name, tally in tallies.items()})
        ranked = sorted(sums, key=lambda name: (-sums[name], name is None, name or ""))
        # The last place is not given to a rest of one.
        shown = len(ranked) if len(ranked) <= MAX_SERIES + 1 else MAX_SERIES
        series = [_series(totals, measure, {name}, name) for name in ranked[:shown]]
        if ranked[shown:]:
            series.append(_series(totals, measure, set(ranked[shown:]), None, is_rest=True))
        return cls(by, measure, tuple(totals.days), tuple(series), totals.earlier)

    @property
    def top(self) -> Number:
        """The value at the upper edge."""
        return round_up(max(self.day_totals(), default=0))

    def day_totals(self) -> list[Number]:
        """What is known of each day, all series together."""
        return [
            sum(series.values[place] or 0 for series in self.series)
            for place in range(len(self.days))
        ]

    def payload(self) -> dict[str, Any]:
        """The chart as it stands in JSON."""
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


def _series(
    totals: Days,
    measure: Measure,
    names: set[str | None],
    name: str | None,
    *,
    is_rest: bool = False,
) -> Series:
    whole, values = Aggregate(), []
    for tallies in totals.days.values():
        day = Aggregate()
        for each in names & tallies.keys():
            day.add(tallies[each])
        values.append(_value(measure, day))
        whole.add(day)
    return Series(name, is_rest, _value(measure, whole), tuple(values))


def _value(measure: Measure, tally: Aggregate) -> Number | None:
    if not tally.calls:
        return 0
    value = _MEASURES[measure](tally)
    return dollars(value) if measure == "cost" else value


def round_up(value: Number) -> Number:
    """The next number that looks well at an axis; 1 for nothing."""
    if value <= 0:
        return 1
    exponent = math.floor(math.log10(value))
    magnitude: Number = 10**exponent if exponent >= 0 else 1 / 10**-exponent
    return next(step * magnitude for step in STEPS if step * magnitude >= value)


def svg(chart: Chart, description: str, label: Callable[[Series, int], str]) -> str:
    """The drawing, as markup that is safe to put into a page.

    Args:
        chart: what to draw.
        description: what it shows, for those who do not see it.
        label: what a bar shows: its series, and the place of its day.
    """
    width = max(1, len(chart.days))
    root = ElementTree.Element(
        "svg",
        {
            "class": "llm-chart",
            "viewBox": f"0 0 {width} {HEIGHT}",
            "preserveAspectRatio": "none",
            "role": "img",
            "aria-labelledby": "llm-chart-title llm-chart-description",
        },
    )
    _text(root, "title", f"{chart.measure.capitalize()} per day by {chart.by}", "llm-chart-title")
    _text(root, "desc", description, "llm-chart-description")
    for height in (0, HEIGHT / 2, HEIGHT):
        line = {"x1": "0", "x2": f"{width}", "y1": f"{height:g}", "y2": f"{height:g}"}
        ElementTree.SubElement(root, "line", line)
    top = chart.top
    for place in range(len(chart.days)):
        _draw_day(root, chart, place, top, label)
    # HTML knows no empty elements in this form, so each is closed by a tag.
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _draw_day(
    root: ElementTree.Element,
    chart: Chart,
    place: int,
    top: Number,
    label: Callable[[Series, int], str],
) -> None:
    bottom = float(HEIGHT)
    for number, series in enumerate(chart.series):
        height = HEIGHT * (series.values[place] or 0) / top
        if not height:
            continue
        bottom -= height
        bar = {
            "class": f"llm-series-{'rest' if series.is_rest else number}",
            "x": f"{place + (1 - BAR_WIDTH) / 2:g}",
            "y": f"{bottom:.3f}",
            "width": f"{BAR_WIDTH:g}",
            "height": f"{height:.3f}",
        }
        _text(ElementTree.SubElement(root, "rect", bar), "title", label(series, place))


def _text(parent: ElementTree.Element, tag: str, text: str, name: str | None = None) -> None:
    ElementTree.SubElement(parent, tag, {"id": name} if name else {}).text = text

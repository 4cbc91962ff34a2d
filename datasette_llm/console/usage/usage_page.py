"""The template context of the Usage page: texts, numbers and links."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ...log.queries import CLOSED, RUNNING
from ...log.totals import FAILURES, Measure, Sums
from ...log.usage import Key
from ...log.usage_schema import Unit, following
from ..formatting import UNKNOWN, amount, axis, change, counted, dollars, duration, label_of, number
from ..log.list_request import NONE
from ..navigation import LOG, USAGE
from .chart import Chart, Number, Series, axis_steps
from .request import FILTERS, TIMES, UsageRequest
from .window import LABELS as PERIODS
from .window import Window, written

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .figures import Figures

Row = dict[str, Any]

MEASURES: dict[Measure, str] = {
    "cost": "Cost",
    "calls": "Calls",
    "tokens": "Tokens",
    "failures": "Failures",
}
NAMES = {
    "model": "model",
    "purpose": "purpose",
    "actor": "actor",
    "provider": "provider",
    "outcome": "outcome",
    "failure_kind": "kind of failure",
    "month": "month",
    "day": "day",
    "hour": "hour",
}
NOT_IN_LOG = ("provider",)


class _Links:
    """The addresses of calls and of other views of the page."""

    def __init__(self, datasette: Datasette, request: UsageRequest, window: Window) -> None:
        self._datasette = datasette
        self._request = request
        self._window = window

    def usage(self, **changes: str | None) -> str:
        """This page with other arguments."""
        return address(self._datasette, USAGE, self._request.arguments(**changes))

    def calls(
        self,
        values: Mapping[str, Any],
        begin: datetime.datetime | None = None,
        end: datetime.datetime | None = None,
    ) -> str:
        """The calls with these values, within the filter and the time of the page.

        What the call log has no filter for, another view of this page divides into what it has.
        """
        filters: dict[str, str | None] = {
            name: self._request.given[name] for name in FILTERS if name in self._request.given
        }
        filters.update({name: self._written(name, value) for name, value in values.items()})
        since, until = self._bounds(begin, end)
        unknown = [name for name in NOT_IN_LOG if name in filters]
        if unknown or None in filters.values():
            given = {name: value for name, value in filters.items() if value is not None}
            return self.usage(
                **given, since=since, until=until, period=None, by="model", and_=None, tag_key=None
            )
        times = {"since": since} | ({"until": until} if until else {})
        return address(self._datasette, LOG, {n: v or NONE for n, v in filters.items()} | times)

    def _bounds(
        self, begin: datetime.datetime | None, end: datetime.datetime | None
    ) -> tuple[str, str | None]:
        since = max(self._window.begin, begin or self._window.begin)
        ends = [each for each in (end, self._window.end) if each is not None]
        return written(since), written(min(ends)) if ends else None

    def _written(self, name: str, value: Any) -> str | None:
        if name == "outcome":
            return value or RUNNING
        if name == "tag":
            return None if value is None else f"{self._request.tag_key}:{value}"
        if name == "failure_kind":
            return value or None
        return value or NONE


def address(datasette: Datasette, path: str, arguments: Mapping[str, str]) -> str:
    """An address with arguments."""
    query = urlencode(arguments, errors="replace")
    return str(datasette.urls.path(f"{path}?{query}" if query else path))


def shown(datasette: Datasette, request: UsageRequest, payload: Row, figures: Figures) -> Row:
    """The context of the page."""
    links = _Links(datasette, request, figures.window)
    arguments = request.arguments()
    return {
        "title": "Usage",
        "payload": payload,
        "covered": _covered(figures.window),
        "periods": _switches(links, "period", PERIODS, request.period),
        "measures": _switches(links, "measure", MEASURES, payload["measure"]),
        "bys": _bys(links, request, 0),
        "ands": _bys(links, request, 1),
        "tiles": _tiles(links, payload),
        "outcomes": [
            (name, number(count), links.calls({"outcome": name}))
            for name, count in payload["totals"]["outcomes"].items()
            if count
        ],
        "compared": _compared(payload["before"]),
        "chart": _chart(links, request, figures),
        "columns": [_name(request, name) for name in request.by],
        "rows": [
            _row(links, request, *each, each_row)
            for each, each_row in zip(figures.groups, payload["rows"], strict=False)
        ],
        "more": payload["more"] and _more(links, request, payload["more"]),
        "fields": fields(arguments, payload["choices"]),
        "active": _active(links, request),
        "json_address": address(datasette, f"{USAGE}.json", arguments),
        "csv_address": address(datasette, f"{USAGE}.csv", arguments),
        "calls_address": links.calls({}),
    }


def refused(datasette: Datasette, given: Mapping[str, str], choices: Row, message: str) -> Row:
    """The context for an invalid request: the message, and the form with its values."""
    return {
        "title": "Usage",
        "refused": message,
        "fields": fields(given, choices),
        "reset": address(datasette, USAGE, {}),
    }


# The form


def fields(given: Mapping[str, str], choices: Mapping[str, Row]) -> list[Row]:
    """The fields of the form.

    Args:
        given: the arguments of the address.
        choices: as in the payload.
    """
    made = []
    for name in FILTERS:
        value = given.get(name, "")
        if name == "tag":
            made.append(_field(name, "text", value))
            continue
        if name in CLOSED:
            options = [(each, label_of(name, each)) for each in CLOSED[name]]
            made.append(_select(name, value, options))
            continue
        known = choices.get(name, {"values": [], "more": False, "none": False})
        options = [(NONE, "none")] if known["none"] else []
        options += [(each, each) for each in known["values"]]
        if known["more"]:
            made.append(_field(name, "text", value) | {"options": options})
        else:
            made.append(_select(name, value, options))
    periods = list(PERIODS.items())
    made.append(_select("period", given.get("period", ""), periods, any_of="30 days, or dates"))
    for name in ("since", "until"):
        value = given.get(name, "")
        is_date = not value or re.fullmatch(r"\d{4}-\d\d-\d\d", value)
        made.append(_field(name, "date" if is_date else "text", value))
    made.append(_select("by", given.get("by", "model"), _by_options(), any_of=None))
    made.append(_select("and", given.get("and", ""), _by_options(), any_of="nothing else"))
    made.append(_field("tag_key", "text", given.get("tag_key", "")))
    measures = list(MEASURES.items())
    made.append(_select("measure", given.get("measure", ""), measures, any_of="Cost, if known"))
    made.append(_field("limit", "text", given.get("limit", "")))
    return made


def _by_options() -> list[tuple[str, str]]:
    return [*NAMES.items(), ("tag", "tag, by its key")]


def _field(name: str, kind: str, value: str) -> Row:
    labels = {
        "failure_kind": "Kind of failure",
        "tag": "Tag, such as job:12",
        "until": "Until, not including",
        "limit": "Rows, 500 at most",
        "and": "And by",
        "tag_key": "Key of the tag",
    }
    label = labels.get(name, name.capitalize())
    return {"name": name, "label": label, "kind": kind, "value": value, "options": []}


def _select(
    name: str, value: str, options: Sequence[tuple[str, str]], any_of: str | None = "any"
) -> Row:
    first = [("", any_of)] if any_of is not None else []
    unknown = [] if value in dict([*first, *options]) else [(value, value)]
    return _field(name, "select", value) | {"options": [*first, *options, *unknown]}


def _active(links: _Links, request: UsageRequest) -> list[Row]:
    """The filters that are set, each with the address without it."""
    return [
        {
            "label": f"{NAMES[name].capitalize()}: {label_of(name, request.given[name])}",
            "address": links.usage(**{name: None}),
        }
        for name in FILTERS
        if name in request.given
    ]


# The figures


def _covered(window: Window) -> str:
    since, until = written(window.begin).replace("T", " "), window.end
    if until is None:
        return f"since {since} (UTC)"
    return f"from {since} until {written(until).replace('T', ' ')} (UTC)"


def _switches(
    links: _Links, name: str, labels: Mapping[Any, str], current: str | None
) -> list[Row]:
    dates = {"since": None, "until": None} if name == "period" else {}
    return [
        {
            "label": label,
            "address": links.usage(**{name: value}, **dates),
            "current": value == current,
        }
        for value, label in labels.items()
    ]


def _bys(links: _Links, request: UsageRequest, place: int) -> list[Row]:
    """The links that change what the calls are grouped by first, or besides."""
    other = request.by[1 - place] if len(request.by) > 1 - place else None
    now = request.by[place] if len(request.by) > place else None
    name = ("by", "and_")[place]
    choices: list[tuple[str | None, str]] = [
        (each, label)
        for each, label in NAMES.items()
        if each != other and not {each, other} <= set(TIMES)
    ]
    if place == 1:
        choices.insert(0, (None, "nothing else"))
    if now == "tag":
        choices.append(("tag", f"tag {request.tag_key}"))
    return [
        {
            "label": label,
            "address": f"{links.usage(**{name: each})}#groups",
            "current": each == now,
        }
        for each, label in choices
    ]


def _tiles(links: _Links, payload: Row) -> list[Row]:
    found = payload["totals"]
    before = (payload["before"] or {}).get("totals") or {}
    month = payload["month"]
    unpriced = found["calls_without_cost"]
    share = f"{found['failures'] / found['calls']:.1%}" if found["calls"] else ""
    shown = [
        (
            "Cost",
            dollars(found["cost_dollars"]),
            f"and {counted(unpriced, 'call')} at an unknown price" if unpriced else "",
            "cost_dollars",
            links.calls({}),
        ),
        ("Calls", number(found["calls"]), "each attempt counts", "calls", links.calls({})),
        ("Failures", number(found["failures"]), share, "failures", _failures(links, found)),
        ("Tokens in", number(found["input_tokens"]), "", "input_tokens", links.calls({})),
        ("Tokens out", number(found["output_tokens"]), "", "output_tokens", links.calls({})),
        ("Median latency", duration(found["median_ms"]), "", "median_ms", links.calls({})),
        ("95th percentile", duration(found["p95_ms"]), "of latency", "p95_ms", links.calls({})),
        (
            "First chunk",
            duration(found["first_chunk_median_ms"]),
            "the median",
            "first_chunk_median_ms",
            links.calls({}),
        ),
    ]
    tiles = [
        {
            "label": label,
            "value": value,
            "note": note,
            "change": change(found[name], before.get(name)),
            "address": target if found["calls"] else None,
        }
        for label, value, note, name, target in shown
    ]
    return [*tiles, _forecast(links, month)]


def _forecast(links: _Links, month: Row) -> Row:
    spent, unpriced = dollars(month["cost_dollars"]), month["calls_without_cost"]
    note = f"at the pace of the last 7 days; {spent or UNKNOWN} so far"
    if unpriced:
        note += f", and {counted(unpriced, 'call')} at an unknown price"
    target = links.usage(period="month", since=None, until=None)
    value = dollars(month["forecast_dollars"])
    label = f"Forecast for {month['month']}"
    return {"label": label, "value": value, "note": note, "change": "", "address": target}


def _failures(links: _Links, found: Row) -> str:
    """The failed calls; by outcome where there are two, as the call log has one at a time."""
    failed = [name for name in FAILURES if found["outcomes"][name]]
    if len(failed) == 1:
        return links.calls({"outcome": failed[0]})
    return links.usage(by="outcome", and_="failure_kind", tag_key=None)


def _compared(before: Row | None) -> str:
    if before is None:
        return ""
    when = f"{before['since']} until {before['until'][:16]}".replace("T", " ")
    if before["totals"] is None:
        return f"There is nothing to compare with, {when}: {before['why']}."
    return f"Changes are against {when}."


# The table


def _name(request: UsageRequest, name: str) -> str:
    return f"Tag {request.tag_key}" if name == "tag" else NAMES[name].capitalize()


def _row(links: _Links, request: UsageRequest, key: Key, sums: Sums, figures: Row) -> Row:
    values = dict(zip(request.by, key, strict=True))
    unit: Unit | None = next((each for each in ("month", "day", "hour") if each in values), None)
    begin = values.pop(unit, None) if unit else None
    end = following(unit, begin) if unit and begin else None
    calls = links.calls(values, begin, end)
    failed = links.calls(values | {"outcome": "error"}, begin, end)
    if "outcome" in values or sums.lost:
        failed = calls if "outcome" in values else _by_outcome(links, values)
    before = figures.get("before") or {}
    unpriced = figures["calls_without_cost"]
    return {
        "names": [_cell(request, name, value) for name, value in zip(request.by, key, strict=True)],
        "address": calls,
        "calls": number(figures["calls"]),
        "calls_change": change(figures["calls"], before.get("calls")),
        "failures": number(figures["failures"]),
        "failures_address": failed if figures["failures"] else None,
        "input": number(figures["input_tokens"]),
        "output": number(figures["output_tokens"]),
        "cost": dollars(figures["cost_dollars"]),
        "cost_change": change(figures["cost_nanodollars"], before.get("cost_nanodollars")),
        "unpriced": f"{number(unpriced)} unpriced" if unpriced else "",
        "median": duration(figures["median_ms"]),
        "p95": duration(figures["p95_ms"]),
        "first_chunk": duration(figures["first_chunk_median_ms"]),
    }


def _by_outcome(links: _Links, values: Mapping[str, Any]) -> str:
    given = {name: value or NONE for name, value in values.items() if name in FILTERS}
    return links.usage(**given, by="outcome", and_="failure_kind", tag_key=None)


def _cell(request: UsageRequest, name: str, value: Any) -> str:
    if name in TIMES:
        return f"{value:%Y-%m}" if name == "month" else written(value).replace("T", " ")
    if name == "outcome":
        return value or RUNNING
    return label_of(name, value) if value else f"no {NAMES.get(name, name)}"


def _more(links: _Links, request: UsageRequest, more: Row) -> Row:
    return {
        "text": f"and {number(more['count'])} more, together",
        "calls": number(more["calls"]),
        "failures": number(more["failures"]),
        "input": number(more["input_tokens"]),
        "output": number(more["output_tokens"]),
        "cost": dollars(more["cost_dollars"]),
        "median": duration(more["median_ms"]),
        "p95": duration(more["p95_ms"]),
        "first_chunk": duration(more["first_chunk_median_ms"]),
        "address": f"{links.usage(limit='500')}#groups" if request.limit < 500 else None,
    }


# The chart


def _chart(links: _Links, request: UsageRequest, figures: Figures) -> Row:
    chart = figures.chart
    names = [_series_name(request, chart, series) for series in chart.series]
    sums = chart.sums()
    steps = axis_steps(max(sums, default=0), chart.measure)
    return {
        "heading": f"{MEASURES[chart.measure]} by {chart.unit}"
        + (f" and {NAMES.get(chart.by, chart.by)}" if chart.by else ""),
        "steps": [axis(chart.measure, step) for step in steps],
        "bars": _bars(links, request, chart, names, sums, steps[0]),
        "legend": _legend(links, chart, names),
        "names": names,
        "unit": chart.unit.capitalize(),
        "empty": not any(sums),
        "table": [
            {
                "when": _when(chart, bar),
                "values": [amount(chart.measure, series.values[bar]) for series in chart.series],
            }
            for bar in range(len(chart.begins))
        ],
        "description": _description(chart, names, sums),
    }


def _series_name(request: UsageRequest, chart: Chart, series: Series) -> str:
    if series.is_rest:
        return "all others"
    if chart.by is None:
        return "all calls"
    return _cell(request, chart.by, series.name)


def _description(chart: Chart, names: Sequence[str], sums: Sequence[Number]) -> str:
    most = max(range(len(sums)), key=sums.__getitem__)
    parts = [
        f"{name}: {amount(chart.measure, series.total) or UNKNOWN}"
        for name, series in zip(names, chart.series, strict=True)
    ]
    return (
        f"From {_when(chart, 0)} to {_when(chart, len(sums) - 1)}. "
        f"The most at {_when(chart, most)}: {amount(chart.measure, sums[most])}. "
        f"In total {'; '.join(parts)}. The table below has all the numbers."
    )


def _when(chart: Chart, bar: int) -> str:
    begin = chart.begins[bar]
    match chart.unit:
        case "hour":
            return f"{begin:%Y-%m-%d %H}:00"
        case "month":
            return f"{begin:%Y-%m}"
        case "week":
            return f"week of {begin:%Y-%m-%d}"
        case "day":
            return f"{begin:%Y-%m-%d}"


def _labels(chart: Chart, bar: int) -> tuple[str, str]:
    """What stands below a bar; in the second line what the bars after it have in common."""
    begin = chart.begins[bar]
    before = chart.begins[bar - 1] if bar else None
    match chart.unit:
        case "hour":
            new = before is None or before.date() != begin.date()
            return f"{begin:%H}", f"{begin:%b} {begin.day}" if new else ""
        case "month":
            new = before is None or before.year != begin.year
            return f"{begin:%b}", f"{begin:%Y}" if new else ""
        case _:
            new = before is None or before.month != begin.month
            return f"{begin.day}", f"{begin:%b}" if new else ""


def _bars(
    links: _Links,
    request: UsageRequest,
    chart: Chart,
    names: Sequence[str],
    sums: Sequence[Number],
    top: Number,
) -> list[Row]:
    """One bar for each time: a link to its calls, a text, and a part for each series."""
    bars = []
    last = len(chart.begins) - 1
    for bar, begin in enumerate(chart.begins):
        values = [series.values[bar] for series in chart.series]
        known = any(value is not None for value in values) or not values
        text = amount(chart.measure, sums[bar]) if known else UNKNOWN
        label, common = _labels(chart, bar)
        bars.append(
            {
                # The last bar has the calls of clocks that are ahead, too.
                "address": links.calls({}, begin, chart.end(bar) if bar < last else None),
                "text": f"{_when(chart, bar)}: {text}",
                "label": label,
                "common": common,
                "parts": [
                    {
                        "style": _style(chart.series[place], place),
                        "height": f"{100 * value / top:.4g}",
                        "title": f"{names[place]}: {amount(chart.measure, value)}",
                    }
                    for place, value in enumerate(values)
                    if value
                ],
            }
        )
    return bars


def _style(series: Series, place: int) -> str:
    return f"llm-series-{'rest' if series.is_rest else place}"


def _legend(links: _Links, chart: Chart, names: Sequence[str]) -> list[Row]:
    return [
        {
            "name": name,
            "style": _style(series, place),
            "total": amount(chart.measure, series.total) or UNKNOWN,
            "address": None
            if series.is_rest or chart.by is None
            else links.calls({chart.by: series.name}),
        }
        for place, (series, name) in enumerate(zip(chart.series, names, strict=True))
    ]

"""How the page of the list shows its payload: words, numbers and links for the template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ...log.queries import RUNNING
from ...log.schema import OUTCOMES
from ..navigation import LOG
from .chart import Chart, Series, svg
from .formatting import UNKNOWN, amount, axis, dollars, duration, moment, number, waited
from .list_request import NONE, OPTIONS, LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette

Row = dict[str, Any]

LABELS = {
    "model": "Model",
    "purpose": "Purpose",
    "actor": "Actor",
    "outcome": "Outcome",
    "group": "Group",
    "since": "Since",
    "until": "Until, not including",
}
MEASURES = {"calls": "Calls", "tokens": "Tokens", "cost": "Cost"}


def list_context(datasette: Datasette, wanted: LogListRequest, payload: Row) -> Row:
    """What the template of the list needs."""
    query = urlencode(wanted.arguments())
    older = wanted.arguments(next=payload["next"]) if payload["next"] else None
    return {
        "payload": payload,
        "fields": fields(wanted.arguments(), payload["choices"]),
        "hidden": _hidden(wanted.arguments()),
        "reset": list_address(datasette, {}) if payload["filter"] else None,
        "rows": [row_context(datasette, row) for row in payload["rows"]],
        "first_page": list_address(datasette, wanted.arguments()) if wanted.before else None,
        "older": list_address(datasette, older) if older else None,
        "json_address": datasette.urls.path(f"{LOG}.json?{query}" if query else f"{LOG}.json"),
        "csv_address": datasette.urls.path(f"{LOG}.csv?{query}" if query else f"{LOG}.csv"),
        "covered": _covered(payload["covered"]) if payload["covered"] else None,
        "tiles": tiles(payload["totals"]) if payload["totals"] else None,
        "outcomes": _outcomes(payload["totals"]) if payload["totals"] else None,
    }


def refused_context(
    datasette: Datasette, given: Mapping[str, str], choices: Row, message: str
) -> Row:
    """What the template of the list needs when a filter cannot be used: the form, as it was."""
    return {
        "refused": message,
        "fields": fields(given, choices),
        "hidden": _hidden(given),
        "reset": list_address(datasette, {}),
    }


def fields(given: Mapping[str, str], choices: Mapping[str, Row]) -> list[Row]:
    """The fields of the form.

    Args:
        given: what was asked for, as it stands in the address.
        choices: as in the payload.
    """
    made = [_chosen(name, given.get(name, ""), choices[name]) for name in choices]
    outcomes = [("", "any"), *((outcome, outcome) for outcome in (*OUTCOMES, RUNNING))]
    made.append(_select("outcome", given.get("outcome", ""), outcomes))
    made.append(_field("group", "text", given.get("group", "")))
    for name in ("since", "until"):
        value = given.get(name, "")
        is_date = not value or re.fullmatch(r"\d{4}-\d\d-\d\d", value)
        made.append(_field(name, "date" if is_date else "text", value))
    return made


def _chosen(name: str, value: str, known: Row) -> Row:
    """A list to choose from, or a text field with suggestions where there are too many."""
    options = [(NONE, "none")] if known["none"] else []
    options += [(each, each) for each in known["values"]]
    if known["more"]:
        return _field(name, "text", value) | {"options": options}
    return _select(name, value, [("", "any"), *options])


def _select(name: str, value: str, options: list[tuple[str, str]]) -> Row:
    if value not in dict(options):
        options = [*options, (value, value)]
    return _field(name, "select", value) | {"options": options}


def _field(name: str, kind: str, value: str) -> Row:
    return {"name": name, "label": LABELS[name], "kind": kind, "value": value, "options": []}


def _hidden(given: Mapping[str, str]) -> dict[str, str]:
    return {name: given[name] for name in OPTIONS if name != "next" and name in given}


def list_address(datasette: Datasette, arguments: Mapping[str, str]) -> str:
    """The address of the list with these arguments."""
    query = urlencode(arguments)
    return str(datasette.urls.path(f"{LOG}?{query}" if query else LOG))


def call_address(datasette: Datasette, call_id: str) -> str:
    """The address of one call."""
    return str(datasette.urls.path(f"{LOG}/{call_id}"))


def row_context(datasette: Datasette, row: Row) -> Row:
    """What a line of a table of calls needs."""
    return {
        "address": call_address(datasette, row["id"]),
        "id": row["id"],
        "step": row["chain_step"],
        "started_at": row["started_at"],
        "started": moment(row["started_at"]),
        "model": row["model_id"],
        "purpose": row["purpose"] or "",
        "actor": row["actor_id"] or "",
        "outcome": row["outcome"],
        "why": row["blocked_by"] or row["error_type"] or "",
        "input": number(row["input_tokens"]),
        "output": number(row["output_tokens"]),
        "cost": dollars(row["cost_dollars"]),
        "took": duration(row["duration_ms"]),
        "attempt": row["attempt"],
        "waited": waited(row["waited_ms"]) or "",
    }


# Totals


def _covered(covered: Row) -> str:
    since, until = covered["since"], covered["until"]
    if covered["default_days"]:
        return f"the last {covered['default_days']} days, since {since} (UTC)"
    if since and until:
        return f"from {since} until {until} (UTC)"
    return f"since {since} (UTC)" if since else f"until {until} (UTC)"


def tiles(totals: Row) -> list[Row]:
    """The totals as cards: label, value, and what there is to say about it."""
    unpriced = totals["calls_without_cost"]
    calls = "call" if unpriced == 1 else "calls"
    shown = [
        ("Calls", number(totals["calls"]), "each attempt counts"),
        ("Failures", number(totals["failures"]), "errors and lost calls"),
        ("Tokens in", number(totals["input_tokens"]), ""),
        ("Tokens out", number(totals["output_tokens"]), ""),
        (
            "Cost",
            dollars(totals["cost_dollars"]),
            f"and {number(unpriced)} {calls} at an unknown price" if unpriced else "",
        ),
    ]
    if "median_ms" in totals:
        shown += [
            ("Median latency", duration(totals["median_ms"]), ""),
            ("95th percentile", duration(totals["p95_ms"]), "of latency"),
        ]
    return [{"label": label, "value": value, "note": note} for label, value, note in shown]


def _outcomes(totals: Row) -> list[tuple[str, str]]:
    return [(name, number(count)) for name, count in totals["outcomes"].items() if count]


# The chart


def chart_context(datasette: Datasette, wanted: LogListRequest, chart: Chart) -> Row:
    """What the template needs for the chart: the drawing, its sides, its legend and its table."""
    names = [_series_name(chart, series) for series in chart.series]
    days = [day.isoformat() for day in chart.days]

    def label(series: Series, place: int) -> str:
        name = names[chart.series.index(series)]
        return f"{days[place]}, {name}: {amount(chart, series.values[place])}"

    return {
        "svg": svg(chart, _description(chart, names), label) if days else None,
        "heading": f"{MEASURES[chart.measure]} per day by {chart.by}",
        "top": axis(chart, chart.top),
        "middle": axis(chart, chart.top / 2),
        "first_day": days[0] if days else "",
        "last_day": days[-1] if days else "",
        "legend": _legend(datasette, wanted, chart, names),
        "columns": names,
        "table": _table(chart),
        "earlier": chart.earlier,
        "measures": _choices_of(datasette, wanted, "measure", MEASURES),
        "bys": _choices_of(datasette, wanted, "by", {"purpose": "by purpose", "model": "by model"}),
    }


def _series_name(chart: Chart, series: Series) -> str:
    if series.is_rest:
        return "all others"
    return f"no {chart.by}" if series.name is None else series.name


def _description(chart: Chart, names: list[str]) -> str:
    sums = chart.day_totals()
    most = max(range(len(sums)), key=sums.__getitem__)
    parts = [
        f"{name}: {amount(chart, series.total) or UNKNOWN}"
        for name, series in zip(names, chart.series, strict=True)
    ]
    return (
        f"{MEASURES[chart.measure]} of each day from {chart.days[0]} to {chart.days[-1]}. "
        f"The most on {chart.days[most]}: {amount(chart, sums[most])}. "
        f"In total {'; '.join(parts) or 'nothing'}. The table below has all the numbers."
    )


def _legend(
    datasette: Datasette, wanted: LogListRequest, chart: Chart, names: list[str]
) -> list[Row]:
    legend = []
    for place, (series, name) in enumerate(zip(chart.series, names, strict=True)):
        arguments = wanted.arguments(**{chart.by: series.name or NONE})
        legend.append(
            {
                "name": name,
                "style": f"llm-series-{'rest' if series.is_rest else place}",
                "total": amount(chart, series.total) or UNKNOWN,
                "address": None if series.is_rest else list_address(datasette, arguments),
            }
        )
    return legend


def _table(chart: Chart) -> list[Row]:
    return [
        {
            "day": day.isoformat(),
            "values": [amount(chart, series.values[place]) for series in chart.series],
        }
        for place, day in enumerate(chart.days)
    ]


def _choices_of(
    datasette: Datasette, wanted: LogListRequest, name: str, labels: Mapping[str, str]
) -> list[Row]:
    return [
        {
            "label": label,
            "address": f"{list_address(datasette, wanted.arguments(**{name: value}))}#chart",
            "current": getattr(wanted, name) == value,
        }
        for value, label in labels.items()
    ]

"""The template context of the list page: texts, numbers and links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ...log.queries import CLOSED
from ..formatting import dollars, duration, label_of, number, reason, time, took, waited
from ..navigation import LOG, USAGE
from .list_request import NONE, OPTIONS, LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette

Row = dict[str, Any]
# The arguments of an address; `tag` may be there several times.
Arguments = Mapping[str, str | Sequence[str]]

LABELS = {
    "model": "Model",
    "purpose": "Purpose",
    "actor": "Actor",
    "outcome": "Outcome",
    "finish_reason": "Finish reason",
    "failure_kind": "Failure",
    "group": "Group",
    "tag": "Tag, such as job:12",
    "since": "Since",
    "until": "Until, not including",
}
# The filters that the Usage page has too.
USAGE_FILTERS = ("model", "purpose", "actor", "outcome", "failure_kind", "since", "until")


def list_context(datasette: Datasette, list_request: LogListRequest, payload: Row) -> Row:
    """The context of the list's template."""
    arguments = list_request.arguments()
    query = urlencode(arguments, doseq=True)
    older = list_request.arguments(next=payload["next"]) if payload["next"] else None
    return {
        "payload": payload,
        "fields": fields(arguments, payload["choices"]),
        "hidden": _hidden(arguments),
        "reset": list_address(datasette, {}) if payload["filter"] else None,
        "rows": [row_context(datasette, row) for row in payload["rows"]],
        "first_page": list_address(datasette, arguments) if list_request.before else None,
        "older": list_address(datasette, older) if older else None,
        "json_address": datasette.urls.path(f"{LOG}.json?{query}" if query else f"{LOG}.json"),
        "csv_address": datasette.urls.path(f"{LOG}.csv?{query}" if query else f"{LOG}.csv"),
        "covered": _covered(payload["covered"]) if payload["covered"] else None,
        "usage": _usage_address(datasette, arguments),
        "tiles": tiles(payload["totals"]) if payload["totals"] else None,
        "outcomes": _outcomes(payload["totals"]) if payload["totals"] else None,
    }


def refused_context(
    datasette: Datasette, given: Mapping[str, Any], choices: Row, message: str
) -> Row:
    """The context for an invalid filter: the message, and the form with its values."""
    return {
        "refused": message,
        "fields": fields(given, choices),
        "hidden": _hidden(given),
        "reset": list_address(datasette, {}),
    }


def fields(given: Mapping[str, Any], choices: Mapping[str, Row]) -> list[Row]:
    """The fields of the form.

    Args:
        given: the arguments of the address.
        choices: as in the payload.
    """
    made = [_choice_field(name, given.get(name, ""), choices[name]) for name in choices]
    for name, values in CLOSED.items():
        options = [("", "any"), *((value, label_of(name, value)) for value in values)]
        made.append(_select(name, given.get(name, ""), options))
    made.append(_field("group", "text", given.get("group", "")))
    # And an empty one, since a call may have to have several.
    tags = [*filter(None, given.get("tag", ())), ""]
    made += [_field("tag", "text", tag) | {"id": f"tag-{n}"} for n, tag in enumerate(tags, 1)]
    for name in ("since", "until"):
        value = given.get(name, "")
        is_date = not value or re.fullmatch(r"\d{4}-\d\d-\d\d", value)
        made.append(_field(name, "date" if is_date else "text", value))
    return made


def _choice_field(name: str, value: str, known: Row) -> Row:
    """A menu, or a text field with suggestions if there are too many values."""
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
    label = LABELS[name]
    return {"id": name, "name": name, "label": label, "kind": kind, "value": value, "options": []}


def _hidden(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: given[name] for name in OPTIONS if name != "next" and name in given}


def list_address(datasette: Datasette, arguments: Arguments) -> str:
    """The address of the list with these arguments."""
    query = urlencode(arguments, doseq=True)
    return str(datasette.urls.path(f"{LOG}?{query}" if query else LOG))


def row_context(datasette: Datasette, row: Row) -> Row:
    """The context of one row in a table of calls."""
    return {
        "address": str(datasette.urls.path(f"{LOG}/{row['id']}")),
        "id": row["id"],
        "step": row["chain_step"],
        "started_at": row["started_at"],
        "started": time(row["started_at"]),
        "model": row["model_id"],
        "purpose": row["purpose"] or "",
        "actor": row["actor_id"] or "",
        "outcome": row["outcome"],
        "why": reason(row),
        "input": number(row["input_tokens"]),
        "output": number(row["output_tokens"]),
        "cost": dollars(row["cost_dollars"]),
        "took": took(row),
        "attempt": row["attempt"],
        "waited": waited(row["waited_ms"]),
    }


# Totals


def _usage_address(datasette: Datasette, arguments: Arguments) -> str:
    """The address of the Usage page about the calls of the list, as far as it has its filters."""
    query = urlencode({name: arguments[name] for name in USAGE_FILTERS if name in arguments})
    return str(datasette.urls.path(f"{USAGE}?{query}" if query else USAGE))


def _covered(covered: Row) -> str:
    since, until = covered["since"], covered["until"]
    if covered["complete_since"]:
        return f"since {covered['complete_since'][:16]} (UTC) only: the time limit was reached"
    if covered["default_days"]:
        return f"the last {covered['default_days']} days, since {since} (UTC)"
    if since and until:
        return f"from {since} until {until} (UTC)"
    return f"since {since} (UTC)" if since else f"until {until} (UTC)"


def tiles(totals: Row) -> list[Row]:
    """The totals as tiles, each with a label, a value and a note."""
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

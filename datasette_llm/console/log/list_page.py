"""The template context of the list page: texts, numbers and links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from ...log.listing import SORTS
from ...log.queries import BadFilterError
from ...web import ArgumentError
from ..formatting import counted, dollars, duration, label_of, number, reason, time, took, waited
from ..navigation import LOG, USAGE
from . import filter_form
from .list_request import NONE, LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette

Row = dict[str, Any]
# The arguments of an address; some may be there several times.
Arguments = Mapping[str, str | Sequence[str]]

# The filters that the Usage page has too.
USAGE_FILTERS = ("model", "purpose", "actor", "tag", "outcome", "failure_kind", "since", "until")
FACET_LABELS = {"tag": "Tag"}
# More values of a facet are folded.
SHOWN_VALUES = 8
SORT_LABELS = {
    "-time": "newest",
    "time": "oldest",
    "-cost": "cost",
    "-duration": "duration",
    "-tokens": "tokens",
}
FOLD_NOUNS = {"group": "call", "chain": "request", "prompt": "attempt"}


def list_context(datasette: Datasette, list_request: LogListRequest, payload: Row) -> Row:
    """The context of the list's template."""
    arguments = list_request.arguments()
    query = _query(arguments)
    older = payload["next"] and list_request.arguments(next=payload["next"])
    newer = payload["previous"] and list_request.arguments(previous=payload["previous"])
    return {
        "payload": payload,
        "fields": filter_form.fields(arguments, payload["choices"]),
        "hidden": filter_form.hidden(arguments),
        "search": list_request.search or "",
        "active": [
            {"label": label, "address": list_address(datasette, rest)}
            for label, _, rest in filter_form.active(arguments)
        ],
        "reset": list_address(datasette, {}) if payload["filter"] or payload["search"] else None,
        "sorts": _sorts(datasette, list_request),
        "unsorted": SORTS[list_request.sorted_by] is not None and list_request.sorted_by,
        "folds": list(_folds(datasette, arguments, payload)),
        "first_page": list_address(datasette, arguments) if list_request.cursor else None,
        "newer": list_address(datasette, newer) if newer else None,
        "older": list_address(datasette, older) if older else None,
        "query": query,
        "json_address": _with_query(datasette, f"{LOG}.json", arguments),
        "csv_address": _with_query(datasette, f"{LOG}.csv", arguments),
        "covered": _covered(payload["covered"]) if payload["covered"] else None,
        "usage": _usage_address(datasette, arguments),
        "tiles": tiles(payload["totals"]) if payload["totals"] else None,
        "facets": list(_facets(datasette, list_request, payload["facets"] or {})),
        "facet_notes": _facet_notes(payload["facets"] or {}),
        "views": [
            view | {"address": list_address(datasette, parse_qs(view["query"]))}
            for view in payload["views"]
        ],
    }


def refused_context(datasette: Datasette, given: Arguments, choices: Row, message: str) -> Row:
    """The context for an invalid filter: the message, and the form with its values."""
    return {
        "refused": message,
        "fields": filter_form.fields(given, choices),
        "hidden": filter_form.hidden(given),
        "search": "".join(given.get("search", ())[:1]),
        "reset": list_address(datasette, {}),
    }


def list_address(datasette: Datasette, arguments: Arguments) -> str:
    """The address of the list with these arguments."""
    return _with_query(datasette, LOG, arguments)


def query_of(query: str) -> str:
    """The query string of a list, as this version writes it; empty for one that is invalid."""
    try:
        return _query(LogListRequest.of(parse_qs(query)).arguments())
    except (BadFilterError, ArgumentError):
        return ""


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


def _folds(datasette: Datasette, given: Arguments, payload: Row) -> Iterator[Row]:
    back = _query({"back": _query(given)} if given else {})
    rows = {row["id"]: row for row in payload["rows"]}
    for fold in payload["folds"]:
        first, *others = [
            _listed(datasette, given, rows[each], back) | {"prompt": prompt}
            for each in fold["calls"]
            for prompt in [payload["prompts"].get(each)]
        ]
        calls = fold["totals"]["calls"]
        yield {
            "first": first,
            "others": others,
            "label": _fold_label(fold) if calls > 1 else None,
            "address": list_address(datasette, {fold["kind"]: fold["id"]}),
            "missing": calls - 1 - len(others),
        }


def _fold_label(fold: Row) -> str:
    sums = fold["totals"]
    more = "" if fold["complete"] else "the first "
    shown = counted(sums["calls"], FOLD_NOUNS[fold["kind"]])
    what = {"group": f"Group of {more}{shown}", "chain": f"Chain of {more}{shown}"}
    parts = [what.get(fold["kind"], f"{more}{shown}".capitalize())]
    if sums["failures"]:
        parts.append(counted(sums["failures"], "failure"))
    tokens = (sums["input_tokens"] or 0) + (sums["output_tokens"] or 0)
    if tokens:
        parts.append(counted(tokens, "token"))
    if sums["cost_dollars"] is not None:
        parts.append(dollars(sums["cost_dollars"]))
    return ", ".join(parts)


def _listed(datasette: Datasette, given: Arguments, row: Row, back: str) -> Row:
    """A row of the list; its names lead to the calls that have them."""
    shown = row_context(datasette, row)
    names = {"model": row["model_id"], "purpose": row["purpose"], "actor": row["actor_id"]}
    ties = {"group": row["group_id"], "chain": row["chain_id"]}
    ties |= {"conversation": row["conversation_id"]}
    links = {
        name: list_address(datasette, {**given, name: value})
        for name, value in names.items()
        if value
    }
    return shown | {
        "address": f"{shown['address']}?{back}" if back else shown["address"],
        "links": links,
        "ties": [
            (name, list_address(datasette, {name: value})) for name, value in ties.items() if value
        ],
    }


def _sorts(datasette: Datasette, list_request: LogListRequest) -> list[Row]:
    labels = SORT_LABELS
    if list_request.sort not in labels:
        labels = labels | {list_request.sort: f"least {list_request.sorted_by}"}
    return [
        {
            "label": label,
            "address": list_address(datasette, list_request.arguments(sort=sort)),
            "current": sort == list_request.sort,
        }
        for sort, label in labels.items()
    ]


def _facets(datasette: Datasette, list_request: LogListRequest, found: Row) -> Iterator[Row]:
    """Each facet that has values, with what each value leads to."""
    given = list_request.arguments()
    for name, facet in found.items():
        values = [_facet_value(datasette, given, name, each) for each in facet["values"]]
        if values:
            yield {
                "label": _facet_label(name),
                "name": name,
                "values": values[:SHOWN_VALUES],
                "rest": values[SHOWN_VALUES:],
                "more": facet["more"],
            }


def _facet_notes(found: Row) -> list[str]:
    """Of which facets only the newest calls were counted, and since when."""
    labels: dict[str, list[str]] = {}
    for name, facet in found.items():
        if facet["complete_since"]:
            labels.setdefault(facet["complete_since"], []).append(_facet_label(name))
    return [
        f"{', '.join(names)}: of calls since {time(since)} (UTC) only, as time was short"
        for since, names in labels.items()
    ]


def _facet_label(name: str) -> str:
    return FACET_LABELS.get(name, filter_form.LABELS[name])


def _facet_value(datasette: Datasette, given: Arguments, name: str, each: Row) -> Row:
    value = each["value"] or NONE
    current = given.get(name, ())
    chosen = [current] if isinstance(current, str) else list(current)
    selected = value in chosen
    rest = [other for other in chosen if other != value] if selected else [*chosen, value]
    return {
        "label": label_of(name, each["value"]) or "none",
        "calls": number(each["calls"]),
        "selected": selected,
        "address": list_address(datasette, {**given, name: rest}),
    }


# Totals


def _usage_address(datasette: Datasette, arguments: Arguments) -> str | None:
    """The address of the Usage page about the calls of the list; None if it has not its filters."""
    filters = {name: each for name, each in arguments.items() if name not in ("sort", "limit")}
    texts = {
        name: each if isinstance(each, str) else each[0]
        for name, each in filters.items()
        if isinstance(each, str) or len(each) == 1
    }
    if len(texts) < len(filters) or set(texts) - set(USAGE_FILTERS):
        return None
    return _with_query(datasette, USAGE, texts)


def _covered(covered: Row) -> str:
    since, until = covered["since"], covered["until"]
    if covered["complete_since"]:
        return f"since {time(covered['complete_since'])} (UTC) only: the time limit was reached"
    if since and until:
        return f"from {since} until {until} (UTC)"
    if since or until:
        return f"since {since} (UTC)" if since else f"until {until} (UTC)"
    return "of all calls of this list"


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


def _with_query(datasette: Datasette, path: str, arguments: Arguments) -> str:
    query = _query(arguments)
    return str(datasette.urls.path(f"{path}?{query}" if query else path))


def _query(arguments: Arguments) -> str:
    return urlencode(arguments, doseq=True, errors="replace")

"""The page of the purposes: the model of each purpose, its rule, and assigning another."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from datasette import NotFound, Response
from datasette.utils.sqlite import sqlite3
from markupsafe import Markup

from .. import instance
from ..access import policy
from ..access.assignments import HISTORY_ROWS, Assignments, history
from ..access.keys import KeyStatus, read_status
from ..access.purposes import Purpose
from ..access.snapshot import Snapshot, find_model, snapshot_of
from ..decision import Decision
from ..errors import ModelNotFoundError, NewerDatabaseError
from ..hooks import dispatch
from ..log.cost import model_price
from ..permissions import MANAGE
from ..sanitize import storable
from ..web import PostError, as_json, method_not_allowed, posted, refused, wants_html
from .cache import kept_sizes
from .call_policies import ANY_MODEL, CallPolicies
from .choices import refused_by_filters, registered_purposes
from .evaluation.what_if import known_costs, of_purpose
from .figures import FIGURE_SORTS, Figures, Recent, in_order, labels, recent
from .formatting import dollars, duration, price
from .navigation import ROOT, row_address
from .page import Page, rendered

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

Row = dict[str, Any]

ASSIGN = f"{ROOT}/assign"
ARGUMENTS = ("q", "sort", "page")
PAGE_ROWS = 50
# What the purposes can be sorted by; with a minus before it, in descending order.
SORTS: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "purpose": ("name", lambda row: row["purpose"].casefold()),
    **FIGURE_SORTS,
}
# A message is kept in a cookie, which holds about 4,000 characters.
MAX_NAME_CHARS = 100


async def purposes(
    datasette: Datasette,
    pick: Callable[[list[Row]], list[Row]] = list,
    speeds: Mapping[str | None, Figures] = {},
    costs: Mapping[str, float] = {},
) -> Payload:
    """The purposes, with the model of each.

    Hooks are not called, as they choose a default for one actor: the plugins that have such a
    hook are listed instead.

    Args:
        datasette: the Datasette instance.
        pick: picks those that are shown, by default all; called in a thread.
        speeds: the figures of models, for the menus.
        costs: what the calls for the purpose would have cost with models, for the menus.

    Returns:
        `known`, how many there are; `purposes`, each with the model it resolves to, the rule, and
        its problem or None; `menu`, the index in `menus` of its allowed models; `plan`, the call
        policy of its model. The outer `plan` is that of models and purposes without settings.
    """
    snapshot = await snapshot_of(datasette)
    status = await read_status(datasette)
    registered, warnings = await registered_purposes(datasette)
    past, unread = await _history(datasette)
    call_policies = CallPolicies(datasette, snapshot, status)

    names = sorted({*registered, *snapshot.settings.purposes, *snapshot.assigned})

    def rows_and_menus() -> tuple[list[Row], list[dict[str, list[Option]]]]:
        rows = pick([_row(snapshot, status, name, registered.get(name)) for name in names])
        notes = _Notes(speeds, costs)
        menus, numbers = _menus(snapshot, status, [row["purpose"] for row in rows], notes)
        for row in rows:
            row["menu"] = numbers[row["purpose"]]
            row["plan"] = call_policies.payload(row["purpose"], row["resolves_to"] or ANY_MODEL)
        return rows, menus

    # In a thread, since a site may have thousands of purposes.
    rows, menus = await asyncio.to_thread(rows_and_menus)
    return {
        "ok": True,
        "known": len(names),
        "last_until_restart": datasette.get_internal_database().is_temp_disk,
        "warnings": [*warnings, *unread],
        "default_hooks": dispatch.plugins_with(datasette, "llm_default_model"),
        "filter_hooks": dispatch.plugins_with(datasette, "llm_filter_models"),
        "purposes": rows,
        "plan": call_policies.payload(None, ANY_MODEL),
        "menus": menus,
        "history": past,
        "history_limit": HISTORY_ROWS,
    }


@dataclass(slots=True)
class _Search:
    """Which purposes a page shows.

    Attributes:
        q: words that all have to occur in the name, the description or the model.
        sort: the name of a sort, with a minus for descending; empty for the order of names.
        page: the number of the page, as in the address; empty for the first.
        used: the figures of purposes.
        matching: how many purposes match, once some were picked.
    """

    q: str
    sort: str
    page: str
    used: Recent
    matching: int = 0

    @property
    def number(self) -> int:
        """The number of the page, from 1 on; 0 if it is none."""
        return int(self.page) if re.fullmatch("[0-9]{1,6}", self.page) else 0 if self.page else 1

    @property
    def problem(self) -> str | None:
        """Why nothing can be picked, or None."""
        if self.sort.removeprefix("-") not in ("", *SORTS):
            return f"sort: expected one of {', '.join(SORTS)}, with a minus for descending"
        return None if self.number else "page: expected a whole number from 1 on"

    def pick(self, rows: list[Row]) -> list[Row]:
        """The rows of the page, with their figures; none if there is a problem."""
        if self.problem:
            return []
        words = self.q.casefold().split()
        found = [
            row | {"figures": self.used.payload(row["purpose"])}
            for row in rows
            if all(word in _text_of(row) for word in words)
        ]
        self.matching = len(found)
        first = (self.number - 1) * PAGE_ROWS
        return in_order(found, self.sort, SORTS)[first : first + PAGE_ROWS]


def _text_of(row: Row) -> str:
    return f"{row['purpose']}\n{row['description'] or ''}\n{row['resolves_to']}".casefold()


async def _payload(datasette: Datasette, request: Request) -> Payload:
    """A page of the purposes that match a search, with figures, and menus for the actor."""
    given = {name: (request.args.get(name) or "").strip() for name in ARGUMENTS}
    speeds, used = [await recent(datasette, request.actor, by) for by in ("model", "purpose")]
    search = _Search(given["q"], given["sort"], given["page"], used)
    listed = await purposes(datasette, search.pick, speeds.by_name)
    await _add_refusals(datasette, listed["purposes"], listed["menus"], request.actor)
    return listed | {
        "filter": given,
        "choices": {"sort": labels(SORTS)},
        "figures_since": used.since,
        "warnings": [*listed["warnings"], *([used.problem] if used.problem else [])],
        "matching": search.matching,
        "page": search.number,
        "pages": -(-search.matching // PAGE_ROWS),
        "cache": await kept_sizes(datasette),
        **(refused(search.problem) if search.problem else {}),
    }


async def _inner_payload(datasette: Datasette, request: Request, name: str) -> Payload:
    """One purpose: its model and where that comes from, its menu, call policy and figures."""
    speeds, used = [await recent(datasette, request.actor, by) for by in ("model", "purpose")]
    what_if = await of_purpose(datasette, name, request.actor)
    listed = await purposes(
        datasette,
        lambda rows: [row for row in rows if row["purpose"] == name],
        speeds.by_name,
        known_costs(what_if),
    )
    row = next(iter(listed["purposes"]), None)
    figures = used.payload(name)
    if row is None and not (figures and figures["calls"]):
        raise NotFound(_unknown(name))
    if row is not None:
        await _add_refusals(datasette, [row], listed["menus"], request.actor)
    return {
        "ok": True,
        "name": name,
        "purpose": row,
        "menu": listed["menus"][row["menu"]] if row else None,
        "plan": row["plan"] if row else None,
        "figures": figures,
        "figures_since": used.since,
        "what_if": what_if,
        "warnings": [*listed["warnings"], *([used.problem] if used.problem else [])],
        "default_hooks": listed["default_hooks"],
        "filter_hooks": listed["filter_hooks"],
        "last_until_restart": listed["last_until_restart"],
        "history": [each for each in listed["history"] if each["purpose"] == name],
        "history_limit": listed["history_limit"],
    }


async def _add_refusals(
    datasette: Datasette, rows: Iterable[Row], menus: Sequence[Mapping[str, list[str]]], actor: Any
) -> None:
    """Ask the filters about the models of each menu, for the person who assigns."""
    snapshot = await snapshot_of(datasette)
    for row in rows:
        menu = menus[row["menu"]]
        ids = [str(each) for each in (*menu["with_key"], *menu["without_key"])]
        found = await refused_by_filters(datasette, snapshot, row["purpose"], ids, actor)
        row["refused_by"] = found


PAGE = Page("purposes", _payload, inner=_inner_payload)


async def assign(
    datasette: Datasette, purpose: str, name: str | None, actor: Mapping[str, Any] | None
) -> Payload:
    """Assign a model to a purpose, or go back to the configuration.

    Args:
        datasette: the Datasette instance.
        purpose: one that is registered or configured; to go back, any with an assignment.
        name: an id or alias; None to go back to the configuration.
        actor: who assigns it.

    Returns:
        `{ok, purpose, model_id, resolves_to, rule, refused_by}` with the model's id, None for
        none, and the plugin that does not let the actor use it, None for none; or the reason of
        the refusal, and then nothing has changed.
    """
    snapshot = await snapshot_of(datasette)
    registered, _ = await registered_purposes(datasette)
    known = {*registered, *snapshot.settings.purposes}
    if purpose not in known and (name is not None or purpose not in snapshot.assigned):
        return refused(_unknown(purpose))
    model_id = None
    if name is not None:
        try:
            snapshot, entry = await find_model(datasette, name)
        except ModelNotFoundError as error:
            return refused(str(error))
        model_id = entry.model_id
        problem = refusal(snapshot, model_id, purpose)
        if problem is not None:
            return refused(problem)
    actor_id = storable({"id": (actor or {}).get("id")})["id"]
    try:
        await instance.of(datasette, Assignments).assign(datasette, purpose, model_id, actor_id)
    except UnicodeEncodeError as error:
        return refused(f"The name of the purpose or model is not valid Unicode: {error}")
    except (sqlite3.Error, NewerDatabaseError) as error:
        message = f"The internal database cannot be written, so nothing has changed: {error}"
        return refused(message, 503)
    snapshot = await snapshot_of(datasette)
    default = snapshot.for_purpose(purpose).default()
    ids = [default.model_id] if default and default.model_id in snapshot.catalog.entries else []
    by_filter = await refused_by_filters(datasette, snapshot, purpose, ids, actor)
    return {
        "ok": True,
        "purpose": purpose,
        "model_id": model_id,
        "resolves_to": default.model_id if default else None,
        "rule": default.rule if default else None,
        "refused_by": by_filter.get(ids[0]) if ids else None,
    }


def refusal(snapshot: Snapshot, name: str, purpose: str) -> str | None:
    """Why the configuration does not allow a model for a purpose; None if it does."""
    model_id = snapshot.catalog.canonical(name)
    if model_id not in snapshot.catalog.entries:
        return snapshot.catalog.why_unknown(name)
    steps = tuple(snapshot.for_purpose(purpose).rules.steps(model_id, purpose))
    decision = Decision(model_id, purpose, None, steps)
    return None if decision.available else decision.reason


def sentence(payload: Payload) -> str:
    """The result of `assign` as a sentence."""
    purpose, model = _shortened(payload["purpose"]), _shortened(payload["resolves_to"] or "")
    plugin = payload["refused_by"]
    suffix = f" But the plugin {_shortened(plugin)} does not let you use it." if plugin else ""
    if payload["model_id"] is not None:
        return f"Purpose {purpose} now uses {model}.{suffix}"
    used = f"it uses {model} ({_shortened(payload['rule'])})" if model else "it has no model"
    return f"Purpose {purpose} is back to the configuration: {used}.{suffix}"


async def assign_view(datasette: Datasette, request: Request) -> Response:
    """Takes `purpose` and either `model` or `reset`, from a form or as JSON."""
    await datasette.ensure_permission(action=MANAGE, actor=request.actor)
    if request.method != "POST":
        return method_not_allowed(["POST"])
    try:
        fields = await posted(request)
    except PostError as error:
        fields, payload = {}, refused(str(error))
    else:
        payload = await _assign_posted(datasette, fields, request.actor)
    if not wants_html(request):
        return as_json(payload)
    if not payload["ok"]:
        listed = await _payload(datasette, request)
        return await rendered(PAGE, datasette, request, listed | payload)
    kind = datasette.WARNING if payload["refused_by"] else datasette.INFO
    datasette.add_message(request, sentence(payload), kind)
    # 303, so that the browser follows with GET, and reloading the page does not post again.
    path = datasette.urls.path(PAGE.path)
    if fields.get("back") == "purpose":
        path = row_address(datasette, PAGE.path, fields["purpose"])
    return Response.redirect(path, status=303)


class Option(str):
    """A model id that a template renders as an `<option>`, with its price and speed.

    One object per model caches its markup: fifty menus of hundreds of models take too long
    otherwise.

    Attributes:
        note: its price and speed; empty where both are unknown.
    """

    note: str = ""
    _html: Markup | None = None

    def __html__(self) -> Markup:
        if self._html is None:
            text = f"{self} ({self.note})" if self.note else str(self)
            self._html = Markup('<option value="{}">{}</option>').format(str(self), text)
        return self._html


@dataclass(frozen=True, slots=True)
class _Notes:
    """What menus say of models: their figures, and what the calls would have cost with them."""

    speeds: Mapping[str | None, Figures]
    costs: Mapping[str, float]

    def of(self, model_id: str) -> list[str]:
        speed = self.speeds[model_id].payload()["median_ms"] if model_id in self.speeds else None
        cost = self.costs.get(model_id)
        return [duration(speed), "" if cost is None else f"these calls: {dollars(cost)}"]


def _option(snapshot: Snapshot, model_id: str, notes: _Notes) -> Option:
    route, option = snapshot.for_purpose(None).route(model_id), Option(model_id)
    known = model_price(model_id, route.price, exact=route.exact_price)
    each = [price(known.input_dollars, known.output_dollars), *notes.of(model_id)]
    option.note = ", ".join(filter(None, each))
    return option


async def _assign_posted(
    datasette: Datasette, fields: Mapping[str, str], actor: Mapping[str, Any] | None
) -> Payload:
    name = fields.get("model")
    if ("reset" in fields) == (name is not None):
        return refused(
            "Give either model, to choose one, or reset, to go back to the configuration"
        )
    return await assign(datasette, fields.get("purpose", ""), name, actor)


def _unknown(purpose: str) -> str:
    if not purpose:
        return "Give purpose: what the model is for"
    return (
        f"Unknown purpose: {_shortened(purpose)}. A plugin has to register it, or the "
        "configuration has to have it under purposes"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_NAME_CHARS else f"{text[: MAX_NAME_CHARS - 1]}…"


async def _history(datasette: Datasette) -> tuple[list[Row], list[str]]:
    problem = instance.of(datasette, Assignments).failure
    try:
        past = [asdict(each) for each in await history(datasette)]
    except sqlite3.Error as error:
        past, problem = [], problem or str(error)
    if problem is None:
        return past, []
    return past, [f"The models assigned to purposes cannot be read or written: {problem}"]


def _row(snapshot: Snapshot, status: KeyStatus, name: str, registered: Purpose | None) -> Row:
    default = snapshot.for_purpose(name).default()
    return {
        "purpose": name,
        "description": registered.description if registered else None,
        "registered": registered is not None,
        "configured": name in snapshot.settings.purposes,
        "resolves_to": default.model_id if default else None,
        "rule": default.rule if default else None,
        "problem": problem_of(snapshot, status, name),
        "refused_by": {},
        "assignment": _assignment(snapshot, name, default),
    }


def problem_of(snapshot: Snapshot, status: KeyStatus, purpose: str) -> str | None:
    """Why the default model of a purpose cannot be used, by configuration and keys, or None."""
    default = snapshot.for_purpose(purpose).default()
    if default is None:
        return "There is no default model, so a prompt that names no model is refused"
    problem = refusal(snapshot, default.model_id, purpose)
    if problem is None:
        entry = snapshot.catalog.entries[default.model_id]
        rules = snapshot.for_purpose(purpose).rules
        if not policy.has_key(entry, rules, status):
            return policy.key_step(entry, rules, status, snapshot.settings.require_keys).detail
    return problem


def _assignment(snapshot: Snapshot, purpose: str, default: policy.Default | None) -> Row | None:
    choice = snapshot.assigned.get(purpose)
    if choice is None or choice.model_id is None:
        return None
    used = default is not None and default.rule == policy.ASSIGNED
    return {
        "model_id": choice.model_id,
        "assigned_at": choice.assigned_at,
        "actor_id": choice.actor_id,
        "ignored_because": None if used else refusal(snapshot, choice.model_id, purpose),
    }


def _menus(
    snapshot: Snapshot, status: KeyStatus, names: Iterable[str], known: _Notes
) -> tuple[list[dict[str, list[Option]]], dict[str, int]]:
    """The different lists of allowed models, and the index of each purpose's list."""
    options = {each: _option(snapshot, each, known) for each in snapshot.catalog.entries}
    different: dict[tuple[tuple[str, ...], ...], int] = {}
    by_settings: dict[str | None, int] = {}
    numbers = {}
    for name in names:
        own = name if name in snapshot.settings.purposes else None
        if own not in by_settings:
            allowed = _allowed(snapshot, status, own)
            by_settings[own] = different.setdefault(allowed, len(different))
        numbers[name] = by_settings[own]
    menus = [
        {
            "with_key": [options[each] for each in keyed],
            "without_key": [options[each] for each in keyless],
        }
        for keyed, keyless in different
    ]
    return menus, numbers


def _allowed(
    snapshot: Snapshot, status: KeyStatus, purpose: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The allowed models with a key, or that need none, and those without."""
    rules = snapshot.for_purpose(purpose).rules
    ids = policy.listing(rules, snapshot.catalog, rules.default)
    keyed = dict.fromkeys(policy.with_key(ids, snapshot.catalog, rules, status))
    return tuple(keyed), tuple(model_id for model_id in ids if model_id not in keyed)

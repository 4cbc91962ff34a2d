"""The page of the purposes: which model each has, by which rule, and which it could have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from datasette import Response
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
from ..permissions import MANAGE
from ..sanitize import storable
from ..web import PostError, as_json, posted, refused, wants_html
from .call_policies import ANY_MODEL, CallPolicies
from .choices import registered_purposes
from .navigation import ROOT
from .page import Page, rendered

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    Row = dict[str, Any]

    Payload = dict[str, Any]


async def _purposes(datasette: Datasette, request: Request) -> Row:
    return await purposes(datasette)


PAGE = Page("purposes", "Purposes", _purposes)


async def purposes(datasette: Datasette) -> Row:
    """What the page and its JSON twin show.

    Hooks are not asked which model they would choose, since they choose for an actor: the
    plugins that have such a hook are named instead.

    Returns:
        Under `purposes` each with the model it resolves to, the rule, and what is wrong with
        that; its `menu` is the number of the one in `menus` that has what policy allows, and
        its `plan` how prompts of that model are made. The `plan` of all is what holds where
        nothing is said about purpose and model.
    """
    view = await snapshot_of(datasette)
    status = await read_status(datasette)
    registered, warnings = await registered_purposes(datasette)
    past, unread = await _history(datasette)
    names = sorted({*registered, *view.settings.purposes, *view.assigned})
    menus, numbers = _menus(view, status, names)
    rows = [_row(view, status, name, registered.get(name)) for name in names]
    plans = CallPolicies(datasette, view, status)
    return {
        "ok": True,
        "last_until_restart": datasette.get_internal_database().is_temp_disk,
        "warnings": [*warnings, *unread],
        "default_hooks": dispatch.plugins_with(datasette, "llm_default_model"),
        "purposes": [
            row | {"menu": numbers[row["purpose"]], "plan": _plan(plans, row)} for row in rows
        ],
        "plan": plans.payload(None, ANY_MODEL),
        "menus": menus,
        "history": past,
        "history_limit": HISTORY_ROWS,
    }


async def known_purposes(datasette: Datasette, view: Snapshot) -> set[str]:
    """The purposes that a model can be assigned to: registered or configured."""
    registered, _ = await registered_purposes(datasette)
    return {*registered, *view.settings.purposes}


def refusal(view: Snapshot, name: str, purpose: str) -> str | None:
    """Why the configuration keeps a model from a purpose; None where it does not."""
    model_id = view.catalog.canonical(name)
    if model_id not in view.catalog.entries:
        return view.catalog.why_unknown(name)
    steps = tuple(view.for_purpose(purpose).rules.steps(model_id, purpose))
    decision = Decision(model_id, purpose, None, steps)
    return None if decision.available else decision.reason


async def _history(datasette: Datasette) -> tuple[list[Row], list[str]]:
    problem = instance.of(datasette, Assignments).failure
    try:
        past = [asdict(each) for each in await history(datasette)]
    except sqlite3.Error as error:
        past, problem = [], problem or str(error)
    if problem is None:
        return past, []
    return past, [f"The models assigned to purposes cannot be read or written: {problem}"]


def _row(view: Snapshot, status: KeyStatus, name: str, registered: Purpose | None) -> Row:
    default = view.for_purpose(name).default()
    return {
        "purpose": name,
        "description": registered.description if registered else None,
        "registered": registered is not None,
        "configured": name in view.settings.purposes,
        "resolves_to": default.model_id if default else None,
        "rule": default.rule if default else None,
        "problem": _problem(view, status, name, default),
        "assignment": _assignment(view, name, default),
    }


def _plan(plans: CallPolicies, row: Row) -> Row:
    return plans.payload(row["purpose"], row["resolves_to"] or ANY_MODEL)


def _problem(
    view: Snapshot, status: KeyStatus, purpose: str, default: policy.Default | None
) -> str | None:
    if default is None:
        return "There is no default model, so a prompt that names no model is refused"
    problem = refusal(view, default.model_id, purpose)
    if problem is None:
        entry, rules = view.catalog.entries[default.model_id], view.for_purpose(purpose).rules
        if not policy.has_key(entry, rules, status):
            return policy.key_step(entry, rules, status, view.settings.require_keys).detail
    return problem


def _assignment(view: Snapshot, purpose: str, default: policy.Default | None) -> Row | None:
    choice = view.assigned.get(purpose)
    if choice is None or choice.model_id is None:
        return None
    counts = default is not None and default.rule == policy.ASSIGNED
    return {
        "model_id": choice.model_id,
        "assigned_at": choice.assigned_at,
        "actor_id": choice.actor_id,
        "ignored_because": None if counts else refusal(view, choice.model_id, purpose),
    }


def _menus(
    view: Snapshot, status: KeyStatus, names: Iterable[str]
) -> tuple[list[dict[str, list[Option]]], dict[str, int]]:
    """The different lists of allowed models, and for each purpose the number of its list."""
    options = {model_id: Option(model_id) for model_id in view.catalog.entries}
    different: dict[tuple[tuple[str, ...], ...], int] = {}
    by_settings: dict[str | None, int] = {}
    numbers = {}
    for name in names:
        own = name if name in view.settings.purposes else None
        if own not in by_settings:
            by_settings[own] = different.setdefault(_allowed(view, status, own), len(different))
        numbers[name] = by_settings[own]
    menus = [
        {
            "with_key": [options[each] for each in keyed],
            "without_key": [options[k] for k in keyless],
        }
        for keyed, keyless in different
    ]
    return menus, numbers


def _allowed(
    view: Snapshot, status: KeyStatus, purpose: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rules = view.for_purpose(purpose).rules
    ids = policy.listing(rules, view.catalog, rules.default)
    keyed = dict.fromkeys(policy.with_key(ids, view.catalog, rules, status))
    return tuple(keyed), tuple(model_id for model_id in ids if model_id not in keyed)


class Option(str):
    """The id of a model, which a template shows as an option of a menu.

    There is one for each model, since fifty menus of hundreds of models take too long otherwise.
    """

    _html: Markup | None = None

    def __html__(self) -> Markup:
        if self._html is None:
            self._html = Markup('<option value="{0}">{0}</option>').format(str(self))
        return self._html


ASSIGN = f"{ROOT}/assign"
# A message is kept in a cookie, which has room for some 4,000 characters.
SHOWN_CHARS = 100


async def assign(
    datasette: Datasette, purpose: str, name: str | None, actor: Mapping[str, Any] | None
) -> Payload:
    """Choose a model for a purpose, or go back to what the configuration says.

    Args:
        datasette: the Datasette instance.
        purpose: one that is registered or configured; to go back, any that has a choice.
        name: an id or alias; None to go back to the configuration.
        actor: who chooses.

    Returns:
        `{ok, purpose, model_id, resolves_to, rule}` with the model's id, None for none; or why
        the choice was refused, and then nothing has changed.
    """
    view = await snapshot_of(datasette)
    known = await known_purposes(datasette, view)
    if purpose not in known and (name is not None or purpose not in view.assigned):
        return refused(_unknown(purpose))
    model_id = None
    if name is not None:
        try:
            view, entry = await find_model(datasette, name)
        except ModelNotFoundError as error:
            return refused(str(error))
        model_id = entry.model_id
        problem = refusal(view, model_id, purpose)
        if problem is not None:
            return refused(problem)
    actor_id = storable({"id": (actor or {}).get("id")})["id"]
    try:
        await instance.of(datasette, Assignments).assign(datasette, purpose, model_id, actor_id)
    except UnicodeEncodeError as error:
        return refused(f"The name of the purpose or model is no valid Unicode: {error}")
    except (sqlite3.Error, NewerDatabaseError) as error:
        message = f"The internal database cannot be written, so nothing has changed: {error}"
        return refused(message, 503)
    default = (await snapshot_of(datasette)).for_purpose(purpose).default()
    return {
        "ok": True,
        "purpose": purpose,
        "model_id": model_id,
        "resolves_to": default.model_id if default else None,
        "rule": default.rule if default else None,
    }


def sentence(payload: Payload) -> str:
    """What `assign` did, for a person."""
    purpose, model = _shortened(payload["purpose"]), _shortened(payload["resolves_to"] or "")
    if payload["model_id"] is not None:
        return f"Purpose {purpose} now uses {model}."
    used = f"it uses {model} ({_shortened(payload['rule'])})" if model else "it has no model"
    return f"Purpose {purpose} is back to the configuration: {used}."


async def assign_view(datasette: Datasette, request: Request) -> Response:
    """Takes `purpose` and either `model_id` or `reset`, from a form or as JSON."""
    await datasette.ensure_permission(action=MANAGE, actor=request.actor)
    if request.method != "POST":
        return Response.error("Only POST assigns", 405, headers={"Allow": "POST"})
    payload = await _asked(datasette, request)
    if not wants_html(request):
        return as_json(payload)
    if not payload["ok"]:
        return await rendered(PAGE, datasette, request, await purposes(datasette) | payload)
    datasette.add_message(request, sentence(payload), datasette.INFO)
    # 303, so that what follows is a GET and a page that is loaded again does not post again.
    return Response.redirect(datasette.urls.path(PAGE.path), status=303)


async def _asked(datasette: Datasette, request: Request) -> Payload:
    try:
        fields = await posted(request)
    except PostError as error:
        return refused(str(error))
    name = fields.get("model_id")
    if ("reset" in fields) == (name is not None):
        return refused(
            "Give either model_id, to choose a model, or reset, to go back to the configuration"
        )
    return await assign(datasette, fields.get("purpose", ""), name, request.actor)


def _unknown(purpose: str) -> str:
    if not purpose:
        return "Give purpose: what the model is for"
    return (
        f"Unknown purpose: {_shortened(purpose)}. A plugin has to register it, or the "
        "configuration has to have it under purposes"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"

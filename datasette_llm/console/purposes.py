"""The page of the purposes: the model of each purpose, its rule, and assigning another."""

from __future__ import annotations

import asyncio
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
from ..web import PostError, as_json, method_not_allowed, posted, refused, wants_html
from .call_policies import ANY_MODEL, CallPolicies
from .choices import registered_purposes
from .navigation import ROOT
from .page import Page, rendered

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

    Row = dict[str, Any]

ASSIGN = f"{ROOT}/assign"
# A message is kept in a cookie, which holds about 4,000 characters.
MAX_NAME_CHARS = 100


async def purposes(datasette: Datasette) -> Payload:
    """What the page and its JSON show.

    Hooks are not called, as they choose a default for one actor: the plugins that have such a
    hook are listed instead.

    Returns:
        `purposes`, each with the model it resolves to, the rule, and its problem or None; `menu`,
        the index in `menus` of its allowed models; `plan`, the call policy of its model. The
        outer `plan` is the call policy of models and purposes without settings.
    """
    snapshot = await snapshot_of(datasette)
    status = await read_status(datasette)
    registered, warnings = await registered_purposes(datasette)
    past, unread = await _history(datasette)
    call_policies = CallPolicies(datasette, snapshot, status)

    def rows_and_menus() -> tuple[list[Row], list[dict[str, list[Option]]]]:
        names = sorted({*registered, *snapshot.settings.purposes, *snapshot.assigned})
        menus, numbers = _menus(snapshot, status, names)
        rows = [_row(snapshot, status, name, registered.get(name)) for name in names]
        for row in rows:
            row["menu"] = numbers[row["purpose"]]
            row["plan"] = call_policies.payload(row["purpose"], row["resolves_to"] or ANY_MODEL)
        return rows, menus

    # In a thread, since a site may have thousands of purposes.
    rows, menus = await asyncio.to_thread(rows_and_menus)
    return {
        "ok": True,
        "last_until_restart": datasette.get_internal_database().is_temp_disk,
        "warnings": [*warnings, *unread],
        "default_hooks": dispatch.plugins_with(datasette, "llm_default_model"),
        "purposes": rows,
        "plan": call_policies.payload(None, ANY_MODEL),
        "menus": menus,
        "history": past,
        "history_limit": HISTORY_ROWS,
    }


async def _payload(datasette: Datasette, request: Request) -> Payload:
    return await purposes(datasette)


PAGE = Page("purposes", _payload)


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
        `{ok, purpose, model_id, resolves_to, rule}` with the model's id, None for none; or the
        reason of the refusal, and then nothing has changed.
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
    default = (await snapshot_of(datasette)).for_purpose(purpose).default()
    return {
        "ok": True,
        "purpose": purpose,
        "model_id": model_id,
        "resolves_to": default.model_id if default else None,
        "rule": default.rule if default else None,
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
    if payload["model_id"] is not None:
        return f"Purpose {purpose} now uses {model}."
    used = f"it uses {model} ({_shortened(payload['rule'])})" if model else "it has no model"
    return f"Purpose {purpose} is back to the configuration: {used}."


async def assign_view(datasette: Datasette, request: Request) -> Response:
    """Takes `purpose` and either `model` or `reset`, from a form or as JSON."""
    await datasette.ensure_permission(action=MANAGE, actor=request.actor)
    if request.method != "POST":
        return method_not_allowed(["POST"])
    payload = await _assign_posted(datasette, request)
    if not wants_html(request):
        return as_json(payload)
    if not payload["ok"]:
        return await rendered(PAGE, datasette, request, await purposes(datasette) | payload)
    datasette.add_message(request, sentence(payload), datasette.INFO)
    # 303, so that the browser follows with GET, and reloading the page does not post again.
    return Response.redirect(datasette.urls.path(PAGE.path), status=303)


class Option(str):
    """A model id that a template renders as an `<option>`.

    One object per model caches its markup: fifty menus of hundreds of models take too long
    otherwise.
    """

    _html: Markup | None = None

    def __html__(self) -> Markup:
        if self._html is None:
            self._html = Markup('<option value="{0}">{0}</option>').format(str(self))
        return self._html


async def _assign_posted(datasette: Datasette, request: Request) -> Payload:
    try:
        fields = await posted(request)
    except PostError as error:
        return refused(str(error))
    name = fields.get("model")
    if ("reset" in fields) == (name is not None):
        return refused(
            "Give either model, to choose one, or reset, to go back to the configuration"
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
        "problem": _problem(snapshot, status, name, default),
        "assignment": _assignment(snapshot, name, default),
    }


def _problem(
    snapshot: Snapshot, status: KeyStatus, purpose: str, default: policy.Default | None
) -> str | None:
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
    snapshot: Snapshot, status: KeyStatus, names: Iterable[str]
) -> tuple[list[dict[str, list[Option]]], dict[str, int]]:
    """The different lists of allowed models, and the index of each purpose's list."""
    options = {model_id: Option(model_id) for model_id in snapshot.catalog.entries}
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

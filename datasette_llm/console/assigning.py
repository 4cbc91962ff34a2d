"""Choosing a model for a purpose, from the page, by a program or in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.sqlite import sqlite3

from ..errors import ModelNotFoundError, NewerDatabaseError
from ..log.values import storable
from ..state import state_of
from .purposes import PAGE, known_purposes, purposes, refusal
from .views import MANAGE, PATH, PostError, as_json, posted, refused, rendered, wants_html

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    Payload = dict[str, Any]

ASSIGN = f"{PATH}/assign"
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
    state = state_of(datasette)
    view = await state.view(datasette)
    known = await known_purposes(datasette, view)
    if purpose not in known and (name is not None or purpose not in view.assigned):
        return refused(_unknown(purpose))
    model_id = None
    if name is not None:
        try:
            view, entry = await state.find(datasette, name)
        except ModelNotFoundError as error:
            return refused(str(error))
        model_id = entry.model_id
        problem = refusal(view, model_id, purpose)
        if problem is not None:
            return refused(problem)
    actor_id = storable({"id": (actor or {}).get("id")})["id"]
    try:
        await state.assignments.assign(datasette, purpose, model_id, actor_id)
    except UnicodeEncodeError as error:
        return refused(f"The name of the purpose or model is no valid Unicode: {error}")
    except (sqlite3.Error, NewerDatabaseError) as error:
        message = f"The internal database cannot be written, so nothing has changed: {error}"
        return refused(message, 503)
    default = (await state.view(datasette)).default(purpose)
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

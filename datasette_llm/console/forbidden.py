"""The answer to an actor who lacks one of our permissions: which it is, and how it is granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from datasette import Response
from datasette.utils import add_cors_headers

from ..permissions import ANALYZE, MANAGE, VIEW_LOG
from ..sanitize import well_formed
from ..web import refused
from .page import render

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

# What an actor may do with each.
ALLOWS = {
    MANAGE: "manage language models",
    VIEW_LOG: "see the calls to language models",
    ANALYZE: "analyze a table with a language model, and read the advice",
}
MAX_ID_CHARS = 100


def handles(message: str) -> bool:
    """Whether the message of a `Forbidden` is one of our permissions."""
    return message in ALLOWS


async def response(datasette: Datasette, request: Request, permission: str) -> Response:
    """The page, or its JSON, as for Datasette's own errors."""
    payload = explanation(request.actor, permission)
    if not _wants_json(request):
        context = {"title": "Permission missing", "payload": payload}
        template = "llm_console_forbidden.html"
        return await render(datasette, request, template, context, path=None, status=403)
    headers: dict[str, str] = {}
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(payload, status=403, headers=headers)


def explanation(actor: Any, permission: str) -> Payload:
    """What is missing, and the configuration that grants it.

    Args:
        actor: who asked, or None.
        permission: one of our actions.
    """
    actor_id = None if actor is None else well_formed(str(actor.get("id")))
    who = "You are not signed in"
    if actor_id is not None:
        shown = actor_id if len(actor_id) <= MAX_ID_CHARS else f"{actor_id[:MAX_ID_CHARS]}…"
        who = f"You are signed in as {shown}"
        if "_r" in actor:
            who += ", with a token that is restricted, and has to include it"
    short = actor_id if actor_id and len(actor_id) <= MAX_ID_CHARS else "YOUR_ACTOR_ID"
    return refused(
        f"This needs the permission {permission}: to {ALLOWS[permission]}. {who}. "
        "An administrator grants it in datasette.yaml",
        403,
        permission=permission,
        grant=yaml.safe_dump({"permissions": {permission: {"id": short}}}, allow_unicode=True),
    )


def _wants_json(request: Request) -> bool:
    """As Datasette decides for other errors."""
    return (
        request.path.endswith(".json")
        or "application/json" in request.headers.get("accept", "")
        or request.headers.get("content-type") == "application/json"
    )

"""The addresses of the consultant: a table's preview, and the consultations that there were.

Each function checks its permission in its first lines. A POST answers with the consultation that
it stored, whatever became of it: the outcome is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Forbidden, NotFound, Response

from ...consultant.table_access import Access, may_analyze_any
from ...permissions import ANALYZE
from ..navigation import ADVICE
from . import payloads as pages
from .analyze import analyze_json, analyze_page, arguments
from .payloads import BadRequestError
from .rendering import analyze_path, shown_page, stored_page

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    Payload = dict[str, Any]


def routes() -> list[tuple[str, Callable[..., Any]]]:
    """The pages, for Datasette's `register_routes`."""
    table = r"^/(?P<database>[^\/\.]+)/(?P<table>[^\/\.]+)/-/llm-analyze"
    return [
        (rf"{table}$", analyze_page),
        (rf"{table}\.json$", analyze_json),
        (rf"^{ADVICE}$", list_page),
        (rf"^{ADVICE}\.json$", list_json),
        (rf"^{ADVICE}/(?P<id>[0-9a-z]+)\.json$", consultation_json),
        (rf"^{ADVICE}/(?P<id>[0-9a-z]+)$", consultation_page),
    ]


async def menu_links(datasette: Datasette, actor: Any) -> list[dict[str, str]]:
    """The menu's entry, for those who may analyze a table."""
    if not await may_analyze_any(datasette, actor):
        return []
    return [{"href": datasette.urls.path(ADVICE), "label": "AI advice"}]


async def table_links(
    datasette: Datasette, actor: Any, database: str, table: str
) -> list[dict[str, str]]:
    """The entry in the menu of a table or view, for those who may analyze it."""
    if not await Access(datasette, actor).may_analyze(database, table):
        return []
    href = analyze_path(datasette, database, table)
    about = "See what would be sent to a language model, and get checked advice."
    return [{"href": href, "label": "Analyze with AI", "description": about}]


# The record


async def list_page(datasette: Datasette, request: Request) -> Response:
    """The consultations about tables that the actor may analyze, newest first."""
    payload = await _list_payload(datasette, request)
    query = urlencode({"limit": payload["limit"], "next": payload["next"] or ""})
    context = {"payload": payload, "path": datasette.urls.path(ADVICE), "next_query": query}
    status = 200 if payload["ok"] else 400
    return await shown_page(datasette, request, "llm_consultations.html", context, status)


async def list_json(datasette: Datasette, request: Request) -> Response:
    """The list's JSON twin."""
    payload = await _list_payload(datasette, request)
    return Response.json(payload) if payload["ok"] else Response.error(payload["error"], 400)


async def _list_payload(datasette: Datasette, request: Request) -> Payload:
    if not await may_analyze_any(datasette, request.actor):
        raise Forbidden(ANALYZE)
    try:
        return await pages.list_payload(datasette, request.actor, arguments(request))
    except BadRequestError as error:
        rest: Payload = {"consultations": [], "next": None, "limit": pages.DEFAULT_LIMIT}
        return rest | {"ok": False, "error": str(error)}


async def consultation_page(datasette: Datasette, request: Request) -> Response:
    """One consultation."""
    return await stored_page(datasette, request, await _stored_payload(datasette, request))


async def consultation_json(datasette: Datasette, request: Request) -> Response:
    """One consultation's JSON twin."""
    return Response.json(await _stored_payload(datasette, request))


async def _stored_payload(datasette: Datasette, request: Request) -> Payload:
    found = await pages.stored_payload(datasette, request.actor, request.url_vars["id"])
    if found is None:
        raise NotFound("There is no such consultation, or it is not one that you may see")
    return found

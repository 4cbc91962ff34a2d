"""The URLs of the consultant: the preview of a table, the list of consultations, a consultation.

Each view checks its permission first. A POST returns the stored consultation, also where it failed:
the outcome is part of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette import Forbidden, NotFound, Response

from ...consultant.table_access import may_analyze, may_analyze_any
from ...permissions import ANALYZE
from ...web import DEFAULT_LIMIT, READ_METHODS, ArgumentError, method_not_allowed
from ..navigation import ADVICE
from . import payloads
from .analyze import analyze_json, analyze_page, arguments, dismiss_finding
from .evidence_page import rows_json, rows_page
from .payloads import BadRequestError
from .rendering import analyze_path, render_consultation, render_list

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ...web import Payload

    View = Callable[[Datasette, Request], Awaitable[Response]]


def routes() -> list[tuple[str, Callable[..., Any]]]:
    """The routes, for Datasette's `register_routes`."""
    table = r"^/(?P<database>[^\/\.]+)/(?P<table>[^\/\.]+)/-/llm-analyze"
    return [
        (rf"{table}$", analyze_page),
        (rf"{table}\.json$", analyze_json),
        (rf"{table}/dismiss$", dismiss_finding),
        (rf"{table}/rows$", rows_page),
        (rf"{table}/rows\.json$", rows_json),
        (rf"^{ADVICE}$", _only_shown(list_page)),
        (rf"^{ADVICE}\.json$", _only_shown(list_json)),
        (rf"^{ADVICE}/(?P<id>[0-9a-z]+)\.json$", _only_shown(consultation_json)),
        (rf"^{ADVICE}/(?P<id>[0-9a-z]+)$", _only_shown(consultation_page)),
    ]


def _only_shown(view: View) -> View:
    async def shown(datasette: Datasette, request: Request) -> Response:
        response = await view(datasette, request)  # first, since it checks permissions
        return response if request.method in READ_METHODS else method_not_allowed()

    return shown


async def menu_links(datasette: Datasette, actor: Any) -> list[dict[str, str]]:
    """The menu link, for actors who may analyze a table."""
    if not await may_analyze_any(datasette, actor):
        return []
    return [{"href": datasette.urls.path(ADVICE), "label": "LLM advice"}]


async def table_links(
    datasette: Datasette, actor: Any, database: str, table: str
) -> list[dict[str, str]]:
    """The link in the menu of a table or view, for actors who may analyze it."""
    if not await may_analyze(datasette, actor, database, table):
        return []
    href = analyze_path(datasette, database, table)
    description = "See what is remarkable about it, and ask a language model."
    return [{"href": href, "label": "Analyze", "description": description}]


async def list_page(datasette: Datasette, request: Request) -> Response:
    """The consultations about tables that the actor may analyze, newest first."""
    payload = await _list_payload(datasette, request)
    return await render_list(datasette, request, payload)


async def list_json(datasette: Datasette, request: Request) -> Response:
    """The list's JSON twin."""
    payload = await _list_payload(datasette, request)
    return Response.json(payload) if payload["ok"] else Response.error(payload["error"], 400)


async def _list_payload(datasette: Datasette, request: Request) -> Payload:
    if not await may_analyze_any(datasette, request.actor):
        raise Forbidden(ANALYZE)
    try:
        return await payloads.list_payload(datasette, request.actor, arguments(request))
    except (BadRequestError, ArgumentError) as error:
        rest: Payload = {"consultations": [], "next": None, "limit": DEFAULT_LIMIT}
        rest |= {"database": None, "table": None}
        return rest | {"ok": False, "error": str(error)}


async def consultation_page(datasette: Datasette, request: Request) -> Response:
    """One consultation, or two beside each other."""
    payload = await _stored_payload(datasette, request)
    beside = payload.get("beside")
    return await render_consultation(datasette, request, payload, beside=beside)


async def consultation_json(datasette: Datasette, request: Request) -> Response:
    """One consultation's JSON twin."""
    return Response.json(await _stored_payload(datasette, request))


async def _stored_payload(datasette: Datasette, request: Request) -> Payload:
    payload = await _seen_payload(datasette, request, request.url_vars["id"])
    other = payloads.beside_of(arguments(request))
    if other is None:
        return payload
    return payload | {"beside": await _seen_payload(datasette, request, other)}


async def _seen_payload(datasette: Datasette, request: Request, consultation_id: str) -> Payload:
    payload = await payloads.stored_payload(datasette, request.actor, consultation_id)
    if payload is None:
        raise NotFound("There is no such consultation, or it is not one that you may see")
    return payload

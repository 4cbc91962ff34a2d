"""The routes of the call log: the list and each call, as HTML and JSON, and the list as CSV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from datasette import NotFound, Response
from datasette.utils.asgi import AsgiStream

from ...log.queries import BadFilterError
from ...permissions import VIEW_LOG
from ...web import (
    READ_METHODS,
    ArgumentError,
    PostError,
    method_not_allowed,
    posted,
    wants_html,
)
from ..navigation import LOG
from ..page import render
from . import list_page, payloads
from .call_page import call_context
from .csv_export import copy, csv_chunks
from .list_request import LogListRequest
from .saved_views import delete, save, saved_views

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

    View = Callable[[Datasette, Request], Awaitable[Response | AsgiStream]]

VIEWS = f"{LOG}/views"
_INVALID = (BadFilterError, ArgumentError)


def routes() -> list[tuple[str, View]]:
    """The pages, for Datasette's `register_routes`."""
    return [
        (r"^/-/llm/log$", _checked(log_page)),
        (r"^/-/llm/log\.json$", _checked(log_json)),
        (r"^/-/llm/log\.csv$", _checked(log_csv)),
        (rf"^{VIEWS}$", views_action),
        (r"^/-/llm/log/(?P<id>[^/]+)\.json$", _checked(call_json)),
        (r"^/-/llm/log/(?P<id>[^/]+)$", _checked(call_page)),
    ]


def _checked(view: View) -> View:
    async def checked(datasette: Datasette, request: Request) -> Response | AsgiStream:
        await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        return await view(datasette, request)

    return checked


async def log_page(datasette: Datasette, request: Request) -> Response:
    """The list as a page, newest first."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        choices = await payloads.choices(datasette)
        context = list_page.refused_context(datasette, _arguments(request), choices, str(error))
        return await render(datasette, request, "llm_log.html", context, path=LOG, status=400)
    payload = await payloads.list_payload(datasette, list_request, request.actor)
    context = list_page.list_context(datasette, list_request, payload)
    return await render(datasette, request, "llm_log.html", context, path=LOG)


async def log_json(datasette: Datasette, request: Request) -> Response:
    """The list as JSON."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        return Response.error(str(error), 400)
    return Response.json(await payloads.list_payload(datasette, list_request, request.actor))


async def log_csv(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """All calls of the filter as CSV, streamed."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        return Response.text(str(error), status=400)

    chunks = csv_chunks(datasette, payloads.listing_of(list_request))
    head = await anext(chunks)  # an error here still has a status of its own

    async def stream(writer: AsgiWriter) -> None:
        await writer.write(head)
        await copy(chunks, writer, request)

    disposition = {"content-disposition": 'attachment; filename="llm-log.csv"'}
    return AsgiStream(stream, headers=disposition, content_type="text/csv; charset=utf-8")


async def views_action(datasette: Datasette, request: Request) -> Response:
    """Save the list of an address under a name, or delete a saved view."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    try:
        fields = await posted(request)
        query = await _changed_view(datasette, request.actor, fields)
    except (*_INVALID, PostError) as error:
        if not wants_html(request):
            return Response.error(str(error), 400)
        choices = await payloads.choices(datasette)
        context = list_page.refused_context(datasette, {}, choices, str(error))
        return await render(datasette, request, "llm_log.html", context, path=LOG, status=400)
    if wants_html(request):
        return Response.redirect(datasette.urls.path(f"{LOG}?{query}" if query else LOG))
    return Response.json({"ok": True, "views": await saved_views(datasette, request.actor)})


async def _changed_view(datasette: Datasette, actor: Any, fields: Mapping[str, str]) -> str:
    """The query string of the list to show next."""
    if "delete" in fields:
        await delete(datasette, actor, fields["delete"])
        return list_page.query_of(fields.get("query", ""))
    return await save(datasette, actor, fields.get("name", ""), fields.get("query", ""))


async def call_page(datasette: Datasette, request: Request) -> Response:
    """One call as a page."""
    payload = await _call_payload(datasette, request)
    context = call_context(datasette, payload)
    back = list_page.query_of(request.args.get("back") or "")
    context["back"] = list_page.list_address(datasette, parse_qs(back)) if back else None
    here = context["started"]
    return await render(datasette, request, "llm_log_call.html", context, path=LOG, here=here)


async def call_json(datasette: Datasette, request: Request) -> Response:
    """One call as JSON."""
    return Response.json(await _call_payload(datasette, request))


async def _call_payload(datasette: Datasette, request: Request) -> dict[str, Any]:
    call_id = request.url_vars["id"]
    payload = await payloads.call_payload(datasette, call_id, request.actor)
    if payload is None:
        raise NotFound(f"The call log has no call {call_id!r}; old calls may have been removed")
    return payload


def _arguments(request: Request) -> dict[str, list[str]]:
    return {name: request.args.getlist(name) for name in request.args}

"""The routes of the call log: the list and each call, as HTML and JSON, and the list as CSV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette import NotFound, Response
from datasette.utils.asgi import AsgiStream

from ...log.queries import BadFilterError
from ...permissions import VIEW_LOG
from ...web import READ_METHODS, ArgumentError, html_page, method_not_allowed
from ..navigation import LOG, section
from . import list_page, payloads
from .call_page import call_context
from .csv_export import copy, csv_chunks
from .list_request import LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

    View = Callable[[Datasette, Request], Awaitable[Response | AsgiStream]]

_INVALID = (BadFilterError, ArgumentError)


def routes() -> list[tuple[str, View]]:
    """The pages, for Datasette's `register_routes`."""
    return [
        (r"^/-/llm/log$", _checked(log_page)),
        (r"^/-/llm/log\.json$", _checked(log_json)),
        (r"^/-/llm/log\.csv$", _checked(log_csv)),
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
        given: dict[str, Any] = {name: request.args[name] for name in request.args}
        given["tag"] = request.args.getlist("tag")
        choices = await payloads.choices(datasette)
        context = list_page.refused_context(datasette, given, choices, str(error))
        return await _page(datasette, request, "llm_log.html", context, status=400)
    payload, chart = await payloads.list_payload(datasette, list_request)
    context = list_page.list_context(datasette, list_request, payload)
    context["chart"] = list_page.chart_context(datasette, list_request, chart) if chart else None
    return await _page(datasette, request, "llm_log.html", context)


async def log_json(datasette: Datasette, request: Request) -> Response:
    """The list as JSON."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        return Response.error(str(error), 400)
    payload, _ = await payloads.list_payload(datasette, list_request)
    return Response.json(payload)


async def log_csv(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """All calls of the filter as CSV, streamed."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        return Response.text(str(error), status=400)

    chunks = csv_chunks(datasette, list_request.filter)
    head = await anext(chunks)  # an error here still has a status of its own

    async def stream(writer: AsgiWriter) -> None:
        await writer.write(head)
        await copy(chunks, writer, request)

    disposition = {"content-disposition": 'attachment; filename="llm-log.csv"'}
    return AsgiStream(stream, headers=disposition, content_type="text/csv; charset=utf-8")


async def call_page(datasette: Datasette, request: Request) -> Response:
    """One call as a page."""
    payload = await _call_payload(datasette, request)
    context = call_context(datasette, payload)
    return await _page(datasette, request, "llm_log_call.html", context)


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


async def _page(
    datasette: Datasette,
    request: Request,
    template: str,
    context: dict[str, Any],
    *,
    status: int = 200,
) -> Response:
    context = context | {"documentation": section(datasette, LOG)}
    html = await datasette.render_template(template, context, request=request)
    return html_page(html, status)

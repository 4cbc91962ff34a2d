"""The routes of the Usage page: HTML, JSON and CSV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette import Response

from ...log.queries import BadFilterError
from ...permissions import VIEW_LOG
from ...web import READ_METHODS, ArgumentError, method_not_allowed
from ..navigation import USAGE
from ..page import render
from . import payload, usage_page
from .request import UsageRequest

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    View = Callable[[Datasette, Request], Awaitable[Response]]

_INVALID = (BadFilterError, ArgumentError)


def routes() -> list[tuple[str, View]]:
    """The page, for Datasette's `register_routes`."""
    return [
        (r"^/-/llm/usage$", _checked(page)),
        (r"^/-/llm/usage\.json$", _checked(json)),
        (r"^/-/llm/usage\.csv$", _checked(csv)),
    ]


def _checked(view: View) -> View:
    async def checked(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        return await view(datasette, request)

    return checked


async def page(datasette: Datasette, request: Request) -> Response:
    """The page."""
    try:
        asked = UsageRequest.of(_arguments(request))
        found, figures = await payload.usage(datasette, asked)
    except _INVALID as error:
        given = {name: request.args[name] for name in request.args}
        known = await payload.form_choices(datasette)
        context = usage_page.refused(datasette, given, known, str(error))
        return await _rendered(datasette, request, context, status=400)
    return await _rendered(datasette, request, usage_page.shown(datasette, asked, found, figures))


async def json(datasette: Datasette, request: Request) -> Response:
    """The same as JSON."""
    try:
        found, _ = await payload.usage(datasette, UsageRequest.of(_arguments(request)))
    except _INVALID as error:
        return Response.error(str(error), 400)
    return Response.json(found)


async def csv(datasette: Datasette, request: Request) -> Response:
    """All rows of the table as CSV."""
    try:
        text = await payload.csv_text(datasette, UsageRequest.of(_arguments(request)))
    except _INVALID as error:
        return Response.text(str(error), status=400)
    headers = {"content-disposition": 'attachment; filename="llm-usage.csv"'}
    return Response(text, headers=headers, content_type="text/csv; charset=utf-8")


def _arguments(request: Request) -> dict[str, list[str]]:
    return {name: request.args.getlist(name) for name in request.args}


async def _rendered(
    datasette: Datasette, request: Request, context: dict[str, Any], *, status: int = 200
) -> Response:
    return await render(datasette, request, "llm_usage.html", context, path=USAGE, status=status)

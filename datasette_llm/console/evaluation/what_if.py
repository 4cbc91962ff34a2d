"""The page of what recorded calls would have cost with other models, and its JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Response
from datasette.utils.sqlite import sqlite3

from ...access.quoting import quoted
from ...errors import LLMError
from ...evaluation.what_if import what_if
from ...log.queries import BadFilterError, Filter
from ...permissions import MANAGE, VIEW_LOG
from ...web import (
    READ_METHODS,
    ArgumentError,
    Payload,
    as_json,
    method_not_allowed,
    refused,
    status_of,
)
from ..log.list_request import LogListRequest
from ..navigation import LOG, PURPOSES, WHAT_IF
from ..page import render

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    View = Callable[[Datasette, Request], Awaitable[Response]]

LABEL = "What if"


def routes() -> list[tuple[str, View]]:
    """The page, for Datasette's `register_routes`."""
    return [(f"^{WHAT_IF}$", _checked(page)), (rf"^{WHAT_IF}\.json$", _checked(json))]


def _checked(view: View) -> View:
    async def checked(datasette: Datasette, request: Request) -> Response:
        for action in (MANAGE, VIEW_LOG):
            await datasette.ensure_permission(action=action, actor=request.actor)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        return await view(datasette, request)

    return checked


async def page(datasette: Datasette, request: Request) -> Response:
    """The page."""
    payload = await _payload(datasette, request)
    given = [
        (name, value)
        for name in request.args
        if not name.startswith("_")
        for value in filter(None, request.args.getlist(name))
    ]
    calls = [each for each in given if each[0] != "since"] + [("since", payload.get("since", ""))]
    context = {
        "title": LABEL,
        "payload": payload,
        "given": given,
        "first": dict(reversed(given)),
        "given_query": urlencode(given, errors="replace"),
        "calls": f"{datasette.urls.path(LOG)}?{urlencode(calls, errors='replace')}",
    }
    status = status_of(payload)
    return await render(
        datasette, request, "llm_what_if.html", context, path=PURPOSES, here=LABEL, status=status
    )


async def json(datasette: Datasette, request: Request) -> Response:
    """The same as JSON."""
    return as_json(await _payload(datasette, request))


async def of_purpose(datasette: Datasette, purpose: str, actor: Any) -> Payload | None:
    """The same for a purpose; None for an actor who may not see the call log."""
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return None
    return await _found(datasette, Filter(purpose=purpose), actor)


def known_costs(payload: Payload | None) -> dict[str, float]:
    """What the calls would have cost, by model; nothing where there are no calls."""
    if payload is None or not payload["ok"] or not payload["calls"]:
        return {}
    rows = payload["models"]
    return {row["model_id"]: row["cost_dollars"] for row in rows if row["cost_dollars"] is not None}


async def _payload(datasette: Datasette, request: Request) -> Payload:
    try:
        asked = LogListRequest.of({name: request.args.getlist(name) for name in request.args})
    except (BadFilterError, ArgumentError) as error:
        return refused(str(error))
    if asked.search:
        return refused("search: words of the content select no calls here; remove it")
    return await _found(datasette, asked.filter, request.actor)


async def _found(datasette: Datasette, log_filter: Filter, actor: Any) -> Payload:
    try:
        return await what_if(datasette, log_filter, actor)
    except BadFilterError as error:
        return refused(str(error))
    except LLMError as error:
        return refused(f"The models are unknown: {await quoted(datasette, str(error))}", 503)
    except sqlite3.Error as error:
        return refused(f"The call log cannot be read at the moment: {error}", 503)

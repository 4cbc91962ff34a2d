"""The routes of the call log: the list and each call, as HTML and JSON, and the list as CSV."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from datasette import NotFound, Response
from datasette.utils import tilde_decode
from datasette.utils.asgi import AsgiStream

from ...log.queries import BadFilterError
from ...permissions import MANAGE, VIEW_LOG
from ...web import (
    READ_METHODS,
    ArgumentError,
    PostError,
    method_not_allowed,
    page_cursor,
    posted,
    wants_html,
)
from ..navigation import LOG
from ..page import render
from . import list_page, payloads
from .call_page import call_context
from .conversation import messages_of, text_at
from .conversation_page import conversation_context, conversation_payload
from .csv_export import copy, csv_chunks
from .list_request import LogListRequest
from .running_page import (
    following,
    page_of,
    running_context,
    running_payload,
    stop_call,
    write_changes,
)
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
        (r"^/-/llm/log/running$", _checked(running_page)),
        (r"^/-/llm/log/running\.json$", _checked(running_json)),
        (r"^/-/llm/log/follow$", _checked(follow)),
        # An encoded id has no dot.
        (r"^/-/llm/log/conversation/(?P<id>[^/.]+)\.json$", _checked(conversation_json)),
        (r"^/-/llm/log/conversation/(?P<id>[^/.]+)$", _checked(conversation_page)),
        (r"^/-/llm/log/(?P<id>[^/]+)/stop$", stop_view),
        (r"^/-/llm/log/(?P<id>[^/]+)/text/(?P<number>[0-9]{1,9})$", _checked(call_text)),
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
    context |= following(datasette, request)
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
    manages = await _manages(datasette, request)
    context = await asyncio.to_thread(call_context, datasette, payload, manages=manages)
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


async def call_text(datasette: Datasette, request: Request) -> Response:
    """The whole text of a part of a call's messages, as plain text."""
    call_id, number = request.url_vars["id"], int(request.url_vars["number"])
    content = await payloads.call_content(datasette, call_id, request.actor)
    text = await asyncio.to_thread(text_at, messages_of(content), number)
    if text is None:
        raise NotFound(f"The call {call_id!r} has no text {number} that you may see")
    text = text.encode(errors="replace").decode()  # it may have a lone surrogate
    return Response.text(text, headers={"X-Content-Type-Options": "nosniff"})


async def conversation_page(datasette: Datasette, request: Request) -> Response:
    """All turns of a conversation as a page."""
    try:
        payload = await _conversation_payload(datasette, request)
    except _INVALID as error:
        return Response.text(str(error), status=400)
    context = await conversation_context(datasette, payload)
    return await render(
        datasette, request, "llm_log_conversation.html", context, path=LOG, here="Conversation"
    )


async def conversation_json(datasette: Datasette, request: Request) -> Response:
    """All turns of a conversation as JSON."""
    try:
        return Response.json(await _conversation_payload(datasette, request))
    except _INVALID as error:
        return Response.error(str(error), 400)


async def _conversation_payload(datasette: Datasette, request: Request) -> dict[str, Any]:
    conversation_id = tilde_decode(request.url_vars["id"])
    after = page_cursor(request.args.get("next"))
    payload = await conversation_payload(datasette, conversation_id, request.actor, after)
    if payload is None:
        raise NotFound(
            f"The call log has no calls of the conversation {conversation_id!r}; old ones may have "
            "been removed"
        )
    return payload


# What runs


async def running_page(datasette: Datasette, request: Request) -> Response:
    """The calls that run, as a page."""
    payload = await running_payload(datasette)
    context = running_context(datasette, payload, may_stop=await _manages(datasette, request))
    return await render(
        datasette, request, "llm_log_running.html", context, path=LOG, here="Running"
    )


async def running_json(datasette: Datasette, request: Request) -> Response:
    """The calls that run, as JSON."""
    return Response.json(await running_payload(datasette))


async def stop_view(datasette: Datasette, request: Request) -> Response:
    """Stop a call that runs in this process."""
    await datasette.ensure_permission(action=MANAGE, actor=request.actor)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    call_id = request.url_vars["id"]
    stopped = await stop_call(datasette, call_id, request.actor)
    if wants_html(request):
        # 303, so that reloading the page does not stop again. The page says how the call ended.
        return Response.redirect(await page_of(datasette, call_id), status=303)
    if not stopped:
        return Response.error(
            f"The call {call_id!r} does not run in this process: it has ended, or another process "
            "runs it, which alone can stop it",
            409,
        )
    return Response.json({"ok": True, "id": call_id})


async def follow(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """The calls of a filter that begin or end, as server-sent events."""
    try:
        list_request = LogListRequest.of(_arguments(request))
    except _INVALID as error:
        return Response.text(str(error), status=400)

    async def stream(writer: AsgiWriter) -> None:
        await write_changes(datasette, list_request.filter, writer, request)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return AsgiStream(stream, headers=headers, content_type="text/event-stream; charset=utf-8")


async def _manages(datasette: Datasette, request: Request) -> bool:
    allowed: bool = await datasette.allowed(action=MANAGE, actor=request.actor)
    return allowed


def _arguments(request: Request) -> dict[str, list[str]]:
    return {name: request.args.getlist(name) for name in request.args}

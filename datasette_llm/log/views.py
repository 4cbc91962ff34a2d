"""The addresses of the record: its list, each call, their JSON twins, and the list as CSV."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

from datasette import NotFound, Response
from datasette.permissions import Action
from datasette.utils.asgi import AsgiStream

from ..state import state_of
from . import list_page, payloads, queries
from .call_page import call_context
from .queries import BATCH_ROWS, COLUMNS, BadFilterError, Filter
from .wanted import Wanted

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

VIEW_LOG = "view-llm-log"

CSV_COLUMNS = (*COLUMNS, "cost_dollars")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def routes() -> list[tuple[str, Callable[..., Any]]]:
    """The pages, for Datasette's `register_routes`."""
    return [
        (r"^/-/llm/log$", log_page),
        (r"^/-/llm/log\.json$", log_json),
        (r"^/-/llm/log\.csv$", log_csv),
        (r"^/-/llm/log/(?P<id>[^/]+)\.json$", call_json),
        (r"^/-/llm/log/(?P<id>[^/]+)$", call_page),
    ]


def actions() -> list[Action]:
    """The permissions, for Datasette's `register_actions`."""
    return [Action(name=VIEW_LOG, description="View the record of calls to language models")]


async def menu_links(datasette: Datasette, actor: Any) -> list[dict[str, str]]:
    """The menu's entry, for those who may see the record."""
    if not await datasette.allowed(action=VIEW_LOG, actor=actor):
        return []
    return [{"href": datasette.urls.path(list_page.PATH), "label": "LLM log"}]


async def log_page(datasette: Datasette, request: Request) -> Response:
    """The list, newest first."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    try:
        wanted = Wanted.of(_arguments(request))
    except BadFilterError as error:
        given = {name: request.args[name] for name in request.args}
        choices = await payloads.choices(datasette)
        context = list_page.refused_context(datasette, given, choices, str(error))
        return await _page(datasette, request, "llm_log.html", context, status=400)
    payload, chart = await payloads.list_payload(datasette, wanted)
    context = list_page.list_context(datasette, wanted, payload)
    context["chart"] = list_page.chart_context(datasette, wanted, chart) if chart else None
    return await _page(datasette, request, "llm_log.html", context)


async def log_json(datasette: Datasette, request: Request) -> Response:
    """The list's JSON twin."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    try:
        wanted = Wanted.of(_arguments(request))
    except BadFilterError as error:
        return Response.error(str(error), 400)
    payload, _ = await payloads.list_payload(datasette, wanted)
    return Response.json(payload)


async def log_csv(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """All calls of the filter as CSV, as they are read."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    try:
        wanted = Wanted.of(_arguments(request))
    except BadFilterError as error:
        return Response.text(str(error), status=400)

    chunks = csv_chunks(datasette, wanted.filter)
    head = await anext(chunks)  # what cannot be read is told while there still is a status

    async def stream(writer: AsgiWriter) -> None:
        await writer.write(head)
        await _copy(chunks, writer, request)

    disposition = {"content-disposition": 'attachment; filename="llm-log.csv"'}
    return AsgiStream(stream, headers=disposition, content_type="text/csv; charset=utf-8")


async def call_page(datasette: Datasette, request: Request) -> Response:
    """One call."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    payload = await _call_payload(datasette, request)
    context = call_context(datasette, payload)
    return await _page(datasette, request, "llm_log_call.html", context)


async def call_json(datasette: Datasette, request: Request) -> Response:
    """One call's JSON twin."""
    await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
    return Response.json(await _call_payload(datasette, request))


async def _call_payload(datasette: Datasette, request: Request) -> dict[str, Any]:
    call_id = request.url_vars["id"]
    payload = await payloads.call_payload(datasette, call_id)
    if payload is None:
        raise NotFound(f"The record has no call {call_id!r}; old calls may have been removed")
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
    html = await datasette.render_template(template, context, request=request)
    return Response.html(html, status=status)


# CSV


async def csv_chunks(datasette: Datasette, wanted: Filter) -> AsyncIterator[str]:
    """All calls of a filter as CSV, newest first.

    Each chunk is read by itself, so that neither memory nor a lock of SQLite's grows with the
    number of calls, or with the time that somebody takes to read them.
    """
    await payloads.flushed(state_of(datasette).recorder(datasette).writer)
    rows = await _batch(datasette, wanted, before=None)
    yield _csv([CSV_COLUMNS])
    while rows:
        yield _csv(_csv_cells(row) for row in rows)
        rows = await _batch(datasette, wanted, before=rows[-1]["id"])


async def _batch(
    datasette: Datasette, wanted: Filter, before: str | None
) -> list[dict[str, Any]] | None:
    return await payloads.read(
        datasette, lambda c: queries.calls(c, wanted, before=before, limit=BATCH_ROWS)
    )


async def _copy(chunks: AsyncIterator[str], writer: AsgiWriter, request: Request) -> None:
    """Write chunks until there are no more, or until nobody reads them."""
    left = asyncio.create_task(reader_gone(request))
    try:
        async for chunk in chunks:
            if left.done():
                break
            await writer.write(chunk)
    finally:
        left.cancel()
        await asyncio.wait([left])


async def reader_gone(request: Request) -> None:
    """Until the reader has gone, which is only told to those who listen."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _csv_cells(row: dict[str, Any]) -> list[object]:
    nanodollars = row["cost_nanodollars"]
    # Not as a float, which would be written like 1e-05.
    cost = None if nanodollars is None else f"{nanodollars / 1_000_000_000:.9f}"
    return [*(without_formula(row[name]) for name in COLUMNS), cost]


def without_formula(value: object) -> object:
    """A value that no spreadsheet takes for a formula.

    See https://owasp.org/www-community/attacks/CSV_Injection
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()

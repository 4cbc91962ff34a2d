"""The page of a table: the preview, and what becomes of sending it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlencode

from datasette import Forbidden, NotFound, Response
from datasette.utils import tilde_decode
from datasette.utils.asgi import AsgiStream

from ...consultant.advice.consultation import Consultation, Told, consult
from ...consultant.advice.previews import Preview, preview, seen
from ...consultant.table_access import Access
from ...errors import LLMError
from ...permissions import ANALYZE
from ...web import client_disconnected
from ..navigation import ADVICE
from . import payloads as pages
from .payloads import FIELDS, BadRequestError
from .rendering import analyze_path, shown_page, stored_page

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

T = TypeVar("T")

NDJSON = "application/x-ndjson"
CHANGED = (
    "Nothing was sent, because this is not what you have seen: the table, or what you chose, has "
    "changed since the preview. This is what would be sent now."
)


async def analyze_page(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """The preview; a POST sends what was seen there."""
    database, table = await _permitted_table(datasette, request)
    try:
        if request.method == "POST":
            given = await _posted(request)
            return await _send(datasette, request, database, table, given)
        made = await _preview(datasette, request, database, table, arguments(request))
        notice = CHANGED if request.args.get("changed") else None
        return await _preview_page(datasette, request, made, notice)
    except BadRequestError as error:
        empty = await _preview(datasette, request, database, table, {})
        return await _preview_page(datasette, request, empty, str(error), status=400)
    except _ReaderGoneError:
        return _unread()


async def analyze_json(datasette: Datasette, request: Request) -> Response:
    """The preview; a POST sends it, and answers with the stored consultation."""
    database, table = await _permitted_table(datasette, request)
    try:
        if request.method != "POST":
            made = await _preview(datasette, request, database, table, arguments(request))
            return Response.json(await pages.preview_payload(datasette, made))
        asked = await pages.asked_of(datasette, database, table, await _json_body(request))
    except BadRequestError as error:
        return Response.error(str(error), 400)
    access = Access(datasette, request.actor)
    try:
        done = await _while_there(request, consult(datasette, asked, access))
    except _ReaderGoneError:
        return _unread()
    payload = await pages.payload(done.row, access)
    if done.unrecorded is not None:
        return Response.json(payload | {"ok": False, "error": done.unrecorded}, status=503)
    location = {"location": datasette.urls.path(f"{ADVICE}/{done.row['id']}.json")}
    return Response.json(payload, status=201, headers=location)


async def _permitted_table(datasette: Datasette, request: Request) -> tuple[str, str]:
    """The names of a table that exists and that the actor may view and analyze."""
    route, table = (tilde_decode(request.url_vars[name]) for name in ("database", "table"))
    named = {db.route: name for name, db in datasette.databases.items()}
    database = named.get(route, route)
    # Before anything tells whether there is such a table.
    if not await Access(datasette, request.actor).may_analyze(database, table):
        raise Forbidden(ANALYZE)
    await datasette.resolve_table(request)
    return database, table


async def _preview(
    datasette: Datasette,
    request: Request,
    database: str,
    table: str,
    given: Mapping[str, list[str]],
) -> Preview:
    asked = await pages.asked_of(datasette, database, table, given)
    try:
        return await preview(datasette, asked, request.actor)
    except LLMError as error:
        raise NotFound(str(error)) from None


async def _preview_page(
    datasette: Datasette,
    request: Request,
    made: Preview,
    notice: str | None = None,
    status: int = 200,
) -> Response:
    payload = await pages.preview_payload(datasette, made)
    asked = made.asked
    context = {
        "payload": payload,
        "notice": notice,
        "path": analyze_path(datasette, asked.database, asked.table),
        "table_path": datasette.urls.table(asked.database, asked.table),
        "list_path": datasette.urls.path(ADVICE),
    }
    return await shown_page(datasette, request, "llm_analyze.html", context, status)


async def _send(
    datasette: Datasette,
    request: Request,
    database: str,
    table: str,
    given: Mapping[str, list[str]],
) -> Response | AsgiStream:
    """Send a preview, if it is what was seen."""
    asked = await pages.asked_of(datasette, database, table, given)
    digest = next(iter(given.get("digest", ())), "")
    made = seen(datasette, asked, digest)
    streams = NDJSON in request.headers.get("accept", "")
    if made is None:
        made = await _preview(datasette, request, database, table, given)
        if made.digest != digest:
            return await _shown_anew(datasette, request, made, streams)
    if streams:
        return _streamed(datasette, request, made)
    return await _waited(datasette, request, made)


async def _shown_anew(
    datasette: Datasette, request: Request, made: Preview, streams: bool
) -> Response:
    if not streams:
        return await _preview_page(datasette, request, made, CHANGED, status=409)
    fields = {"model_id": made.asked.model_id, "question": made.asked.question}
    query = [(name, value) for name, value in fields.items() if value]
    query += [("exclude", name) for name in made.asked.exclude]
    query += [("type", made.asked.kind.name), ("changed", "1")]
    path = analyze_path(datasette, made.asked.database, made.asked.table)
    line = json.dumps({"next": f"{path}?{urlencode(query)}"})
    return Response(f"{line}\n", content_type=NDJSON)


async def _waited(datasette: Datasette, request: Request, made: Preview) -> Response:
    access = Access(datasette, request.actor)
    work = consult(datasette, made.as_seen, access, profile=made.profile)
    done = await _while_there(request, work)
    stored = await _visible(datasette, request, done)
    if stored is not None:
        # 303, so that a page that is loaded again does not send again.
        return Response.redirect(stored, status=303)
    payload = await pages.payload(done.row, access)
    return await stored_page(datasette, request, payload, done.unrecorded, status=503)


def _streamed(datasette: Datasette, request: Request, made: Preview) -> AsgiStream:
    """Lines of JSON: what is being done, and at last where to go."""
    access = Access(datasette, request.actor)

    async def stream(writer: AsgiWriter) -> None:
        steps: asyncio.Queue[str | None] = asyncio.Queue()
        work = asyncio.create_task(
            _while_there(request, _telling(datasette, made, access, steps.put_nowait))
        )
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                await writer.write(json.dumps({"step": step}) + "\n")
            done = await work
            stored = await _visible(datasette, request, done)
            last = {"next": stored} if stored else {"error": done.unrecorded or _GONE}
            await writer.write(json.dumps(last) + "\n")
        except _ReaderGoneError:
            return
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])

    return AsgiStream(stream, content_type=NDJSON)


_GONE = "The consultation is on record, but you may not see it: the table is gone"


async def _telling(datasette: Datasette, made: Preview, access: Access, told: Told) -> Consultation:
    return await consult(datasette, made.as_seen, access, profile=made.profile, told=told)


async def _visible(datasette: Datasette, request: Request, done: Consultation) -> str | None:
    """The address of a consultation, where it was stored and the actor may see it."""
    if done.unrecorded is not None:
        return None
    found = await pages.stored_payload(datasette, request.actor, done.row["id"])
    path: str = datasette.urls.path(f"{ADVICE}/{done.row['id']}")
    return None if found is None else path


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something for as long as whoever asked for it is there; cancelled when they leave.

    Raises:
        _ReaderGoneError: they have left.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(client_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        left = not task.done()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if left:
        raise _ReaderGoneError
    return task.result()


class _ReaderGoneError(Exception):
    """Whoever asked has gone, so that nobody reads an answer."""


def _unread() -> Response:
    return Response.text("", status=499)  # as nginx writes into its log


def arguments(request: Request) -> dict[str, list[str]]:
    """The arguments of an address, each with its values."""
    return {name: request.args.getlist(name) for name in request.args}


async def _posted(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs((await request.post_body()).decode(), max_num_fields=5_000)
    except ValueError as error:
        raise BadRequestError(f"The body is no form: {error}") from None


async def _json_body(request: Request) -> dict[str, list[str]]:
    """The fields of a JSON object, each with its values as a form would send them."""
    try:
        body = json.loads(await request.post_body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("The body has to be a JSON object, which may be empty")
    given = {}
    for name, value in body.items():
        if name not in FIELDS:
            raise BadRequestError(f"There is no field {name!r}; use {', '.join(FIELDS)}")
        values = value if name == "exclude" and isinstance(value, list) else [value]
        if not all(isinstance(each, str | None) for each in values):
            raise BadRequestError(f"{name}: expected text" + (" in a list" * (name == "exclude")))
        given[name] = [each for each in values if each is not None]
    return given

"""The page of a table's preview, and sending it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlencode

from datasette import Forbidden, NotFound, Response
from datasette.utils import tilde_decode
from datasette.utils.asgi import AsgiStream
from datasette.utils.sqlite import sqlite3

from ...consultant.advice.consultation import Consultation, consult, record_findings
from ...consultant.advice.previews import Preview, cached_preview, make_preview
from ...consultant.advice.progress import OnProgress, Progress, Step, ignored
from ...consultant.findings.dismissals import dismiss, restore
from ...consultant.table_access import may_analyze
from ...errors import LLMError, NewerDatabaseError
from ...hooks import dispatch
from ...permissions import ANALYZE
from ...web import (
    READ_METHODS,
    PostError,
    client_disconnected,
    method_not_allowed,
    posted,
    wants_html,
)
from ..navigation import ADVICE
from . import payloads
from .payloads import FIELDS, BadRequestError
from .rendering import analyze_path, render_consultation, render_preview

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

    from ...consultant.table_access import Actor

    Fields = Mapping[str, list[str]]

T = TypeVar("T")

_METHODS = (*READ_METHODS, "POST")
NDJSON = "application/x-ndjson"
CHANGED = (
    "Nothing was sent, because this is not what you have seen: the table, or what you chose, has "
    "changed since the preview. This is what would be sent now."
)
_GONE = "The consultation was stored, but you may not see it: the table is gone"


async def analyze_page(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """The preview; a POST sends it."""
    database, table = await _permitted_table(datasette, request)
    if request.method not in _METHODS:
        return method_not_allowed(_METHODS)
    try:
        if request.method == "POST":
            fields = await _form_fields(request)
            return await _send(datasette, request, database, table, fields)
        work = _preview(datasette, request, database, table, arguments(request))
        preview = await _while_connected(request, work)
        notice = CHANGED if request.args.get("changed") else None
        if request.method == "GET" and not request.args:
            made = (preview.request, request.actor, preview.profile, preview.findings)
            notice = await record_findings(datasette, *made) or notice
        return await _preview_page(datasette, request, preview, notice)
    except BadRequestError as error:
        empty = await _preview(datasette, request, database, table, {})
        return await _preview_page(datasette, request, empty, str(error), status=400)
    except _ClientGoneError:
        return _client_gone()


async def analyze_json(datasette: Datasette, request: Request) -> Response:
    """The preview as JSON; a POST asks the model, and returns the stored consultation."""
    database, table = await _permitted_table(datasette, request)
    if request.method not in _METHODS:
        return method_not_allowed(_METHODS)
    try:
        if request.method != "POST":
            work = _preview(datasette, request, database, table, arguments(request))
            preview = await _while_connected(request, work)
            return Response.json(await payloads.preview_payload(datasette, preview))
        fields = await _json_fields(request)
        advice_request = await payloads.consultation_request(datasette, database, table, fields)
        done = await _while_connected(request, consult(datasette, advice_request, request.actor))
    except BadRequestError as error:
        return Response.error(str(error), 400)
    except _ClientGoneError:
        return _client_gone()
    payload = await payloads.consultation_payload(done.row)
    if done.unrecorded is not None:
        return Response.json(payload | {"ok": False, "error": done.unrecorded}, status=503)
    location = {"location": datasette.urls.path(f"{ADVICE}/{done.row['id']}.json")}
    return Response.json(payload, status=201, headers=location)


async def dismiss_finding(datasette: Datasette, request: Request) -> Response:
    """Dismiss a finding, or restore it with `restore`; then the page again, or JSON."""
    database, table = await _permitted_table(datasette, request)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    try:
        fields = await posted(request)
        finding = payloads.finding_named(fields)
        if fields.get("restore"):
            await restore(datasette, database, table, finding)
        else:
            reason = payloads.reason_of(fields)
            await dismiss(datasette, database, table, finding, request.actor, reason)
    except (PostError, BadRequestError) as error:
        return Response.error(str(error), 400)
    except (sqlite3.Error, NewerDatabaseError) as error:
        return Response.error(f"The internal database cannot be written: {error}", 503)
    if wants_html(request):
        path = f"{analyze_path(datasette, database, table)}#llm-findings"
        return Response.redirect(path, status=303)
    return Response.json({"ok": True})


def arguments(request: Request) -> dict[str, list[str]]:
    """The arguments of a query string, each with its values."""
    return {name: request.args.getlist(name) for name in request.args}


async def _permitted_table(datasette: Datasette, request: Request) -> tuple[str, str]:
    """The names of a table that exists and that the actor may view and analyze."""
    route, table = (tilde_decode(request.url_vars[name]) for name in ("database", "table"))
    names = {db.route: name for name, db in datasette.databases.items()}
    database = names.get(route, route)
    # First, so that nothing reveals whether there is such a table.
    if not await may_analyze(datasette, request.actor, database, table):
        raise Forbidden(ANALYZE)
    await datasette.resolve_table(request)
    return database, table


async def _preview(
    datasette: Datasette, request: Request, database: str, table: str, fields: Fields
) -> Preview:
    advice_request = await payloads.consultation_request(datasette, database, table, fields)
    try:
        return await make_preview(datasette, advice_request, request.actor)
    except LLMError as error:
        raise NotFound(str(error)) from None


async def _preview_page(
    datasette: Datasette,
    request: Request,
    preview: Preview,
    notice: str | None = None,
    status: int = 200,
) -> Response:
    payload = await payloads.preview_payload(datasette, preview)
    return await render_preview(datasette, request, payload, notice, status)


async def _send(
    datasette: Datasette, request: Request, database: str, table: str, fields: Fields
) -> Response | AsgiStream:
    """Send a preview, if it is the one that was shown."""
    advice_request = await payloads.consultation_request(datasette, database, table, fields)
    digest = next(iter(fields.get("digest", ())), "")
    preview = cached_preview(datasette, advice_request, digest)
    streams = NDJSON in request.headers.get("accept", "")
    if preview is None:
        preview = await _preview(datasette, request, database, table, fields)
        if preview.digest != digest:
            return await _changed(datasette, request, preview, streams)
    if streams:
        return _streamed(datasette, request, preview)
    return await _waited(datasette, request, preview)


async def _changed(
    datasette: Datasette, request: Request, preview: Preview, streams: bool
) -> Response:
    """Show the new preview instead of sending it."""
    if not streams:
        return await _preview_page(datasette, request, preview, CHANGED, status=409)
    advice_request = preview.request
    fields = {"model": advice_request.model_id, "question": advice_request.question}
    query = [(name, value) for name, value in fields.items() if value]
    query += [("exclude", name) for name in advice_request.exclude]
    query += [("type", advice_request.kind.name), ("changed", "1")]
    path = analyze_path(datasette, advice_request.database, advice_request.table)
    line = json.dumps({"next": f"{path}?{urlencode(query)}"})
    return Response(f"{line}\n", content_type=NDJSON)


async def _waited(datasette: Datasette, request: Request, preview: Preview) -> Response:
    """Wait for the consultation, and show it."""
    work = _consult(datasette, preview, request.actor)
    done = await _while_connected(request, work)
    path = await _visible_path(datasette, request, done)
    if path is not None:
        # 303, so that reloading the page does not send again.
        return Response.redirect(path, status=303)
    payload = await payloads.consultation_payload(done.row)
    return await render_consultation(datasette, request, payload, done.unrecorded, status=503)


def _streamed(datasette: Datasette, request: Request, preview: Preview) -> AsgiStream:
    """Lines of JSON: each step as it begins, and at the end the path to go to."""

    async def stream(writer: AsgiWriter) -> None:
        steps: asyncio.Queue[str | None] = asyncio.Queue()

        def on_progress(event: Progress) -> None:
            if isinstance(event, Step):
                steps.put_nowait(event.sentence)

        work = asyncio.create_task(
            _while_connected(request, _consult(datasette, preview, request.actor, on_progress))
        )
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                await writer.write(json.dumps({"step": step}) + "\n")
            done = await work
            path = await _visible_path(datasette, request, done)
            last = {"next": path} if path else {"error": done.unrecorded or _GONE}
            await writer.write(json.dumps(last) + "\n")
        except _ClientGoneError:
            return
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])

    return AsgiStream(stream, content_type=NDJSON)


async def _consult(
    datasette: Datasette, preview: Preview, actor: Actor, on_progress: OnProgress = ignored
) -> Consultation:
    request, profile = preview.pinned_request, preview.profile
    with dispatch.answered_in_time():
        return await consult(
            datasette,
            request,
            actor,
            profile=profile,
            findings=preview.findings,
            on_progress=on_progress,
        )


async def _visible_path(datasette: Datasette, request: Request, done: Consultation) -> str | None:
    """The path of a consultation, where it was stored and the actor may see it."""
    if done.unrecorded is not None:
        return None
    payload = await payloads.stored_payload(datasette, request.actor, done.row["id"])
    path: str = datasette.urls.path(f"{ADVICE}/{done.row['id']}")
    return None if payload is None else path


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run the work as long as the client is connected; cancel it when the client goes away.

    Raises:
        _ClientGoneError: the client went away.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(client_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        disconnected = not task.done()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if disconnected:
        raise _ClientGoneError
    return task.result()


class _ClientGoneError(Exception):
    """The client went away, so that the response is of no use."""


def _client_gone() -> Response:
    return Response.text("", status=499)  # nginx's status for it in access logs


async def _form_fields(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs((await request.post_body()).decode(), max_num_fields=5_000)
    except ValueError as error:
        raise BadRequestError(f"The body is no form: {error}") from None


async def _json_fields(request: Request) -> dict[str, list[str]]:
    """The fields of a JSON object, each with its values, as from a form."""
    try:
        body = json.loads(await request.post_body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("The body has to be a JSON object, which may be empty")
    return {name: _json_values(name, value) for name, value in body.items()}


def _json_values(name: str, value: object) -> list[str]:
    if name not in FIELDS:
        raise BadRequestError(f"There is no field {name!r}; use {', '.join(FIELDS)}")
    values: list[Any] = value if name == "exclude" and isinstance(value, list) else [value]
    if not all(isinstance(each, str | None) for each in values):
        raise BadRequestError(f"{name}: expected text" + (" in a list" * (name == "exclude")))
    return [each for each in values if each is not None]

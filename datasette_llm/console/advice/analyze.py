"""The page of a table: what code finds in it, its profile, and what a model would be sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from datasette import Forbidden, NotFound, Response
from datasette.utils import tilde_decode
from datasette.utils.asgi import AsgiStream
from datasette.utils.sqlite import sqlite3

from ...consultant.advice.consultation import consult, record_findings
from ...consultant.advice.previews import make_preview
from ...consultant.findings.dismissals import dismiss, restore
from ...consultant.findings.find import Findings
from ...consultant.table_access import may_analyze
from ...errors import LLMError, NewerDatabaseError
from ...hooks import dispatch
from ...permissions import ANALYZE
from ...web import (
    READ_METHODS,
    PostError,
    html_page,
    method_not_allowed,
    posted,
    streamed_page,
    streams,
    wants_html,
)
from ..connected import ClientGoneError, client_gone, while_connected
from ..navigation import ADVICE
from ..streaming import only_line
from . import payloads
from .payloads import FIELDS, BadRequestError
from .rendering import (
    analyze_path,
    findings_part,
    model_part,
    page_frame,
    problem_part,
    render_preview,
)
from .sending import CHANGED, send

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ...consultant.advice.consultation import ConsultationRequest
    from ...web import Write

    Fields = Mapping[str, list[str]]

logger = logging.getLogger("datasette_llm")

INCOMPLETE = "What follows here cannot be shown: {}. The log of the server says more"
_METHODS = (*READ_METHODS, "POST")


async def analyze_page(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """What is known of the table, part by part; a POST sends it to a model."""
    database, table = await permitted_table(datasette, request)
    if request.method not in _METHODS:
        return method_not_allowed(_METHODS)
    if request.method == "HEAD":
        return html_page("")
    fields: Fields = {}
    try:
        fields = await _form_fields(request) if request.method == "POST" else arguments(request)
        asked = await payloads.consultation_request(datasette, database, table, fields)
        if request.method == "GET":
            return _page_in_parts(datasette, request, asked)
        return await send(datasette, request, asked, fields)
    except BadRequestError as error:
        if streams(request):
            return only_line({"error": str(error)}, status=400)
        return await _corrected_page(datasette, request, (database, table), fields, error)
    except LLMError as error:
        raise NotFound(str(error)) from None
    except ClientGoneError:
        return client_gone()


async def analyze_json(datasette: Datasette, request: Request) -> Response:
    """The preview as JSON; a POST asks the model, and returns the stored consultation."""
    database, table = await permitted_table(datasette, request)
    if request.method not in _METHODS:
        return method_not_allowed(_METHODS)
    try:
        if request.method != "POST":
            fields: Fields = arguments(request)
            asked = await payloads.consultation_request(datasette, database, table, fields)
            work = make_preview(datasette, asked, request.actor)
            preview = await while_connected(request, work)
            return Response.json(await payloads.preview_payload(datasette, preview))
        fields = await _json_fields(request)
        asked = await payloads.consultation_request(datasette, database, table, fields)
        done = await while_connected(request, consult(datasette, asked, request.actor))
    except BadRequestError as error:
        return Response.error(str(error), 400)
    except LLMError as error:
        raise NotFound(str(error)) from None
    except ClientGoneError:
        return client_gone()
    payload = await payloads.shown_payload(datasette, request.actor, done.row)
    if done.unrecorded is not None:
        return Response.json(payload | {"ok": False, "error": done.unrecorded}, status=503)
    location = {"location": datasette.urls.path(f"{ADVICE}/{done.row['id']}.json")}
    return Response.json(payload, status=201, headers=location)


async def dismiss_finding(datasette: Datasette, request: Request) -> Response:
    """Dismiss a finding, or restore it with `restore`; then the page again, or JSON."""
    database, table = await permitted_table(datasette, request)
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


async def permitted_table(datasette: Datasette, request: Request) -> tuple[str, str]:
    """The names of a table that exists and that the actor may view and analyze."""
    route, table = (tilde_decode(request.url_vars[name]) for name in ("database", "table"))
    names = {db.route: name for name, db in datasette.databases.items()}
    database = names.get(route, route)
    # First, so that nothing reveals whether there is such a table.
    if not await may_analyze(datasette, request.actor, database, table):
        raise Forbidden(ANALYZE)
    await datasette.resolve_table(request)
    return database, table


def _page_in_parts(
    datasette: Datasette, request: Request, asked: ConsultationRequest
) -> AsgiStream:
    """The page, whose findings are there before the model is known."""

    async def stream(write: Write) -> None:
        notice = CHANGED if request.args.get("changed") else None
        head, tail = await page_frame(datasette, request, asked.database, asked.table, notice)
        await write(head)
        try:
            with dispatch.answered_in_time():
                await while_connected(request, _write_parts(datasette, request, asked, write))
        except ClientGoneError:
            return
        except LLMError as error:
            await write(await problem_part(datasette, request, str(error)))
        except Exception as error:  # of plugins' models and hooks; what is written stays
            logger.exception("The page of %s/%s is not complete", asked.database, asked.table)
            problem = INCOMPLETE.format(type(error).__name__)
            await write(await problem_part(datasette, request, problem))
        await write(tail)

    return streamed_page(stream)


async def _write_parts(
    datasette: Datasette, request: Request, asked: ConsultationRequest, write: Write
) -> None:
    async def show(profile: Mapping[str, Any], findings: Findings) -> None:
        payload = await payloads.findings_payload(datasette, asked, profile, findings)
        await write(await findings_part(datasette, request, payload))
        if not request.args:
            made = (asked, request.actor, profile, findings)
            if problem := await record_findings(datasette, *made):
                await write(await problem_part(datasette, request, problem))

    preview = await make_preview(datasette, asked, request.actor, show)
    payload = await payloads.preview_payload(datasette, preview)
    payload |= {"beside": payloads.beside_of(arguments(request))}
    await write(await model_part(datasette, request, payload))


async def _corrected_page(
    datasette: Datasette,
    request: Request,
    names: tuple[str, str],
    fields: Fields,
    error: BadRequestError,
) -> Response:
    """The page with what is wrong; nothing that was typed is lost."""
    kept = await payloads.valid_fields(datasette, *names, fields)
    asked = await payloads.consultation_request(datasette, *names, kept)
    try:
        preview = await make_preview(datasette, asked, request.actor)
    except LLMError as gone:
        raise NotFound(str(gone)) from None
    payload = await payloads.preview_payload(datasette, preview)
    typed = next(iter(fields.get("question", ())), None)
    payload |= {"question": typed, "beside": payloads.beside_of(fields)}
    return await render_preview(datasette, request, payload, str(error), status=400)


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

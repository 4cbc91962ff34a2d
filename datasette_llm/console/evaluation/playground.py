"""The playground: a prompt to one to four models, whose answers stand side by side.

Only a POST sends anything. With `accept: application/x-ndjson` it asks one model, and its answer
comes line by line; the page's script makes such a request for each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.asgi import AsgiStream

from ...access.snapshot import snapshot_of
from ...permissions import VIEW_LOG
from ...web import Payload, refused, streams, wants_html
from .. import formatting
from ..choices import purpose_names
from ..connected import ClientGoneError, client_gone, while_connected
from ..navigation import LOG, PLAYGROUND
from ..page import Page, rendered
from ..streaming import json_lines, only_line
from . import playground_run
from .playground_request import (
    FIELDS,
    MAX_MODELS,
    PlaygroundError,
    PlaygroundRequest,
    posted_fields,
)
from .playground_sources import Opened, opened

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..streaming import Emit

    Row = dict[str, Any]

_PART = "_llm_playground_answer.html"


async def playground_form(datasette: Datasette, request: Request) -> Payload:
    """The form, as an address fills it; nothing is sent."""
    given = PlaygroundRequest.of({name: request.args.getlist(name) for name in FIELDS})
    try:
        found = await opened(datasette, request, given)
    except PlaygroundError as error:
        form = await _form(datasette, request, Opened(given))
        return form | refused(str(error))
    return await _form(datasette, request, found)


async def playground_post(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """Send a prompt, or with `estimate` only say what it would cost."""
    try:
        fields = await posted_fields(request)
        given = PlaygroundRequest.of(fields)
    except PlaygroundError as error:
        return await _refusal(datasette, request, PlaygroundRequest(), str(error))
    if any(fields.get("estimate", ())):
        payload = await _form(datasette, request, Opened(given))
        return await _shown(datasette, request, payload)
    if problem := given.problem:
        return await _refusal(datasette, request, given, problem)
    if streams(request):
        return _streamed(datasette, request, given)
    try:
        work = playground_run.answers(datasette, given, request.actor)
        found = await while_connected(request, work)
    except ClientGoneError:
        return client_gone()
    payload = await _form(datasette, request, Opened(given)) | {"answers": found}
    return await _shown(datasette, request, payload)


PAGE = Page("playground", playground_form, playground_post)


def _streamed(
    datasette: Datasette, request: Request, given: PlaygroundRequest
) -> Response | AsgiStream:
    """The answer of one model: lines with `text`, and a last one with `answer` and its `html`."""
    if len(given.models) != 1:
        return only_line({"error": "Name one model: each answer has a stream of its own"}, 400)

    async def answered(emit: Emit) -> Payload:
        found = await playground_run.answer(
            datasette, given, given.models[0], request.actor, lambda text: emit({"text": text})
        )
        links = await datasette.allowed(action=VIEW_LOG, actor=request.actor)
        context = await _answer_context(datasette, found) | {"links_to_log": links}
        html = await datasette.render_template(_PART, context, request)
        return {"answer": found, "html": html}

    return json_lines(request, answered)


async def _refusal(
    datasette: Datasette, request: Request, given: PlaygroundRequest, problem: str
) -> Response:
    if streams(request):
        return only_line({"error": problem}, 400)
    payload = await _form(datasette, request, Opened(given)) | refused(problem)
    return await _shown(datasette, request, payload)


async def _shown(datasette: Datasette, request: Request, payload: Payload) -> Response:
    if not wants_html(request):
        return Response.json(payload, status=payload.get("status", 200))
    contexts = [await _answer_context(datasette, each) for each in payload["answers"] or ()]
    return await rendered(PAGE, datasette, request, payload | {"contexts": contexts})


async def _answer_context(datasette: Datasette, found: Row) -> Row:
    html = await playground_run.shown(datasette, found)
    return {"answer": found, "answer_html": html, "format": formatting}


async def _form(datasette: Datasette, request: Request, found: Opened) -> Payload:
    """What the form shows, and what its prompt would cost."""
    given, snapshot = found.request, await snapshot_of(datasette)
    names, problems = await purpose_names(datasette, snapshot)
    query = given.query()
    address = f"{PLAYGROUND}?{query}" if query else None
    return {
        "ok": True,
        "fields": {name: getattr(given, name) for name in FIELDS[:-1]},
        "chosen": list(given.models),
        "run": given.run,
        "row": found.row,
        "notices": [*problems, *found.notices],
        "models": sorted(snapshot.catalog.entries),
        "purposes": sorted({*names, *filter(None, [given.purpose])}),
        "most_models": MAX_MODELS,
        "estimates": await _estimates(datasette, request, given),
        "address": address and datasette.urls.path(address),
        "answers": None,
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
        "log": f"{datasette.urls.path(LOG)}?tag={playground_run.TAG}:{given.run}",
    }


async def _estimates(
    datasette: Datasette, request: Request, given: PlaygroundRequest
) -> Sequence[Row]:
    """Those of a request that can be sent."""
    if given.problem:
        return []
    return await playground_run.estimates(datasette, given, request.actor)

"""The page that tests a model, or each model of a purpose: a form and the results.

Only a POST sends a prompt. A failed probe is a result, so the HTTP status is 200; an unknown model
is such a failure too.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.asgi import AsgiStream

from ..access.snapshot import snapshot_of
from ..hooks import dispatch
from ..permissions import VIEW_LOG
from ..providers.failures import LABELS
from ..web import NDJSON, PostError, argument, as_json, posted, refused, streams, wants_html
from . import probe
from .choices import purpose_names
from .connected import ClientGoneError, client_gone, while_connected
from .page import Page, rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

NOTHING_NAMED = "Name a model, a purpose, or both: model tests that model, for the purpose if any"


async def probe_form(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The form; `?model=` and `?purpose=` fill it in, and nothing is sent."""
    given = {name: value for name in ("model", "purpose") if (value := argument(request, name))}
    return await _form(datasette, request, given)


async def probe_post(datasette: Datasette, request: Request) -> Response | AsgiStream:
    """Probe the model, or each model of the purpose, that a form or JSON names.

    A client that goes away cancels it.
    """
    try:
        given = await posted(request)
    except PostError as error:
        return await _refusal(datasette, request, {}, str(error))
    if not given.get("model") and not given.get("purpose"):
        return await _refusal(datasette, request, given, NOTHING_NAMED)
    if given.get("model") and streams(request):
        return _streamed(datasette, request, given)
    try:
        result = await while_connected(request, _probed(datasette, request, given))
    except ClientGoneError:
        return client_gone()
    if not wants_html(request):
        return Response.json(result)
    payload = {**await _form(datasette, request, given), "result": result}
    return await rendered(PAGE, datasette, request, payload)


PAGE = Page("test", probe_form, probe_post)


async def _refusal(
    datasette: Datasette, request: Request, given: Mapping[str, str], problem: str
) -> Response:
    if not wants_html(request):
        return as_json(refused(problem))
    payload = {**await _form(datasette, request, given), **refused(problem)}
    return await rendered(PAGE, datasette, request, payload)


async def _probed(
    datasette: Datasette,
    request: Request,
    given: Mapping[str, str],
    on_first_chunk: Callable[[float], None] = lambda first_chunk_ms: None,
) -> dict[str, Any]:
    model_id, purpose = given.get("model"), given.get("purpose")
    with dispatch.answered_in_time():
        if model_id:
            found = await probe.probe_model(
                datasette, model_id, purpose, request.actor, on_first_chunk
            )
            return found.payload()
        return await probe.probe_purpose(datasette, purpose or "", request.actor)


def _streamed(datasette: Datasette, request: Request, given: Mapping[str, str]) -> AsgiStream:
    """Lines of JSON: the time to the first chunk when it is there, and at the end the result."""

    async def stream(writer: AsgiWriter) -> None:
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        work = _probed(
            datasette, request, given, lambda ms: lines.put_nowait({"first_chunk_ms": ms})
        )
        task = asyncio.create_task(while_connected(request, work))
        task.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                await writer.write(json.dumps(line) + "\n")
            result = await task
            row = await _row(datasette, request, result)
            await writer.write(json.dumps({"result": result, "row": row}) + "\n")
        except ClientGoneError:
            return
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    return AsgiStream(stream, content_type=NDJSON)


async def _row(datasette: Datasette, request: Request, result: Mapping[str, Any]) -> str:
    """The row of the page's table for a result."""
    context = {"result": result, "payload": await _shared(datasette, request)}
    html: str = await datasette.render_template("_llm_probe_row.html", context, request)
    return html


async def _shared(datasette: Datasette, request: Request) -> dict[str, Any]:
    return {
        "kinds": dict(LABELS),
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
    }


async def _form(datasette: Datasette, request: Request, given: Mapping[str, str]) -> dict[str, Any]:
    """The choices of the form, and its values."""
    snapshot = await snapshot_of(datasette)
    model_id, purpose = given.get("model"), given.get("purpose")
    names, problems = await purpose_names(datasette, snapshot)
    found = None
    if purpose and not model_id:
        found = await probe.candidates(datasette, purpose, request.actor)
    return {
        "ok": True,
        "model_id": model_id,
        "purpose": purpose,
        "models": sorted(snapshot.catalog.entries),
        "purposes": sorted({*names, *([purpose] if purpose else [])}),
        "problems": problems,
        "candidates": found.payload() if found else None,
        "prompt": probe.PROMPT,
        "limit_s": probe.LIMIT_S,
        "most_models": probe.MAX_MODELS,
    } | await _shared(datasette, request)

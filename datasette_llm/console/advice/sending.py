"""Sending a preview: the advice at the end, or its progress line by line."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette import Response

from ...consultant.advice.consultation import Consultation, consult
from ...consultant.advice.previews import Preview, cached_preview, make_preview
from ...consultant.advice.progress import (
    AnswerGrows,
    ClaimChecked,
    ClaimRead,
    OnProgress,
    Progress,
    Step,
    ignored,
)
from ...hooks import dispatch
from ...web import streams
from ..connected import while_connected
from ..navigation import ADVICE
from ..streaming import json_lines, only_line
from . import payloads
from .rendering import preview_path, render_consultation, render_preview

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiStream, Request

    from ...consultant.advice.consultation import ConsultationRequest
    from ...consultant.table_access import Actor
    from ...web import Payload
    from ..streaming import Emit

CHANGED = (
    "Nothing was sent, because this is not what you have seen: the table, or what you chose, has "
    "changed since the preview. This is what would be sent now."
)
_GONE = "The consultation was stored, but you may not see it: the table is gone"


async def send(
    datasette: Datasette,
    request: Request,
    advice_request: ConsultationRequest,
    fields: Mapping[str, list[str]],
) -> Response | AsgiStream:
    """Send a preview, if it is the one that was shown; only the question may be new.

    Args:
        datasette: the Datasette instance.
        request: the POST.
        advice_request: what its fields ask.
        fields: `digest` is that of the preview; `beside` the consultation to show it beside.

    Raises:
        ClientGoneError: the client went away.
        LLMError: the table is gone.
    """
    digest = next(iter(fields.get("digest", ())), "")
    beside = payloads.beside_of(fields)
    preview = cached_preview(datasette, advice_request, digest)
    if preview is None:
        preview = await make_preview(datasette, advice_request, request.actor)
        if preview.digest != digest:
            return await _changed(datasette, request, preview, beside)
    work = partial(_consult, datasette, preview, advice_request.question, request.actor)
    if streams(request):
        return _streamed(datasette, request, work, beside)
    done = await while_connected(request, work())
    path = await _visible_path(datasette, request, done, beside)
    if path is not None:
        # 303, so that reloading the page does not send again.
        return Response.redirect(path, status=303)
    payload = await payloads.shown_payload(datasette, request.actor, done.row)
    return await render_consultation(datasette, request, payload, done.unrecorded, status=503)


async def _changed(
    datasette: Datasette, request: Request, preview: Preview, beside: str | None
) -> Response:
    """Show the new preview instead of sending it."""
    if not streams(request):
        payload = await payloads.preview_payload(datasette, preview)
        payload |= {"beside": beside}
        return await render_preview(datasette, request, payload, CHANGED, status=409)
    path = preview_path(datasette, preview.request, beside=beside, changed="1")
    return only_line({"next": path, "changed": CHANGED})


def _streamed(
    datasette: Datasette,
    request: Request,
    work: Callable[[OnProgress], Coroutine[Any, Any, Consultation]],
    beside: str | None,
) -> AsgiStream:
    """Lines of JSON: the progress, and at the end the path to go to."""

    async def consulted(emit: Emit) -> Payload:
        done = await work(lambda event: emit(line_of(event)))
        path = await _visible_path(datasette, request, done, beside)
        return {"next": path} if path else {"error": done.unrecorded or _GONE}

    return json_lines(request, consulted)


def line_of(event: Progress) -> Payload:
    """An event of a consultation's progress as JSON."""
    match event:
        case Step():
            return {"step": event.sentence}
        case AnswerGrows():
            return {"chars": event.chars, "tokens": event.tokens_estimate}
        case ClaimRead():
            return {"index": event.index, "claim": dict(event.claim)}
        case ClaimChecked():
            return {"index": event.index, "check": dict(event.check)}


async def _consult(
    datasette: Datasette,
    preview: Preview,
    question: str | None,
    actor: Actor,
    on_progress: OnProgress = ignored,
) -> Consultation:
    request, profile = preview.to_send(question), preview.profile
    with dispatch.answered_in_time():
        return await consult(
            datasette,
            request,
            actor,
            profile=profile,
            findings=preview.findings,
            on_progress=on_progress,
        )


async def _visible_path(
    datasette: Datasette, request: Request, done: Consultation, beside: str | None
) -> str | None:
    """The path of a consultation, where it was stored and the actor may see it."""
    if done.unrecorded is not None:
        return None
    payload = await payloads.stored_payload(datasette, request.actor, done.row["id"])
    path: str = datasette.urls.path(f"{ADVICE}/{done.row['id']}")
    if payload is None:
        return None
    return f"{path}?beside={beside}" if beside else path

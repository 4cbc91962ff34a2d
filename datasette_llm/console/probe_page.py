"""The page that tests a model, or each model of a purpose: a form and the results.

Only a POST sends a prompt. A failed probe is a result, so the HTTP status is 200; an unknown model
is such a failure too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette import Response

from ..access.snapshot import snapshot_of
from ..permissions import VIEW_LOG
from ..providers.failures import LABELS
from ..web import PostError, argument, as_json, posted, refused, wants_html
from . import probe
from .choices import purpose_names
from .page import Page, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasette.app import Datasette
    from datasette.utils.asgi import Request

NOTHING_NAMED = "Name a model, a purpose, or both: model tests that model, for the purpose if any"


async def probe_form(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The form; `?model=` and `?purpose=` fill it in, and nothing is sent."""
    given = {name: value for name in ("model", "purpose") if (value := argument(request, name))}
    return await _form(datasette, request, given)


async def probe_post(datasette: Datasette, request: Request) -> Response:
    """Probe the model, or each model of the purpose, that a form or JSON names."""
    try:
        given = await posted(request)
    except PostError as error:
        return await _refusal(datasette, request, {}, str(error))
    if not given.get("model") and not given.get("purpose"):
        return await _refusal(datasette, request, given, NOTHING_NAMED)
    result = await _probed(datasette, request, given)
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
    datasette: Datasette, request: Request, given: Mapping[str, str]
) -> dict[str, Any]:
    model_id, purpose = given.get("model"), given.get("purpose")
    if model_id:
        return (await probe.probe_model(datasette, model_id, purpose, request.actor)).payload()
    return await probe.probe_purpose(datasette, purpose or "", request.actor)


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
        "kinds": dict(LABELS),
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
    }

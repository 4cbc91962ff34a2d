"""The page that tries a model, or every model of a purpose: a form, and what came of it.

Only a POST sends a prompt. What fails is the result of a trial that worked, so its status is 200;
a model that llm does not know is such a failure too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette import Response

from ..access.snapshot import snapshot_of
from ..permissions import VIEW_LOG
from ..providers.failures import LABELS
from ..web import PostError, posted, refused, wants_html
from ..web import as_json as json_response
from . import probe as trial
from . import probe as trials
from .choices import purpose_names
from .page import Page, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasette.app import Datasette
    from datasette.utils.asgi import Request

NOTHING_NAMED = "Name a model, a purpose, or both: model_id tries the model, for the purpose if any"


async def probe_form(datasette: Datasette, request: Request) -> dict[str, Any]:
    """What can be tried; `?model_id=` and `?purpose=` fill in the form, and send nothing."""
    given = {name: value for name in ("model_id", "purpose") if (value := request.args.get(name))}
    return await _form(datasette, request, given)


async def probe_post(datasette: Datasette, request: Request) -> Response:
    """Try the model, or every model of the purpose, that a form or JSON names."""
    try:
        given = await posted(request)
    except PostError as error:
        return await _refusal(datasette, request, {}, str(error))
    if not given.get("model_id") and not given.get("purpose"):
        return await _refusal(datasette, request, given, NOTHING_NAMED)
    result = await _tried(datasette, request, given)
    if not wants_html(request):
        return Response.json(result)
    payload = {**await _form(datasette, request, given), "result": result}
    return await rendered(PAGE, datasette, request, payload)


PAGE = Page("test", "Test", probe_form, probe_post)


async def _refusal(
    datasette: Datasette, request: Request, given: Mapping[str, str], problem: str
) -> Response:
    if not wants_html(request):
        return json_response(refused(problem))
    payload = {**await _form(datasette, request, given), **refused(problem)}
    return await rendered(PAGE, datasette, request, payload)


async def _tried(
    datasette: Datasette, request: Request, given: Mapping[str, str]
) -> dict[str, Any]:
    model_id, purpose = given.get("model_id"), given.get("purpose")
    if model_id:
        return (await trial.probe_model(datasette, model_id, purpose, request.actor)).payload()
    return await trials.probe_purpose(datasette, purpose or "", request.actor)


async def _form(datasette: Datasette, request: Request, given: Mapping[str, str]) -> dict[str, Any]:
    """What the form needs, with what it was filled in with."""
    view = await snapshot_of(datasette)
    model_id, purpose = given.get("model_id"), given.get("purpose")
    names, problems = await purpose_names(datasette, view)
    wanted = None
    if purpose and not model_id:
        wanted = await trials.candidates(datasette, purpose, request.actor)
    return {
        "ok": True,
        "model_id": model_id,
        "purpose": purpose,
        "models": sorted(view.catalog.entries),
        "purposes": sorted({*names, *([purpose] if purpose else [])}),
        "problems": problems,
        "candidates": wanted.payload() if wanted else None,
        "prompt": trial.PROMPT,
        "limit_s": trial.LIMIT_S,
        "most_models": trials.MOST_MODELS,
        "kinds": dict(LABELS),
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
    }

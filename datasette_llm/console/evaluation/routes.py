"""The pages of evaluations: the list, a new one, its result, its cases; and what changes them.

Each asks for `manage-llm` first, and then for what its cases are made of: it is asked again at
each look.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from datasette import Forbidden, NotFound, Response
from datasette.utils.asgi import AsgiStream
from datasette.utils.sqlite import sqlite3

from ...access.snapshot import snapshot_of
from ...errors import LLMError, NewerDatabaseError
from ...evaluation import judge, run, store
from ...evaluation.definition import Definition, EvaluationError
from ...evaluation.estimate import Estimate, estimate, estimate_left
from ...evaluation.results import SHOWS, Show
from ...evaluation.schema import VERDICTS
from ...evaluation.sources import read_cases
from ...evaluation.store import Evaluation
from ...permissions import MANAGE
from ...web import (
    READ_METHODS,
    ArgumentError,
    PostError,
    as_json,
    method_not_allowed,
    page_cursor,
    page_limit,
    posted,
    refused,
    wants_html,
)
from ..choices import purpose_names
from ..formatting import counted
from ..log.csv_export import copy, without_formula
from ..navigation import EVALUATIONS
from ..page import render
from . import form, payloads

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

    from ...web import Payload

    View = Callable[[Datasette, Request], Awaitable[Response | AsgiStream]]

_ONE = rf"^{EVALUATIONS}/(?P<id>[0-9a-z]{{26}})"
_CASE = rf"{_ONE}/(?P<number>[0-9]{{1,9}})"
_EXPORTED_CASES = 200
_TYPES = {"csv": "text/csv", "json": "application/json", "jsonl": "application/jsonl"}
MAX_NOTE_CHARS = 2_000


def routes() -> list[tuple[str, View]]:
    """The pages, for Datasette's `register_routes`."""
    return [
        (rf"^{EVALUATIONS}$", _read_only(list_page)),
        (rf"^{EVALUATIONS}\.json$", _read_only(list_json)),
        (rf"^{EVALUATIONS}/new$", _managed(new_page)),
        (rf"^{EVALUATIONS}/new\.json$", _read_only(new_json)),
        (rf"{_ONE}$", _read_only(result_page)),
        (rf"{_ONE}\.json$", _read_only(result_json)),
        (rf"{_ONE}/answers\.(?P<format>csv|json|jsonl)$", _read_only(export)),
        (rf"{_ONE}/(?P<action>stop|resume)$", _managed(act)),
        (rf"{_ONE}/judge$", _managed(ask_judge)),
        (rf"{_ONE}/remove$", remove),
        (rf"{_CASE}$", _managed(case_page)),
        (rf"{_CASE}\.json$", _read_only(case_json)),
    ]


def _managed(view: View) -> View:
    async def managed(datasette: Datasette, request: Request) -> Response | AsgiStream:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        return await view(datasette, request)

    return managed


def _read_only(view: View) -> View:
    async def read_only(datasette: Datasette, request: Request) -> Response | AsgiStream:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        return await view(datasette, request)

    return read_only


# The list


async def list_page(datasette: Datasette, request: Request) -> Response:
    """The evaluations as a page, newest first."""
    payload = await _list_payload(datasette, request)
    context = {"title": "Evaluations", "payload": payload}
    status = 200 if payload["ok"] else 400
    return await _rendered(datasette, request, "llm_evaluations.html", context, status=status)


async def list_json(datasette: Datasette, request: Request) -> Response:
    """The same as JSON."""
    return as_json(await _list_payload(datasette, request))


async def _list_payload(datasette: Datasette, request: Request) -> Payload:
    try:
        limit = page_limit(request.args.get("limit"))
        before = page_cursor(request.args.get("next"))
    except ArgumentError as error:
        return refused(str(error), evaluations=[], next=None)
    found = await store.evaluations(datasette, before, limit + 1)
    return {
        "ok": True,
        "evaluations": [payloads.row_payload(datasette, *each) for each in found[:limit]],
        "next": found[limit - 1][0].id if len(found) > limit else None,
    }


# A new one


async def new_page(datasette: Datasette, request: Request) -> Response:
    """The form; a POST gives the estimate, and one that confirms it starts the evaluation."""
    if request.method == "POST":
        return await _posted_new(datasette, request)
    if request.method not in READ_METHODS:
        return method_not_allowed((*READ_METHODS, "POST"))
    given = {name: request.args[name] for name in request.args}
    return await _form_page(datasette, request, given, {"ok": True})


async def new_json(datasette: Datasette, request: Request) -> Response:
    """What the form offers, as JSON."""
    return as_json({"ok": True, **await form.choices(datasette, request.actor)})


async def _posted_new(datasette: Datasette, request: Request) -> Response:
    fields: Mapping[str, str] = {}
    try:
        if wants_html(request) or "json" not in request.headers.get("content-type", ""):
            fields = await posted(request)
            definition, given = form.definition_of(fields), fields.get("confirm", "")
        else:
            definition, given = await _json_definition(request)
        await _ensure_readable(datasette, request.actor, definition)
        found = await estimate(datasette, definition, request.actor)
        actor = request.actor
        if new_id := form.confirmed_id(datasette, given, definition, found, actor):
            return await _started(datasette, request, definition, found.cases, new_id)
        confirm = form.confirmation(datasette, definition, found, actor)
        payload = _estimate_payload(found, given, confirm)
    except (LLMError, PostError) as error:
        payload = refused(str(error))
    except sqlite3.Error as error:
        payload = refused(f"The internal database cannot be read or written: {error}", 503)
    if not wants_html(request):
        return as_json(payload)
    return await _form_page(datasette, request, fields, payload)


async def _json_definition(request: Request) -> tuple[Definition, str]:
    try:
        body = json.loads(await request.post_body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"The body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise EvaluationError("The body has to be a JSON object with candidates and cases")
    return Definition.of({k: v for k, v in body.items() if k != "confirm"}), str(
        body.get("confirm", "")
    )


def _estimate_payload(found: Estimate, given: str, confirm: str) -> Payload:
    notice = "It has changed since the estimate, so nothing was sent; confirm it again"
    return {
        "ok": True,
        "started": False,
        "notice": notice if given else None,
        "estimate": found.payload(),
        "confirm": confirm,
    }


async def _started(
    datasette: Datasette, request: Request, definition: Definition, confirmed: int, new_id: str
) -> Response:
    """Start an evaluation, but once for each confirmation, however often that is sent."""
    left_out = Counter[str]()
    cases = read_cases(datasette, definition, left_out, confirmed)
    if not await store.was_made(datasette, new_id):
        with contextlib.suppress(sqlite3.IntegrityError):  # it is being made, by the same form
            evaluation = await store.create(
                datasette, definition, cases, left_out, request.actor, evaluation_id=new_id
            )
            run.start(datasette, evaluation, request.actor)
    path = datasette.urls.path(f"{EVALUATIONS}/{new_id}")
    if wants_html(request):
        return Response.redirect(path, status=303)
    payload = {"ok": True, "started": True, "id": new_id}
    return Response.json(payload, status=201, headers={"location": f"{path}.json"})


async def _form_page(
    datasette: Datasette, request: Request, fields: Mapping[str, str], payload: Payload
) -> Response:
    offered = await form.choices(datasette, request.actor)
    if request.method != "POST":
        fields = {**dict.fromkeys(offered["default_checks"], "on"), **fields}
    context = {"title": "New evaluation", "payload": payload, "offered": offered, "fields": fields}
    status = 200 if payload["ok"] else int(payload["status"])
    return await _rendered(
        datasette, request, "llm_evaluation_new.html", context, here="New", status=status
    )


# The result


async def result_page(datasette: Datasette, request: Request) -> Response:
    """What came of an evaluation, with a page of its cases."""
    evaluation, payload = await _result(datasette, request)
    purposes, _ = await purpose_names(datasette, await snapshot_of(datasette))
    context = {
        "title": evaluation.name,
        "payload": payload,
        "path": datasette.urls.path(f"{EVALUATIONS}/{evaluation.id}"),
        "rubric": next((each["rubric"] for each in payload["judgings"]), judge.DEFAULT_RUBRIC),
        "assignable": evaluation.purpose in purposes,
        "definition": evaluation.definition,
        "positions": evaluation.compared,
    }
    here = evaluation.name
    return await _rendered(datasette, request, "llm_evaluation.html", context, here=here)


async def result_json(datasette: Datasette, request: Request) -> Response:
    """The same as JSON."""
    return as_json((await _result(datasette, request))[1])


async def _result(datasette: Datasette, request: Request) -> tuple[Evaluation, Payload]:
    evaluation = await _evaluation(datasette, request)
    show = request.args.get("show") or "all"
    candidate, page = (_whole(request.args.get(name)) for name in ("candidate", "page"))
    if show not in SHOWS:
        raise NotFound(f"show: expected one of {', '.join(SHOWS)}")
    wanted: Show = show
    check = request.args.get("check") or None
    return evaluation, await payloads.result_payload(
        datasette, evaluation, request.actor, wanted, candidate, check, page or 1
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 10 else None


async def export(datasette: Datasette, request: Request) -> AsgiStream:
    """Every answer, as CSV, JSON or lines of JSON, streamed."""
    evaluation = await _evaluation(datasette, request)
    kind = request.url_vars["format"]

    async def stream(writer: AsgiWriter) -> None:
        await copy(_exported(datasette, evaluation, kind), writer, request)

    headers = {"content-disposition": f'attachment; filename="evaluation-{evaluation.id}.{kind}"'}
    return AsgiStream(stream, headers=headers, content_type=f"{_TYPES[kind]}; charset=utf-8")


async def _exported(datasette: Datasette, evaluation: Evaluation, kind: str) -> AsyncIterator[str]:
    begun = False
    if kind == "json":
        yield '{"ok": true, "answers": ['
    for start in range(1, evaluation.case_count + 1, _EXPORTED_CASES):
        numbers = range(start, min(start + _EXPORTED_CASES, evaluation.case_count + 1))
        cases = await store.answered_cases(datasette, evaluation.id, numbers)
        rows = payloads.exported(evaluation, cases)
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        if kind == "csv":
            yield _csv(rows, head=not begun)
        elif kind == "jsonl":
            yield "".join(f"{text}\n" for text in texts)
        else:
            yield ",\n".join(["", *texts] if begun and texts else texts)
        begun = begun or bool(rows)  # the first cases may have no answer yet
    if kind == "json":
        yield "]}\n"


def _csv(rows: list[dict[str, Any]], *, head: bool) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.writer(text)
        if head:
            writer.writerow(rows[0])
        for row in rows:
            joined = row | {"failed_checks": ", ".join(row["failed_checks"])}
            writer.writerow(map(without_formula, joined.values()))
    return text.getvalue()


# A case


async def case_page(datasette: Datasette, request: Request) -> Response:
    """A case with its answers; a POST is a person's verdict."""
    evaluation = await _evaluation(datasette, request)
    if request.method == "POST":
        return await _judge(datasette, request, evaluation)
    if request.method not in READ_METHODS:
        return method_not_allowed((*READ_METHODS, "POST"))
    payload = await _case_payload(datasette, request, evaluation)
    return await _case_rendered(datasette, request, evaluation, payload)


async def case_json(datasette: Datasette, request: Request) -> Response:
    """A case as JSON."""
    evaluation = await _evaluation(datasette, request)
    return as_json(await _case_payload(datasette, request, evaluation))


async def _case_payload(datasette: Datasette, request: Request, evaluation: Evaluation) -> Payload:
    number = int(request.url_vars["number"])
    payload = await payloads.case_payload(datasette, evaluation, number)
    if payload is None:
        raise NotFound(f"The evaluation has no case {number}")
    return payload


async def _case_rendered(
    datasette: Datasette,
    request: Request,
    evaluation: Evaluation,
    payload: Payload,
    problem: str | None = None,
) -> Response:
    compared = await asyncio.to_thread(
        payloads.differences, payload["answers"], evaluation.reference
    )
    context = {
        "title": f"Case {payload['number']:,}",
        "payload": payload,
        "problem": problem,
        "differences": compared,
        "compared": evaluation.compared,
        "path": datasette.urls.path(f"{EVALUATIONS}/{evaluation.id}"),
        "verdicts": VERDICTS,
    }
    here = f"{evaluation.name}: case {payload['number']:,}"
    return await _rendered(
        datasette,
        request,
        "llm_evaluation_case.html",
        context,
        here=here,
        status=400 if problem else 200,
    )


async def _judge(datasette: Datasette, request: Request, evaluation: Evaluation) -> Response:
    payload = await _case_payload(datasette, request, evaluation)
    try:
        fields = await posted(request)
        row = _verdict(fields, payload, evaluation)
        row["actor_id"] = (request.actor or {}).get("id")
        await store.add_verdict(datasette, evaluation.id, **row)
    except (PostError, EvaluationError) as error:
        if wants_html(request):
            return await _case_rendered(datasette, request, evaluation, payload, str(error))
        return Response.error(str(error), 400)
    except sqlite3.Error as error:
        return Response.error(f"The internal database cannot be written: {error}", 503)
    if not wants_html(request):
        return Response.json({"ok": True}, status=201)
    number = payload["number"]
    following = number + 1 if fields.get("next") and number < evaluation.case_count else number
    path = datasette.urls.path(f"{EVALUATIONS}/{evaluation.id}/{following}")
    return Response.redirect(path, status=303)


def _verdict(fields: Mapping[str, str], payload: Payload, evaluation: Evaluation) -> dict[str, Any]:
    position, verdict = _whole(fields.get("candidate")), fields.get("verdict")
    answered = [each["position"] for each in payload["answers"]]
    if position not in evaluation.compared or not {position, evaluation.reference} <= {*answered}:
        raise EvaluationError(
            "candidate: give the number of one that has answered, as that has which it is "
            "compared with"
        )
    if verdict not in VERDICTS:
        raise EvaluationError(f"verdict: expected one of {', '.join(VERDICTS)}")
    note = fields.get("note", "").strip()
    if len(note) > MAX_NOTE_CHARS:
        raise EvaluationError(f"note: expected at most {MAX_NOTE_CHARS:,} characters")
    return {
        "case_number": payload["number"],
        "candidate": position,
        "verdict": verdict,
        "note": note or None,
    }


# Stop, resume, remove


async def act(datasette: Datasette, request: Request) -> Response:
    """Stop an evaluation, or resume it; then its page again, or JSON."""
    evaluation = await _evaluation(datasette, request)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    try:
        if request.url_vars["action"] == "stop":
            if not await run.stop(datasette, evaluation.id):
                raise EvaluationError("The evaluation does not run in this process")
        else:
            await _resume(datasette, evaluation, request.actor, await posted(request))
    except PostError as error:
        return Response.error(str(error), 400)
    except LLMError as error:
        return Response.error(str(error), 409)
    return _back(datasette, request, f"{EVALUATIONS}/{evaluation.id}")


async def _resume(
    datasette: Datasette, evaluation: Evaluation, actor: Any, fields: Mapping[str, str]
) -> None:
    found = await estimate_left(datasette, evaluation, actor)
    if not found.requests:
        raise EvaluationError("Every answer is there already")
    _ensure_confirmed(found.requests, fields)
    run.start(datasette, evaluation, actor)


async def ask_judge(datasette: Datasette, request: Request) -> Response:
    """Have the judge compare answers, once the number of its requests is confirmed."""
    evaluation = await _evaluation(datasette, request)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    try:
        fields = await posted(request)
        rubric = fields.get("rubric", judge.DEFAULT_RUBRIC).replace("\r\n", "\n")
        if len(rubric) > judge.MAX_RUBRIC_CHARS:
            raise EvaluationError(f"rubric: at most {judge.MAX_RUBRIC_CHARS:,} characters")
        found = await judge.estimate(datasette, evaluation, request.actor)
        if found.problem is not None:
            raise EvaluationError(f"There is no judge: {found.problem}")
        if not found.requests:
            raise EvaluationError("There is nothing to compare")
        _ensure_confirmed(found.requests, fields)
        run.start_judge(datasette, evaluation, request.actor, rubric)
    except (PostError, EvaluationError) as error:
        return Response.error(str(error), 409 if isinstance(error, EvaluationError) else 400)
    return _back(datasette, request, f"{EVALUATIONS}/{evaluation.id}")


def _ensure_confirmed(requests: int, fields: Mapping[str, str]) -> None:
    if (_whole(fields.get("confirm")) or 0) < requests:
        sent = counted(requests, "request")
        raise EvaluationError(f"{sent} would be sent; send their number as confirm")


async def remove(datasette: Datasette, request: Request) -> Response:
    """Remove an evaluation; those who made it may, too."""
    manages = await datasette.allowed(action=MANAGE, actor=request.actor)
    evaluation = await store.evaluation(datasette, request.url_vars["id"])
    actor = request.actor or {}
    # A token that is restricted stands for less than the one whose it is.
    own_id = None if "_r" in actor else actor.get("id")
    if not manages and (own_id is None or evaluation is None or evaluation.actor_id != own_id):
        raise Forbidden(MANAGE)
    if request.method != "POST":
        return method_not_allowed(("POST",))
    if evaluation is None:
        raise NotFound("There is no such evaluation, or no longer")
    try:
        if (await posted(request)).get("confirm") != "remove":
            return Response.error("To remove it for good, send confirm=remove", 400)
        await run.stop(datasette, evaluation.id)
        await store.remove(datasette, evaluation.id, request.actor)
    except PostError as error:
        return Response.error(str(error), 400)
    except (sqlite3.Error, NewerDatabaseError) as error:
        return Response.error(f"The internal database cannot be written: {error}", 503)
    return _back(datasette, request, EVALUATIONS)


def _back(datasette: Datasette, request: Request, path: str) -> Response:
    if wants_html(request):
        return Response.redirect(datasette.urls.path(path), status=303)
    return Response.json({"ok": True})


async def _evaluation(datasette: Datasette, request: Request) -> Evaluation:
    """The evaluation of an address, whose cases the actor may see."""
    found = await store.evaluation(datasette, request.url_vars["id"])
    if found is None:
        raise NotFound("There is no such evaluation, or no longer")
    await _ensure_readable(datasette, request.actor, found.definition)
    return found


async def _ensure_readable(datasette: Datasette, actor: Any, definition: Definition) -> None:
    if not await definition.cases.may_be_read(datasette, actor):
        raise Forbidden(definition.cases.missing)


async def _rendered(
    datasette: Datasette,
    request: Request,
    template: str,
    context: dict[str, Any],
    *,
    here: str | None = None,
    status: int = 200,
) -> Response:
    return await render(
        datasette, request, template, context, path=EVALUATIONS, here=here, status=status
    )

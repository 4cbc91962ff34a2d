"""The HTML of the consultant's pages: their contexts and templates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Response
from datasette.resources import DatabaseResource
from markupsafe import Markup

from ...consultant.advice.dataset import MALFORMED
from ...consultant.advice.matching_rows import has_rows
from ...consultant.advice.types import type_named
from ...permissions import VIEW_LOG
from ...web import html_page
from ..formatting import dollars, duration
from ..log.call_page import MAX_SHOWN_CHARS
from ..markdown import as_html, as_inline_html, names_as_code
from ..navigation import ADVICE
from ..page import render
from .evidence_links import sql_of, table_query
from .profile_cards import cards, value_text

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ...consultant.advice.consultation import ConsultationRequest
    from ...web import Payload

    Link = Mapping[str, str]

# A verdict for people; those of earlier versions are shown as they are.
VERDICTS = {
    "confirmed": "Confirmed",
    "contradicted": "Contradicted",
    "counted": "Counted",
    "opinion": "Opinion",
    "not_checkable": "Not checkable",
    "unchecked": "not checked",
}
# Those whose evidence was counted, so that there is something to see.
COUNTED = ("confirmed", "contradicted", "counted")
# Servers and proxies take as much of an address.
MAX_ADDRESS_CHARS = 6_000
# Where the parts of the page of a table go; no escaped text has it.
_PARTS = Markup("<!-- parts -->")


def analyze_path(datasette: Datasette, database: str, table: str) -> str:
    """The path of a table's preview."""
    return f"{datasette.urls.table(database, table)}/-/llm-analyze"


def preview_path(datasette: Datasette, asked: ConsultationRequest, **more: str | None) -> str:
    """The path of the preview of a request.

    Args:
        datasette: the Datasette instance.
        asked: the request.
        **more: other fields; those that are None are left out.
    """
    fields = {"model": asked.model_id, "question": asked.question, "type": asked.kind.name, **more}
    path = analyze_path(datasette, asked.database, asked.table)
    return _with_fields(path, fields, asked.exclude)


def _with_fields(path: str, fields: Mapping[str, str | None], exclude: Sequence[str]) -> str:
    """An address with fields, without a question that would make it too long."""
    given = [(name, value) for name, value in fields.items() if value]
    given += [("exclude", name) for name in exclude]
    address = f"{path}?{urlencode(given, errors='replace')}"
    if len(address) <= MAX_ADDRESS_CHARS or not fields.get("question"):
        return address
    return _with_fields(path, {**fields, "question": None}, exclude)


# The page of a table


async def render_preview(
    datasette: Datasette,
    request: Request,
    payload: Payload,
    notice: str | None = None,
    status: int = 200,
) -> Response:
    """The page of a table, as a whole."""
    head, tail = await page_frame(datasette, request, payload["database"], payload["table"], notice)
    parts = [
        await findings_part(datasette, request, payload),
        await model_part(datasette, request, payload),
    ]
    return html_page("".join([head, *parts, tail]), status)


async def page_frame(
    datasette: Datasette, request: Request, database: str, table: str, notice: str | None
) -> tuple[str, str]:
    """What comes before and after the parts of the page of a table."""
    context = _table_context(datasette, database, table)
    context |= {"notice": notice, "parts": _PARTS}
    page = await _page(datasette, request, "llm_analyze.html", context)
    head, _, tail = page.body.partition(_PARTS)
    return head, tail


async def findings_part(datasette: Datasette, request: Request, payload: Payload) -> str:
    """The part of the page that needs no model, from `payloads.findings_payload`."""
    context = _table_context(datasette, payload["database"], payload["table"])
    context |= {
        "payload": payload,
        "finding_links": await _linked(datasette, request, payload, context["table_path"]),
    }
    return await _part(datasette, request, "_llm_analyze_findings.html", context)


async def model_part(datasette: Datasette, request: Request, payload: Payload) -> str:
    """The rest of the page, from `payloads.preview_payload`."""
    context = _table_context(datasette, payload["database"], payload["table"])
    context |= {
        "payload": payload,
        "cards": cards(payload["profile"]),
        "cost": dollars(payload["cost_dollars"]),
        "most_chars": MAX_SHOWN_CHARS,
    }
    return await _part(datasette, request, "_llm_analyze_model.html", context)


async def problem_part(datasette: Datasette, request: Request, problem: str) -> str:
    """What went wrong after the page has begun."""
    return await _part(datasette, request, "_llm_problem.html", {"problem": problem})


async def _part(
    datasette: Datasette, request: Request, template: str, context: Mapping[str, Any]
) -> str:
    context = {**context, "names_as_code": names_as_code}
    html: str = await datasette.render_template(template, context, request=request)
    return html


def _table_context(datasette: Datasette, database: str, table: str) -> dict[str, Any]:
    return {
        "database": database,
        "table": table,
        "path": analyze_path(datasette, database, table),
        "table_path": datasette.urls.table(database, table),
        "list_path": datasette.urls.path(ADVICE),
        "about": urlencode({"database": database, "table": table}, errors="replace"),
    }


# A consultation


async def render_consultation(
    datasette: Datasette,
    request: Request,
    payload: Payload,
    warning: str | None = None,
    status: int = 200,
    beside: Payload | None = None,
) -> Response:
    """The page of a consultation.

    Args:
        datasette: the Datasette instance.
        request: the request.
        payload: of the consultation.
        warning: what else a person has to know, or None.
        status: of the response.
        beside: the payload of another one to show beside it, or None.
    """
    both = [payload] if beside is None else [beside, payload]
    context = {
        "answers": [await _answer_context(datasette, request, each) for each in both],
        "database": payload["consultation"]["database"],
        "table": payload["consultation"]["table"],
        "warning": warning,
        "list_path": datasette.urls.path(ADVICE),
        "verdicts": VERDICTS,
        "value_text": value_text,
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
        "most_chars": MAX_SHOWN_CHARS,
    }
    return await _page(datasette, request, "llm_consultation.html", context, status)


async def _answer_context(
    datasette: Datasette, request: Request, payload: Payload
) -> dict[str, Any]:
    consultation, usage = payload["consultation"], payload.get("usage")
    database, table = consultation["database"], consultation["table"]
    path = datasette.urls.table(database, table) if database in datasette.databases else None
    advice = await asyncio.to_thread(_advice_as_html, consultation["advice"] or {})
    return {
        "consultation": consultation,
        "kind": type_named(consultation["type"]),
        "table_path": path,
        "ask_path": path and _ask_path(datasette, consultation),
        "html": advice,
        "claims": await _claims(datasette, request, consultation, path),
        "links": await _linked(datasette, request, consultation, path),
        "took": duration(consultation["latency_ms"]),
        "cost": dollars(usage["cost_dollars"]) if usage else "",
        "usage": usage,
        "profile": _pretty(consultation["profile"]),
    }


def _ask_path(datasette: Datasette, consultation: Payload) -> str:
    """The path that asks the same again, to be shown beside it."""
    columns = {"model": "model_id", "question": "question", "type": "type", "beside": "id"}
    fields = {name: consultation[column] for name, column in columns.items()}
    path = analyze_path(datasette, consultation["database"], consultation["table"])
    return _with_fields(path, fields, consultation["exclude"])


def _advice_as_html(advice: Mapping[str, Any]) -> dict[str, Markup]:
    """The texts of a model, in a thread since Markdown may be slow to parse."""
    names = ("suggested_action", "reasoning_summary")
    return {name: as_html(advice[name]) for name in names if advice.get(name)}


async def _claims(
    datasette: Datasette, request: Request, consultation: Payload, table_path: str | None
) -> list[dict[str, Any]]:
    """The claims of the advice, each with its check and where to see its evidence."""
    flags = (consultation["advice"] or {}).get("risk_flags") or ()
    checks = iter(consultation["checks"])
    links = await _links_of(datasette, request, consultation, table_path)
    found = []
    for flag in flags:
        check = None if flag["kind"] == MALFORMED else next(checks, None)
        seen_at: list[Link] = []
        if check is not None and check["status"] in COUNTED:
            seen_at = links(flag.get("evidence"), check.get("sql"))
        found.append({"flag": flag, "check": check, "links": seen_at})
    sentences = [each["flag"]["claim"] for each in found]
    htmls = await asyncio.to_thread(lambda: [as_inline_html(each) for each in sentences])
    return [each | {"html": html} for each, html in zip(found, htmls, strict=True)]


# Links to the rows of evidence


async def _linked(
    datasette: Datasette, request: Request, payload: Payload, table_path: str | None
) -> list[list[Link]]:
    """The links of each finding."""
    links = await _links_of(datasette, request, payload, table_path)
    table = payload["table"]
    return [
        links(each.get("evidence"), sql_of(each.get("evidence"), table))
        for each in payload["findings"]
    ]


async def _links_of(
    datasette: Datasette, request: Request, payload: Payload, table_path: str | None
) -> Callable[[Mapping[str, Any] | None, str | None], list[Link]]:
    """A function that makes the links of evidence and its SQL."""
    profile, database = payload["profile"], payload["database"]
    if table_path is None or profile is None:
        return lambda evidence, sql: []
    resource = DatabaseResource(database)
    may_query = await datasette.allowed(
        action="execute-sql", resource=resource, actor=request.actor
    )
    sql_path = f"{datasette.urls.database(database)}/-/query"
    shows_rows = profile.get("kind") == "table" and profile.get("values") != "none"

    def links(evidence: Mapping[str, Any] | None, sql: str | None) -> list[Link]:
        found = []
        if shows_rows and has_rows(evidence):
            query = urlencode({"evidence": json.dumps(evidence)})
            path = analyze_path(datasette, database, payload["table"])
            found.append({"href": f"{path}/rows?{query}", "label": "First rows"})
        if filters := table_query(evidence, profile):
            found.append({"href": f"{table_path}?{filters}", "label": "All in the table"})
        elif sql and may_query:
            query = urlencode({"sql": sql}, errors="replace")
            found.append({"href": f"{sql_path}?{query}", "label": "Count with SQL"})
        return [each for each in found if len(each["href"]) <= MAX_ADDRESS_CHARS]

    return links


async def render_rows(
    datasette: Datasette, request: Request, payload: Payload, status: int
) -> Response:
    """The page of the first rows that meet some evidence."""
    context = _table_context(datasette, payload["database"], payload["table"])
    context |= {"payload": payload}
    return await _page(datasette, request, "llm_matching_rows.html", context, status)


# The list


async def render_list(datasette: Datasette, request: Request, payload: Payload) -> Response:
    """The page of the list of consultations."""
    names = ("database", "table", "limit", "next")
    query = urlencode({name: payload[name] for name in names if payload[name]}, errors="replace")
    context = {"payload": payload, "path": datasette.urls.path(ADVICE), "next_query": query}
    status = 200 if payload["ok"] else 400
    return await _page(datasette, request, "llm_consultations.html", context, status)


async def _page(
    datasette: Datasette,
    request: Request,
    template: str,
    context: Mapping[str, Any],
    status: int = 200,
) -> Response:
    """A page, which the crumbs name by its table."""
    database, table = context.get("database"), context.get("table")
    here = None if table is None else f"{database}: {table}"
    context = {**context, "names_as_code": names_as_code}
    return await render(
        datasette, request, template, context, path=ADVICE, here=here, status=status
    )


def _pretty(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2)

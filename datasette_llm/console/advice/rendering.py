"""The HTML of the consultant's pages: their contexts and templates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from datasette import Response

from ...consultant.advice.types import type_named
from ...permissions import VIEW_LOG
from ..log.call_page import MAX_SHOWN_CHARS
from ..navigation import ADVICE
from ..page import render

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ...web import Payload


def analyze_path(datasette: Datasette, database: str, table: str) -> str:
    """The path of a table's preview."""
    return f"{datasette.urls.table(database, table)}/-/llm-analyze"


async def render_preview(
    datasette: Datasette,
    request: Request,
    payload: Payload,
    notice: str | None = None,
    status: int = 200,
) -> Response:
    """The page of a preview."""
    database, table = payload["database"], payload["table"]
    context = {
        "payload": payload,
        "notice": notice,
        "path": analyze_path(datasette, database, table),
        "table_path": datasette.urls.table(database, table),
        "list_path": datasette.urls.path(ADVICE),
    }
    here = f"{database}: {table}"
    return await render(
        datasette, request, "llm_analyze.html", context, path=ADVICE, here=here, status=status
    )


async def render_consultation(
    datasette: Datasette,
    request: Request,
    payload: Payload,
    warning: str | None = None,
    status: int = 200,
) -> Response:
    """The page of a consultation."""
    consultation = payload["consultation"]
    database, table = consultation["database"], consultation["table"]
    exists = database in datasette.databases
    context = {
        "consultation": consultation,
        "warning": warning,
        "kind": type_named(consultation["type"]),
        "table_path": datasette.urls.table(database, table) if exists else None,
        "list_path": datasette.urls.path(ADVICE),
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
        "profile": _pretty(consultation["profile"]),
        "most_chars": MAX_SHOWN_CHARS,
    }
    here = f"{database}: {table}"
    return await render(
        datasette, request, "llm_consultation.html", context, path=ADVICE, here=here, status=status
    )


async def render_list(datasette: Datasette, request: Request, payload: Payload) -> Response:
    """The page of the list of consultations."""
    query = urlencode({"limit": payload["limit"], "next": payload["next"] or ""})
    context = {"payload": payload, "path": datasette.urls.path(ADVICE), "next_query": query}
    status = 200 if payload["ok"] else 400
    return await render(
        datasette, request, "llm_consultations.html", context, path=ADVICE, status=status
    )


def _pretty(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2)

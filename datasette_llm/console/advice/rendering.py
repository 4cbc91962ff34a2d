"""What the consultant's addresses have in common: where they are, and how they are shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from datasette import Response

from ...consultant.advice.types import type_named
from ...permissions import VIEW_LOG
from ..navigation import ADVICE, section

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    Payload = dict[str, Any]


def analyze_path(datasette: Datasette, database: str, table: str) -> str:
    """The address of a table's preview."""
    return f"{datasette.urls.table(database, table)}/-/llm-analyze"


async def stored_page(
    datasette: Datasette,
    request: Request,
    payload: Payload,
    warning: str | None = None,
    status: int = 200,
) -> Response:
    """A consultation as a page."""
    shown = payload["consultation"]
    kind = type_named(shown["type"])
    known = shown["database"] in datasette.databases
    context = {
        "consultation": shown,
        "warning": warning,
        "kind": kind,
        "table_path": datasette.urls.table(shown["database"], shown["table"]) if known else None,
        "list_path": datasette.urls.path(ADVICE),
        "links_to_log": await datasette.allowed(action=VIEW_LOG, actor=request.actor),
        "texts": {name: _pretty(shown[name]) for name in ("profile",)},
    }
    return await shown_page(datasette, request, "llm_consultation.html", context, status)


def _pretty(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2)


async def shown_page(
    datasette: Datasette, request: Request, template: str, context: Payload, status: int
) -> Response:
    """A template as a page."""
    context = context | {"documentation": section(datasette, ADVICE)}
    html = await datasette.render_template(template, context, request=request)
    html = html.encode(errors="replace").decode()  # a name may have half a character
    return Response.html(html, status=status)

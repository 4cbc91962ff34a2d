"""The first rows that meet the evidence of a finding or a claim, with links to their pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils import tilde_encode

from ...consultant.advice.matching_rows import EvidenceError, MatchingRows, matching_rows
from ...web import READ_METHODS, as_json, method_not_allowed, refused, status_of
from ..connected import ClientGoneError, client_gone, while_connected
from .analyze import permitted_table
from .rendering import render_rows

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ...web import Payload


async def rows_page(datasette: Datasette, request: Request) -> Response:
    """The rows as a page."""
    names = await permitted_table(datasette, request)
    if request.method not in READ_METHODS:
        return method_not_allowed()
    try:
        payload = await _payload(datasette, request, *names)
    except ClientGoneError:
        return client_gone()
    return await render_rows(datasette, request, payload, status_of(payload))


async def rows_json(datasette: Datasette, request: Request) -> Response:
    """The rows as JSON."""
    names = await permitted_table(datasette, request)
    if request.method not in READ_METHODS:
        return method_not_allowed()
    try:
        return as_json(await _payload(datasette, request, *names))
    except ClientGoneError:
        return client_gone()


async def _payload(datasette: Datasette, request: Request, database: str, table: str) -> Payload:
    evidence = request.args.get("evidence") or "null"
    work = matching_rows(datasette, database, table, evidence, request.actor)
    try:
        found = await while_connected(request, work)
    except EvidenceError as error:
        return refused(str(error), database=database, table=table)
    rows = _rows(datasette, database, table, found)
    return {"ok": True, "database": database, "table": table, **asdict(found), "rows": rows}


def _rows(
    datasette: Datasette, database: str, table: str, found: MatchingRows
) -> list[dict[str, Any]]:
    rows = []
    for key, values in found.rows:
        path = ",".join(tilde_encode(str(each)) for each in key)
        address = datasette.urls.row(database, table, path)
        label = ", ".join(f"{len(e):,} bytes" if isinstance(e, bytes) else str(e) for e in key)
        rows.append({"path": address, "key": label, "values": list(values)})
    return rows

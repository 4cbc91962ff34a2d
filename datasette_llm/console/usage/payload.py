"""What the Usage page shows and its JSON contains."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ...access.snapshot import snapshot_of
from ...log.schema import migrate
from ...log.totals import choices
from ...providers.names import provider_of
from ..log.csv_export import without_formula
from ..log.payloads import log_status, read
from .figures import Figures, Usage, named
from .request import UsageRequest

if TYPE_CHECKING:
    from datasette.app import Datasette


async def usage(datasette: Datasette, request: UsageRequest) -> tuple[dict[str, Any], Figures]:
    """The payload, and the figures that it is made of."""
    status = await log_status(datasette)
    work = partial(
        _figures,
        request=request,
        now=datetime.datetime.now(datetime.UTC),
        providers=await providers(datasette),
        limit_ms=datasette.setting("sql_time_limit_ms"),
    )
    found = await read(datasette, work)
    if found is None:
        found = await asyncio.to_thread(_of_empty_log, work)
    return status | found.payload | {"chart": found.chart.payload()}, found


async def csv_text(datasette: Datasette, request: UsageRequest) -> str:
    """All rows of the table as CSV."""
    _, found = await usage(datasette, request)
    return await asyncio.to_thread(_csv, request, found)


async def providers(datasette: Datasette) -> dict[str, str]:
    """The provider of each model that is installed."""
    catalog = (await snapshot_of(datasette)).catalog
    return {model_id: provider_of(entry.model) for model_id, entry in catalog.entries.items()}


async def form_choices(datasette: Datasette) -> dict[str, Any]:
    """The choices of the filters, for the form of a request that is refused."""
    known = sorted(set((await providers(datasette)).values()))
    found = await read(datasette, choices) or {}
    return found | {"provider": {"values": known, "more": False, "none": True}}


def _figures(
    connection: sqlite3.Connection,
    request: UsageRequest,
    now: datetime.datetime,
    providers: dict[str, str],
    limit_ms: float,
) -> Figures:
    return Usage(connection, request, now, providers, limit_ms).figures()


def _of_empty_log(work: partial[Figures]) -> Figures:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        return work(connection)


def _csv(request: UsageRequest, found: Figures) -> str:
    rows = [named(request, key) | sums.summary() for key, sums in found.groups]
    columns = list(rows[0]) if rows else [*request.by]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        row["cost_dollars"] = _exact(row["cost_nanodollars"])
        writer.writerow([without_formula(row[name]) for name in columns])
    return text.getvalue()


def _exact(nanodollars: int | None) -> str | None:
    # Not a float, which would be written like 1e-05.
    return None if nanodollars is None else f"{nanodollars / 1_000_000_000:.9f}"

"""The calls of a filter as CSV, as they are read."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from ...log import queries
from ...log.queries import BATCH_ROWS, COLUMNS, Filter
from ...log.recorder import Recorder
from ...web import client_disconnected
from . import payloads

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request


CSV_COLUMNS = (*COLUMNS, "cost_dollars")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


async def csv_chunks(datasette: Datasette, wanted: Filter) -> AsyncIterator[str]:
    """All calls of a filter as CSV, newest first.

    Each chunk is read by itself, so that neither memory nor a lock of SQLite's grows with the
    number of calls, or with the time that somebody takes to read them.
    """
    await payloads.flushed(Recorder.of(datasette).writer)
    rows = await _batch(datasette, wanted, before=None)
    yield _csv([CSV_COLUMNS])
    while rows:
        yield _csv(_csv_cells(row) for row in rows)
        rows = await _batch(datasette, wanted, before=rows[-1]["id"])


async def _batch(
    datasette: Datasette, wanted: Filter, before: str | None
) -> list[dict[str, Any]] | None:
    return await payloads.read(
        datasette, lambda c: queries.calls(c, wanted, before=before, limit=BATCH_ROWS)
    )


async def copy(chunks: AsyncIterator[str], writer: AsgiWriter, request: Request) -> None:
    """Write chunks until there are no more, or until nobody reads them."""
    left = asyncio.create_task(client_disconnected(request))
    try:
        async for chunk in chunks:
            if left.done():
                break
            await writer.write(chunk)
    finally:
        left.cancel()
        await asyncio.wait([left])


def _csv_cells(row: dict[str, Any]) -> list[object]:
    nanodollars = row["cost_nanodollars"]
    # Not as a float, which would be written like 1e-05.
    cost = None if nanodollars is None else f"{nanodollars / 1_000_000_000:.9f}"
    return [*(without_formula(row[name]) for name in COLUMNS), cost]


def without_formula(value: object) -> object:
    """A value that no spreadsheet takes for a formula.

    See https://owasp.org/www-community/attacks/CSV_Injection
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()

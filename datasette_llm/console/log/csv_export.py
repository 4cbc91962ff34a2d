"""The calls of a filter as CSV, streamed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...log import queries
from ...log.listing import Cursor, Listing, page
from ...log.queries import BATCH_ROWS, COLUMNS
from ...log.recorder import Recorder
from ...web import client_disconnected
from . import payloads

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request
    from datasette.utils.sqlite import sqlite3

CSV_COLUMNS = (*COLUMNS, "cost_dollars")
# Where a formula of a spreadsheet may begin: the start of a cell, also of one that results from
# another separator than the comma.
_FORMULA = re.compile(
    r"^(?=[\t\r\n])|(?:^|(?<=[;\t\r\n]))"
    # Also after what a spreadsheet may leave out.
    r'(?=[\s"\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20])'
)


async def csv_chunks(datasette: Datasette, listing: Listing) -> AsyncIterator[str]:
    """All calls of a list as CSV, in its order, with a column for each key of tags.

    Each chunk is one query, so that neither memory nor the time of a lock grows with the number
    of calls or with a slow client.
    """
    await Recorder.of(datasette).writer.flush_in_time()
    keys = await payloads.read(datasette, queries.tag_keys) or []
    listing = replace(listing, cursor=None, limit=BATCH_ROWS)
    batch = await _batch(datasette, listing, keys)
    yield _csv([[*CSV_COLUMNS, *(f"tags.{key}" for key in keys)]])
    while batch is not None:
        text, cursor = batch
        yield text
        batch = cursor and await _batch(datasette, replace(listing, cursor=cursor), keys)


async def copy(chunks: AsyncIterator[str], writer: AsgiWriter, request: Request) -> None:
    """Write all chunks, or stop when the client disconnects."""
    left = asyncio.create_task(client_disconnected(request))
    try:
        async for chunk in chunks:
            if left.done():
                break
            await writer.write(chunk)
    finally:
        left.cancel()
        await asyncio.wait([left])


def without_formula(value: object) -> object:
    """Escape a value that a spreadsheet would run as a formula.

    See https://owasp.org/www-community/attacks/CSV_Injection
    """
    return _FORMULA.sub("'", value) if isinstance(value, str) else value


async def _batch(
    datasette: Datasette, listing: Listing, keys: Sequence[str]
) -> tuple[str, Cursor | None] | None:
    """The next calls as CSV, and where those after them begin; None without any."""

    def work(connection: sqlite3.Connection) -> tuple[str, Cursor | None] | None:
        found = page(connection, listing)
        text = _csv(_csv_cells(row, keys) for row in found.rows)
        return (text, found.older) if found.rows else None

    return await payloads.read(datasette, work)


def _csv_cells(row: dict[str, Any], keys: Sequence[str]) -> list[object]:
    nanodollars, tags = row["cost_nanodollars"], row["tags"]
    row = row | {"tags": json.dumps(tags, ensure_ascii=False) if tags else None}
    # Not a float, which would be written like 1e-05.
    cost = None if nanodollars is None else f"{nanodollars / 1_000_000_000:.9f}"
    texts = [without_formula(row[name]) for name in COLUMNS]
    return [*texts, cost, *(without_formula(tags.get(key)) for key in keys)]


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()

"""The calls of a filter as CSV, streamed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...log import queries
from ...log.queries import BATCH_ROWS, COLUMNS, Filter
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


async def csv_chunks(datasette: Datasette, log_filter: Filter) -> AsyncIterator[str]:
    """All calls of a filter as CSV, newest first, with a column for each key of tags.

    Each chunk is one query, so that neither memory nor the time of a lock grows with the number
    of calls or with a slow client.
    """
    await Recorder.of(datasette).writer.flush_in_time()
    keys = await payloads.read(datasette, queries.tag_keys) or []
    batch = await _batch(datasette, log_filter, keys, before=None)
    yield _csv([[*CSV_COLUMNS, *(f"tags.{key}" for key in keys)]])
    while batch is not None:
        text, last_id = batch
        yield text
        batch = await _batch(datasette, log_filter, keys, before=last_id)


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
    datasette: Datasette, log_filter: Filter, keys: Sequence[str], before: str | None
) -> tuple[str, str] | None:
    """The next calls as CSV, and the id of the last one; None without any."""

    def work(connection: sqlite3.Connection) -> tuple[str, str] | None:
        rows = queries.calls(connection, log_filter, before=before, limit=BATCH_ROWS)
        return (_csv(_csv_cells(row, keys) for row in rows), rows[-1]["id"]) if rows else None

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

"""Shared by the tests of the call log: rows of calls, adding and reading them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from datasette.app import Datasette
from ulid import ULID

from datasette_llm.events import RequestStarted
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.rows import started_row
from datasette_llm.log.schema import FINISHED_COLUMNS, STARTED_COLUMNS

from .waiting import BOUND_S, happens, soon

NOW = datetime.datetime(2026, 2, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
COLUMNS = STARTED_COLUMNS + FINISHED_COLUMNS
_numbers = itertools.count(1)


def id_at(moment: datetime.datetime) -> str:
    """An id of that time; each is larger than those made before for the same time."""
    milliseconds = int(moment.timestamp() * 1000)
    return str(ULID(milliseconds.to_bytes(6, "big") + next(_numbers).to_bytes(10, "big"))).lower()


def call_row(moment: datetime.datetime = NOW, **columns: Any) -> dict[str, Any]:
    """A row of `llm_calls`, by default of a successful call."""
    started = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    row = started_row("session", RequestStarted(id_at(moment), "pelican", None, None, None))
    row |= dict.fromkeys(FINISHED_COLUMNS)
    return row | {"started_at": started, "outcome": "ok", "duration_ms": 10.0} | columns


def add(connection: sqlite3.Connection, *rows: dict[str, Any]) -> list[str]:
    """Insert rows; their ids."""
    places = ", ".join(f":{name}" for name in COLUMNS)
    sql = f"insert into llm_calls ({', '.join(COLUMNS)}) values ({places})"
    connection.executemany(sql, rows)
    return [row["id"] for row in rows]


def rows_of(path: Path, table: str = "llm_calls") -> list[dict[str, Any]]:
    """What is committed, as another process sees it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        order = "call_id, part" if table == "llm_call_content" else "id"
        rows = connection.execute(f"select * from {table} order by {order}")
        return [dict(row) for row in rows]


async def flushed_rows(datasette: Datasette, table: str = "llm_calls") -> list[dict[str, Any]]:
    """The rows of a table, once all that is being written has been."""
    await soon(Recorder.of(datasette).writer.flush())
    found = await datasette.get_internal_database().execute(f"select * from {table}")
    return [dict(row) for row in found.rows]


@contextlib.asynccontextmanager
async def writing_held_up(datasette: Datasette) -> AsyncIterator[None]:
    """Nothing is written to the internal database until the block is left."""
    held, may_go = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        held.set()
        may_go.wait(BOUND_S)

    database = datasette.get_internal_database()
    holding = asyncio.create_task(database.execute_write_fn(hold, transaction=False))
    try:
        await happens(held)
        yield
    finally:
        may_go.set()
        await soon(holding)

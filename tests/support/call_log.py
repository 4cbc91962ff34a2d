"""Shared by the tests of the call log: rows of calls, and adding them."""

from __future__ import annotations

import datetime
import itertools
import sqlite3
from typing import Any

from ulid import ULID

from datasette_llm.events import RequestStarted
from datasette_llm.log.rows import started_row
from datasette_llm.log.schema import FINISHED_COLUMNS, STARTED_COLUMNS

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

"""Answers about periods of the record, kept for as long as they are still true.

What is recorded stays as it is. So the calls of a period are what they were when they are as
many as before, none of them was unfinished then, and retention has removed nothing since.
That is asked of SQLite each time, as other processes write to the same record. To count the
calls of a month takes a fifth of the time that it takes to add them up.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from datasette.utils.sqlite import sqlite3

Rows = list[tuple[Any, ...]]
Key = tuple[str, frozenset[tuple[str, Any]]]

# With a month of 100,000 calls, about 40 filters.
MAX_CHARS = 20_000_000
# About what an answer takes, and each of its rows, beside their texts.
ANSWER_CHARS = 2_000
ROW_CHARS = 500


class QueryCache:
    """The newest answers, for reading threads; the one that was not used for longest goes first.

    Args:
        max_chars: how much to keep, in characters.
    """

    def __init__(self, max_chars: int = MAX_CHARS) -> None:
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._answers: dict[Key, tuple[object, Rows]] = {}
        self._chars = 0

    def clear(self) -> None:
        """Forget every answer."""
        with self._lock:
            self._answers.clear()
            self._chars = 0

    def rows(self, connection: sqlite3.Connection, sql: str, values: Mapping[str, Any]) -> Rows:
        """What a query about a period finds.

        Args:
            connection: a connection to the internal database.
            sql: reads calls from the id `:start` on, up to the id `:end` where there is one.
            values: its parameters.
        """
        # First, so that a call which comes in between makes the answer look old, never new.
        state = _state(connection, values)
        key = (sql, frozenset(values.items()))
        with self._lock:
            kept = self._answers.pop(key, None)
            if kept is not None and kept[0] == state:
                self._answers[key] = kept
                return kept[1]
            self._chars -= _chars(key, kept[1]) if kept else 0
        rows: Rows = connection.execute(sql, values).fetchall()
        if state is not None:
            self._keep(key, state, rows)
        return rows

    def _keep(self, key: Key, state: object, rows: Rows) -> None:
        with self._lock:
            replaced = self._answers.pop(key, None)  # by another thread, meanwhile
            self._chars -= _chars(key, replaced[1]) if replaced else 0
            self._answers[key] = state, rows
            self._chars += _chars(key, rows)
            while self._chars > self._max_chars:
                oldest = next(iter(self._answers))
                self._chars -= _chars(oldest, self._answers.pop(oldest)[1])


def _state(connection: sqlite3.Connection, values: Mapping[str, Any]) -> object:
    """What is the same for as long as a period is; None where a call of it may still end."""
    period = "id >= :start" + (" and id < :end" if "end" in values else "")
    sql = (
        f"select count(*), exists (select 1 from llm_calls where outcome is null and {period}), "
        f"(select max(id) from llm_log_removals) from llm_calls where {period}"
    )
    count, unfinished, removal = connection.execute(sql, values).fetchone()
    return None if unfinished else (count, removal)


def _chars(key: Key, rows: Rows) -> int:
    # The question counts too: of what is not on record, anybody can ask without end.
    asked = len(key[0]) + sum(len(value) for _, value in key[1])
    found = sum(ROW_CHARS + sum(len(cell) for cell in row if isinstance(cell, str)) for row in rows)
    return ANSWER_CHARS + asked + found

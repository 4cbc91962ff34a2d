"""A cache of query results about periods of the call log.

Rows never change once their call has ended. So a result is valid while the number of calls in
the period is the same, all of them had ended, and retention has removed nothing since. SQLite is
asked for that each time, as other processes write to the same call log: counting the calls of a
month takes a fifth of the time of adding them up.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from datasette.utils.sqlite import sqlite3

Rows = list[tuple[Any, ...]]
Key = tuple[str, frozenset[tuple[str, Any]]]

# About 40 filters of a month of 100,000 calls.
MAX_CHARS = 20_000_000
# The size of a result, and of each of its rows, without their texts.
RESULT_CHARS = 2_000
ROW_CHARS = 500


class QueryCache:
    """A least-recently-used cache of query results, shared by reading threads.

    Args:
        max_chars: the size limit, in characters.
    """

    def __init__(self, max_chars: int = MAX_CHARS) -> None:
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._results: dict[Key, tuple[object, Rows]] = {}
        self._chars = 0

    def clear(self) -> None:
        """Remove all results."""
        with self._lock:
            self._results.clear()
            self._chars = 0

    def rows(self, connection: sqlite3.Connection, sql: str, values: Mapping[str, Any]) -> Rows:
        """The rows of a query about a period, cached if they cannot change.

        Args:
            connection: a connection to the internal database.
            sql: a query on calls from the id `:start` on, up to `:end` if that is given.
            values: its parameters.
        """
        # Read first, so that a call in between makes the result look older, never newer.
        state = _state(connection, values)
        key = (sql, frozenset(values.items()))
        with self._lock:
            cached = self._results.pop(key, None)
            if cached is not None and cached[0] == state:
                self._results[key] = cached
                return cached[1]
            self._chars -= _chars(key, cached[1]) if cached else 0
        rows: Rows = connection.execute(sql, values).fetchall()
        if state is not None:
            self._store(key, state, rows)
        return rows

    def _store(self, key: Key, state: object, rows: Rows) -> None:
        with self._lock:
            replaced = self._results.pop(key, None)  # from another thread
            self._chars -= _chars(key, replaced[1]) if replaced else 0
            self._results[key] = state, rows
            self._chars += _chars(key, rows)
            while self._chars > self._max_chars:
                oldest = next(iter(self._results))
                self._chars -= _chars(oldest, self._results.pop(oldest)[1])


def _state(connection: sqlite3.Connection, values: Mapping[str, Any]) -> object:
    """A value that changes with the period's calls; None while one of them has not ended."""
    period = "id >= :start" + (" and id < :end" if "end" in values else "")
    sql = (
        f"select count(*), exists (select 1 from llm_calls where outcome is null and {period}), "
        f"(select max(id) from llm_log_removals) from llm_calls where {period}"
    )
    count, unfinished, removal = connection.execute(sql, values).fetchone()
    return None if unfinished else (count, removal)


def _chars(key: Key, rows: Rows) -> int:
    # The query counts too: filters that match nothing are unlimited in number.
    query = len(key[0]) + sum(len(value) for _, value in key[1])
    result = sum(
        ROW_CHARS + sum(len(cell) for cell in row if isinstance(cell, str)) for row in rows
    )
    return RESULT_CHARS + query + result

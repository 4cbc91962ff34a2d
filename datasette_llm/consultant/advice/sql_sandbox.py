"""Run an untrusted query on a connection of its own, which can only read what is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from datasette.utils import InvalidSql, sqlite_timelimit
from datasette.utils.sqlite import sqlite3

from ...providers.threads import in_thread_of_its_own
from .dataset import plain

if TYPE_CHECKING:
    from datasette.database import Database

T = TypeVar("T")

MAX_ROWS = 10
MAX_COLUMNS = 30
MAX_CELL_CHARS = 200
# Of a value that SQLite computes; stored values may well have ten megabytes.
MAX_VALUE_BYTES = 16_000_000
# SQLite calls no progress handler while it prepares a query, which can take very long.
PREPARE_S = 2.0
# Nor within one LIKE or GLOB, which takes hours for a long text and a long pattern.
MAX_PATTERN_BYTES = 200
# So a thread may hang, using one CPU; at most this many at once.
MAX_HANGING = 3

# These make large values out of nothing, or reach beyond the database.
_DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "randomblob", "zeroblob"})
# Table-valued functions that only read their arguments.
FUNCTION_TABLES = frozenset({"json_each", "json_tree"})
_ERRORS = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)


class SandboxBusyError(Exception):
    """Too many earlier queries still run and cannot be stopped."""


@dataclass(slots=True)
class RunningQuery:
    """A query in a thread, as the event loop needs it to interrupt it."""

    connection: Any = None
    ended: bool = False


hanging: list[RunningQuery] = []


class Read(NamedTuple):
    """A read reported by SQLite; the column is empty where no particular one is read."""

    table: str
    column: str
    reader: str | None


@dataclass(frozen=True, slots=True)
class Tables:
    """What a query reads, and which tables must be viewable for it."""

    needed: frozenset[str]
    reads: frozenset[Read]
    # Shadow tables of virtual tables, which are read only when the query runs.
    shadow: frozenset[str]

    def allow(self, read: Read) -> bool:
        return read in self.reads or read.table in self.shadow


class Query:
    """An untrusted query, run on a connection of its own."""

    def __init__(self, db: Database, sql: str, limit_ms: float) -> None:
        self._db = db
        self._sql = sql
        self._limit_ms = limit_ms

    async def reads(self) -> tuple[dict[str, str], frozenset[Read]]:
        """The kind of each name in the schema (table, view or module), and the query's reads.

        Raises:
            InvalidSql: it cannot be run.
            SandboxBusyError: too many queries hang.
        """
        found: set[Read] = set()

        def note(read: Read) -> bool:
            found.add(read)
            return True

        def work(connection: sqlite3.Connection) -> dict[str, str]:
            sql = "select name, type from sqlite_master where type in ('table', 'view')"
            modules = connection.execute("pragma module_list")
            schema = {name: "module" for (name,) in modules} | dict(connection.execute(sql))
            connection.set_authorizer(_authorizer(note))
            connection.execute(f"explain {self._sql}").close()
            return schema

        schema = await self._in_thread(work)
        return schema, frozenset(found)

    async def rows(self, allowed: Tables) -> tuple[list[str], Any]:
        """The names of its columns, and its first rows, one more than `MAX_ROWS`.

        Args:
            allowed: the tables that it may read.

        Raises:
            InvalidSql: it cannot be run.
            SandboxBusyError: too many queries hang.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[str], Any]:
            connection.set_authorizer(_authorizer(allowed.allow))
            cursor = connection.execute(self._sql)
            names = [plain(str(each[0]))[:MAX_CELL_CHARS] for each in cursor.description or ()]
            if len(names) > MAX_COLUMNS:
                raise InvalidSql(f"its result has more than {MAX_COLUMNS} columns")
            rows: list[list[object]] = []
            while len(rows) <= MAX_ROWS and (row := cursor.fetchone()) is not None:
                rows.append([_cell(value) for value in row])
            return names, rows

        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run the work with a connection in a thread, which is abandoned if it hangs."""
        hanging[:] = [each for each in hanging if not each.ended]
        if len(hanging) >= MAX_HANGING:
            raise SandboxBusyError
        running = RunningQuery()
        future = in_thread_of_its_own(lambda: self._connected(work, running))
        try:
            done, _ = await asyncio.wait([future], timeout=self._limit_ms / 1000 + PREPARE_S)
        finally:
            if not future.done():
                hanging.append(running)
                future.add_done_callback(_ignore_result)
                _interrupt(running.connection)
        if not done:
            raise InvalidSql("its query could not be prepared in time")
        return future.result()

    def _connected(self, work: Callable[[sqlite3.Connection], T], running: RunningQuery) -> T:
        connection = None
        try:
            connection = running.connection = self._db.connect()
            # Datasette closes its connections at shutdown, and SQLite crashes where one is in use.
            # There is no public way to open one that it does not track.
            self._db._all_connections.remove(connection)  # noqa: SLF001
            harden(connection)
            with sqlite_timelimit(connection, self._limit_ms):
                return work(connection)
        except _ERRORS as error:
            raise InvalidSql(_reason(error, self._limit_ms)) from None
        finally:
            running.connection, running.ended = None, True
            if connection is not None:
                connection.close()


def _interrupt(connection: Any) -> None:
    if connection is not None:
        with suppress(sqlite3.Error):
            connection.interrupt()


def _ignore_result(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an abandoned thread, which asyncio would log otherwise."""
    if not future.cancelled():
        future.exception()


def harden(connection: sqlite3.Connection) -> None:
    connection.row_factory = None
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("pragma query_only = 1")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    # The first use of a virtual table does things that the authorizer would deny to the query.
    sql = "select name from sqlite_master where sql like 'create virtual%' limit 50"
    virtual = [name for (name,) in connection.execute(sql)]
    for name in (*FUNCTION_TABLES, *virtual):
        quoted = name.replace('"', '""')
        with suppress(sqlite3.Error):  # of an extension that is not loaded
            connection.execute(f'select 1 from "{quoted}" limit 0').close()


def _authorizer(may_read: Callable[[Read], bool]) -> Callable[..., int]:
    """SQLite's authorizer callback, which allows reads and little else."""

    def authorize(
        action: int, first: str | None, second: str | None, _: str | None, reader: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ and first is not None:
            allowed = may_read(Read(first, second or "", reader))
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() not in _DENIED_FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            allowed = first == "data_version" and second is None  # used by full-text search
        else:
            allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        return int(sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY)

    return authorize


def _reason(error: BaseException, limit_ms: float) -> str:
    if error.args == ("interrupted",):
        return f"its query took longer than {limit_ms:,.0f} ms"
    return sentence(f"its query failed: {error}")


def sentence(text: str) -> str:
    """A message of SQLite, as plain text of bounded length."""
    return plain(text)[:500]


def _cell(value: object) -> object:
    """A value as JSON, of bounded length."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str):
        text = plain(value[: MAX_CELL_CHARS + 1])
        return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}…"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value

"""A stranger's query on a connection of its own, which can read what it may and nothing else."""

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
# A value that SQLite makes while it works; cells may well have ten megabytes.
MAX_VALUE_BYTES = 16_000_000
# SQLite does not look at the time while it prepares a query, and some take for ever to prepare.
PREPARE_S = 2.0
# Nor while it compares one text with another, which takes hours where both are long.
MAX_PATTERN_BYTES = 200
# So a thread may hang, with a processor for itself; no more than these at once.
MAX_HANGING = 3

# With these a query makes large values out of nothing, or reaches out of the database.
_DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "randomblob", "zeroblob"})
# Tables that are functions; both only read what they are given.
FUNCTION_TABLES = frozenset({"json_each", "json_tree"})
_ERRORS = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)


class BusyError(Exception):
    """Earlier queries cannot be stopped, and so no other is run."""


@dataclass(slots=True)
class _Running:
    """What the event loop can do to a query in a thread: stop it."""

    connection: Any = None
    ended: bool = False


_hanging: list[_Running] = []


class Read(NamedTuple):
    """What SQLite says that a query reads: of no column in particular where that is empty."""

    table: str
    column: str
    reader: str | None


@dataclass(frozen=True, slots=True)
class Tables:
    """What a query reads, and what has to be viewable for it."""

    needed: frozenset[str]
    reads: frozenset[Read]
    # The tables in which a virtual one keeps what it has; it reads them when the query runs.
    inner: frozenset[str]

    def have(self, read: Read) -> bool:
        return read in self.reads or read.table in self.inner


class Query:
    """A stranger's query on a connection of its own."""

    def __init__(self, db: Database, sql: str, limit_ms: float) -> None:
        self._db = db
        self._sql = sql
        self._limit_ms = limit_ms

    async def reads(self) -> tuple[dict[str, str], frozenset[Read]]:
        """What there is to read: table, view or module; and what the query reads of it.

        Raises:
            InvalidSql: it cannot be run.
            BusyError: no query is run now.
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
        """The names of its columns, and its first rows, one more than are kept.

        Args:
            allowed: what it may read.

        Raises:
            InvalidSql: it cannot be run.
            BusyError: no query is run now.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[str], Any]:
            connection.set_authorizer(_authorizer(allowed.have))
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
        """Do something with a connection, in a thread that is left alone if it hangs."""
        _hanging[:] = [each for each in _hanging if not each.ended]
        if len(_hanging) >= MAX_HANGING:
            raise BusyError
        running = _Running()
        future = in_thread_of_its_own(lambda: self._connected(work, running))
        try:
            done, _ = await asyncio.wait([future], timeout=self._limit_ms / 1000 + PREPARE_S)
        finally:
            if not future.done():
                _hanging.append(running)
                future.add_done_callback(_seen)
                _interrupt(running.connection)
        if not done:
            raise InvalidSql("its query could not be prepared in time")
        return future.result()

    def _connected(self, work: Callable[[sqlite3.Connection], T], running: _Running) -> T:
        connection = None
        try:
            connection = running.connection = self._db.connect()
            # Datasette closes those that it keeps, and SQLite crashes where one is still at work.
            self._db._all_connections.remove(connection)
            _harden(connection)
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


def _seen(future: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; asyncio would log what it raised."""
    if not future.cancelled():
        future.exception()


def _harden(connection: sqlite3.Connection) -> None:
    connection.row_factory = None
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("pragma query_only = 1")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    # What a virtual table does when it is first used would look like the query's doing.
    sql = "select name from sqlite_master where sql like 'create virtual%' limit 50"
    virtual = [name for (name,) in connection.execute(sql)]
    for name in (*FUNCTION_TABLES, *virtual):
        quoted = name.replace('"', '""')
        with suppress(sqlite3.Error):  # an extension's, which is not there
            connection.execute(f'select 1 from "{quoted}" limit 0').close()


def _authorizer(may_read: Callable[[Read], bool]) -> Callable[..., int]:
    """SQLite's question whether a query may do something: read, and little else."""

    def authorize(
        action: int, first: str | None, second: str | None, _: str | None, reader: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ and first is not None:
            good = may_read(Read(first, second or "", reader))
        elif action == sqlite3.SQLITE_FUNCTION:
            good = (second or "").lower() not in _DENIED_FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            good = first == "data_version" and second is None  # asked by full-text search
        else:
            good = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        return int(sqlite3.SQLITE_OK if good else sqlite3.SQLITE_DENY)

    return authorize


def _reason(error: BaseException, limit_ms: float) -> str:
    if error.args == ("interrupted",):
        return f"its query took longer than {limit_ms:,.0f} ms"
    return sentence(f"its query failed: {error}")


def sentence(text: str) -> str:
    return plain(text)[:500]


def _cell(value: object) -> object:
    """A value as JSON has it, of bounded length."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str):
        text = plain(value[: MAX_CELL_CHARS + 1])
        return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}…"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value

"""Reads of the response cache: in a thread of their own, by a connection of their own.

Datasette's threads for reading may all be busy with a page's queries, and each of its reads is
traced; a prompt waits for these. What is looked up while the thread reads is read together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..log import cache_store
from ..log.cache_store import Answer
from ..log.connections import own_connection
from ..providers.threads import SerialThread
from ..sanitize import message_of

if TYPE_CHECKING:
    from datasette.database import Database

logger = logging.getLogger("datasette_llm")

# An answer, and whether its use is to be noted.
Found = tuple[Answer | None, bool]
_NONE: Found = (None, False)

# A database that takes longer to answer has no answers, and is not asked for a while.
LOOKUP_S = 1.0
REST_S = 10.0
# So many are read together, since the first one waits for the last.
MAX_BATCH = 64


class _Wanted(NamedTuple):
    digest: bytes
    keep_days: int
    found: asyncio.Future[Found]


class Lookups:
    """Looks answers up, for one event loop."""

    def __init__(self) -> None:
        self._thread = SerialThread("datasette-llm response cache")
        self._wanted: deque[_Wanted] = deque()  # not yet read
        self._waiting: set[asyncio.Future[Found]] = set()
        self._is_watched = False
        self._since = 0.0  # when the last reads ended, or the first one that waits began
        self._resting_until = 0.0
        self._closed = False
        self._connection: sqlite3.Connection | None = None  # of the thread

    async def find(self, database: Database, digest: bytes, keep_days: int) -> Found:
        """An answer, as `cache_store.find()`; none where the database cannot be read in time.

        Args:
            database: the internal database.
            digest: of the request.
            keep_days: older answers are none.
        """
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() < self._resting_until:
            return _NONE
        found: asyncio.Future[Found] = loop.create_future()
        self._wanted.append(_Wanted(digest, keep_days, found))
        try:
            self._thread.put(partial(self._read, database))
        except RuntimeError:  # the system cannot start another thread
            self._wanted.clear()
            return _NONE
        self._watch(loop, found)
        try:
            return await found
        finally:
            self._waiting.discard(found)

    def close(self) -> None:
        """Close the connection, after the read that runs; from now on there are no answers."""
        self._closed = True
        if self._thread.is_begun:
            self._thread.put(self._disconnect)
            self._thread.close()

    def __del__(self) -> None:
        self._disconnect()  # the thread refers to it while it reads

    def _watch(self, loop: asyncio.AbstractEventLoop, found: asyncio.Future[Found]) -> None:
        if not self._waiting:
            self._since = loop.time()
        self._waiting.add(found)
        if not self._is_watched:
            self._is_watched = True
            self._check_in_time(loop)

    def _check_in_time(self, loop: asyncio.AbstractEventLoop) -> None:
        # In an empty context: it is for many calls.
        loop.call_at(self._since + LOOKUP_S, self._check, loop, context=Context())

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up if no read has ended in time."""
        if self._waiting and loop.time() < self._since + LOOKUP_S:
            self._check_in_time(loop)
            return
        self._is_watched = False
        if self._waiting:
            logger.debug("The response cache was not read within %g seconds", LOOKUP_S)
            self._resting_until = loop.time() + REST_S
            self._wanted.clear()
            for found in self._waiting:
                _resolve(found, _NONE)

    def _resolve_all(self, wanted: list[_Wanted], answers: list[Found]) -> None:
        self._since = asyncio.get_running_loop().time()
        for each, answer in zip(wanted, answers, strict=True):
            _resolve(each.found, answer)

    # In the thread

    def _read(self, database: Database) -> None:
        wanted: list[_Wanted] = []
        with contextlib.suppress(IndexError):
            while len(wanted) < MAX_BATCH:
                wanted.append(self._wanted.popleft())
        if not wanted:
            return  # the read before had taken it, too
        answers = [_NONE] * len(wanted)
        try:
            answers = self._answers(database, wanted)
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
                loop = wanted[0].found.get_loop()
                loop.call_soon_threadsafe(self._resolve_all, wanted, answers)

    def _answers(self, database: Database, wanted: list[_Wanted]) -> list[Found]:
        try:
            connection = self._connection or self._connect(database)
            return [cache_store.find(connection, each.digest, each.keep_days) for each in wanted]
        except (sqlite3.Error, DatasetteClosedError) as error:
            logger.debug("The response cache cannot be read: %s", message_of(error))
            return [_NONE] * len(wanted)

    def _connect(self, database: Database) -> sqlite3.Connection:
        connection = self._connection = own_connection(database)
        connection.execute(f"pragma busy_timeout = {LOOKUP_S * 1000:.0f}")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _resolve(found: asyncio.Future[Found], answer: Found) -> None:
    if not found.done():  # its call may have been cancelled
        found.set_result(answer)

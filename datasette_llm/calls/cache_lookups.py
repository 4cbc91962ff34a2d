"""Reads of the response cache: in a thread of their own, by a connection of their own.

Datasette's threads for reading may all be busy with a page's queries, and each of its reads is
traced; a prompt waits for these. What is looked up while the thread reads is read together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
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

# Says in a thread whether the text of an answer is of use.
Accepts = Callable[[str], bool]

# An answer, and whether its use is to be noted.
Found = tuple[Answer | None, bool]
_NONE: Found = (None, False)

# A database that takes longer for a read has no answers, and is not asked for a while.
LOOKUP_S = 1.0
REST_S = 10.0
# So late a timer is where the event loop is busy, which holds up the thread that reads, too.
LATE_S = 0.1
# So many are read together, since the first one waits for the last.
MAX_BATCH = 64


class _Wanted(NamedTuple):
    digest: bytes
    keep_days: int
    accepts: Accepts | None
    found: asyncio.Future[Found]


class Lookups:
    """Looks answers up, for one event loop."""

    def __init__(self) -> None:
        self._thread = SerialThread("datasette-llm response cache")
        self._wanted: deque[_Wanted] = deque()  # not yet read
        self._waiting: set[asyncio.Future[Found]] = set()
        self._is_watched = False
        # When the last read ended, or the first one that waits was asked for; by `monotonic()`.
        self._progress_at = 0.0
        self._resting_until = 0.0
        self._connection: sqlite3.Connection | None = None  # of the thread

    async def find(
        self, database: Database, digest: bytes, keep_days: int, accepts: Accepts | None = None
    ) -> Found:
        """An answer, as `cache_store.find()`; none where the database cannot be read in time.

        Args:
            database: the internal database.
            digest: of the request.
            keep_days: older answers are none.
            accepts: says in a thread whether the text of an answer is of use; None if any is.
        """
        if time.monotonic() < self._resting_until:
            return _NONE
        loop = asyncio.get_running_loop()
        wanted = _Wanted(digest, keep_days, accepts, loop.create_future())
        self._wanted.append(wanted)
        try:
            if not self._thread.waiting:  # what has not begun yet reads this one, too
                self._thread.put(partial(self._read, database))
        except RuntimeError:  # the system cannot start another thread
            self._wanted.remove(wanted)
            return _NONE
        if not self._waiting:
            self._progress_at = time.monotonic()
        self._waiting.add(wanted.found)
        self._watch(loop)
        try:
            return await wanted.found
        finally:
            self._waiting.discard(wanted.found)

    def close(self) -> None:
        """Let the thread end after its reads, and close the connection."""
        if self._thread.is_begun:
            self._thread.put(self._disconnect)
            self._thread.close()

    def __del__(self) -> None:
        self._disconnect()  # no thread reads, since it would refer to this object

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_watched:
            self._is_watched = True
            end = self._progress_at + LOOKUP_S
            # In an empty context: it is for many calls.
            delay = max(0.0, end - time.monotonic())
            loop.call_later(delay, self._check, loop, end, context=Context())

    def _check(self, loop: asyncio.AbstractEventLoop, end: float) -> None:
        """Give up if no read has ended for too long.

        Args:
            loop: the event loop.
            end: when this was to be called.
        """
        self._is_watched = False
        if not self._waiting:
            return
        now = time.monotonic()
        if now > end + LATE_S:
            self._progress_at = now
        if now < self._progress_at + LOOKUP_S:
            self._watch(loop)
            return
        logger.debug("The response cache was not read within %g seconds", LOOKUP_S)
        self._resting_until = now + REST_S
        self._wanted.clear()
        for found in self._waiting:
            _resolve(found, _NONE)

    # In the thread

    def _read(self, database: Database) -> None:
        while wanted := self._next_batch():
            answers = [_NONE] * len(wanted)
            try:
                answers = self._answers(database, wanted)
            finally:
                with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
                    loop = wanted[0].found.get_loop()
                    loop.call_soon_threadsafe(_resolve_all, wanted, answers)

    def _next_batch(self) -> list[_Wanted]:
        wanted: list[_Wanted] = []
        with contextlib.suppress(IndexError):
            while len(wanted) < MAX_BATCH:
                wanted.append(self._wanted.popleft())
        return wanted

    def _answers(self, database: Database, wanted: list[_Wanted]) -> list[Found]:
        try:
            connection = self._connection or self._connect(database)
            return [self._answer(connection, each) for each in wanted]
        except (sqlite3.Error, DatasetteClosedError) as error:
            logger.debug("The response cache cannot be read: %s", message_of(error))
            return [_NONE] * len(wanted)

    def _answer(self, connection: sqlite3.Connection, wanted: _Wanted) -> Found:
        try:
            found = cache_store.find(connection, wanted.digest, wanted.keep_days)
            return found if is_usable(found[0], wanted.accepts) else _NONE
        except (sqlite3.OperationalError, sqlite3.ProgrammingError):
            raise  # locked, without the table, or closed: so it is for the others
        except sqlite3.DatabaseError as error:  # damaged, where this one is
            logger.debug("The response cache cannot be read: %s", message_of(error))
            return _NONE
        finally:
            self._progress_at = time.monotonic()

    def _connect(self, database: Database) -> sqlite3.Connection:
        connection = self._connection = own_connection(database)
        # Longer than the event loop waits, which then lets the database rest.
        connection.execute(f"pragma busy_timeout = {2 * LOOKUP_S * 1000:.0f}")
        # A damaged text is one that the checksum does not fit, and not an error.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def is_usable(answer: Answer | None, accepts: Accepts | None) -> bool:
    """Whether there is an answer whose text is accepted; in a thread."""
    return answer is not None and (accepts is None or accepts(answer.text))


def _resolve_all(wanted: list[_Wanted], answers: list[Found]) -> None:
    for each, answer in zip(wanted, answers, strict=True):
        _resolve(each.found, answer)


def _resolve(found: asyncio.Future[Found], answer: Found) -> None:
    if not found.done():  # its call may have been cancelled
        found.set_result(answer)

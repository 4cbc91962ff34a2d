"""Writes to the record in shared transactions, and outlives a database that cannot be written.

All that waits when a transaction begins goes into it, so that many calls share one commit and
a lone one waits for nobody. What cannot be written stays in memory, up to a bound, and is
tried again; meanwhile nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..sanitize import message_of

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

MAX_WAITING = 20_000
MAX_WAITING_LARGE = 2_000
MAX_BATCH = 512
# How long a transaction takes on writes that nobody waits for, since the next call may: contents
# can be large.
BATCH_S = 0.05
RETRY_S = 1.0
# A database that is locked for longer than this counts as one that cannot be written.
COMMIT_WAIT_S = 2.0
# How long a Datasette that stops waits for the last writes.
FLUSH_S = 10.0
# These are about one row. What else SQLite raises is about the database.
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
)

Statement = tuple[str, Mapping[str, Any]]
Work = Callable[[sqlite3.Connection], object]
Execute = Callable[[Work], Awaitable[Any]]


class _Write:
    __slots__ = ("committed", "is_awaited", "refused", "sent", "work")

    def __init__(self, work: Work, committed: asyncio.Future[bool] | None) -> None:
        self.work = work
        self.committed = committed
        self.is_awaited = committed is not None  # also after it was told, so that it stays first
        self.refused = False
        self.sent = False  # to the thread that writes, which did not tell what came of it


class Writer:
    """The one writer of a Datasette instance's record.

    Attributes:
        failure: why the last attempt to write failed; None when it did not.
        dropped: how many writes were given up because memory's bound was reached.
        used: whether anything was ever to be written.
    """

    def __init__(self, execute: Execute, opened: Work) -> None:
        """
        Args:
            execute: runs work with the write connection, in a transaction.
            opened: makes the tables; run in a transaction of its own before the first write.
        """
        self.failure: str | None = None
        self.dropped = 0
        self.used = False
        self._execute = execute
        self._opened = opened
        self._ready = False
        # What a call waits for goes first: it is the start of one, and small.
        self._awaited: deque[_Write] = deque()
        self._others: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._task: asyncio.Task[None] | None = None
        self._failures = 0  # of attempts that are over

    @classmethod
    def of(cls, datasette: Datasette, opened: Work) -> Writer:
        """A writer to the internal database of a Datasette instance."""
        # The state of an instance must not keep it: who drops one without a shutdown, as tests
        # do, wants it gone.
        reference = weakref.ref(datasette)

        async def execute(work: Work) -> Any:
            instance = reference()
            if instance is None:
                raise DatasetteClosedError("The Datasette instance is gone")
            return await instance.get_internal_database().execute_write_fn(work)

        return cls(execute, opened)

    async def prepare(self) -> None:
        """Bring the tables up to date, if that has not been done.

        Raises:
            NewerDatabaseError: a newer version of datasette-llm has changed the tables.
            sqlite3.Error: the database cannot be written.
        """
        if not self._ready:
            await self._execute(self._opened)
            self._ready = self.used = True

    async def commit(self, statement: Statement) -> bool:
        """Write, and wait until it is committed.

        Returns:
            Whether it was committed. False while the database cannot be written; it is kept
            and tried again then, unless memory's bound is reached. False, too, for a row that
            SQLite refuses.
        """
        if self.failure is not None:
            self.later(statement)
            return False
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._add(_Write(_executing(statement), committed))
        done, _ = await asyncio.wait([committed], timeout=COMMIT_WAIT_S)
        if not done:
            self._note_failure(TimeoutError(f"no commit within {COMMIT_WAIT_S:g} seconds"))
            return False
        return committed.result()

    @property
    def crowded(self) -> bool:
        """Whether so much waits that nothing large should wait too."""
        return self._count() > MAX_WAITING_LARGE

    def later(self, work: Statement | Work) -> None:
        """Write soon, after all that was given like this before, without waiting."""
        self._add(_Write(work if callable(work) else _executing(work), None))

    async def flush(self) -> None:
        """Wait until everything given so far is written, or cannot be."""
        while self._unwritten() and self.failure is None:
            # In short waits, since a failure does not end the task.
            await asyncio.wait([self._started()], timeout=RETRY_S)

    async def close(self) -> None:
        """Write what can be written, with one more attempt after a failure; give up the rest."""
        end = asyncio.get_running_loop().time() + FLUSH_S
        failures = self._failures
        while self._unwritten() and self._failures == failures:
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.wait([self._started()], timeout=RETRY_S)
        if self._unwritten():
            task = self._started()
            task.cancel()
            await asyncio.wait([task])
            self._give_up()

    def _unwritten(self) -> bool:
        return bool(self._count()) or (self._task is not None and not self._task.done())

    def _count(self) -> int:
        return len(self._awaited) + len(self._others) + len(self._batch)

    def _add(self, write: _Write) -> None:
        self.used = True
        if self._count() >= MAX_WAITING:
            self.dropped += 1
            self._answer([write], False)
            return
        (self._awaited if write.is_awaited else self._others).append(write)
        self._started()

    def _started(self) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            # In a context of its own: it writes for many calls, and belongs to the trace of none.
            own = contextvars.Context()
            self._task = loop.create_task(self._run(), name="datasette-llm record", context=own)
            self._task.add_done_callback(self._let_go, context=own)
        return self._task

    def _let_go(self, task: asyncio.Task[None]) -> None:
        # One that was cancelled has the Datasette instance in its traceback.
        if self._task is task:
            self._task = None

    async def _run(self) -> None:
        for write in self._batch:  # of an event loop that has ended; it may be written all the same
            write.sent = True
        while self._count():
            batch = self._next_batch()
            try:
                await self.prepare()
                count: int = await self._execute(partial(_write_all, batch))
            except DatasetteClosedError:
                self._give_up()
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._answer(batch, False)
                    raise  # the event loop ends
                self._failures += 1
                self._note_failure(error)
                await asyncio.sleep(RETRY_S)
            else:
                self._batch = batch[count:]
                self._answer(batch[:count], True)
                batch.clear()  # Datasette's writing thread holds on to what it was given last
                self._note_success()

    def _next_batch(self) -> list[_Write]:
        """What the last batch left, then what a call waits for, then what nobody does."""
        left, self._batch = self._batch, []
        self._awaited.extendleft(reversed([write for write in left if write.is_awaited]))
        self._others.extendleft(reversed([write for write in left if not write.is_awaited]))
        while len(self._batch) < MAX_BATCH and (queue := self._awaited or self._others):
            self._batch.append(queue.popleft())
        return self._batch

    def _answer(self, batch: list[_Write], committed: bool) -> None:
        for write in batch:
            future, write.committed = write.committed, None
            if future is not None and not future.done():
                with contextlib.suppress(RuntimeError):  # its event loop has been closed
                    future.set_result(committed and not write.refused)

    def _give_up(self) -> None:
        lost = [*self._batch, *self._awaited, *self._others]
        self._batch = []
        self._awaited.clear()
        self._others.clear()
        self.dropped += len(lost)
        self._answer(lost, False)
        logger.error(
            "Datasette stopped before the record of LLM calls could be written: %d writes lost",
            len(lost),
        )

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            logger.error("The record of LLM calls cannot be written: %s", message_of(error))
        self.failure = f"{type(error).__name__}: {message_of(error)}"
        self._answer([*self._batch, *self._awaited], False)

    def _note_success(self) -> None:
        if self.failure is not None:
            logger.warning("The record of LLM calls is written again")
        self.failure = None


def _executing(statement: Statement) -> Work:
    return lambda connection: connection.execute(*statement)


def _write_all(batch: list[_Write], connection: sqlite3.Connection) -> int:
    """Write as many, from the first on, as fit into one transaction; and tell how many."""
    end = time.monotonic() + BATCH_S
    for number, write in enumerate(batch):
        if number and not write.is_awaited and time.monotonic() >= end:
            return number
        write.refused = False
        try:
            write.work(connection)
        except Exception as error:  # a row is made of what providers and plugins said
            if isinstance(error, sqlite3.Error) and not isinstance(error, _ROW_ERRORS):
                raise
            if not connection.in_transaction:
                raise  # it took with it what was written before, as one for want of memory may
            if write.sent and isinstance(error, sqlite3.IntegrityError):
                continue  # so it was written the first time
            # One row that cannot be written must not keep the others from it.
            write.refused = True
            logger.exception("A row of the record of LLM calls was refused")
    return len(batch)

"""The writer of the call log: shared transactions, and retries while the database fails.

A transaction takes all pending writes, so that many calls share one commit, and a single call
does not wait for others. Failed writes stay in memory, up to a bound, and are retried; calls do
not wait for them.
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
# The time limit of a transaction for writes that no call waits for, since the next write may be
# awaited: contents can be large.
BATCH_S = 0.05
RETRY_S = 1.0
# A database that is locked for longer counts as failed.
COMMIT_WAIT_S = 2.0
# The time limit for the last writes when Datasette stops.
FLUSH_S = 10.0
# These errors are about one row; other errors of SQLite are about the database.
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
        self.is_awaited = committed is not None  # stays true after the answer, for its priority
        self.refused = False
        self.sent = False  # to the writing thread, with an unknown result


class Writer:
    """The writer of a Datasette instance's call log.

    Attributes:
        failure: why the last transaction failed; None if it succeeded.
        dropped: how many writes were dropped because too many were pending.
        used: whether there was ever anything to write.
    """

    def __init__(self, execute: Execute, opened: Work) -> None:
        """
        Args:
            execute: runs work with the write connection, in a transaction.
            opened: creates the tables; runs in its own transaction before the first write.
        """
        self.failure: str | None = None
        self.dropped = 0
        self.used = False
        self._execute = execute
        self._opened = opened
        self._ready = False
        # Writes that a call waits for go first: they are the start of one, and small.
        self._awaited: deque[_Write] = deque()
        self._others: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._task: asyncio.Task[None] | None = None
        self._failures = 0  # the number of failed transactions

    @classmethod
    def of(cls, datasette: Datasette, opened: Work) -> Writer:
        """A writer to the internal database of a Datasette instance."""
        # A weak reference, so that an instance without a shutdown, as in tests, can be
        # garbage-collected.
        reference = weakref.ref(datasette)

        async def execute(work: Work) -> Any:
            instance = reference()
            if instance is None:
                raise DatasetteClosedError("The Datasette instance is gone")
            return await instance.get_internal_database().execute_write_fn(work)

        return cls(execute, opened)

    async def prepare(self) -> None:
        """Bring the tables up to date, once.

        Raises:
            NewerDatabaseError: a newer version of datasette-llm has changed the tables.
            sqlite3.Error: the database cannot be written.
        """
        if not self._ready:
            await self._execute(self._opened)
            self._ready = self.used = True

    async def commit(self, statement: Statement) -> bool:
        """Write, and wait for the commit.

        Returns:
            Whether it was committed. False while the database cannot be written; the write is
            then retried later, unless too many are pending. False, too, for a row that SQLite
            refuses.
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
        """Whether so many writes are pending that no large one should be added."""
        return self._count() > MAX_WAITING_LARGE

    def later(self, work: Statement | Work) -> None:
        """Write soon, in the order of the calls of this method, without waiting."""
        self._add(_Write(work if callable(work) else _executing(work), None))

    async def flush(self) -> None:
        """Wait until all pending writes are written, or writing fails."""
        while self._unwritten() and self.failure is None:
            # In short waits, as the task goes on after a failure.
            await asyncio.wait([self._started()], timeout=RETRY_S)

    async def close(self) -> None:
        """Write all pending writes, with one retry after a failure; drop the rest."""
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
            # In an empty context: it writes for many calls and belongs to no trace.
            own = contextvars.Context()
            self._task = loop.create_task(self._run(), name="datasette-llm call log", context=own)
            self._task.add_done_callback(self._forget, context=own)
        return self._task

    def _forget(self, task: asyncio.Task[None]) -> None:
        # The traceback of a cancelled task refers to the Datasette instance.
        if self._task is task:
            self._task = None

    async def _run(self) -> None:
        for write in self._batch:  # of an event loop that has ended; they may have been written
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
                batch.clear()  # Datasette's writing thread keeps a reference to its last work
                self._note_success()

    def _next_batch(self) -> list[_Write]:
        """The rest of the last batch, then awaited writes, then others."""
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
            "Datasette stopped before the LLM call log could be written: %d writes lost",
            len(lost),
        )

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            logger.error("The LLM call log cannot be written: %s", message_of(error))
        self.failure = f"{type(error).__name__}: {message_of(error)}"
        self._answer([*self._batch, *self._awaited], False)

    def _note_success(self) -> None:
        if self.failure is not None:
            logger.warning("The LLM call log is written again")
        self.failure = None


def _executing(statement: Statement) -> Work:
    return lambda connection: connection.execute(*statement)


def _write_all(batch: list[_Write], connection: sqlite3.Connection) -> int:
    """Write as many as fit into one transaction, in order, and return their number."""
    end = time.monotonic() + BATCH_S
    for number, write in enumerate(batch):
        if number and not write.is_awaited and time.monotonic() >= end:
            return number
        write.refused = False
        try:
            write.work(connection)
        except Exception as error:  # rows contain third-party values
            if isinstance(error, sqlite3.Error) and not isinstance(error, _ROW_ERRORS):
                raise
            if not connection.in_transaction:
                raise  # SQLite has rolled back the earlier writes too
            if write.sent and isinstance(error, sqlite3.IntegrityError):
                continue  # it was written the first time
            # One bad row must not prevent the others.
            write.refused = True
            logger.exception("A row of the LLM call log was refused")
    return len(batch)

"""The writer of the call log: shared transactions, and retries while the database fails.

A transaction takes all pending writes, so that many calls share one commit, and a single call
does not wait for others. Failed writes stay in memory and are retried; calls do not wait for
them. What is in memory is bounded by its weight: contents are dropped first, then rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..loop_end import LoopEnd, check_each_second
from ..sanitize import message_of
from .rows import OVERHEAD_BYTES, Content

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# Of all that waits.
MAX_WAITING_BYTES = 64_000_000
MAX_BATCH = 512
# So many rows of a table are inserted by one statement. SQLite gives way to other threads at each
# statement, and a busy event loop takes its time to give way in return.
MAX_ROWS = 32
# The time limit of a transaction for writes that no call waits for, since the next write may be
# awaited: contents can be large.
BATCH_S = 0.05
# So long a write that may wait is waited with for others. A database that has no write-ahead log
# cannot be read during a commit, so that each would hold up the lookups of the response cache.
GATHER_S = 0.05
RETRY_S = 1.0
# A database that is locked for longer counts as failed. One that has many rows to write does not.
COMMIT_WAIT_S = 2.0
# Who reads waits so long for what is to be written: long enough for a commit, and short enough for
# a page.
FLUSH_WAIT_S = 2.0
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


# How often a loop looks at writes that another one is about to make.
_POLL_S = 0.01
_INSERT = re.compile(r"(insert into .+ values )\((:\w+(?:, :\w+)*)\)", re.S)


class _Write:
    __slots__ = (
        "committed",
        "content",
        "is_awaited",
        "may_wait",
        "refused",
        "sent",
        "statement",
        "weight",
        "work",
    )

    def __init__(
        self,
        work: Statement | Work,
        weight: int,
        committed: asyncio.Future[bool] | None,
        content: Content | None = None,
        *,
        may_wait: bool = False,
    ) -> None:
        self.statement = None if callable(work) else work
        self.work = work if callable(work) else _executing(work)
        self.weight = weight
        self.content = content
        self.committed = committed
        self.is_awaited = committed is not None  # stays true after the answer, for its priority
        self.may_wait = may_wait
        self.refused = False
        self.sent = False  # to the writing thread, with an unknown result

    @property
    def awaited_sql(self) -> str | None:
        """The statement of a row that a call waits for, and that has not been sent before."""
        if self.statement is None or self.sent or not self.is_awaited:
            return None
        return self.statement[0]


class Writer:
    """The writer of a Datasette instance's call log.

    One task at a time writes for all event loops. What a loop leaves behind is written when it
    ends, or within a second.

    Attributes:
        failure: why the last transaction failed; None if it succeeded.
        dropped: how many writes were dropped because too much was pending.
        dropped_contents: of how many calls the content was.
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
        self.dropped_contents = 0
        self.used = False
        self._execute = execute
        self._opened = opened
        self._ready = False
        # Writes that a call waits for go first: they are the start of one, and small.
        self._awaited: deque[_Write] = deque()
        self._others: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._bytes = 0  # of all of these
        self._content_bytes = 0
        self._contents: dict[Content, None] = {}  # in their order
        self._lost_before = (0, 0)  # what the last message about lost writes said
        self._lock = threading.Lock()  # of the queues and the task
        self._task: asyncio.Task[None] | None = None
        self._loop_end = LoopEnd(self._finish)
        self._failures = 0  # the number of failed transactions
        self._written_at = 0.0  # when the last transaction was committed
        self._urgent = False  # whether what waits is to be written at once
        self._gathering: asyncio.Event | None = None  # of the task, which waits for more
        check_each_second(self._check)

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

    async def commit(self, work: Statement | Work, weight: int = OVERHEAD_BYTES) -> bool:
        """Write, and wait for the commit.

        Args:
            work: what to execute.
            weight: its bytes in memory, about.

        Returns:
            Whether it was committed. False while the database cannot be written; the write is
            then retried later, unless too much is pending. False, too, for a row that SQLite
            refuses.
        """
        if self.failure is not None:
            self.later(work, weight)
            return False
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._add(_Write(work, weight, committed))
        while not committed.done():
            began = time.monotonic()
            await asyncio.wait([committed], timeout=COMMIT_WAIT_S)
            if not committed.done() and self._written_at < began:
                self._note_failure(TimeoutError(f"no commit within {COMMIT_WAIT_S:g} seconds"))
                return False
        return committed.result()

    def later(
        self,
        work: Statement | Work,
        weight: int = OVERHEAD_BYTES,
        content: Content | None = None,
        *,
        may_wait: bool = False,
    ) -> bool:
        """Write soon, in the order of the calls of this method, without waiting.

        Args:
            work: what to execute.
            weight: its bytes in memory, about, without the content.
            content: what else it writes, unless that is dropped before.
            may_wait: whether it may be waited with for others, as `GATHER_S` says.

        Returns:
            Whether there was room for it, so that it was not dropped.
        """
        return self._add(_Write(work, weight, None, content, may_wait=may_wait))

    async def flush(self) -> None:
        """Wait until all pending writes are written, or writing fails."""
        while self._unwritten() and self.failure is None:
            await self._progress()

    async def flush_in_time(self) -> bool:
        """Wait until all pending writes are written, for `FLUSH_WAIT_S` at most.

        Returns:
            Whether they were in time, or writing failed.
        """
        try:
            async with asyncio.timeout(FLUSH_WAIT_S):
                await self.flush()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Write all pending writes, with one retry after a failure; drop the rest."""
        end = asyncio.get_running_loop().time() + FLUSH_S
        failures = self._failures
        while self._unwritten() and self._failures == failures:
            if asyncio.get_running_loop().time() > end:
                break
            await self._progress()
        if self._unwritten():
            await self._stop()
            self._give_up()

    async def _progress(self) -> None:
        """Wait for the task that writes; not for long, as it goes on after a failure."""
        with self._lock:
            task = self._started()
            self._hurry()
        if task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([task], timeout=RETRY_S)
        else:
            await asyncio.sleep(_POLL_S)

    async def _stop(self) -> None:
        task = self._task
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def _finish(self) -> None:
        """Write all before an event loop ends, unless that takes longer than a second."""
        try:
            async with asyncio.timeout(RETRY_S):
                await self.flush()
        except TimeoutError:
            await self._stop()

    def _check(self) -> None:
        """Write what an event loop has left behind that has not ended in order; in a thread."""
        if self._count() and not self._is_writing(self._task):
            asyncio.run(self._finish())

    def _unwritten(self) -> bool:
        return bool(self._count()) or (self._task is not None and not self._task.done())

    def _count(self) -> int:
        return len(self._awaited) + len(self._others) + len(self._batch)

    def _add(self, write: _Write) -> bool:
        """Have it written, if there is room for it."""
        self.used = True
        with self._lock:
            if not self._admit(write):
                self._answer([write], False)
                return False
            (self._awaited if write.is_awaited else self._others).append(write)
            with contextlib.suppress(RuntimeError):  # no event loop runs: see _check()
                self._started()
                if not write.may_wait or len(self._others) >= MAX_BATCH:
                    self._hurry()
        return True

    def _admit(self, write: _Write) -> bool:
        """Whether there is room for a write, which then counts; called with the lock."""
        if self._bytes + write.weight > MAX_WAITING_BYTES:
            self.dropped += 1
            return False
        self._bytes += write.weight
        if write.content is not None:
            self._contents[write.content] = None
            self._content_bytes += write.content.weight
        self._drop_contents()
        return True

    def _drop_contents(self) -> None:
        """Drop the newest contents until all that waits is light enough; called with the lock.

        One may be as large as it is while the database can be written, since it is about to be.
        """
        while self._contents and self._bytes + self._content_bytes > MAX_WAITING_BYTES:
            alone = len(self._contents) == 1 and self.failure is None
            if alone and self._bytes <= MAX_WAITING_BYTES // 2:
                return
            content, _ = self._contents.popitem()
            self._content_bytes -= content.weight
            content.drop()
            self.dropped_contents += 1

    def _note_written(self, writes: list[_Write]) -> None:
        with self._lock:
            for write in writes:
                self._bytes -= write.weight
                if write.content is not None and write.content in self._contents:
                    del self._contents[write.content]
                    self._content_bytes -= write.content.weight

    def _hurry(self) -> None:
        """Have the task write at once; called with the lock, after `_started()`."""
        self._urgent = True
        event, task = self._gathering, self._task
        if event is None or task is None:
            return
        if task.get_loop() is _running_loop():
            event.set()
        else:
            with contextlib.suppress(RuntimeError):  # its event loop has been closed
                task.get_loop().call_soon_threadsafe(event.set)

    async def _gather(self) -> None:
        """Wait for more to write, if all that there is may wait."""
        with self._lock:
            if self._urgent:
                return
            event = self._gathering = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await event.wait()
        with self._lock:
            if self._gathering is event:
                self._gathering = None

    def _started(self) -> asyncio.Task[None]:
        """The task that writes, if need be a new one; called with the lock."""
        task = self._task
        if task is None or not self._is_writing(task):
            loop = asyncio.get_running_loop()
            # In an empty context: it writes for many calls and belongs to no trace.
            own = contextvars.Context()
            task = loop.create_task(self._run(), name="datasette-llm call log", context=own)
            task.add_done_callback(self._forget, context=own)
            self._task, self._gathering = task, None  # the event of another loop
            self._loop_end.expect(loop)
        return task

    def _is_writing(self, task: asyncio.Task[None] | None) -> bool:
        return task is not None and not task.done() and task.get_loop().is_running()

    def _forget(self, task: asyncio.Task[None]) -> None:
        # The traceback of a cancelled task refers to the Datasette instance.
        with self._lock:
            if self._task is task:
                self._task = None

    def _goes_on(self) -> bool:
        """Whether the task has more to write; if not, the next write starts another one."""
        with self._lock:
            if self._is_superseded():
                return False
            if not self._count():
                self._task = None
            return self._task is not None

    def _is_superseded(self) -> bool:
        """Whether the event loop of this task had stopped, so that another task writes."""
        return self._task is not asyncio.current_task()

    async def _run(self) -> None:
        for write in self._batch:  # of an event loop that has ended; they may have been written
            write.sent = True
        while self._goes_on():
            await self._gather()
            if self._is_superseded():
                return
            batch = self._next_batch()
            try:
                await self.prepare()
                count: int = await self._execute(_writing(batch))
            except DatasetteClosedError:
                self._give_up()
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._answer(batch, False)
                    raise  # the event loop ends
                self._failures += 1
                self._note_failure(error)
                self._urgent = True
                await asyncio.sleep(RETRY_S)
            else:
                self._answer(batch[:count], True)
                if self._is_superseded():
                    return
                self._batch = batch[count:]
                self._urgent = self._urgent or bool(self._batch)
                self._note_written(batch[:count])
                batch.clear()  # Datasette's writing thread keeps a reference to its last work
                self._note_success()

    def _next_batch(self) -> list[_Write]:
        """The rest of the last batch, then awaited writes, then others."""
        left, self._batch = self._batch, []
        self._awaited.extendleft(reversed([write for write in left if write.is_awaited]))
        self._others.extendleft(reversed([write for write in left if not write.is_awaited]))
        while len(self._batch) < MAX_BATCH and (queue := self._awaited or self._others):
            self._batch.append(queue.popleft())
        self._urgent = bool(self._awaited or self._others)
        return self._batch

    def _answer(self, batch: list[_Write], committed: bool) -> None:
        loop = _running_loop()
        for write in batch:
            future, write.committed = write.committed, None
            if future is None:
                continue
            answer = committed and not write.refused
            if future.get_loop() is loop:
                _resolve(future, answer)
            else:
                with contextlib.suppress(RuntimeError):  # its event loop has been closed
                    future.get_loop().call_soon_threadsafe(_resolve, future, answer)

    def _give_up(self) -> None:
        lost = [*self._batch, *self._awaited, *self._others]
        self._batch = []
        self._awaited.clear()
        self._others.clear()
        self.dropped += len(lost)
        self._note_written(lost)
        self._answer(lost, False)
        logger.error(
            "Datasette stopped before the LLM call log could be written: %d writes lost",
            len(lost),
        )

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            logger.error("The LLM call log cannot be written: %s", message_of(error))
        self.failure = f"{type(error).__name__}: {message_of(error)}"
        with self._lock:
            self._drop_contents()
        self._answer([*self._batch, *self._awaited], False)

    def _note_success(self) -> None:
        if self.failure is not None:
            logger.warning("The LLM call log is written again%s", self._lost())
        self.failure = None
        self._written_at = time.monotonic()

    def _lost(self) -> str:
        """What was dropped since the last message about that."""
        rows, contents = self.dropped, self.dropped_contents
        before, self._lost_before = self._lost_before, (rows, contents)
        if before == self._lost_before:
            return ""
        return (
            f"; {rows - before[0]:,} rows and ends of rows and the contents of "
            f"{contents - before[1]:,} calls were dropped, since more than "
            f"{MAX_WAITING_BYTES // 1_000_000} MB waited"
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None  # a task that its event loop left behind is closed


def _resolve(future: asyncio.Future[bool], answer: bool) -> None:
    if not future.done():
        future.set_result(answer)


def _executing(statement: Statement) -> Work:
    return lambda connection: connection.execute(*statement)


def _writing(batch: list[_Write]) -> Work:
    # No partial: Datasette looks at the signature of each write, which takes 15 µs longer.
    return lambda connection: _write_all(batch, connection)


def _write_all(batch: list[_Write], connection: sqlite3.Connection) -> int:
    """Write as many as fit into one transaction, in order, and return their number."""
    end = time.monotonic() + BATCH_S
    number = 0
    while number < len(batch):
        if number and not batch[number].is_awaited and time.monotonic() >= end:
            return number
        rows = _rows_from(batch, number)
        if len(rows) == 1 or not _insert_together(rows, connection):
            for write in rows:
                _write_one(write, connection)
        number += len(rows)
    return len(batch)


def _write_one(write: _Write, connection: sqlite3.Connection) -> None:
    write.refused = False
    try:
        write.work(connection)
    except Exception as error:  # rows contain third-party values
        if isinstance(error, sqlite3.Error) and not isinstance(error, _ROW_ERRORS):
            raise
        if not connection.in_transaction:
            raise  # SQLite has rolled back the earlier writes too
        if write.sent and isinstance(error, sqlite3.IntegrityError):
            return  # it was written the first time
        # One bad row must not prevent the others.
        write.refused = True
        logger.exception("A row of the LLM call log was refused")


def _rows_from(batch: list[_Write], number: int) -> list[_Write]:
    """A write, with those right after it that one statement can write too."""
    sql = batch[number].awaited_sql
    later = batch[number + 1 : number + MAX_ROWS] if sql is not None else []
    return [batch[number], *takewhile(lambda write: write.awaited_sql == sql, later)]


def _insert_together(rows: list[_Write], connection: sqlite3.Connection) -> bool:
    """Insert rows by one statement; False if that cannot be, and nothing was written."""
    statements = [write.statement for write in rows if write.statement is not None]
    many = _insert_of(statements[0][0], len(rows))
    if many is None:
        return False
    sql, names = many
    try:
        connection.execute(sql, [values[name] for _, values in statements for name in names])
    except (*_ROW_ERRORS, LookupError):
        if not connection.in_transaction:
            raise
        return False  # one is bad: each by itself
    for write in rows:
        write.refused = False
    return True


@lru_cache
def _insert_of(sql: str, count: int) -> tuple[str, list[str]] | None:
    """A statement that inserts several rows, with the names of the values of each."""
    match = _INSERT.fullmatch(sql)
    if match is None:
        return None
    names = re.findall(r":(\w+)", match[2])
    places = f"({', '.join('?' * len(names))})"
    return match[1] + ", ".join([places] * count), names

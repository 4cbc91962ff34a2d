"""Daemon threads: the process does not wait for them when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

logger = logging.getLogger("datasette_llm")

# How many items a thread may produce before they are consumed.
LOOK_AHEAD = 16
# How often a thread that waits for room checks whether the event loop is still open.
LOOP_CHECK_S = 1.0


def in_thread_of_its_own(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run work that may never end, such as listing models over a dead network.

    The process waits for the threads of `asyncio.to_thread` before it ends, and a provider's
    plugin may hang forever.
    """
    run, future = _in_loop(work)
    threading.Thread(target=run, name="datasette-llm catalog", daemon=True).start()
    return future


def _in_loop(work: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    """Work for a thread, and the future of the running event loop that gets what comes of it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(settle: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            settle(outcome)

    def run() -> None:
        try:
            settled = partial(finish, future.set_result, work())
        except BaseException as error:  # all of them are raised to the one who waits
            settled = partial(finish, future.set_exception, _raisable(error))
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            loop.call_soon_threadsafe(settled)

    return run, future


def _raisable(error: BaseException) -> BaseException:
    """An exception that futures and iterators can hand on; the others would look like an end."""
    if not isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit):
        return error
    raisable = RuntimeError(f"The work raised {type(error).__name__}")
    raisable.__cause__ = error
    return raisable


class SerialThread:
    """A thread that does one piece of work after the other, begun when there is some.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Do work in the thread, with the context variables of the caller.

        A caller that is cancelled does not wait for its end.

        Raises:
            RuntimeError: the system cannot start another thread.
        """
        run, future = _in_loop(partial(copy_context().run, work))
        self._begun().put(run)
        return await future

    @property
    def is_begun(self) -> bool:
        """Whether it has had work since it was closed."""
        return self._queue is not None

    @property
    def waiting(self) -> int:
        """How much work it has not begun yet."""
        return self._queue.qsize() if self._queue is not None else 0

    def put(self, work: Callable[[], object]) -> None:
        """Do work in the thread, later; what it raises is logged."""
        self._begun().put(partial(_logged, work))

    def close(self) -> None:
        """Let the thread end after its work; more work begins another."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.put(None)

    def __del__(self) -> None:
        self.close()

    def _begun(self) -> SimpleQueue[Callable[[], None] | None]:
        if self._queue is None:
            queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
            # The thread knows the queue alone, so that this object can be let go of.
            threading.Thread(target=_serve, args=(queue,), name=self._name, daemon=True).start()
            self._queue = queue
        return self._queue


def _logged(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:  # of an exporter; its message may quote what it exports
        logger.error("What a thread of datasette-llm was to do raised %s", type(error).__name__)


def _serve(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    with _event_loop() as loop:
        while (run := queue.get()) is not None:
            asyncio.set_event_loop(loop)  # again, since asyncio.run() takes it away
            run()
            del run  # which holds on to a chain while the thread waits


class _LazyLoop(asyncio.SelectorEventLoop):
    """An event loop that is made when it is first used: few plugins do, and it takes sockets."""

    def __init__(self) -> None:
        pass  # not yet

    def __getattr__(self, name: str) -> Any:
        if self.is_made:
            raise AttributeError(name)
        super().__init__()
        return getattr(self, name)

    @property
    def is_made(self) -> bool:
        """Whether it has been used; its attributes are set one after the other."""
        return bool(vars(self))

    def close(self) -> None:
        """Close it, if it has been used."""
        if self.is_made:
            super().close()

    def __del__(self) -> None:
        if self.is_made:
            super().__del__()


@contextlib.contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for this thread, for plugins that call `asyncio.get_event_loop()`."""
    loop = _LazyLoop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        with contextlib.suppress(Exception):  # a plugin may have left it running
            loop.close()


class ThreadStream(Generic[T]):
    """An async iterator over the result of a function that runs in its own thread.

    The function and the iteration run in this one thread, which has the context variables of
    the task that starts it. It waits while `LOOK_AHEAD` items are not consumed yet. Their
    exceptions are raised by the stream.

    Args:
        work: returns the iterable.
        ended: called in the event loop when the thread has ended, if the loop is still open.
    """

    def __init__(self, work: Callable[[], Iterable[T]], ended: Callable[[], None]) -> None:
        self._work = work
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._room = threading.Semaphore(LOOK_AHEAD)
        self._news = asyncio.Event()
        self._woken = False
        self._stopped = False
        self._over = False
        self._error: BaseException | None = None

    def start(self, name: str) -> None:
        """Start the thread under this name.

        Raises:
            RuntimeError: the system cannot start another thread.
        """
        run = copy_context().run
        threading.Thread(target=run, args=(self._run,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Have the thread close its iterator at the next item, and end."""
        self._stopped = True
        self._items.clear()
        self._room.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._over:
                self._raise_end()
            self._news.clear()
            await self._news.wait()
        item = self._items.popleft()
        self._room.release()
        return item

    def _raise_end(self) -> None:
        # Deleted, since its traceback refers back to this frame.
        error, self._error = self._error, None
        try:
            raise error or StopAsyncIteration
        finally:
            del error

    # In the thread

    def _run(self) -> None:
        try:
            with _event_loop():
                self._put_all(self._work())
        except BaseException as error:  # all of them are raised to the consumer
            self._error = _raisable(error)
        finally:
            self._call_in_loop(self._finish)

    def _put_all(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        for item in iterator:
            if not self._put(item):
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
                return

    def _put(self, item: T) -> bool:
        """Add an item for the consumer; False if the stream was stopped."""
        while not self._room.acquire(timeout=LOOP_CHECK_S):
            if self._loop.is_closed():
                return False
        if self._stopped:
            return False
        self._items.append(item)
        if self._woken:
            return True  # the consumer will see this item too
        self._woken = True
        return self._call_in_loop(self._wake)

    def _call_in_loop(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the event loop was closed meanwhile
            return False
        return True

    # In the event loop, on behalf of the thread

    def _wake(self) -> None:
        self._woken = False
        self._news.set()

    def _finish(self) -> None:
        self._over = True
        self._news.set()
        self._ended()

"""Threads that nobody waits for when the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Generic, Self, TypeVar, cast

T = TypeVar("T")

# How far a thread may be ahead of whoever takes its items.
LOOK_AHEAD = 16
# How often a thread that is so far ahead looks whether the event loop is still there.
LOOP_CHECK_S = 1.0


def in_thread_of_its_own(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do work that may never end, such as listing models over a dead network.

    A provider's plugin may hang for good while it lists its models, and asyncio waits for the
    threads of `asyncio.to_thread` before it lets a program end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(outcome: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, outcome))  # there is no error, so there is an outcome

    def run() -> None:
        outcome: T | None = None
        failure: BaseException | None = None
        try:
            outcome = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            loop.call_soon_threadsafe(finish, outcome, failure)

    threading.Thread(target=run, name="datasette-llm catalog", daemon=True).start()
    return future


class ThreadStream(Generic[T]):
    """What a function's result gives when it is iterated over in a thread of its own.

    All of the function and of the iteration is in this one thread, which has the context
    variables of the task that starts it. It waits while `LOOK_AHEAD` items are not taken yet.
    Iterating over the stream raises what the function or the iteration raised.

    Args:
        work: gives what is iterated over.
        ended: called in the event loop when the thread has ended, unless the loop has first.
    """

    def __init__(self, work: Callable[[], Iterable[T]], ended: Callable[[], None]) -> None:
        self._work = work
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._room = threading.Semaphore(LOOK_AHEAD)
        self._news = asyncio.Event()
        self._told = False
        self._stopped = False
        self._over = False
        self._error: BaseException | None = None

    def start(self, name: str) -> None:
        """Begin; `name` is the thread's.

        Raises:
            RuntimeError: the system has no thread left.
        """
        run = copy_context().run
        threading.Thread(target=run, args=(self._run,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Nothing more is wanted: the thread closes what it iterates over at its next item."""
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
        # Let go of, since its traceback leads back here.
        error, self._error = self._error, None
        try:
            raise error or StopAsyncIteration
        finally:
            del error

    # In the thread

    def _run(self) -> None:
        try:
            self._hand_over(self._work())
        except (StopIteration, StopAsyncIteration) as error:
            # Either would end the loop of whoever reads as if nothing were wrong.
            self._error = RuntimeError(f"The iteration raised {type(error).__name__}")
            self._error.__cause__ = error
        except BaseException as error:  # all of it belongs to whoever reads
            self._error = error
        finally:
            self._tell(self._finish)

    def _hand_over(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        for item in iterator:
            if not self._put(item):
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
                return

    def _put(self, item: T) -> bool:
        """Add an item for the event loop; False when nothing more is wanted."""
        while not self._room.acquire(timeout=LOOP_CHECK_S):
            if self._loop.is_closed():
                return False
        if self._stopped:
            return False
        self._items.append(item)
        if self._told:
            return True  # it will find this one too
        self._told = True
        return self._tell(self._wake)

    def _tell(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the event loop was closed meanwhile
            return False
        return True

    # In the event loop, on behalf of the thread

    def _wake(self) -> None:
        self._told = False
        self._news.set()

    def _finish(self) -> None:
        self._over = True
        self._news.set()
        self._ended()

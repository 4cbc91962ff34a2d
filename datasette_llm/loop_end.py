"""What is left to do when an event loop ends: inside it if it ends in order, else from a thread.

`asyncio.run()` closes asynchronous generators before it closes its loop. A loop that is closed in
another way calls nothing, so a thread looks at the loops of unfinished things once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakMethod

logger = logging.getLogger("datasette_llm")

_T = TypeVar("_T")

CHECK_S = 1.0

_lock = threading.Lock()
_checks: list[WeakMethod[Callable[[], object]]] = []
_thread: threading.Thread | None = None


def take_ended(by_loop: MutableMapping[asyncio.AbstractEventLoop, _T]) -> list[_T]:
    """Take out what is of event loops that have been closed, and return it.

    Args:
        by_loop: what there is of each event loop; other threads may change it.
    """
    try:
        loops = list(by_loop)
    except RuntimeError:  # one has just done so; the next event loop finds what is left
        return []
    ended = [loop for loop in loops if loop.is_closed()]
    return [left for loop in ended if (left := by_loop.pop(loop, None)) is not None]


class LoopEnd:
    """Awaits something at the end of each event loop that it expects."""

    def __init__(self, finish: Callable[[], Awaitable[object]]) -> None:
        """
        Args:
            finish: a method, held weakly; awaited in the loop that ends.
        """
        self._finish = WeakMethod(finish)
        self._kept: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None]] = (
            WeakKeyDictionary()
        )

    def expect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Await it at the end of this loop, which is running, too."""
        if loop not in self._kept:
            take_ended(self._kept)  # whose generators refer to them
            kept = self._kept[loop] = _until_closed(self._finish)
            with contextlib.suppress(StopIteration):
                kept.asend(None).send(None)  # to its yield, so that the loop knows of it


async def _until_closed(
    finish: WeakMethod[Callable[[], Awaitable[object]]],
) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        method = finish()
        if method is not None:
            await method()


def check_each_second(check: Callable[[], object]) -> None:
    """Call a method once a second, in a thread, as long as its object lives.

    Args:
        check: it should be quick where there is nothing to do.
    """
    global _thread
    with _lock:
        _checks.append(WeakMethod(check))
        if _thread is None or not _thread.is_alive():  # also in a process that was forked
            _thread = threading.Thread(target=_watch, name="datasette_llm event loops", daemon=True)
            _thread.start()


def _watch() -> None:
    while True:
        time.sleep(CHECK_S)
        with _lock:
            _checks[:] = [each for each in _checks if each() is not None]
            if not _checks:
                return
            methods = [each() for each in _checks]
        for method in methods:
            try:
                if method is not None:
                    method()
            except Exception:  # the code of hooks and models may run here
                logger.exception("What an event loop left behind could not be finished")
        del methods, method  # nothing is kept alive while it sleeps

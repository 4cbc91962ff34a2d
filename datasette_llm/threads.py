"""A thread that nobody waits for when the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


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

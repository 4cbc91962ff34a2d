"""Waiting with a bound, so that a test fails instead of hanging."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

BOUND_S = 20.0  # how long a test waits before it fails

_T = TypeVar("_T")


async def soon(awaitable: Awaitable[_T]) -> _T:
    """Wait for something that is about to happen."""
    async with asyncio.timeout(BOUND_S):
        return await awaitable


async def happens(event: threading.Event) -> None:
    """Wait until a thread has set an event."""
    assert await asyncio.to_thread(event.wait, BOUND_S)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so that sets no event."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110  # no event is set
            await asyncio.sleep(0.001)

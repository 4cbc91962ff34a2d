"""Calls begin in slices, so that thousands at once leave the event loop to others in between.

A step of the event loop runs all that is ready. Without slices ten thousand prompts would each
take their way to the provider in one step, and nothing else would move for seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

# How many calls begin in a step of the event loop: some milliseconds.
SLICE = 32


class _Pace:
    """Counts the calls that have begun in the current step of an event loop."""

    def __init__(self) -> None:
        self._begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._begun:
            loop.call_soon(self._next_step, loop)
        if self._begun < SLICE:
            self._begun += 1
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next_step(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = 0
        while self._waiting and self._begun < SLICE:
            waiter = self._waiting.popleft()
            if not waiter.done():  # as it is when its caller was cancelled
                waiter.set_result(None)
                self._begun += 1
        if self._begun:
            loop.call_soon(self._next_step, loop)


_paces: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pace] = WeakKeyDictionary()


async def turn() -> None:
    """Wait until a call may begin: at once, unless many have begun in this step of the loop."""
    loop = asyncio.get_running_loop()
    pace = _paces.get(loop)
    if pace is None:
        pace = _paces[loop] = _Pace()
    await pace.turn(loop)

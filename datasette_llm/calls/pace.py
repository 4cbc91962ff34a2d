"""Calls begin in slices, so that thousands at once leave the event loop to others in between.

A step of the event loop runs all that is ready. Without slices ten thousand prompts would each
take their way to the provider in one step, and nothing else would move for seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

# So many calls begin in a step of the event loop, which takes some milliseconds.
SLICE = 32


class Pace:
    """Counts the calls that begin; those beyond a slice wait for a later step of their loop.

    Attributes:
        begun: how many calls have begun since the task of one of them last started.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]] = (
            WeakKeyDictionary()
        )

    async def turn(self) -> None:
        """Wait for a later step of the event loop, in the order of those who wait."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, deque())
        if not waiting:
            loop.call_soon(self._next_step, loop, waiting)
        admitted: asyncio.Future[None] = loop.create_future()
        waiting.append(admitted)
        await admitted

    def _next_step(
        self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]
    ) -> None:
        left = SLICE
        while waiting and left:
            admitted = waiting.popleft()
            if not admitted.done():  # as it is when its caller was cancelled
                admitted.set_result(None)
                left -= 1
        if waiting:
            loop.call_soon(self._next_step, loop, waiting)


pace = Pace()

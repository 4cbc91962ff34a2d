"""The timeouts of a request: in total, and without an event.

`asyncio.timeout` does not do: it cancels once, and a provider that swallows that would run on;
and it would cut short the callbacks of a complete response, so this one stops when the provider
is done.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self

from ..errors import ResponseTimeoutError
from .task import CLEANUP_S

Setting = Literal["timeout", "idle_timeout"]


class Deadline:
    """Cancels its block at a timeout.

    Args:
        end: when the time in total is over, by the clock of the event loop; None for never.
        timeout_s: what that time in total was, in seconds.
        idle_timeout_s: how many seconds may pass without an event; None for any number.
    """

    def __init__(
        self,
        end: float | None,
        timeout_s: float | None,
        idle_timeout_s: float | None = None,
    ) -> None:
        self._end = end
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # how often the task had been cancelled when the block began
        self._cancelled = 0  # how often we did it
        self._error: ResponseTimeoutError | None = None

    async def __aenter__(self) -> Self:
        """Begin to count.

        Raises:
            ResponseTimeoutError: the time in total is over already.
        """
        if self._end is not None and self._end <= self._loop.time():
            raise ResponseTimeoutError("timeout", self._timeout_s or 0.0)
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting.

        Raises:
            ResponseTimeoutError: the time was over.
        """
        self.stop()
        if self._error is None or self._task is None:
            return
        remaining = self._task.cancelling()
        for _ in range(self._cancelled):
            remaining = self._task.uncancel()
        if isinstance(error, asyncio.CancelledError) and remaining <= self._cancelling:
            raise self._error from None
        if isinstance(error, Exception):
            raise self._error from error  # the provider made this of our cancellation

    def event(self) -> None:
        """Restart the idle timeout.

        Raises:
            CancelledError: the time was over, and the provider has swallowed that.
        """
        if self._error is not None:
            raise asyncio.CancelledError
        if self._idle_timeout_s is not None:
            self._start()

    def stop(self) -> None:
        """Stop both; callbacks are not limited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self.stop()
        idle_end = None
        if self._idle_timeout_s is not None:
            idle_end = self._loop.time() + self._idle_timeout_s
        if self._end is not None and (idle_end is None or self._end <= idle_end):
            self._timer = self._loop.call_at(self._end, self._expire, "timeout")
        elif idle_end is not None:
            self._timer = self._loop.call_at(idle_end, self._expire, "idle_timeout")

    def _expire(self, setting: Setting) -> None:
        if self._error is None:
            seconds = self._timeout_s if setting == "timeout" else self._idle_timeout_s
            self._error = ResponseTimeoutError(setting, seconds or 0.0)
        if self._task is not None:
            self._cancelled += 1
            self._task.cancel()
            self._timer = self._loop.call_later(CLEANUP_S, self._expire, setting)

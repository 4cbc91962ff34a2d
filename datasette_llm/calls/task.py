"""The asyncio task that a call runs in: who stops it, and how long it may then clean up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any

from ..errors import ResponseCancelledError
from ..events import Outcome

logger = logging.getLogger("datasette_llm")

# How long one context of a hook may clean up after the call was cancelled.
CLEANUP_S = 5.0

# The number of the context that is being opened in this task. A timer that a hook starts
# while its context opens (asyncio.timeout around the `yield`) carries a copy of it, so that
# when the timer cancels the task we know whose timeout it was.
opening: ContextVar[int | None] = ContextVar("datasette_llm_opening", default=None)

# What ends the program rather than a call.
FATAL = (KeyboardInterrupt, SystemExit)

_current: ContextVar[SupervisedTask | None] = ContextVar("datasette_llm_call", default=None)


def contained(raised: BaseException, message: str) -> BaseException:
    """An exception that `except Exception` sees, or one that ends the program."""
    if isinstance(raised, (Exception, *FATAL)):
        return raised
    error = ResponseCancelledError(message)
    error.__cause__ = raised
    return error


class _Task(asyncio.Task[None]):
    """A task that notes whose timer cancels it; see `opening`."""

    __slots__ = ("context", "supervised")

    supervised: SupervisedTask
    context: Context

    def cancel(self, msg: Any | None = None) -> bool:
        number = opening.get()
        if number is not None and _current.get() is self.supervised:
            self.supervised.timed_out.add(number)
        return super().cancel(msg)


class SupervisedTask:
    """Runs in its own task and cleans up, whatever cancels it.

    Attributes:
        closed: set when everything is over.
        timed_out: the numbers of the contexts whose own timeouts have cancelled the task.
        parent: the call that it was begun in, or None.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.timed_out: set[int] = set()
        self.parent = _current.get()
        for _ in self.around():
            pass  # drop ended parents, or they would all stay alive
        self._cancel_reason: str | None = None
        self._leaving = False
        self._sent = 0  # cancellations of ours, until they are taken back
        self._task: _Task | None = None
        self._cut_short_timer: asyncio.TimerHandle | None = None

    def _begin(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        context = copy_context()
        self._task = _Task(self._supervise(), loop=loop, name=name, context=context)
        self._task.supervised, self._task.context = self, context
        self._task.add_done_callback(self._task_done)

    async def _supervise(self) -> None:
        _current.set(self)
        await self._run()

    # What runs, and what is done at its end, are the subclass's.

    async def _run(self) -> None:
        raise NotImplementedError

    def _settle(self, error: BaseException | None) -> None:
        raise NotImplementedError

    # What the outside does

    def cancel(self, reason: str) -> None:
        """Stop the request, and let the contexts clean up, each for `CLEANUP_S` at most."""
        task = self._task
        if task is None or task.done() or self._cancel_reason is not None:
            return
        self._cancel_reason = reason
        if not self._leaving:
            self._send(task)
        self._arm_cut_short(task)

    def cancel_soon(self, reason: str) -> None:
        """As `cancel()`, from any thread or event loop."""
        task = self._task
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed, which ends it too
                task.get_loop().call_soon_threadsafe(self.cancel, reason)

    def hurry(self) -> None:
        """The caller waits no longer: each context may clean up for `CLEANUP_S` at most."""
        if self._task is not None and self.running and self._cut_short_timer is None:
            self._arm_cut_short(self._task)

    @property
    def cancelled(self) -> bool:
        """Whether the call was asked to stop."""
        return self._cancel_reason is not None

    @property
    def is_being_stopped(self) -> bool:
        """Whether the task is to end: asked to, by a timeout or by the event loop."""
        by_loop = self._task is not None and self._task.cancelling() > 0
        return self.cancelled or bool(self.timed_out) or by_loop

    @property
    def running(self) -> bool:
        """Whether the call has begun and not ended."""
        return self._task is not None and not self.closed.is_set()

    @property
    def leaving(self) -> bool:
        """Whether the requests are over, and the contexts are being left."""
        return self._leaving

    def runs_here(self) -> bool:
        """Whether the call belongs to the event loop that is running."""
        return self._task is not None and self._task.get_loop() is asyncio.get_running_loop()

    @property
    def is_stranded(self) -> bool:
        """Whether its event loop was closed before it ended."""
        return self._task is not None and self._task.get_loop().is_closed()

    def abandon(self) -> None:
        """End a stranded call: what has to be cleaned up is, as far as it need not be awaited."""
        task = self._task
        if task is None:
            return
        self._cancel_reason = "The event loop of the call was closed"
        coroutine: Any = task.get_coro()
        try:
            task.context.run(coroutine.throw, asyncio.CancelledError())
            task.context.run(coroutine.close)  # it waits, and there is nothing that wakes it
        except (StopIteration, asyncio.CancelledError):
            pass  # it has ended
        except RuntimeError as error:
            logger.warning("A call whose event loop was closed could not clean up: %s", error)
        finally:
            with contextlib.suppress(RuntimeError):  # who waits for it is in the same loop
                self._task_done(task)

    def encloses_caller(self) -> bool:
        """Whether the code that asks runs inside this call: in its provider or its contexts."""
        supervised = _current.get()
        return supervised is not None and (supervised is self or self in supervised.around())

    def around(self) -> Iterator[SupervisedTask]:
        """The running calls that this one was begun in, the nearest first."""
        inner = self
        while inner.parent is not None:
            if inner.parent.closed.is_set():
                inner.parent = inner.parent.parent
            else:
                inner = inner.parent
                yield inner

    def waits_for_caller(self) -> bool:
        """Whether the call cannot go on before the code that asks, which it encloses, has.

        So it is in its own task, and while the contexts are left in any task: they may wait
        for it.
        """
        return self._leaving or asyncio.current_task() is self._task

    def stop_if_cancelled(self) -> None:
        """Raise the cancellation that was asked for, in case it was swallowed."""
        if self._cancel_reason is not None:
            raise asyncio.CancelledError

    # What ended it

    def outcome(self, error: BaseException | None) -> Outcome:
        """How a request ended.

        Args:
            error: what it raised, or None.
        """
        if error is None:
            return Outcome.OK
        if self.cancelled or not isinstance(error, Exception):
            return Outcome.CANCELLED
        return Outcome.ERROR

    def public_error(self, raised: BaseException) -> BaseException:
        """What callers get for what ended a call: of a cancellation, what did it and why."""
        if self._cancel_reason is not None and not isinstance(raised, FATAL):
            return ResponseCancelledError(self._cancel_reason)
        if not isinstance(raised, asyncio.CancelledError):
            return contained(raised, f"The call was ended by {type(raised).__name__}")
        if self.timed_out:
            return ResponseCancelledError("A plugin's timeout ended the call")
        if self._task is not None and self._task.cancelling():
            return ResponseCancelledError("The event loop cancelled the call")
        return ResponseCancelledError(
            "The call was cancelled from inside: it awaited something that was"
        )

    def _cause(
        self,
        raised: BaseException,
        ended_by_timeout: Callable[[asyncio.CancelledError], BaseException],
    ) -> BaseException:
        """What the contexts and the caller get for what ended the call."""
        assert self._task is not None
        shown = self.public_error(raised)
        if isinstance(raised, asyncio.CancelledError) and self.timed_out and not self.cancelled:
            # Not taken back here: the asyncio.timeout that sent it does so itself.
            return ended_by_timeout(raised)
        self.timed_out.clear()
        if not self._sent and isinstance(raised, asyncio.CancelledError):
            self._task.uncancel()  # the event loop's
        self._take_back()
        return shown

    def _take_back(self) -> None:
        """Uncancel as often as we cancelled, or `asyncio.timeout` sees a pending cancellation."""
        assert self._task is not None
        for _ in range(self._sent):
            self._task.uncancel()
        self._sent = 0

    def _stopped_from_outside(self, raised: BaseException) -> bool:
        """Whether the task was stopped from outside, rather than by what ran in it."""
        assert self._task is not None
        by_loop = isinstance(raised, asyncio.CancelledError) and self._task.cancelling() > 0
        return self.cancelled or (by_loop and not self.timed_out)

    # How long it may clean up

    def _grant_time(self) -> None:
        self._take_back()
        # Each context gets the full CLEANUP_S.
        if self._cut_short_timer is not None and self._task is not None:
            self._arm_cut_short(self._task)

    def _arm_cut_short(self, task: _Task) -> None:
        if self._cut_short_timer is not None:
            self._cut_short_timer.cancel()
        self._cut_short_timer = task.get_loop().call_later(CLEANUP_S, self._cut_short)

    def _cut_short(self) -> None:
        task = self._task
        if task is not None and not task.done():
            self._send(task)
            self._arm_cut_short(task)

    def _send(self, task: _Task) -> None:
        self._sent += asyncio.Task.cancel(task)

    def _close(self) -> None:
        if self._cut_short_timer is not None:
            self._cut_short_timer.cancel()
        self.closed.set()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never enters _run().
        if not self.closed.is_set():
            self._settle(ResponseCancelledError(self._cancel_reason or "The call was cancelled"))
        # Break the cycle, so that the call is freed at once.
        self._task = None

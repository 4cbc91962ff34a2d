"""FIFO concurrency limiters: one per model and per purpose, and one for threads.

A request acquires a permit, which holds a place in every limiter that counts for it, and
releases it when it has ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from ..access.call_policy import Limit, LimiterName


class Place(NamedTuple):
    """Where a request waits.

    Attributes:
        limiter: the name of the concurrency limiter.
        number: 1 for the request that is admitted next.
        waiting: how many wait there.
    """

    limiter: LimiterName
    number: int
    waiting: int


class ConcurrencyLimiter:
    """Counts the requests that run, and admits the waiting ones in order as others end.

    The limit comes with each request, since it may stand in different settings: the first in
    the queue waits until fewer run than its own limit allows, and none overtakes it.
    """

    def __init__(self) -> None:
        self._running = 0
        # An OrderedDict loses its first and any other entry in constant time.
        self._queue: OrderedDict[asyncio.Future[None], _Waiting] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ConcurrencyLimiter {self.running} running, {self.waiting} waiting>"

    @property
    def running(self) -> int:
        """How many requests run."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self._running and not self._queue

    def owners(self) -> list[object]:
        """Those that wait, in order."""
        return [each.owner for each in self._queue.values()]

    async def acquire(self, limit: int, owner: object = None) -> None:
        """Wait for a place; a request that is cancelled meanwhile leaves the queue.

        Args:
            limit: how many may run, this request included.
            owner: by which `owners` knows the request.
        """
        if not self._queue and self._running < limit:
            self._running += 1
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[admitted] = _Waiting(limit, owner)
        try:
            await admitted
        except BaseException:
            self._queue.pop(admitted, None)
            if admitted.done() and not admitted.cancelled():
                self._running -= 1  # admitted, and cancelled before it could run
            self._admit()  # those behind it may have waited for its limit only
            raise

    def release(self) -> None:
        """Give a place back."""
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._running < next(iter(self._queue.values())).limit:
            admitted, _ = self._queue.popitem(last=False)
            if not admitted.done():
                self._running += 1
                admitted.set_result(None)


class _Waiting(NamedTuple):
    limit: int
    owner: object


class LimiterRegistry:
    """The limiters of one Datasette instance, by name; made when first asked for.

    Each event loop has its own, since one that has ended may have left requests running.
    """

    def __init__(self) -> None:
        self._by_loop: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[LimiterName, ConcurrencyLimiter]
        ] = WeakKeyDictionary()

    def named(self, name: LimiterName) -> ConcurrencyLimiter:
        """The limiter with this name, for the running event loop."""
        limiters = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        return limiters.setdefault(name, ConcurrencyLimiter())

    def busy(self) -> dict[LimiterName, ConcurrencyLimiter]:
        """Those of the running event loop that are not idle, by name."""
        limiters = self._by_loop.get(asyncio.get_running_loop(), {})
        return {name: limiter for name, limiter in limiters.items() if not limiter.idle}

    def places(self) -> dict[object, Place]:
        """Where the permits of the running event loop wait that do."""
        return {
            owner: Place(name, number, limiter.waiting)
            for name, limiter in self.busy().items()
            for number, owner in enumerate(limiter.owners(), 1)
        }

    def all_idle(self) -> bool:
        """Whether no limiter of any event loop is in use."""
        return all(each.idle for limiters in self._by_loop.values() for each in limiters.values())


class Permit:
    """A request's places in the limiters that count for it.

    A request that is made from inside another one, as by a model that asks other models, does
    not wait for a limiter in which that one has a place: it would wait for itself.
    """

    def __init__(self) -> None:
        outer = _current.get()
        while outer is not None and not outer.held:
            outer = outer.outer  # what has ended is let go of
        self.outer: Permit | None = outer
        self.held: list[ConcurrencyLimiter] = []
        self._of_purpose: ConcurrencyLimiter | None = None  # one of those held
        self._token: Token[Permit | None] | None = None
        self._detached = False
        self._shared = False

    async def acquire(self, limiters: LimiterRegistry, limits: Iterable[Limit]) -> None:
        """Wait for a place in each limiter in turn; places so far are held if it is cancelled."""
        self._token = _current.set(self)
        for limit in limits:
            limiter = limiters.named(limit.limiter)
            if not any(limiter in permit.held for permit in self._nested()):
                await limiter.acquire(limit.count, self)
                self.held.append(limiter)
                if limit.limiter[0] == "purpose":
                    self._of_purpose = limiter

    @property
    def outlives_request(self) -> bool:
        """Whether the request has ended, and what the permit was transferred to has not."""
        goes_on = self._detached or self._shared
        return goes_on and self._token is None and bool(self.held)

    def transfer(self) -> Callable[[], None]:
        """Leave the release to something that outlives the request, as its thread may.

        Returns:
            What releases the permit; to be called in the event loop.
        """
        self._detached = True
        return self._release

    def share(self) -> Callable[[], None]:
        """Leave it to a request that others ride along with, and that may go on without this one.

        Returns:
            What is to be called at the end of that request.
        """
        self._shared = True
        return self._let_go

    def end(self) -> None:
        """The request has ended; called in its task."""
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        if not self._shared:
            self._let_go()

    def _let_go(self) -> None:
        if not self._detached:
            self._release()
        elif self._of_purpose in self.held:
            # A thread keeps its model busy; the purpose is free to ask others.
            self.held.remove(self._of_purpose)
            self._of_purpose.release()

    def _nested(self) -> Iterator[Permit]:
        permit: Permit | None = self
        while permit is not None:
            yield permit
            permit = permit.outer

    def _release(self) -> None:
        while self.held:
            self.held.pop().release()


_current: ContextVar[Permit | None] = ContextVar("datasette_llm_permit", default=None)

"""FIFO concurrency limiters, one per model and per purpose, and one for threads.

A request acquires a permit of all limiters that hold for it, and releases it when it has ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from weakref import WeakKeyDictionary

from ..access.call_policy import Limit, LimiterName


class ConcurrencyLimiter:
    """Counts those inside, and lets those who wait in as others leave.

    The limit comes with each of them, since it may stand in different settings: whoever is at
    the head of the queue waits until there are fewer inside than its own limit allows, and
    nobody passes it.
    """

    def __init__(self) -> None:
        self._inside = 0
        # An OrderedDict loses its first and any other entry in constant time.
        self._waiting: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ConcurrencyLimiter {self._inside} inside, {len(self._waiting)} waiting>"

    @property
    def inside(self) -> int:
        """How many are inside."""
        return self._inside

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nobody is inside and nobody waits."""
        return not self._inside and not self._waiting

    async def enter(self, limit: int) -> None:
        """Go in as soon as it is one's turn; one who is cancelled meanwhile leaves the queue.

        Args:
            limit: how many may be inside, the one who enters included.
        """
        if not self._waiting and self._inside < limit:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = limit
        try:
            await turn
        except BaseException:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():
                self._inside -= 1  # it was let in, and cancelled before it could tell
            self._let_in()  # those behind it may have waited for its limit only
            raise

    def leave(self) -> None:
        """Make room for the next one."""
        self._inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._inside < next(iter(self._waiting.values())):
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                self._inside += 1
                turn.set_result(None)


class LimiterRegistry:
    """The gates of one Datasette instance, by name; made when first asked for.

    Each event loop has its own, since one that has ended may have left somebody inside.
    """

    def __init__(self) -> None:
        self._by_loop: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[LimiterName, ConcurrencyLimiter]
        ] = WeakKeyDictionary()

    def named(self, name: LimiterName) -> ConcurrencyLimiter:
        """The gate with this name, for the event loop that is running."""
        gates = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        return gates.setdefault(name, ConcurrencyLimiter())

    def busy(self) -> dict[LimiterName, ConcurrencyLimiter]:
        """Those of the event loop that is running where somebody is, by name."""
        gates = self._by_loop.get(asyncio.get_running_loop(), {})
        return {name: gate for name, gate in gates.items() if not gate.idle}


class Turn:
    """What a request has gone through, from its first gate until it has ended.

    A request that is made from inside another one, as by a model that asks other models, does
    not wait for a gate which that one has gone through: it would wait for itself.
    """

    def __init__(self) -> None:
        around: Turn | None = _current.get()
        while around is not None and not around._gates:
            around = around._around  # what has ended is let go of
        self._around: Turn | None = around
        self._gates: list[ConcurrencyLimiter] = []
        self._of_purpose: ConcurrencyLimiter | None = None  # one of them
        self._token: Token[Turn | None] | None = None
        self._handed_over = False

    async def take(self, gates: LimiterRegistry, limits: Iterable[Limit]) -> None:
        """Go through some gates, one after the other; those passed stay so if one is cancelled."""
        self._token = _current.set(self)
        for limit in limits:
            gate = gates.named(limit.limiter)
            if not self._is_inside(gate):
                await gate.enter(limit.count)
                self._gates.append(gate)
                if limit.limiter[0] == "purpose":
                    self._of_purpose = gate

    @property
    def outlived(self) -> bool:
        """Whether the request has ended and what it was handed over to has not."""
        return self._handed_over and self._token is None and bool(self._gates)

    def hand_over(self) -> Callable[[], None]:
        """Leave the end to somebody else, as to the thread that outlives its request.

        Returns:
            What is to be called then, in the event loop.
        """
        self._handed_over = True
        return self._give_back

    def end(self) -> None:
        """The request has ended; called in its task."""
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        if not self._handed_over:
            self._give_back()
        elif self._of_purpose in self._gates:
            # A thread keeps its model busy; the purpose is free to ask others.
            self._gates.remove(self._of_purpose)
            self._of_purpose.leave()

    def _is_inside(self, gate: ConcurrencyLimiter) -> bool:
        return gate in self._gates or (self._around is not None and self._around._is_inside(gate))

    def _give_back(self) -> None:
        while self._gates:
            self._gates.pop().leave()


_current: ContextVar[Turn | None] = ContextVar("datasette_llm_turn", default=None)

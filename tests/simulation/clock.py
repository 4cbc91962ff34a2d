"""An event loop whose time stands still until the story moves it, and who moves it.

Nothing here waits: a timer is due when the story says so, work for a thread is done at once,
and what happens next is one byte of the story. So the same story is the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A story that takes more turns of the loop than this goes round in a circle.
MAX_TURNS = 20_000
# Cleanup that is cut short again and again is one way to go round.
MAX_TICKS = 200
BEGINNING_S = 1_000.0


class StoryLoop(asyncio.SelectorEventLoop):
    """An event loop that asks its director before each of its turns."""

    def __init__(self) -> None:
        self.now = BEGINNING_S
        self.director: Callable[[], None] | None = None
        super().__init__()

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    @property
    def busy(self) -> bool:
        return bool(self._ready)

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that are set, the next first."""
        return sorted(timer for timer in self._scheduled if not timer.cancelled())

    def due(self) -> bool:
        timers = self.timers()
        return bool(timers) and timers[0].when() <= self.now

    def tick(self, *, half: bool = False) -> None:
        """It is the time of the next timer, or half-way until then."""
        left_s = self.timers()[0].when() - self.now
        if left_s > 0:
            self.now = self.now + left_s / 2 if half else self.timers()[0].when()

    def _run_once(self) -> None:
        if self.director is not None:
            self.director()
        super()._run_once()


@dataclass(eq=False)
class ConcurrencyLimiter:
    """A place in somebody's script where they wait until the story lets them go on."""

    name: str
    opened: asyncio.Future[None]


class LimiterRegistry:
    """The gates at which somebody waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._gates: list[ConcurrencyLimiter] = []

    async def wait(self, name: str) -> None:
        gate = ConcurrencyLimiter(name, self._loop.create_future())
        self._gates.append(gate)
        try:
            await gate.opened
        finally:
            self._gates.remove(gate)

    @property
    def waiting(self) -> list[ConcurrencyLimiter]:
        return [gate for gate in self._gates if not gate.opened.done()]


class Cast:
    """What a director may do with those who take part, apart from gates and time."""

    gates: LimiterRegistry
    jumped_s = 0.0  # how long time has moved while somebody had something to do

    def cancellable(self) -> list[tuple[str, Callable[[], None]]]:
        raise NotImplementedError

    def may_shut_down(self) -> bool:
        raise NotImplementedError

    def shut_down(self) -> None:
        raise NotImplementedError

    def end_calls(self) -> bool:
        """End the calls that nobody waits for; False when there are none."""
        raise NotImplementedError

    def look(self) -> None:
        """Everyone has done what they can for now."""
        raise NotImplementedError


class Director:
    """Reads the choices of a story, one byte each, and after the last ends it in good order.

    The three low bits say what: 0 to 3 open a gate, 4 lets time pass until the next timer and 5
    half as long, 6 cancels somebody, 7 shuts down (where the story allows it, else opens a gate).
    The next three say which, and the two high ones how many turns the loop then takes: as many
    as it has work for, or only 1, 2 or 3.
    """

    def __init__(self, loop: StoryLoop, cast: Cast, choices: bytes, cancels: int) -> None:
        self.told: list[str] = []
        self.stuck: str | None = None
        self._over = False
        self._loop = loop
        self._cast = cast
        self._choices = iter(choices)
        self._cancels = cancels
        self._rest: int | None = None
        self._turns = self._ticks = 0

    def __call__(self) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS:
            self._stop("the story goes round in a circle")
            return
        if self._loop.busy and self._rest != 0:
            self._rest = None if self._rest is None else self._rest - 1
            return
        # An idle loop would wait for the real time, so somebody has to have something to do.
        first = True
        while first or not (self._loop.busy or self._loop.due() or self._over):
            first = False
            self._choose()

    def _choose(self) -> None:
        if not self._loop.busy:
            self._cast.look()
        choice = next(self._choices, None)
        if choice is None:
            self._rest = None
            if not self._loop.busy:
                self._wind_up()
            return
        what, which, rest = choice & 7, choice >> 3 & 7, choice >> 6
        self._rest = rest or None
        self._act(what, which)

    def _act(self, what: int, which: int) -> None:
        if what in (4, 5) and self._loop.timers():
            self._tick(half=what == 5)
        elif what == 6 and self._cancels and (others := self._cast.cancellable()):
            self._cancels -= 1
            self._cancel(others[which % len(others)])
        elif what == 7 and self._cast.may_shut_down():
            self._say("shuts down")
            self._cast.shut_down()
        elif gates := self._cast.gates.waiting:
            self._open(gates[which % len(gates)])

    def _wind_up(self) -> None:
        """The end: first what can go on does, then time passes, then everyone leaves."""
        if gates := self._cast.gates.waiting:
            self._open(gates[0])
        elif self._loop.timers() and self._ticks < MAX_TICKS:
            self._ticks += 1
            self._tick()
        elif others := self._cast.cancellable():
            self._cancel(others[0])
        elif not self._cast.end_calls():
            left = [task.get_name() for task in asyncio.all_tasks(self._loop)]
            self._stop(f"these never end: {sorted(left)}" if left else None)

    def _open(self, gate: ConcurrencyLimiter) -> None:
        self._say(f"opens {gate.name}")
        gate.opened.set_result(None)

    def _tick(self, *, half: bool = False) -> None:
        before, busy = self._loop.now, self._loop.busy
        self._loop.tick(half=half)
        self._cast.jumped_s += (self._loop.now - before) if busy else 0.0
        self._say(f"it is {self._loop.now - BEGINNING_S:.2f} s")

    def _cancel(self, other: tuple[str, Callable[[], None]]) -> None:
        self._say(f"cancels {other[0]}")
        other[1]()

    def _say(self, what: str) -> None:
        self.told.append(what + (f", then {self._rest} turns" if self._rest else ""))

    def _stop(self, stuck: str | None) -> None:
        self.stuck, self._over = stuck, True
        self._loop.stop()


def direct(loop: StoryLoop, director: Director) -> None:
    """Run the loop under a director until the story is over."""
    loop.director = director
    try:
        loop.run_forever()
    finally:
        loop.director = None


def clear(loop: StoryLoop) -> None:
    """Cancel what a story that went wrong has left behind."""
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        with contextlib.suppress(Exception):
            loop.run_until_complete(asyncio.sleep(0))

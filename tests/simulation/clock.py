"""An event loop with a simulated clock, and the scheduler that advances it.

Nothing here waits: a timer is due when the scenario says so, work for a thread is done at once,
and what happens next is one byte of the scenario. So a scenario is deterministic.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A scenario that takes more turns of the loop than this never ends.
MAX_TURNS = 20_000
# Cleanup that is cut short again and again is one way never to end.
MAX_TICKS = 200
BEGINNING_S = 1_000.0


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop that calls its scheduler before each of its turns."""

    def __init__(self) -> None:
        self.now = BEGINNING_S
        self.scheduler: Callable[[], None] | None = None
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
        """The timers that are set, the next first."""
        return sorted(timer for timer in self._scheduled if not timer.cancelled())

    def due(self) -> bool:
        timers = self.timers()
        return bool(timers) and timers[0].when() <= self.now

    def tick(self, *, half: bool = False) -> None:
        """Advance the clock to the next timer, or half-way."""
        left_s = self.timers()[0].when() - self.now
        if left_s > 0:
            self.now = self.now + left_s / 2 if half else self.timers()[0].when()

    def _run_once(self) -> None:
        if self.scheduler is not None:
            self.scheduler()
        super()._run_once()


@dataclass(eq=False)
class Pause:
    """A point in a script that waits until the scheduler continues it."""

    name: str
    opened: asyncio.Future[None]


class Pauses:
    """The pauses that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pauses: list[Pause] = []

    async def wait(self, name: str) -> None:
        pause = Pause(name, self._loop.create_future())
        self._pauses.append(pause)
        try:
            await pause.opened
        finally:
            self._pauses.remove(pause)

    @property
    def waiting(self) -> list[Pause]:
        return [pause for pause in self._pauses if not pause.opened.done()]


class Participants:
    """What a scheduler may do, apart from pauses and time."""

    pauses: Pauses
    jumped_s = 0.0  # how far the clock moved while the loop was busy

    def cancellable(self) -> list[tuple[str, Callable[[], None]]]:
        raise NotImplementedError

    def may_shut_down(self) -> bool:
        raise NotImplementedError

    def shut_down(self) -> None:
        raise NotImplementedError

    def end_calls(self) -> bool:
        """End the calls without readers; False when there are none."""
        raise NotImplementedError

    def look(self) -> None:
        """Check what has to hold while the loop is idle."""
        raise NotImplementedError


class Scheduler:
    """Reads the choices of a scenario, one byte each, and ends it in an orderly way after the last.

    The three low bits say what: 0 to 3 end a pause, 4 advances the clock to the next timer and 5
    half as far, 6 cancels an actor, 7 shuts down (where the scenario allows it, else ends a pause).
    The next three say which, and the two high ones how many turns the loop then takes: as many
    as it has work for, or only 1, 2 or 3.
    """

    def __init__(
        self, loop: SimulatedLoop, participants: Participants, choices: bytes, cancels: int
    ) -> None:
        self.steps: list[str] = []
        self.stuck: str | None = None
        self._over = False
        self._loop = loop
        self._participants = participants
        self._choices = iter(choices)
        self._cancels = cancels
        self._rest: int | None = None
        self._turns = self._ticks = 0

    def __call__(self) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS:
            self._stop("the scenario never ends")
            return
        if self._loop.busy and self._rest != 0:
            self._rest = None if self._rest is None else self._rest - 1
            return
        # An idle loop would wait for real time, so it has to have something to do.
        first = True
        while first or not (self._loop.busy or self._loop.due() or self._over):
            first = False
            self._choose()

    def _choose(self) -> None:
        if not self._loop.busy:
            self._participants.look()
        choice = next(self._choices, None)
        if choice is None:
            self._rest = None
            if not self._loop.busy:
                self._finish()
            return
        what, which, rest = choice & 7, choice >> 3 & 7, choice >> 6
        self._rest = rest or None
        self._act(what, which)

    def _act(self, what: int, which: int) -> None:
        if what in (4, 5) and self._loop.timers():
            self._tick(half=what == 5)
        elif what == 6 and self._cancels and (others := self._participants.cancellable()):
            self._cancels -= 1
            self._cancel(others[which % len(others)])
        elif what == 7 and self._participants.may_shut_down():
            self._note("shuts down")
            self._participants.shut_down()
        elif pauses := self._participants.pauses.waiting:
            self._end_pause(pauses[which % len(pauses)])

    def _finish(self) -> None:
        """Finish: first end all pauses, then advance the clock, then cancel the actors."""
        if pauses := self._participants.pauses.waiting:
            self._end_pause(pauses[0])
        elif self._loop.timers() and self._ticks < MAX_TICKS:
            self._ticks += 1
            self._tick()
        elif others := self._participants.cancellable():
            self._cancel(others[0])
        elif not self._participants.end_calls():
            left = [task.get_name() for task in asyncio.all_tasks(self._loop)]
            self._stop(f"tasks that never end: {sorted(left)}" if left else None)

    def _end_pause(self, pause: Pause) -> None:
        self._note(f"ends the pause: {pause.name}")
        pause.opened.set_result(None)

    def _tick(self, *, half: bool = False) -> None:
        before, busy = self._loop.now, self._loop.busy
        self._loop.tick(half=half)
        self._participants.jumped_s += (self._loop.now - before) if busy else 0.0
        self._note(f"it is {self._loop.now - BEGINNING_S:.2f} s")

    def _cancel(self, other: tuple[str, Callable[[], None]]) -> None:
        self._note(f"cancels {other[0]}")
        other[1]()

    def _note(self, what: str) -> None:
        self.steps.append(what + (f", then {self._rest} turns" if self._rest else ""))

    def _stop(self, stuck: str | None) -> None:
        self.stuck, self._over = stuck, True
        self._loop.stop()


def drive(loop: SimulatedLoop, scheduler: Scheduler) -> None:
    """Run the loop with a scheduler until the scenario is over."""
    loop.scheduler = scheduler
    try:
        loop.run_forever()
    finally:
        loop.scheduler = None


def clear(loop: SimulatedLoop) -> None:
    """Cancel the tasks that a failed scenario has left."""
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        with contextlib.suppress(Exception):
            loop.run_until_complete(asyncio.sleep(0))

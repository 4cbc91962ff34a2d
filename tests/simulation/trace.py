"""The trace of a scenario: the facts that the promises are checked against."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

from datasette_llm.calls.group import Group

from .clock import Participants, Pauses, SimulatedLoop
from .facts import Actor, Answer, ObservedContext, Request, Run, Stop, Wait, acting
from .scenarios import Scenario

Call = Any


class Trace(Participants):
    """The trace of a running scenario."""

    def __init__(
        self, scenario: Scenario, loop: SimulatedLoop, reading: sqlite3.Connection
    ) -> None:
        self.scenario = scenario
        self.loop = loop
        self.pauses = Pauses(loop)
        self.log_broken = False
        self._reading = reading
        self.runs = [
            Run(number, interaction) for number, interaction in enumerate(scenario.interactions)
        ]
        self.actors: list[Actor] = []
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.waits: list[Wait] = []
        self.model: Any = None
        self.contexts: list[ObservedContext] = []
        self.calls: list[Any] = []
        self.stops: dict[Any, Stop] = {}
        self.exits: list[Group] = []
        self.group: Group | None = None
        self.group_left: int = 0
        self.in_flight: list[Call] = []  # when the group was left
        self.group_state: dict[str, Any] = {}
        self.running: set[Any] = set()
        self.broken: list[str] = []
        self.watchers: list[Callable[[], None]] = []
        self.shutting_down = False
        self.shutdown: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.money = {"reserved": 0, "settled": 0, "released": 0}
        self._numbers = itertools.count(1)

    def moment(self) -> int:
        """A number for what happens now; later is more."""
        return next(self._numbers)

    # Actors

    def act(self, name: str, role: str, run: Run | None, work: Any) -> Actor:
        """Start an actor in a task of its own; `work` takes the actor."""
        actor = Actor(name, role, run)
        self.actors.append(actor)
        if run is not None:
            run.actors.append(actor)
        actor.task = self.loop.create_task(self._acted(actor, work), name=name)
        actor.task.add_done_callback(lambda task: self._done(actor))
        return actor

    def _done(self, actor: Actor) -> None:
        if actor.outcome == "running":  # it was cancelled before it could begin
            actor.outcome, actor.ended = "cancelled", self.moment()

    async def _acted(self, actor: Actor, work: Any) -> None:
        acting.set(actor.run)
        try:
            actor.value = await work(actor)
        except asyncio.CancelledError:
            actor.outcome = "cancelled"
        except BaseException as error:
            actor.outcome, actor.error = "raised", error
        else:
            actor.outcome = "returned"
        actor.ended, actor.ended_at = self.moment(), self.loop.time()

    def began(self, call: Any) -> None:
        """Record a call that has started."""
        self.calls.append(call)
        cancel = call.cancel

        def noted(reason: str) -> None:
            first = not call.cancelled
            cancel(reason)
            if first and call.cancelled:
                leaving = call._leaving
                self.stops[call] = Stop(reason, self.moment(), self.loop.time(), leaving)
                self._look_for_needless_stop(call, reason)

        call.cancel = noted
        run = acting.get()
        if run is not None:
            run.calls.append(call)

    def _look_for_needless_stop(self, call: Call, reason: str) -> None:
        """A call must not stop when one of several readers leaves."""
        if not reason.startswith(("The reader of the response", "The response was read half-way")):
            return
        for actor in self.actors:
            inside = actor.began and not (actor.ended or actor.dropped or actor.cancelled)
            reads = any(actor.response is each for each in call.result.responses)
            if inside and reads and actor.role in ("text", "for", "events", "usage"):
                self.broken.append(f"C4: {reason!r}, and {actor.name} still reads")

    def committed(self, response_id: str) -> list[tuple[str | None]]:
        """The outcome in the row of a request, as another process sees it."""
        sql = "select outcome from llm_calls where id = ?"
        return [tuple(row) for row in self._reading.execute(sql, [response_id])]

    # For the scheduler

    def cancellable(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            (actor.name, lambda actor=actor: self._cancel(actor))
            for actor in self.actors
            if actor.outcome == "running" and not actor.cancelled
        ]

    def _cancel(self, actor: Actor) -> None:
        actor.cancelled = True
        actor.task.cancel()

    def may_shut_down(self) -> bool:
        return self.scenario.shutdown and not self.shutting_down

    def shut_down(self) -> None:
        self.shutting_down = True
        self.act("the shutdown", "shutdown", None, lambda actor: self.shutdown())

    def end_calls(self) -> bool:
        going_on = [c for c in self.running if c.running and not c.cancelled]
        if going_on:
            self.shutting_down = True
        for call in going_on:
            call.cancel("Datasette is shutting down")
        return bool(going_on)

    # What has to hold while the loop is idle

    def look(self) -> None:
        for watcher in self.watchers:
            watcher()
        for request in self.requests:
            if not request.superseded:
                self._look_at(request)
        for run in self.runs:
            self._look_at_chain(run)
        for call in self.calls:
            timer = call._cut_short_timer
            set_still = timer is not None and not timer.cancelled() and timer.when() > self.loop.now
            if call.closed.is_set() and set_still:
                self.broken.append("nothing left: a call that is over has a timer")

    def _look_at_chain(self, run: Run) -> None:
        """A chain ends when its last reader has left."""
        readers = [actor for actor in run.actors if actor.role not in ("caller", "late")]
        gone = readers and all(actor.ended for actor in readers)
        if run.chain is None or not gone or self.group_left:
            return
        last = max(readers, key=lambda actor: actor.ended)
        if self.loop.time() >= last.ended_at + 0.5:
            going_on = [c for c in run.calls if c.running and not (c.leaving or c.cancelled)]
            if going_on and not going_on[0].draining:
                self.broken.append(f"C4: the chain goes on though {last.name} has gone")

    def _look_at(self, request: Request) -> None:
        run, response = request.run, request.response
        if request.events and response.stream and not request.call.cancelled:
            for actor in run.actors:
                if actor.role == "caller" and actor.busy_with is request.call:
                    self.broken.append(f"C2: {actor.name} waits though the first event is there")
        for actor in run.actors:
            if actor.response is not response or actor.outcome != "running" or not actor.began:
                continue
            away = actor.pausing or actor.dropped or actor.cancelled
            follows = actor.role in ("for", "events") and not away
            if follows and "".join(actor.pieces) != "".join(request.given):
                self.broken.append(
                    f"C3: {actor.name} has {actor.pieces} of {request.given} that were given"
                )
        self._look_for_readers(request)

    def _look_for_readers(self, request: Request) -> None:
        """A request without readers goes on only if none ever read it."""
        call, response = request.call, request.response
        if response._done or request.over or call.cancelled or call.closed.is_set():
            return
        if self.group_left or request.run.interaction.kind in ("chain", "structured"):
            return
        readers = [a for a in request.run.actors if a.response is response and a.began]
        if not readers or any(not actor.ended for actor in readers):
            return
        last = max(readers, key=lambda actor: actor.ended)
        patience = 0.5 if last.dropped else 0.0
        gone = last.dropped or last.outcome == "cancelled"
        if gone and last.role != "anext" and self.loop.time() >= last.ended_at + patience:
            self.broken.append(f"C4: the provider goes on though {last.name} has gone")

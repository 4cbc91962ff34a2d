"""Runs scenarios, one after the other, on one Datasette and one event loop."""

from __future__ import annotations

import math
import sqlite3
from typing import Any, get_args, get_type_hints

from datasette.app import Datasette
from datasette.plugins import pm

from datasette_llm import LLM, instance, lifecycle
from datasette_llm.access.snapshot import PLUGIN, SnapshotSource
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.limiter import LimiterRegistry
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import registered

from .clock import BEGINNING_S, Scheduler, SimulatedLoop, clear, drive
from .observed_attempts import PURPOSE, config_of, recorded
from .plugins import ExitPlugin, FilterPlugin, Plugin
from .provider import Provider
from .roles import begin, in_group
from .scenarios import Fallback, Scenario
from .trace import Trace


class _Calls(RunningCalls):
    """The running calls; adds each to the trace when it starts."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        super().__init__()

    def add(self, call: Any) -> None:
        super().add(call)
        if self._harness.trace is not None:
            self._harness.trace.began(call)


class Harness:
    """A Datasette with a call log and a provider, and without threads."""

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.loop = SimulatedLoop()
        names = ["first", *get_args(get_type_hints(Fallback)["name"])]
        self.providers = [Provider(name) for name in names]
        self._registered = registered(*self.providers)
        self._registered.__enter__()
        self.datasette = Datasette(memory=True, settings={"num_sql_threads": 0}, config={})
        self.datasette.root_enabled = False
        self.loop.run_until_complete(self._prepare())

    async def _prepare(self) -> None:
        self.calls = instance.of(self.datasette, RunningCalls, lambda: _Calls(self))
        await self.datasette.invoke_startup()
        await LLM(self.datasette).model("first")
        # Never expires, since a refresh takes a thread and a clock.
        catalogs = instance.of(self.datasette, SnapshotSource).catalogs
        catalogs._taken_at = catalogs._checked_at = math.inf
        self.writer = Recorder.of(self.datasette).writer
        self._execute, self._note_failure = self.writer._execute, self.writer._note_failure
        self.path = self.datasette.get_internal_database().path
        # What is committed, as another process sees it; durability does not matter.
        self.reading = sqlite3.connect(self.path)
        self.reading.row_factory = sqlite3.Row
        self.datasette.get_internal_database()._write_connection.execute("pragma synchronous=off")
        self.last_id = ""

    def run(self, scenario: Scenario) -> tuple[Trace, Scheduler]:
        """Run one scenario to its end."""
        self.loop.now = BEGINNING_S  # large numbers of seconds would not be exact
        self.datasette.config["plugins"] = {PLUGIN: config_of(scenario.policy)}
        trace = self.trace = Trace(scenario, self.loop, self.reading)
        for provider in self.providers:
            provider.trace = trace
        trace.running = self.calls
        trace.shutdown = self._shut_down
        self.writer._execute = self._committing(trace)
        self.writer._note_failure = self._failing(trace)
        plugins = [Plugin(trace, number, hook) for number, hook in enumerate(scenario.hooks)]
        # The last registered is called first.
        all_plugins = [*reversed(plugins), ExitPlugin(trace), FilterPlugin(trace)]
        for plugin in all_plugins:
            pm.register(plugin, name=plugin.__name__)
        try:
            scheduler = Scheduler(self.loop, trace, scenario.choices, scenario.cancels)
            with recorded(trace, instance.of(self.datasette, LimiterRegistry)):
                llms = LLM(self.datasette)
                model = self.loop.run_until_complete(llms.model("first", purpose=PURPOSE))
                self._begin(trace, model)
                drive(self.loop, scheduler)
                self._read_late(trace)
            return trace, scheduler
        finally:
            for plugin in all_plugins:
                pm.unregister(plugin)
            self.trace = None
            for provider in self.providers:
                provider.trace = None

    def _begin(self, trace: Trace, model: Any) -> None:
        if trace.scenario.group is None:
            begin(trace, model)
            return
        group = LLM(self.datasette).group("first", purpose=PURPOSE)
        trace.act("the group", "group", None, lambda actor: in_group(trace, actor, group))

    def _committing(self, trace: Trace) -> Any:
        async def execute(work: Any) -> Any:
            if trace.scenario.slow_commits:
                await trace.pauses.wait("a commit")
            return await self._execute(work)

        return execute

    def _failing(self, trace: Trace) -> Any:
        def note_failure(error: Exception) -> None:
            trace.log_broken = True
            self._note_failure(error)

        return note_failure

    async def _shut_down(self) -> None:
        await lifecycle.stop(self.datasette)

    def _read_late(self, trace: Trace) -> None:
        """Read every response once more after the end."""
        if trace.broken or self.loop.timers():
            return
        for request in trace.requests:
            if request.superseded:
                continue
            response = request.response
            work = lambda actor, response=response: response.text()  # noqa: E731
            actor = trace.act("late reader", "late", request.run, work)
            actor.response = response
        drive(self.loop, Scheduler(self.loop, trace, b"", 0))

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows that were added to the call log since the last call."""
        sql = "select * from llm_calls where id > ? order by id"
        rows = [dict(row) for row in self.reading.execute(sql, [self.last_id])]
        self.last_id = rows[-1]["id"] if rows else self.last_id
        return {row["id"]: row for row in rows}

    def close(self) -> None:
        clear(self.loop)
        self._registered.__exit__(None, None, None)
        self.reading.close()
        self.datasette.close()
        self.loop.close()


class Simulation:
    """Keeps a harness for further scenarios, unless one failed or shut down on it."""

    def __init__(self) -> None:
        self._harness: Harness | None = None

    def harness(self) -> Harness:
        if self._harness is None:
            self._harness = Harness()
        return self._harness

    def close(self) -> None:
        harness, self._harness = self._harness, None
        if harness is not None:
            harness.close()

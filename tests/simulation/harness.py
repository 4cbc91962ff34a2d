"""Where stories are played: one Datasette on one event loop, the same for story after story."""

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

from .clock import BEGINNING_S, Director, StoryLoop, clear, direct
from .observed_attempts import PURPOSE, config_of, watched
from .plugins import ExitPlugin, FilterPlugin, Plugin
from .provider import Player
from .roles import begin, in_group
from .scenarios import Spare, Story
from .trace import Scene


class _Calls(RunningCalls):
    """The calls under way, which tells the scene of each that begins."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        super().__init__()

    def add(self, call: Any) -> None:
        super().add(call)
        if self._stage.scene is not None:
            self._stage.scene.began(call)


class Stage:
    """A Datasette that writes a record, with a provider and without threads."""

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.loop = StoryLoop()
        names = ["player", *get_args(get_type_hints(Spare)["name"])]
        self.players = [Player(name) for name in names]
        self._registered = registered(*self.players)
        self._registered.__enter__()
        self.datasette = Datasette(memory=True, settings={"num_sql_threads": 0}, config={})
        self.datasette.root_enabled = False
        self.loop.run_until_complete(self._prepare())

    async def _prepare(self) -> None:
        self.calls = instance.of(self.datasette, RunningCalls, lambda: _Calls(self))
        await self.datasette.invoke_startup()
        await LLM(self.datasette).model("player")
        # It is never too old: looking again takes a thread and a clock.
        catalogs = instance.of(self.datasette, SnapshotSource).catalogs
        catalogs._taken_at = catalogs._checked_at = math.inf
        self.writer = Recorder.of(self.datasette).writer
        self._execute, self._note_failure = self.writer._execute, self.writer._note_failure
        self.path = self.datasette.get_internal_database().path
        # What is committed, as another process sees it; it need not outlive the machine.
        self.reading = sqlite3.connect(self.path)
        self.reading.row_factory = sqlite3.Row
        self.datasette.get_internal_database()._write_connection.execute("pragma synchronous=off")
        self.last_id = ""

    def play(self, story: Story) -> tuple[Scene, Director]:
        """Run one story to its end."""
        self.loop.now = BEGINNING_S  # large numbers of seconds would not be exact
        self.datasette.config["plugins"] = {PLUGIN: config_of(story.terms)}
        scene = self.scene = Scene(story, self.loop, self.reading)
        for player in self.players:
            player.scene = scene
        scene.running = self.calls
        scene.shutdown = self._shut_down
        self.writer._execute = self._committing(scene)
        self.writer._note_failure = self._failing(scene)
        plugins = [Plugin(scene, number, hook) for number, hook in enumerate(story.hooks)]
        # The last one registered is first.
        everyone = [*reversed(plugins), ExitPlugin(scene), FilterPlugin(scene)]
        for plugin in everyone:
            pm.register(plugin, name=plugin.__name__)
        try:
            director = Director(self.loop, scene, story.choices, story.cancels)
            with watched(scene, instance.of(self.datasette, LimiterRegistry)):
                llms = LLM(self.datasette)
                model = self.loop.run_until_complete(llms.model("player", purpose=PURPOSE))
                self._begin(scene, model)
                direct(self.loop, director)
                self._read_late(scene)
            return scene, director
        finally:
            for plugin in everyone:
                pm.unregister(plugin)
            self.scene = None
            for player in self.players:
                player.scene = None

    def _begin(self, scene: Scene, model: Any) -> None:
        if scene.story.group is None:
            begin(scene, model)
            return
        group = LLM(self.datasette).group("player", purpose=PURPOSE)
        scene.act("the group", "group", None, lambda actor: in_group(scene, actor, group))

    def _committing(self, scene: Scene) -> Any:
        async def execute(work: Any) -> Any:
            if scene.story.slow_commits:
                await scene.gates.wait("a commit")
            return await self._execute(work)

        return execute

    def _failing(self, scene: Scene) -> Any:
        def note_failure(error: Exception) -> None:
            scene.log_broken = True
            self._note_failure(error)

        return note_failure

    async def _shut_down(self) -> None:
        await lifecycle.stop(self.datasette)

    def _read_late(self, scene: Scene) -> None:
        """Read everything once more, now that it is over."""
        if scene.broken or self.loop.timers():
            return
        for request in scene.requests:
            if request.superseded:
                continue
            response = request.response
            work = lambda actor, response=response: response.text()  # noqa: E731
            actor = scene.act("late reader", "late", request.run, work)
            actor.response = response
        direct(self.loop, Director(self.loop, scene, b"", 0))

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the record that came since this was last asked."""
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


class Theatre:
    """Has a stage at hand; one on which a story went wrong, or shut down, is not used again."""

    def __init__(self) -> None:
        self._stage: Stage | None = None

    def stage(self) -> Stage:
        if self._stage is None:
            self._stage = Stage()
        return self._stage

    def close(self) -> None:
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()

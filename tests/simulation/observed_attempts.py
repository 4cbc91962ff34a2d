"""What is seen of attempts: each answer with all that is tried for it, and each wait at a gate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from datasette_llm import LLM
from datasette_llm.calls import call as calls
from datasette_llm.calls import retry as answering
from datasette_llm.calls.limiter import ConcurrencyLimiter, LimiterRegistry
from datasette_llm.calls.timeout import Deadline

from .facts import Answer, Wait, acting, in_question
from .scenarios import Terms
from .trace import Scene

PURPOSE = "story"


def config_of(terms: Terms) -> dict[str, Any]:
    """The configuration that says so."""
    settings = {
        "retries": terms.retries,
        "timeout": terms.timeout_s,
        "idle_timeout": terms.idle_timeout_s,
        "default_model": {"model": "player", "max_concurrency": terms.limit},
        "purposes": {PURPOSE: {"max_concurrency": terms.purpose_limit}},
        "fallbacks": [
            {"model": spare.name, "retries": spare.retries, "max_concurrency": spare.limit}
            for spare in terms.spares
        ],
    }
    config: dict[str, Any] = _without_nothing(settings)
    return config


def _without_nothing(settings: Any) -> Any:
    """Without what is absent, as a limit of 0 and a timeout of 0 are; retries of 0 are not."""
    if isinstance(settings, list):
        return [_without_nothing(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: _without_nothing(value)
        for name, value in settings.items()
        if value is not None and (value or name in ("retries", "purposes", PURPOSE))
    }


@contextlib.contextmanager
def watched(scene: Scene, gates: LimiterRegistry) -> Iterator[None]:
    """Write down answers and waits while a story is played; pauses are without chance."""
    answer, enter, standing_in = calls.answer, ConcurrencyLimiter.acquire, LLM._resolve_fallback

    async def noted_answer(call: Any, response: Any) -> None:
        noted = Answer(call, response, scene.moment(), scene.loop.time())
        scene.answers.append(noted)
        try:
            await answer(call, response)
        except BaseException as error:
            noted.error = error
            raise
        finally:
            noted.ended, noted.ended_at = scene.moment(), scene.loop.time()

    async def noted_enter(gate: ConcurrencyLimiter, limit: int) -> None:
        call: Any = asyncio.current_task().supervised  # type: ignore[union-attr]
        noted = Wait(gate, call, call.row_id, scene.loop.time())
        _look_for_itself(scene, noted)
        scene.waits.append(noted)
        try:
            await enter(gate, limit)
        except BaseException as error:
            noted.stopped = error
            raise
        else:
            noted.entered = scene.moment()
        finally:
            noted.ended_at = scene.loop.time()

    async def noted_standing_in(llms: LLM, *who: Any) -> Any:
        in_question.set(who[-1].model_id)
        return await standing_in(llms, *who)

    scene.watchers.append(lambda: _look_at_gates(scene, gates))
    scene.watchers.append(lambda: _look_at_timers(scene))
    with (
        mock.patch.object(calls, "answer", noted_answer),
        mock.patch.object(ConcurrencyLimiter, "acquire", noted_enter),
        mock.patch.object(LLM, "_resolve_fallback", noted_standing_in),
        mock.patch.object(answering, "WAIT_JITTER_S", 0),
    ):
        yield


def _look_at_gates(scene: Scene, gates: LimiterRegistry) -> None:
    for name, gate in gates._by_loop.get(scene.loop, {}).items():
        first = next(iter(gate._queue.values()), None)
        if first is not None and gate.running < first:
            scene.broken.append(f"limits: {name} has room, and nobody is let in")
        if gate.running > _with_reason(scene, gate):
            scene.broken.append(f"limits: {name} is held by a request that has ended")
        if gate.running < 0:
            scene.broken.append(f"limits: {name} has {gate.running} inside")


def _with_reason(scene: Scene, gate: ConcurrencyLimiter) -> int:
    """How many may be inside: their attempts have not ended."""
    failed = {request.row_id for request in scene.requests if request.ended is not None}
    over = {answer.call for answer in scene.answers if answer.ended}
    over -= {answer.call for answer in scene.answers if not answer.ended}
    entered = [wait for wait in scene.waits if wait.gate is gate and wait.entered]
    return sum(wait.row_id not in failed and wait.call not in over for wait in entered)


def _look_for_itself(scene: Scene, wait: Wait) -> None:
    """A prompt from inside a provider that waited for that one's end would wait for ever."""
    run = acting.get()
    while run is not None and run.outer is not None:
        outer = run.outer
        if any(w.gate is wait.gate and w.row_id == outer.row_id for w in scene.waits):
            scene.broken.append("limits: a nested prompt waits for the one it was made in")
        run = outer.run


def _look_at_timers(scene: Scene) -> None:
    goes_on = any(request.cancels and not request.over for request in scene.requests)
    by_plugin = any(hook.timeout_s for hook in scene.story.hooks)  # theirs strike only once
    if goes_on and not by_plugin and not scene.loop.timers():
        scene.broken.append("timeouts: a provider that swallowed its cancellation may go on")
    for timer in scene.loop.timers():
        deadline = getattr(timer._callback, "__self__", None)  # type: ignore[attr-defined]
        if isinstance(deadline, Deadline):
            task: Any = deadline._task
            if task is None or task.done() or task.lifetime.leaving:
                scene.broken.append("timeouts: the deadline of a request that is over is set")

"""Records attempts: each answer with all its requests, and each wait at a limiter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from datasette_llm import LLM
from datasette_llm.calls import call as calls
from datasette_llm.calls import retry
from datasette_llm.calls.limiter import ConcurrencyLimiter, LimiterRegistry
from datasette_llm.calls.timeout import Deadline

from .facts import Answer, Wait, acting, checked_fallback
from .scenarios import Policy
from .trace import Trace

PURPOSE = "scenario"


def config_of(policy: Policy) -> dict[str, Any]:
    """The configuration of a policy."""
    settings = {
        "retries": policy.retries,
        "timeout": policy.timeout_s,
        "idle_timeout": policy.idle_timeout_s,
        "default_model": {"model": "first", "max_concurrency": policy.limit},
        "purposes": {PURPOSE: {"max_concurrency": policy.purpose_limit}},
        "fallbacks": [
            {"model": fallback.name, "retries": fallback.retries, "max_concurrency": fallback.limit}
            for fallback in policy.fallbacks
        ],
    }
    config: dict[str, Any] = _without_defaults(settings)
    return config


def _without_defaults(settings: Any) -> Any:
    """Without limits and timeouts of 0, which mean none; retries of 0 stay."""
    if isinstance(settings, list):
        return [_without_defaults(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: _without_defaults(value)
        for name, value in settings.items()
        if value is not None and (value or name in ("retries", "purposes", PURPOSE))
    }


@contextlib.contextmanager
def recorded(trace: Trace, limiters: LimiterRegistry) -> Iterator[None]:
    """Record answers and waits while a scenario runs; retry waits have no jitter."""
    answer, enter, standing_in = calls.answer, ConcurrencyLimiter.acquire, LLM._resolve_fallback

    async def noted_answer(call: Any, response: Any) -> None:
        noted = Answer(call, response, trace.moment(), trace.loop.time())
        trace.answers.append(noted)
        try:
            await answer(call, response)
        except BaseException as error:
            noted.error = error
            raise
        finally:
            noted.ended, noted.ended_at = trace.moment(), trace.loop.time()

    async def noted_enter(limiter: ConcurrencyLimiter, limit: int, permit: Any) -> None:
        call: Any = asyncio.current_task().supervised  # type: ignore[union-attr]
        noted = Wait(limiter, permit, call, call.row_id, trace.loop.time())
        _look_for_itself(trace, noted)
        trace.waits.append(noted)
        try:
            await enter(limiter, limit, permit)
        except BaseException as error:
            noted.stopped = error
            raise
        else:
            noted.entered = trace.moment()
            _look_at_order(trace, noted)
        finally:
            noted.ended_at = trace.loop.time()

    async def noted_standing_in(llms: LLM, *who: Any) -> Any:
        checked_fallback.set(who[-1].model_id)
        return await standing_in(llms, *who)

    trace.watchers.append(lambda: _look_at_limiters(trace, limiters))
    trace.watchers.append(lambda: _look_at_timers(trace))
    with (
        mock.patch.object(calls, "answer", noted_answer),
        mock.patch.object(ConcurrencyLimiter, "acquire", noted_enter),
        mock.patch.object(LLM, "_resolve_fallback", noted_standing_in),
        mock.patch.object(retry, "WAIT_JITTER_S", 0),
    ):
        yield


def _look_at_limiters(trace: Trace, limiters: LimiterRegistry) -> None:
    for name, limiter in limiters._by_loop.get(trace.loop, {}).items():
        first = next((each.limit for each in limiter._queue.values()), None)
        if first is not None and limiter.running < first:
            trace.broken.append(f"limits: {name} has room, and a waiting request is not admitted")
        if limiter.running > _with_reason(trace, limiter):
            trace.broken.append(f"limits: {name} is held by a request that has ended")
        if limiter.running < 0:
            trace.broken.append(f"limits: {name} has {limiter.running} inside")


def _with_reason(trace: Trace, limiter: ConcurrencyLimiter) -> int:
    """How many may be inside: those whose attempts have not ended."""
    failed = {request.row_id for request in trace.requests if request.ended is not None}
    over = {answer.call for answer in trace.answers if answer.ended}
    over -= {answer.call for answer in trace.answers if not answer.ended}
    entered = [wait for wait in trace.waits if wait.limiter is limiter and wait.entered]
    return sum(wait.row_id not in failed and wait.call not in over for wait in entered)


def _look_at_order(trace: Trace, wait: Wait) -> None:
    """Those that are still in the queue when another one enters came later."""
    queue = wait.limiter.owners()
    earlier = trace.waits[: trace.waits.index(wait)]
    if any(each.limiter is wait.limiter and each.permit in queue for each in earlier):
        trace.broken.append("limits: who came first did not go in first")


def _look_for_itself(trace: Trace, wait: Wait) -> None:
    """A nested prompt that waits for the outer one would wait for ever."""
    run = acting.get()
    while run is not None and run.outer is not None:
        outer = run.outer
        if any(w.limiter is wait.limiter and w.row_id == outer.row_id for w in trace.waits):
            trace.broken.append("limits: a nested prompt waits for the one it was made in")
        run = outer.run


def _look_at_timers(trace: Trace) -> None:
    goes_on = any(request.cancels and not request.over for request in trace.requests)
    by_plugin = any(hook.timeout_s for hook in trace.scenario.hooks)  # theirs strike only once
    if goes_on and not by_plugin and not trace.loop.timers():
        trace.broken.append("timeouts: a provider that swallowed its cancellation may go on")
    for timer in trace.loop.timers():
        deadline = getattr(timer._callback, "__self__", None)  # type: ignore[attr-defined]
        if isinstance(deadline, Deadline):
            task: Any = deadline._task
            if task is None or task.done() or task.supervised.leaving:
                trace.broken.append("timeouts: the deadline of a request that is over is set")

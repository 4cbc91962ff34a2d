"""The promises about retries, fallbacks, timeouts and limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from datasette_llm import ResponseTimeoutError
from datasette_llm.calls import retry, task

from .attempts import EXACT_S, Attempts, attempts_of
from .facts import Request, Wait
from .roles import KEY
from .trace import Trace

Problems = Iterator[str]
Rows = dict[str, dict[str, Any]]


def check_again(attempts: Attempts) -> Problems:
    """No request follows an event, a tool call, or a stop."""
    stop = attempts.seen.trace.stops.get(attempts.answer.call)
    for request in attempts.requests:
        if stop is not None and request.began > stop.moment:
            yield f"{request.model} was requested although the call was stopped"
        if attempts.end is not None and request.times[0] > attempts.end + EXACT_S:
            yield f"{request.model} was requested although the time was over"
    for request in attempts.requests[:-1]:
        if attempts.is_final(request):
            yield f"a request followed {request.ended!r} and {request.events} events"


def check_retries(attempts: Attempts) -> Problems:
    """A model is retried after a transient failure, as often as configured, after a wait."""
    for model in {request.model for request in attempts.requests}:
        requests = attempts.of(model)
        if len(requests) > 1 + attempts.retries(model):
            yield f"{model} was requested {len(requests)} times"
        for number, (one, other) in enumerate(itertools.pairwise(requests)):
            if not attempts.may_pass(one):
                yield f"{model} was retried after {one.ended!r}"
            usual = min(retry.WAIT_INITIAL_S * 2**number, retry.WAIT_MAX_S)
            wanted = usual if attempts.idle(one) else one.wanted_s or usual
            if other.times[0] - one.ended_at < wanted - EXACT_S:
                yield f"{model} was retried after {other.times[0] - one.ended_at} s"


def check_fallbacks(attempts: Attempts) -> Problems:
    """The fallbacks are tried in order, each once, with their own keys."""
    order = [attempts.requested_model, *(fallback.name for fallback in attempts.policy.fallbacks)]
    tried = [
        model for model, _ in itertools.groupby(request.model for request in attempts.requests)
    ]
    if tried != [model for model in order if model in tried]:
        yield f"tried {tried} of {order}"
    if tried and tried[0] != attempts.requested_model:
        yield f"{tried[0]} was tried first"
    if refused := {"refused", "raises"}.intersection(tried):
        yield f"tried {refused}"
    for request in attempts.requests:
        of_caller = request.model == "first" and attempts.seen.run.interaction.kind in (
            "prompt",
            "reply",
            "turns",
        )
        if request.key not in ((KEY, None) if of_caller else (None,)):
            yield f"{request.model} was requested with the key {request.key!r}"


def check_answered_by(attempts: Attempts) -> Problems:
    """The response names the answering model; after a total failure the requested one."""
    answered_by = attempts.answer.response.model.model_id
    last = attempts.requests[-1] if attempts.requests else None
    if not attempts.answer.ended or last is None:
        return
    called = len(attempts.answer.response._tool_calls)
    if last.complete and called != last.tool_calls:
        yield f"{last.tool_calls} tools were called, and the response has {called}"
    if last.events or last.complete:
        if answered_by != last.model:
            yield f"{last.model} answered, and the response says {answered_by}"
    elif not (
        attempts.disturbed
        or attempts.out_of_time
        or attempts.is_final(last)
        or answered_by == attempts.requested_model
    ):
        yield f"no model answered, and the response says {answered_by}"


def check_error(attempts: Attempts) -> Problems:
    """What ends the attempts is the failure of the right one, and nothing was left untried."""
    answer = attempts.answer
    if attempts.disturbed or not answer.ended or attempts.out_of_time or not attempts.requests:
        return
    last = attempts.requests[-1]
    if last.complete:
        if answer.error is not None:
            yield f"complete, and ended with {answer.error!r}"
        return
    if not attempts.is_final(last):
        yield from _left_untried(attempts, last)
        last = attempts.of(attempts.requested_model)[-1]
    error = answer.error
    if attempts.idle(last):
        if not (isinstance(error, ResponseTimeoutError) and error.setting == "idle_timeout"):
            yield f"was without an event for too long, and ended with {error!r}"
    elif error is not last.ended:
        yield f"{last.ended!r} of {last.model}, but it ended with {error!r}"


def _left_untried(attempts: Attempts, last: Request) -> Problems:
    if attempts.end is not None and attempts.answer.ended_at >= attempts.end - EXACT_S:
        return
    made, wanted = len(attempts.of(last.model)), 0.0 if attempts.idle(last) else last.wanted_s
    in_time = attempts.end is None or last.ended_at + wanted < attempts.end - EXACT_S
    if attempts.may_pass(last) and made < 1 + attempts.retries(last.model) and in_time:
        yield f"{last.model} was not retried after {last.ended!r}"
    if missing := attempts.next_fallbacks(last.model):
        yield f"{missing} were not tried after {last.ended!r} of {last.model}"


def check_timeouts(attempts: Attempts) -> Problems:
    """A timeout strikes when it is due: not before, and no later than a provider's cleanup."""
    answer, trace = attempts.answer, attempts.seen.trace
    ended_at = answer.ended_at if answer.ended else trace.loop.time()
    late = trace.jumped_s + _cleanup_s(attempts) + EXACT_S
    if attempts.end is not None and not answer.response._done and ended_at > attempts.end + late:
        yield f"took {ended_at - answer.began_at} s, and may take {attempts.policy.timeout_s}"
    if attempts.out_of_time and (attempts.end is None or ended_at < attempts.end - EXACT_S):
        yield f"the timeout struck after {ended_at - answer.began_at} s"
    limit = trace.scenario.policy.idle_timeout_s
    for request in attempts.requests:
        times = [*request.times, *([request.ended_at] if request.over else [])]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        if limit and max(gaps, default=0.0) > limit + late:
            yield f"was {max(gaps)} s without an event"
        if request.cancels and sum(each > request.cancelled for each in request.moments) > 1:
            yield f"{request.model} went on although it was cancelled"
        if not attempts.disturbed and request.cancels:
            over = attempts.end is not None and request.cancels[0] >= attempts.end - EXACT_S
            if not (over or attempts.idle(request)) and not request.complete:
                yield f"was cancelled after {request.quiet_s[0]} s without an event"


def _cleanup_s(attempts: Attempts) -> float:
    """How long providers may take after their time."""
    swallowed = max(
        (request.script.steps.count("stubborn") for request in attempts.requests), default=0
    )
    tidies = any(request.script.cleanup == "waits" for request in attempts.requests)
    nested = any("nested" in request.script.steps for request in attempts.requests)
    return task.CLEANUP_S * (swallowed + tidies + nested)


def check_limits(trace: Trace) -> Problems:
    """Never more at once than a limit says, and all have left."""
    for limiter in {wait.limiter for wait in trace.waits}:
        if not limiter.idle:
            yield f"{limiter!r} in the end"
    policy = trace.scenario.policy
    limits = {fallback.name: fallback.limit for fallback in policy.fallbacks} | {
        "first": policy.limit
    }
    for model, limit in limits.items():
        of_model = [
            q for q in _outer(trace) if q.model == model and q.call.model.model_id == "first"
        ]
        yield from _too_many(of_model, limit, model)
    yield from _too_many(_outer(trace), policy.purpose_limit, "the purpose")


def _outer(trace: Trace) -> list[Request]:
    return [request for request in trace.requests if request.run.outer is None]


def _too_many(requests: list[Request], limit: int, name: str) -> Problems:
    for request in requests if limit else ():
        inside = [q for q in requests if q.began <= request.began < (q.ended_moment or 10**9)]
        if len(inside) > limit:
            yield f"{len(inside)} at once for {name}, of {limit}"


def check_rows_of_attempts(attempts: Attempts, rows: Rows) -> Problems:
    """The attempts of a response have a row each, numbered from 1, in the order of their ids."""
    response_id = attempts.answer.response.id
    if attempts.seen.trace.log_broken:
        return
    mine = [
        row
        for key, row in rows.items()
        # A repair is the first attempt of a response of its own.
        if key == response_id or (row["prompt_id"] == response_id and row["attempt"] > 1)
    ]
    numbers = [row["attempt"] for row in mine]
    if numbers != list(range(1, len(mine) + 1)):
        yield f"the attempts are numbered {numbers}"
    if mine and mine[0]["id"] != response_id:
        yield "the first attempt's row is not the response's"
    sent = [request.row_id for request in attempts.requests]
    if len(set(sent)) != len(sent) or not set(sent) <= {row["id"] for row in mine}:
        yield f"the rows {sent} of {[row['id'] for row in mine]}"
    for row, request in ((r, q) for r in mine for q in attempts.requests if q.row_id == r["id"]):
        if row["model_id"] != request.model:
            yield f"the row says {row['model_id']}, and {request.model} was requested"
    never = [row["outcome"] for row in mine if row["id"] not in sent]
    if len(never) > 1:
        yield f"{len(never)} attempts did not reach a provider: {never}"
    outcomes = [row["outcome"] for row in mine]
    if "ok" in outcomes[:-1]:
        yield f"the outcomes are {outcomes}"
    done = attempts.answer.ended and not attempts.disturbed and mine
    unfit = bool(mine) and mine[-1]["error_type"] == "StructuredOutputError"
    if done and not unfit and (attempts.answer.error is None) != (outcomes[-1] == "ok"):
        yield f"the call log says {outcomes}, it ended with {attempts.answer.error!r}"
    yield from _waits(attempts, mine)


def _waits(attempts: Attempts, mine: list[dict[str, Any]]) -> Problems:
    for row in mine:
        waits = [wait for wait in attempts.seen.trace.waits if wait.row_id == row["id"]]
        waited_ms = round(sum(_lasted(wait) for wait in waits) * 1000, 3)
        if waits and (row["waited_ms"] is None or abs(row["waited_ms"] - waited_ms) > 0.01):
            yield f"waited {waited_ms} ms, and the row says {row['waited_ms']}"
        stopped = [wait.stopped for wait in waits if wait.stopped is not None]
        if stopped and any(request.row_id == row["id"] for request in attempts.requests):
            yield f"requested although {stopped} ended the wait"
        if stopped and row["outcome"] not in ("cancelled", "error"):
            yield f"the wait was ended by {stopped}, and the call log says {row['outcome']}"
        timeout = row["outcome"] == "error" and row["error_type"] != "ResponseTimeoutError"
        if stopped and timeout:
            yield f"the wait was ended by {stopped}, and the call log says {row['error_type']}"
    known = {row["id"] for row in mine}
    if attempts.is_first and not attempts.seen.is_chain:
        waits = [wait for wait in attempts.seen.trace.waits if wait.call is attempts.answer.call]
        if not {wait.row_id for wait in waits} <= known:
            yield "a wait has no row"


def _lasted(wait: Wait) -> float:
    return (wait.ended_at or wait.began_at) - wait.began_at


ATTEMPTS_CHECKS: list[Callable[[Attempts], Problems]] = [
    check_again,
    check_retries,
    check_fallbacks,
    check_answered_by,
    check_error,
    check_timeouts,
]


def problems_of_attempts(trace: Trace, calls: list[Any], rows: Rows) -> Problems:
    """What is wrong with the attempts of a scenario, by the name of the check."""
    for attempts in (attempts for seen in calls for attempts in attempts_of(seen)):
        for check in ATTEMPTS_CHECKS:
            yield from (f"{check.__name__}: {problem}" for problem in check(attempts))
        problems = check_rows_of_attempts(attempts, rows)
        yield from (f"check_rows_of_attempts: {problem}" for problem in problems)
    yield from (f"check_limits: {problem}" for problem in check_limits(trace))

"""The promises about groups, chains and the call log, and that a scenario leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from datasette_llm import GroupClosedError, GroupError, ResponseCancelledError

from .attempts import Attempts, attempts_of
from .checks import CALL_CHECKS, Problems
from .checks_of_attempts import problems_of_attempts
from .clock import Scheduler
from .facts import Actor, Request
from .harness import Harness
from .observed_call import Seen, calls_of
from .plugins import HookError
from .provider import text_of
from .roles import BodyError
from .trace import Trace

Rows = dict[str, dict[str, Any]]


def check_chain(seen: Seen) -> Problems:
    """Who reads a chain to its end has the text of every step; a failure is everyone's."""
    if not seen.is_chain:
        return
    error, text = seen.call.error, "".join(text_of(request) for request in seen.requests)
    if error is None and any(not request.complete for request in seen.last_requests):
        yield "a chain with an incomplete step succeeded"
    for actor in seen.run.actors:
        whole = actor.outcome == "returned" and actor.value is not None
        reads = actor.role in ("text", "for", "events", "responses")
        if reads and whole and (error is not None or actor.value != text):
            yield f"{actor.name} read {actor.value!r} of {text!r}, which ended with {error!r}"
        readers = ("text", "for", "events", "responses", "unread")
        raised = actor.role in readers and actor.outcome == "raised"
        # llm's limit strikes at the last step even where it calls no tools. A group that was left
        # meanwhile has let that step be the end, and the contexts had a success.
        limited = error is None and bool(seen.run.interaction.limit) and seen.trace.group_left > 0
        if raised and str(actor.error) != str(error) and not limited:
            yield f"{actor.name} got {actor.error!r}, not {error!r}"


def check_cancelled(trace: Trace) -> Problems:
    """Cancelled actors get a CancelledError, and no others."""
    for actor in trace.actors:
        if actor.outcome == "cancelled" and not actor.cancelled:
            yield f"{actor.name} got a CancelledError without being cancelled"
        if actor.cancelled and actor.outcome != "cancelled":
            yield f"{actor.name} was cancelled, and {actor.outcome}: {actor.error!r}"
        if actor.outcome == "running":
            yield f"{actor.name} never ended"


def check_g1(trace: Trace) -> Problems:
    """Leaving a group waits for every response; after it, nothing goes on."""
    if trace.group_state.get("open calls"):
        yield f"{len(trace.group_state['open calls'])} calls went on after the group"


def check_g2(trace: Trace) -> Problems:
    """Only an unseen failure is raised on leaving."""
    body = next((actor for actor in trace.actors if actor.role == "group"), None)
    if trace.group is None or body is None:
        return
    raised = body.error.responses if isinstance(body.error, GroupError) else ()
    orderly = body.outcome == "returned" or isinstance(body.error, (GroupError, HookError))
    for run in trace.runs:
        for request in run.requests:
            response = request.response
            if run.outer is not None:  # the outer provider has seen it, or left
                if response in raised and not run.outer.cancels:
                    yield f"{response.failure!r} of a prompt in a provider was raised again"
                continue
            saw = [a for a in run.actors if a.role != "late" and _saw(a, response)]
            # A reader that left earlier, while others read on, has not seen it.
            reached = [a for a in saw if a.error is response.failure]
            if response in raised and any(a.ended < trace.group_left for a in reached):
                yield f"{response.failure!r} was raised again, {reached[0].name} had seen it"
            if orderly and response.failure and response not in raised and not saw:
                yield f"{response.failure!r} was lost"


def _saw(actor: Actor, response: Any) -> bool:
    mine = actor.response in (None, response)
    cause = actor.error.__cause__ if actor.error else None  # structured() has one of its own
    got_it = response.failure in (actor.error, cause)
    # Leaving anext() is not noticed: there is no generator to close.
    gone = actor.cancelled or (actor.dropped and actor.role != "anext")
    return mine and (gone or got_it)


def check_g3(trace: Trace) -> Problems:
    """Leaving by an exception stops what is in flight, and keeps that exception."""
    body = next((actor for actor in trace.actors if actor.role == "group"), None)
    block = trace.scenario.group
    if body is None or block is None or body.cancelled:
        return
    if block.body == "raises":
        if not isinstance(body.error, BodyError):
            yield f"the body raised, and out came {body.error!r}"
        if going_on := [call for call in trace.in_flight if call not in trace.stops]:
            yield f"{len(going_on)} calls were not stopped"


def check_g4(trace: Trace) -> Problems:
    """llm_group_exit runs once, whichever way a group is left, and after all of its calls."""
    if trace.group is not None and trace.group_left and trace.exits != [trace.group]:
        yield f"llm_group_exit ran {len(trace.exits)} times"
    if any(call.result.group is None for call in trace.calls) and trace.group is not None:
        yield "a call of the group does not know it"


def check_g5(trace: Trace) -> Problems:
    """After the block the model is closed."""
    if trace.group_left and "closed" not in trace.group_state:
        yield "a prompt was taken after the group"
    for actor in trace.actors:
        if isinstance(actor.error, GroupClosedError) and not trace.group_left:
            yield f"{actor.name} found an open group closed"


def check_l1(trace: Trace, rows: Rows) -> Problems:
    """A request's row is committed before it leaves."""
    for request in trace.requests:
        if request.rows != [(None,)] and not request.log_broken:
            yield f"the row was {request.rows} when the provider was called"


def check_l2(trace: Trace, rows: Rows) -> Problems:
    """Every row has its end, which agrees with what was seen; there is one for each request."""
    for seen in calls_of(trace):
        for attempts in attempts_of(seen):
            for request in attempts.requests:
                yield from _row_right(attempts, request, rows.get(request.row_id))
    sent = {request.row_id for request in trace.requests}
    for call_id, row in rows.items():
        if row["outcome"] is None:
            yield f"a row without an end: {row['id']}"
        unsent = call_id not in sent and row["error_type"] != "ResponseTimeoutError"
        if unsent and row["outcome"] not in ("cancelled", "blocked"):
            yield f"the call log says {row['outcome']} of what was never sent"
    yield from _blocked(trace, rows)


def _row_right(attempts: Attempts, request: Request, row: dict[str, Any] | None) -> Problems:
    expected, failure = _expected(attempts, request), request.ended
    if row is None:
        yield f"a request to the provider has no row (it was {expected})"
    elif row["outcome"] not in expected:
        yield f"the call log says {row['outcome']}, it was {expected}"
    elif row["outcome"] == "error":
        known = {type(failure).__name__} if isinstance(failure, Exception) else set()
        known |= {"StructuredOutputError"} if _unfit(attempts, request) else set()
        known |= {"ResponseTimeoutError"} if _was_stopped(request) else set()
        if row["error_type"] not in known:
            yield f"the call log says {row['error_type']}, it was {failure!r}"


def _expected(attempts: Attempts, request: Request) -> set[str]:
    seen = attempts.seen
    stop = seen.trace.stops.get(seen.call)
    stopped = seen.stopped and stop is not None and stop.moment < request.ended_moment
    if request.superseded:
        return {"error"}
    if request.ended is None:
        answered = "error" if _unfit(attempts, request) else "ok"
        # It may have been stopped at its last event, or in the callbacks.
        return {answered, "cancelled"} if attempts.disturbed else {answered}
    if isinstance(request.ended, Exception):
        # What the provider raises when a plugin's timeout stops it is its own error.
        return {"cancelled"} if stopped else {"error"}
    # A timeout may have expired before it was stopped, or after.
    struck = {"error"} if _was_stopped(request) and attempts.has_limits else set()
    return {"cancelled", *struck} if attempts.disturbed or not struck else {"error"}


def _unfit(attempts: Attempts, request: Request) -> bool:
    """True for the repair of an answer to `structured()` that has no object either."""
    run = request.run
    is_repair = run.interaction.kind == "structured" and attempts.seen.call is not run.calls[0]
    return is_repair and request.ended is None and not request.given


def _was_stopped(request: Request) -> bool:
    """True if it was cancelled, or its generator closed."""
    return bool(request.cancels) or isinstance(request.ended, GeneratorExit)


def _blocked(trace: Trace, rows: Rows) -> Problems:
    found = sum(row["outcome"] == "blocked" for row in rows.values())
    expected = sum(
        any(isinstance(observed.blocked, HookError) for observed in seen.contexts)
        and not seen.stopped
        for seen in calls_of(trace)
    )
    if found < expected:
        yield f"{found} rows of blocked calls, of {expected}"


def check_money(trace: Trace, rows: Rows) -> Problems:
    """What was reserved is settled or released, and settled only where a context saw a success."""
    money = trace.money
    if money["reserved"] != money["settled"] + money["released"]:
        yield f"{money}"
    accountants = [
        observed for observed in trace.contexts if observed.hook.accountant and observed.entered
    ]
    if money["settled"] > sum(observed.saw is None for observed in accountants):
        yield f"more was settled than succeeded: {money}"


def check_nothing_left(trace: Trace, harness: Harness) -> Problems:
    """No task, call or timer of a scenario is left."""
    tasks = [task.get_name() for task in asyncio.all_tasks(harness.loop)]
    if tasks:
        yield f"tasks: {tasks}"
    if harness.calls:
        yield f"{len(harness.calls)} calls"
    if harness.loop.timers():
        yield f"timers: {harness.loop.timers()}"
    if trace.pauses.waiting:
        yield "a pause still waits"


SCENARIO_CHECKS: list[Callable[[Trace], Problems]] = [
    check_cancelled,
    check_g1,
    check_g2,
    check_g3,
    check_g4,
    check_g5,
]
LOG_CHECKS: list[Callable[[Trace, Rows], Problems]] = [check_l1, check_l2, check_money]


def problems_of(harness: Harness, trace: Trace, scheduler: Scheduler) -> Iterator[str]:
    """Each promise that the scenario broke, by the name of its check."""
    if scheduler.stuck:
        yield scheduler.stuck
        return
    yield from trace.broken
    for seen in calls_of(trace):
        for check in [*CALL_CHECKS, check_chain]:
            yield from (f"{check.__name__}: {problem}" for problem in check(seen))
    for check in SCENARIO_CHECKS:
        yield from (f"{check.__name__}: {problem}" for problem in check(trace))
    rows = harness.rows()
    for log_check in LOG_CHECKS:
        yield from (f"{log_check.__name__}: {problem}" for problem in log_check(trace, rows))
    yield from problems_of_attempts(trace, list(calls_of(trace)), rows)
    yield from (f"check_nothing_left: {problem}" for problem in check_nothing_left(trace, harness))


__all__ = ["ResponseCancelledError", "problems_of"]

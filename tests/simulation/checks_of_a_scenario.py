"""The promises about groups, chains and the record, and that nothing is left of a story."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from datasette_llm import GroupClosedError, GroupError, ResponseCancelledError

from .attempts import Asking, askings_of
from .checks import CALL_CHECKS, Problems
from .checks_of_attempts import problems_of_attempts
from .clock import Director
from .facts import Actor, Request
from .harness import Stage
from .observed_call import Seen, calls_of
from .plugins import HookError
from .provider import text_of
from .roles import BodyError
from .trace import Scene

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
        limited = error is None and bool(seen.run.life.limit) and seen.scene.group_left > 0
        if raised and str(actor.error) != str(error) and not limited:
            yield f"{actor.name} got {actor.error!r}, not {error!r}"


def check_cancelled(scene: Scene) -> Problems:
    """Whoever is cancelled gets a CancelledError, and nobody else does."""
    for actor in scene.actors:
        if actor.outcome == "cancelled" and not actor.cancelled:
            yield f"{actor.name} got a CancelledError that nobody sent"
        if actor.cancelled and actor.outcome != "cancelled":
            yield f"{actor.name} was cancelled, and {actor.outcome}: {actor.error!r}"
        if actor.outcome == "running":
            yield f"{actor.name} never ended"


def check_g1(scene: Scene) -> Problems:
    """Leaving a group waits for every response; after it, nothing goes on."""
    if scene.group_state.get("open calls"):
        yield f"{len(scene.group_state['open calls'])} calls went on after the group"


def check_g2(scene: Scene) -> Problems:
    """A failure that nobody saw is raised on leaving, and no other is."""
    body = next((actor for actor in scene.actors if actor.role == "group"), None)
    if scene.group is None or body is None:
        return
    raised = body.error.responses if isinstance(body.error, GroupError) else ()
    orderly = body.outcome == "returned" or isinstance(body.error, (GroupError, HookError))
    for run in scene.runs:
        for request in run.requests:
            response = request.response
            if run.outer is not None:  # the provider that asked has seen it, or gone
                if response in raised and not run.outer.cancels:
                    yield f"{response.failure!r} of a prompt in a provider was raised again"
                continue
            saw = [a for a in run.actors if a.role != "late" and _saw(a, response)]
            # Who went away before, while others read on, has not heard of it.
            told = [a for a in saw if a.error is response.failure]
            if response in raised and any(a.ended < scene.group_left for a in told):
                yield f"{response.failure!r} was raised again, {told[0].name} had seen it"
            if orderly and response.failure and response not in raised and not saw:
                yield f"{response.failure!r} was lost: nobody saw it"


def _saw(actor: Actor, response: Any) -> bool:
    mine = actor.response in (None, response)
    cause = actor.error.__cause__ if actor.error else None  # structured() has one of its own
    told = response.failure in (actor.error, cause)
    # Whoever goes away from anext() does not say so: there is no generator to be closed.
    gone = actor.cancelled or (actor.dropped and actor.role != "anext")
    return mine and (gone or told)


def check_g3(scene: Scene) -> Problems:
    """Leaving by an exception stops what is in flight, and keeps that exception."""
    body = next((actor for actor in scene.actors if actor.role == "group"), None)
    block = scene.story.group
    if body is None or block is None or body.cancelled:
        return
    if block.body == "raises":
        if not isinstance(body.error, BodyError):
            yield f"the body raised, and out came {body.error!r}"
        if going_on := [call for call in scene.in_flight if call not in scene.stops]:
            yield f"{len(going_on)} calls were not stopped"


def check_g4(scene: Scene) -> Problems:
    """llm_group_exit runs once, whichever way a group is left, and after all of its calls."""
    if scene.group is not None and scene.group_left and scene.exits != [scene.group]:
        yield f"told {len(scene.exits)} times"
    if any(call.result.group is None for call in scene.calls) and scene.group is not None:
        yield "a call of the group does not know it"


def check_g5(scene: Scene) -> Problems:
    """After the block the model is closed."""
    if scene.group_left and "closed" not in scene.group_state:
        yield "a prompt was taken after the group"
    for actor in scene.actors:
        if isinstance(actor.error, GroupClosedError) and not scene.group_left:
            yield f"{actor.name} found an open group closed"


def check_l1(scene: Scene, rows: Rows) -> Problems:
    """A request's row is committed before it leaves."""
    for request in scene.requests:
        if request.rows != [(None,)] and not request.log_broken:
            yield f"the row was {request.rows} when the provider was asked"


def check_l2(scene: Scene, rows: Rows) -> Problems:
    """Every row has its end, which agrees with what was seen; there is one for each request."""
    for seen in calls_of(scene):
        for asking in askings_of(seen):
            for request in asking.requests:
                yield from _row_right(asking, request, rows.get(request.row_id))
    asked = {request.row_id for request in scene.requests}
    for call_id, row in rows.items():
        if row["outcome"] is None:
            yield f"a row without an end: {row['id']}"
        unsent = call_id not in asked and row["error_type"] != "ResponseTimeoutError"
        if unsent and row["outcome"] not in ("cancelled", "blocked"):
            yield f"the record says {row['outcome']} of what was never sent"
    yield from _blocked(scene, rows)


def _row_right(asking: Asking, request: Request, row: dict[str, Any] | None) -> Problems:
    expected, failure = _expected(asking, request), request.ended
    if row is None:
        yield f"a request to the provider has no row (it was {expected})"
    elif row["outcome"] not in expected:
        yield f"the record says {row['outcome']}, it was {expected}"
    elif row["outcome"] == "error":
        known = {type(failure).__name__} if isinstance(failure, Exception) else set()
        known |= {"ResponseTimeoutError"} if _was_stopped(request) else set()
        if row["error_type"] not in known:
            yield f"the record says {row['error_type']}, it was {failure!r}"


def _expected(asking: Asking, request: Request) -> set[str]:
    seen = asking.seen
    stop = seen.scene.stops.get(seen.call)
    stopped = seen.stopped and stop is not None and stop.moment < request.ended_moment
    if request.superseded:
        return {"error"}
    if request.ended is None:
        # It may have been stopped at its last event, or in the callbacks.
        return {"ok", "cancelled"} if asking.disturbed else {"ok"}
    if isinstance(request.ended, Exception):
        # What the provider raises when a plugin's timeout stops it is its own error.
        return {"cancelled"} if stopped else {"error"}
    # A timeout may have struck before somebody stopped it, or after.
    struck = {"error"} if _was_stopped(request) and asking.has_limits else set()
    return {"cancelled", *struck} if asking.disturbed or not struck else {"error"}


def _was_stopped(request: Request) -> bool:
    """Whether it was cancelled, or not asked for more."""
    return bool(request.cancels) or isinstance(request.ended, GeneratorExit)


def _blocked(scene: Scene, rows: Rows) -> Problems:
    found = sum(row["outcome"] == "blocked" for row in rows.values())
    expected = sum(
        any(isinstance(seat.blocked, HookError) for seat in seen.seats) and not seen.stopped
        for seen in calls_of(scene)
    )
    if found < expected:
        yield f"{found} rows of blocked calls, of {expected}"


def check_money(scene: Scene, rows: Rows) -> Problems:
    """What was reserved is settled or released, and settled only where a context saw a success."""
    money = scene.money
    if money["reserved"] != money["settled"] + money["released"]:
        yield f"{money}"
    accountants = [seat for seat in scene.seats if seat.hook.accountant and seat.entered]
    if money["settled"] > sum(seat.saw is None for seat in accountants):
        yield f"more was settled than succeeded: {money}"


def check_nothing_left(scene: Scene, stage: Stage) -> Problems:
    """No task, no call and no timer of a story outlives it."""
    tasks = [task.get_name() for task in asyncio.all_tasks(stage.loop)]
    if tasks:
        yield f"tasks: {tasks}"
    if stage.calls:
        yield f"{len(stage.calls)} calls"
    if stage.loop.timers():
        yield f"timers: {stage.loop.timers()}"
    if scene.gates.waiting:
        yield "somebody waits at a gate"


STORY_CHECKS: list[Callable[[Scene], Problems]] = [
    check_cancelled,
    check_g1,
    check_g2,
    check_g3,
    check_g4,
    check_g5,
]
RECORD_CHECKS: list[Callable[[Scene, Rows], Problems]] = [check_l1, check_l2, check_money]


def problems_of(stage: Stage, scene: Scene, director: Director) -> Iterator[str]:
    """Each promise that the story broke, by the name of its check."""
    if director.stuck:
        yield director.stuck
        return
    yield from scene.broken
    for seen in calls_of(scene):
        for check in [*CALL_CHECKS, check_chain]:
            yield from (f"{check.__name__}: {problem}" for problem in check(seen))
    for story_check in STORY_CHECKS:
        yield from (f"{story_check.__name__}: {problem}" for problem in story_check(scene))
    rows = stage.rows()
    for record_check in RECORD_CHECKS:
        yield from (f"{record_check.__name__}: {problem}" for problem in record_check(scene, rows))
    yield from problems_of_attempts(scene, list(calls_of(scene)), rows)
    yield from (f"check_nothing_left: {problem}" for problem in check_nothing_left(scene, stage))


__all__ = ["ResponseCancelledError", "problems_of"]

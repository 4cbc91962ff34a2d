"""The promises to hooks and callers, checked against the trace of a scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from datasette_llm import ConversationBusyError, ResponseCancelledError, ResponseTimeoutError
from datasette_llm.calls import task

from .facts import Actor, Request
from .observed_call import Seen
from .plugins import HookError, Odd
from .provider import text_of

Problems = Iterator[str]
ROUNDING_S = 1e-6


def check_h1(seen: Seen) -> Problems:
    """The contexts open once, in hook order, and all of them before the request."""
    hooks = seen.trace.scenario.hooks
    expected = [number for number, hook in enumerate(hooks) if hook.factory != "none"]
    opened = [
        observed.number for observed in sorted(seen.contexts, key=lambda observed: observed.opened)
    ]
    if opened != expected[: len(opened)]:
        yield f"opened {opened}, not {expected}"
    if seen.requests and [observed.number for observed in seen.entered] != expected:
        yield f"called the provider with {opened} of {expected} open"


def check_h2(seen: Seen) -> Problems:
    """An exception before the yield blocks the call, and reaches everyone as it is."""
    for observed in seen.contexts:
        if observed.blocked is None:
            continue
        if seen.requests:
            yield "called the provider though a hook had blocked"
        mine = isinstance(observed.blocked, HookError)
        otherwise = seen.stopped or seen.timed_out
        if mine and seen.call.error is not observed.blocked and not otherwise:
            yield f"{observed.blocked!r} blocked, but it ended with {seen.call.error!r}"


def check_h3(seen: Seen) -> Problems:
    """On success the response is complete after the yield, and can be read there."""
    for observed in seen.entered:
        early = [q for q in seen.requests if not q.over or q.ended_moment > min(observed.left)]
        if early:
            yield f"hook {observed.number} was left before the provider had ended"
        if observed.saw is not None:
            continue
        if not observed.was_complete:
            yield f"hook {observed.number} saw a success of an incomplete response"
        if observed.read is not None and observed.read != text_of(seen.requests[-1]):
            yield f"hook {observed.number} read {observed.read!r}"


def check_h4(seen: Seen) -> Problems:
    """What ended the call is raised at the yield: the very error, or that it was cancelled."""
    for observed in seen.entered:
        own = observed.limit is not None and isinstance(observed.saw, asyncio.CancelledError)
        if observed.saw is not None and not isinstance(observed.saw, Exception) and not own:
            yield f"hook {observed.number} saw {observed.saw!r}, which is no Exception"
    if not seen.entered or seen.timed_out:
        return
    inner, request = seen.entered[-1], seen.requests[-1] if seen.requests else None
    failure = seen.failure
    if seen.stopped:
        complete = not seen.is_chain and request is not None and request.response._done
        if not isinstance(inner.saw, ResponseCancelledError) and not complete:
            yield f"was stopped, but hook {inner.number} saw {inner.saw!r}"
    elif isinstance(failure, Exception):
        if inner.saw is not failure:
            yield f"{failure!r} of the provider was seen as {inner.saw!r}"
    elif failure is not None and not isinstance(inner.saw, ResponseCancelledError):
        yield f"{failure!r} of the provider was seen as {inner.saw!r}"


def check_h5(seen: Seen) -> Problems:
    """The contexts are opened and left in one task, which is not the caller's."""
    tasks = {observed.opened_in for observed in seen.contexts} | {
        observed.left_in for observed in seen.entered
    }
    if len(tasks) > 1:
        yield "opened and left in different tasks"
    if tasks & {actor.task for actor in seen.trace.actors}:
        yield "opened in the task of an actor"
    if any(observed.span != "inside" for observed in seen.entered):
        yield "a context variable was lost"
    if not seen.timed_out and any(observed.cancelling for observed in seen.entered):
        yield "its timeouts would take a cancellation that is over for theirs"


def check_h6(seen: Seen) -> Problems:
    """A failure stays one whatever the contexts do with it, and the first stays primary."""
    if seen.timed_out:
        if seen.call.error is None and any(observed.saw is not None for observed in seen.entered):
            yield "a timeout became a success"
        return
    if not seen.entered:
        return
    error = seen.entered[-1].saw
    for observed in reversed(seen.entered):
        if observed.saw is not error and not _contains(observed.saw, error):
            yield f"hook {observed.number} saw {observed.saw!r}, not {error!r}"
        error = error or observed.raised
    callback = error is None and any(
        observed.hook.callback == "raises" for observed in seen.contexts
    )
    if callback and not any(observed.reported for observed in seen.contexts):
        callback = False
    if callback != (error is None and isinstance(seen.call.error, HookError)):
        yield f"a callback failed, and it ended with {seen.call.error!r}"
    if not callback and seen.call.error is not error and not _contains(seen.call.error, error):
        yield f"ended with {seen.call.error!r}, not {error!r}"


def _contains(raised: BaseException | None, error: BaseException | None) -> bool:
    """True if an error stands for one that is no Exception."""
    odd = isinstance(error, (Odd, asyncio.CancelledError))
    return odd and isinstance(raised, ResponseCancelledError) and raised.__cause__ is error


def check_h7(seen: Seen) -> Problems:
    """Every context that was entered is left, once, the last one first."""
    for observed in seen.contexts:
        if len(observed.left) != int(observed.entered):
            yield f"hook {observed.number} was left {len(observed.left)} times"
    moments = [moment for observed in seen.entered for moment in observed.left]
    if moments != sorted(moments, reverse=True):
        yield "left in the wrong order"


def check_h8(seen: Seen) -> Problems:
    """Cleanup finishes, unless it takes longer than it may."""
    for observed in seen.entered:
        if observed.hook.accountant or observed.tidied == "finished":
            continue
        outer = [s for s in seen.contexts if s.number < observed.number and s.limit is not None]
        by_timeout = any(s.limit is not None and s.limit.expired() for s in outer)
        if observed.tidied != "interrupted":
            yield f"hook {observed.number} never finished its cleanup"
        elif observed.tidied_at < task.CLEANUP_S - ROUNDING_S and not by_timeout:
            yield f"hook {observed.number} was cut short after {observed.tidied_at} s"


def check_known_error(seen: Seen) -> Problems:
    """A call fails by an error of the scenario, and not of ours."""
    error = seen.call.error
    by_scenario = [request.ended for request in seen.requests]
    if isinstance(seen.failure, ResponseTimeoutError):
        by_scenario.append(seen.failure)
    by_scenario += [e for observed in seen.contexts for e in (observed.blocked, observed.raised)]
    known = error is None or any(error is each for each in by_scenario)
    limit = seen.is_chain and isinstance(error, ValueError) and "Chain limit" in str(error)
    if not (known or limit or isinstance(error, (HookError, ResponseCancelledError))):
        yield f"unexpected error {error!r}"


def check_callbacks(seen: Seen) -> Problems:
    """A callback hears of each complete response once, and of no other."""
    for observed in seen.entered:
        expected = {q.response.id for q in seen.requests if q.response._done}
        reported = [response.id for response in observed.reported]
        if len(reported) != len(set(reported)) or not set(reported) <= expected:
            yield f"hook {observed.number}'s callback got {reported}, not {expected}"
        wanted = observed.hook.callback and not seen.stopped and not seen.timed_out
        if wanted and set(reported) != expected:
            yield f"hook {observed.number}'s callback got {reported}, not {expected}"


def check_c2(seen: Seen) -> Problems:
    """prompt() returns at the first event, or raises what came before it."""
    for actor in seen.run.actors:
        if actor.role != "caller" or seen.run.interaction.kind not in ("prompt",):
            continue
        events = sum(request.events for request in seen.requests)
        if actor.outcome == "returned" and not events and seen.call.error is not None:
            yield f"returned without an event, of a call that ended with {seen.call.error!r}"
        if actor.outcome == "returned" and not seen.run.interaction.stream and seen.call.error:
            yield f"returned a response that was not streamed and failed: {seen.call.error!r}"
        raised = actor.outcome == "raised" and seen.trace.group is None
        if raised and actor.error is not seen.call.error:
            yield f"{actor.name} got {actor.error!r}, not {seen.call.error!r}"


def check_c4(seen: Seen) -> Problems:
    """Each reader has a prefix of the answer, and at the end all of it."""
    for request in seen.last_requests:
        for actor in seen.run.actors:
            if actor.response is request.response and actor.role in ("for", "events", "text"):
                yield from _read_right(seen, request, actor)
        stop = seen.trace.stops.get(seen.call)
        # One that swallows a cancellation is stopped at its next event.
        if stop is not None and sum(moment > stop.moment for moment in request.moments) > 1:
            yield "the provider went on although it was stopped"
    if seen.stopped and not _causes(seen):
        yield f"was stopped for no reason: {seen.trace.stops[seen.call].reason}"


def _read_right(seen: Seen, request: Request, actor: Actor) -> Problems:
    text, pieces = text_of(request), "".join(actor.pieces)
    if not text.startswith(pieces):
        yield f"{actor.name} has {pieces!r} of {text!r}"
    full = actor.value is not None and actor.outcome == "returned"
    if full and (actor.value != text or not request.response._done):
        yield f"{actor.name} read {actor.value!r} of {text!r} to its end"
    if full and seen.call.error is not None:
        yield f"{actor.name} read a response to its end that failed with {seen.call.error!r}"
    if actor.outcome == "raised" and actor.error is not seen.call.error:
        yield f"{actor.name} got {actor.error!r}, not {seen.call.error!r}"


def _causes(seen: Seen) -> bool:
    actors = [*seen.run.actors, *(a for a in seen.trace.actors if a.role == "group")]
    left = any(actor.dropped or actor.cancelled for actor in actors)
    body = seen.trace.scenario.group is not None and seen.trace.scenario.group.body == "raises"
    # A reader of a chain that goes away with an error lets go of it; it is over by then.
    # What reads a prompt from inside a provider goes away when that one is stopped.
    inside = seen.run.outer is not None and bool(seen.run.outer.cancels)
    return left or body or inside or seen.trace.shutting_down


def check_c5(seen: Seen) -> Problems:
    """A response that failed stays failed; one that did not can be read for ever."""
    for request in seen.last_requests:
        for actor in seen.trace.actors:
            if actor.role != "late" or actor.response is not request.response:
                continue
            failure, text = seen.call.error, text_of(request)
            whole = (actor.outcome, actor.value) == ("returned", text) and request.response._done
            # A step of a chain that is complete stays so, whatever the chain comes to.
            may_be_whole = failure is None or seen.is_chain
            if not (whole and may_be_whole) and (failure is None or actor.error is not failure):
                yield f"a late reader got {actor.value!r}, {actor.error!r} of {text!r}: {failure!r}"


def check_c7(seen: Seen) -> Problems:
    """A turn is refused exactly while the previous one is running."""
    for actor in seen.run.actors:
        if actor.turn_busy is None or actor.cancelled:
            continue
        refused = isinstance(actor.error, ConversationBusyError)
        if refused != actor.turn_busy:
            yield f"the turn before was {actor.turn_busy=}, and the next got {actor.error!r}"


CALL_CHECKS: list[Callable[[Seen], Problems]] = [
    check_h1,
    check_h2,
    check_h3,
    check_h4,
    check_h5,
    check_h6,
    check_h7,
    check_h8,
    check_known_error,
    check_callbacks,
    check_c2,
    check_c4,
    check_c5,
    check_c7,
]

"""The promises about retries, fallbacks, timeouts and limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from datasette_llm import ResponseTimeoutError
from datasette_llm.calls import retry as answering
from datasette_llm.calls import task as lifetimes

from .attempts import EXACT_S, Asking, askings_of
from .facts import Request, Wait
from .roles import KEY
from .trace import Scene

Problems = Iterator[str]
Rows = dict[str, dict[str, Any]]


def check_again(asking: Asking) -> Problems:
    """Nothing is asked again after an event, after a tool, or once somebody has stopped it."""
    stop = asking.seen.scene.stops.get(asking.answer.call)
    for request in asking.requests:
        if stop is not None and request.began > stop.moment:
            yield f"{request.model} was asked although the call was stopped"
        if asking.end is not None and request.times[0] > asking.end + EXACT_S:
            yield f"{request.model} was asked although the time was over"
    for request in asking.requests[:-1]:
        if asking.is_final(request):
            yield f"something was asked after {request.ended!r} and {request.events} events"


def check_retries(asking: Asking) -> Problems:
    """A model is asked again after what may pass, as often as it says, and after a pause."""
    for model in {request.model for request in asking.requests}:
        requests = asking.of(model)
        if len(requests) > 1 + asking.retries(model):
            yield f"{model} was asked {len(requests)} times"
        for number, (one, other) in enumerate(itertools.pairwise(requests)):
            if not asking.may_pass(one):
                yield f"{model} was asked again after {one.ended!r}"
            usual = min(answering.WAIT_INITIAL_S * 2**number, answering.WAIT_MAX_S)
            wanted = usual if asking.idle(one) else one.wanted_s or usual
            if other.times[0] - one.ended_at < wanted - EXACT_S:
                yield f"{model} was asked again after {other.times[0] - one.ended_at} s"


def check_fallbacks(asking: Asking) -> Problems:
    """The fallbacks are asked in their order, each once, with keys of their own."""
    order = [asking.asked, *(spare.name for spare in asking.terms.spares)]
    asked = [model for model, _ in itertools.groupby(request.model for request in asking.requests)]
    if asked != [model for model in order if model in asked]:
        yield f"asked {asked} of {order}"
    if asked and asked[0] != asking.asked:
        yield f"{asked[0]} was asked first"
    if refused := {"refused", "raises"}.intersection(asked):
        yield f"asked {refused}"
    for request in asking.requests:
        of_caller = request.model == "player" and asking.seen.run.life.kind in (
            "prompt",
            "reply",
            "turns",
        )
        if request.key not in ((KEY, None) if of_caller else (None,)):
            yield f"{request.model} was asked with the key {request.key!r}"


def check_answered_by(asking: Asking) -> Problems:
    """The response tells who answered; after a total failure, who was asked for."""
    told = asking.answer.response.model.model_id
    last = asking.requests[-1] if asking.requests else None
    if not asking.answer.ended or last is None:
        return
    called = len(asking.answer.response._tool_calls)
    if last.complete and called != last.tool_calls:
        yield f"{last.tool_calls} tools were called, and the response has {called}"
    if last.events or last.complete:
        if told != last.model:
            yield f"{last.model} answered, and the response says {told}"
    elif not (
        asking.disturbed or asking.out_of_time or asking.is_final(last) or told == asking.asked
    ):
        yield f"nobody answered, and the response says {told}"


def check_error(asking: Asking) -> Problems:
    """What ends the attempts is the failure of the right one, and nothing was left untried."""
    answer = asking.answer
    if asking.disturbed or not answer.ended or asking.out_of_time or not asking.requests:
        return
    last = asking.requests[-1]
    if last.complete:
        if answer.error is not None:
            yield f"complete, and ended with {answer.error!r}"
        return
    if not asking.is_final(last):
        yield from _left_untried(asking, last)
        last = asking.of(asking.asked)[-1]
    error = answer.error
    if asking.idle(last):
        if not (isinstance(error, ResponseTimeoutError) and error.setting == "idle_timeout"):
            yield f"was without an event for too long, and ended with {error!r}"
    elif error is not last.ended:
        yield f"{last.ended!r} of {last.model}, but it ended with {error!r}"


def _left_untried(asking: Asking, last: Request) -> Problems:
    if asking.end is not None and asking.answer.ended_at >= asking.end - EXACT_S:
        return
    made, wanted = len(asking.of(last.model)), 0.0 if asking.idle(last) else last.wanted_s
    in_time = asking.end is None or last.ended_at + wanted < asking.end - EXACT_S
    if asking.may_pass(last) and made < 1 + asking.retries(last.model) and in_time:
        yield f"{last.model} was not asked again after {last.ended!r}"
    if missing := asking.next_spares(last.model):
        yield f"{missing} were not asked after {last.ended!r} of {last.model}"


def check_timeouts(asking: Asking) -> Problems:
    """A timeout strikes when it is due: not before, and no later than a provider's cleanup."""
    answer, scene = asking.answer, asking.seen.scene
    ended_at = answer.ended_at if answer.ended else scene.loop.time()
    late = scene.jumped_s + _cleanup_s(asking) + EXACT_S
    if asking.end is not None and not answer.response._done and ended_at > asking.end + late:
        yield f"took {ended_at - answer.began_at} s, and may take {asking.terms.timeout_s}"
    if asking.out_of_time and (asking.end is None or ended_at < asking.end - EXACT_S):
        yield f"the timeout struck after {ended_at - answer.began_at} s"
    limit = scene.story.terms.idle_timeout_s
    for request in asking.requests:
        times = [*request.times, *([request.ended_at] if request.over else [])]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        if limit and max(gaps, default=0.0) > limit + late:
            yield f"was {max(gaps)} s without an event"
        if request.cancels and sum(each > request.cancelled for each in request.moments) > 1:
            yield f"{request.model} went on although it was cancelled"
        if not asking.disturbed and request.cancels:
            over = asking.end is not None and request.cancels[0] >= asking.end - EXACT_S
            if not (over or asking.idle(request)) and not request.complete:
                yield f"was cancelled after {request.quiet_s[0]} s without an event"


def _cleanup_s(asking: Asking) -> float:
    """How long providers may take after their time."""
    swallowed = max(
        (request.script.steps.count("stubborn") for request in asking.requests), default=0
    )
    tidies = any(request.script.cleanup == "waits" for request in asking.requests)
    nested = any("nested" in request.script.steps for request in asking.requests)
    return lifetimes.CLEANUP_S * (swallowed + tidies + nested)


def check_limits(scene: Scene) -> Problems:
    """Never more at once than a limit says, first come first served, and all have left."""
    for gate in {wait.gate for wait in scene.waits}:
        waits = [wait for wait in scene.waits if wait.gate is gate]
        entered = sorted((w for w in waits if w.entered), key=lambda wait: wait.entered)
        if entered != [wait for wait in waits if wait.entered]:
            yield "who came first did not go in first"
        if not gate.idle:
            yield f"{gate!r} in the end"
    terms = scene.story.terms
    limits = {spare.name: spare.limit for spare in terms.spares} | {"player": terms.limit}
    for model, limit in limits.items():
        of_model = [
            q for q in _outer(scene) if q.model == model and q.call.model.model_id == "player"
        ]
        yield from _too_many(of_model, limit, model)
    yield from _too_many(_outer(scene), terms.purpose_limit, "the purpose")


def _outer(scene: Scene) -> list[Request]:
    return [request for request in scene.requests if request.run.outer is None]


def _too_many(requests: list[Request], limit: int, name: str) -> Problems:
    for request in requests if limit else ():
        inside = [q for q in requests if q.began <= request.began < (q.ended_moment or 10**9)]
        if len(inside) > limit:
            yield f"{len(inside)} at once for {name}, of {limit}"


def check_rows_of_attempts(asking: Asking, rows: Rows) -> Problems:
    """The attempts of a response have a row each, numbered from 1, in the order of their ids."""
    response_id = asking.answer.response.id
    if asking.seen.scene.log_broken:
        return
    mine = [row for key, row in rows.items() if response_id in (key, row["prompt_id"])]
    numbers = [row["attempt"] for row in mine]
    if numbers != list(range(1, len(mine) + 1)):
        yield f"the attempts are numbered {numbers}"
    if mine and mine[0]["id"] != response_id:
        yield "the first attempt's row is not the response's"
    asked = [request.row_id for request in asking.requests]
    if len(set(asked)) != len(asked) or not set(asked) <= {row["id"] for row in mine}:
        yield f"the rows {asked} of {[row['id'] for row in mine]}"
    for row, request in ((r, q) for r in mine for q in asking.requests if q.row_id == r["id"]):
        if row["model_id"] != request.model:
            yield f"the row says {row['model_id']}, and {request.model} was asked"
    never = [row["outcome"] for row in mine if row["id"] not in asked]
    if len(never) > 1:
        yield f"{len(never)} attempts did not reach a provider: {never}"
    outcomes = [row["outcome"] for row in mine]
    if "ok" in outcomes[:-1]:
        yield f"the outcomes are {outcomes}"
    done = asking.answer.ended and not asking.disturbed and mine
    if done and (asking.answer.error is None) != (outcomes[-1] == "ok"):
        yield f"the record says {outcomes}, it ended with {asking.answer.error!r}"
    yield from _waits(asking, mine)


def _waits(asking: Asking, mine: list[dict[str, Any]]) -> Problems:
    for row in mine:
        waits = [wait for wait in asking.seen.scene.waits if wait.row_id == row["id"]]
        waited_ms = round(sum(_lasted(wait) for wait in waits) * 1000, 3)
        if waits and (row["waited_ms"] is None or abs(row["waited_ms"] - waited_ms) > 0.01):
            yield f"waited {waited_ms} ms, and the row says {row['waited_ms']}"
        stopped = [wait.stopped for wait in waits if wait.stopped is not None]
        if stopped and any(request.row_id == row["id"] for request in asking.requests):
            yield f"asked although {stopped} ended the wait"
        if stopped and row["outcome"] not in ("cancelled", "error"):
            yield f"the wait was ended by {stopped}, and the record says {row['outcome']}"
        timeout = row["outcome"] == "error" and row["error_type"] != "ResponseTimeoutError"
        if stopped and timeout:
            yield f"the wait was ended by {stopped}, and the record says {row['error_type']}"
    known = {row["id"] for row in mine}
    if asking.is_first and not asking.seen.is_chain:
        waits = [wait for wait in asking.seen.scene.waits if wait.call is asking.answer.call]
        if not {wait.row_id for wait in waits} <= known:
            yield "a wait has no row"


def _lasted(wait: Wait) -> float:
    return (wait.ended_at or wait.began_at) - wait.began_at


ASKING_CHECKS: list[Callable[[Asking], Problems]] = [
    check_again,
    check_retries,
    check_fallbacks,
    check_answered_by,
    check_error,
    check_timeouts,
]


def problems_of_attempts(scene: Scene, calls: list[Any], rows: Rows) -> Problems:
    """What is wrong with the attempts of a story, by the name of the check."""
    for asking in (asking for seen in calls for asking in askings_of(seen)):
        for check in ASKING_CHECKS:
            yield from (f"{check.__name__}: {problem}" for problem in check(asking))
        problems = check_rows_of_attempts(asking, rows)
        yield from (f"check_rows_of_attempts: {problem}" for problem in problems)
    yield from (f"check_limits: {problem}" for problem in check_limits(scene))

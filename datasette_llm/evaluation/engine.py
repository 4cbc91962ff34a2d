"""Ask candidates about cases: in groups, at a set concurrency, as an iterator of results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, NamedTuple

from llm.parts import Message

from ..calls.ended_requests import EndedRequest
from ..calls.group import Group
from ..calls.model import WrappedAsyncModel
from ..errors import ModelNotAllowedError, ResponseCancelledError, SchemaError
from ..events import Outcome, RequestFinished, Saved
from ..facade import LLM
from ..log.cost import NANODOLLARS, Cost, cost_columns
from ..log.rows import MAX_TEXT_CHARS, finished_row, original_row
from ..redaction import shortened
from ..sanitize import brief, well_formed
from ..structured.validation import Shape
from ..tags.values import Tags, checked
from .cases import Answer, Candidate, Case, Result
from .checks import DEFAULT_CHECKS, Check, checks_of, failed_checks

logger = logging.getLogger("datasette_llm")

# Of one group, since a group keeps its responses until it is left.
GROUP_CASES = 100
DEFAULT_CONCURRENCY = 8
MAX_CONCURRENCY = 1_000
# Of one answer; a candidate that hangs must not keep an evaluation from its end.
DEFAULT_TIMEOUT_S = 300.0
# Answers that wait to be read, besides one for each request that runs.
_WAITING = 256
_MAX_SHAPES = 100

Actor = Mapping[str, Any] | None
Cases = Iterable[Case] | AsyncIterable[Case]


@dataclass(frozen=True, slots=True)
class How:
    """How candidates are asked.

    Attributes:
        checks: what every answer is checked for.
        purpose: what the requests are for, or None.
        actor: who asks, or None.
        tags: what the requests are tied to, or None.
        concurrency: how many requests run at once.
        timeout_s: how long an answer may take, in seconds.
        response_cache: whether answers that the response cache keeps are used.
    """

    checks: Sequence[Check] = DEFAULT_CHECKS
    purpose: str | None = None
    actor: Actor = None
    tags: Tags | None = None
    concurrency: int = DEFAULT_CONCURRENCY
    timeout_s: float = DEFAULT_TIMEOUT_S
    response_cache: bool = False


class Work(NamedTuple):
    """What one group asks.

    Attributes:
        position: the number of the candidate, from 1.
        candidate: the candidate.
        cases: the cases, each with its number, from 1.
    """

    position: int
    candidate: Candidate
    cases: Sequence[tuple[int, Case]]


async def evaluate(
    llm: LLM,
    cases: Cases,
    candidates: Iterable[Candidate | str],
    *,
    checks: Iterable[object] = DEFAULT_CHECKS,
    purpose: str | None = None,
    actor: Actor = None,
    tags: Tags | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    response_cache: bool = False,
) -> AsyncGenerator[Result, None]:
    """Ask every candidate about every case, and check the answers.

    Requests are sent as those of any plugin: with the purpose's policy, hooks, limits and record,
    in groups of a candidate and up to 100 cases. One that fails is a result, too. Leaving the
    iterator, as `contextlib.aclosing` does, stops what runs.

    Args:
        llm: the models.
        cases: the cases; they are read as they are asked.
        candidates: the models, by id or with options.
        checks: checks, by their names, such as `json` or `{"max_chars": 500}`.
        purpose: what the requests are for.
        actor: Datasette's actor dictionary, or None.
        tags: what the requests are tied to.
        concurrency: how many requests run at once, from 1 to 1,000.
        timeout_s: how long an answer may take, in seconds.
        response_cache: whether answers that the response cache keeps are used, with the tokens,
            the cost and the latency of the request that they are from.

    Yields:
        A result for each case and candidate, in the order in which the answers come.

    Raises:
        CheckError: a check is invalid.
        TagError: a tag is invalid.
        ValueError: the concurrency is out of its range.
    """
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ValueError(f"concurrency={concurrency!r} has to be from 1 to {MAX_CONCURRENCY:,}")
    how = How(
        checks_of(checks), purpose, actor, checked(tags), concurrency, timeout_s, response_cache
    )
    asked = [each if isinstance(each, Candidate) else Candidate(each) for each in candidates]
    async with contextlib.aclosing(Engine(llm, how).batches(_work(cases, asked))) as batches:
        async for batch in batches:
            for result in batch:
                yield result


async def batched(cases: Cases, size: int) -> AsyncIterator[list[tuple[int, Case]]]:
    """Cases with their numbers, in lists of up to a size."""
    batch: list[tuple[int, Case]] = []
    number = 0
    async for case in _each(cases):
        number += 1
        batch.append((number, case))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(cases: Cases) -> AsyncIterator[Case]:
    if isinstance(cases, AsyncIterable):
        async for case in cases:
            yield case
    else:
        for case in cases:
            yield case


async def _work(cases: Cases, candidates: Sequence[Candidate]) -> AsyncIterator[Work]:
    async for batch in batched(cases, GROUP_CASES):
        for position, candidate in enumerate(candidates, 1):
            yield Work(position, candidate, batch)


class _Received(NamedTuple):
    """What came of a request, before it is priced and checked."""

    work: Work
    number: int
    case: Case
    text: str
    error: Exception | None
    call: Any = None
    ended: EndedRequest | None = None
    waited_ms: float | None = None

    @property
    def saved(self) -> Saved | None:
        """What it would have taken, if another call has paid for the answer."""
        return self.ended[0].saved if self.ended else None

    @property
    def paid_for_retries(self) -> bool:
        """Whether it has paid for more than one request."""
        return self.call is not None and self.call.result.attempts > 1 and self.saved is None


class Engine:
    """Asks candidates, and gives results in batches: those that came since the last one."""

    def __init__(self, llm: LLM, how: How) -> None:
        """
        Args:
            llm: the models.
            how: how they are asked.
        """
        self._llm = llm
        self._how = how
        self._slots = asyncio.Semaphore(how.concurrency)
        self._room = asyncio.Semaphore(how.concurrency + _WAITING)
        self._received: asyncio.Queue[_Received | None] = asyncio.Queue()
        self._calls: dict[asyncio.Task[Any] | None, Any] = {}
        self._shapes: dict[str, Shape | None] = {}
        self._asking: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Stop what runs; the batches end with what has come until now."""
        if self._asking is not None:
            self._asking.cancel()

    async def batches(self, work: AsyncIterator[Work]) -> AsyncGenerator[list[Result], None]:
        """Ask, and give the results; at most once for each engine.

        Args:
            work: what to ask, read as there is room for more requests.
        """
        asking = self._asking = asyncio.create_task(self._ask_all(work))
        asking.add_done_callback(lambda _: self._received.put_nowait(None))
        try:
            while batch := await self._next_batch():
                yield await self._results(batch)
            if not asking.cancelled():
                await _finished(asking)
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def _next_batch(self) -> list[_Received]:
        """What has come, at least one; empty at the end."""
        batch: list[_Received] = []
        item = await self._received.get()
        while item is not None:
            batch.append(item)
            self._room.release()
            if self._received.empty():
                return batch
            item = self._received.get_nowait()
        if batch:
            self._received.put_nowait(None)
        return batch

    # Asking

    async def _ask_all(self, work: AsyncIterator[Work]) -> None:
        async with asyncio.TaskGroup() as groups:
            async for each in work:
                # The next group begins while this one's last answers are still to come.
                launched = asyncio.Event()
                groups.create_task(self._ask_group(each, launched))
                await launched.wait()

    async def _ask_group(self, work: Work, launched: asyncio.Event) -> None:
        how = self._how
        group = self._llm.group(work.candidate.model_id, how.purpose, how.actor, tags=how.tags)
        group.on_call = lambda call: self._calls.update({asyncio.current_task(): call})
        entered = asked = False
        try:
            async with group as model:
                entered = True
                # A fallback's answer is evidence about another model.
                route = model.route.alone(response_cache=how.response_cache)
                alone = WrappedAsyncModel(route)
                await self._launch(alone, group, work, launched)
                asked = True
        except Exception as error:  # a hook's, or why there is no such model
            if not entered:
                await self._refuse(work, error)
            elif not asked:
                raise
            elif not isinstance(error, ExceptionGroup):  # which repeats the failures of answers
                logger.warning("A group of an evaluation was left with an error: %s", brief(error))
        finally:
            launched.set()

    async def _launch(
        self, model: WrappedAsyncModel, group: Group[Any], work: Work, launched: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as requests:
            for number, case in work.cases:
                await self._room.acquire()
                await self._slots.acquire()
                requests.create_task(self._ask(model, group, work, number, case))
            launched.set()

    async def _ask(
        self, model: WrappedAsyncModel, group: Group[Any], work: Work, number: int, case: Case
    ) -> None:
        text, error, started = "", None, time.monotonic()
        try:
            async with self._in_time():
                arguments = _arguments(model, case, work.candidate)
                text = await (await model.prompt(case.prompt, **arguments)).text()
        except Exception as raised:  # a provider's, a hook's, or the time is over
            error = raised
        finally:
            self._slots.release()
            call = self._calls.pop(asyncio.current_task(), None)
        waited_ms = (time.monotonic() - started) * 1000
        ended = _ended(group, call)
        received = _Received(work, number, case, text, error, call, ended, waited_ms)
        self._received.put_nowait(received)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Limit the time of an answer, without that for which a concurrency limit holds it up.

        Raises:
            TimeoutError: the time is over.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        began, timeout_s = loop.time(), self._how.timeout_s
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            call, now = self._calls.get(task), loop.time()
            end = began + timeout_s + (0.0 if call is None else call.waited_s)
            if call is not None and call.awaits_permit:
                end = now + timeout_s
            if end <= now:
                limit.reschedule(now)
            else:
                timer = loop.call_at(end, look)

        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(timeout_s, look)
            try:
                yield
            finally:
                timer.cancel()

    async def _refuse(self, work: Work, error: Exception) -> None:
        for number, case in work.cases:
            await self._room.acquire()
            self._received.put_nowait(_Received(work, number, case, "", error))

    # Pricing and checking

    async def _results(self, batch: list[_Received]) -> list[Result]:
        shapes = [await self._shape(each.case.schema) for each in batch]
        # Of a call with one request, as nearly all have, the cost is computed with the checks.
        costs = [await each.call.result.cost() if each.paid_for_retries else None for each in batch]
        return await asyncio.to_thread(self._checked, batch, shapes, costs)

    def _checked(
        self, batch: list[_Received], shapes: list[Shape | None], costs: list[Cost | None]
    ) -> list[Result]:
        return [
            self._result(received, shape, cost)
            for received, shape, cost in zip(batch, shapes, costs, strict=True)
        ]

    def _result(self, received: _Received, shape: Shape | None, cost: Cost | None) -> Result:
        work, case, answer = received.work, received.case, _answer(received, cost)
        failed = failed_checks(self._how.checks, case, answer, shape)
        return Result(case, received.number, work.candidate, work.position, answer, failed)

    async def _shape(self, schema: Mapping[str, Any] | None) -> Shape | None:
        """What an answer has to fit; None without a schema, or with one that cannot be used."""
        if schema is None:
            return None
        key = json.dumps(dict(schema), sort_keys=True)
        if key not in self._shapes:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            try:
                self._shapes[key] = await Shape.of(schema)
            except SchemaError:
                self._shapes[key] = None
        return self._shapes[key]


async def _finished(asking: asyncio.Task[None]) -> None:
    """The end of what was asked; an error of the cases is raised as they raised it."""
    try:
        await asking
    except ExceptionGroup as failed:
        if len(failed.exceptions) > 1:
            raise
        error = failed.exceptions[0]
    else:
        return
    raise error


def _arguments(model: WrappedAsyncModel, case: Case, candidate: Candidate) -> dict[str, Any]:
    """What a case is prompted with, besides its text."""
    options = dict(candidate.options)
    if case.options:
        known = model.Options.model_fields
        options = {name: case.options[name] for name in case.options if name in known} | options
    arguments: dict[str, Any] = {"options": options}
    if case.system:
        arguments["system"] = case.system
    if case.schema is not None:
        arguments["schema"] = dict(case.schema)
    if case.history:
        arguments["messages"] = [Message.from_dict(each) for each in case.history]  # type: ignore[arg-type]  # as it was recorded
    return arguments


def _cost_columns(received: _Received, cost: Cost | None) -> dict[str, Any]:
    if cost is not None:
        nanodollars = round(cost.dollars * NANODOLLARS)
        return {"cost_nanodollars": nanodollars, "price_source": cost.source}
    if received.ended is None or received.paid_for_retries:
        return {}
    finished, model_id, target = received.ended
    row = finished_row(finished)
    if finished.saved is not None:
        row |= original_row(finished.saved)
    return cost_columns(row, model_id, target.price, exact=target.exact_price)


def _ended(group: Group[Any], call: Any) -> EndedRequest | None:
    """The newest request of a call that has ended; None if none was sent."""
    if call is None or not call.result.attempts:
        return None
    ended = reversed(group.ended)
    return next((each for each in ended if each[0].id == call.result.call_id), None)


def _answer(received: _Received, cost: Cost | None) -> Answer:
    error, call = received.error, received.call
    ended = received.ended[0] if received.ended else None
    known = ended or RequestFinished("", Outcome.OK)
    keys = call.used_keys if call is not None else None
    measured = known.saved or known
    duration_s = measured.duration_s or known.duration_s
    return Answer(
        outcome=_outcome(error, call),
        text=well_formed(shortened(received.text, keys, MAX_TEXT_CHARS)),
        finish_reason=known.finish_reason,
        error_type=None if error is None else type(error).__name__,
        error_message=None if error is None else brief(error) or None,
        latency_ms=received.waited_ms if ended is None else round(duration_s * 1000, 3),
        input_tokens=measured.input_tokens,
        output_tokens=measured.output_tokens,
        call_id=call.result.call_id if call is not None else getattr(error, "call_id", None),
        cached_from=known.saved.call_id if known.saved else None,
        **_cost_columns(received, cost),
    )


def _outcome(error: Exception | None, call: Any) -> Outcome:
    match error:
        case None:
            return Outcome.OK
        case ResponseCancelledError():
            return Outcome.CANCELLED
        case ModelNotAllowedError():
            return Outcome.BLOCKED
    return Outcome.BLOCKED if call is not None and call.refused_by else Outcome.ERROR

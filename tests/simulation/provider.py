"""The provider of a scenario, which follows its scripts and records its requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import llm
from llm.parts import StreamEvent

from .facts import Request, Run, acting
from .scenarios import ERRORS, Interaction, Script, StatusError
from .trace import Trace

OBJECT = '{"n": 1}'
# What a provider does for a nested prompt.
NESTED = Interaction("prompt", (Script(("pause", "chunk", "pause", "chunk")),))


class OwnCancellation(asyncio.CancelledError):
    """A CancelledError that a provider raises without being cancelled."""


class Provider(llm.AsyncKeyModel):
    """The provider."""

    can_stream = True

    def __init__(self, name: str) -> None:
        self.model_id = name
        self.supports_schema = self.supports_tools = name != "plain"
        self.trace: Trace | None = None

    async def execute(self, prompt, stream, response, conversation, key=None):  # type: ignore[no-untyped-def]
        trace, run = self.trace, acting.get()
        assert trace is not None
        assert run is not None
        call, number = response.stream_state.producer, len(run.requests)
        request = Request(
            run,
            self._script(trace, run),
            response,
            call,
            trace.committed(call.row_id),
            trace.log_broken,
            self.model_id,
            key,
            call.row_id,
            times=[trace.loop.time()],
            began=trace.moment(),
        )
        for other in run.requests:
            other.superseded = other.superseded or other.response is response
        run.requests.append(request)
        trace.requests.append(request)
        try:
            async with contextlib.aclosing(_run_script(trace, request, response, number)) as items:
                async for item in items:
                    yield item
        except BaseException as error:
            request.ended = error
            request.retried, request.wanted_s = _may_retry(error)
            raise
        else:
            request.complete = True
        finally:
            request.over, request.ended_moment = True, trace.moment()
            request.ended_at = trace.loop.time()

    def _script(self, trace: Trace, run: Run) -> Script:
        """The next script of this model; the last one is repeated."""
        fallbacks = {
            fallback.name: fallback.scripts for fallback in trace.scenario.policy.fallbacks
        }
        scripts: tuple[Script, ...] = fallbacks.get(self.model_id, run.interaction.scripts)  # type: ignore[call-overload]
        number = sum(request.model == self.model_id for request in run.requests)
        return scripts[min(number, len(scripts) - 1)]


def _may_retry(error: BaseException) -> tuple[bool, float]:
    """True if a failure or its cause may be retried, and the wait that it asks for."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, StatusError):
            wanted_s = float(each.headers.get("retry-after", 0))
            return wanted_s <= 60, wanted_s
        if isinstance(each, (ConnectionError, TimeoutError)):
            return True, 0.0
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return False, 0.0


async def _run_script(
    trace: Trace, request: Request, response: Any, number: int
) -> AsyncIterator[str | StreamEvent]:
    script, interaction = request.script, request.run.interaction
    try:
        for step in script.steps:
            with _recording_cancels(trace, request):
                item = await _step(trace, request, response, step)
            if item is not None:
                request.events += 1
                request.moments.append(trace.moment())
                request.times.append(trace.loop.time())
                if isinstance(item, str):
                    request.given.append(item)
                yield item
        if interaction.kind == "chain" and number < len(interaction.scripts) - 1:
            for place, tool in enumerate(interaction.tools):
                request.tool_calls += 1
                response.add_tool_call(llm.ToolCall(tool, {}, tool_call_id=f"{number}.{place}"))
    finally:
        if script.cleanup == "waits":
            with _recording_cancels(trace, request):
                await trace.pauses.wait("the provider's cleanup")
        elif script.cleanup == "raises":
            raise RuntimeError("the provider's cleanup failed")


async def _step(
    trace: Trace, request: Request, response: Any, step: str
) -> str | StreamEvent | None:
    match step.split():
        case ["chunk"] if request.run.interaction.kind == "structured":
            return OBJECT if not request.given else " "
        case ["chunk"]:
            return f"{len(request.given)}{chr(97 + request.run.number % 26)} "
        case ["reasoning"]:
            return StreamEvent(type="reasoning", chunk="hm ")
        case ["usage"]:
            response.set_usage(input=3, output=2)
        case ["pause"]:
            await trace.pauses.wait("the provider")
        case ["hang"]:
            await asyncio.get_running_loop().create_future()
        case ["stubborn"]:
            with contextlib.suppress(asyncio.CancelledError), _recording_cancels(trace, request):
                await trace.pauses.wait("the stubborn provider")
        case ["nested"]:
            await _prompt_inside(trace, request)
        case ["cancelled"]:
            raise OwnCancellation
        case ["fail", kind]:
            raise ERRORS[kind].make("the provider failed")
    return None


@contextlib.contextmanager
def _recording_cancels(trace: Trace, request: Request) -> Iterator[None]:
    try:
        yield
    except OwnCancellation:
        raise
    except asyncio.CancelledError:
        request.cancels.append(trace.loop.time())
        request.cancelled = request.cancelled or trace.moment()
        request.quiet_s.append(trace.loop.time() - request.times[-1])
        raise


async def _prompt_inside(trace: Trace, request: Request) -> None:
    """Prompt the scenario's model in the middle of a request."""
    run = Run(len(trace.runs), NESTED, request)
    trace.runs.append(run)
    acting.set(run)
    try:
        response = await trace.model.prompt("inside")
        await response.text()
    finally:
        acting.set(request.run)


def text_of(request: Request) -> str:
    """The text of a request, as its readers should get it."""
    return "".join(request.given)

"""The provider of a story, which does what its scripts say and notes what it sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import llm
from llm.parts import StreamEvent

from .facts import Request, Run, acting
from .scenarios import ERRORS, Life, Script, StatusError
from .trace import Scene

OBJECT = '{"n": 1}'
# What a provider does that is asked by another one.
INSIDE = Life("prompt", (Script(("pause", "chunk", "pause", "chunk")),))


class OwnCancellation(asyncio.CancelledError):
    """What a provider raises that nobody has cancelled."""


class Player(llm.AsyncKeyModel):
    """The provider."""

    can_stream = True

    def __init__(self, name: str) -> None:
        self.model_id = name
        self.supports_schema = self.supports_tools = name != "plain"
        self.scene: Scene | None = None

    async def execute(self, prompt, stream, response, conversation, key=None):  # type: ignore[no-untyped-def]
        scene, run = self.scene, acting.get()
        assert scene is not None
        assert run is not None
        call, number = response.stream_state.producer, len(run.requests)
        request = Request(
            run,
            self._script(scene, run),
            response,
            call,
            scene.committed(call.row_id),
            scene.log_broken,
            scene.group_left == 0,
            self.model_id,
            key,
            call.row_id,
            times=[scene.loop.time()],
            began=scene.moment(),
        )
        for other in run.requests:
            other.superseded = other.superseded or other.response is response
        run.requests.append(request)
        scene.requests.append(request)
        try:
            async with contextlib.aclosing(_played(scene, request, response, number)) as items:
                async for item in items:
                    yield item
        except BaseException as error:
            request.ended = error
            request.retried, request.wanted_s = _passes(error)
            raise
        else:
            request.complete = True
        finally:
            request.over, request.ended_moment = True, scene.moment()
            request.ended_at = scene.loop.time()

    def _script(self, scene: Scene, run: Run) -> Script:
        """The next of this model's; the last one again and again."""
        spares = {spare.name: spare.scripts for spare in scene.story.terms.spares}
        scripts: tuple[Script, ...] = spares.get(self.model_id, run.life.scripts)  # type: ignore[call-overload]
        number = sum(request.model == self.model_id for request in run.requests)
        return scripts[min(number, len(scripts) - 1)]


def _passes(error: BaseException) -> tuple[bool, float]:
    """Whether a failure may pass, by it or by what is behind it, and the pause that it wants."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, StatusError):
            wanted_s = float(each.headers.get("retry-after", 0))
            return wanted_s <= 60, wanted_s
        if isinstance(each, (ConnectionError, TimeoutError)):
            return True, 0.0
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return False, 0.0


async def _played(
    scene: Scene, request: Request, response: Any, number: int
) -> AsyncIterator[str | StreamEvent]:
    script, life = request.script, request.run.life
    try:
        for step in script.steps:
            with _cancels_noted(scene, request):
                item = await _step(scene, request, response, step)
            if item is not None:
                request.events += 1
                request.moments.append(scene.moment())
                request.times.append(scene.loop.time())
                if isinstance(item, str):
                    request.given.append(item)
                yield item
        if life.kind == "chain" and number < len(life.scripts) - 1:
            for place, tool in enumerate(life.tools):
                request.tool_calls += 1
                response.add_tool_call(llm.ToolCall(tool, {}, tool_call_id=f"{number}.{place}"))
    finally:
        if script.cleanup == "waits":
            with _cancels_noted(scene, request):
                await scene.gates.wait("the provider's cleanup")
        elif script.cleanup == "raises":
            raise RuntimeError("the provider's cleanup failed")


async def _step(
    scene: Scene, request: Request, response: Any, step: str
) -> str | StreamEvent | None:
    match step.split():
        case ["chunk"] if request.run.life.kind == "structured":
            return OBJECT if not request.given else " "
        case ["chunk"]:
            return f"{len(request.given)}{chr(97 + request.run.number % 26)} "
        case ["reasoning"]:
            return StreamEvent(type="reasoning", chunk="hm ")
        case ["usage"]:
            response.set_usage(input=3, output=2)
        case ["pause"]:
            await scene.gates.wait("the provider")
        case ["hang"]:
            await asyncio.get_running_loop().create_future()
        case ["stubborn"]:
            with contextlib.suppress(asyncio.CancelledError), _cancels_noted(scene, request):
                await scene.gates.wait("the stubborn provider")
        case ["nested"]:
            await _asked_inside(scene, request)
        case ["cancelled"]:
            raise OwnCancellation
        case ["fail", kind]:
            raise ERRORS[kind].make("the provider failed")
    return None


@contextlib.contextmanager
def _cancels_noted(scene: Scene, request: Request) -> Iterator[None]:
    try:
        yield
    except OwnCancellation:
        raise
    except asyncio.CancelledError:
        request.cancels.append(scene.loop.time())
        request.cancelled = request.cancelled or scene.moment()
        request.quiet_s.append(scene.loop.time() - request.times[-1])
        raise


async def _asked_inside(scene: Scene, request: Request) -> None:
    """Prompt the model of the story in the middle of a request, as a model may."""
    run = Run(len(scene.runs), INSIDE, request)
    scene.runs.append(run)
    acting.set(run)
    try:
        response = await scene.model.prompt("inside")
        await response.text()
    finally:
        acting.set(request.run)


def text_of(request: Request) -> str:
    """What was given in the end, as its readers should have it."""
    return "".join(request.given)

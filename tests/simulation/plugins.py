"""The plugins of a story, which do what it says and note what they see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from datasette import hookimpl

from .facts import Seat, in_question
from .scenarios import Hook
from .trace import Scene

span: ContextVar[str] = ContextVar("span", default="outside")
# Less than one context may take to clean up, and more than half of it.
SLOW_S = 3.0


class HookError(RuntimeError):
    """What a plugin of a story raises."""


class Odd(BaseException):
    """What is no Exception, and no business of the event loop's."""


class Plugin:
    """A plugin of the story: its script, and around it somebody who writes down what it sees."""

    def __init__(self, scene: Scene, number: int, hook: Hook) -> None:
        self.__name__ = f"life {number}"
        self._scene = scene
        self._number = number
        self._hook = hook

    @hookimpl
    def llm_prompt_context(self) -> Any:
        if self._hook.factory == "none":
            return None
        return self._later() if self._hook.factory == "async" else self._context

    async def _later(self) -> Any:
        await self._scene.gates.wait("an async factory")
        return self._context

    def _context(self, result: Any) -> Any:
        seat = Seat(self._number, self._hook, result)
        self._scene.seats.append(seat)
        work = self._accountant if self._hook.accountant else self._scripted
        return Observed(self._scene, seat, work(seat, result))

    @contextlib.asynccontextmanager
    async def _accountant(self, seat: Seat, result: Any) -> AsyncIterator[None]:
        money = self._scene.money
        money["reserved"] += 1
        try:
            yield
            for response in result.responses:
                await response.usage()
            money["settled"] += 1
        except Exception:
            money["released"] += 1
            raise

    @contextlib.asynccontextmanager
    async def _scripted(self, seat: Seat, result: Any) -> AsyncIterator[None]:
        hook = self._hook
        await self._before(seat, result)
        limit = asyncio.timeout(hook.timeout_s) if hook.timeout_s else None
        seat.limit = limit
        try:
            async with limit or contextlib.nullcontext():
                try:
                    yield
                except Exception as error:
                    if hook.at_yield == "transforms":
                        raise HookError("transformed") from error
                    if hook.at_yield != "swallows":
                        raise
                else:
                    await self._after(seat, result)
        finally:
            await self._cleanup(seat)

    async def _before(self, seat: Seat, result: Any) -> None:
        hook, wait = self._hook, self._scene.gates.wait
        if hook.before == "waits":
            await wait(f"hook {self._number} before")
        elif hook.before == "stubborn":
            with contextlib.suppress(asyncio.CancelledError):
                await wait(f"stubborn hook {self._number} before")
        elif hook.before == "raises":
            raise HookError(f"hook {self._number} blocks")
        if hook.callback:
            await result.on_response_done(lambda response: self._callback(seat, response))

    def _callback(self, seat: Seat, response: Any) -> Any:
        seat.told.append(response)
        if self._hook.callback == "raises":
            raise HookError(f"hook {self._number}'s callback failed")
        waits = self._hook.callback == "waits"
        return self._scene.gates.wait(f"hook {self._number}'s callback") if waits else None

    async def _after(self, seat: Seat, result: Any) -> None:
        if self._hook.after == "waits":
            await self._scene.gates.wait(f"hook {self._number} after")
        elif self._hook.after == "raises":
            raise HookError(f"hook {self._number} fails after the yield")
        elif self._hook.after == "reads" and result.response is not None:
            seat.read = await result.response.text()
            await result.response.usage()

    async def _cleanup(self, seat: Seat) -> None:
        hook, scene = self._hook, self._scene
        seat.tidied, seat.tidied_at = "began", scene.loop.time()
        try:
            if hook.cleanup == "waits":
                await scene.gates.wait(f"hook {self._number}'s cleanup")
                await scene.gates.wait(f"hook {self._number}'s cleanup, again")
            elif hook.cleanup == "slow":
                await asyncio.sleep(SLOW_S)
            elif hook.cleanup == "hangs":
                await scene.loop.create_future()
        except asyncio.CancelledError:
            seat.tidied, seat.tidied_at = "interrupted", scene.loop.time() - seat.tidied_at
            raise
        seat.tidied = "finished"
        if hook.cleanup == "raises":
            raise HookError(f"hook {self._number}'s cleanup failed")
        if hook.cleanup == "breaks":
            raise Odd(f"hook {self._number}'s cleanup broke")


class Observed(contextlib.AbstractAsyncContextManager[None]):
    """A context, and what is done to it."""

    def __init__(self, scene: Scene, seat: Seat, context: Any) -> None:
        self._scene = scene
        self._seat = seat
        self._context = context

    async def __aenter__(self) -> None:
        seat = self._seat
        seat.opened, seat.opened_in = self._scene.moment(), asyncio.current_task()
        try:
            await self._context.__aenter__()
        except BaseException as error:
            seat.blocked = error
            raise
        span.set("inside")
        seat.entered = True

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        seat, scene = self._seat, self._scene
        seat.left.append(scene.moment())
        seat.left_in, seat.saw = asyncio.current_task(), error
        seat.cancelling = seat.left_in.cancelling()
        seat.was_complete = all(response._done for response in seat.result.responses)
        seat.span = span.get()
        try:
            return bool(await self._context.__aexit__(kind, error, trace))
        except BaseException as raised:
            seat.raised = raised
            raise


class FilterPlugin:
    """Says of each fallback what its name tells."""

    __name__ = "life filter"

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    @hookimpl
    async def llm_filter_models(self, models: Any) -> Any:
        name = in_question.get()
        if name == "slow":
            await self._scene.gates.wait("the slow filter")
        elif name == "stubborn":
            with contextlib.suppress(asyncio.CancelledError):
                await self._scene.gates.wait("the stubborn filter")
        elif name == "raises":
            raise HookError("the filter failed")
        return [each for each in models if each.model_id != "refused"]


class ExitPlugin:
    """Notes each group that is left."""

    def __init__(self, scene: Scene) -> None:
        self.__name__ = "life exit"
        self._scene = scene

    @hookimpl
    async def llm_group_exit(self, group: Any) -> None:
        self._scene.exits.append(group)
        block = self._scene.story.group
        if block is not None and block.exit_hook == "waits":
            await self._scene.gates.wait("the exit hook")
        elif block is not None and block.exit_hook == "raises":
            raise HookError("the exit hook failed")

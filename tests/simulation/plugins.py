"""The plugins of a scenario, which follow its scripts and record what they observe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from datasette import hookimpl

from .facts import ObservedContext, checked_fallback
from .scenarios import Hook
from .trace import Trace

span: ContextVar[str] = ContextVar("span", default="outside")
# Less than one context may take to clean up, and more than half of it.
SLOW_S = 3.0


class HookError(RuntimeError):
    """An error of a scenario's plugin."""


class Odd(BaseException):
    """A BaseException that is neither an Exception nor the event loop's."""


class Plugin:
    """A plugin of the scenario: its script, and a recorder around it."""

    def __init__(self, trace: Trace, number: int, hook: Hook) -> None:
        self.__name__ = f"simulated {number}"
        self._trace = trace
        self._number = number
        self._hook = hook

    @hookimpl
    def llm_prompt_context(self) -> Any:
        if self._hook.factory == "none":
            return None
        return self._later() if self._hook.factory == "async" else self._context

    async def _later(self) -> Any:
        await self._trace.pauses.wait("an async factory")
        return self._context

    def _context(self, result: Any) -> Any:
        observed = ObservedContext(self._number, self._hook, result)
        self._trace.contexts.append(observed)
        work = self._accountant if self._hook.accountant else self._scripted
        return ObservingContext(self._trace, observed, work(observed, result))

    @contextlib.asynccontextmanager
    async def _accountant(self, observed: ObservedContext, result: Any) -> AsyncIterator[None]:
        money = self._trace.money
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
    async def _scripted(self, observed: ObservedContext, result: Any) -> AsyncIterator[None]:
        hook = self._hook
        await self._before(observed, result)
        limit = asyncio.timeout(hook.timeout_s) if hook.timeout_s else None
        observed.limit = limit
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
                    await self._after(observed, result)
        finally:
            await self._cleanup(observed)

    async def _before(self, observed: ObservedContext, result: Any) -> None:
        hook, wait = self._hook, self._trace.pauses.wait
        if hook.before == "waits":
            await wait(f"hook {self._number} before")
        elif hook.before == "stubborn":
            with contextlib.suppress(asyncio.CancelledError):
                await wait(f"stubborn hook {self._number} before")
        elif hook.before == "raises":
            raise HookError(f"hook {self._number} blocks")
        if hook.callback:
            await result.on_response_done(lambda response: self._callback(observed, response))

    def _callback(self, observed: ObservedContext, response: Any) -> Any:
        observed.reported.append(response)
        if self._hook.callback == "raises":
            raise HookError(f"hook {self._number}'s callback failed")
        waits = self._hook.callback == "waits"
        return self._trace.pauses.wait(f"hook {self._number}'s callback") if waits else None

    async def _after(self, observed: ObservedContext, result: Any) -> None:
        if self._hook.after == "waits":
            await self._trace.pauses.wait(f"hook {self._number} after")
        elif self._hook.after == "raises":
            raise HookError(f"hook {self._number} fails after the yield")
        elif self._hook.after == "reads" and result.response is not None:
            observed.read = await result.response.text()
            await result.response.usage()

    async def _cleanup(self, observed: ObservedContext) -> None:
        hook, trace = self._hook, self._trace
        observed.tidied, observed.tidied_at = "began", trace.loop.time()
        try:
            if hook.cleanup == "waits":
                await trace.pauses.wait(f"hook {self._number}'s cleanup")
                await trace.pauses.wait(f"hook {self._number}'s cleanup, again")
            elif hook.cleanup == "slow":
                await asyncio.sleep(SLOW_S)
            elif hook.cleanup == "hangs":
                await trace.loop.create_future()
        except asyncio.CancelledError:
            observed.tidied, observed.tidied_at = (
                "interrupted",
                trace.loop.time() - observed.tidied_at,
            )
            raise
        observed.tidied = "finished"
        if hook.cleanup == "raises":
            raise HookError(f"hook {self._number}'s cleanup failed")
        if hook.cleanup == "breaks":
            raise Odd(f"hook {self._number}'s cleanup broke")


class ObservingContext(contextlib.AbstractAsyncContextManager[None]):
    """Records how a context is entered and left."""

    def __init__(self, trace: Trace, observed: ObservedContext, context: Any) -> None:
        self._trace = trace
        self._seat = observed
        self._context = context

    async def __aenter__(self) -> None:
        observed = self._seat
        observed.opened, observed.opened_in = self._trace.moment(), asyncio.current_task()
        try:
            await self._context.__aenter__()
        except BaseException as error:
            observed.blocked = error
            raise
        span.set("inside")
        observed.entered = True

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        observed, trace = self._seat, self._trace
        observed.left.append(trace.moment())
        observed.left_in, observed.saw = asyncio.current_task(), error
        observed.cancelling = observed.left_in.cancelling()
        observed.was_complete = all(response._done for response in observed.result.responses)
        observed.span = span.get()
        try:
            return bool(await self._context.__aexit__(kind, error, traceback))
        except BaseException as raised:
            observed.raised = raised
            raise


class FilterPlugin:
    """Decides about each fallback as its name says."""

    __name__ = "simulated filter"

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @hookimpl
    async def llm_filter_models(self, models: Any) -> Any:
        name = checked_fallback.get()
        if name == "slow":
            await self._trace.pauses.wait("the slow filter")
        elif name == "stubborn":
            with contextlib.suppress(asyncio.CancelledError):
                await self._trace.pauses.wait("the stubborn filter")
        elif name == "raises":
            raise HookError("the filter failed")
        return [each for each in models if each.model_id != "refused"]


class ExitPlugin:
    """Records each group that is left."""

    def __init__(self, trace: Trace) -> None:
        self.__name__ = "simulated exit"
        self._trace = trace

    @hookimpl
    async def llm_group_exit(self, group: Any) -> None:
        self._trace.exits.append(group)
        block = self._trace.scenario.group
        if block is not None and block.exit_hook == "waits":
            await self._trace.pauses.wait("the exit hook")
        elif block is not None and block.exit_hook == "raises":
            raise HookError("the exit hook failed")

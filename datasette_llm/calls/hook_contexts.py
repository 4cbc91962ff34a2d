"""The contexts of the hooks around one call: entered in hook order, left in reverse order."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Set
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..errors import HookError, ResponseCancelledError
from ..hooks import dispatch
from .prompt_result import CallbackOwners, Factory, PromptResult
from .task import contained, opening


async def make_factory(plugin: str, call: Callable[[], Any]) -> Factory | None:
    """The context factory that a plugin gives for a call; None where it takes no part.

    Raises:
        HookError: it returned something that cannot make a context.
    """
    factory: Any = call()
    if inspect.isawaitable(factory):
        factory = await factory
    if factory is None:
        return None
    if callable(factory):
        made: Factory = factory
        return made
    raise HookError(
        f"llm_prompt_context of plugin {plugin!r} returned {type(factory).__name__}; return "
        "None, or a function that takes a PromptResult and returns an async context manager"
    )


async def make_context(
    plugin: str, factory: Factory, result: PromptResult
) -> AbstractAsyncContextManager[object]:
    """The async context manager that a plugin's factory makes for a call.

    Raises:
        HookError: the factory made something else.
    """
    context: Any = factory(result)
    if inspect.isawaitable(context):
        context = await context
    if not isinstance(context, AbstractAsyncContextManager):
        raise HookError(
            f"The function that llm_prompt_context of plugin {plugin!r} returned gave "
            f"{type(context).__name__}, not an async context manager; decorate it with "
            "contextlib.asynccontextmanager"
        )
    return context


class Contexts:
    """The open contexts of one call. Belongs to one task, which opens and leaves them.

    Attributes:
        failures: what contexts raised by themselves while they were left, with their plugins.
    """

    def __init__(self) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self._opened: list[tuple[str, AbstractAsyncContextManager[object]]] = []
        self._timeout: asyncio.CancelledError | None = None
        self._timeout_error: ResponseCancelledError | None = None
        self._opening: str | None = None

    @property
    def are_open(self) -> bool:
        """Whether there are any."""
        return bool(self._opened)

    async def open(
        self,
        hooks: Iterable[tuple[str, Callable[[], Any]]],
        result: PromptResult,
        owners: CallbackOwners,
    ) -> None:
        """Ask every hook for a context, then enter them; those entered stay open if one raises.

        Raises:
            Exception: what a hook raised before its `yield`, which blocks the call.
        """
        limit = asyncio.timeout(None)
        try:
            async with limit:
                await self._open(hooks, result, owners, limit)
        except TimeoutError as error:
            if limit.expired() and self._opening is not None:
                raise dispatch.too_late("llm_prompt_context", self._opening) from error
            raise

    async def _open(
        self,
        hooks: Iterable[tuple[str, Callable[[], Any]]],
        result: PromptResult,
        owners: CallbackOwners,
        limit: asyncio.Timeout,
    ) -> None:
        factories = []
        for plugin, call in hooks:
            self._opening = plugin
            _restart(limit)
            factory = await make_factory(plugin, call)
            if factory is not None:
                factories.append((plugin, factory))
        for number, (plugin, factory) in enumerate(factories):
            self._opening = owners.plugin = plugin
            _restart(limit)
            opening.set(number)
            context = await make_context(plugin, factory, result)
            await context.__aenter__()
            self._opened.append((plugin, context))
        opening.set(None)
        self._opening = owners.plugin = None

    def refused_by(self, timed_out: Set[int]) -> str | None:
        """The plugin that kept the contexts from opening; None once all are open.

        Args:
            timed_out: the numbers of the contexts whose own timeouts have cancelled the task,
                as an outer one's may while an inner one opens.
        """
        if self._opening is None or not timed_out:
            return self._opening
        number = min(timed_out)
        return self._opened[number][0] if number < len(self._opened) else self._opening

    def ended_by_timeout(self, cancelled: asyncio.CancelledError) -> ResponseCancelledError:
        """What is raised in the contexts inside the one whose timeout ended the call.

        Args:
            cancelled: what the timeout sent, which its own context gets: it is what
                asyncio.timeout turns into a TimeoutError.
        """
        if self._timeout_error is None:
            self._timeout = cancelled
            self._timeout_error = ResponseCancelledError("A plugin's timeout ended the call")
        return self._timeout_error

    async def leave(
        self,
        error: BaseException | None,
        timed_out: Set[int],
        before_each: Callable[[], None],
    ) -> BaseException | None:
        """Leave every open context, the last one first, whatever any of them raises.

        Args:
            error: what ended the call, raised at each `yield`; None for a success.
            timed_out: the numbers of the contexts whose own timeouts have cancelled the task;
                grows while inner contexts clean up.
            before_each: called before each context is left.

        Returns:
            What ended the call in the end: `error`, unless that was None or a timeout's.
        """
        for number, (plugin, context) in reversed(list(enumerate(self._opened))):
            shown = error
            # Of several timeouts the outermost is the one that ends the call. asyncio.timeout
            # turns what it sent into a TimeoutError only once the others have taken theirs back.
            if timed_out and number == min(timed_out) and error is self._timeout_error:
                shown = self._timeout
            before_each()
            try:
                trace = shown.__traceback__ if shown else None
                await context.__aexit__(type(shown) if shown else None, shown, trace)
            except BaseException as raised:
                error = self._outcome(error, shown, self._blamed(raised, plugin, timed_out), plugin)
        self._opened.clear()
        return error

    def _blamed(self, raised: BaseException, plugin: str, timed_out: Set[int]) -> BaseException:
        """The error of the call for what a context raised."""
        if isinstance(raised, asyncio.CancelledError) and timed_out:
            return self.ended_by_timeout(raised)
        task = asyncio.current_task()
        cut_short = isinstance(raised, asyncio.CancelledError) and task and task.cancelling()
        what = "did not finish its cleanup in time" if cut_short else f"raised {raised!r}"
        return contained(raised, f"llm_prompt_context of plugin {plugin!r} {what}")

    def _outcome(
        self,
        error: BaseException | None,
        shown: BaseException | None,
        raised: BaseException,
        plugin: str,
    ) -> BaseException:
        """What the call ends with after a context raised: the first failure stays primary."""
        if raised is not error:
            self.failures.append((plugin, raised))
        if error is None or (shown is self._timeout and shown is not None):
            return raised
        if raised is not error:
            error.add_note(
                f"Also, llm_prompt_context of plugin {plugin!r} failed while it was left: "
                f"{type(raised).__name__}: {raised}"
            )
        return error


def _restart(limit: asyncio.Timeout) -> None:
    """Give a hook that a page waits for its time."""
    seconds = dispatch.page_waits_s()
    if seconds is not None:
        opening.set(None)  # this is no timeout of a context's own
        limit.reschedule(asyncio.get_running_loop().time() + seconds)

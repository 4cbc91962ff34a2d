"""The contexts of the hooks around one call: opened in hook order, left in reverse order."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from . import dispatch
from .errors import ResponseCancelledError

if TYPE_CHECKING:
    from .calls import PromptResult

# The number of the context that is being opened in this task. A timer that a hook starts
# while its context opens (asyncio.timeout around the `yield`) carries a copy of it, so that
# when the timer cancels the task we know whose timeout it was.
opening: ContextVar[int | None] = ContextVar("datasette_llm_opening", default=None)


class Contexts:
    """The open contexts of one call. Belongs to one task, which opens and leaves them."""

    def __init__(self) -> None:
        self._opened: list[tuple[str, AbstractAsyncContextManager[object]]] = []

    async def open(
        self, factories: list[tuple[str, dispatch.Factory]], result: PromptResult
    ) -> None:
        """Enter the contexts; those already entered stay open if one raises.

        Raises:
            Exception: what a hook raised before its `yield`, which blocks the call.
        """
        for number, (plugin, factory) in enumerate(factories):
            opening.set(number)
            context = await dispatch.make_context(plugin, factory, result)
            await context.__aenter__()
            self._opened.append((plugin, context))
        opening.set(None)

    async def leave(
        self, error: BaseException | None, timed_out: int | None = None
    ) -> BaseException | None:
        """Leave every open context, the last one first, whatever any of them raises.

        Args:
            error: what ended the call, raised at each `yield`; None for a success.
            timed_out: the number of the context whose own timeout cancelled the call. It gets
                the CancelledError that it sent, since that is what asyncio.timeout turns into
                a TimeoutError; the contexts inside it get `error`.

        Returns:
            What ended the call in the end: `error`, unless it was the timeout's or None.
        """
        for number, (plugin, context) in reversed(list(enumerate(self._opened))):
            own_timeout = timed_out == number
            shown = asyncio.CancelledError() if own_timeout else error
            try:
                trace = shown.__traceback__ if shown else None
                await context.__aexit__(type(shown) if shown else None, shown, trace)
            except BaseException as raised:
                if error is None or own_timeout:
                    error = _as_error(raised, plugin)
                elif raised is not error:
                    error.add_note(
                        f"Also, llm_prompt_context of plugin {plugin!r} failed while it was "
                        f"left: {type(raised).__name__}: {raised}"
                    )
        self._opened.clear()
        return error


def _as_error(raised: BaseException, plugin: str) -> BaseException:
    if not isinstance(raised, asyncio.CancelledError):
        return raised
    # Cleanup that hung until it was stopped.
    message = f"llm_prompt_context of plugin {plugin!r} did not finish its cleanup in time"
    return ResponseCancelledError(message)

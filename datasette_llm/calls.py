"""One call, from admission to its true end, in one asyncio task.

The task opens the contexts of the hooks, drives the provider, fills the buffers of the
responses, and leaves the contexts. A prompt is a call with a single request. A chain is a
call whose requests come one at a time, as llm's own chain loop asks for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from . import dispatch
from .contexts import FATAL, Contexts, contained, opening
from .errors import ResponseCancelledError
from .keys import find_key
from .redaction import redact
from .results import PromptResult

if TYPE_CHECKING:
    from .models import WrappedAsyncModel
    from .responses import PromptResponse

# How long one context of a hook may clean up after the call was cancelled.
CLEANUP_S = 5.0

_current: ContextVar[Call | None] = ContextVar("datasette_llm_call", default=None)


class _CallTask(asyncio.Task[None]):
    """A task that notes whose timer cancels it; see `contexts.opening`."""

    call: Call

    def cancel(self, msg: Any | None = None) -> bool:
        number = opening.get()
        if number is not None and _current.get() is self.call:
            self.call.timed_out.add(number)
        return super().cancel(msg)


class Call:
    """A prompt or a chain under way.

    Attributes:
        result: what the contexts of the hooks are told.
        closed: set when everything is over: responses ended, contexts left.
        error: what ended the call; None while it runs, and after a success.
        timed_out: the numbers of the contexts whose own timeouts have cancelled the call.
        chain_readers: how many read the chain, of which one may be left without its end.
    """

    def __init__(self, model: WrappedAsyncModel, text: str | None, *, is_chain: bool) -> None:
        self.model = model
        self.result = PromptResult(model.purpose, model.actor, model._group, is_chain)
        self.closed = asyncio.Event()
        self.admitted = asyncio.Event()
        self.error: BaseException | None = None
        self.timed_out: set[int] = set()
        self.chain_readers = 0
        self._text = text
        self._parent = _current.get()
        self._requests: deque[PromptResponse] = deque()
        self._requested = asyncio.Event()
        self._no_more = False
        self._callback_errors: list[Exception] = []
        self._given_error: BaseException | None = None
        self._cancel_reason: str | None = None
        self._wind_up_reason: str | None = None
        self._leaving = False
        self._key: str | None = None
        self._key_found = False
        self._task: _CallTask | None = None
        self._cut_short_timer: asyncio.TimerHandle | None = None

    # What the outside does to a call

    def start(self) -> None:
        """Begin: from here on the call runs by itself.

        Raises:
            GroupClosedError: the model belongs to a group that has been left.
        """
        self.model._enter(self)
        loop = asyncio.get_running_loop()
        name = f"datasette-llm {self.model.model_id}"
        self._task = _CallTask(self._run(), loop=loop, name=name)
        self._task.call = self
        self._task.add_done_callback(self._task_done)

    def add(self, response: PromptResponse) -> None:
        """Take in a response; it is requested when `request()` is called."""
        self.result.add(response)

    def request(self, response: PromptResponse) -> None:
        """Send this response's request to the provider, after those before it."""
        if self._no_more:
            response._settle(self.error or ResponseCancelledError("The chain is over"))
            return
        self._requests.append(response)
        self._requested.set()

    def finish(self, error: BaseException | None = None) -> None:
        """No more requests will come.

        Args:
            error: why not, if the call has failed outside of a request.
        """
        self._no_more = True
        self._given_error = error
        self._requested.set()

    def wind_up(self, reason: str) -> None:
        """Let what was sent come to its end, and nothing more be sent.

        Args:
            reason: what cancelled a chain that would have gone on.
        """
        self._wind_up_reason = reason
        for response in self.result.responses:
            if response._flight is not None:
                response._flight.readers += 1  # one that was read half-way is not to be stopped
        if self.result.is_chain:
            self.finish()

    def cancel(self, reason: str) -> None:
        """Stop the provider, and let the contexts clean up, each for `CLEANUP_S` at most."""
        task = self._task
        if task is None or task.done() or self._cancel_reason is not None:
            return
        self._cancel_reason = reason
        if not self._leaving:
            asyncio.Task.cancel(task)
        self._arm_cut_short(task)

    def hurry(self) -> None:
        """Nobody waits any longer: each context may clean up for `CLEANUP_S` at most."""
        if self._task is not None and self.under_way and self._cut_short_timer is None:
            self._arm_cut_short(self._task)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the call to stop."""
        return self._cancel_reason is not None

    @property
    def under_way(self) -> bool:
        """Whether the call has begun and not ended."""
        return self._task is not None and not self.closed.is_set()

    def runs_here(self) -> bool:
        """Whether the call belongs to the event loop that is running."""
        return self._task is not None and self._task.get_loop() is asyncio.get_running_loop()

    def encloses_caller(self) -> bool:
        """Whether the code that asks runs inside this call: in its provider or its contexts."""
        call = _current.get()
        while call is not None and call is not self:
            call = call._parent
        return call is self

    def waits_for_caller(self) -> bool:
        """Whether the call cannot go on before the code that asks, which it encloses, has.

        So it is in its own task, and while the contexts are left in any task: they may wait
        for it.
        """
        return self._leaving or asyncio.current_task() is self._task

    def stop_if_cancelled(self) -> None:
        """Raise the cancellation that was asked for, in case it was swallowed."""
        if self._cancel_reason is not None:
            raise asyncio.CancelledError

    def note_callback_errors(self, errors: list[Exception]) -> None:
        """Callbacks of a complete response failed; that reaches the caller, not the contexts."""
        self._callback_errors += errors

    async def key(self, explicit: str | None) -> str | None:
        """The key for this call's requests, looked up once.

        Raises:
            llm.NeedsKeyException: there is none.
        """
        if not self._key_found:
            self._key = await find_key(
                self.model._datasette,
                self.model._model,
                explicit=explicit or self.model.key,
                secret_names=self.model._secret_names,
                actor=self.model.actor,
            )
            self._key_found = True
        return self._key

    # What happens in the task

    async def _run(self) -> None:
        _current.set(self)
        contexts = Contexts()
        error: BaseException | None = None
        try:
            await self._admit(contexts)
            await self._serve()
        except BaseException as raised:
            error = self.error = self._cause(raised, contexts)
        self._leaving = True
        for response in self.result.responses:
            if response._flight is not None:
                response._flight.wake_readers()  # those inside must not wait for the end
        error = await contexts.leave(error, self.timed_out, self._grant_time)
        if error is None and self._callback_errors:
            error = self._callback_errors[0]
        self._settle(error)
        if isinstance(error, FATAL):
            raise error  # the event loop's business

    async def _admit(self, contexts: Contexts) -> None:
        model = self.model
        if dispatch.implemented(model._datasette, "llm_prompt_context"):
            factories = await dispatch.prompt_contexts(
                model._datasette,
                model_id=model.model_id,
                prompt=self._text,
                purpose=model.purpose,
                actor=model.actor,
            )
            await contexts.open(factories, self.result)
        self.admitted.set()

    async def _serve(self) -> None:
        while not self._callback_errors:
            self.stop_if_cancelled()
            while not self._requests:
                if self._no_more:
                    self._conclude()
                    return
                self._requested.clear()
                await self._requested.wait()
            response = self._requests.popleft()
            self.model._sent(response)
            await self._drive(response)
            if not self.result.is_chain:
                return
            response._settle(None)

    def _conclude(self) -> None:
        """The end of a chain: by its own end, by an error outside of a request, or wound up."""
        if self._given_error is not None:
            raise self._given_error
        if self._wind_up_reason is not None:
            last = self.result.responses[-1] if self.result.responses else None
            if last is None or not last.is_last_word():
                raise ResponseCancelledError(self._wind_up_reason)
            self.result.chain_complete = True

    async def _drive(self, response: PromptResponse) -> None:
        try:
            await response._drive()
        except Exception as error:
            clean = redact(error, self._key)
            if clean is error:
                raise
            raise clean from None

    def _cause(self, raised: BaseException, contexts: Contexts) -> BaseException:
        """What the contexts and the caller are told about what ended the call."""
        assert self._task is not None
        if self._cancel_reason is not None and not isinstance(raised, FATAL):
            self.timed_out.clear()
            self._task.uncancel()
            return ResponseCancelledError(self._cancel_reason)
        if not isinstance(raised, asyncio.CancelledError):
            self.timed_out.clear()
            return contained(raised, f"The call was ended by {type(raised).__name__}")
        if self.timed_out:
            # Not taken back here: the asyncio.timeout that sent it does so itself.
            return contexts.ended_by_timeout(raised)
        self._task.uncancel()
        return ResponseCancelledError("The event loop cancelled the call")

    def _settle(self, error: BaseException | None) -> None:
        self.error = error
        if self._cut_short_timer is not None:
            self._cut_short_timer.cancel()
        failure = ResponseCancelledError(f"{type(error).__name__} ended the program")
        for response in self.result.responses:
            response._settle(failure if isinstance(error, FATAL) else error)
        self.model._leave(self)
        self.admitted.set()
        self.closed.set()

    def _cut_short(self) -> None:
        task = self._task
        if task is not None and not task.done():
            asyncio.Task.cancel(task)
            self._arm_cut_short(task)

    def _grant_time(self) -> None:
        # What one context took of its time, or the provider of its own, is not the next one's.
        if self._cut_short_timer is not None and self._task is not None:
            self._cut_short_timer.cancel()
            self._arm_cut_short(self._task)

    def _arm_cut_short(self, task: _CallTask) -> None:
        self._cut_short_timer = task.get_loop().call_later(CLEANUP_S, self._cut_short)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never enters _run().
        if not self.closed.is_set():
            self._settle(ResponseCancelledError(self._cancel_reason or "The call was cancelled"))

"""One call, from admission to its true end, in one asyncio task.

The task opens the contexts of the hooks, drives the provider, fills the buffers of the
responses, and leaves the contexts. A prompt is a call with a single request. A chain is a
call whose requests come one at a time, as llm's own chain loop asks for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..access.keys import find_key
from ..errors import ResponseCancelledError
from ..hooks import dispatch
from .attempt import Attempt
from .hook_contexts import Contexts
from .prompt_result import PromptResult
from .retry import answer
from .task import FATAL, Lifetime

if TYPE_CHECKING:
    from .model import WrappedAsyncModel
    from .response import PromptResponse


class RunningCalls(set["Call"]):
    """The calls of a Datasette instance that have begun and not ended; keeps them alive."""


class Call(Lifetime):
    """A prompt or a chain under way.

    Attributes:
        result: what the contexts of the hooks are told.
        closed: set when everything is over: responses ended, contexts left.
        error: what ended the call; None while it runs, and after a success.
        refused_by: the plugin that kept the call from going to the provider, or None.
        chain_readers: how many read the chain, of which one may be left without its end.
        awaits_turn: whether its request waits for its turn.
        row_id: of the request that its newest response comes from; None before the first.
    """

    def __init__(self, model: WrappedAsyncModel, text: str | None, *, is_chain: bool) -> None:
        super().__init__()
        self.model = model
        self.result = PromptResult(model.purpose, model.actor, model._group, is_chain)
        self.admitted = asyncio.Event()
        self.error: BaseException | None = None
        self.refused_by: str | None = None
        self.chain_readers = 0
        self.awaits_turn = False
        self.row_id: str | None = None
        self._text = text
        self._requests: deque[PromptResponse] = deque()
        self._requested = asyncio.Event()
        self._no_more = False
        self._callback_errors: list[Exception] = []
        self._given_error: BaseException | None = None
        self._wind_up_reason: str | None = None
        self._keys: dict[WrappedAsyncModel, str | None] = {}

    # What the outside does to a call

    def start(self) -> None:
        """Begin: from here on the call runs by itself.

        Raises:
            GroupClosedError: the model belongs to a group that has been left.
        """
        self.model._enter(self)
        self._begin(f"datasette-llm {self.model.model_id}")

    def add(self, response: PromptResponse) -> None:
        """Take in a response; it is requested when `request()` is called."""
        self.result.add(response)

    def request(self, response: PromptResponse) -> None:
        """Send this response's request to the provider, after those before it."""
        if self._no_more:
            reason = self._wind_up_reason or "The chain is over"
            response._settle(self.error or ResponseCancelledError(reason))
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

    def drain(self, reason: str) -> None:
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

    @property
    def draining(self) -> bool:
        """Whether it ends by itself, after what was sent."""
        return self._wind_up_reason is not None

    def note_callback_errors(self, errors: list[Exception]) -> None:
        """Callbacks of a complete response failed; that reaches the caller, not the contexts."""
        self._callback_errors += errors

    async def key(self, model: WrappedAsyncModel, explicit: str | None) -> str | None:
        """The key for this call's requests to a model, looked up once.

        Args:
            model: who is asked.
            explicit: what the caller passed as `key=`.

        Raises:
            llm.NeedsKeyException: there is none.
        """
        if model not in self._keys:
            self._keys[model] = await find_key(
                model._datasette,
                model._model,
                explicit=explicit or model.key,
                secret_names=model._secret_names,
                actor=model.actor,
            )
        return self._keys[model]

    @property
    def used_keys(self) -> frozenset[str]:
        """Those that were found so far: a fallback has a key of its own."""
        return frozenset(key for key in self._keys.values() if key)

    def attempt_at(self, response: PromptResponse) -> Attempt:
        """The first request for a response, which need not have been made."""
        return Attempt(self, response, self.model)

    def may_ask_again(self, response: PromptResponse) -> bool:
        """Whether nothing has come of a response's request, nor of the call, and it goes on."""
        nothing_came = response.is_untouched() and self.result.responses[0] is response
        return nothing_came and not self.is_being_stopped

    # What happens in the task

    async def _run(self) -> None:
        contexts = Contexts()
        error: BaseException | None = None
        try:
            await self._admit(contexts)
            await self._serve()
        except BaseException as raised:
            stopped = self._stopped_from_outside(raised)
            error = self.error = self._cause(raised, contexts.ended_by_timeout)
            self.refused_by = contexts.refused_by(self.timed_out)
            if not stopped:
                self._note_refusal(error)
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
            hooks = dispatch.context_hooks(
                model._datasette,
                model_id=model.model_id,
                prompt=self._text,
                purpose=model.purpose,
                actor=model.actor,
            )
            await contexts.open(hooks, self.result)
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
            await answer(self, response)
            if not self.result.is_chain:
                return
            response._settle(None)
        self.stop_if_cancelled()  # which a provider has swallowed before a callback failed

    def _conclude(self) -> None:
        """The end of a chain: by its own end, by an error outside of a request, or wound up."""
        if self._given_error is not None:
            raise self._given_error
        if self._wind_up_reason is not None:
            last = self.result.responses[-1] if self.result.responses else None
            if last is None or not last.is_last_word():
                raise ResponseCancelledError(self._wind_up_reason)
            self.result.chain_complete = True

    def _note_refusal(self, error: BaseException) -> None:
        log, plugin = self.model._log, self.refused_by
        if log is not None and plugin is not None and not isinstance(error, FATAL):
            log.refused(self, plugin, error)

    def _settle(self, error: BaseException | None) -> None:
        self.error = error
        failure = ResponseCancelledError(f"{type(error).__name__} ended the program")
        for response in self.result.responses:
            response._settle(failure if isinstance(error, FATAL) else error)
        self.model._leave(self)
        self.admitted.set()
        self._close()

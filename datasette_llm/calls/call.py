"""One prompt or chain, in one task, from opening the hook contexts to closing them.

The task opens the contexts of the hooks, drives the provider, fills the buffers of the
responses, and leaves the contexts. A prompt is a call with a single request. A chain is a
call whose requests come one at a time, as llm's own chain loop asks for them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from .. import instance
from ..access.hook_failures import HookFailures
from ..access.quoting import keys_of_site
from ..errors import ResponseCancelledError
from ..events import Outcome, RequestStarted, never_sent, unsent
from ..hooks import dispatch
from ..loop_end import check_each_second
from ..providers.failures import failure_message
from ..redaction import Keys, redact
from ..tags.values import NO_TAGS, Tags
from ..telemetry.spans import ChainSpan, is_traced, note_unsent
from .attempt import Attempt
from .cache import CachedPrompt
from .cache_mode import CacheMode
from .context import CallContext
from .hook_contexts import Contexts
from .pace import pace
from .response import PromptResponse
from .retry import answer
from .route import RoutedModel
from .task import FATAL


class RunningCalls(set["Call"]):
    """The calls of a Datasette instance that have begun and not ended; keeps them alive."""

    def __init__(self) -> None:
        super().__init__()
        check_each_second(self._check)

    def _check(self) -> None:
        """End the calls whose event loops were closed; in a thread."""
        for call in list(self):
            if call.is_stranded:
                call.abandon()


class Call(CallContext):
    """A prompt or a chain that runs.

    Attributes:
        admitted: set when the contexts of the hooks are open, or the call has ended.
        error: what ended the call; None while it runs, and after a success.
        refused_by: the plugin that kept the call from going to the provider, or None.
        chain_readers: how many read the chain, of which one may be left without its end.
        at_end: called with what ended the call, or None, before it is closed.
        began: when it was made, in seconds, by the monotonic clock.
        response_cache: whether the response cache is used.
        chain_span: the span of a chain that has been admitted; None where nothing collects spans.
    """

    response_cache: CacheMode = False  # no attribute of an instance without, for its memory

    def __init__(
        self, model: RoutedModel, text: str | None, tags: Tags = NO_TAGS, *, is_chain: bool
    ) -> None:
        """
        Args:
            model: the model that is asked for.
            text: the text that the caller gave, or None.
            tags: its tags.
            is_chain: whether it is a chain.
        """
        super().__init__(model, tags, is_chain=is_chain)
        self.admitted = asyncio.Event()
        self.error: BaseException | None = None
        self.refused_by: str | None = None
        self.chain_readers = 0
        self.at_end: list[Callable[[BaseException | None], None]] = []
        self.began = time.monotonic()
        self.chain_span: ChainSpan | None = None
        self._text = text
        self._requests: deque[PromptResponse] = deque()
        self._requested = asyncio.Event()
        self._no_more = False
        self._callback_errors: list[Exception] = []
        self._given_error: BaseException | None = None
        self._drain_reason: str | None = None
        self._running_calls: RunningCalls | None = None

    # What the outside does to a call

    def start(self) -> None:
        """Begin the call's task.

        Raises:
            GroupClosedError: the model belongs to a group that has been left.
        """
        if self.route.group is not None:
            self.route.group.enter(self)
        self._running_calls = instance.of(self.route.datasette, RunningCalls)
        self._running_calls.add(self)
        pace.begun += 1
        self._begin(f"datasette-llm {self.model.model_id}")

    def add(self, response: PromptResponse) -> None:
        """Take in a response; it is requested when `request()` is called."""
        self.result.add(response)

    def request(self, response: PromptResponse) -> None:
        """Send this response's request to the provider, after those before it."""
        if self._no_more:
            reason = self._drain_reason or "The chain is over"
            response.settle(self.error or ResponseCancelledError(reason))
            return
        self._requests.append(response)
        self._requested.set()

    def finish(self, error: BaseException | None = None) -> None:
        """End the call after the requests already sent.

        Args:
            error: why not, if the call has failed outside of a request.
        """
        self._no_more = True
        self._given_error = error
        self._requested.set()

    def drain(self, reason: str) -> None:
        """Finish sent requests, refuse new ones.

        Args:
            reason: what cancelled a chain that would have gone on.
        """
        self._drain_reason = reason
        for response in self.result.responses:
            if response.stream_state is not None:
                response.stream_state.readers += (
                    1  # one that was read half-way is not to be stopped
                )
        if self.result.is_chain:
            self.finish()

    @property
    def draining(self) -> bool:
        """Whether it ends by itself, after what was sent."""
        return self._drain_reason is not None

    def note_callback_errors(self, errors: list[Exception]) -> None:
        """Callbacks of a complete response failed; that reaches the caller, not the contexts."""
        self._callback_errors += errors

    # What happens in the task

    async def _run(self) -> None:
        pace.begun = 0
        contexts = Contexts()
        error: BaseException | None = None
        try:
            if self.response_cache is not False:
                await self._look_up()
            await self._admit(contexts)
            if self.result.is_chain and is_traced():
                await self._serve_traced()
            else:
                await self._serve()
        except BaseException as raised:
            stopped = self._stopped_from_outside(raised)
            error = self.error = self._cause(raised, contexts.ended_by_timeout)
            self.refused_by = contexts.refused_by(self.timed_out)
            if not stopped:
                error = self.error = await self._note_refusal(error)
        self._leaving = True
        if dispatch.page_waits_s() is not None:
            self.hurry()
        for response in self.result.responses:
            if response.stream_state is not None:
                response.stream_state.wake_readers()  # those inside must not wait for the end
        error = await contexts.leave(error, self.timed_out, self._grant_time)
        if error is None and self._callback_errors:
            error = self._callback_errors[0]
        if error is not None and (failures := [*self.owners.failures, *contexts.failures]):
            error = await self._note_failures(failures, error)
        self._settle(error)
        if isinstance(error, FATAL):
            raise error  # the event loop's business

    async def _look_up(self) -> None:
        response = self.result.responses[0]
        self.cached = await CachedPrompt.of(self.route, response, self.response_cache)
        self.result.cached = self.cached is not None and self.cached.hit is not None

    async def _admit(self, contexts: Contexts) -> None:
        model, datasette = self.model, self.route.datasette
        if dispatch.implemented(datasette, "llm_prompt_context"):
            hooks = dispatch.context_hooks(
                datasette,
                model_id=model.model_id,
                prompt=self._text,
                purpose=model.purpose,
                actor=model.actor,
            )
            await contexts.open(hooks, self.result, self.owners)
            if self.cached is not None and contexts.are_open:
                await self._look_again(self.cached)

    async def _look_again(self, cached: CachedPrompt) -> None:
        """Have a prompt that a hook has changed asked by itself: the cache has no part in it."""
        if not await cached.is_asked_by(self.result.responses[0]):
            self.cached, self.result.cached = None, False

    async def _serve_traced(self) -> None:
        """Serve a chain inside a span."""
        self.chain_span = span = ChainSpan(self.route.target)
        raised: BaseException | None = None
        try:
            await self._serve()
        except BaseException as error:
            raised = error
            raise
        finally:
            first = self.result.response
            started = self._never_sent() if first is None else self._first_request(first)
            span.end(started, self.outcome(raised), raised, len(self.result.responses))

    async def _serve(self) -> None:
        self.admitted.set()
        while not self._callback_errors:
            self.stop_if_cancelled()
            while not self._requests:
                if self._no_more:
                    self._conclude()
                    return
                self._requested.clear()
                await self._requested.wait()
            response = self._requests.popleft()
            if self.route.group is not None:
                self.route.group.responses.append(response)
            await answer(self, response)
            if not self.result.is_chain:
                return
            response.settle(None)
        self.stop_if_cancelled()  # which a provider has swallowed before a callback failed

    def _conclude(self) -> None:
        """The end of a chain: by its own end, by an error outside of a request, or wound up."""
        if self._given_error is not None:
            raise self._given_error
        if self._drain_reason is not None:
            last = self.result.responses[-1] if self.result.responses else None
            if last is None or not last.ends_chain:
                raise ResponseCancelledError(self._drain_reason)
            self.result.chain_complete = True

    async def _note_refusal(self, error: BaseException) -> BaseException:
        """The error of a call that a hook has refused, once that is noted and recorded."""
        plugin = self.refused_by
        if plugin is None or isinstance(error, FATAL):
            return error
        keys = await self._keys_in_reach()
        error = redact(error, keys)
        self._record_refusal(plugin, error, keys)
        self._note_hook(plugin, error, keys)  # after the row, which names the plugin by itself
        return error

    def _record_refusal(self, plugin: str, error: BaseException, keys: Keys) -> None:
        response, route = self.result.response, self.route
        # A chain has none before its first step.
        started = self._never_sent(keys) if response is None else self._first_request(response)
        finished = unsent(
            started,
            Outcome.BLOCKED,
            error,
            keys,
            plugin,
            failure_kind="blocked",
            message=failure_message(error, "blocked"),
        )
        if route.recorder is not None:
            route.recorder.never_sent(started, finished)
        note_unsent(started, finished, route.target.telemetry, route.target.model)

    def _first_request(self, response: PromptResponse) -> RequestStarted:
        return Attempt(self, response, self.model).started

    def _never_sent(self, keys: Keys = None) -> RequestStarted:
        route = self.route
        return never_sent(
            self.model.model_id,
            route.purpose,
            route.actor,
            route.group_id,
            keys or self.used_keys,
            self.result.tags,
        )

    async def _note_failures(
        self, failures: list[tuple[str, BaseException]], error: BaseException
    ) -> BaseException:
        """The error of a call whose hooks failed once it had begun; its row names them, too."""
        keys = await self._keys_in_reach()
        said = [self._note_hook(plugin, failure, keys) for plugin, failure in failures]
        if self.route.recorder is not None and self.row_id is not None:
            self.route.recorder.hook_failed(self.row_id, ". ".join(said))
        return redact(error, keys)

    async def _keys_in_reach(self) -> frozenset[str]:
        """Every key that a hook may have read; those of the call where no others can be read."""
        response = self.result.response
        given = response.secret_text if response is not None else None
        own = self.used_keys | {given} if given else self.used_keys
        try:
            return own | await keys_of_site(self.route.datasette)
        except (Exception, asyncio.CancelledError):  # the end of the call comes, whatever happens
            return own

    def _note_hook(self, plugin: str, error: BaseException, keys: Keys) -> str:
        """Tell the caller, by a note, and the administrator which plugin's context raised."""
        failures = instance.of(self.route.datasette, HookFailures)
        line = failures.note("llm_prompt_context", plugin, error, keys)
        note = f"Raised by llm_prompt_context of plugin {plugin!r}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return line

    def _settle(self, error: BaseException | None) -> None:
        self.error = error
        failure = error
        if isinstance(error, FATAL):
            failure = ResponseCancelledError(f"{type(error).__name__} ended the program")
        for response in self.result.responses:
            response.settle(failure)
        while self.at_end:  # emptied, so that a call that is over is freed at once
            self.at_end.pop()(error)
        if self.route.group is not None:
            self.route.group.leave(self)
        if self._running_calls is not None:
            self._running_calls.discard(self)
        self.admitted.set()
        self._close()

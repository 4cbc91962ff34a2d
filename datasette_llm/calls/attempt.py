"""One attempt to have a response answered: the one door to the provider.

Its permit, its row in the call log, its span, its timeouts, its key and the request itself stand
here, in the order in which they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from functools import partial
from typing import Any

import llm
from llm.parts import StreamEvent

from .. import instance
from ..access.call_policy import Limit
from ..access.pseudonyms import pseudonym
from ..access.snapshot import Endpoint
from ..errors import FailureKind, NotRecordedError, ProviderError
from ..events import (
    Outcome,
    RequestFinished,
    RequestStarted,
    request_finished,
    request_started,
    unsent,
)
from ..log.rows import Content, content_statements, weighed
from ..providers.activity import Activity, activity
from ..providers.chunks import WellFormedChunks
from ..providers.failures import failure_message, kind_of
from ..providers.openai_clients import Clients
from ..providers.receipts import receipt_of
from ..providers.sync_adapter import ThreadedModel
from ..redaction import Keys, redact
from ..sanitize import new_id
from ..telemetry.content import said
from ..telemetry.spans import After, RequestSpan, note_unsent
from .cache import CachedPrompt
from .context import CallContext
from .limiter import LimiterRegistry, Permit
from .response import PromptResponse, StreamState
from .route import RoutedModel
from .shared_request import SharedRequest
from .timeout import Deadline

_NOTHING = contextlib.nullcontext()


class Attempt:
    """One request to a provider.

    Attributes:
        call: the call that it is made for.
        response: what it fills.
        model: the model that is asked.
        number: 1 for the first attempt at this response.
        id: of its row in the call log; of a first attempt the response's.
        permit: its places in the concurrency limiters; None where nothing is limited.
        shared: what it rides along with; None before, and where it asks by itself.
        span: its span; None before it is sent, and where nothing collects telemetry.
    """

    __slots__ = (
        "_after",
        "_began",
        "_cached",
        "_end",
        "_failed",
        "_headers",
        "_keys",
        "_started",
        "_waited_s",
        "call",
        "id",
        "model",
        "number",
        "permit",
        "response",
        "route",
        "shared",
        "span",
    )

    def __init__(
        self,
        call: CallContext,
        response: PromptResponse,
        model: RoutedModel,
        after: Attempt | None = None,
    ) -> None:
        """
        Args:
            call: the call that it is made for.
            response: what it fills.
            model: the model that is asked.
            after: the attempt before, or None.
        """
        self.call = call
        self.response = response
        self.model = model
        self.route = model.route
        self.number: int = 1 if after is None else after.number + 1
        self.id = response.id if after is None else new_id()
        self.permit: Permit | None = None
        self.span: RequestSpan | None = None
        self._after = after.as_link(model) if after is not None else None
        # What to redact: before a key is found, what the caller gave may be one.
        self._keys: Keys = call.used_keys or response.secret_text
        self._began = 0.0
        self._end: float | None = None
        self._headers: list[Mapping[str, str]] = []  # of its responses, where they are known
        self._started: RequestStarted | None = None
        # The answer of a fallback is not kept.
        self._cached = call.cached if model is call.model else None
        self.shared: SharedRequest | None = None
        # What the attempt before has ridden along with.
        self._failed = after.shared if after is not None else None
        self._waited_s: float | None = None

    async def run(self, end: float | None) -> None:
        """Make the request, and run it to its end.

        Args:
            end: when the time of the prompt is over, by the clock of the event loop, or None.

        Raises:
            Exception: what the provider raised, without the key.
            ResponseTimeoutError: it took too long.
            NotRecordedError: it cannot be recorded, and the configuration requires it.
        """
        clean: BaseException | None = None
        self._end = end
        self.call.result.begin(self.id)
        try:
            if self._cached is not None and self._cached.hit is None:
                await self._share(self._cached)
            if self.route.target.call_policy.limits and self._asks_provider:
                await self._acquire_permit()
            if self.call.result.tags:
                await self._learn_key()
            if self.route.recorder is None:
                await self._send()
            else:
                await self._commit_row()
                await self._send_recorded()
        except Exception as error:
            clean = redact(error, self.call.used_keys)
            if clean is error:
                raise
        finally:
            if self.shared is not None:
                await self.shared.leave(self)
            if self.permit is not None:
                self.permit.end()
        if clean is not None:
            raise clean  # outside `except`, so that `__context__` does not hold the original

    @property
    def started(self) -> RequestStarted:
        """The request as values; made once."""
        if self._started is None:
            result = self.call.result
            self._started = request_started(
                self.response,
                request_id=self.id,
                attempt=self.number,
                model_id=self.model.model_id,
                purpose=self.model.purpose,
                actor=self.model.actor,
                group_id=self.route.group_id,
                chain=result.responses if result.is_chain else None,
                waited_s=self._waited_s,
                keys=self._keys,
                repaired_id=self.response.answer.repaired_id if self.response.answer else None,
                tags=result.tags,
                sized=self.route.recorder is not None,
            )
        return self._started

    def as_link(self, model: RoutedModel) -> After | None:
        """What the span of the next attempt links to; None without a span.

        Args:
            model: the model that the next attempt asks.
        """
        if self.span is None:
            return None
        return After(self.span.context, "retry" if model is self.model else "fallback")

    @property
    def outlives_request(self) -> bool:
        """Whether the request has ended and the thread that computes it has not."""
        return self.permit is not None and self.permit.outlives_request

    def _while_time_is_left(self) -> AbstractAsyncContextManager[object]:
        """What ends a wait before the request when the time of the prompt is over."""
        if self._end is None:
            return _NOTHING
        return Deadline(self._end, self.call.route.target.call_policy.timeout_s)

    @property
    def _asks_provider(self) -> bool:
        """Whether it makes a request, rather than get the answer of another one."""
        if self._cached is None:
            return True
        return self.shared is not None and not self.shared.ready.is_set()

    # The steps, in their order

    async def _share(self, cached: CachedPrompt) -> None:
        """Ride along with an equal request, or let equal ones ride along with this one."""
        await self._learn_key()
        async with self._while_time_is_left():
            key = self.call.known_key(self.model)
            self.shared = await cached.share(self, key, self._failed)

    async def _acquire_permit(self) -> None:
        self.permit = Permit()
        limiters = instance.of(self.route.datasette, LimiterRegistry)
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.call.awaited_permit = self.permit
        try:
            async with self._while_time_is_left():
                await self.permit.acquire(limiters, self.route.target.call_policy.limits)
        except BaseException as error:
            self._waited_s = loop.time() - began
            self._record_unsent(error)
            raise
        finally:
            self.call.awaited_permit = None
        self._waited_s = loop.time() - began
        self.call.waited_s += self._waited_s

    async def _learn_key(self) -> None:
        """Look up the key before the values are made, for a tag of a user's data may hold it."""
        with contextlib.suppress(Exception):  # of plugins and files; the request raises it again
            async with self._while_time_is_left():
                await self.call.key(self.model, self.response.caller_key)
        self._note_keys()

    def _note_keys(self) -> None:
        """Note what must not be shown: the keys of the call, and an endpoint's credentials."""
        self._keys, endpoint = self.call.used_keys or self._keys, self.route.target.endpoint
        if endpoint is not None:
            given = {self._keys} if isinstance(self._keys, str) else self._keys or ()
            self._keys = endpoint.credentials.union(given)

    async def _commit_row(self) -> None:
        recorder, policy = self.route.recorder, self.route.target.log
        assert recorder is not None
        assert policy is not None
        self._began = time.monotonic()
        started = self.started  # before the answer is there, which says what it repairs
        if self._cached and self._is_recorded_whole:
            return
        try:
            async with self._while_time_is_left():
                committed = await recorder.commit(started)
        except BaseException as error:
            # Ended while it waits: the row may be written already, and needs its end.
            self._record(self._finished(error))
            raise
        if not committed and policy.required:
            failed = recorder.writer.failure or "a row that was not taken; see the log"
            refusal = NotRecordedError(
                "The call was not made, because it cannot be recorded and log.required is set. "
                f"Writing failed with {failed}"
            )
            blocked_by = "configuration (log.required)"
            finished = self._finished(refusal, Outcome.BLOCKED, blocked_by)
            self._record(finished)
            self._trace_unsent(finished)
            raise refusal

    async def _send_recorded(self) -> None:
        """Send the request, and record how it ended."""
        try:
            finished = await self._send()
        except BaseException as error:
            self._record(self._finished(error))
            raise
        self._record(finished)

    async def _send(self) -> RequestFinished:
        """Send the request inside a span, within its timeouts."""
        self.span = RequestSpan.begin(self.route.target, lambda: self.started, self._after)
        self._began = time.monotonic()
        state, idle_timeout_s = (
            self.response.stream_state,
            self.route.target.call_policy.idle_timeout_s,
        )
        assert state is not None
        # Callbacks of a complete response that prompt would wait for others, who wait for us.
        state.on_done = self.permit.end if self.permit is not None else None
        try:
            if self._end is None and idle_timeout_s is None:
                await self.response.fill(
                    self._events(self._cached) if self._cached else self._request()
                )
            else:
                await self._fill_in_time(state, idle_timeout_s)
            misfit = await self._misfit()
            if self._cached is not None and self._pays:
                await self._cached.check_files()
        except BaseException as error:
            self._conclude(error, error)
            raise
        return self._conclude(misfit)

    def _conclude(
        self, error: BaseException | None, raised: BaseException | None = None
    ) -> RequestFinished:
        """How a request ended that was sent; in its span, and noted for the hooks."""
        finished = self._finished(error)
        if self._cached is not None and finished.outcome is Outcome.OK:
            self._keep(self._cached, finished)
        self.call.result.end(finished, self.model.model_id, self.route.target)
        if self.span is not None:
            content = self._said(finished) if self.route.target.telemetry.content else None
            stream = self.response.stream
            self.span.end(finished, raised, streaming=stream, content=content)
        return finished

    def _said(self, finished: RequestFinished) -> Callable[[], dict[str, Any]]:
        response = self._response_now(finished)
        ended = "stop" if finished.outcome is Outcome.OK else finished.outcome
        reason = str(finished.finish_reason or ended)
        return partial(said, response.prompt, response.short_messages, reason, self._keys)

    async def _misfit(self) -> Exception | None:
        """Why `structured()` fails by a complete answer, or None."""
        answer = self.response.answer
        if answer is None:
            return None
        self.response.answer = None  # which refers back to it
        return await answer.failure(self.response)

    async def _fill_in_time(self, state: StreamState, idle_timeout_s: float | None) -> None:
        timeout_s = self.call.route.target.call_policy.timeout_s
        async with Deadline(self._end, timeout_s, idle_timeout_s) as deadline:
            state.on_event, state.on_done = deadline.event, partial(self._done, deadline)
            try:
                await self.response.fill(
                    self._events(self._cached) if self._cached else self._request()
                )
            finally:
                state.on_event = state.on_done = None  # the next attempt may have none

    def _done(self, deadline: Deadline) -> None:
        deadline.stop()
        if self.permit is not None:
            self.permit.end()

    def unpaid(self) -> None:
        """Note that another call has paid for its answer (called by the cache)."""
        self.call.result.cached = True

    @property
    def _pays(self) -> bool:
        """Whether the tokens of a complete answer are this request's own."""
        return self.shared is not None and self.shared.payer_id == self.id

    @property
    def _is_recorded_whole(self) -> bool:
        """Whether its row is written at its end, as nothing is sent that has to be on record."""
        policy = self.route.target.log
        is_hit = self._cached is not None and self._cached.hit is not None
        return is_hit and policy is not None and not policy.required

    def _keep(self, cached: CachedPrompt, finished: RequestFinished) -> None:
        if self._pays:
            cached.keep(self.response, finished, self._keys)

    def _events(self, cached: CachedPrompt) -> AsyncGenerator[str | StreamEvent, None]:
        """What comes from the response cache, from an equal request, or from the provider."""
        shared = self.shared
        if shared is None:
            return cached.replay(self)
        if not shared.ready.is_set():
            given = self.response
            # Its own, as riders may go before the request ends.
            filled = PromptResponse(
                given.prompt, self.model, given.stream, conversation=given.conversation
            )
            shared.headers = self._headers
            ended = self.permit.share() if self.permit is not None else None
            shared.begin(self._request(filled, shared.alive), filled, ended)
        return cached.ride(self, shared)

    async def _request(
        self, filled: PromptResponse | None = None, alive: Callable[[], None] | None = None
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """What comes from the provider.

        Args:
            filled: what the provider sets attributes of; None for the response itself.
            alive: called at a sign of life; None for what the response has for its events.
        """
        response, target = filled or self.response, self.route.target
        model = target.model
        arguments: dict[str, Any] = {"stream": response.stream, "response": response}
        key = await self.call.key(self.model, self.response.caller_key)
        self._note_keys()
        if isinstance(model, llm.AsyncKeyModel):
            arguments["key"] = key
        if isinstance(model, ThreadedModel) and self.permit is not None:
            arguments["ended"] = self.permit.transfer()
            limits = target.call_policy.limits
            arguments["alone"] = Limit(("model", self.model.model_id), 1) in limits
        if target.endpoint is not None:
            arguments["about_caller"] = self._about_caller(target.endpoint)
        on_event = alive or (response.stream_state.on_event if response.stream_state else None)
        activity.set(Activity.of(on_event, target.call_policy.idle_timeout_s, self._headers))
        source = model.execute(response.prompt, conversation=response.conversation, **arguments)
        chunks = WellFormedChunks(getattr(model, "sync_model", model))
        # llm asks for no more than an async iterator, which need not have aclose().
        closing = aclosing(source) if hasattr(source, "aclose") else nullcontext()
        # An empty event counts as a character, since those may never end either.
        max_chars = left = target.call_policy.max_answer_chars
        async with Clients(), closing:
            async for chunk in source:
                left -= (len(chunk) if type(chunk) is str else _chars_of(chunk)) or 1
                if left < 0:
                    raise _too_long(self.model.model_id, max_chars)
                if type(chunk) is str and chunk.isascii() and not chunks.pending:
                    yield chunk  # nearly always
                else:
                    for well_formed in chunks.of(chunk):
                        yield well_formed
            for well_formed in chunks.rest():
                yield well_formed

    def _about_caller(self, endpoint: Endpoint) -> dict[str, Any]:
        """What an endpoint gets about the caller, as its settings say."""
        fields, found = endpoint.caller_fields, dict[str, Any]()
        if "user" in fields and (user := pseudonym(self.route.datasette, self.model.actor)):
            found["user"] = user
        if "metadata" in fields and (tags := self.started.tags):
            # As LiteLLM has them.
            found["metadata"] = {"tags": [f"{name}:{value}" for name, value in tags.items()]}
        return found

    # How it ended

    def _finished(
        self,
        error: BaseException | None,
        outcome: Outcome | None = None,
        blocked_by: str | None = None,
    ) -> RequestFinished:
        outcome = outcome or self.call.outcome(error)
        if error is not None and outcome is Outcome.CANCELLED:
            error = self.call.public_error(error)
        state = self.response.stream_state
        first = state.first_event_at if state is not None else None
        kind = _kind(error, outcome)
        response, receipt = self.response, None
        headers, duration_s = self._headers, time.monotonic() - self._began
        if self.shared is not None and self.shared.payer_id and (self._pays or error is None):
            headers = self.shared.headers  # it may have gone on without the rider that made it
            if self._pays and error is None:
                duration_s = self.shared.duration_s  # the payer may have joined late
        if headers or response.response_json is not None or error is not None:
            receipt = receipt_of(headers, response.response_json, error, streamed=response.stream)
        finished = request_finished(
            self.id,
            response,
            outcome,
            error,
            keys=self._keys,
            duration_s=duration_s,
            first_chunk_s=None if first is None else first - self._began,
            blocked_by=blocked_by,
            finish_reason=self.response.finish_reason,
            failure_kind=kind,
            message=None if error is None else failure_message(error, kind),
            receipt=receipt,
        )
        return finished if self._cached is None else self._cached.noted(finished)

    def _record(self, finished: RequestFinished) -> None:
        recorder, policy = self.route.recorder, self.route.target.log
        if recorder is None or policy is None:
            return
        content = None
        if policy.content:
            response = self._response_now(finished)
            content = Content(
                partial(
                    content_statements,
                    self.id,
                    response.prompt,
                    response.short_messages,
                    self._keys,
                ),
                weighed(response.prompt)[0] + response.bytes_so_far,
            )
        recorder.finish(
            finished,
            model_id=self.model.model_id,
            price=self.route.target.price,
            exact_price=self.route.target.exact_price,
            content=content,
            started=self.started if self._cached and self._is_recorded_whole else None,
        )

    def _response_now(self, finished: RequestFinished) -> PromptResponse:
        """The response as it is; one that failed may be asked again before it is written."""
        if finished.outcome is not Outcome.OK and finished.first_chunk_s is None:
            return copy.copy(self.response)
        return self.response

    def _record_unsent(self, error: BaseException) -> None:
        outcome, shown = self.call.outcome(error), self.call.public_error(error)
        kind = _kind(shown, outcome)
        finished = unsent(
            self.started,
            outcome,
            shown,
            self._keys,
            failure_kind=kind,
            message=failure_message(shown, kind),
        )
        if self.route.recorder is not None:
            self.route.recorder.never_sent(self.started, finished)
        self._trace_unsent(finished)

    def _trace_unsent(self, finished: RequestFinished) -> None:
        target = self.route.target
        note_unsent(self.started, finished, target.telemetry, target.model)


def _kind(error: BaseException | None, outcome: Outcome) -> FailureKind | None:
    """The kind of a failure; a cancellation is none."""
    return None if error is None or outcome is Outcome.CANCELLED else kind_of(error)


def _chars_of(event: object) -> int:
    text = getattr(event, "chunk", event)
    return len(text) if isinstance(text, str) else 0


def _too_long(model_id: str, max_chars: int) -> ProviderError:
    return ProviderError(
        f"The answer of model {model_id!r} was ended, because it is longer than {max_chars:,} "
        "characters, which is the max_answer_chars of the configuration of datasette-llm",
        kind="bad_answer",
    )

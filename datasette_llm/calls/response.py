"""The response that callers hold: llm's own, filled by a call's task, read by anyone."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import llm
from llm.parts import StreamEvent

from ..errors import LLMError
from ..hooks import dispatch

if TYPE_CHECKING:
    from .call import Call
    from .limiter import Turn
    from .model import WrappedAsyncModel
    from .timeout import Deadline


DoneCallback = Callable[["PromptResponse"], Awaitable[object] | object]


class PromptResponse(llm.AsyncResponse):
    """An `llm.AsyncResponse` that any number of readers follow, while it arrives or later.

    A failed response stays failed: whoever reads it gets its error. One that is being read
    is stopped at the provider when its last reader is cancelled, or goes away half-way and
    nobody reads on within half a second. One that nobody ever reads completes by itself.
    """

    _flight: Flight | None = None
    _failure: Exception | None = None
    _failure_trace: TracebackType | None = None
    _failure_seen = False
    _position = 0  # of anext(response), which is a reader of its own

    @classmethod
    def adopt(cls, response: llm.AsyncResponse, call: Call) -> Self:
        """Make a response of llm's one of ours.

        llm's `prompt()` methods and its chain loop build and check the response, and name
        its class themselves; a change of class is what leaves all of that to llm.
        """
        response.__class__ = cls
        ours = cast(Self, response)
        ours._flight = Flight(call)
        call.add(ours)
        return ours

    # Reading: everything public that llm offers goes through these four.

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts()

    async def __anext__(self) -> str:
        async with Reader(self) as reader:
            while True:
                while self._position < len(self._stream_events):
                    event = self._stream_events[self._position]
                    self._position += 1
                    if event.type == "text":
                        return str(event.chunk)
                if not await reader.wait():
                    raise StopAsyncIteration

    async def astream_events(self) -> AsyncIterator[StreamEvent]:
        """Every event of the response from its first, as the provider produces them."""
        async with Reader(self) as reader:
            position = 0
            while True:
                while position < len(self._stream_events):
                    yield self._stream_events[position]
                    position += 1
                if not await reader.wait():
                    break

    async def _force(self) -> Self:
        async with Reader(self) as reader:
            while await reader.wait():
                pass
        return self

    async def _texts(self) -> AsyncIterator[str]:
        if self._flight is None and not self._stream_events:
            # Rebuilt from storage: there is text, but there were no events.
            self._raise_failure()
            for chunk in self._chunks:
                yield chunk
            return
        events = self.astream_events()
        try:
            async for event in events:
                if event.type == "text":
                    yield event.chunk
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator

    # llm's methods that need more than the above

    async def reply(self, prompt: str | None = None, **kwargs: Any) -> PromptResponse:
        """Prompt again with this exchange as history, once this response is complete.

        Takes what llm's `reply()` takes. The new prompt has the same key, purpose, actor and
        hooks, and like `model.prompt()` returns at its first event.
        """
        await self._force()
        if self._key is not None:
            kwargs.setdefault("key", self._key)
        # llm's reply() hands on what model.prompt() returns, and ours is a coroutine.
        pending: Any = await super().reply(prompt, **kwargs)
        return cast(PromptResponse, await pending)

    def text_or_raise(self) -> str:
        """The text of a complete response.

        Raises:
            ValueError: it is not complete yet.
            Exception: it failed, with this.
        """
        self._raise_failure()
        return super().text_or_raise()

    def tool_calls_or_raise(self) -> list[llm.ToolCall]:
        """The tool calls of a complete response.

        Raises:
            ValueError: it is not complete yet.
            Exception: it failed, with this.
        """
        self._raise_failure()
        return super().tool_calls_or_raise()

    async def _on_done(self) -> None:
        flight = self._flight
        if flight is not None and flight.deadline is not None:
            flight.deadline.stop()
        if flight is not None and flight.turn is not None:
            flight.turn.end()  # callbacks that prompt would wait for others, who wait for us
        errors = await run_callbacks(self.done_callbacks, self)
        self.done_callbacks.clear()
        if flight is not None:
            flight.call.note_callback_errors(errors)

    def _ensure_async_generator(self) -> None:
        # llm would look the key up here, synchronously; execute() does it for us.
        if not hasattr(self, "_generator"):
            model: Any = self.model
            self._generator = model.execute(
                self.prompt, self.stream, self, self.conversation, key=self._key
            )

    # Filling, called by the call

    async def _drive(self) -> None:
        """Run the request to its end; `_done` and llm's done callbacks included."""
        flight = self._flight
        assert flight is not None
        events: Any = super().astream_events()  # type: ignore[no-untyped-call]  # llm's
        # Closed here, so that the provider cleans up in this task and before the contexts do.
        async with contextlib.aclosing(events):
            async for _ in events:
                if flight.first_event_at is None:
                    flight.first_event_at = time.monotonic()
                if flight.deadline is not None:
                    flight.deadline.event()
                flight.wake_readers()
                # A provider that has its next chunk at hand does not wait for anything, and
                # the readers must not wait for the whole of it.
                await asyncio.sleep(0)
                flight.call.stop_if_cancelled()  # for a provider that swallowed it
        flight.wake_readers()

    def _begin_anew(
        self, model: WrappedAsyncModel, prompt: llm.Prompt, *, stream: bool, key: str | None
    ) -> None:
        """Forget a failed request of which nothing was seen, to make it again.

        Args:
            model: who is asked.
            prompt: what for.
            stream: whether the caller wants a stream.
            key: what the caller gave as a key for this model, or None.

        Raises:
            ValueError: the model does not support the schema, the tools or the history.
        """
        fresh = llm.AsyncResponse(
            prompt,
            model,
            stream and model.can_stream,
            conversation=self.conversation,
            key=key,
            before_call=self.before_call,
            after_call=self.after_call,
        )
        # What the provider set, and the generator, are in the way of a fresh request.
        self.__dict__.pop("resolved_model", None)
        self.__dict__.pop("_generator", None)
        kept = ("id", "done_callbacks")
        self.__dict__.update((k, v) for k, v in vars(fresh).items() if k not in kept)

    def _settle(self, error: BaseException | None) -> None:
        """It is over: nothing more will come, and what ended it is known."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if flight.resume_timer is not None:
            flight.resume_timer.cancel()
        if isinstance(error, Exception):
            self._failure, self._failure_trace = error, error.__traceback__
        flight.wake_readers()

    # The state that readers ask for

    @property
    def running(self) -> bool:
        """Whether it was requested and has not ended."""
        return self._flight is not None and self._flight.requested

    async def _first_event(self) -> None:
        """Wait for the first event, or for the end; a failure before it is raised."""
        async with Reader(self) as reader:
            while (not self.stream or not self._stream_events) and await reader.wait():
                pass

    def is_untouched(self) -> bool:
        """Whether no event has come, and no tool has run for it."""
        last = (self.prompt._explicit_messages or [None])[-1]
        tools_ran = self.prompt.tool_results or getattr(last, "role", None) == "tool"
        return not (self._stream_events or self._done or tools_ran)

    def is_last_word(self) -> bool:
        """Whether it is complete and calls no tools, so that a chain ends with it."""
        return self._done and not self._tool_calls

    def mark_seen(self, error: BaseException) -> None:
        """A reader of the chain was given this; a group need not raise it again."""
        self._failure_seen = self._failure_seen or error is self._failure

    def _raise_failure(self, *, seen: bool = True) -> None:
        if self._failure is not None:
            self._failure_seen = self._failure_seen or seen
            raise self._failure.with_traceback(self._failure_trace)

    def _read_on_or_cancel(self) -> None:
        flight = self._flight
        if flight is not None and not flight.readers and not self._done:
            flight.call.cancel(
                "The response was read half-way and then dropped, so it was stopped; to get "
                "all of it use text(), or keep iterating"
            )


# How long a response that was read half-way waits for somebody to read on.
RESUME_S = 0.5


class Flight:
    """What a response has only while it is under way.

    Kept apart and let go at the end, since a group may hold thousands of finished responses:
    one attribute more is what an llm response has room for before its dictionary grows
    five-fold (CPython 3.11).
    """

    __slots__ = (
        "call",
        "changed",
        "deadline",
        "first_event_at",
        "readers",
        "requested",
        "resume_timer",
        "turn",
    )

    def __init__(self, call: Call) -> None:
        self.call = call
        self.changed = asyncio.Event()
        self.readers = 0
        self.requested = False
        self.resume_timer: asyncio.TimerHandle | None = None
        self.first_event_at: float | None = None
        self.deadline: Deadline | None = None
        self.turn: Turn | None = None

    def wake_readers(self) -> None:
        # Everyone who waits wakes up, and whoever comes later waits for the next change.
        self.changed.set()
        self.changed.clear()


class Reader:
    """One reader of a response, from its first look to its last."""

    def __init__(self, response: PromptResponse) -> None:
        self._response = response
        self._flight = response._flight
        self._inside = False

    async def __aenter__(self) -> Self:
        flight = self._flight
        if flight is not None:
            flight.readers += 1
            if flight.resume_timer is not None:
                flight.resume_timer.cancel()
            # A context of the hooks that reads its own response cannot wait for its own end.
            self._inside = flight.call.encloses_caller()
            if not flight.requested:
                flight.requested = True
                flight.call.request(self._response)
        return self

    async def wait(self) -> bool:
        """Wait for more; False when there is nothing more to come.

        Raises:
            Exception: what the response failed with.
        """
        response, flight = self._response, self._response._flight
        if flight is None:
            response._raise_failure(seen=not self._inside)
            return False
        if self._inside and response._done:
            return False
        if self._inside and flight.call.waits_for_caller():
            raise flight.call.error or LLMError(
                "A response cannot be read inside its own call before it is complete; in "
                "llm_prompt_context read it after the yield"
            )
        await flight.changed.wait()
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        response, flight = self._response, self._flight
        if flight is None:
            return
        flight.readers -= 1
        over = response._flight is None
        others = flight.readers or flight.call.chain_readers > 1
        if over or error is None or others or self._inside:
            return
        if isinstance(error, asyncio.CancelledError):
            flight.call.cancel("The reader of the response was cancelled")
            response._failure_seen = True
            await flight.call.closed.wait()
        elif isinstance(error, GeneratorExit) and not response._done:
            loop = asyncio.get_running_loop()
            flight.resume_timer = loop.call_later(RESUME_S, response._read_on_or_cancel)
            response._failure_seen = True


async def run_callbacks(callbacks: list[DoneCallback], response: PromptResponse) -> list[Exception]:
    """Call every callback, whatever the others raise, and give back what they raised."""
    errors: list[Exception] = []
    for callback in callbacks:
        try:
            outcome = callback(response) if callable(callback) else callback
            if inspect.isawaitable(outcome):
                await outcome
        except asyncio.CancelledError as error:
            errors.append(dispatch.not_ours(error, "A callback of on_done"))
        except Exception as error:
            errors.append(error)
    return errors

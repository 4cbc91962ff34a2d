"""The response that callers hold: llm's own, filled by a call's task, read by anyone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import llm
from llm.parts import StreamEvent

from .readers import Flight, Reader
from .results import run_callbacks

if TYPE_CHECKING:
    from .calls import Call
    from .models import WrappedAsyncModel


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
    def under_way(self) -> bool:
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

    def note_seen(self, error: BaseException) -> None:
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

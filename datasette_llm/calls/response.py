"""The response that callers hold: llm's own, filled by a call's task, read by many readers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import llm
from llm.parts import StreamEvent, ToolCallPart

from ..access.keys import KeyName
from ..errors import LLMError
from ..hooks import dispatch
from ..log.rows import answer_bytes, shortened
from ..providers.chunks import well_formed_call, well_formed_value
from ..providers.finish_reasons import FinishReason, finish_reason_of
from ..structured import Answer
from ..tags.values import NO_TAGS, Tags, given
from .tools import supervised_tools, tools_thread

if TYPE_CHECKING:
    from .route import RoutedModel

DoneCallback = Callable[["PromptResponse"], Awaitable[object] | object]

# How long a response that was read half-way waits for a reader to go on.
RESUME_S = 0.5


class Producer(Protocol):
    """What fills a response, as its readers know it.

    Attributes:
        closed: set when everything is over.
        error: what ended it, or None.
        chain_readers: how many read the chain that the response is a step of.
    """

    closed: asyncio.Event
    error: BaseException | None
    chain_readers: int

    def request(self, response: PromptResponse) -> None:
        """Send the request of a response."""

    def cancel(self, reason: str) -> None:
        """Stop the request."""

    def stop_if_cancelled(self) -> None:
        """Raise a cancellation that a provider has swallowed."""

    def encloses_caller(self) -> bool:
        """Whether the code that asks runs inside the producer."""

    def waits_for_caller(self) -> bool:
        """Whether the producer cannot go on before the code that asks has."""

    def note_callback_errors(self, errors: list[Exception]) -> None:
        """Callbacks of a complete response failed."""


class StreamState:
    """Streaming state, dropped at the end.

    One attribute, because a second makes CPython 3.11 grow `__dict__` fivefold.

    Attributes:
        producer: what fills the response.
        changed: set for a moment when there is something new to read.
        readers: how many read it.
        requested: whether its request was sent, or is to be.
        first_event_at: when the first event came, by the monotonic clock, or None.
        on_event: called at each event, or None.
        on_done: called when the provider is done, before any callback, or None.
        resume_timer: cancels the response if no reader goes on, or None.
    """

    __slots__ = (
        "changed",
        "first_event_at",
        "on_done",
        "on_event",
        "producer",
        "readers",
        "requested",
        "resume_timer",
    )

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.readers = 0
        self.requested = False
        self.first_event_at: float | None = None
        self.on_event: Callable[[], None] | None = None
        self.on_done: Callable[[], None] | None = None
        self.resume_timer: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()

    def wake_readers(self) -> None:
        """Wake all who wait; who comes later waits for the next change."""
        self.changed.set()
        self.changed.clear()


class PromptResponse(llm.AsyncResponse):
    """An `llm.AsyncResponse` that any number of readers follow, while it arrives or later.

    A failed response stays failed: every reader gets its error. One that is being read is
    stopped at the provider when its last reader is cancelled, or goes away half-way and none
    reads on within half a second. One that is never read completes by itself.

    Attributes:
        stream_state: its streaming state; None once it has ended.
        failure: what it failed with, or None.
        failure_seen: whether `failure` was raised to a caller.
        answer: what `structured()` reads out of it, or None.
        tags: those of its call, as they were given.
    """

    stream_state: StreamState | None = None
    failure: Exception | None = None
    failure_seen = False
    answer: Answer | None = None
    tags: Tags = NO_TAGS  # no attribute of an instance without tags, for its memory
    _failure_trace: TracebackType | None = None
    _position = 0  # of anext(response), which is a reader of its own

    @classmethod
    def adopt(cls, response: llm.AsyncResponse, producer: Producer) -> Self:
        """Make a response of llm's one of ours.

        llm's `prompt()` methods and its chain loop build and check the response, and name
        its class themselves; a change of class is what leaves all of that to llm.
        """
        response.__class__ = cls
        ours = cast(Self, response)
        ours.stream_state = StreamState(producer)
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
        if self.stream_state is None and not self._stream_events:
            # Rebuilt from storage: there is text, but there were no events.
            self.raise_failure()
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

    async def reply(
        self,
        prompt: str | None = None,
        *,
        messages: list[Any] | None = None,
        tool_results: list[llm.ToolResult] | None = None,
        **kwargs: Any,
    ) -> PromptResponse:
        """Prompt again with this exchange as history, once this response is complete.

        Takes what llm's `reply()` takes. The new prompt has the same key, purpose, actor and
        hooks, and like `model.prompt()` returns at its first event. It has the tags of this
        exchange, too, and those of `tags=`.
        """
        await self._force()
        if self._key is not None and "key_name" not in kwargs:
            kwargs.setdefault("key", self._key)
        if self.prompt.tools:
            kwargs.setdefault("tools", self.prompt.tools)
        if tool_results is None and self._tool_calls:
            tool_results = await self.execute_tool_calls(tools=kwargs.get("tools"))
        # As llm has them: attachments of tools are the user's.
        attached = [each for result in tool_results or () for each in result.attachments]
        new = {
            "tool_results": [replace(each, attachments=[]) for each in tool_results or ()],
            "attachments": [*attached, *(kwargs.pop("attachments", None) or ())],
        }
        if messages:  # which come after the text
            turn = llm.Prompt(prompt, self.model, **new).messages
            history = [*self.prompt.messages, *self.messages_so_far()]
            prompt, new = None, {"messages": [*history, *turn, *messages]}
        # A turn of a conversation, since some plugins read nothing else.
        conversation: Any = self.model.conversation()
        if self.tags:
            conversation.tags = given(self.tags)
        conversation.responses.extend(self._turns())
        return cast(PromptResponse, await conversation.prompt(prompt, **new, **kwargs))

    def _turns(self) -> list[llm.AsyncResponse]:
        """The turns of the conversation up to this one."""
        turns: list[Any] = self.conversation.responses if self.conversation else []
        return turns[: turns.index(self) + 1] if self in turns else [self]

    async def execute_tool_calls(
        self, *, tools: list[Any] | None = None, **kwargs: Any
    ) -> list[llm.ToolResult]:
        """Run the tools that it calls, plain functions in a thread; takes what llm's method takes.

        Raises:
            llm.PauseChain: a tool has asked for a pause.
            Exception: what a hook of the caller raised.
        """
        thread = tools_thread()  # those of a chain have theirs
        wanted = self.prompt if tools is None else llm.Prompt(None, self.model, tools=tools)
        try:
            ours = supervised_tools(wanted.tools, thread)
            return await super().execute_tool_calls(tools=[*ours], **kwargs)
        finally:
            thread.close()

    def text_or_raise(self) -> str:
        """The text of a complete response.

        Raises:
            ValueError: it is not complete yet.
            Exception: it failed, with this.
        """
        self.raise_failure()
        return super().text_or_raise()

    def tool_calls_or_raise(self) -> list[llm.ToolCall]:
        """The tool calls of a complete response.

        Raises:
            ValueError: it is not complete yet.
            Exception: it failed, with this.
        """
        self.raise_failure()
        return super().tool_calls_or_raise()

    async def _on_done(self) -> None:
        state = self.stream_state
        if state is not None and state.on_done is not None:
            state.on_done()
        errors = await run_callbacks(self.done_callbacks, self)
        self.done_callbacks.clear()
        if state is not None:
            state.producer.note_callback_errors(errors)

    def _ensure_async_generator(self) -> None:
        # llm would call the model here; the attempt sets the generator instead.
        if not hasattr(self, "_generator"):
            raise LLMError("The request of this response has not been made")

    # Filling, called by the call

    def add_tool_call(self, tool_call: llm.ToolCall) -> None:
        """Add a tool call (called by the model)."""
        super().add_tool_call(well_formed_call(tool_call))

    def _messages_now(self) -> list[Any]:
        messages = super()._messages_now()
        for part in (part for message in messages for part in message.parts):
            if isinstance(part, ToolCallPart):
                part.arguments = well_formed_value(part.arguments)
        return messages

    async def fill(self, events: AsyncGenerator[str | StreamEvent, None]) -> None:
        """Run a request to its end; `on_done` and llm's done callbacks included.

        Args:
            events: what comes from the provider.
        """
        state = self.stream_state
        assert state is not None
        self._generator = events
        filled: Any = super().astream_events()  # type: ignore[no-untyped-call]  # llm's
        # Closed here, so that the provider cleans up in this task and before the contexts do.
        async with contextlib.aclosing(filled):
            async for _ in filled:
                if state.first_event_at is None:
                    state.first_event_at = time.monotonic()
                if state.on_event is not None:
                    state.on_event()
                state.wake_readers()
                # Yield: a provider that never awaits would starve the readers.
                await asyncio.sleep(0)
                state.producer.stop_if_cancelled()  # for a provider that swallowed it
        state.wake_readers()

    def restart(
        self, model: RoutedModel, prompt: llm.Prompt, *, stream: bool, key: str | KeyName | None
    ) -> None:
        """Reset the response for a retry.

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
            key=key,  # type: ignore[arg-type]  # llm only hands it on
            before_call=self.before_call,
            after_call=self.after_call,
        )
        # What the provider set, and the generator, are in the way of a fresh request.
        self.__dict__.pop("resolved_model", None)
        self.__dict__.pop("_generator", None)
        kept = ("id", "done_callbacks")
        self.__dict__.update((k, v) for k, v in vars(fresh).items() if k not in kept)

    def settle(self, error: BaseException | None) -> None:
        """Mark the response as ended, with its error."""
        state, self.stream_state = self.stream_state, None
        if state is None:
            return
        if state.resume_timer is not None:
            state.resume_timer.cancel()
        if isinstance(error, Exception):
            self.failure, self._failure_trace = error, error.__traceback__
        state.wake_readers()

    # Its state

    @property
    def running(self) -> bool:
        """Whether it was requested and has not ended."""
        return self.stream_state is not None and self.stream_state.requested

    @property
    def is_complete(self) -> bool:
        """Whether the provider has given all of it."""
        return bool(self._done)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended, as the provider says; None where unknown."""
        reason = finish_reason_of(self.response_json)
        # Gemini and Ollama, among others, stop at a tool call as at the end of a text.
        calls_tools = reason is FinishReason.STOP and self._tool_calls
        return FinishReason.TOOL_CALLS if calls_tools else reason

    def messages_so_far(self) -> list[Any]:
        """The messages that it has brought, also of one that failed; llm's `messages()` waits."""
        return list(self._messages_now())

    def short_messages(self, max_chars: int) -> tuple[list[Any], dict[str, int]]:
        """The messages that it has brought, without what a text has beyond some characters.

        Args:
            max_chars: how many characters a text may have.

        Returns:
            The messages, and for each text that was cut its length.
        """
        short = copy.copy(self)
        # Another one of its own class; llm joins whole texts.
        events, lengths = shortened(self._stream_events, max_chars)
        short._stream_events = events  # noqa: SLF001  # as above
        return short.messages_so_far(), lengths

    @property
    def events_so_far(self) -> tuple[StreamEvent, ...]:
        """The events that have come."""
        return tuple(self._stream_events)

    @property
    def bytes_so_far(self) -> int:
        """How many bytes of memory its answer takes, about."""
        return answer_bytes(self._stream_events)

    @property
    def text_so_far(self) -> str:
        """What there is of its text, also of one that failed."""
        return "".join(self._chunks)

    @property
    def caller_key(self) -> str | KeyName | None:
        """What the caller gave as a key, or the name of one, or None."""
        return self._key  # llm only hands it on

    @property
    def secret_text(self) -> str | None:
        """What the caller gave as a key, to be taken out of texts; None for no key or a name."""
        return None if isinstance(self.caller_key, KeyName) else self.caller_key

    @property
    def is_untouched(self) -> bool:
        """Whether no event has come, so that its request can be made again."""
        return not (self._stream_events or self._done)

    @property
    def ends_chain(self) -> bool:
        """Whether it is complete and calls no tools, so that a chain ends with it."""
        return self._done and not self._tool_calls

    async def first_event(self) -> None:
        """Wait for the first event, or for the end; a failure before it is raised."""
        async with Reader(self) as reader:
            while (not self.stream or not self._stream_events) and await reader.wait():
                pass

    def mark_seen(self, error: BaseException) -> None:
        """A reader of the chain was given this; a group need not raise it again."""
        self.failure_seen = self.failure_seen or error is self.failure

    def raise_failure(self, *, seen: bool = True) -> None:
        """Raise what it failed with, if it did.

        Args:
            seen: whether the caller gets it.
        """
        if self.failure is not None:
            self.failure_seen = self.failure_seen or seen
            raise self.failure.with_traceback(self._failure_trace)

    def cancel_unless_read(self) -> None:
        """Stop the request if no reader is left."""
        state = self.stream_state
        if state is not None and not state.readers and not self._done:
            state.producer.cancel(
                "The response was read half-way and then dropped, so it was stopped; to get "
                "all of it use text(), or keep iterating"
            )


class Reader:
    """An active reader of a response."""

    def __init__(self, response: PromptResponse) -> None:
        self._response = response
        self._state = response.stream_state
        self._inside = False

    async def __aenter__(self) -> Self:
        state = self._state
        if state is not None:
            state.readers += 1
            if state.resume_timer is not None:
                state.resume_timer.cancel()
            # A context of the hooks that reads its own response cannot wait for its own end.
            self._inside = state.producer.encloses_caller()
            if not state.requested:
                state.requested = True
                state.producer.request(self._response)
        return self

    async def wait(self) -> bool:
        """Wait for more; False when there is nothing more to come.

        Raises:
            Exception: what the response failed with.
        """
        response, state = self._response, self._response.stream_state
        if state is None:
            response.raise_failure(seen=not self._inside)
            return False
        if self._inside and response.is_complete:
            return False
        if self._inside and state.producer.waits_for_caller():
            raise state.producer.error or LLMError(
                "A response cannot be read inside its own call before it is complete; in "
                "llm_prompt_context read it after the yield"
            )
        await state.changed.wait()
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        response, state = self._response, self._state
        if state is None:
            return
        state.readers -= 1
        over = response.stream_state is None
        others = state.readers or state.producer.chain_readers > 1
        if over or error is None or others or self._inside:
            return
        if isinstance(error, asyncio.CancelledError):
            state.producer.cancel("The reader of the response was cancelled")
            response.failure_seen = True
            await state.producer.closed.wait()
        elif isinstance(error, GeneratorExit) and not response.is_complete:
            loop = asyncio.get_running_loop()
            state.resume_timer = loop.call_later(RESUME_S, response.cancel_unless_read)
            response.failure_seen = True


async def run_callbacks(callbacks: list[DoneCallback], response: PromptResponse) -> list[Exception]:
    """Call every callback, whatever the others raise.

    Returns:
        What they raised.
    """
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

"""One request to a provider that equal prompts share."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from llm.parts import StreamEvent

from .response import PromptResponse
from .task import FATAL

_Value = TypeVar("_Value")


class Rider(Protocol):
    """Who gets the events of a shared request.

    Attributes:
        id: of its row in the call log.
        response: what it fills.
    """

    id: str
    response: PromptResponse

    def unpaid(self) -> None:
        """Another call has paid for its answer; before its callbacks are called."""


class SharedRequest:
    """A request to a provider, and those who ride along with it.

    Attributes:
        identity: of the key that it is made with.
        riders: who gets its events; the first one makes it.
        ready: set when it has begun, or never will.
        payer_id: the id of the first rider that came to the end, which pays; None before.
        retry: the one that its riders make after it has failed, or None.
        headers: of its responses, where they are known.
        duration_s: how long it took, in seconds; 0 before its end.
    """

    def __init__(self, identity: bytes, forget: Callable[[], object]) -> None:
        self.identity = identity
        self.riders: list[Rider] = []
        self.ready = asyncio.Event()
        self.payer_id: str | None = None
        self.retry: SharedRequest | None = None
        self.headers: list[Mapping[str, str]] = []
        self.duration_s = 0.0
        self._forget = forget
        self._changed = asyncio.Event()
        self._events: list[str | StreamEvent] = []
        self._attributes: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._begun = False  # stays set when the task is let go of
        self._over = False
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it has begun, and was not stopped for want of riders."""
        return self._begun and not self._stopped

    def begin(
        self,
        source: AsyncGenerator[str | StreamEvent, None],
        response: PromptResponse,
        ended: Callable[[], None] | None,
    ) -> None:
        """Begin the request; in the context of the first rider.

        Args:
            source: what comes from the provider.
            response: what the provider sets attributes of.
            ended: called at the end, or None.
        """
        self._task = asyncio.create_task(self._run(source, response, ended))
        self._begun = True
        self.ready.set()

    def alive(self) -> None:
        """A sign of life came from the provider."""
        for rider in self.riders:
            state = rider.response.stream_state
            if state is not None and state.on_event is not None:
                state.on_event()

    async def leave(self, rider: Rider) -> None:
        """Let go of a rider; with the last one the request ends."""
        self.riders.remove(rider)
        if not self._begun:
            self._end(None)
        elif not self.riders:
            task, self._task = self._task, None  # whose context refers back to here
            if task is not None and not self._over:
                self._forget()
                self._over = self._stopped = True
                await _cancelled(task)

    async def follow(
        self, rider: Rider, unpaid: Callable[[], None]
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """All events of the request, then what the provider has set.

        Args:
            rider: who gets them.
            unpaid: called at the end if another rider has paid.

        Raises:
            BaseException: what the request failed with.
        """
        position = 0
        while True:
            while position < len(self._events):
                event = self._events[position]
                position += 1
                yield event if isinstance(event, str) else replace(event)
            if self._over:
                break
            await self._changed.wait()
        if self.payer_id is None:  # not before, since each rider may go until it has all
            self.payer_id = rider.id
        if self._error is not None:
            raise self._error if rider.id == self.payer_id else copied(self._error, copy.copy)
        if rider.id == self.payer_id:
            vars(rider.response).update(self._attributes)
        else:
            own = {name: copied(each, copy.deepcopy) for name, each in self._attributes.items()}
            vars(rider.response).update(own)
            unpaid()

    async def _run(
        self,
        source: AsyncGenerator[str | StreamEvent, None],
        response: PromptResponse,
        ended: Callable[[], None] | None,
    ) -> None:
        before, began = dict(vars(response)), time.monotonic()
        error: BaseException | None = None
        try:
            async with aclosing(source):
                async for event in source:
                    self._events.append(event)
                    self._wake()
                    await asyncio.sleep(0)  # for a provider that never awaits
                    if self._over:
                        break  # and for one that swallows a cancellation
        except BaseException as raised:  # each rider raises it
            error = raised
            if isinstance(raised, FATAL):
                raise
        finally:
            self.duration_s = time.monotonic() - began
            self._attributes = {
                name: value
                for name, value in vars(response).items()
                if name not in before or value is not before[name] or name == "_tool_calls"
            }
            if ended is not None:
                ended()
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._over:  # else it is forgotten, and another one may be in its place
            self._forget()
        self._error = error
        self._over = True
        self.ready.set()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:  # again, for a provider that swallows the first one
        task.cancel()
        raise


def copied(value: _Value, copy_of: Callable[[_Value], _Value]) -> _Value:
    """One for each call: they add notes to an error, and change what a provider has set."""
    try:
        return copy_of(value)
    except Exception:  # of a third-party class
        return value

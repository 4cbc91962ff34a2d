"""Who reads a response, and what the response has only while it is under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from .errors import LLMError

if TYPE_CHECKING:
    from .calls import Call
    from .deadlines import Deadline
    from .gates import Turn
    from .responses import PromptResponse

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

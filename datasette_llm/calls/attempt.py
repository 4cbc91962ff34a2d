"""One attempt to have a response answered: its turn, its row, its span, its deadline."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from .. import instance
from ..redaction import Keys, redact
from ..sanitize import new_id
from ..telemetry.spans import RequestSpan
from .limiter import LimiterRegistry, Turn
from .timeout import Deadline

if TYPE_CHECKING:
    from .call import Call
    from .model import WrappedAsyncModel
    from .response import PromptResponse

_NOTHING = contextlib.nullcontext()


class Attempt:
    """One request to a provider.

    Attributes:
        call: the call that it is made for.
        response: what it fills.
        model: who is asked.
        number: 1 for the first attempt at this response.
        id: of its row in the record; of a first attempt the response's.
        end: when the time of the prompt is over, by the clock of the event loop, or None.
        turn: what it has gone through for its turn; None where nothing is limited.
        waited_s: how long it waited for its turn, in seconds; None where nothing is limited.
    """

    __slots__ = ("call", "end", "id", "model", "number", "response", "turn", "waited_s")

    def __init__(
        self, call: Call, response: PromptResponse, model: WrappedAsyncModel, number: int = 1
    ) -> None:
        self.call = call
        self.response = response
        self.model = model
        self.number = number
        self.id = response.id if number == 1 else new_id()
        self.end: float | None = None
        self.turn: Turn | None = None
        self.waited_s: float | None = None

    @property
    def key(self) -> Keys:
        """What to keep off the record: before a key is found, what the caller gave may be one."""
        return self.call.used_keys or self.response._key

    async def make(self, end: float | None) -> None:
        """Wait for its turn, and run the request to its end.

        Args:
            end: when the time of the prompt is over, by the clock of the event loop, or None.

        Raises:
            Exception: what the provider raised, without the key.
            ResponseTimeoutError: it took too long.
        """
        log, plan = self.model._log, self.model._plan
        clean: BaseException | None = None
        self.call.row_id, self.end = self.id, end
        try:
            if plan.limits:
                await self._take_turn()
            async with _NOTHING if log is None else log.recording(self):
                with RequestSpan(self):
                    if end is None and plan.idle_timeout_s is None:
                        await self.response._drive()
                    else:
                        await self._drive_until_it_is_over()
        except Exception as error:
            clean = redact(error, self.call.used_keys)
            if clean is error:
                raise
        finally:
            if self.turn is not None:
                self.turn.end()
        if clean is not None:
            raise clean  # out here, so that its context is not what says the key

    def while_time_is_left(self) -> AbstractAsyncContextManager[object]:
        """What ends a wait before the request when the time of the prompt is over."""
        if self.end is None:
            return _NOTHING
        return Deadline(self.end, self.call.model._plan.timeout_s)

    async def _drive_until_it_is_over(self) -> None:
        flight = self.response._flight
        assert flight is not None
        timeout_s, idle_timeout_s = self.call.model._plan.timeout_s, self.model._plan.idle_timeout_s
        async with Deadline(self.end, timeout_s, idle_timeout_s) as deadline:
            flight.deadline = deadline
            try:
                await self.response._drive()
            finally:
                flight.deadline = None  # the next attempt may have none

    async def _take_turn(self) -> None:
        self.turn, gates = Turn(), instance.of(self.model._datasette, LimiterRegistry)
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.call.awaits_turn = True
        try:
            async with self.while_time_is_left():
                await self.turn.take(gates, self.model._plan.limits)
        except BaseException as error:
            self.waited_s = loop.time() - began
            if self.model._log is not None:
                self.model._log.not_made(self, error)
            raise
        finally:
            self.call.awaits_turn = False
        self.waited_s = loop.time() - began
        if self.response._flight is not None:
            self.response._flight.turn = self.turn

"""Chains: llm's own loop of prompts and tool calls, as one call with several requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol, Self, cast

import llm
from llm.models import AsyncChainResponse

from ..hooks import dispatch
from ..tags.values import Tags
from ..telemetry.spans import ToolTraces
from .call import Call
from .pace import SLICE, pace
from .response import PromptResponse
from .route import RoutedModel
from .tools import supervised_tools, tools_thread


class TurnTaker(Protocol):
    """The conversation that a chain is the next turn of."""

    responses: list[Any]

    def begin_turn(self, call: Call, turns_before: int) -> None:
        """Begin a turn."""

    def pause_turn(self, results: list[llm.ToolResult]) -> None:
        """Keep the results of tools that ran beside the one that paused."""


class WrappedChain(AsyncChainResponse):
    """An llm chain whose contexts open at its first step and close at its end.

    It runs once, however often and in whichever way it is read; readers that come later get
    the same steps. If its last reader stops early, the chain is cancelled.
    """

    _call: Call
    _steps: list[PromptResponse]
    _advancing: asyncio.Lock
    _turns_before: int
    _started = False
    _interrupted = False
    _finished = False
    _failure: BaseException | None = None
    _source: AsyncGenerator[llm.AsyncResponse, None]

    @classmethod
    def adopt(
        cls, chain: AsyncChainResponse, model: RoutedModel, text: str | None, tags: Tags
    ) -> Self:
        """Make a chain of llm's one of ours; see `PromptResponse.adopt` for why so.

        Args:
            chain: llm's chain.
            model: the model that is asked.
            text: the text of its first prompt, or None.
            tags: its tags.
        """
        chain.__class__ = cls
        ours = cast(Self, chain)
        ours.prepare(Call(model, text, tags, is_chain=True))
        return ours

    def prepare(self, call: Call) -> None:
        """Set what llm's own constructor does not (called by `adopt`)."""
        self._call = call
        self._steps = []
        self._advancing = asyncio.Lock()
        self._turns_before = len(self.conversation.responses) if self.conversation else 0
        thread = tools_thread()
        given: object = self._key  # which may be the name of one
        secret = given if isinstance(given, str) else None
        traces = ToolTraces(
            lambda: call.chain_span.context if call.chain_span is not None else None,
            call.route.target.telemetry.content,
            lambda: call.used_keys or secret,
        )
        self.prompt.tools = supervised_tools(self.prompt.tools, thread, traces)
        call.at_end.append(lambda _: thread.close())

    async def responses(self) -> AsyncIterator[llm.AsyncResponse]:
        """The response of each step; a step is sent to the provider when it is read.

        Raises:
            Exception: what a hook, the provider, a tool's hooks or the chain limit raised;
                `llm.PauseChain` when a tool asked for a pause.
        """
        position = 0
        self._call.chain_readers += 1
        try:
            while await self._has_step(position):
                position += 1
                yield self._steps[position - 1]
        except BaseException as error:
            self._call.chain_readers -= 1
            for step in self._steps:
                step.mark_seen(error)
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._abandon(
                "The reader of the chain was cancelled"
                if cancelled
                else "The chain was abandoned between its steps"
            )
            raise
        else:
            self._call.chain_readers -= 1

    def log_to_db(self, db: Any) -> None:
        """Record the chain's responses in a database of llm's; call it after the chain's end."""
        # llm's own starts an event loop for each response, which fails inside a running one.
        for response in self._responses:
            response.log_to_db(db)

    async def _has_step(self, position: int) -> bool:
        """Whether the chain has a step with this number; asks llm's loop for it if need be."""
        async with self._advancing:
            if position < len(self._steps):
                return True
            if self._finished:
                await self._ended()
                return False
            self._take_turn()
            try:
                await self._admitted()
                step = await self._next_of_llms_loop()
            except StopAsyncIteration:
                await self._close(None)
                return False
            except Exception as error:
                await self._close(error)
                raise
            response = PromptResponse.adopt(step, self._call)
            self._call.add(response)
            self._steps.append(response)
            return True

    def _take_turn(self) -> None:
        """Refuse to begin while the conversation is busy; the chain can be read again later."""
        if not self._started:
            conversation = cast(TurnTaker, self.conversation)
            conversation.begin_turn(self._call, self._turns_before)

    async def _admitted(self) -> None:
        if not self._started:
            if pace.begun >= SLICE:
                await pace.turn()
            self._started = True
            self._source = cast(Any, super().responses())
            self._call.start()
        if self._call.running:
            await self._call.admitted.wait()
        if self._call.error is not None:
            raise self._call.error

    async def _next_of_llms_loop(self) -> llm.AsyncResponse:
        try:
            step = await anext(self._source)
        except asyncio.CancelledError as cancellation:
            # llm's loop cannot go on after this, so neither can the other readers.
            self._finished = self._interrupted = True
            error = dispatch.not_ours(cancellation, "before_call or after_call of the chain")
            self._interrupted = False
            raise error from cancellation
        await self._left()  # once the contexts are left, there are no more steps
        if self._call.error is not None:
            raise self._call.error  # it ended while the tools ran
        return step

    async def _left(self) -> None:
        """Wait until the contexts are left, if that has begun."""
        if self._call.running and self._call.leaving:
            await self._call.closed.wait()

    async def _close(self, error: Exception | None) -> None:
        """End the call with what ended llm's loop, and wait for its contexts."""
        self._finished = True
        self._failure = error
        self._call.result.chain_complete = error is None
        if isinstance(error, llm.PauseChain):
            cast(TurnTaker, self.conversation).pause_turn(error.tool_results)
        # A pause counts as success, so budgets are charged.
        self._call.finish(None if isinstance(error, llm.PauseChain) else error)
        await self._ended()

    async def _abandon(self, reason: str) -> None:
        """A reader has gone before the end; if the chain cannot go on for others, it is over."""
        if not self._call.running or (self._call.chain_readers and not self._interrupted):
            return
        if self._call.draining:
            pass  # a group waits for what was sent
        elif self._finished and not self._interrupted:
            self._call.hurry()  # it was about to end by itself
        elif not self._interrupted and self._steps and self._steps[-1].ends_chain:
            self._call.drain(reason)
            self._call.hurry()
        else:
            self._call.cancel(reason)
        self._finished = True
        await self._call.closed.wait()
        await self._source.aclose()

    async def _ended(self) -> None:
        """Wait for the end of the call, and raise what the chain ended with."""
        if self._call.running:
            await self._call.closed.wait()
        # The call's, since the contexts got that one.
        error = self._call.error or self._failure
        if error is not None:
            raise error

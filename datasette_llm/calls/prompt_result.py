"""What an `llm_prompt_context` hook gets, and its callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..events import FinishReason, RequestFinished
from ..log.cost import Cost
from ..tags.values import NO_TAGS, Tags
from .ended_requests import EndedRequests
from .response import DoneCallback, PromptResponse, run_callbacks

if TYPE_CHECKING:
    from ..access.snapshot import ModelRoute
    from .group import Group


Factory = Callable[["PromptResult"], AbstractAsyncContextManager[object]]


class CallbackOwners:
    """Whose the callbacks of a call are.

    Attributes:
        plugin: the one whose context is being opened, or None.
        failures: what callbacks raised, with their plugins.
    """

    def __init__(self) -> None:
        self.plugin: str | None = None
        self.failures: list[tuple[str, BaseException]] = []

    async def call(self, callback: DoneCallback, plugin: str, response: PromptResponse) -> None:
        """Call a callback, and note whose it is if it fails."""
        try:
            outcome = callback(response)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception as error:  # the plugin's
            self.failures.append((plugin, error))
            raise


class PromptResult:
    """What an `llm_prompt_context` hook gets, and its callbacks.

    Attributes:
        responses: the responses so far: one for a prompt, one a step for a chain.
        purpose: the purpose, or None.
        actor: Datasette's actor dictionary, or None.
        group: the group that the call belongs to, or None.
        is_chain: whether this is a chain.
        chain_complete: whether the chain ran to its end; False while it runs, and for one
            that paused, failed, or was abandoned.
        tags: what the call is tied to, not to be changed.
        cached: whether the answer is one that another call has paid for: known before the contexts
            open for one that the response cache keeps, and of a request that equal prompts share
            once that has ended; False again where a hook has changed the prompt.
        attempts: how many requests have begun: retries, fallbacks and steps of a chain count.
        call_id: the id under which `LLM.call()` finds the newest of them; before the first one,
            the id that it will have; None before a chain's first step.
    """

    cached = False

    def __init__(
        self,
        purpose: str | None,
        actor: Mapping[str, Any] | None,
        group: Group[Any] | None,
        is_chain: bool,
        owners: CallbackOwners | None = None,
        tags: Tags = NO_TAGS,
    ) -> None:
        self.responses: list[PromptResponse] = []
        self.purpose = purpose
        self.actor = actor
        self.group = group
        self.is_chain = is_chain
        self.chain_complete = False
        self.tags = tags
        self.attempts = 0
        self.call_id: str | None = None
        self._ended = EndedRequests()
        self._owners = owners or CallbackOwners()
        self._callbacks: list[DoneCallback] = []

    @property
    def response(self) -> PromptResponse | None:
        """The first response; None before a chain's first step."""
        return self.responses[0] if self.responses else None

    async def cost(self) -> Cost | None:
        """What the requests that have ended cost; None where no price is known."""
        return await self._ended.cost()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the newest response ended; None before its end, and where unknown."""
        return self.responses[-1].finish_reason if self.responses else None

    async def on_response_done(self, callback: DoneCallback) -> None:
        """Call a function with each response of this call once it is complete.

        Args:
            callback: sync or async; gets the response. Called at once for the responses that
                are already complete. Responses that fail or are cancelled are not reported.

        Raises:
            Exception: the first error of the callback, after it was called for every
                response that was complete.
        """
        if self._owners.plugin is not None:
            callback = partial(self._owners.call, callback, self._owners.plugin)
        self._callbacks.append(callback)
        errors: list[Exception] = []
        for response in list(self.responses):
            if response.is_complete:
                errors += await run_callbacks([callback], response)
            else:
                response.done_callbacks.append(callback)
        raise_first(errors)

    def add(self, response: PromptResponse) -> None:
        """Take in another response (called by datasette-llm)."""
        self.responses.append(response)
        if self.call_id is None:
            self.call_id = response.id
        if self.tags:
            response.tags = self.tags
        response.done_callbacks.extend(self._callbacks)

    def begin(self, request_id: str) -> None:
        """Note that a request begins (called by datasette-llm)."""
        self.call_id = request_id
        self.attempts += 1

    def end(self, finished: RequestFinished, model_id: str, target: ModelRoute) -> None:
        """Note that a request has ended (called by datasette-llm)."""
        ended = (finished, model_id, target)
        self._ended.append(ended)
        if self.group is not None:
            self.group.ended.append(ended)


def raise_first(errors: list[Exception]) -> None:
    """Raise the first of some errors, if any, with the others in its notes."""
    for other in errors[1:]:
        errors[0].add_note(f"Another callback failed too: {type(other).__name__}: {other}")
    if errors:
        raise errors[0]

"""How a response gets its answer: of the model asked for, of it once more, or of its fallbacks.

A request is made again only while nothing has come of it: no event that a reader may have seen.
In a chain that is the request of one step; no tool runs again, and the next step asks the model
that the chain was made for. The contexts of the hooks stay open over all attempts, so that money
is reserved once; the call log has a row for each.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import logging
import math
import random
from asyncio import sleep
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import llm
import pydantic

from ..errors import LLMError, ProviderError, ResponseTimeoutError
from ..sanitize import brief, message_of
from .attempt import Attempt
from .context import CallContext
from .response import PromptResponse
from .retry_pauses import MAX_PAUSE_S, retry_after_s
from .retry_rules import is_transient, requests_made
from .route import RoutedModel
from .timeout import Deadline

if TYPE_CHECKING:
    from ..access.call_policy import Fallback

logger = logging.getLogger("datasette_llm")

# As the clients of OpenAI and Anthropic: half a second at first, doubled each time up to eight.
WAIT_INITIAL_S = 0.5
WAIT_MAX_S = 8.0
WAIT_JITTER_S = 0.25

# Of a provider's message, in Datasette's log.
MAX_LOGGED_CHARS = 300

_NOT_CONFIGURED = object()
# The errors of ours that are about a provider.
_OF_PROVIDERS = (ProviderError, ResponseTimeoutError)


async def answer(call: CallContext, response: PromptResponse) -> None:
    """Run the request of a response to its end, and make it again where that is allowed.

    Args:
        call: the call that the response belongs to.
        response: what is to be filled.

    Raises:
        Exception: what the model that was asked for failed with; in its notes, what became of
            the fallbacks.
        ResponseTimeoutError: it took too long.
    """
    timeout_s = call.route.target.call_policy.timeout_s
    end = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    first = Attempt(call, response, call.model)
    try:
        await first.run(end)
        return
    except Exception as error:
        failure = error
        later = _LaterAttempts(first, end)
        if not later.is_allowed(error):
            raise
    await later.make(failure)


class _LaterAttempts:
    """What is tried after the first attempt at a response has failed."""

    def __init__(self, first: Attempt, end: float | None) -> None:
        self._call = first.call
        self._response = first.response
        self._end = end
        self._asked = first.model
        self._prompt = first.response.prompt
        self._stream = first.response.stream
        self._key = first.response.caller_key
        self._last = first

    def is_allowed(self, error: Exception) -> bool:
        """Whether anything may be tried after a failure."""
        if isinstance(error, LLMError) and not isinstance(error, _OF_PROVIDERS):
            return False  # it is about us, and no other attempt would change it
        return self._time_left() > 0 and self._call.may_retry(self._response)

    async def make(self, failure: Exception) -> None:
        """Ask the same model again, then the fallbacks.

        Args:
            failure: what the first attempt failed with.

        Raises:
            Exception: what the model that was asked for failed with at last; or what ended the
                last attempt for good, as an event that a reader has seen does.
        """
        left = await self._retry(self._asked, failure)
        if left is None:
            return
        row_id = self._call.row_id
        for fallback in self._asked.route.target.call_policy.fallbacks:
            model = await self._fallback_model(fallback, left)
            if model is None:
                continue
            try:
                later = await self._answer_of(model)
            except Exception as error:
                error.add_note(
                    f"Model {self._asked.model_id!r} had failed before: {_summary(left)}"
                )
                raise
            if later is None:
                return
            left.add_note(f"Fallback {fallback.model_id!r} failed too: {_summary(later)}")
        answering: object = self._response.model  # one of ours, which llm's class does not say
        if answering is not self._asked:
            self._restart(self._asked, self._prompt)  # what failed is what was asked for
            self._call.result.call_id = row_id
        raise left

    async def _answer_of(self, model: RoutedModel) -> Exception | None:
        """Ask another model, as often as its own policy says; what is left is its last failure."""
        try:
            await self._attempt(model)
        except Exception as error:
            if not self.is_allowed(error):
                raise
            failure = error
        else:
            return None
        return await self._retry(model, failure)

    async def _retry(self, model: RoutedModel, failure: Exception) -> Exception | None:
        """Ask a model again after a failure; what is left is its last failure, or None."""
        retries = model.route.target.call_policy.retries
        requests = requests_made(failure)
        for number in range(retries):
            pause_s = self._pause_s(failure, number) if requests <= retries else None
            if pause_s is None:
                break
            logger.warning(
                "Retrying model %r in %.1f s after %s", model.model_id, pause_s, _line(failure)
            )
            await self._pause(pause_s, failure)
            self._restart(model, self._response.prompt)
            try:
                await self._attempt(model)
            except Exception as error:
                if not self.is_allowed(error):
                    raise
                failure = error
                requests += requests_made(error)
            else:
                return None
        return failure

    def _pause_s(self, failure: Exception, number: int) -> float | None:
        """How many seconds to wait after a failure; None where a retry makes no sense.

        Args:
            failure: what the last attempt failed with.
            number: how many retries there were before.
        """
        if self._last.outlives_request:
            return None  # it would wait for itself, or have the model do its work twice
        if not is_transient(failure):
            return None
        asked_for_s = retry_after_s(failure, datetime.datetime.now(datetime.UTC))
        if asked_for_s is None:
            jitter_s = random.uniform(0, WAIT_JITTER_S)
            return min(WAIT_MAX_S, WAIT_INITIAL_S * 2.0**number + jitter_s)
        return asked_for_s if asked_for_s <= min(MAX_PAUSE_S, self._time_left()) else None

    async def _pause(self, seconds: float, failure: Exception) -> None:
        try:
            async with self._deadline():
                await sleep(seconds)
        except ResponseTimeoutError as error:
            raise error from failure

    async def _attempt(self, model: RoutedModel) -> None:
        if self._call.is_being_stopped:
            raise asyncio.CancelledError  # which a hook that was asked meanwhile has swallowed
        self._last = Attempt(self._call, self._response, model, self._last)
        await self._last.run(self._end)

    async def _fallback_model(self, fallback: Fallback, failure: Exception) -> RoutedModel | None:
        """The model of a fallback, if it may be used and supports what the prompt needs."""
        route = self._asked.route
        try:
            async with self._deadline():
                model = await route.resolve_fallback(route, fallback)
                await model.check_attachments(self._prompt)
            self._restart(model, _prompt_for(model, self._prompt, self._asked))
        except Exception as error:  # a hook may raise anything, and so may a model's options
            if self._time_left() <= 0:
                raise error from failure
            note = f"Fallback {fallback.model_id!r} was not asked: {_summary(error)}"
            logger.warning("%s", note)
            failure.add_note(note)
            return None
        return model

    def _restart(self, model: RoutedModel, prompt: llm.Prompt) -> None:
        # A key that the caller gave is for the provider of the model that was asked for.
        key = self._key if model is self._asked else None
        self._response.restart(model, prompt, stream=self._stream, key=key)

    def _deadline(self) -> Deadline:
        return Deadline(self._end, self._asked.route.target.call_policy.timeout_s)

    def _time_left(self) -> float:
        if self._end is None:
            return math.inf
        return self._end - asyncio.get_running_loop().time()


def _prompt_for(model: RoutedModel, prompt: llm.Prompt, asked: RoutedModel) -> llm.Prompt:
    """The same prompt for another model: with its own options, and of the caller's what it takes.

    Raises:
        pydantic.ValidationError: the model refuses its configured options.
    """
    theirs = copy.copy(prompt)
    theirs.model = model  # type: ignore[assignment]  # as llm itself does; it names the sync class
    # What is configured for the model that was asked for is not for this one.
    configured = _configured(asked)
    given = {
        name: value
        for name in prompt.options.model_fields_set
        if (value := getattr(prompt.options, name)) != configured.get(name, _NOT_CONFIGURED)
    }
    known = {k: v for k, v in given.items() if k in model.Options.model_fields}
    own = model.route.target.options
    try:
        theirs.options = model.Options(**{**own, **known})
    except pydantic.ValidationError:
        theirs.options = model.Options(**own)
    return theirs


def _configured(model: RoutedModel) -> Mapping[str, Any]:
    """A model's configured options as its prompts have them: its validators may change them."""
    own = model.route.target.options
    try:
        options = model.Options(**own)
    except pydantic.ValidationError:  # only together with what a caller adds
        return own
    return {name: getattr(options, name, value) for name, value in own.items()}


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {message_of(error)}"


def _line(error: Exception) -> str:
    """A summary for the log: bounded, on one line, and without control characters."""
    text = "".join(each if each.isprintable() else " " for each in brief(error))
    return f"{type(error).__name__}: {text[:MAX_LOGGED_CHARS]}"

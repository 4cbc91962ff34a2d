"""How a response gets its answer: of the model asked for, of it once more, or of its fallbacks.

Only the first request of a call is made again, and only while nothing has come of it: no event
that anybody may have seen, and no tool that has run. The contexts of the hooks stay open over
all attempts, so that money is reserved once; the record has a row for each.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import llm
import pydantic
import stamina
from llm.parts import AttachmentPart

from ..errors import LLMError, ResponseTimeoutError
from ..sanitize import message_of
from .attempt import Attempt
from .retry_rules import MAX_RETRY_AFTER_S, is_transient, requests_made, retry_after_s
from .timeout import Deadline

if TYPE_CHECKING:
    from ..access.call_policy import Fallback
    from .call import Call
    from .model import WrappedAsyncModel
    from .response import PromptResponse

logger = logging.getLogger("datasette_llm")

# As the clients of OpenAI and Anthropic: half a second at first, doubled each time up to eight.
WAIT_INITIAL_S = 0.5
WAIT_MAX_S = 8.0
WAIT_JITTER_S = 0.25

_NOT_CONFIGURED = object()


async def answer(call: Call, response: PromptResponse) -> None:
    """Run the request of a response to its end, and make it again where that is allowed.

    Args:
        call: the call that the response belongs to.
        response: what is to be filled.

    Raises:
        Exception: what the model that was asked for failed with; in its notes, what became of
            the fallbacks.
        ResponseTimeoutError: it took too long.
    """
    model = call.model
    timeout_s = model._plan.timeout_s
    end = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    try:
        await Attempt(call, response, model).make(end)
        return
    except Exception as error:
        failure = error
        again = _Again(call, response, end)
        if not again.is_allowed(error):
            raise
    await again.ask(failure)


class _Again:
    """What is tried after the first attempt at a response has failed."""

    def __init__(self, call: Call, response: PromptResponse, end: float | None) -> None:
        self._call = call
        self._response = response
        self._end = end
        self._asked = call.model
        self._prompt = response.prompt
        self._stream = response.stream
        self._key = response._key
        self._number = 1
        self._failed: Exception | None = None  # what the last attempt failed with

    def is_allowed(self, error: Exception) -> bool:
        """Whether anything may be tried after a failure."""
        if isinstance(error, LLMError) and not isinstance(error, ResponseTimeoutError):
            return False  # it is about us, and no other attempt would change it
        return self._time_left() > 0 and self._call.may_ask_again(self._response)

    async def ask(self, failure: Exception) -> None:
        """Ask the same model again, then the others.

        Args:
            failure: what the first attempt failed with.

        Raises:
            Exception: what the model that was asked for failed with at last; or what ended the
                last attempt for good, as an event that somebody has seen does.
        """
        left = await self._retried(self._asked, failure)
        if left is None:
            return
        row_id = self._call.row_id
        for fallback in self._asked._plan.fallbacks:
            model = await self._standing_in(fallback, left)
            if model is None:
                continue
            try:
                later = await self._answer_of(model)
            except Exception as error:
                error.add_note(f"Model {self._asked.model_id!r} had failed before: {_told(left)}")
                raise
            if later is None:
                return
            left.add_note(f"Fallback {fallback.model_id!r} failed too: {_told(later)}")
        answering: object = self._response.model  # one of ours, which llm's class does not say
        if answering is not self._asked:
            self._begin_anew(self._asked, self._prompt)  # what failed is what was asked for
            self._call.row_id = row_id
        raise left

    async def _answer_of(self, model: WrappedAsyncModel) -> Exception | None:
        """Ask another model, as often as its own plan says; what is left is its last failure."""
        try:
            await self._attempt(model)
        except Exception as error:
            if not self.is_allowed(error):
                raise
            failure = error
        else:
            return None
        return await self._retried(model, failure)

    async def _retried(self, model: WrappedAsyncModel, failure: Exception) -> Exception | None:
        """Ask a model again after a failure; what is left is its last failure, or None."""
        if not model._plan.retries:
            return failure
        retrying = aiter(
            stamina.retry_context(
                on=self._pause_after(model),
                attempts=model._plan.retries + 1,
                timeout=None,
                wait_initial=WAIT_INITIAL_S,
                wait_max=WAIT_MAX_S,
                wait_jitter=WAIT_JITTER_S,
            )
        )
        # The first of its attempts has been made already: nobody pays for stamina who needs none.
        made: Exception | None = failure
        try:
            while True:
                with await self._after_a_pause(retrying):
                    if made is not None:
                        error, made = made, None
                        raise error
                    self._begin_anew(model, self._response.prompt)
                    await self._attempt(model)
                    return None
        except Exception as error:
            if not self.is_allowed(error):
                raise
            return error

    async def _after_a_pause(self, retrying: AsyncIterator[stamina.Attempt]) -> stamina.Attempt:
        """The next attempt; or the failure of the last one, where there is none."""
        try:
            async with self._deadline():
                return await anext(retrying)
        except ResponseTimeoutError as error:
            if error is self._failed:
                raise
            raise error from self._failed

    def _pause_after(self, model: WrappedAsyncModel) -> Callable[[Exception], bool | float]:
        """What tells stamina whether to go on after a failure, and how many seconds later."""
        requests = 0

        def pause(error: BaseException) -> bool | float:
            nonlocal requests
            if not isinstance(error, Exception):
                return False  # a cancellation goes by here too
            self._failed = error
            requests += requests_made(error)
            if requests > model._plan.retries or not self.is_allowed(error):
                return False
            if self._still_computes():
                return False  # it would wait for itself, or have the model do its work twice
            if not is_transient(error):
                return False
            wanted_s = retry_after_s(error, datetime.datetime.now(datetime.UTC))
            if wanted_s is None:
                return True
            return wanted_s if wanted_s <= min(MAX_RETRY_AFTER_S, self._time_left()) else False

        return pause

    def _still_computes(self) -> bool:
        flight = self._response._flight
        return flight is not None and flight.turn is not None and flight.turn.outlived

    async def _attempt(self, model: WrappedAsyncModel) -> None:
        if self._call.is_being_stopped:
            raise asyncio.CancelledError  # which a hook that was asked meanwhile has swallowed
        self._number += 1
        await Attempt(self._call, self._response, model, self._number).make(self._end)

    async def _standing_in(
        self, fallback: Fallback, failure: Exception
    ) -> WrappedAsyncModel | None:
        """The model of a fallback, if it may be used and supports what the prompt needs."""
        assert self._asked._facade is not None
        try:
            async with self._deadline():
                model = await self._asked._facade._standing_in(self._asked, fallback)
                await _check_attachments(model, self._prompt)
            self._begin_anew(model, _prompt_for(model, self._prompt, self._asked))
        except Exception as error:  # a hook may raise anything, and so may a model's options
            if self._time_left() <= 0:
                raise error from failure
            note = f"Fallback {fallback.model_id!r} was not asked: {_told(error)}"
            logger.warning("%s", note)
            failure.add_note(note)
            return None
        return model

    def _begin_anew(self, model: WrappedAsyncModel, prompt: llm.Prompt) -> None:
        # A key that the caller gave is for the provider of the model that was asked for.
        key = self._key if model is self._asked else None
        if self._response._flight is not None:
            self._response._flight.turn = None
        self._response._begin_anew(model, prompt, stream=self._stream, key=key)

    def _deadline(self) -> Deadline:
        return Deadline(self._end, self._asked._plan.timeout_s)

    def _time_left(self) -> float:
        if self._end is None:
            return math.inf
        return self._end - asyncio.get_running_loop().time()


async def _check_attachments(model: WrappedAsyncModel, prompt: llm.Prompt) -> None:
    """In a thread, since llm may look into a file or at a URL for their type.

    Raises:
        ValueError: the model does not take one of them.
    """
    parts = [part for message in prompt.messages for part in message.parts]
    earlier = [part.attachment for part in parts if isinstance(part, AttachmentPart)]
    sent = [*prompt.attachments, *(each for each in earlier if each is not None)]
    if sent:
        await asyncio.to_thread(model._validate_attachments, sent)


def _prompt_for(
    model: WrappedAsyncModel, prompt: llm.Prompt, asked: WrappedAsyncModel
) -> llm.Prompt:
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
    try:
        theirs.options = model.Options(**{**model._options, **known})
    except pydantic.ValidationError:
        theirs.options = model.Options(**model._options)
    return theirs


def _configured(model: WrappedAsyncModel) -> Mapping[str, Any]:
    """A model's configured options as its prompts have them: its validators may change them."""
    try:
        options = model.Options(**model._options)
    except pydantic.ValidationError:  # only together with what a caller adds
        return model._options
    return {name: getattr(options, name, value) for name, value in model._options.items()}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {message_of(error)}"

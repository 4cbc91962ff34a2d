"""Read the answer of a chat completion, whichever dialect of OpenAI's protocol it is in.

What is not part of an answer is passed over. What the server says of how the answer ended is
believed, and an answer that it does not call complete is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import llm
from llm.parts import StreamEvent
from llm.utils import simplify_usage_dict

from ..errors import IncompleteAnswerError
from ..redaction import cut
from ..sanitize import count
from .finish_reasons import words_of
from .server_errors import Place, error_in, failed_answer, reason_of
from .tool_calls import ToolCalls

# Finish reasons that say that the server gave up.
BROKEN_REASONS = frozenset({"abort", "aborted", "cancelled", "canceled", "interrupted"})
BROKEN_REASONS |= {"error", "engine_error", "internal_error", "network_error", "server_error"}
BROKEN_REASONS |= {"failed", "failure", "load", "unload", "overloaded", "timeout"}
BROKEN_REASONS |= {"user_cancel", "user_cancelled", "insufficient_system_resource"}
BROKEN_REASONS |= {"malformed_function_call", "malformed_response"}
# The fields of a delta for what a model thinks before it answers.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Under these names the parts of a response keep what a provider wants back.
REASONING_FIELD = "reasoning_field"
REASONING_DETAILS = "reasoning_details"

# Of a finish reason, in messages.
_MAX_REASON_CHARS = 100

_SUMMARY = ("id", "object", "model", "created", "system_fingerprint")
_COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens")


class ChatReader:
    """Turns the events of one answer into llm's.

    Args:
        response: gets usage and the model's name as soon as they are there.
        place: where the answer comes from.
        taken_ids: ids of tool calls that the prompt already has.

    Attributes:
        finish_reason: why the server says that the answer ended, or None.
        is_done: whether the server has marked the end of the stream.
        parts: how many parts of the answer have come.
    """

    def __init__(
        self, response: llm.AsyncResponse, place: Place, taken_ids: Iterable[str] = ()
    ) -> None:
        self.finish_reason: str | None = None
        self.is_done = False
        self.parts = 0
        self.usage: dict[str, Any] | None = None
        self._response = response
        self._place = place
        self._tools = ToolCalls(taken_ids)
        self._texts: list[str] = []
        self._refusal: list[str] = []
        self._details: list[Any] = []
        self._reasoned = False
        self._summary: dict[str, Any] = {}
        self._role: str | None = None
        self._is_whole = False
        self._goes_on = False

    @property
    def said_something(self) -> bool:
        """Whether any part of the answer has come."""
        return self.parts > 0

    @property
    def is_complete(self) -> bool:
        """Whether the server has called its answer complete."""
        if self.finish_reason is None:
            return self.is_done
        return not _is_broken(self.finish_reason)

    @property
    def is_over(self) -> bool:
        """Whether nothing more of it is to come; some servers give a reason with every part."""
        return self.is_complete and (self.is_done or not self._goes_on)

    def feed(self, event: Mapping[str, Any]) -> Iterator[StreamEvent]:
        """The parts of the answer in an event, or in a whole answer.

        Args:
            event: an object that the server sent.

        Raises:
            openai.APIError: it says why the server failed.
            ProviderError: there are too many tool calls.
            IncompleteAnswerError: its finish reason says that the server gave up.
        """
        failure = error_in(event)
        if failure is not None:
            raise failed_answer(failure, event, self._place, begun=self.said_something)
        self._note(event)
        choice = _first_choice(event.get("choices"))
        if choice is None:
            return
        if choice.get("error"):  # as OpenRouter tells it
            failure = error_in(choice) or ""
            raise failed_answer(failure, choice, self._place, begun=self.said_something)
        over, before = self.is_over, self.parts
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            delta = choice.get("message")
            if isinstance(delta, Mapping):
                # Some servers give it after its parts, too.
                self.is_done = self._is_whole = True
                delta = delta if not self.parts else None
        if isinstance(delta, Mapping):
            yield from self._delta(delta)
        elif isinstance(choice.get("text"), str):
            yield from self._text(choice["text"])
        goes_on = self.finish_reason is not None and self.parts > before
        self._goes_on = self._goes_on or goes_on
        self._end(choice.get("finish_reason"), over=over and not goes_on)

    def _end(self, given: object, *, over: bool) -> None:
        """Why the answer ended; of several reasons the last that says more than "stop" counts.

        Args:
            given: the reason, as the server tells it.
            over: whether the answer was over before; the server may give up then.

        Raises:
            IncompleteAnswerError: the server gave up.
        """
        reason = given.get("type") if isinstance(given, Mapping) else given
        if not isinstance(reason, str) or not words_of(reason):
            return
        if over and (reason.lower() == "stop" or _is_broken(reason)):
            return
        self.finish_reason = reason
        if _is_broken(reason):
            more = reason_of(given) if isinstance(given, Mapping) else ""
            cause = f'the finish_reason "{cut(reason, _MAX_REASON_CHARS)}"' + (more and f": {more}")
            raise IncompleteAnswerError(
                f"The answer broke off: the server gave up, with {cause}"
                if self.said_something
                else f"The server gave up before its answer, with {cause}"
            )

    def finish(self, *, gives_reasons: bool) -> Iterator[StreamEvent]:
        """The events that are due at the end of the answer.

        Args:
            gives_reasons: whether answers of this model have had a finish_reason.

        Raises:
            IncompleteAnswerError: the server has not called it complete.
            ProviderError: a tool call cannot be used.
        """
        if self.finish_reason is None:
            self._check_end(gives_reasons)
        yield from self._tools.finish(self.finish_reason)
        for call in self._tools.whole():
            self._response.add_tool_call(call)
        if self._details:
            metadata = {REASONING_DETAILS: self._details}
            yield StreamEvent(type="reasoning", chunk="", provider_metadata=metadata)
        details = (self.usage or {}).get("completion_tokens_details")
        if not self._reasoned and isinstance(details, Mapping) and details.get("reasoning_tokens"):
            yield StreamEvent(type="reasoning", chunk="", redacted=True)

    def summarize(self) -> None:
        """Give the response what llm's own reader gives it, of an answer that broke off too."""
        summary: dict[str, Any] = {
            "content": "".join(self._texts),
            "role": self._role,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "refusal": "".join(self._refusal),
            **self._summary,
        }
        self._response.response_json = {k: v for k, v in summary.items() if v not in (None, "")}

    def _check_end(self, gives_reasons: bool) -> None:
        if not self.is_done:
            raise IncompleteAnswerError(
                "The answer broke off: the server ended it without saying that it is complete "
                '(there was no "finish_reason", and no "[DONE]")'
                if self.said_something
                else f"The server at {self._place.host} ended its answer before it had said "
                "anything; its own log may say why"
            )
        if not self.said_something:
            raise IncompleteAnswerError(
                f'The server at {self._place.host} ended its answer with "[DONE]" before it had '
                f"said anything{self._if_interrupted()}"
            )
        if gives_reasons and not self._is_whole:
            raise IncompleteAnswerError(
                'The answer broke off: the server ended it without a "finish_reason", which the '
                f"answers of this model have had{self._if_interrupted()}"
            )

    def _if_interrupted(self) -> str:
        """What to do about a server that ends a stream when another request comes."""
        if not self._place.is_endpoint:
            return ""
        return ". If the server computes one answer at a time, set max_concurrency: 1"

    def _note(self, event: Mapping[str, Any]) -> None:
        """What an event says about the answer."""
        for name in _SUMMARY:
            value = event.get(name)
            if value and name not in self._summary:
                self._summary[name] = value
                if name == "model" and isinstance(value, str):
                    self._response.set_resolved_model(value)
        # Groq and Moonshot have it elsewhere.
        for place in (event, event.get("x_groq"), _first_choice(event.get("choices"))):
            usage = place.get("usage") if isinstance(place, Mapping) else None
            if isinstance(usage, Mapping) and usage:
                # Some gateways tell what was given at first, and what was made at the end.
                given = {name: value for name, value in usage.items() if value is not None}
                self.usage = {**(self.usage or {}), **given}
                _set_usage(self._response, self.usage)
                return

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[StreamEvent]:
        role = delta.get("role")
        if isinstance(role, str) and self._role is None:
            self._role = role
        yield from self._reasoning(delta)
        content = delta.get("content")
        if isinstance(content, str):
            yield from self._text(content)
        elif isinstance(content, list):
            yield from self._parts(content)
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._refusal.append(refusal)
            yield from self._text(refusal)
        if delta.get("tool_calls"):
            self.parts += 1
            yield from self._tools.feed(delta["tool_calls"])
        elif isinstance(delta.get("function_call"), Mapping):  # the protocol before 2023-11
            self.parts += 1
            yield from self._tools.feed({"index": 0, "function": delta["function_call"]})

    def _reasoning(self, delta: Mapping[str, Any]) -> Iterator[StreamEvent]:
        details = delta.get("reasoning_details")
        if isinstance(details, list):
            self._details += details
        for name in REASONING_FIELDS:
            text = _plain(delta.get(name))
            if text:
                yield self._thought(text, name)
                return

    def _thought(self, text: str, name: str | None) -> StreamEvent:
        metadata = {REASONING_FIELD: name} if name and not self._reasoned else None
        self._reasoned = True
        self.parts += 1
        return StreamEvent(type="reasoning", chunk=text, provider_metadata=metadata)

    def _text(self, text: str) -> Iterator[StreamEvent]:
        if text:
            self.parts += 1
            self._texts.append(text)
            yield StreamEvent(type="text", chunk=text)

    def _parts(self, parts: list[Any]) -> Iterator[StreamEvent]:
        """The parts of a content: texts, and what is thought."""
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else "text"
            if kind in ("thinking", "reasoning"):
                text = _plain(part)
                if text:
                    yield self._thought(text, None)
            elif kind == "refusal":
                self._refusal.append(_plain(part.get("refusal")))
                yield from self._text(self._refusal[-1])
            else:
                yield from self._text(_plain(part))


def _is_broken(reason: str) -> bool:
    """Whether a reason says that the server gave up, as `function_call_filter: MALFORMED…`."""
    return not BROKEN_REASONS.isdisjoint(words_of(reason))


def _plain(value: object) -> str:
    """The text of a value: of a text, of an object that has one, of a list of these."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_plain, value))
    if isinstance(value, Mapping):
        names = ("text", "content", *REASONING_FIELDS)
        return next((text for name in names if (text := _plain(value.get(name)))), "")
    return ""


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    """The first choice, as in llm, which asks for one."""
    if isinstance(choices, Mapping):
        return choices
    if not isinstance(choices, list):
        return None
    for choice in choices:
        if isinstance(choice, Mapping) and choice.get("index") in (None, 0, "0", ""):
            return choice
    return None


def _set_usage(response: llm.AsyncResponse, usage: Mapping[str, Any]) -> None:
    given = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    made = count(usage.get("completion_tokens", usage.get("output_tokens")))
    details = {name: value for name, value in usage.items() if name not in _COUNTED}
    response.set_usage(input=given, output=made, details=simplify_usage_dict(details))

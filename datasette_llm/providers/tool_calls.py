"""Assemble the tool calls of an answer from the pieces in which servers send them.

By OpenAI's protocol each piece has the index of its call, and the first one the id and the name.
Servers leave out, repeat and delay each of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import llm
from llm.parts import StreamEvent

from ..errors import ProviderError
from ..events import FinishReason
from ..redaction import cut
from ..sanitize import new_id
from .finish_reasons import finish_reason_of

MAX_TOOL_CALLS = 1_000
# What providers want back beside a call, such as the signatures of Gemini.
EXTRA = "extra_content"


@dataclass(slots=True)
class _Call:
    """A call as far as it has come."""

    index: object
    given_id: str
    id: str
    name: str = ""
    pieces: list[str] = field(default_factory=list)  # of its arguments; the first is not blank
    extra: Any = None
    named: bool = False  # whether the event with its name was given out
    streamed: int = 0  # pieces that were given out
    value: dict[str, Any] | None = None

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def has(self, *texts: str) -> bool:
        """Whether one of these is all of its arguments; of many pieces without joining them."""
        return len(self.pieces) <= max(map(len, texts)) and self.arguments in texts

    def is_whole(self) -> bool:
        """Whether its arguments are complete JSON; the next piece may be of another call."""
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True


class ToolCalls:
    """The tool calls of one answer.

    Args:
        taken: ids that calls of earlier answers have.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._calls: list[_Call] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def feed(self, pieces: object) -> Iterator[StreamEvent]:
        """Take in the pieces of one event.

        Args:
            pieces: the `tool_calls` of a delta or message, or one of them.

        Raises:
            ProviderError: there are too many calls.
        """
        several = pieces if isinstance(pieces, list) else [pieces]
        begun: list[_Call] = []  # in this event, in which each entry is a call of its own
        for piece in several:
            if isinstance(piece, Mapping):
                call = self._call_of(piece, begun)
                begun.append(call)
                if not _is_repeated(call, piece):
                    _extend(call, piece)
                yield from _new_events(call)

    def finish(self, reason: str | None) -> Iterator[StreamEvent]:
        """The events that are still due; after them each call is whole.

        Args:
            reason: why the server says that the answer ended.

        Raises:
            ProviderError: the arguments of a call were cut off, or are no object.
        """
        for call in self._calls:
            if not call.name:
                raise _unusable(call, "has no name", reason)
            if call is self._calls[-1] and not call.arguments.strip() and _is_cut(reason):
                raise _unusable(call, "has no arguments yet", reason)
            call.value = _arguments(call, reason)
            yield from _last_events(call)

    def whole(self) -> Iterator[llm.ToolCall]:
        """The calls, after `finish()`."""
        for call in self._calls:
            yield llm.ToolCall(name=call.name, arguments=call.value or {}, tool_call_id=call.id)

    def _call_of(self, piece: Mapping[str, Any], begun: list[_Call]) -> _Call:
        """The call that a piece belongs to; begun if it is the first of it."""
        given_id = piece.get("id")
        given_id = given_id if isinstance(given_id, str) else ""
        index, name = piece.get("index"), _function(piece).get("name")
        call = self._candidate(index, given_id)
        if call is None and self._calls and not given_id and not name:
            return self._calls[-1]  # which was begun without an index
        if call is not None and not _is_another(call, piece, given_id, call in begun):
            return call
        if len(self._calls) == MAX_TOOL_CALLS:
            raise ProviderError(
                f"The answer has more than {MAX_TOOL_CALLS:,} tool calls, so none of them is run",
                kind="bad_answer",
            )
        call = _Call(index, given_id, self._unique(given_id))
        self._calls.append(call)
        return call

    def _candidate(self, index: object, given_id: str) -> _Call | None:
        newest_first = reversed(self._calls)
        if index is not None:
            return next((call for call in newest_first if call.index == index), None)
        if given_id:
            return next((call for call in newest_first if call.given_id == given_id), None)
        return self._calls[-1] if self._calls else None

    def _unique(self, given_id: str) -> str:
        call_id = given_id
        while not call_id or call_id in self._taken:
            call_id = f"call_{new_id()}"
        self._taken.add(call_id)
        return call_id


def _is_another(call: _Call, piece: Mapping[str, Any], given_id: str, same_event: bool) -> bool:
    """Whether a piece with a known index or id begins another call all the same."""
    if given_id and call.given_id and given_id != call.given_id:
        return True  # the index is repeated
    name = _function(piece).get("name")
    if not name or not call.name:
        return False  # it goes on, or its name has only come now
    if same_event or name != call.name:
        return True
    return bool(_arguments_in(piece)) and call.is_whole() and not _is_repeated(call, piece)


def _is_repeated(call: _Call, piece: Mapping[str, Any]) -> bool:
    """Whether a piece tells the whole call once more, as some servers do at the end."""
    text = _arguments_in(piece)
    same = bool(text) and bool(call.given_id) and piece.get("id") == call.given_id
    return same and call.has(text) and call.is_whole()


def _is_cut(reason: str | None) -> bool:
    """Whether an answer may have ended before the arguments of a call."""
    known = finish_reason_of({"finish_reason": reason})
    return known in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER)


def _extend(call: _Call, piece: Mapping[str, Any]) -> None:
    function = _function(piece)
    given_id, name, text = piece.get("id"), function.get("name"), _arguments_in(piece)
    if isinstance(given_id, str) and given_id:
        call.given_id = given_id
    if isinstance(name, str) and name:
        call.name = name
    if text.startswith("{") and call.has("{}", "null"):
        call.pieces.clear()  # gateways to Bedrock and Anthropic begin with an empty object
    if text and (call.pieces or not text.isspace()):
        call.pieces.append(text)
    if piece.get(EXTRA) is not None:
        call.extra = piece[EXTRA]


def _arguments_in(piece: Mapping[str, Any]) -> str:
    arguments = _function(piece).get("arguments")
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments)


def _function(piece: Mapping[str, Any]) -> Mapping[str, Any]:
    function = piece.get("function")
    return function if isinstance(function, Mapping) else piece


def _new_events(call: _Call) -> Iterator[StreamEvent]:
    """What can be given out: the name, and arguments that are an object as they should."""
    if not call.name:
        return
    if not call.named:
        call.named = True
        yield StreamEvent(type="tool_call_name", chunk=call.name, tool_call_id=call.id)
    is_object = bool(call.pieces) and call.pieces[0].lstrip().startswith("{")
    if is_object and len(call.pieces) > call.streamed and not call.has("{}"):
        yield _arguments_event(call, "".join(call.pieces[call.streamed :]))


def _last_events(call: _Call) -> Iterator[StreamEvent]:
    yield from _new_events(call)
    if not call.streamed:
        yield _arguments_event(call, json.dumps(call.value))
    if call.extra is not None:
        yield StreamEvent(
            type="tool_call_args",
            chunk="",
            tool_call_id=call.id,
            provider_metadata={EXTRA: call.extra},
        )


def _arguments_event(call: _Call, text: str) -> StreamEvent:
    call.streamed = len(call.pieces)
    return StreamEvent(type="tool_call_args", chunk=text, tool_call_id=call.id)


def _arguments(call: _Call, reason: str | None) -> dict[str, Any]:
    """The arguments of a call.

    Raises:
        ProviderError: they are no object.
    """
    value: Any = call.arguments.strip()
    for _ in range(2):  # some servers put the text of the JSON into a text
        if not isinstance(value, str):
            break
        if not value:
            value = {}
            break
        try:
            value = json.loads(value, strict=False)
        except (ValueError, RecursionError):
            raise _unusable(call, "has arguments that are no complete JSON", reason) from None
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise _unusable(call, "has arguments that are no JSON object", reason)
    return value


def _unusable(call: _Call, what: str, reason: str | None) -> ProviderError:
    cause = f'the answer ended with the finish_reason "{reason}"' if reason else "it was cut off"
    if reason == "length":
        cause += ", so max_tokens or the context of the model was too small"
    tool = f"of the tool {cut(call.name, 100)!r}" if call.name else "of a tool"
    return ProviderError(
        f"A call {tool} {what}, and was not run: {cause}. It began: {cut(call.arguments, 100)!r}",
        kind="bad_answer",
    )

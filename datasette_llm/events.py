"""A request to a provider as plain values: how it started, and how it finished.

An attempt builds each once; the call log and the traces are made of them. Keys have been taken
out of every text, and every text is one that SQLite and JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import llm

from .errors import FailureKind, ModelNotAllowedError
from .redaction import Keys, shortened
from .sanitize import as_json, brief, count, new_id, one_line
from .tags.values import NO_TAGS, Tags

# More than any provider reports about its tokens.
MAX_DETAILS_CHARS = 20_000
# Of an id that a provider or a gateway gave.
MAX_ID_CHARS = 200
# A million; more for one call is a mistake.
MAX_DOLLARS = 1e6
_IDS = ("response_id", "request_id", "gateway_call_id", "gateway_model_id")


class Outcome(StrEnum):
    """How a call ended; a closed set."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    LOST = "lost"


class FinishReason(StrEnum):
    """Why an answer ended; a closed set."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"
    REFUSAL = "refusal"
    OTHER = "other"


class Receipt(NamedTuple):
    """What a provider, and a gateway before it, call a request: as they sent it, unchecked.

    Attributes:
        response_id: the provider's id of its answer, or None.
        request_id: the provider's id of the request, or None.
        gateway_call_id: the gateway's id of the request, or None.
        gateway_model_id: the gateway's id of the deployment that it chose, or None.
        gateway_cost: what the gateway says that it cost, in dollars, or None.
    """

    response_id: object = None
    request_id: object = None
    gateway_call_id: object = None
    gateway_model_id: object = None
    gateway_cost: object = None


class Saved(NamedTuple):
    """What an answer would have taken that another call has paid for; unknown if it was not read.

    Attributes:
        call_id: that call.
        input_tokens: as the provider reported, or None.
        output_tokens: as the provider reported, or None.
        token_details: JSON, or None.
        gateway_cost_dollars: what a gateway said that it cost, or None.
        duration_s: how long its request took, in seconds, or None.
    """

    call_id: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    token_details: str | None = None
    gateway_cost_dollars: float | None = None
    duration_s: float | None = None


class RequestStarted(NamedTuple):
    """A request as it is about to be sent.

    Attributes:
        id: its own; of the first attempt at a response the response's.
        model_id: the model that is asked.
        purpose: what it is for, or None.
        actor_id: who asks, or None.
        group_id: the group that it belongs to, or None.
        chain_id: the id of the first response of its chain, or None.
        chain_step: its number in the chain, from 1, or None.
        conversation_id: the conversation that it is a turn of, or None.
        prompt_id: of a later attempt the id of the response; of a repair by `structured()` that of
            the response whose answer it repairs; else None.
        attempt: 1 for the first attempt.
        waited_s: how long it waited for a concurrency limit, in seconds; None without a limit.
        streaming: whether the answer is wanted piece by piece.
        prompt_chars: characters of the last message.
        system_chars: characters of the system prompts.
        message_count: messages, history included.
        attachment_count: attachments of the last message.
        temperature: the option of that name, or None.
        max_tokens: the option of that name, or None.
        tags: what it is tied to, by its caller and by the request of Datasette that caused it.
    """

    id: str
    model_id: str
    purpose: str | None
    actor_id: str | None
    group_id: str | None
    chain_id: str | None = None
    chain_step: int | None = None
    conversation_id: str | None = None
    prompt_id: str | None = None
    attempt: int = 1
    waited_s: float | None = None
    streaming: bool = False
    prompt_chars: int = 0
    system_chars: int = 0
    message_count: int = 0
    attachment_count: int = 0
    temperature: float | None = None
    max_tokens: int | None = None
    tags: Tags = NO_TAGS


class RequestFinished(NamedTuple):
    """How a request ended, and what the provider reported.

    Attributes:
        id: that of its `RequestStarted`.
        outcome: how it ended.
        duration_s: from before it was sent, in seconds.
        first_chunk_s: until the first event, in seconds; None where none came.
        error_type: the name of the exception's class, or None.
        error_message: its message, or None.
        http_status: the HTTP status that the exception carries, or None.
        blocked_by: the plugin or the rule that kept it from being sent, or None.
        input_tokens: as the provider reported, or None.
        output_tokens: as the provider reported, or None.
        token_details: JSON, or None.
        resolved_model: the model that the provider says it used, or None.
        finish_reason: why the answer ended, as the provider says, or None.
        failure_kind: what kind of failure it was; None for a success, a cancellation or a loss.
        response_id: the provider's id of its answer, or None.
        request_id: the provider's id of the request, or None.
        gateway_call_id: a gateway's id of the request, or None.
        gateway_model_id: a gateway's id of the deployment that it chose, or None.
        gateway_cost_dollars: what a gateway says that it cost, or None.
        saved: of an answer of the response cache what it would have taken; else None.
    """

    id: str
    outcome: Outcome
    duration_s: float = 0.0
    first_chunk_s: float | None = None
    error_type: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    blocked_by: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    token_details: str | None = None
    resolved_model: str | None = None
    finish_reason: FinishReason | None = None
    failure_kind: FailureKind | None = None
    response_id: str | None = None
    request_id: str | None = None
    gateway_call_id: str | None = None
    gateway_model_id: str | None = None
    gateway_cost_dollars: float | None = None
    saved: Saved | None = None


def saved(
    call_id: str, response: llm.AsyncResponse, cost: float | None, duration_s: float | None
) -> Saved:
    """What an answer would have taken.

    Args:
        call_id: the call that has paid for it.
        response: complete, with the tokens of that call.
        cost: what a gateway said that it cost, in dollars, or None.
        duration_s: how long that call took, in seconds, or None.
    """
    details = response.token_details
    return Saved(
        call_id,
        count(response.input_tokens),
        count(response.output_tokens),
        _details(details, None) if details else None,
        cost,
        duration_s,
    )


def never_sent(
    model_id: str,
    purpose: str | None,
    actor: Mapping[str, Any] | None,
    group_id: str | None,
    keys: Keys = None,
    tags: Tags = NO_TAGS,
) -> RequestStarted:
    """The start of a call that was blocked before there was a response.

    Args:
        model_id: the model that was asked for.
        purpose: as the caller named it.
        actor: Datasette's actor dictionary, or None.
        group_id: the group, or None.
        keys: what to take out of the texts.
        tags: its tags.
    """
    return RequestStarted(
        new_id(),
        brief(model_id, keys),
        _name(purpose, keys),
        _actor_id(actor, keys),
        group_id,
        tags=_tags(tags, keys),
    )


def request_started(
    response: llm.AsyncResponse,
    *,
    request_id: str,
    attempt: int,
    model_id: str,
    purpose: str | None,
    actor: Mapping[str, Any] | None,
    group_id: str | None,
    chain: list[Any] | None,
    waited_s: float | None,
    keys: Keys,
    repaired_id: str | None = None,
    tags: Tags = NO_TAGS,
    sized: bool = True,
) -> RequestStarted:
    """A request as it is about to be sent.

    Args:
        response: what the request fills.
        request_id: its id.
        attempt: 1 for the first attempt at this response.
        model_id: the model that is asked.
        purpose: as the caller named it.
        actor: Datasette's actor dictionary, or None.
        group_id: the group, or None.
        chain: the responses of its chain, this one included; None outside of a chain.
        waited_s: how long it waited for a concurrency limit, in seconds, or None.
        keys: what to take out of the texts.
        repaired_id: the id of the response whose answer it is to repair, or None.
        tags: its tags.
        sized: whether its sizes are wanted, as the call log does and traces do not.
    """
    conversation = response.conversation
    # Read where pydantic keeps them: asking it for an option that a model has not is slow.
    options = getattr(response.prompt.options, "__dict__", {})
    temperature = options.get("temperature")
    return RequestStarted(
        request_id,
        brief(model_id, keys),
        _name(purpose, keys),
        _actor_id(actor, keys),
        group_id,
        chain[0].id if chain else None,
        chain.index(response) + 1 if chain else None,
        brief(conversation.id, keys) if conversation else None,
        repaired_id if attempt == 1 else response.id,
        attempt,
        waited_s,
        bool(response.stream),
        *(_sizes_of(response) if sized else _UNSIZED),
        _float(temperature),
        count(options.get("max_tokens")),
        _tags(tags, keys) if tags else NO_TAGS,
    )


def request_finished(
    request_id: str,
    response: llm.AsyncResponse,
    outcome: Outcome,
    error: BaseException | None,
    *,
    keys: Keys,
    duration_s: float,
    first_chunk_s: float | None,
    blocked_by: str | None = None,
    finish_reason: FinishReason | None = None,
    failure_kind: FailureKind | None = None,
    message: str | None = None,
    receipt: Receipt | None = None,
) -> RequestFinished:
    """How a request ended.

    Args:
        request_id: that of its start.
        response: what it filled.
        outcome: how it ended.
        error: what the caller gets, or None.
        keys: what to take out of the texts.
        duration_s: in seconds.
        first_chunk_s: until the first event, in seconds, or None.
        blocked_by: who kept it from being sent, or None.
        finish_reason: why the answer ended, or None.
        failure_kind: the kind of the failure, or None.
        message: the error for people to read; None for its own message.
        receipt: what the provider and a gateway call it, or None.
    """
    details, resolved = response.token_details, response.resolved_model
    finished = RequestFinished(
        request_id,
        outcome,
        duration_s,
        first_chunk_s,
        type(error).__name__ if error else None,
        brief(error if message is None else message, keys) if error else None,
        _http_status(error) if error else None,
        brief(blocked_by) if blocked_by else None,
        count(response.input_tokens),
        count(response.output_tokens),
        _details(details, keys) if details else None,
        brief(resolved, keys) if resolved else None,
        finish_reason,
        failure_kind,
    )
    return finished if receipt is None else finished._replace(**_cleaned(receipt, keys))


def unsent(
    started: RequestStarted,
    outcome: Outcome,
    error: BaseException,
    keys: Keys = None,
    blocked_by: str | None = None,
    failure_kind: FailureKind | None = None,
    message: str | None = None,
) -> RequestFinished:
    """How a request ended that was never sent.

    Args:
        started: its start.
        outcome: `blocked`, or how the wait for a concurrency limit ended.
        error: what the caller got.
        keys: what to take out of its message.
        blocked_by: the plugin or the rule that blocked it, or None.
        failure_kind: the kind of the failure; None for what the outcome says.
        message: the error for people to read; None for its own message.
    """
    if failure_kind is None and outcome is Outcome.BLOCKED:
        failure_kind = "not_allowed" if isinstance(error, ModelNotAllowedError) else "blocked"
    return RequestFinished(
        started.id,
        outcome,
        error_type=type(error).__name__,
        error_message=brief(error if message is None else message, keys),
        blocked_by=brief(blocked_by) if blocked_by else None,
        failure_kind=failure_kind,
    )


def _name(purpose: str | None, keys: Keys) -> str | None:
    # An empty name is none, as it is in the filters of the call log.
    return None if purpose in (None, "") else brief(purpose, keys)


def _actor_id(actor: Mapping[str, Any] | None, keys: Keys) -> str | None:
    # An actor that is no mapping breaks no rule of ours before this.
    actor_id = actor.get("id") if isinstance(actor, Mapping) else None
    return None if actor_id in (None, "") else brief(actor_id, keys)


def _tags(tags: Tags, keys: Keys) -> Tags:
    plain = {brief(k, keys): brief(v, keys) if isinstance(v, str) else v for k, v in tags.items()}
    return MappingProxyType(plain) if plain else NO_TAGS


def _details(details: object, keys: Keys) -> str:
    text = as_json(details, keys, MAX_DETAILS_CHARS)
    if len(text) > MAX_DETAILS_CHARS:
        return as_json(f"More than {MAX_DETAILS_CHARS:,} characters, too much to keep", None)
    return text


def _cleaned(receipt: Receipt, keys: Keys) -> dict[str, Any]:
    ids = {name: _id(getattr(receipt, name), keys) for name in _IDS}
    return {**ids, "gateway_cost_dollars": _dollars(receipt.gateway_cost)}


def _id(value: object, keys: Keys) -> str | None:
    """An id of a provider on one line; None where it is no text."""
    if not isinstance(value, str):
        return None
    return one_line(shortened(value, keys, MAX_ID_CHARS)).strip() or None


def _dollars(value: object) -> float | None:
    """A cost that a gateway has sent, as a text or a number; None if it is no plausible one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        dollars = float(value)
    except (ValueError, OverflowError):
        return None
    return dollars if 0 <= dollars <= MAX_DOLLARS else None


def _float(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # a number that no model has as an option
        return None


def _http_status(error: BaseException) -> int | None:
    try:
        status = getattr(error, "status_code", None)
    except Exception:  # a third-party exception, whose property may raise
        return None
    return status if isinstance(status, int) else None


_UNSIZED = (0, 0, 0, 0)


def _sizes_of(response: llm.AsyncResponse) -> tuple[int, int, int, int]:
    try:
        return _sizes(response.prompt.messages)
    except Exception:  # llm makes them of what a caller gave, which the model may never look at
        return 0, 0, 0, 0


def _sizes(messages: list[Any]) -> tuple[int, int, int, int]:
    """How large a request is: its last message is what is new, the text of a reply for example."""
    last = messages[-1].parts if messages else []
    system = [part for message in messages if message.role == "system" for part in message.parts]
    attachments = sum(
        len(getattr(part, "attachments", ())) + hasattr(part, "attachment") for part in last
    )
    return _chars(last), _chars(system), len(messages), attachments


def _chars(parts: list[Any]) -> int:
    texts = (getattr(part, "text", None) or getattr(part, "output", None) or "" for part in parts)
    return sum(len(text) for text in texts if isinstance(text, str))

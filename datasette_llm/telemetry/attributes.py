"""The attributes of spans and measurements, from what is known of models and requests."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import llm

from ..events import Outcome, RequestFinished, RequestStarted
from ..log.cost import reasoning_tokens, usage_of
from ..redaction import Keys
from ..sanitize import brief
from . import registry as names

if TYPE_CHECKING:
    from ..config.settings import TelemetrySettings

Attributes = dict[str, str | bool | int | float | Sequence[str]]

_PORTS = {"http": 80, "https": 443}


def model_attributes(model: Any) -> Attributes:
    """What all telemetry of a model has; not to be changed.

    Args:
        model: llm's own model object, or the async adapter of one.
    """
    model = getattr(model, "sync_model", model)
    address = getattr(model, "api_base", None)
    return named_attributes(
        model.model_id,
        getattr(model, "needs_key", None),
        address if isinstance(address, str) else None,
        is_endpoint=hasattr(model, "own_secret"),
    )


@functools.lru_cache(maxsize=1_000)
def named_attributes(
    model_id: str,
    needs_key: str | None = None,
    address: str | None = None,
    *,
    is_endpoint: bool = False,
) -> Attributes:
    """As `model_attributes`.

    Args:
        model_id: the id of the model, as llm knows it.
        needs_key: llm's name for its provider's key, or None.
        address: the base address of its server, or None.
        is_endpoint: whether it is an endpoint of the configuration.
    """
    host, port = _server(address) if address else (None, None)
    # The needs_key of an endpoint is the name of a secret, and says nothing about the provider.
    by_key = None if is_endpoint else names.PROVIDERS.get(needs_key or "")
    provider = _provider_at(host) if host else None
    return _known(
        {
            names.OPERATION_NAME: "chat",
            names.REQUEST_MODEL: model_id,
            names.PROVIDER_NAME: provider or by_key or ("openai" if host else None),
        }
    ) | _known({names.SERVER_ADDRESS: host, names.SERVER_PORT: port})


def request_attributes(started: RequestStarted, settings: TelemetrySettings) -> Attributes:
    """What is known of a request before it is sent."""
    found = {
        names.CALL_ID: started.id,
        names.PROMPT_ID: started.prompt_id,
        names.ATTEMPT: started.attempt if started.attempt > 1 else None,
        names.WAITED: started.waited_s,
        names.REQUEST_STREAM: started.streaming or None,
        names.REQUEST_TEMPERATURE: started.temperature,
        names.REQUEST_MAX_TOKENS: started.max_tokens,
        names.CHAIN_STEP: started.chain_step,
    }
    return _known(found) | ties(started, settings)


def ties(started: RequestStarted, settings: TelemetrySettings) -> Attributes:
    """What a request is tied to: a chain has the same ties."""
    found = {
        names.CONVERSATION_ID: started.conversation_id,
        names.CHAIN_ID: started.chain_id,
        names.PURPOSE: started.purpose,
        names.GROUP_ID: started.group_id,
        names.USER_ID: started.actor_id if settings.actor else None,
    }
    return _known(found) | {f"{names.TAGS}{key}": value for key, value in started.tags.items()}


def outcome_attributes(finished: RequestFinished) -> Attributes:
    """How a request ended, by the rule of the call log.

    By the conventions a status is an error's only if the operation failed. One that was
    cancelled has done what was asked of it, and OpenTelemetry's own `use_span` leaves the
    status unset for a CancelledError too.
    """
    outcome = str(finished.outcome)  # faster than `.value`
    failed = finished.outcome in (Outcome.ERROR, Outcome.BLOCKED)
    if failed and finished.error_type is not None:
        return {names.OUTCOME: outcome, names.ERROR_TYPE: finished.error_type}
    return {names.OUTCOME: outcome}


def answer_attributes(finished: RequestFinished, first_chunk_s: float | None) -> Attributes:
    """What is known of a request at its end, without its tokens.

    Args:
        finished: how it ended.
        first_chunk_s: until the first chunk, in seconds; None for one that does not stream.
    """
    reason = finished.finish_reason
    found = {
        names.BLOCKED_BY: finished.blocked_by,
        names.CACHED: True if finished.saved is not None else None,
        names.TIME_TO_FIRST_CHUNK: first_chunk_s,
        names.RESPONSE_ID: finished.response_id,
        names.RESPONSE_MODEL: finished.resolved_model,
        names.GATEWAY_CALL_ID: finished.gateway_call_id,
        names.FINISH_REASONS: None if reason is None else [str(reason)],
    }
    return outcome_attributes(finished) | _known(found)


def usage_attributes(finished: RequestFinished) -> dict[str, int]:
    """The tokens that the provider reported, as the conventions count them."""
    if not has_tokens(finished):
        return {}
    row = finished._asdict()  # its tokens have the names of those of a row
    usage = usage_of(row)
    found = {
        names.INPUT_TOKENS: usage["input_tokens"] if finished.input_tokens is not None else None,
        names.CACHE_READ_TOKENS: usage.get("cache_read_tokens"),
        names.CACHE_CREATION_TOKENS: usage.get("cache_write_tokens"),
        names.OUTPUT_TOKENS: finished.output_tokens,
        names.REASONING_TOKENS: reasoning_tokens(row),
    }
    return {name: tokens for name, tokens in found.items() if tokens is not None}


def has_tokens(finished: RequestFinished) -> bool:
    """Whether the provider reported any tokens."""
    return finished.input_tokens is not None or finished.output_tokens is not None


def tool_attributes(name: str, call: llm.ToolCall | None, keys: Keys) -> Attributes:
    """What is known of a tool before it runs.

    Args:
        name: of the tool.
        call: the model's call of it; None where that is not known.
        keys: what to take out of its id, which is the provider's.
    """
    call_id = call.tool_call_id if call is not None else None
    found = {
        names.OPERATION_NAME: "execute_tool",
        names.TOOL_NAME: name,
        names.TOOL_TYPE: "function",
        names.TOOL_CALL_ID: brief(call_id, keys) if call_id is not None else None,
    }
    return _known(found)


def description_of(finished: RequestFinished) -> str:
    """What may be shown of an error: not its message, which may quote the prompt or a key."""
    status = "" if finished.http_status is None else f" (HTTP {finished.http_status})"
    return f"{finished.error_type}{status}"


def _known(found: Mapping[str, Any]) -> Attributes:
    return {name: value for name, value in found.items() if value is not None}


def _server(address: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(address)
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # no address, for example with a port that is no number
        return None, None


def _provider_at(host: str) -> str | None:
    labels = host.split(".")
    domains = (".".join(labels[number:]) for number in range(len(labels)))
    return next((names.HOSTS[each] for each in domains if each in names.HOSTS), None)

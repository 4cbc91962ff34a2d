"""Traces and metrics of the requests to providers, through the OpenTelemetry API.

As Datasette does, we depend on the API alone: whoever runs Datasette installs a provider and an
exporter, and decides on sampling. Without them a span is one that records nothing, and no
attribute is put together for it.

What is emitted is described in `telemetry_registry`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import time
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, StatusCode

from ..sanitize import brief, count
from . import registry as names

if TYPE_CHECKING:
    from datasette.telemetry_registry import MetricName

    from ..calls.attempt import Attempt
    from ..calls.call import Call
    from ..calls.response import PromptResponse

    Attributes = dict[str, str | bool | int | float]

SCOPE = "datasette_llm"

_version = importlib.metadata.version("datasette-llm")
tracer = trace.get_tracer(SCOPE, _version, schema_url=names.SCHEMA_URL)
_meter = metrics.get_meter(SCOPE, _version, schema_url=names.SCHEMA_URL)


def _histogram(name: MetricName) -> metrics.Histogram:
    return _meter.create_histogram(
        name,
        unit=name.unit,
        description=name.description,
        explicit_bucket_boundaries_advisory=name.buckets,
    )


_duration = _histogram(names.OPERATION_DURATION)
_time_to_first_chunk = _histogram(names.OPERATION_TIME_TO_FIRST_CHUNK)
_token_usage = _histogram(names.TOKEN_USAGE)


class RequestSpan:
    """The span of one request to a provider, and what is measured of it.

    It is the current span inside the `with` block. Measured is every request, whether or not
    its trace is sampled.
    """

    __slots__ = ("_attempt", "_attributes", "_began", "_response", "_span", "_token")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._response = attempt.response
        self._token: Token[otel_context.Context] | None = None

    def __enter__(self) -> None:
        model = self._attempt.model
        name, self._attributes = _model(model.model_id, model.needs_key)
        self._began = time.monotonic()
        span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=self._attributes)
        self._span = span
        if span.is_recording():
            span.set_attributes(_request(self._attempt))
        # One that is not sampled has to be current too, so that those inside it are not sampled
        # either. Without a provider there is none.
        if span is not trace.INVALID_SPAN:
            self._token = otel_context.attach(trace.set_span_in_context(span))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_: TracebackType | None,
    ) -> None:
        # A task that its event loop left behind is closed outside of its own context, and that
        # context is gone with it.
        if self._token is not None and kind is not GeneratorExit:
            otel_context.detach(self._token)
        try:
            end = _end(self._attempt.call, error)
            self._measure(end)
            if self._span.is_recording():
                self._describe(end, error)
        finally:
            self._span.end()

    def _measure(self, end: Attributes) -> None:
        attributes = self._attributes
        _duration.record(time.monotonic() - self._began, attributes | end)
        first_chunk_s = self._first_chunk_s()
        if first_chunk_s is not None:
            _time_to_first_chunk.record(first_chunk_s, attributes.copy())
        for token_type, _, tokens in _usage(self._response):
            _token_usage.record(tokens, attributes | {names.TOKEN_TYPE: token_type})

    def _describe(self, end: Attributes, error: BaseException | None) -> None:
        attributes = end | {name: tokens for _, name, tokens in _usage(self._response)}
        first_chunk_s = self._first_chunk_s()
        if first_chunk_s is not None:
            attributes[names.TIME_TO_FIRST_CHUNK] = first_chunk_s
        answered_by = self._response.resolved_model
        if isinstance(answered_by, str):
            attributes[names.RESPONSE_MODEL] = brief(answered_by, self._attempt.key)
        self._span.set_attributes(attributes)
        if error is not None and names.ERROR_TYPE in attributes:
            self._span.set_status(StatusCode.ERROR, _description(error))

    def _first_chunk_s(self) -> float | None:
        flight = self._response._flight
        if flight is None or flight.first_event_at is None or not self._response.stream:
            return None
        return flight.first_event_at - self._began


@functools.lru_cache(maxsize=1_000)
def _model(model_id: str, needs_key: str | None) -> tuple[str, Attributes]:
    """The name of the span, and the attributes that everything has; not to be changed."""
    attributes: Attributes = {names.OPERATION_NAME: "chat", names.REQUEST_MODEL: model_id}
    provider = names.PROVIDERS.get(needs_key or "")
    if provider is not None:
        attributes[names.PROVIDER_NAME] = provider
    return f"{names.CHAT}{model_id}", attributes


def _request(attempt: Attempt) -> Attributes:
    """What is known of a request before it is made."""
    response, result, key = attempt.response, attempt.call.result, attempt.key
    options = response.prompt.options
    temperature = getattr(options, "temperature", None)
    max_tokens = count(getattr(options, "max_tokens", None))  # some exporters take 63 bits
    attributes: Attributes = {names.CALL_ID: attempt.id}
    if attempt.number > 1:
        attributes[names.ATTEMPT] = attempt.number
    if attempt.waited_s is not None:
        attributes[names.WAITED] = attempt.waited_s
    if response.stream:
        attributes[names.REQUEST_STREAM] = True
    if isinstance(temperature, int | float):
        attributes[names.REQUEST_TEMPERATURE] = float(temperature)
    if max_tokens is not None:
        attributes[names.REQUEST_MAX_TOKENS] = max_tokens
    if response.conversation is not None:
        attributes[names.CONVERSATION_ID] = brief(response.conversation.id, key)
    if result.purpose is not None:
        attributes[names.PURPOSE] = brief(result.purpose, key)
    if result.group is not None:
        attributes[names.GROUP_ID] = result.group.id
    if result.is_chain:
        attributes[names.CHAIN_STEP] = result.responses.index(response) + 1
    return attributes


def _end(call: Call, error: BaseException | None) -> Attributes:
    """How a request ended, by the rule of the log.

    By the conventions a status is an error's only if the operation failed. One that was
    cancelled has done what was asked of it, and OpenTelemetry's own `use_span` leaves the
    status unset for a CancelledError too.
    """
    outcome = call.outcome(error)
    if outcome == "error":
        return {names.OUTCOME: outcome, names.ERROR_TYPE: type(error).__name__}
    return {names.OUTCOME: outcome}


def _usage(response: PromptResponse) -> list[tuple[str, str, int]]:
    """The type, the attribute and the number of the tokens that the provider told of."""
    told = (
        ("input", names.INPUT_TOKENS, count(response.input_tokens)),
        ("output", names.OUTPUT_TOKENS, count(response.output_tokens)),
    )
    return [(kind, name, tokens) for kind, name, tokens in told if tokens is not None]


def _description(error: BaseException) -> str:
    """What may be said of an error: not its message, which may quote the prompt or a key."""
    status: Any = None
    with contextlib.suppress(Exception):  # a stranger's exception, which may have a property
        status = getattr(error, "status_code", None)
    name = type(error).__name__
    return f"{name} (HTTP {status})" if isinstance(status, int) else name

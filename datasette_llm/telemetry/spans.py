"""Traces and metrics of the requests to providers, through the OpenTelemetry API.

As in Datasette itself, only the API is a dependency: an administrator installs a provider and an
exporter, and decides on sampling. Without them a span records nothing, and no attribute is
computed for it.

What is emitted is declared in `registry`.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from contextvars import Token
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, StatusCode

from ..events import Outcome, RequestFinished, RequestStarted
from . import registry as names

if TYPE_CHECKING:
    from datasette.telemetry_registry import MetricName


Attributes = dict[str, str | bool | int | float | Sequence[str]]

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

    Measured is every request, whether or not its trace is sampled. Enter it in the task that
    makes the request: from then on it is the current span there.

    Args:
        model_id: the model that is asked.
        needs_key: llm's name for its provider's key, or None.
        started: gives the request as values; called only if the span is recording.
    """

    __slots__ = ("_attributes", "_span", "_started", "_token")

    def __init__(
        self, model_id: str, needs_key: str | None, started: Callable[[], RequestStarted]
    ) -> None:
        name, self._attributes = _model(model_id, needs_key)
        self._started = started
        self._token: Token[otel_context.Context] | None = None
        self._span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=self._attributes)
        if self._span.is_recording():
            self._span.set_attributes(_request(started()))
        # One that is not sampled has to be current too, so that those inside it are not sampled
        # either. Without a provider there is none.
        if self._span is not trace.INVALID_SPAN:
            self._token = otel_context.attach(trace.set_span_in_context(self._span))

    def end(self, finished: RequestFinished, *, streaming: bool, detach: bool) -> None:
        """The request has finished.

        Args:
            finished: how.
            streaming: whether its answer was wanted piece by piece.
            detach: whether the task is still in its own context. One that its event loop left
                behind is closed outside of it.
        """
        if self._token is not None and detach:
            otel_context.detach(self._token)
        try:
            first_chunk_s = finished.first_chunk_s if streaming else None
            self._measure(finished, first_chunk_s)
            if self._span.is_recording():
                self._describe(finished, first_chunk_s)
        finally:
            self._span.end()

    def _measure(self, finished: RequestFinished, first_chunk_s: float | None) -> None:
        attributes = self._attributes
        _duration.record(finished.duration_s, attributes | _end(finished))
        if first_chunk_s is not None:
            _time_to_first_chunk.record(first_chunk_s, attributes.copy())
        for token_type, _, tokens in _usage(finished):
            _token_usage.record(tokens, attributes | {names.TOKEN_TYPE: token_type})

    def _describe(self, finished: RequestFinished, first_chunk_s: float | None) -> None:
        attributes = _end(finished) | {name: tokens for _, name, tokens in _usage(finished)}
        if first_chunk_s is not None:
            attributes[names.TIME_TO_FIRST_CHUNK] = first_chunk_s
        if finished.resolved_model is not None:
            attributes[names.RESPONSE_MODEL] = finished.resolved_model
        if finished.finish_reason is not None:
            attributes[names.FINISH_REASONS] = [str(finished.finish_reason)]
        self._span.set_attributes(attributes)
        if names.ERROR_TYPE in attributes:
            self._span.set_status(StatusCode.ERROR, _description(finished))


@functools.lru_cache(maxsize=1_000)
def _model(model_id: str, needs_key: str | None) -> tuple[str, Attributes]:
    """The name of the span, and the attributes that everything has; not to be changed."""
    attributes: Attributes = {names.OPERATION_NAME: "chat", names.REQUEST_MODEL: model_id}
    provider = names.PROVIDERS.get(needs_key or "")
    if provider is not None:
        attributes[names.PROVIDER_NAME] = provider
    return f"{names.CHAT}{model_id}", attributes


def _request(started: RequestStarted) -> Attributes:
    """What is known of a request before it is sent."""
    found = {
        names.CALL_ID: started.id,
        names.ATTEMPT: started.attempt if started.attempt > 1 else None,
        names.WAITED: started.waited_s,
        names.REQUEST_STREAM: started.streaming or None,
        names.REQUEST_TEMPERATURE: started.temperature,
        names.REQUEST_MAX_TOKENS: started.max_tokens,
        names.CONVERSATION_ID: started.conversation_id,
        names.PURPOSE: started.purpose,
        names.GROUP_ID: started.group_id,
        names.CHAIN_STEP: started.chain_step,
    }
    return {name: value for name, value in found.items() if value is not None}


def _end(finished: RequestFinished) -> Attributes:
    """How a request ended, by the rule of the call log.

    By the conventions a status is an error's only if the operation failed. One that was
    cancelled has done what was asked of it, and OpenTelemetry's own `use_span` leaves the
    status unset for a CancelledError too.
    """
    outcome = str(finished.outcome)  # faster than `.value`
    if finished.outcome is Outcome.ERROR and finished.error_type is not None:
        return {names.OUTCOME: outcome, names.ERROR_TYPE: finished.error_type}
    return {names.OUTCOME: outcome}


def _usage(finished: RequestFinished) -> list[tuple[str, str, int]]:
    """The type, the attribute and the number of the tokens that the provider reported."""
    counts = (
        ("input", names.INPUT_TOKENS, finished.input_tokens),
        ("output", names.OUTPUT_TOKENS, finished.output_tokens),
    )
    return [(kind, name, tokens) for kind, name, tokens in counts if tokens is not None]


def _description(finished: RequestFinished) -> str:
    """What may be shown of an error: not its message, which may quote the prompt or a key."""
    status = "" if finished.http_status is None else f" (HTTP {finished.http_status})"
    return f"{finished.error_type}{status}"

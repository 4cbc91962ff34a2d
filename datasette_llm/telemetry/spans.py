"""Traces and metrics of calls, through the OpenTelemetry API.

As in Datasette itself, only the API is a dependency: an administrator installs a provider and an
exporter, and decides on sampling. Without them there is no span, and nothing is computed for one.

What is emitted is declared in `registry`.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable
from contextvars import Token
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import llm
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from ..events import Outcome, RequestFinished, RequestStarted
from ..log.cost import NANODOLLARS, cost_columns
from ..log.rows import finished_row
from ..providers.threads import SerialThread
from ..redaction import Keys
from ..sanitize import well_formed
from . import registry as names
from .attributes import (
    Attributes,
    answer_attributes,
    description_of,
    has_tokens,
    model_attributes,
    named_attributes,
    outcome_attributes,
    request_attributes,
    ties,
    tool_attributes,
    usage_attributes,
)
from .content import value_json

if TYPE_CHECKING:
    from datasette.telemetry_registry import MetricName

    from ..config.settings import PriceSettings, TelemetrySettings

SCOPE = "datasette_llm"
# How long a shutdown waits for spans whose cost is being looked up.
FLUSH_S = 5.0
# So many may wait for that, as they do where an exporter blocks; others end without it.
MAX_LATE = 10_000

_version = importlib.metadata.version("datasette-llm")
tracer = trace.get_tracer(SCOPE, _version, schema_url=names.SCHEMA_URL)
_meter = metrics.get_meter(SCOPE, _version, schema_url=names.SCHEMA_URL)
# For what takes long at the end of a span: the table of prices is slow, and messages are long.
_late_ends = SerialThread("datasette-llm telemetry")


def _histogram(name: MetricName) -> metrics.Histogram:
    return _meter.create_histogram(
        name,
        unit=name.unit,
        description=name.description,
        explicit_bucket_boundaries_advisory=name.buckets,
    )


def _counter(name: MetricName) -> metrics.Counter:
    return _meter.create_counter(name, unit=name.unit, description=name.description)


_duration = _histogram(names.OPERATION_DURATION)
_time_to_first_chunk = _histogram(names.OPERATION_TIME_TO_FIRST_CHUNK)
_token_usage = _histogram(names.TOKEN_USAGE)
_calls = _counter(names.CALLS)
_cost = _counter(names.COST_SUM)


class Target(Protocol):
    """What spans know of a model and its settings, none of which changes.

    Attributes:
        model: llm's own model object.
        price: its configured price, or None.
        exact_price: as for `cost_columns()`.
        telemetry: what its spans hold.
    """

    @property
    def model(self) -> Any: ...
    @property
    def price(self) -> PriceSettings | None: ...
    @property
    def exact_price(self) -> bool: ...
    @property
    def telemetry(self) -> TelemetrySettings: ...


class After(NamedTuple):
    """The attempt before one.

    Attributes:
        context: of its span.
        link: why there is another.
    """

    context: SpanContext
    link: Literal["retry", "fallback"]


def is_traced() -> bool:
    """Whether there is anything that collects spans."""
    return _collects(trace.get_tracer_provider())


def is_measured() -> bool:
    """Whether there is anything that collects measurements."""
    return _collects(metrics.get_meter_provider())


def flush(timeout_s: float = FLUSH_S) -> None:
    """Wait until the spans of all requests that have ended are ended, too.

    Args:
        timeout_s: how long at most.
    """
    if _late_ends.is_begun:
        done = threading.Event()
        _late_ends.put(done.set)
        done.wait(timeout_s)


class CurrentSpan:
    """A span that is current, in the task that begins it, until it is left.

    Attributes:
        span: OpenTelemetry's.
    """

    __slots__ = ("_token", "span")

    def __init__(self, span: Span, parent: otel_context.Context | None = None) -> None:
        """
        Args:
            span: has just been started.
            parent: the context that it was started in; None for that of the task.
        """
        self.span = span
        self._token: Token[otel_context.Context] | None = None
        # One that is not sampled has to be current too, so that those inside it are not sampled
        # either. Without a provider there is none.
        if span is not trace.INVALID_SPAN:
            self._token = otel_context.attach(trace.set_span_in_context(span, parent))

    def leave(self, error: BaseException | None) -> None:
        """Let the span be current no longer.

        Args:
            error: what is raised where it was current, or None.
        """
        # A task that its event loop left behind is closed outside of its own context.
        if self._token is not None and type(error) is not GeneratorExit:
            otel_context.detach(self._token)


class RequestSpan:
    """The span of one request to a provider, and what is measured of it.

    Measured is every request, whether or not its trace is sampled. The span is current, in the
    task that begins it, until its end.
    """

    __slots__ = ("_attributes", "_current", "_measured", "_target")

    @classmethod
    def begin(
        cls, target: Target, started: Callable[[], RequestStarted], after: After | None = None
    ) -> Self | None:
        """Begin the span of a request; None where nothing collects telemetry.

        Args:
            target: the model that is asked.
            started: gives the request as values; called only if the span is recording.
            after: the attempt before, or None.
        """
        measured = is_measured()
        return cls(target, started, after, measured) if measured or is_traced() else None

    def __init__(
        self,
        target: Target,
        started: Callable[[], RequestStarted],
        after: After | None,
        measured: bool,
    ) -> None:
        self._attributes = model_attributes(target.model)
        self._target, self._measured = target, measured
        span = tracer.start_span(
            f"{names.CHAT}{target.model.model_id}",
            kind=SpanKind.CLIENT,
            attributes=self._attributes,
            links=[Link(after.context, {names.LINK: after.link})] if after else None,
        )
        if span.is_recording():
            span.set_attributes(request_attributes(started(), target.telemetry))
        self._current = CurrentSpan(span)

    @property
    def context(self) -> SpanContext:
        """What a later attempt links to."""
        return self._current.span.get_span_context()

    def end(
        self,
        finished: RequestFinished,
        error: BaseException | None = None,
        *,
        streaming: bool,
        content: Callable[[], Attributes] | None = None,
    ) -> None:
        """The request has finished.

        Args:
            finished: how.
            error: what its task ends with, or None.
            streaming: whether its answer was wanted piece by piece.
            content: gives what was said, in a thread; None where spans do not hold that.
        """
        ended_at = time.time_ns()
        self._current.leave(error)
        try:
            first_chunk_s = finished.first_chunk_s if streaming else None
            usage = usage_attributes(finished)
            if self._measured:
                self._measure(finished, first_chunk_s, usage)
            if self._current.span.is_recording():
                _describe(
                    self._current.span, finished, answer_attributes(finished, first_chunk_s) | usage
                )
        finally:
            if content is None and not self._needs_table(finished):
                self._complete(finished, None, ended_at)
            elif _late_ends.waiting < MAX_LATE:
                _late_ends.put(partial(self._complete, finished, content, ended_at))
            else:
                self._current.span.end(ended_at)

    def _complete(
        self,
        finished: RequestFinished,
        content: Callable[[], Attributes] | None,
        ended_at: int,
    ) -> None:
        """Add what takes long to know, and end the span."""
        span = self._current.span
        try:
            dollars = self._dollars(finished)
            if dollars is not None:
                _cost.add(dollars, self._attributes.copy())
                span.set_attributes({names.COST: dollars, names.USAGE_COST: dollars})
            if content is not None and span.is_recording():
                span.set_attributes(content())
        finally:
            span.end(ended_at)

    def _needs_table(self, finished: RequestFinished) -> bool:
        """Whether the cost is by the table of public prices."""
        known = self._target.price is not None or finished.gateway_cost_dollars is not None
        return has_tokens(finished) and not known

    def _dollars(self, finished: RequestFinished) -> float | None:
        if not has_tokens(finished) and finished.gateway_cost_dollars is None:
            return None
        target = self._target
        row, model_id = finished_row(finished), target.model.model_id
        cost = cost_columns(row, model_id, target.price, exact=target.exact_price)
        nanodollars = cost["cost_nanodollars"]
        return None if nanodollars is None else nanodollars / NANODOLLARS

    def _measure(
        self, finished: RequestFinished, first_chunk_s: float | None, usage: dict[str, int]
    ) -> None:
        asked = self._attributes
        ended = asked | outcome_attributes(finished)
        _calls.add(1, ended)
        if finished.saved is not None:
            return  # the call that has paid for the answer is measured
        _duration.record(finished.duration_s, ended)
        if first_chunk_s is not None:
            _time_to_first_chunk.record(first_chunk_s, asked.copy())
        for kind, name in (("input", names.INPUT_TOKENS), ("output", names.OUTPUT_TOKENS)):
            if name in usage:
                _token_usage.record(usage[name], asked | {names.TOKEN_TYPE: kind})


class ChainSpan:
    """The span of a chain; begin it in the task in which its requests are made."""

    __slots__ = ("_current", "_target")

    def __init__(self, target: Target) -> None:
        """
        Args:
            target: the model that is asked.
        """
        attributes = model_attributes(target.model) | {names.OPERATION_NAME: "invoke_agent"}
        self._target = target
        self._current = CurrentSpan(tracer.start_span(names.INVOKE_AGENT, attributes=attributes))

    @property
    def context(self) -> otel_context.Context:
        """What its tools run in, which are in other tasks."""
        return trace.set_span_in_context(self._current.span)

    def end(
        self, started: RequestStarted, outcome: Outcome, error: BaseException | None, steps: int
    ) -> None:
        """The chain has ended.

        Args:
            started: its first request; one that was not sent where it has made none.
            outcome: how it ended.
            error: what ended it, or None.
            steps: how many requests it has made.
        """
        self._current.leave(error)
        span = self._current.span
        if span.is_recording():
            span.set_attributes(ties(started, self._target.telemetry) | {names.CHAIN_STEPS: steps})
            _set_outcome(span, str(outcome), error)
        span.end()


class ToolTraces(NamedTuple):
    """What the spans of tools take from the chain that they belong to.

    Attributes:
        parent: gives its context; None outside of chains.
        content: whether they hold what goes into a tool and what comes out.
        keys: gives what to take out of that.
    """

    parent: Callable[[], otel_context.Context | None] = lambda: None
    content: bool = False
    keys: Callable[[], Keys] = lambda: None


class ToolSpan:
    """The span of a tool: a context manager, in whose block the tool runs."""

    __slots__ = ("_call", "_current", "_name", "_result", "_traces")

    def __init__(self, name: str, call: llm.ToolCall | None, traces: ToolTraces) -> None:
        """
        Args:
            name: of the tool.
            call: the model's call of it; None where that is not known.
            traces: what it takes from the chain.
        """
        self._name, self._call, self._traces = well_formed(name), call, traces
        self._result: object = None
        self._current: CurrentSpan | None = None

    def __enter__(self) -> Self:
        if is_traced():
            parent = self._traces.parent()
            name = f"{names.EXECUTE_TOOL}{self._name}"
            attributes = tool_attributes(self._name, self._call, self._traces.keys())
            self._current = CurrentSpan(tracer.start_span(name, parent, attributes=attributes))
        return self

    def returned(self, result: object) -> None:
        """The tool has returned something."""
        self._result = result.output if isinstance(result, llm.ToolOutput) else result

    def __exit__(self, kind: object, error: BaseException | None, trace_: object) -> None:
        if self._current is None:
            return
        self._current.leave(error)
        span = self._current.span
        if span.is_recording():
            _set_outcome(span, _tool_outcome(error), error)
            if self._traces.content:
                span.set_attributes(self._content(error))
        span.end()

    def _content(self, error: BaseException | None) -> Attributes:
        keys = self._traces.keys()
        said: Attributes = {}
        if self._call is not None:
            said[names.TOOL_ARGUMENTS] = value_json(self._call.arguments, keys)
        if error is None:
            said[names.TOOL_RESULT] = value_json(self._result, keys)
        return said


def note_unsent(
    started: RequestStarted,
    finished: RequestFinished,
    settings: TelemetrySettings,
    model: object = None,
) -> None:
    """A span without length, and a measurement, of a request that was not sent.

    Args:
        started: the request.
        finished: why it was not sent.
        settings: what spans hold.
        model: llm's own model object; None where it was refused.
    """
    if not is_measured() and not is_traced():
        return
    # What was asked for may come from a form, and each value would be a time series.
    known = model is not None
    asked = model_attributes(model) if known else named_attributes(started.model_id)
    measured = asked if known else {names.OPERATION_NAME: asked[names.OPERATION_NAME]}
    _calls.add(1, measured | outcome_attributes(finished))
    now = time.time_ns()
    name = f"{names.CHAT}{started.model_id}"
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=asked, start_time=now)
    if span.is_recording():
        ended = answer_attributes(finished, None)
        _describe(span, finished, request_attributes(started, settings) | ended)
    span.end(now)


def _collects(provider: object) -> bool:
    # Those of the API itself stand in for an SDK that is not there.
    return not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics")
    )


def _describe(span: Span, finished: RequestFinished, attributes: Attributes) -> None:
    span.set_attributes(attributes)
    if names.ERROR_TYPE in attributes:
        span.set_status(StatusCode.ERROR, description_of(finished))


def _set_outcome(span: Span, outcome: str, error: BaseException | None) -> None:
    span.set_attribute(names.OUTCOME, outcome)
    if error is not None and outcome == Outcome.ERROR:
        name = type(error).__name__
        span.set_attribute(names.ERROR_TYPE, name)
        span.set_status(StatusCode.ERROR, name)


def _tool_outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, llm.PauseChain):
        return "paused"
    return "error" if isinstance(error, Exception) else "cancelled"

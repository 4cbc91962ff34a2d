"""One call of a scenario, with everything recorded of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .facts import ObservedContext, Request, Run
from .trace import Call, Trace


@dataclass(frozen=True)
class Seen:
    """Everything recorded of one call."""

    trace: Trace
    call: Call
    run: Run
    contexts: list[ObservedContext]
    requests: list[Request]

    @property
    def entered(self) -> list[ObservedContext]:
        return [observed for observed in self.contexts if observed.entered]

    @property
    def last_requests(self) -> list[Request]:
        """The last attempt at each response."""
        return list({request.response.id: request for request in self.requests}.values())

    @property
    def failure(self) -> BaseException | None:
        """The error of the last response's attempts; see `check_error`."""
        answers = [answer for answer in self.trace.answers if answer.call is self.call]
        return answers[-1].error if answers else None

    @property
    def timed_out(self) -> bool:
        """True if a timeout of a plugin has expired."""
        return any(
            observed.limit is not None and observed.limit.expired() for observed in self.contexts
        )

    @property
    def stopped(self) -> bool:
        """True if it was stopped before its end."""
        stop = self.trace.stops.get(self.call)
        return stop is not None and not stop.late

    @property
    def is_chain(self) -> bool:
        return bool(self.call.result.is_chain)


def calls_of(trace: Trace) -> Iterator[Seen]:
    for run in trace.runs:
        for call in run.calls:
            contexts = [observed for observed in trace.contexts if observed.result is call.result]
            requests = [request for request in run.requests if request.call is call]
            yield Seen(trace, call, run, contexts, requests)

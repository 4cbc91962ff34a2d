"""What a call spent its time on: the queue, its attempts, the pauses between them, its tools."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ...log.queries import RUNNING, time_of

Kind = Literal["queue", "first_chunk", "answer", "failure", "running", "pause", "tools"]
Row = Mapping[str, Any]

# What takes less is left out, as the clock that it is measured with may be off by as much.
LEAST_GAP_MS = 1.0
LEAST_WAIT_MS = 0.5


class Span(NamedTuple):
    """A part of the time.

    Attributes:
        kind: what it was spent on: `queue` is the wait for a concurrency limit, `first_chunk` that
            for the provider's first event, `answer` what came after it, `failure` a request that
            ended without any, `running` one that has not ended, `pause` what lay between two
            attempts, `tools` what lay between two steps of a chain.
        call_id: the request; of a pause or tools the one after it.
        chain_step: its step, or None.
        attempt: its attempt at the response, from 1.
        is_repair: whether it was to repair an answer to `structured()`.
        start_ms: since the beginning, in milliseconds.
        duration_ms: in milliseconds.
    """

    kind: Kind
    call_id: str
    chain_step: int | None
    attempt: int
    is_repair: bool
    start_ms: float
    duration_ms: float


class Timeline(NamedTuple):
    """The time of a call, in its parts.

    Attributes:
        spans: the parts, in order.
        total_ms: from the beginning to the end, or until now, in milliseconds.
    """

    spans: Sequence[Span]
    total_ms: float

    def payload(self) -> dict[str, Any]:
        """The timeline as in JSON."""
        spans = [each._asdict() for each in self.spans]
        return {"total_ms": round(self.total_ms, 3), "spans": spans}


def timeline(rows: Sequence[Row], now: datetime.datetime) -> Timeline:
    """The timeline of the requests of a response or of a chain.

    Args:
        rows: their rows of the call log, in any order.
        now: until when those that run have taken.
    """
    sent = sorted(rows, key=_began)
    queued = [_began(row) - datetime.timedelta(milliseconds=row["waited_ms"] or 0) for row in sent]
    first = min(queued)
    moments = [_ms(at - first) for at in queued]
    spans = list(_spans(sent, moments, _ms(now - first)))
    return Timeline(spans, max((each.start_ms + each.duration_ms for each in spans), default=0.0))


def _spans(rows: Sequence[Row], queued_ms: Sequence[float], now_ms: float) -> Iterator[Span]:
    ended_ms = None
    for number, (row, at_ms) in enumerate(zip(rows, queued_ms, strict=True)):
        if ended_ms is not None and at_ms - ended_ms >= LEAST_GAP_MS:
            same_step = row["chain_step"] == rows[number - 1]["chain_step"]
            kind: Kind = "pause" if same_step else "tools"
            yield _span(kind, row, ended_ms, at_ms - ended_ms)
        ended_ms = at_ms
        for span in _request(row, at_ms, now_ms):
            yield span
            ended_ms = span.start_ms + span.duration_ms


def _request(row: Row, at_ms: float, now_ms: float) -> Iterator[Span]:
    waited_ms, first_ms, duration_ms = (
        row[name] for name in ("waited_ms", "first_chunk_ms", "duration_ms")
    )
    if waited_ms and waited_ms >= LEAST_WAIT_MS:
        yield _span("queue", row, at_ms, waited_ms)
    sent_ms = at_ms + (waited_ms or 0.0)
    if row["outcome"] == RUNNING:
        yield _span("running", row, sent_ms, max(0.0, now_ms - sent_ms))
    elif duration_ms is not None and first_ms is not None:
        first_ms = min(first_ms, duration_ms)
        yield _span("first_chunk", row, sent_ms, first_ms)
        yield _span("answer", row, sent_ms + first_ms, duration_ms - first_ms)
    elif duration_ms:  # else it was never sent, or is lost
        yield _span("answer" if row["outcome"] == "ok" else "failure", row, sent_ms, duration_ms)


def _span(kind: Kind, row: Row, start_ms: float, duration_ms: float) -> Span:
    is_repair = row["attempt"] == 1 and row["prompt_id"] is not None
    request = (row["id"], row["chain_step"], row["attempt"], is_repair)
    return Span(kind, *request, round(start_ms, 3), round(duration_ms, 3))


def _began(row: Row) -> datetime.datetime:
    """When a request was sent; by its id, where no version has written the time."""
    try:
        found = datetime.datetime.fromisoformat(row["started_at"])
    except (TypeError, ValueError):
        return time_of(row["id"])
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _ms(span: datetime.timedelta) -> float:
    return span / datetime.timedelta(milliseconds=1)

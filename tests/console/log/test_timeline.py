"""The timeline of a call: its parts, in order, with their milliseconds."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from datasette_llm.console.log.timeline import timeline

from ...support.call_log import NOW, call_row


def row(at_ms: float, **columns: Any) -> dict[str, Any]:
    return call_row(NOW + datetime.timedelta(milliseconds=at_ms), **columns)


FAILED = {"outcome": "error", "duration_ms": 200.0}
STEP = {"first_chunk_ms": 40.0, "duration_ms": 100.0}
CASES = {
    "one request": (
        [row(0, waited_ms=50.0, first_chunk_ms=300.0, duration_ms=1000.0)],
        [("queue", 0, 50), ("first_chunk", 50, 300), ("answer", 350, 700)],
    ),
    "two attempts and the pause between them": (
        [row(0, **FAILED), row(700, attempt=2, first_chunk_ms=100.0, duration_ms=100.0)],
        [("failure", 0, 200), ("pause", 200, 500), ("first_chunk", 700, 100), ("answer", 800, 0)],
    ),
    "tools between two steps": (
        [row(0, chain_step=1, **STEP), row(400, chain_step=2, waited_ms=100.0, **STEP)],
        [
            *[("first_chunk", 0, 40), ("answer", 40, 60), ("tools", 100, 200)],
            *[("queue", 300, 100), ("first_chunk", 400, 40), ("answer", 440, 60)],
        ],
    ),
    "one that runs": ([row(0, outcome="running", duration_ms=None)], [("running", 0, 5000)]),
    "one that was never sent": ([row(0, outcome="blocked", duration_ms=0.0)], []),
    "one that waited only": (
        [row(0, outcome="cancelled", waited_ms=900.0, duration_ms=0.0)],
        [("queue", 0, 900)],
    ),
    "one that is lost": ([row(0, outcome="lost", duration_ms=None)], []),
    "an answer in one piece": ([row(0, duration_ms=30.0)], [("answer", 0, 30)]),
    "a first chunk after its end": (
        [row(0, first_chunk_ms=90.0, duration_ms=30.0)],
        [("first_chunk", 0, 30), ("answer", 30, 0)],
    ),
    "a clock that went back": (
        [row(0, duration_ms=500.0), row(100, attempt=2, duration_ms=50.0)],
        [("answer", 0, 500), ("answer", 100, 50)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_p5_timeline_has_every_part(name: str) -> None:
    rows, expected = CASES[name]

    found = timeline(rows[::-1], NOW + datetime.timedelta(seconds=5))

    assert [(each.kind, each.start_ms, each.duration_ms) for each in found.spans] == expected
    assert found.total_ms == max((start + length for _, start, length in expected), default=0)


def test_p5_timeline_of_odd_times() -> None:
    """A time that no version has written is that of the id."""
    rows = [row(0, started_at=started) for started in ("nonsense", "", "2026-02-01T12:00:00")]

    found = timeline(rows, NOW)

    assert {each.start_ms for each in found.spans} == {0.0}

"""Counts by value: of all calls of a list, or of as many as the time allows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from datasette_llm.log import facets
from datasette_llm.log.listing import Listing
from datasette_llm.log.queries import Filter, time_of
from datasette_llm.log.schema import migrate

from ..support.call_log import DAY, NOW, add, call_row

MINUTE_MS = 60_000
KINDS: list[dict[str, Any]] = [
    {"purpose": "chat", "actor_id": "ana", "tags": '{"job": 1}', "finish_reason": "stop"},
    {"purpose": "chat", "actor_id": "ben", "tags": '{"job": 1, "row": 2}'},
    {"model_id": "heron", "outcome": "error", "failure_kind": "timeout", "duration_ms": 50.0},
    {"model_id": "heron", "outcome": None, "duration_ms": None},
]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        add(connection, *(call_row(NOW - n * DAY, **kind) for n, kind in enumerate(KINDS)))
        yield connection


def counted(connection, limit_ms: float = MINUTE_MS, **wanted: Any) -> facets.Facets:
    return facets.counted(connection, Listing(Filter(**wanted)), NOW, limit_ms)


def test_p4_facets_count_values(connection) -> None:
    found = counted(connection)

    assert {name: dict(counts) for name, counts in found.counts.items()} == {
        "model": {"pelican": 2, "heron": 2},
        "purpose": {"chat": 2, "": 2},
        "actor": {"ana": 1, "ben": 1, "": 2},
        "tag": {"job:1": 2, "row:2": 1},
        "outcome": {"ok": 2, "error": 1, "running": 1},
        "failure_kind": {"timeout": 1},
        "finish_reason": {"stop": 1},
    }
    assert found.since == {}
    assert facets.top(found.counts["model"], 1) == [("heron", 2)]


@pytest.mark.parametrize(
    "wanted", [{"model": "heron"}, {"min_duration": "0.04"}, {"tag": ("row:2",)}], ids=json.dumps
)
def test_p4_facets_and_sums_are_of_the_filter(connection, wanted: dict[str, Any]) -> None:
    """Also a facet's own filter counts, and both ways of counting give the same."""
    found = counted(connection, **wanted)

    calls = 2 if "model" in wanted else 1
    assert found.counts["model"].total() == found.counts["actor"].total() == calls
    assert sum(sums.calls for sums in found.sums.values()) == calls
    for (outcome,), sums in found.sums.items():
        assert sums.durations == ([] if outcome is None else sums.durations)


def test_p4_answers_of_the_cache_have_no_latency(connection) -> None:
    """The list, which counts one by one, agrees with Usage."""
    times = {"duration_ms": 60.0, "first_chunk_ms": 60.0}
    add(connection, *(call_row(NOW, **times, cached_from=each) for each in ("01", None)))

    sums = counted(connection, min_duration="0.055").sums[("ok",)]
    assert (sums.calls, *map(len, (sums.durations, sums.first_chunks))) == (2, 1, 1)


def test_p4_facets_of_the_newest_calls(connection, monkeypatch) -> None:
    """Without time for all calls, the first batch is counted, and it is said since when."""
    monkeypatch.setattr(facets, "_FIRST_BATCH", 2)
    monkeypatch.setattr(facets, "_LEAST_MS", MINUTE_MS)

    found = counted(connection, limit_ms=0, min_duration="0")

    assert found.counts["model"] == {"pelican": 2}
    ids = [row[0] for row in connection.execute("select id from llm_calls order by id desc")]
    assert found.since == dict.fromkeys(facets.FACETS, time_of(ids[1]))


@pytest.mark.parametrize("odd", ["text", b"\xff", float("inf")], ids=repr)
def test_p4_facets_of_odd_rows(connection, odd: object) -> None:
    names = (
        "input_tokens",
        "cost_nanodollars",
        "duration_ms",
        "tags",
        "actor_id",
        "first_chunk_ms",
    )
    add(connection, call_row(NOW, **dict.fromkeys(names, odd)))

    assert counted(connection, min_duration="0").counts["model"]["pelican"] >= 2

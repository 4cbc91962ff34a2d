"""What is read from the record: filters, pages, totals and choices."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.events import never_sent
from datasette_llm.log import queries, totals
from datasette_llm.log.queries import BadFilterError, Filter
from datasette_llm.log.schema import migrate
from datasette_llm.log.usage import Reader, totals_of

from ..support.call_log import DAY, NOW, add, call_row

TODAY = NOW.date()


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A connection to an empty record."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        yield connection


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


# Calls

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chat": {"purpose": "chat", "actor_id": "ana", "tags": '{"job": 12, "row": 5}'},
    "chat-heron": {"purpose": "chat", "model_id": "heron", "actor_id": "ben"},
    "failed": {"purpose": "chat", "outcome": "error", "failure_kind": "network"},
    "grouped": {
        "purpose": "rows",
        "group_id": "g1",
        "actor_id": "ana",
        "finish_reason": "length",
        "tags": '{"job": "12", "v": "1.10", "share": 1.5, "big": 1e+20, "url": "a:b", "no": ""}',
    },
    "running": {"outcome": None, "duration_ms": None},
}
FILTERS = [
    ({}, ["plain", "chat", "chat-heron", "failed", "grouped", "running"]),
    ({"model": "heron"}, ["chat-heron"]),
    ({"purpose": "chat"}, ["chat", "chat-heron", "failed"]),
    ({"purpose": ""}, ["plain", "running"]),
    ({"actor": "ana"}, ["chat", "grouped"]),
    ({"actor": ""}, ["plain", "failed", "running"]),
    ({"group": "g1"}, ["grouped"]),
    ({"group": ""}, ["plain", "chat", "chat-heron", "failed", "running"]),
    ({"outcome": "error"}, ["failed"]),
    ({"outcome": "running"}, ["running"]),
    ({"purpose": "chat", "model": "pelican"}, ["chat", "failed"]),
    ({"purpose": "chat", "model": "pelican", "outcome": "ok"}, ["chat"]),
    ({"purpose": "rows", "model": "heron"}, []),
    ({"purpose": "", "outcome": "ok", "actor": "", "group": "", "model": "pelican"}, ["plain"]),
    ({"model": "it's"}, []),
    ({"model": "running"}, []),
    ({"failure_kind": "network"}, ["failed"]),
    ({"failure_kind": "timeout"}, []),
    ({"finish_reason": "length", "actor": "ana"}, ["grouped"]),
    ({"finish_reason": "length", "failure_kind": "network"}, []),
    ({"tag": ("job:12",)}, ["chat", "grouped"]),
    ({"tag": ("job:12", "row:5")}, ["chat"]),
    ({"tag": ("job:12",), "purpose": "rows", "since": "2026-01-01"}, ["grouped"]),
    ({"tag": ("v:1.10", "share:1.5", "big:1e+20", "url:a:b", "no:")}, ["grouped"]),
    ({"tag": ("v:1.1",)}, []),
    ({"tag": ("job:1",)}, []),
    ({"tag": ("job:12:13",)}, []),
    ({"tag": ("job:12.0",)}, []),
    ({"tag": ("job:nan",)}, []),
    ({"model": ("heron", "walrus")}, ["chat-heron"]),
    ({"actor": ("ben", ""), "purpose": ("chat", "rows")}, ["chat-heron", "failed"]),
    ({"outcome": ("error", "running")}, ["failed", "running"]),
    ({"min_duration": "0.01", "max_duration": "0.01", "actor": "ana"}, ["chat", "grouped"]),
    ({"min_cost": "0"}, []),
]


@pytest.mark.parametrize(("wanted", "kinds"), FILTERS)
def test_filter_conditions_are_combined(
    connection, wanted: dict[str, Any], kinds: list[str]
) -> None:
    known = dict(zip(KINDS, add(connection, *(call_row(**k) for k in KINDS.values())), strict=True))

    found = ids(queries.calls(connection, Filter(**wanted), limit=10))

    assert found == [known[kind] for kind in reversed(kinds)]


@pytest.mark.parametrize(("wanted", "kinds"), FILTERS)
def test_a_filter_counts_what_it_lets_through(
    connection, wanted: dict[str, Any], kinds: list[str]
) -> None:
    add(connection, *(call_row(**columns) for columns in KINDS.values()))

    assert summed(connection, **wanted)["calls"] == len(kinds)


@pytest.mark.parametrize(
    ("since", "until", "places"),
    [
        ("2026-01-31", None, [1, 2]),
        (None, "2026-01-31", [0]),
        ("2026-01-31", "2026-02-01", [1]),
        ("2026-01-31T00:00:00.001", None, [2]),
        ("2026-01-31T01:00+01:00", "2026-02-01T01:00+02:00", [1]),
        ("0001-01-01", "9999-12-31", [0, 1, 2]),
    ],
)
def test_time_range_is_half_open(
    connection, since: str | None, until: str | None, places: list[int]
) -> None:
    january = datetime.datetime(2026, 1, 30, 23, 59, 59, 999000, tzinfo=datetime.UTC)
    midnights = [january + datetime.timedelta(milliseconds=1), NOW.replace(hour=0)]
    known = add(connection, call_row(january), *map(call_row, midnights))

    found = ids(queries.calls(connection, Filter(since=since, until=until), limit=10))

    assert found == [known[place] for place in reversed(places)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"outcome": "great"}, "There is no outcome 'great'; use one of ok, error, cancelled, "),
        ({"finish_reason": "end"}, "There is no finish reason 'end'; use one of stop, length, "),
        ({"failure_kind": ""}, "There is no failure kind ''; use one of no_key, key_refused, "),
        ({"since": "yesterday"}, "since: 'yesterday' is no date or time; write it like 2026-01-31"),
        ({"until": "2026-02-30"}, "until: '2026-02-30' is no date or time"),
        ({"tag": ("job:12", "row")}, "tag: 'row' has no value; write it like job:12"),
        ({"min_cost": "\u0663"}, "min_cost: '\u0663' is no number of dollars from 0 to"),
        ({"max_duration": ""}, "max_duration: '' is no number of seconds"),
    ],
)
def test_a_filter_that_makes_no_sense_is_told(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFilterError) as raised:
        Filter(**wanted).where()

    assert str(raised.value).startswith(message)


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=30),
    wanted=st.sampled_from([wanted for wanted, _ in FILTERS]),
    limit=st.integers(1, 7),
)
def test_pages_have_every_call_once_in_order(
    kinds: list[str], wanted: dict[str, str], limit: int
) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        add(connection, *(call_row(**KINDS[kind]) for kind in kinds))
        whole = ids(queries.calls(connection, Filter(**wanted), limit=100))

        paged: list[str] = []
        while page := queries.calls(
            connection, Filter(**wanted), before=paged[-1] if paged else None, limit=limit
        ):
            paged += ids(page)

    assert paged == whole == sorted(set(whole), reverse=True)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(purpose="chat"),
        Filter(purpose="chat", model="heron"),
        Filter(purpose="", actor="ana", outcome="ok", since="2026-01-01"),
        Filter(finish_reason="length"),
        Filter(failure_kind="timeout", model="heron", since="2026-01-01"),
        Filter(tag=("job:12",)),
        Filter(tag=("job:12", "row:5"), purpose="chat", since="2026-01-01"),
    ],
)
def test_page_query_uses_indexes(connection, wanted: Filter) -> None:
    """SQLite reads through indexes and sorts nothing."""
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    queries.calls(connection, wanted, limit=10)
    connection.set_trace_callback(None)

    plan = [row[3] for row in connection.execute(f"explain query plan {seen[-1]}")]

    assert not [step for step in plan if "TEMP B-TREE FOR ORDER" in step], plan
    assert wanted == Filter() or "SCAN llm_calls" not in plan, plan
    for step in plan:
        if step.startswith(("SEARCH llm_calls USING", "SCAN llm_calls USING")):
            assert "COVERING INDEX" in step or "PRIMARY KEY" in step, plan


def test_k1_keys_of_tags_are_found(connection) -> None:
    add(connection, *(call_row(**columns) for columns in KINDS.values()))

    assert queries.tag_keys(connection) == ["big", "job", "no", "row", "share", "url", "v"]


@pytest.mark.parametrize("odd", ["{", "[1]", "7", b"x", 5, float("inf")], ids=repr)
def test_k1_odd_tags_are_none(connection, odd: Any) -> None:
    [call_id] = add(connection, call_row(tags=odd))

    assert queries.call(connection, call_id)["tags"] == {}


def test_empty_purpose_and_actor_are_none() -> None:
    started = never_sent("pelican", "", {"id": ""}, None)

    assert (started.purpose, started.actor_id) == (None, None)
    assert never_sent("pelican", "0", {"id": 0}, None).actor_id == "0"


def test_database_without_tables() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        assert not queries.has_tables(connection)


# Totals


def summed(connection, **wanted: Any) -> dict[str, Any]:
    return totals_of(Reader(connection, NOW), Filter(**wanted))


def test_totals_add_up_what_is_known(connection) -> None:
    known = {"input_tokens": 100, "output_tokens": 10, "cost_nanodollars": 2_000_000}
    add(
        connection,
        call_row(**known),
        call_row(**known),
        call_row(input_tokens=5),
        call_row(outcome="error"),
        call_row(outcome="lost"),
        call_row(outcome="blocked"),
        call_row(outcome=None),
    )

    assert summed(connection) == {
        "calls": 7,
        "failures": 2,
        "outcomes": {"ok": 3, "error": 1, "cancelled": 0, "blocked": 1, "lost": 1, "running": 1},
        "input_tokens": 205,
        "output_tokens": 20,
        "cost_nanodollars": 4_000_000,
        "cost_dollars": 0.004,
        "calls_without_cost": 1,
        "median_ms": 10,
        "p95_ms": 10,
        "first_chunk_median_ms": None,
    }


def test_unknown_is_none_and_not_zero(connection) -> None:
    add(connection, call_row())

    found = summed(connection)

    assert (found["input_tokens"], found["cost_nanodollars"], found["cost_dollars"]) == (None,) * 3


def test_huge_numbers_do_not_break_totals(connection) -> None:
    add(connection, *(call_row(input_tokens=2**63 - 1) for _ in range(3)))

    assert summed(connection)["input_tokens"] == 3 * 2**63


@pytest.mark.parametrize(
    "wanted",
    [
        {"since": "9999-01-01"},
        {"until": "1970-01-01"},
        {"until": "0001-01-01"},
        {"since": "0001-01-01", "until": "0001-01-02"},
        {"model": "no such"},
    ],
)
def test_totals_without_calls(connection, wanted: dict[str, str]) -> None:
    add(connection, call_row())

    found = summed(connection, **wanted)

    assert (found["calls"], found["input_tokens"], found["cost_dollars"]) == (0, 0, 0)
    assert (found["median_ms"], found["p95_ms"]) == (None, None)


def test_partial_day_is_counted_partially(connection) -> None:
    add(connection, *(call_row(NOW.replace(hour=hour)) for hour in (1, 5, 9)))

    assert summed(connection, since="2026-02-01T03:00", until="2026-02-01T09:00")["calls"] == 1


def test_call_in_the_future_counts_today(connection) -> None:
    add(connection, call_row(NOW + 3 * DAY))

    assert summed(connection, since="2026-02-01")["calls"] == 1


def test_latency_is_of_sent_and_ended_calls(connection) -> None:
    add(
        connection,
        *(call_row(duration_ms=float(number)) for number in range(1, 101)),
        call_row(outcome="blocked", duration_ms=0.0),
        call_row(outcome="lost", duration_ms=None),
        call_row(outcome=None, duration_ms=None),
        call_row(NOW - 3 * DAY, duration_ms=5000.0),
    )

    found = summed(connection, since="2026-02-01")

    assert found["median_ms"] == pytest.approx(50, rel=0.036)
    assert found["p95_ms"] == pytest.approx(95, rel=0.036)


# Choices


def test_the_choices_are_each_value_once_in_order(connection) -> None:
    add(connection, *(call_row(**columns) for columns in KINDS.values() for _ in range(3)))

    assert totals.choices(connection) == {
        "model": {"values": ["heron", "pelican"], "more": False, "none": False},
        "purpose": {"values": ["chat", "rows"], "more": False, "none": True},
        "actor": {"values": ["ana", "ben"], "more": False, "none": True},
    }


def test_the_choices_are_bounded(connection) -> None:
    add(connection, *(call_row(actor_id=f"user{n:03}") for n in range(totals.MAX_CHOICES + 1)))

    found = totals.choices(connection)["actor"]

    assert found["more"]
    assert found["values"] == [f"user{n:03}" for n in range(totals.MAX_CHOICES)]


def test_an_empty_record_has_no_choices(connection) -> None:
    nothing = {"values": [], "more": False, "none": False}
    assert totals.choices(connection) == dict.fromkeys(("model", "purpose", "actor"), nothing)


# Ids


@pytest.mark.parametrize("milliseconds", [0, 1, 1_790_000_000_123, 2**47])
def test_time_of_an_id(milliseconds: int) -> None:
    call_id = queries.id_at(milliseconds)
    expected = queries.EPOCH + datetime.timedelta(milliseconds=milliseconds)
    assert queries.time_of(call_id) == queries.time_of(call_id[:12]) == expected


@pytest.mark.parametrize("call_id", ["", "zz", "7" + "z" * 25, "A", "~~~", "01k x", "\0"])
def test_s3_odd_id_has_some_time(call_id: str) -> None:
    assert queries.time_of(call_id) >= queries.EPOCH

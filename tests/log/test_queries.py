"""What is read from the record: filters, pages, totals, days, choices, and the chart of them."""

from __future__ import annotations

import datetime
import itertools
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.console.log.chart import STEPS, Chart, round_up
from datasette_llm.events import never_sent
from datasette_llm.log import queries, totals
from datasette_llm.log.queries import BadFilterError, Filter
from datasette_llm.log.schema import OUTCOMES, migrate
from datasette_llm.log.totals_cache import QueryCache

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

    assert totals.aggregate(connection, Filter(**wanted)).calls == len(kinds)
    assert totals.totals(
        connection, Filter(**wanted), "model", NOW, QueryCache()
    ).total.calls == len(kinds)


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

    found = totals.totals(connection, Filter(), "purpose", NOW, QueryCache()).total.summary()

    assert found == {
        "calls": 7,
        "failures": 2,
        "outcomes": {"ok": 3, "error": 1, "cancelled": 0, "blocked": 1, "lost": 1, "running": 1},
        "input_tokens": 205,
        "output_tokens": 20,
        "cost_nanodollars": 4_000_000,
        "cost_dollars": 0.004,
        "calls_without_cost": 1,
    }


def test_what_nobody_knows_is_none_and_not_zero(connection) -> None:
    add(connection, call_row())

    found = totals.totals(connection, Filter(), "purpose", NOW, QueryCache()).total.summary()

    assert (found["input_tokens"], found["cost_nanodollars"], found["cost_dollars"]) == (None,) * 3


def test_huge_numbers_do_not_break_totals(connection) -> None:
    add(connection, *(call_row(input_tokens=2**63 - 1) for _ in range(3)))

    found = totals.totals(connection, Filter(), "purpose", NOW, QueryCache()).total.summary()

    assert found["input_tokens"] == 3 * 2**63


def test_no_calls_cost_nothing(connection) -> None:
    found = totals.totals(connection, Filter(), "purpose", NOW, QueryCache()).total.summary()

    assert (found["calls"], found["input_tokens"], found["cost_dollars"]) == (0, 0, 0)


def test_totals_cover_thirty_days_by_default() -> None:
    assert totals.with_days(Filter(model="a"), NOW) == Filter(model="a", since="2026-01-03")


@pytest.mark.parametrize("wanted", [Filter(since="2020-01-01"), Filter(until="2026-01-01")])
def test_totals_cover_the_filters_time(wanted: Filter) -> None:
    assert totals.with_days(wanted, NOW) == wanted


def test_each_day_is_a_day_of_utc(connection) -> None:
    midnight = NOW.replace(hour=0)
    instant = datetime.timedelta(milliseconds=1)
    add(connection, call_row(midnight - instant), call_row(midnight), call_row(NOW))

    days = totals.totals(connection, Filter(since="2026-01-30"), "model", NOW, QueryCache()).days

    counts = {day: sum(found.values()) for day, found in days.items()}
    assert counts == {TODAY - 2 * DAY: 0, TODAY - DAY: 1, TODAY: 2}


def test_partial_day_is_counted_partially(connection) -> None:
    hours = [NOW.replace(hour=hour) for hour in (1, 5, 9)]
    add(connection, *map(call_row, hours))
    wanted = Filter(since="2026-02-01T03:00", until="2026-02-01T09:00")

    found = totals.totals(connection, wanted, "model", NOW, QueryCache())

    assert found.total.calls == 1
    assert {day: found.days[day]["pelican"] for day in found.days} == {TODAY: 1}


def test_call_in_the_future_counts_today(connection) -> None:
    add(connection, call_row(NOW + 3 * DAY))

    assert (
        totals.totals(
            connection, Filter(since="2026-02-01"), "model", NOW, QueryCache()
        ).total.calls
        == 1
    )


TIMES = (None, "1970-01-01", "2025-11-30T07:00", "2026-02-01", "2026-02-02", "2027-01-01")


@pytest.mark.parametrize(("by", "seed"), [("purpose", 1), ("model", 2)])
def test_totals_match_the_list(connection, by: Any, seed: int) -> None:
    random = Random(seed)
    days = [*range(40), 70, 364, 365, 366, 900, -1, -90, -500]
    for _ in range(100):
        outcome = random.choice([*OUTCOMES, None])
        duration = None if outcome is None else random.uniform(0, 2_000)
        purpose, cost = random.choice(["chat", None]), random.choice([None, 7 * 10**9])
        time = NOW - random.choice(days) * DAY - random.random() * DAY
        values = {"purpose": purpose, "cost_nanodollars": cost, "duration_ms": duration}
        add(connection, call_row(time, outcome=outcome, **values))
    kept = QueryCache()

    for purpose, outcome, since, until in itertools.product((None, ""), (None, "ok"), TIMES, TIMES):
        wanted = Filter(purpose=purpose, outcome=outcome, since=since, until=until)
        found = totals.totals(connection, wanted, by, NOW, kept)
        rows = list(queries.all_calls(connection, wanted))
        left = [row for row in rows if row["outcome"] not in ("blocked", queries.RUNNING)]
        durations = sorted(int(row["duration_ms"]) for row in left)
        nearest = [math.ceil(len(durations) * part) - 1 for part in (0.5, 0.95)]

        assert found.total.outcomes == Counter(row["outcome"] for row in rows)
        assert found.total.cost_nanodollars == sum_of(row["cost_nanodollars"] for row in rows)
        assert list(found.latency().values()) == [
            durations[place] if durations else None for place in nearest
        ]


def sum_of(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@pytest.mark.parametrize(
    "wanted", [Filter(since="2020-01-01"), Filter(since="0001-01-01"), Filter(until="2026-02-02")]
)
def test_days_from_first_call_to_today(connection, wanted: Filter) -> None:
    add(connection, call_row(NOW - 3 * DAY), call_row(NOW))

    found = totals.totals(connection, wanted, "model", NOW, QueryCache())

    assert list(found.days) == [TODAY - 3 * DAY, TODAY - 2 * DAY, TODAY - DAY, TODAY]
    assert not found.earlier


def test_totals_include_calls_before_the_days(connection) -> None:
    add(connection, call_row(NOW - 1000 * DAY), call_row(NOW - 365 * DAY), call_row(NOW))

    found = totals.totals(connection, Filter(since="2020-01-01"), "model", NOW, QueryCache())

    assert (found.total.calls, found.earlier) == (3, True)
    assert len(found.days) == totals.MAX_DAYS
    assert next(iter(found.days)) == TODAY - 365 * DAY


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(since="9999-01-01"),
        Filter(until="1970-01-01"),
        Filter(until="0001-01-01"),
        Filter(since="0001-01-01", until="0001-01-02"),
    ],
)
def test_totals_without_calls(connection, wanted: Filter) -> None:
    add(connection, call_row())

    found = totals.totals(connection, wanted, "model", NOW, QueryCache())

    assert found.total.calls == 0
    assert found.latency() == {"median_ms": None, "p95_ms": None}


def test_latency_is_of_sent_and_ended_calls(connection) -> None:
    add(
        connection,
        *(call_row(duration_ms=float(number)) for number in range(1, 101)),
        call_row(outcome="blocked", duration_ms=0.0),
        call_row(outcome="lost", duration_ms=None),
        call_row(outcome=None, duration_ms=None),
        call_row(NOW - 3 * DAY, duration_ms=5000.0),
    )

    found = totals.totals(connection, Filter(since="2026-02-01"), "model", NOW, QueryCache())

    assert found.latency() == {"median_ms": 50, "p95_ms": 95}


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 100))
def test_percentile_is_nearest_rank(values: list[int], percent: int) -> None:
    counts = {value: values.count(value) for value in values}

    found = totals.percentile(counts, percent)

    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


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


# The chart


def chart_of(connection, measure="calls", by="purpose", since="2026-01-31") -> Chart:
    return Chart.of(
        totals.totals(connection, Filter(since=since), by, NOW, QueryCache(), measure), by, measure
    )


def test_the_chart_has_the_largest_series_first(connection) -> None:
    add(connection, call_row(purpose="chat"), call_row(), call_row(), call_row(NOW - DAY))

    series = chart_of(connection).payload()["series"]

    assert series == [
        {"name": None, "is_rest": False, "total": 3, "values": [1, 2]},
        {"name": "chat", "is_rest": False, "total": 1, "values": [0, 1]},
    ]


def test_the_chart_measures_tokens_and_cost_too(connection) -> None:
    add(connection, call_row(input_tokens=7, output_tokens=2, cost_nanodollars=1_500_000_000))

    tokens, cost = (chart_of(connection, measure).payload() for measure in ("tokens", "cost"))

    assert (tokens["unit"], tokens["series"][0]["values"]) == ("tokens", [0, 9])
    assert (cost["unit"], cost["series"][0]["values"]) == ("dollars", [0, 1.5])


def test_unknown_cost_is_none_no_calls_is_zero(
    connection,
) -> None:
    add(connection, call_row())

    (series,) = chart_of(connection, "cost").series

    assert (series.values, series.total) == ((0, None), None)


@pytest.mark.parametrize(("count", "shown", "rest"), [(8, 8, None), (9, 8, 2), (30, 8, 23)])
def test_the_smallest_series_are_drawn_together(
    connection, count: int, shown: int, rest: int | None
) -> None:
    for number in range(count):
        add(connection, call_row(model_id=f"m{number:02}"))

    chart = chart_of(connection, by="model")

    assert len(chart.series) == shown
    assert sum(series.total for series in chart.series) == count
    assert [series.total for series in chart.series if series.is_rest] == ([rest] if rest else [])


@given(st.floats(1e-9, 1e15) | st.integers(1, 10**15))
def test_axis_top_is_a_round_number(value: float) -> None:
    top = round_up(value)

    assert value <= top <= 2 * value * (1 + 1e-9)
    assert any(f"{top:.6e}".startswith(f"{str(step)[0]}.000000") for step in STEPS)


@pytest.mark.parametrize("milliseconds", [0, 1, 1_790_000_000_123, 2**47])
def test_time_of_an_id(milliseconds: int) -> None:
    call_id = queries.id_at(milliseconds)
    expected = queries.EPOCH + datetime.timedelta(milliseconds=milliseconds)
    assert queries.time_of(call_id) == queries.time_of(call_id[:12]) == expected


@pytest.mark.parametrize("call_id", ["", "zz", "7" + "z" * 25, "A", "~~~", "01k x", "\0"])
def test_s3_odd_id_has_some_time(call_id: str) -> None:
    assert queries.time_of(call_id) >= queries.EPOCH

"""What calls add up to is the same with and without sums of past periods, whatever happens."""

from __future__ import annotations

import datetime
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from sqlite_utils import Database, Migrations

from datasette_llm.log import usage_schema
from datasette_llm.log.queries import Filter, all_calls, first_id, time_of
from datasette_llm.log.retention import remove_batch
from datasette_llm.log.schema import OUTCOMES, migrate
from datasette_llm.log.totals import FAILURES, Sums
from datasette_llm.log.usage import Question, Reader, totals_of
from datasette_llm.log.usage_schema import DAY, DIMENSIONS, HOUR, floor
from datasette_llm.log.usage_upkeep import Upkeep

from ..support.call_log import add, call_row

NOW = datetime.datetime(2026, 3, 4, 15, 20, tzinfo=datetime.UTC)
BEGIN = datetime.datetime(2026, 2, 17, tzinfo=datetime.UTC)
Change = Callable[[sqlite3.Connection], object]


def some_calls(seed: int, count: int) -> list[dict[str, Any]]:
    values = random.Random(seed)
    return [
        call_row(
            BEGIN + values.random() * (NOW - BEGIN),
            model_id=values.choice("abc"),
            purpose=values.choice(["chat", "rows", None]),
            actor_id=values.choice(["ana", "ben", None]),
            outcome=(outcome := values.choice([*OUTCOMES, *["ok"] * 5])),
            failure_kind="timeout" if outcome == "error" else None,
            input_tokens=values.choice([None, 100]),
            output_tokens=values.choice([None, 20]),
            cost_nanodollars=values.choice([None, 5_000_000]) if outcome == "ok" else None,
            duration_ms=values.lognormvariate(6, 1),
            first_chunk_ms=values.choice([None, 50.0]),
            cached_from=values.choice([None, None, "01"]),
        )
        for _ in range(count)
    ]


@pytest.fixture
async def datasette(make_datasette: Callable[..., Datasette], tmp_path: Path) -> Datasette:
    """With some calls of two weeks, of which some have not ended."""
    path = tmp_path / "internal.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        migrate(connection)
        add(connection, *some_calls(1, 250))
        add(connection, call_row(NOW - 3 * DAY, outcome=None), call_row(NOW, outcome=None))
    datasette = make_datasette({}, internal=str(path))
    await datasette.invoke_startup()
    return datasette


async def added_up(datasette: Datasette) -> None:
    await Upkeep(datasette).update(NOW)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "internal.db", isolation_level=None)) as connection:
        yield connection


def by_hand(
    calls: list[dict[str, Any]], question: Question, begin: Any, end: Any
) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The same from the list of the calls that match its filter."""
    names = dict(DIMENSIONS)
    found: dict[tuple[Any, ...], list[Any]] = {}
    for row in calls:
        time = time_of(row["id"])
        if time < begin or (end and time >= end):
            continue
        when = (floor(question.unit, min(time, NOW)),) if question.unit else ()
        values = [row[names[name]] for name in question.by]
        key = (*when, *(None if value == "running" else value for value in values))
        sums = found.setdefault(key, [0, 0, 0, 0, 0])
        sums[0] += 1
        sums[1] += row["outcome"] in FAILURES
        sums[2] += row["cost_nanodollars"] or 0
        sums[3] += row["outcome"] == "ok" and row["cost_nanodollars"] is None
        has_time = row["duration_ms"] and row["outcome"] != "blocked" and not row["cached_from"]
        sums[4] += bool(question.latency and has_time)
    return {key: tuple(sums) for key, sums in found.items()}


def plain(found: dict[Any, Sums], question: Question) -> dict[Any, tuple[Any, ...]]:
    def times(sums: Sums) -> int:
        runs = re.findall(r"(\d*)\D", "".join(sums.durations))
        return sum(int(each or 1) for each in runs) if question.latency else 0

    return {
        key: (
            sums.calls,
            sums.failures,
            sums.cost_nanodollars or 0,
            sums.unpriced,
            times(sums),
        )
        for key, sums in found.items()
    }


QUESTIONS = [
    Question(),
    Question(by=("model",), latency=True),
    Question(by=("actor", "purpose"), unit="day"),
    Question(by=("outcome", "failure_kind"), unit="month"),
    Question(by=("model",), unit="hour"),
    Question(Filter(actor="ana", outcome="error"), by=("model",)),
    Question(Filter(purpose=""), by=("outcome",), unit="day"),
    Question(Filter(finish_reason="stop"), by=("model",)),
    Question(Filter(outcome="running")),
]
TIMES = [
    (BEGIN - 400 * DAY, None),
    (floor("month", NOW), None),
    (BEGIN + 5 * DAY + 3.5 * HOUR, NOW - 2 * DAY - datetime.timedelta(minutes=7)),
    (floor("day", NOW) - DAY, floor("day", NOW)),
    (NOW + DAY, None),
]


def assert_true(connection: sqlite3.Connection) -> None:
    for question in QUESTIONS:
        calls = list(all_calls(connection, question.filter))
        for begin, end in TIMES:
            found = Reader(connection, NOW).sums(question, begin, end)
            assert plain(found, question) == by_hand(calls, question, begin, end), (question, begin)


def late_call(connection: sqlite3.Connection) -> None:
    """As of a clock that went back, or a process that could not write for a time."""
    add(connection, call_row(BEGIN + DAY, model_id="late"))


def end_of_call(connection: sqlite3.Connection) -> None:
    connection.execute("update llm_calls set outcome = 'lost' where outcome is null")


def removal(connection: sqlite3.Connection) -> None:
    assert remove_batch(connection, first_id(NOW - 12 * DAY), 12)


def call_of_clock_ahead(connection: sqlite3.Connection) -> None:
    add(connection, call_row(NOW + 900 * DAY))


def table_made_again(connection: sqlite3.Connection) -> None:
    """As after a `drop table`: the triggers are gone, too."""
    connection.execute("drop table llm_calls")
    migrate(connection)
    add(connection, *some_calls(7, 30))
    usage_schema.migrate(connection)


async def test_p3_kept_sums_are_true(datasette: Datasette, connection: sqlite3.Connection) -> None:
    assert_true(connection)
    await added_up(datasette)
    kept = dict(connection.execute("select unit, count(*) from llm_log_periods group by unit"))
    assert kept["month"] == 1
    assert kept["day"] > 10
    assert kept["hour"] > 20
    assert_true(connection)


async def test_p3_beside_the_plugin_datasette_llm_usage(
    datasette: Datasette, connection: sqlite3.Connection
) -> None:
    """Its migrations are `datasette_llm_usage`, and its table is `llm_usage`, in this database."""
    theirs = Migrations("datasette_llm_usage")

    @theirs()
    def create_usage_table(db: Database) -> None:
        db.execute("create table llm_usage (created integer, model text)")

    theirs.apply(Database(connection))
    await added_up(datasette)
    assert_true(connection)
    assert connection.execute("select count(*) from llm_log_periods").fetchone()[0]


@pytest.mark.parametrize("of_plugin", [False, True])
async def test_p3_sums_under_former_names_go(
    datasette: Datasette, connection: sqlite3.Connection, of_plugin: bool
) -> None:
    """They had the names of that plugin, whose table stays."""
    column = "created" if of_plugin else "period_id"
    connection.executescript(f"""
        create table llm_usage_periods (id integer primary key);
        create table llm_usage ({column} integer);
        create trigger llm_usage_insert after insert on llm_calls
        begin delete from llm_usage_periods where id > new.id; end;
    """)
    await added_up(datasette)
    left = "select name from sqlite_master where name like 'llm_usage%'"
    assert connection.execute(left).fetchall() == ([("llm_usage",)] if of_plugin else [])
    add(connection, *some_calls(2, 3))
    assert_true(connection)


async def test_p3_sums_with_durations_of_kept_answers_go(
    datasette: Datasette, connection: sqlite3.Connection
) -> None:
    """As versions before have added them up."""
    await added_up(datasette)
    with connection:
        connection.execute("update llm_log_sums set durations = '~'")
        connection.execute(
            "delete from _sqlite_migrations where migration_set = 'datasette_llm_sums' "
            "and name = 'm002_durations_of_requests'"
        )
    await added_up(datasette)
    assert_true(connection)


@pytest.mark.parametrize(
    "change", [late_call, end_of_call, removal, call_of_clock_ahead, table_made_again]
)
async def test_p3_changes_by_other_processes_show_at_once(
    datasette: Datasette, connection: sqlite3.Connection, change: Change
) -> None:
    await added_up(datasette)
    with connection:
        change(connection)
    assert_true(connection)
    await added_up(datasette)
    assert_true(connection)


async def test_p3_kept_sums_are_read_instead_of_calls(
    datasette: Datasette, connection: sqlite3.Connection
) -> None:
    await added_up(datasette)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    Reader(connection, NOW).sums(Question(by=("model",)), BEGIN, floor("hour", NOW))
    connection.set_trace_callback(None)
    assert not [each for each in statements if "from llm_calls where" in each and "group" in each]


async def test_p3_call_that_comes_while_added_up(
    datasette: Datasette,
    connection: sqlite3.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the reading of a period's calls and the writing of its sums."""
    full = Reader.full

    def then_changed(*args: Any, **kwargs: Any) -> Any:
        found = full(*args, **kwargs)
        with closing(sqlite3.connect(tmp_path / "internal.db")) as other, other:
            late_call(other)
        return found

    monkeypatch.setattr(Reader, "full", then_changed)
    await added_up(datasette)
    monkeypatch.undo()
    assert_true(connection)


async def test_p3_sums_of_changed_periods_are_removed(
    datasette: Datasette, connection: sqlite3.Connection
) -> None:
    """A while later, for a reader may still need them; hours are not kept for long."""
    upkeep = Upkeep(datasette)
    await upkeep.update(NOW)
    late_call(connection)
    unused = (
        "select count(*) from llm_log_sums where period_id not in (select id from llm_log_periods)"
    )
    assert connection.execute(unused).fetchone()[0]
    await upkeep.update(NOW)
    await upkeep.update(NOW)
    assert connection.execute(unused).fetchone() == (0,)
    await upkeep.update(NOW + 9 * DAY)
    hours = "select count(*) from llm_log_periods where unit = 'hour' and end_id <= ?"
    assert connection.execute(hours, [first_id(NOW + DAY)]).fetchone() == (0,)


@pytest.mark.parametrize("table", usage_schema.TABLES)
async def test_p3_dropped_tables_come_back(
    datasette: Datasette, connection: sqlite3.Connection, table: str
) -> None:
    """A dropped cache is made again while Datasette runs, since no call is written without it."""
    upkeep = Upkeep(datasette)
    await upkeep.update(NOW)
    connection.execute(f"drop table {table}")
    await upkeep.update(NOW)
    connection.execute("select 1 from llm_log_periods")  # reads the new schema
    add(connection, *some_calls(2, 3))
    assert totals_of(Reader(connection, NOW), Filter())["calls"] == 255


async def test_p3_running_call_delays_its_period(
    datasette: Datasette, connection: sqlite3.Connection
) -> None:
    """It will end soon, and then its sums would have to be made again."""
    running = NOW - 3 * HOUR
    add(connection, call_row(running, outcome=None))
    await added_up(datasette)
    sql = "select 1 from llm_log_periods where unit = 'hour' and start_id = ?"
    begin = [first_id(floor("hour", running))]
    assert connection.execute(sql, begin).fetchone() is None
    end_of_call(connection)
    await added_up(datasette)
    assert connection.execute(sql, begin).fetchone()


def test_p3_time_limit_leaves_out_the_oldest(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        migrate(connection)
        add(connection, *some_calls(3, 50))
        reader = Reader(connection, NOW, limit_ms=0)
        assert reader.sums(Question(), BEGIN, None) == {}
        assert reader.cut == NOW
        assert reader.sums(Question(), BEGIN, NOW) == {}


def test_p3_time_limit_with_a_changed_schema(tmp_path: Path) -> None:
    """SQLite has no time to read the schema again, and says so in other words."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(path)) as other:
        migrate(connection)
        add(connection, *some_calls(3, 50))
        connection.commit()
        reader = Reader(connection, NOW, limit_ms=0)
        reader.first()
        other.execute("create table birds (id)")
        assert reader.sums(Question(), BEGIN, None) == {}
        assert reader.cut == NOW


def test_totals_add_up_what_is_known(tmp_path: Path) -> None:
    """Huge and odd numbers, which only others write, break nothing."""
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        migrate(connection)
        assert totals_of(Reader(connection, NOW), Filter())["cost_dollars"] == 0
        add(
            connection,
            call_row(NOW, cost_nanodollars=3_000_000_000, input_tokens=7),
            call_row(NOW, duration_ms=float("inf"), input_tokens=2**62, model_id=b"\xff"),
            call_row(NOW, outcome="blocked", duration_ms=99_999.0, output_tokens=2**62),
            call_row(NOW, outcome="lost", duration_ms="soon"),
            call_row(NOW, cached_from="01", duration_ms=0.4, first_chunk_ms=0.3, input_tokens=0),
        )
        found = totals_of(Reader(connection, NOW), Filter(since="2026-03-04"))
        names = Reader(connection, NOW).sums(Question(by=("model",)), BEGIN, None)
    assert (found["calls"], found["failures"], found["calls_without_cost"]) == (5, 1, 2)
    assert (found["cost_dollars"], found["median_ms"], found["p95_ms"]) == (3.0, 10, 10)
    assert found["first_chunk_median_ms"] is None
    assert found["outcomes"]["blocked"] == 1
    assert ("\ufffd",) in names


def test_question_about_a_group_reads_calls() -> None:
    assert Question(Filter(model="a")).is_kept
    for asked in (Filter(group="g"), Filter(finish_reason="stop"), Filter(tag=("a:b",))):
        assert not replace(Question(), filter=asked).is_kept

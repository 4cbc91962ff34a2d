"""Totals that were found before are shown again for as long as they are true, and no longer."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from datasette_llm.log.totals_cache import QueryCache

from datasette_llm.log import queries, totals, totals_cache
from datasette_llm.log.queries import Filter
from datasette_llm.log.retention import remove_batch
from datasette_llm.log.schema import migrate

from ..support.call_log import DAY, NOW, add, call_row

WANTED = Filter(since="2026-01-30")
FIRST_DAY = datetime.datetime(2026, 1, 30, 12, tzinfo=datetime.UTC)
Change = Callable[[sqlite3.Connection], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record with a call on each of three days, of which the first has not ended."""
    path = tmp_path / "internal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        running = {"outcome": None, "duration_ms": None}
        add(connection, call_row(FIRST_DAY - 9 * DAY), call_row(FIRST_DAY, **running))
        add(connection, call_row(FIRST_DAY + DAY), call_row(NOW))
    return path


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def found(connection: sqlite3.Connection, answers: QueryCache, wanted: Filter = WANTED) -> object:
    days = totals.totals(connection, wanted, "model", NOW, answers)
    return days.days, days.total, days.durations


def late_call(connection: sqlite3.Connection) -> None:
    """As from a clock that went back, or a process that could not write for a time."""
    add(connection, call_row(FIRST_DAY + DAY, duration_ms=77.0))


def end(connection: sqlite3.Connection) -> None:
    sql = "update llm_calls set outcome = 'ok', duration_ms = 9.0 where outcome is null"
    connection.execute(sql)


def late_call_and_its_end(connection: sqlite3.Connection) -> None:
    end(connection)
    add(connection, call_row(FIRST_DAY, outcome=None))
    end(connection)


def removal_and_late_calls(connection: sqlite3.Connection) -> None:
    """As many calls as before, but others."""
    remove_batch(connection, queries.first_id(NOW - datetime.timedelta(hours=1)), 1)
    late_call(connection)


@pytest.mark.parametrize("change", [late_call, end, late_call_and_its_end, removal_and_late_calls])
def test_other_process_changes_show_at_once(
    path: Path, connection: sqlite3.Connection, change: Change
) -> None:
    answers = QueryCache()
    before = found(connection, answers)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        change(other)

    assert before != found(connection, QueryCache())
    assert found(connection, answers) == found(connection, QueryCache())


def sums(connection: sqlite3.Connection, work: Callable[[], object]) -> int:
    """How many times some work adds up a period."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    work()
    connection.set_trace_callback(None)
    return sum("group by" in statement for statement in statements)


def test_only_changed_periods_are_queried_again(connection) -> None:
    """Days with a running call, and days with new calls."""
    answers = QueryCache()
    assert sums(connection, lambda: found(connection, answers)) == 3

    assert sums(connection, lambda: found(connection, answers)) == 1  # the day of the running one
    end(connection)
    assert sums(connection, lambda: found(connection, answers)) == 1
    assert sums(connection, lambda: found(connection, answers)) == 0
    add(connection, call_row(NOW))
    assert sums(connection, lambda: found(connection, answers)) == 1


def test_filters_have_separate_results(connection) -> None:
    answers = QueryCache()
    found(connection, answers)

    for wanted in (Filter(since="2026-01-30", model="x"), Filter(since="2026-01-30T13:00")):
        assert found(connection, answers, wanted) == found(connection, QueryCache(), wanted)


def test_least_recently_used_is_evicted(connection) -> None:
    end(connection)
    answer_chars = totals_cache.RESULT_CHARS + totals_cache.ROW_CHARS + 700
    answers = QueryCache(max_chars=4 * answer_chars)  # for three days, and one more
    found(connection, answers)
    other = Filter(since="2026-02-01", model="pelican")

    found(connection, answers, other)
    assert sums(connection, lambda: found(connection, answers, other)) == 0
    found(connection, answers, Filter(since="2026-02-01", outcome="ok"))

    assert sums(connection, lambda: found(connection, answers, other)) == 0
    assert sums(connection, lambda: found(connection, answers)) > 0


def test_empty_results_are_bounded_too(connection) -> None:
    """Filters that match nothing do not fill the memory."""
    end(connection)
    answers = QueryCache(max_chars=100_000)

    for number in range(50):
        found(connection, answers, Filter(since="2026-01-30", actor=f"{number}" * 1_000))

    kept_chars = [len(value) for _, values in answers._results for _, value in values]
    assert 0 < sum(kept_chars) <= 100_000
    assert len(answers._results) <= 100_000 / totals_cache.RESULT_CHARS


def test_oversized_result_is_not_cached(connection) -> None:
    end(connection)
    answers = QueryCache(max_chars=10)

    assert found(connection, answers) == found(connection, QueryCache())
    assert sums(connection, lambda: found(connection, answers)) == 3


def test_call_during_query_is_not_missed(path, connection) -> None:
    answers = QueryCache()
    day = queries.first_id((FIRST_DAY + DAY).replace(hour=0))
    about_the_day: list[str] = []

    def between(statement: str) -> None:
        if f"id >= '{day}'" not in statement:
            return
        about_the_day.append(statement)
        if len(about_the_day) == 2:  # one tells how many calls there are, and one adds them up
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                late_call(other)

    end(connection)
    connection.set_trace_callback(between)
    found(connection, answers)
    connection.set_trace_callback(None)

    assert len(about_the_day) == 2
    assert found(connection, answers) == found(connection, QueryCache())

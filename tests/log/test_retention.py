"""The one way out of the record: `log.keep_days`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ulid import ULID

from datasette_llm import LLM
from datasette_llm.consultant.advice import store
from datasette_llm.log import retention
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.schema import migrate
from datasette_llm.testing import ScriptedModel

BOUND_S = 20
NOW_MS = 1_790_000_000_000
DAY_MS = 24 * 60 * 60 * 1000
OLD_MS = 1_000_000_000_000
LATER_MS = OLD_MS + DAY_MS


def id_of(milliseconds: int, number: int = 0) -> str:
    return str(ULID(milliseconds.to_bytes(6, "big") + number.to_bytes(10, "big"))).lower()


class Record:
    """A file with the tables of the record, by a connection that waits for nobody."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        migrate(self.connection)
        # Calls that are not old, so that those of the tests are.
        now_ms = int(time.time() * 1000)
        self._recent = [self.add(id_of(now_ms - days * DAY_MS)) for days in (2, 0)]

    def add(
        self,
        call_id: str,
        outcome: str | None = "ok",
        session_id: str = "gone",
        content: bool = False,
    ) -> str:
        self.connection.execute(
            "insert into llm_calls (id, session_id, started_at, model_id, streaming, "
            "prompt_chars, system_chars, message_count, attachment_count, outcome) "
            "values (?, ?, '2026-01-01T00:00:00.000Z', 'm', 1, 0, 0, 1, 0, ?)",
            (call_id, session_id, outcome),
        )
        for part in ("request", "response") if content else ():
            sql = "insert into llm_call_content (call_id, part, content) values (?, ?, 'x')"
            self.connection.execute(sql, (call_id, part))
        return call_id

    def add_many(self, count: int, milliseconds: int = OLD_MS) -> list[str]:
        return [self.add(id_of(milliseconds, number)) for number in range(count)]

    def open_session(self, session_id: str) -> None:
        sql = "insert into llm_log_sessions (id, opened_at) values (?, '')"
        self.connection.execute(sql, (session_id,))

    def ids(self) -> list[str]:
        """Without those that are there from the beginning."""
        found = self._column("select id from llm_calls order by id")
        return [call_id for call_id in found if call_id not in self._recent]

    def with_content(self) -> list[str]:
        return self._column("select distinct call_id from llm_call_content order by call_id")

    def removals(self) -> list[tuple[Any, ...]]:
        sql = "select below_id, call_count, keep_days from llm_log_removals order by id"
        return self.connection.execute(sql).fetchall()

    def remove_batch(self, below_id: str, keep_days: int = 7) -> int:
        self.connection.execute("begin immediate")
        count = retention.remove_batch(self.connection, below_id, keep_days)
        self.connection.execute("commit")
        return count

    def _column(self, sql: str) -> list[str]:
        return [row[0] for row in self.connection.execute(sql)]


@pytest.fixture
def record(path: Path) -> Iterator[Record]:
    record = Record(path)
    yield record
    record.connection.close()


# What goes, and what stays


def test_removes_smaller_ids_with_content(record: Record) -> None:
    """Calls below the id are removed with their content; the others stay."""
    for number in (1, 2, 3, 4):
        record.add(id_of(number), content=number != 2)

    assert record.remove_batch(id_of(3)) == 2

    assert record.ids() == [id_of(3), id_of(4)]
    assert record.with_content() == [id_of(3), id_of(4)]
    assert record.removals() == [(id_of(3), 2, 7)]


@pytest.mark.parametrize("outcome", ["ok", "error", "cancelled", "blocked", "lost"])
def test_ended_call_is_removed_with_any_outcome(record: Record, outcome: str) -> None:
    record.open_session("here")
    record.add(id_of(1), outcome, "here")

    assert record.remove_batch(id_of(2)) == 1
    assert record.ids() == []


def test_running_call_stays_until_it_ends(record: Record) -> None:
    record.open_session("here")
    running = record.add(id_of(1), None, "here")
    record.add(id_of(2), "ok", "here", content=True)

    assert record.remove_batch(id_of(3)) == 1
    assert record.ids() == [running]

    record.connection.execute("update llm_calls set outcome = 'ok' where id = ?", (running,))
    assert record.remove_batch(id_of(3)) == 1
    assert record.ids() == []
    assert [count for _, count, _ in record.removals()] == [1, 1]


def test_abandoned_call_is_removed_by_age(record: Record) -> None:
    """A running call whose session has ended is removed by its age."""
    record.open_session("another")
    record.add(id_of(1), None, "closed")

    assert record.remove_batch(id_of(2)) == 1
    assert record.ids() == []


def test_orphan_content_is_removed(record: Record) -> None:
    record.add(id_of(2))
    sql = "insert into llm_call_content (call_id, part, content) values (?, 'response', 'x')"
    record.connection.execute(sql, (id_of(1),))

    assert record.remove_batch(id_of(3)) == 1
    assert record.with_content() == []


def test_removed_text_is_overwritten_in_file(record: Record, path: Path) -> None:
    record.connection.execute("pragma secure_delete = off")
    record.add(id_of(1))
    sql = "insert into llm_call_content (call_id, part, content) values (?, 'response', ?)"
    record.connection.execute(sql, (id_of(1), "a secret of theirs"))
    assert b"a secret of theirs" in path.read_bytes()

    record.remove_batch(id_of(2))

    assert b"a secret of theirs" not in path.read_bytes()


def test_nothing_old_writes_nothing(record: Record) -> None:
    record.add(id_of(5))

    assert record.remove_batch(id_of(5)) == 0
    assert record.removals() == []


def test_batch_takes_the_oldest(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_BATCH", 3)
    ids = record.add_many(8)
    end = id_of(LATER_MS)

    assert [record.remove_batch(end) for _ in range(4)] == [3, 3, 2, 0]

    assert record.ids() == []
    assert record.removals() == [(ids[3], 3, 7), (ids[6], 3, 7), (end, 2, 7)]


def test_a_batch_has_at_most_a_thousand_rows() -> None:
    assert retention.MAX_BATCH <= 1_000


def test_running_call_does_not_block_younger_ones(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCH", 2)
    record.open_session("here")
    running = [record.add(id_of(1, number), None, "here") for number in range(3)]
    record.add_many(5)

    assert [record.remove_batch(id_of(LATER_MS)) for _ in range(4)] == [2, 2, 1, 0]
    assert record.ids() == running


def test_newer_calls_stay_protected_after_removal(record: Record) -> None:
    record.add(id_of(1))
    record.add(id_of(3), content=True)
    record.remove_batch(id_of(2))

    for table in ("llm_calls", "llm_call_content", "llm_log_removals"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            record.connection.execute(f"delete from {table}")
    assert record.ids() == record.with_content() == [id_of(3)]


def test_rolled_back_batch_changes_nothing(
    record: Record,
) -> None:
    ids = record.add_many(3)

    record.connection.execute("begin immediate")
    retention.remove_batch(record.connection, id_of(LATER_MS), 7)
    record.connection.execute("rollback")

    assert (record.ids(), record.removals()) == (ids, [])


@pytest.mark.parametrize(
    ("keep_days", "milliseconds"),
    [(1, NOW_MS - DAY_MS), (365, NOW_MS - 365 * DAY_MS), (30_000, 0), (10**30, 0)],
)
def test_days_are_counted_back_from_now(
    keep_days: int, milliseconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "time", SimpleNamespace(time=lambda: NOW_MS / 1000))

    assert retention.first_kept_id(keep_days) == id_of(milliseconds)


# Clocks that jump


class Times:
    """A wall clock and a monotonic one, in milliseconds."""

    def __init__(self) -> None:
        self.wall_ms = NOW_MS
        self.steady_ms = 0

    def time(self) -> float:
        return self.wall_ms / 1000

    def monotonic(self) -> float:
        return self.steady_ms / 1000

    def pass_(self, milliseconds: int) -> None:
        self.wall_ms += milliseconds
        self.steady_ms += milliseconds


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    monkeypatch.setattr(retention, "time", times)
    return times


HOUR_MS = 60 * 60 * 1000
RECENT = (NOW_MS, NOW_MS - 2 * DAY_MS)


def test_s3_steady_clock_is_trusted(times: Times) -> None:
    clock = retention.Clock(7)
    for _ in range(3):
        assert clock.is_trusted(*RECENT)
        times.pass_(HOUR_MS)
    assert retention.Clock(7).is_trusted(None, None)


@pytest.mark.parametrize("jump_days", [8, 3650, -8])
def test_s3_jump_is_trusted_after_a_day(
    times: Times, caplog: pytest.LogCaptureFixture, jump_days: int
) -> None:
    clock = retention.Clock(7)
    times.pass_(30 * DAY_MS)  # that it was steady for long does not help
    assert clock.is_trusted(times.wall_ms, times.wall_ms - 2 * DAY_MS)
    times.wall_ms += jump_days * DAY_MS
    for _ in range(24):
        # As after a call that came since.
        assert not clock.is_trusted(times.wall_ms, NOW_MS + 30 * DAY_MS)
        times.pass_(HOUR_MS)
    assert clock.is_trusted(times.wall_ms, NOW_MS + 30 * DAY_MS)
    assert len(caplog.messages) == 1
    assert "The clock has jumped" in caplog.text


def test_s3_second_jump_begins_the_day_again(times: Times) -> None:
    clock = retention.Clock(7)
    times.wall_ms += 8 * DAY_MS
    assert not clock.is_trusted(*RECENT)
    times.pass_(DAY_MS - 1)
    times.wall_ms -= 8 * DAY_MS
    assert not clock.is_trusted(*RECENT)
    times.pass_(DAY_MS - 1)
    assert not clock.is_trusted(*RECENT)
    times.pass_(1)
    assert clock.is_trusted(*RECENT)


def test_s3_unsteady_day_does_not_count(times: Times) -> None:
    """A day in which the clock was corrected by less than `keep_days`."""
    clock = retention.Clock(7)
    times.wall_ms += 8 * DAY_MS
    assert not clock.is_trusted(*RECENT)
    times.pass_(23 * HOUR_MS)
    times.wall_ms -= 2 * DAY_MS
    assert not clock.is_trusted(*RECENT)
    times.pass_(23 * HOUR_MS)
    assert not clock.is_trusted(*RECENT)
    times.pass_(HOUR_MS)
    assert clock.is_trusted(*RECENT)
    times.wall_ms -= 2 * DAY_MS
    assert clock.is_trusted(*RECENT)


def test_s3_several_jumps_add_up(times: Times) -> None:
    clock = retention.Clock(7)
    for trusted in (True, False):
        times.wall_ms += 4 * DAY_MS
        assert clock.is_trusted(times.wall_ms, times.wall_ms - 2 * DAY_MS) is trusted
        times.pass_(HOUR_MS)


def test_s3_small_jump_is_trusted(times: Times) -> None:
    clock = retention.Clock(7)
    times.wall_ms += 7 * DAY_MS
    assert clock.is_trusted(NOW_MS, NOW_MS - DAY_MS)


@pytest.mark.parametrize(
    ("newest_days", "older_days"),
    [
        (8, 8),  # a jump before the start, or a site that nobody used
        (0, 9),  # the same, and a call since
    ],
)
def test_s3_gap_before_start_is_trusted_after_a_day(
    times: Times, caplog: pytest.LogCaptureFixture, newest_days: int, older_days: int
) -> None:
    newest, older = NOW_MS - newest_days * DAY_MS, NOW_MS - older_days * DAY_MS
    clock = retention.Clock(7)
    for _ in range(24):
        assert not clock.is_trusted(newest, older)
        times.pass_(HOUR_MS)
    assert clock.is_trusted(newest, older)
    assert len(caplog.messages) == 1


def test_s3_newest_call_and_newest_of_yesterday(record: Record, times: Times) -> None:
    times.wall_ms = int(time.time() * 1000)
    newest, older = retention.Clock(7).newest(record.connection)
    assert [round((times.wall_ms - each) / DAY_MS) for each in (newest, older)] == [0, 2]


def test_s3_age_is_counted_from_newest_call(record: Record) -> None:
    """A clock that is ahead, and a call that is older than that: nothing young goes."""
    old = record.add(id_of(OLD_MS))
    young = record.add(id_of(int(time.time() * 1000) - 6 * DAY_MS))
    ahead = id_of(int(time.time() * 1000) + 3650 * DAY_MS)
    assert old in record.ids()
    assert record.remove_batch(ahead) == 1
    assert record.ids() == [young]


async def test_s3_jump_keeps_calls_for_a_day(
    make_datasette, path: Path, record: Record, naps: Naps, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = record.add_many(2)
    times = Times()
    times.wall_ms = int(time.time() * 1000)
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.invoke_startup()
    monkeypatch.setattr(retention, "time", times)
    keeping = asyncio.create_task(
        retention.keep(datasette, writer=Recorder.of(datasette).writer, keep_days=7)
    )
    await naps.next()
    assert record.ids() == []
    record.add(old[0])
    times.wall_ms += 8 * DAY_MS
    for _ in range(24):
        await naps.next()
        assert record.ids() == [old[0]]
        times.pass_(HOUR_MS)
    await naps.next()
    assert record.ids() == []
    keeping.cancel()


# Consultations


@pytest.fixture
def consultations(record: Record) -> Callable[[], list[str]]:
    store.migrate(record.connection)

    def add(*milliseconds: int) -> None:
        for each in milliseconds:
            sql = (
                "insert into llm_consultations (id, created_at, type, database_name, table_name, "
                "exclude, rejected, checks, outcome, profile) "
                "values (?, '', '', '', '', '', '', '', 'ok', 'values of a table')"
            )
            record.connection.execute(sql, (id_of(each),))

    def ids() -> list[str]:
        return record._column("select id from llm_consultations order by id")

    record.consult = add
    return ids


def test_s3_consultations_go_with_calls(
    record: Record, consultations: Callable[[], list[str]], path: Path
) -> None:
    record.add(id_of(OLD_MS))
    record.consult(OLD_MS - 1, OLD_MS + 1, int(time.time() * 1000))
    assert b"values of a table" in path.read_bytes()
    assert record.remove_batch(id_of(LATER_MS)) == 3
    assert len(consultations()) == 1
    assert record.removals() == [(id_of(LATER_MS), 1, 7)]
    with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
        record.connection.execute("delete from llm_consultations")


def test_s3_consultations_go_without_calls(
    record: Record, consultations: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCH", 2)
    record.consult(*range(5))
    assert [record.remove_batch(id_of(LATER_MS)) for _ in range(4)] == [2, 2, 1, 0]
    assert consultations() == []
    assert [calls for _, calls, _ in record.removals()] == [0, 0, 0]


async def test_s3_old_table_of_consultations_is_updated(
    make_datasette, path: Path, record: Record, naps: Naps, consultations: Callable[[], list[str]]
) -> None:
    """An earlier version refused every deletion; nobody asks for advice before retention runs."""
    record.consult(OLD_MS)
    record.connection.execute("delete from _sqlite_migrations where name = 'm002_retention'")
    record.connection.execute("drop trigger llm_consultations_delete")
    record.connection.execute(
        "create trigger llm_consultations_delete before delete on llm_consultations "
        "begin select raise(abort, 'llm_consultations is append-only'); end"
    )
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.start_background_tasks()
    await naps.next()
    assert consultations() == []
    await datasette.invoke_shutdown()


# The background task


class Naps:
    """Takes the place of `asyncio.sleep` in the task, and lets the test say when to go on."""

    def __init__(self) -> None:
        self.pauses = 0
        self._begun: asyncio.Queue[float] = asyncio.Queue()
        self._over = asyncio.Event()
        self.at_pause: Callable[[], Any] = lambda: None

    async def sleep(self, seconds: float) -> None:
        if seconds == retention.PAUSE_S:
            self.pauses += 1
            result = self.at_pause()
            if asyncio.iscoroutine(result):
                await result
            return
        self._over.clear()
        self._begun.put_nowait(seconds)
        await self._over.wait()

    def end(self) -> None:
        self._over.set()

    async def next(self) -> float:
        """Let the current nap end, and wait for the next; gives its length in seconds."""
        self.end()
        return await asyncio.wait_for(self._begun.get(), BOUND_S)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> Naps:
    naps = Naps()
    monkeypatch.setattr(retention, "asyncio", SimpleNamespace(sleep=naps.sleep))
    return naps


def tasks_of(datasette: Any) -> list[Any]:
    return [task for task in datasette._background_tasks.tasks() if "retention" in task.name]


async def test_runs_at_start_and_every_hour(
    make_datasette, path: Path, record: Record, naps: Naps
) -> None:
    old = record.add_many(2)
    young = record.add(str(ULID()).lower())
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.start_background_tasks()

    assert await naps.next() == 3600
    assert record.ids() == [young]

    record.add(old[0])
    assert await naps.next() == 3600
    assert record.ids() == [young]
    assert [(count, days) for _, count, days in record.removals()] == [(2, 7), (1, 7)]
    await datasette.invoke_shutdown()


async def test_other_writes_run_between_batches(
    make_datasette,
    register_models,
    path: Path,
    record: Record,
    naps: Naps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCH", 2)
    register_models(ScriptedModel("scripted"))
    record.add_many(5)
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    responses = []

    async def prompt() -> None:
        model = await LLM(datasette).model("scripted")
        responses.append(await model.prompt("hi"))
        # And a process of its own, which does not wait for a lock.
        record.connection.execute("begin immediate")
        record.connection.execute("commit")

    naps.at_pause = prompt
    await datasette.start_background_tasks()
    await naps.next()

    assert naps.pauses == len(responses) == 2
    assert record.ids() == [response.id for response in responses]
    assert [count for _, count, _ in record.removals()] == [2, 2, 1]
    await datasette.invoke_shutdown()


@pytest.mark.parametrize("config", [None, {"log": False}, {"log": True}, {"log": {}}])
async def test_no_task_without_keep_days(make_datasette, config: Any) -> None:
    datasette = make_datasette(config)
    await datasette.start_background_tasks()

    assert tasks_of(datasette) == []
    await datasette.invoke_shutdown()


async def test_locked_database_is_logged_once(
    make_datasette, path: Path, record: Record, naps: Naps, caplog: pytest.LogCaptureFixture
) -> None:
    ids = record.add_many(2)
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.invoke_startup()
    await datasette.get_internal_database().execute_write_fn(
        lambda connection: connection.execute("pragma busy_timeout = 0"), transaction=False
    )
    record.connection.execute("begin immediate")
    with caplog.at_level(logging.ERROR, "datasette_llm"):
        await datasette.start_background_tasks()
        lengths = [await naps.next() for _ in range(3)]
    assert record.ids() == ids
    record.connection.execute("rollback")

    assert lengths == [60] * 3
    about_calls = [message for message in caplog.messages if "Old calls" in message]
    assert about_calls == ["Old calls cannot be removed from the LLM call log: database is locked"]

    assert await naps.next() == 3600
    assert record.ids() == []

    record.connection.execute("begin immediate")
    assert await naps.next() == 60
    record.connection.execute("rollback")
    assert len([each for each in caplog.messages if "Old calls" in each]) == 2
    await datasette.invoke_shutdown()


async def test_failed_open_at_start_is_retried(
    make_datasette, path: Path, naps: Naps, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
        await datasette.get_internal_database().execute_write_fn(
            lambda connection: connection.execute("pragma busy_timeout = 0"), transaction=False
        )
        writer = Recorder.of(datasette).writer
        other.execute("begin immediate")
        keeping = asyncio.create_task(retention.keep(datasette, writer=writer, keep_days=7))
        assert await naps.next() == 60
        other.execute("rollback")

    assert await naps.next() == 3600
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    about_calls = [message for message in caplog.messages if "Old calls" in message]
    assert about_calls == ["Old calls cannot be removed from the LLM call log: database is locked"]


async def test_the_task_ends_when_datasette_stops(
    make_datasette, path: Path, naps: Naps, caplog: pytest.LogCaptureFixture
) -> None:
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.start_background_tasks()
    await naps.next()
    [task] = tasks_of(datasette)
    assert task.state == "running"

    await datasette.invoke_shutdown()

    assert task.task.done()
    assert task.state == "cancelled"
    assert caplog.messages == []


async def test_task_ends_if_datasette_is_closed(
    make_datasette, path: Path, naps: Naps, caplog: pytest.LogCaptureFixture
) -> None:
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.start_background_tasks()
    await naps.next()
    [task] = tasks_of(datasette)

    datasette.close()
    naps.end()
    await asyncio.wait_for(task.task, BOUND_S)

    assert caplog.messages == []


async def test_command_removes_nothing(make_datasette, path: Path, record: Record) -> None:
    ids = record.add_many(2)
    datasette = make_datasette({"log": {"keep_days": 7}}, internal=str(path))
    await datasette.invoke_startup()  # as `datasette llm prompt` does
    await datasette.invoke_shutdown()

    assert record.ids() == ids

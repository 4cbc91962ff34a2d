"""Tables that only grow, transactions that are shared, databases that fail: promises L3 to L5."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import sys
import time
import weakref
from contextlib import ExitStack, closing
from contextvars import ContextVar
from pathlib import Path

import llm
import pytest
from datasette.app import Datasette
from datasette.utils import StartupError
from sqlite_utils import Database, Migrations

from datasette_llm import LLM, instance
from datasette_llm.calls.call import RunningCalls
from datasette_llm.errors import NewerDatabaseError, NotRecordedError
from datasette_llm.events import Outcome, RequestStarted, never_sent, unsent
from datasette_llm.log import schema, writer
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.rows import started_row
from datasette_llm.log.schema import STARTED_COLUMNS, migrate
from datasette_llm.log.sessions import Session
from datasette_llm.log.writer import Writer
from datasette_llm.testing import ScriptedModel

from ..support.log_faults import corrupt, full, locked, pragma, read_only
from ..support.waiting import BOUND_S, soon, until

CURRENT = ContextVar("CURRENT")
APPEND_ONLY = "append-only"


@pytest.fixture
def connection(path):
    """A connection to a database with the tables of the call log, and some rows in them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("insert into llm_log_sessions values ('session', 'then')")
        for call_id in ("a", "b", "c", "d"):
            start(connection, call_id)
        for call_id in ("a", "b"):
            finish(connection, call_id)
            for part in ("request", "response"):
                connection.execute(
                    "insert into llm_call_content values (?, ?, 'text')", (call_id, part)
                )
        unchecked(connection, "insert into llm_log_removals values (1, 'then', 'b', 1, 30)")
        yield connection


def unchecked(connection, removal):
    """Note a removal as earlier versions did, which did not check it."""
    name = "llm_log_removals_remove"
    sql = "select sql from sqlite_master where name = ?"
    (trigger,) = connection.execute(sql, (name,)).fetchone()
    connection.execute(f"drop trigger {name}")
    connection.execute(removal)
    connection.execute(trigger)


def start(connection, call_id):
    row = started_row("session", RequestStarted(call_id, "model", "chat", "ana", None))
    places = ", ".join("?" * len(row))
    connection.execute(
        f"insert into llm_calls ({', '.join(row)}) values ({places})", tuple(row.values())
    )


def finish(connection, call_id, outcome="ok"):
    connection.execute(
        "update llm_calls set outcome = ?, finished_at = 'then' where id = ?", (outcome, call_id)
    )


def dumped(connection):
    return list(connection.iterdump())


def columns_of(path, columns="id, outcome"):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"select {columns} from llm_calls order by id").fetchall()


# L3: what is recorded stays


CALL = "id, session_id, started_at, model_id, streaming, prompt_chars, system_chars, "
CALL += "message_count, attachment_count"
FORGED = "'s', 'then', 'forged', 0, 0, 0, 0, 0"

TAMPERING = [
    # a second finish, and changes of what is finished
    "update llm_calls set outcome = 'error' where id = 'a'",
    "update llm_calls set outcome = 'ok' where id = 'a'",
    "update llm_calls set outcome = null where id = 'a'",
    "update llm_calls set cost_nanodollars = 0 where id = 'a'",
    "update llm_calls set outcome = outcome",
    "update llm_calls set outcome = 'lost' where id in ('c', 'a')",
    "update or ignore llm_calls set outcome = 'error' where id = 'a'",
    "update or replace llm_calls set outcome = 'error' where id = 'a'",
    # the first part of what is not finished, together with a second one or without
    *(f"update llm_calls set {name} = 'forged' where id = 'c'" for name in STARTED_COLUMNS),
    *(
        f"update llm_calls set outcome = 'ok', {name} = 'forged' where id = 'c'"
        for name in STARTED_COLUMNS
    ),
    "update llm_calls set purpose = null, outcome = 'ok' where id = 'c'",
    # half a second part, and an outcome that there is not
    "update llm_calls set finished_at = 'then' where id = 'c'",
    "update llm_calls set error_message = 'forged' where id = 'c'",
    "update llm_calls set outcome = 'fine' where id = 'c'",
    # one row in the place of another
    "update or replace llm_calls set id = 'a' where id = 'c'",
    "update or replace llm_calls set id = 'a', outcome = 'ok' where id = 'c'",
    *(
        f"{verb} into llm_calls ({CALL}) values ('{call_id}', {FORGED})"
        for verb in ("replace", "insert or replace", "insert", "insert or fail")
        for call_id in ("a", "c")
    ),
    f"insert into llm_calls ({CALL}) values ('a', {FORGED}) on conflict (id) do update set "
    "outcome = 'error'",
    f"replace into llm_calls ({CALL}) select id, {FORGED} from llm_calls",
    # removal
    "delete from llm_calls",
    "delete from llm_calls where id = 'b'",
    "delete from llm_calls where id = 'c'",
    "delete from llm_calls where outcome is null",
    # a loss of a call whose session goes on
    "update llm_calls set outcome = 'lost' where id = 'c'",
    # contents
    "update llm_call_content set content = 'forged'",
    "update llm_call_content set call_id = 'A' where call_id = 'a'",
    "update or replace llm_call_content set part = 'response' where call_id = 'b'",
    "delete from llm_call_content",
    "delete from llm_call_content where call_id = 'b'",
    *(
        f"{verb} into llm_call_content values ('{call_id}', 'request', 'forged')"
        for verb in ("replace", "insert or replace", "insert")
        for call_id in ("a", "b")
    ),
    "insert into llm_call_content values ('b', 'request', '') on conflict do update set "
    "content = 'forged'",
    # what retention says that it removed
    "update llm_log_removals set below_id = 'zzz'",
    "update llm_log_removals set call_count = 0",
    "delete from llm_log_removals",
    "replace into llm_log_removals values (1, 'then', 'zzz', 0, 30)",
    "insert or replace into llm_log_removals values (1, 'then', 'zzz', 0, 30)",
    "update or replace llm_log_removals set id = 1",
    "insert into llm_log_removals values (1, 'then', '', 0, 1) on conflict do update set "
    "below_id = 'zzz'",
]


@pytest.mark.parametrize("recursive", [False, True], ids=["plain", "recursive_triggers"])
@pytest.mark.parametrize("statement", TAMPERING)
def test_l3_rows_cannot_be_changed_or_deleted(connection, statement, recursive):
    # Without recursive triggers, REPLACE removes the old row without asking any trigger.
    connection.execute(f"pragma recursive_triggers = {int(recursive)}")
    before = dumped(connection)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    assert dumped(connection) == before


@pytest.mark.parametrize("outcome", schema.OUTCOMES)
def test_l3_started_call_can_finish_once(connection, outcome):
    if outcome == "lost":
        connection.execute("delete from llm_log_sessions")
    finish(connection, "c", outcome)
    for second in schema.OUTCOMES:
        with pytest.raises(sqlite3.IntegrityError, match=APPEND_ONLY):
            finish(connection, "c", second)
    assert connection.execute("select outcome from llm_calls where id = 'c'").fetchone() == (
        outcome,
    )


def test_l3_a_row_can_be_written_whole(connection):
    connection.execute(f"insert into llm_calls ({CALL}, outcome) values ('e', {FORGED}, 'blocked')")
    with pytest.raises(sqlite3.IntegrityError, match=APPEND_ONLY):
        finish(connection, "e")


def test_l3_only_below_last_removal_is_deletable(connection):
    with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
        connection.execute("delete from llm_call_content where call_id < 'b'")  # before its call
    connection.execute("delete from llm_calls where id < 'b'")
    connection.execute("delete from llm_call_content where call_id < 'b'")
    assert [i for (i,) in connection.execute("select id from llm_calls order by id")] == [*"bcd"]
    for table, column in (("llm_calls", "id"), ("llm_call_content", "call_id")):
        with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
            connection.execute(f"delete from {table} where {column} = 'b'")


def test_l3_removal_beyond_limit_removes_nothing(connection):
    before = dumped(connection)
    with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
        connection.execute("delete from llm_calls where id <= 'b'")
    assert dumped(connection) == before


def test_l3_fast_clock_removal_is_not_permanent(connection):
    """A removal noted by a clock that was ahead allows no later deletions."""
    unchecked(connection, "insert into llm_log_removals values (2, 'then', 'zzz', 0, 30)")
    unchecked(connection, "insert into llm_log_removals values (3, 'then', 'a', 0, 30)")
    for statement in ("delete from llm_calls", "delete from llm_call_content"):
        with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
            connection.execute(statement)


def test_l3_nothing_deletable_without_removal(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        start(connection, "")
        start(connection, "a")
        for statement in ("delete from llm_calls", "delete from llm_calls where id = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="only retention removes"):
                connection.execute(statement)


# Migrations


def newer(connection):
    connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) "
        "values ('datasette_llm', 'm999_of_tomorrow', 'tomorrow')"
    )


async def test_newer_database_stops_startup(make_datasette, path):
    with closing(sqlite3.connect(path)) as connection, connection:
        migrate(connection)
        newer(connection)
    with pytest.raises(StartupError) as raised:
        await make_datasette(internal=str(path)).invoke_startup()
    assert isinstance(raised.value, NewerDatabaseError)
    assert str(raised.value) == (
        "The internal database was written by a newer datasette-llm (it knows "
        "m999_of_tomorrow). Upgrade datasette-llm, or use another --internal database"
    )


async def test_newer_database_is_ignored_without_log(make_datasette, path):
    with closing(sqlite3.connect(path)) as connection, connection:
        migrate(connection)
        newer(connection)
    await make_datasette({"log": False}, internal=str(path)).invoke_startup()


def test_older_database_is_migrated_with_its_rows(connection, monkeypatch):
    before = connection.execute("select * from llm_calls order by id").fetchall()
    ours = [migration.name for migration in schema.migrations.pending(Database(memory=True))]
    later = Migrations("datasette_llm")
    later._migrations = list(schema.migrations._migrations)

    @later()
    def m999_tomorrow(db):
        db.execute("alter table llm_calls add column tomorrow text")

    monkeypatch.setattr(schema, "migrations", later)
    migrate(connection)
    migrate(connection)
    after = connection.execute("select * from llm_calls order by id").fetchall()
    assert after == [(*row, None) for row in before]
    applied = [m.name for m in later.applied(Database(connection))]
    assert ours[:2] == ["m001_record", "m002_attempts"]
    assert applied == [*ours, "m999_tomorrow"]


async def test_database_without_log_gets_tables(make_datasette, register_models, path):
    register_models(ScriptedModel("scripted", ["a"]))
    before = make_datasette({"log": False}, internal=str(path))
    await before.invoke_startup()
    await before.invoke_shutdown()
    datasette = make_datasette(internal=str(path))
    await datasette.invoke_startup()
    await prompted(await LLM(datasette).model("scripted"))
    await datasette.invoke_shutdown()
    assert [outcome for _, outcome in columns_of(path)] == ["ok"]


def test_interrupted_migration_leaves_nothing(path, monkeypatch):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        monkeypatch.setattr(schema, "OUTCOMES", ("it's broken",))
        with pytest.raises(sqlite3.Error):
            migrate(connection)
        monkeypatch.undo()
        migrate(connection)
        start(connection, "a")
        finish(connection, "a")


# L4: one transaction for many


class Gated:
    """Runs work in a database in memory, one transaction at a time, each when it is let go."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("create table done (value)")
        self.transactions = []
        self.begun = asyncio.Condition()
        self.may_go = asyncio.Semaphore(0)
        self.errors = []

    async def execute(self, work):
        if work is opened:
            return None
        async with self.begun:
            self.transactions.append(None)
            self.begun.notify_all()
        await self.may_go.acquire()
        if self.errors:
            raise self.errors.pop(0)
        before = set(self.done())
        self.connection.execute("begin")
        result = work(self.connection)
        self.connection.commit()  # as Datasette does, also where there is nothing to commit
        self.transactions[-1] = sorted(set(self.done()) - before)
        return result

    async def reached(self, number):
        async with asyncio.timeout(BOUND_S), self.begun:
            await self.begun.wait_for(lambda: len(self.transactions) >= number)

    def let(self, count=1):
        for _ in range(count):
            self.may_go.release()

    def done(self):
        return [value for (value,) in self.connection.execute("select value from done")]


def opened(connection):
    pass


def row(value):
    return ("insert into done values (:value)", {"value": value})


@pytest.fixture
def gated():
    gated = Gated()
    yield gated
    gated.connection.close()


async def test_l4_a_lone_call_is_committed_at_once(gated):
    log = Writer(gated.execute, opened)
    committing = asyncio.create_task(log.commit(row(1)))
    for _ in range(10):  # a few steps of the event loop, and no clock
        await asyncio.sleep(0)
    assert len(gated.transactions) == 1
    gated.let()
    assert await soon(committing) is True
    assert gated.transactions == [[1]]


async def test_l4_pending_writes_share_a_transaction(gated):
    log = Writer(gated.execute, opened)
    first = asyncio.create_task(log.commit(row(0)))
    await gated.reached(1)
    others = [asyncio.create_task(log.commit(row(number))) for number in range(1, 65)]
    log.later(row(65))
    await asyncio.sleep(0)
    gated.let()
    assert await soon(first) is True
    assert not any(task.done() for task in others)
    gated.let()
    assert await soon(asyncio.gather(*others)) == [True] * 64
    assert [len(rows) for rows in gated.transactions] == [1, 65]


async def test_l4_transaction_size_is_bounded(gated, monkeypatch):
    monkeypatch.setattr(writer, "MAX_BATCH", 10)
    log = Writer(gated.execute, opened)
    for number in range(25):
        log.later(row(number))
    gated.let(3)
    await soon(log.flush())
    assert [len(rows) for rows in gated.transactions] == [10, 10, 5]
    assert gated.done() == list(range(25))


async def test_l4_writes_keep_their_order(gated):
    log = Writer(gated.execute, opened)
    commits = [asyncio.create_task(log.commit(row(number))) for number in range(5)]
    await asyncio.sleep(0)
    for number in range(5, 10):
        log.later(row(number))
    gated.let(10)
    await soon(asyncio.gather(*commits))
    await soon(log.flush())
    assert gated.done() == list(range(10))


async def test_l4_awaited_writes_go_first(gated, monkeypatch):
    """A call does not wait for writes that no call waits for."""
    monkeypatch.setattr(writer, "BATCH_S", 0.0)  # writes that no call waits for go one by one
    log = Writer(gated.execute, opened)
    for number in range(4):
        log.later(row(number))
    await gated.reached(1)
    committing = [asyncio.create_task(log.commit(row(number))) for number in (10, 11)]
    await asyncio.sleep(0)
    gated.let(2)
    assert await soon(asyncio.gather(*committing)) == [True, True]
    gated.let(10)
    await soon(log.flush())
    assert gated.transactions == [[0], [10, 11], [1], [2], [3]]


async def test_l4_failed_transaction_is_retried_first(gated, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    gated.errors = [sqlite3.OperationalError("disk I/O error")]
    log = Writer(gated.execute, opened)
    first = asyncio.create_task(log.commit(row(0)))
    await gated.reached(1)
    log.later(row(1))
    gated.let(5)
    assert await soon(first) is False
    await gated.reached(2)
    await until(lambda: log.failure is None)
    await soon(log.flush())
    assert gated.done() == [0, 1]


async def test_l4_concurrent_calls_share_transactions(make_datasette, register_models, path):
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette(internal=str(path))
    await datasette.invoke_startup()
    statements = []
    await datasette.get_internal_database().execute_write_fn(
        lambda connection: connection.set_trace_callback(statements.append), transaction=False
    )
    model = await LLM(datasette).model("scripted")
    await asyncio.gather(*[prompted(model) for _ in range(200)])
    await datasette.invoke_shutdown()
    assert [outcome for _, outcome in columns_of(path)] == ["ok"] * 200
    assert 2 <= statements.count("COMMIT") < 100  # of 400 parts


# L5: a database that cannot be written


async def prompted(model):
    return await (await model.prompt("x")).text()


BREAKING = [locked, read_only, full, corrupt]
# No row of this fits into the space that a page still has.
LONG = "p" * 10_000


@pytest.fixture
def impatient(monkeypatch):
    """What is waited for in seconds takes hundredths."""
    monkeypatch.setattr(writer, "COMMIT_WAIT_S", 0.05)
    monkeypatch.setattr(writer, "RETRY_S", 0.01)


@pytest.fixture
def logged(make_datasette, register_models, path):
    """A function that starts a Datasette, and gives it, a scripted model, and its wrapper."""

    async def logged(*scripts, **log):
        scripted = ScriptedModel("scripted", *scripts)
        register_models(scripted)
        datasette = make_datasette({"log": log}, internal=str(path))
        await datasette.invoke_startup()
        return datasette, scripted, await LLM(datasette).model("scripted", purpose=LONG)

    return logged


def writer_of(datasette):
    return Recorder.of(datasette).writer


def messages_of(caplog, level):
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == ("datasette_llm", level)
    ]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("breaking", BREAKING)
async def test_l5_calls_continue_and_are_recorded_later(logged, path, caplog, breaking):
    datasette, scripted, model = await logged(["a"])
    log = writer_of(datasette)
    await prompted(model)
    await soon(log.flush())
    async with breaking(datasette, path):
        for _ in range(5):
            assert await soon(prompted(model)) == "a"
        assert log.failure is not None
        assert len(scripted.calls) == 6
    await until(lambda: log.failure is None)
    await soon(log.flush())
    assert [outcome for _, outcome in columns_of(path)] == ["ok"] * 6
    assert log.dropped == 0
    # Once each time that it breaks, which a slow machine may see more than once; not once a call.
    failures = messages_of(caplog, logging.ERROR)
    assert {line.partition(": ")[0] for line in failures} == {"The LLM call log cannot be written"}
    recovered = messages_of(caplog, logging.WARNING)
    assert recovered == ["The LLM call log is written again"] * len(failures)


async def test_l5_failure_is_logged_once(gated, caplog, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    gated.errors = [sqlite3.OperationalError(f"disk I/O error {number}") for number in range(5)]
    log = Writer(gated.execute, opened)
    gated.let(10)
    log.later(row(1))
    await until(lambda: gated.done() == [1])
    await soon(log.flush())
    said = "The LLM call log cannot be written: disk I/O error 0"
    assert messages_of(caplog, logging.ERROR) == [said]
    assert len(messages_of(caplog, logging.WARNING)) == 1
    assert len(gated.transactions) == 6


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (read_only, "OperationalError: attempt to write a readonly database"),
        (full, "OperationalError: database or disk is full"),
        (corrupt, "DatabaseError: "),
    ],
)
async def test_l5_the_reason_is_kept(logged, path, breaking, said):
    datasette, _, model = await logged(["a"])
    async with breaking(datasette, path):
        await soon(prompted(model))
        assert writer_of(datasette).failure.startswith(said)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("breaking", BREAKING)
async def test_l5_required_log_refuses_unrecorded_calls(
    logged, path, caplog, monkeypatch, breaking
):
    datasette, scripted, model = await logged(["a"], required=True)
    log = writer_of(datasette)
    monkeypatch.setattr(writer, "COMMIT_WAIT_S", BOUND_S)  # while it can be written, however slowly
    await prompted(model)
    async with breaking(datasette, path):
        monkeypatch.setattr(writer, "COMMIT_WAIT_S", 0.05)
        for ask in (prompted, chained, prompted):
            with pytest.raises(NotRecordedError, match=r"log\.required"):
                await soon(ask(model))
        assert len(scripted.calls) == 1
        monkeypatch.setattr(writer, "COMMIT_WAIT_S", BOUND_S)
    await until(lambda: log.failure is None)
    assert await soon(prompted(model)) == "a"
    await soon(log.flush())
    columns = "outcome, blocked_by, error_type"
    blocked = ("blocked", "configuration (log.required)", "NotRecordedError")
    assert columns_of(path, columns) == [("ok", None, None), *[blocked] * 3, ("ok", None, None)]
    assert len(messages_of(caplog, logging.ERROR)) == 1


async def chained(model):
    return await model.chain("x").text()


@pytest.mark.usefixtures("impatient")
async def test_l5_running_calls_end_after_recovery(make_datasette, register_models, path):
    gate = asyncio.Event()
    register_models(ScriptedModel("scripted", ["a", gate, "b"]))
    datasette = make_datasette(internal=str(path))
    await datasette.invoke_startup()
    response = await (await LLM(datasette).model("scripted")).prompt("x")
    async with read_only(datasette, path):
        gate.set()
        assert await soon(response.text()) == "ab"
        await until(lambda: writer_of(datasette).failure is not None)
        assert columns_of(path, "outcome") == [(None,)]
    await until(lambda: writer_of(datasette).failure is None)
    await soon(writer_of(datasette).flush())
    assert columns_of(path, "outcome") == [("ok",)]


@pytest.mark.usefixtures("impatient")
async def test_s2_waiting_rows_are_bounded_by_weight(logged, path, monkeypatch, caplog):
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 40_000)
    datasette, scripted, model = await logged(["a"])
    log = writer_of(datasette)
    async with read_only(datasette, path):
        for _ in range(30):
            assert await soon(prompted(model)) == "a"
        assert 40 <= log.dropped < 56
        assert 4 <= log._count() == 60 - log.dropped
    assert len(scripted.calls) == 30
    await until(lambda: log.failure is None)
    await soon(log.flush())
    assert 1 <= len(columns_of(path)) <= 10
    [warning] = messages_of(caplog, logging.WARNING)
    assert f"again; {log.dropped} rows and ends of rows" in warning
    assert log._bytes == log._content_bytes == len(log._contents) == 0
    async with read_only(datasette, path):
        await soon(prompted(model))
    await until(lambda: log.failure is None)
    warnings = messages_of(caplog, logging.WARNING)
    assert warnings[1:] == ["The LLM call log is written again"]  # what was lost is said once


def contents_of(path):
    has_content = "(select count(*) from llm_call_content where call_id = id)"
    return [count for (count,) in columns_of(path, has_content)]


@pytest.mark.usefixtures("impatient")
async def test_s2_contents_are_dropped_before_rows(logged, path, monkeypatch, caplog):
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 500_000)
    datasette, _, model = await logged(["a" * 100_000], content=True)
    log = writer_of(datasette)
    async with read_only(datasette, path):
        for _ in range(10):
            await soon(prompted(model))
        assert log._bytes + log._content_bytes <= 500_000
    await until(lambda: log.failure is None)
    await soon(log.flush())
    assert [outcome for _, outcome in columns_of(path)] == ["ok"] * 10
    kept = sum(contents_of(path)) // 2
    assert 3 <= kept <= 4
    assert contents_of(path) == [2] * kept + [0] * (10 - kept)  # what came first
    assert (log.dropped, log.dropped_contents) == (0, 10 - kept)
    said = f"the contents of {10 - kept} calls were dropped"
    assert said in messages_of(caplog, logging.WARNING)[0]
    assert log._bytes == log._content_bytes == len(log._contents) == 0


@pytest.mark.usefixtures("impatient")
async def test_s2_rows_take_the_place_of_contents(logged, path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 200_000)
    datasette, _, model = await logged(["a" * 50_000], ["b"], content=True)
    log = writer_of(datasette)
    async with read_only(datasette, path):
        await soon(prompted(model))
        assert log._content_bytes > 50_000
        while not log.dropped:
            await soon(prompted(model))
        assert log._content_bytes < 10_000
    await until(lambda: log.failure is None)
    await soon(log.flush())
    left = contents_of(path)
    assert left[0] == 0
    assert sum(left) in (0, 2)  # one that is just being written cannot be dropped


@pytest.mark.usefixtures("impatient")
async def test_s2_contents_are_weighed_with_the_prompt(logged, path, monkeypatch):
    """Its history and attachments included."""
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 100_000)
    datasette, _, model = await logged(["b"], content=True)
    log = writer_of(datasette)
    paper = llm.Attachment(type="text/plain", content=b"p" * 100_000)
    async with read_only(datasette, path):
        for asked in (
            {"prompt": "p" * 100_000},
            {"messages": [llm.user("x", paper)]},
            {"messages": [llm.user("p" * 100_000), llm.assistant("x"), llm.user("y")]},
            {"system": "p" * 100_000},
        ):
            before = log.dropped_contents
            await soon((await model.prompt(**asked)).text())
            assert log.dropped_contents == before + 1


async def test_s2_one_large_content_is_recorded(logged, path, monkeypatch):
    """A healthy log records the beginning of an answer that is larger than what may wait."""
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 100_000)
    datasette, _, model = await logged(["a" * 1_000_000], content=True)
    for _ in range(2):
        await prompted(model)
        await soon(writer_of(datasette).flush())
    assert contents_of(path) == [2, 2]


@pytest.mark.usefixtures("impatient")
async def test_l5_pending_row_does_not_hold_response(logged, path):
    datasette, scripted, model = await logged(["a"])
    async with read_only(datasette, path):
        response = await model.prompt("x")
        assert await soon(response.text()) == "a"
        await until(lambda: not instance.of(datasette, RunningCalls))
        kept = weakref.ref(response)
        del response
        scripted.calls.clear()
        await until(lambda: gc.collect() >= 0 and kept() is None)  # its task ends first
        assert writer_of(datasette).failure is not None


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(sys.platform == "win32", reason="there an open file cannot be removed")
async def test_l5_removed_file_is_reported(logged, path, caplog):
    datasette, scripted, model = await logged(["a"])
    await prompted(model)
    await soon(writer_of(datasette).flush())
    path.unlink()
    for _ in range(3):
        assert await soon(prompted(model)) == "a"
    assert len(scripted.calls) == 4
    assert "readonly" in writer_of(datasette).failure
    assert len(messages_of(caplog, logging.ERROR)) == 1


@pytest.mark.usefixtures("impatient")
async def test_l5_required_call_is_refused_if_full(logged, path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 0)
    _, scripted, model = await logged(["a"], required=True)
    with pytest.raises(NotRecordedError):
        await soon(prompted(model))
    assert scripted.calls == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("breaking", BREAKING)
async def test_l5_broken_database_allows_shutdown(logged, path, caplog, breaking):
    datasette, _, model = await logged(["a"])
    await pragma(datasette, "busy_timeout = 100")  # Datasette waits for the one that is locked
    async with breaking(datasette, path):
        await soon(prompted(model))
        await soon(datasette.invoke_shutdown())
    said = "Datasette stopped before the LLM call log could be written: 3 writes lost"
    assert said in messages_of(caplog, logging.ERROR)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("breaking", [read_only, full])
async def test_l5_break_during_shutdown_allows_it(logged, path, breaking):
    """A database that breaks during the shutdown does not prevent it."""
    datasette, _, model = await logged(["a"])
    await prompted(model)
    await soon(writer_of(datasette).flush())
    async with breaking(datasette, path):
        for _ in range(3):  # the last words of a session are not the first that fail here
            recorder = Recorder.of(datasette)
            started = never_sent("scripted", LONG, None, None)
            finished = unsent(started, Outcome.BLOCKED, ValueError("no"), blocked_by="plugin")
            recorder.never_sent(started, finished)
        await soon(datasette.invoke_shutdown())


@pytest.mark.usefixtures("impatient")
async def test_l5_failed_open_allows_startup(
    make_datasette, register_models, path, caplog, monkeypatch
):
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette(internal=str(path))
    broken = [sqlite3.OperationalError("unable to open database file")]

    def cannot(connection):
        if broken:
            raise broken[0]
        migrate(connection)

    monkeypatch.setattr("datasette_llm.log.recorder.migrate", cannot)
    await datasette.invoke_startup()
    model = await LLM(datasette).model("scripted")
    assert await soon(prompted(model)) == "a"
    assert "unable to open" in writer_of(datasette).failure
    broken.clear()
    await until(lambda: writer_of(datasette).failure is None)
    await soon(writer_of(datasette).flush())
    assert columns_of(path, "outcome") == [("ok",)]


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.IntegrityError("refused"),
        sqlite3.InterfaceError("a type that SQLite has not"),
        sqlite3.ProgrammingError("the same in Python 3.12"),
        sqlite3.DataError("too big"),
        TypeError("can't multiply"),
        AttributeError("no such attribute"),
        ArithmeticError("no such number"),
        RecursionError("too deep"),
        OverflowError("too large"),
        LookupError("no such price"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_l5_bad_row_does_not_block_others(gated, caplog, error):
    def refuse(connection):
        raise error

    log = Writer(gated.execute, opened)
    gated.let(10)
    log.later(row(1))
    log.later(refuse)
    log.later(row(2))
    assert await soon(log.commit(row(3))) is True
    await soon(log.flush())
    assert sorted(gated.done()) == [1, 2, 3]
    assert log.failure is None
    assert messages_of(caplog, logging.ERROR) == ["A row of the LLM call log was refused"]


async def test_e11_commit_waits_its_turn_in_a_long_queue(gated, monkeypatch):
    """A queue that takes longer than a commit may is no failure, as long as it moves."""
    monkeypatch.setattr(writer, "MAX_BATCH", 1)
    monkeypatch.setattr(writer, "COMMIT_WAIT_S", 0.1)
    log = Writer(gated.execute, opened)
    committing = [asyncio.create_task(log.commit(row(value))) for value in range(30)]
    began = time.monotonic()
    for number in range(1, 31):
        await gated.reached(number)
        await asyncio.sleep(0.005)
        gated.let()
    assert await soon(asyncio.gather(*committing)) == [True] * 30
    assert time.monotonic() - began > 0.1
    assert log.failure is None


async def test_e11_awaited_rows_are_inserted_together(gated):
    """Many rows take few statements, and a bad one among them is refused alone."""
    statements = []
    gated.connection.set_trace_callback(statements.append)
    log = Writer(gated.execute, opened)
    values = [*range(40), object(), *range(41, 50)]
    committing = [asyncio.create_task(log.commit(row(value))) for value in values]
    await gated.reached(1)
    gated.let(10)
    assert await soon(asyncio.gather(*committing)) == [value in range(50) for value in values]
    assert sorted(gated.done()) == [value for value in range(50) if value != 40]
    inserts = [each for each in statements if each.startswith("insert")]
    assert len(inserts) == 1 + 17  # 32 rows; then, as one is bad, each by itself


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.InternalError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_l5_database_errors_are_retried(gated, monkeypatch, error):
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    errors = [error, error]

    def fails_twice(connection):
        if errors:
            gated.connection.execute("rollback")
            raise errors.pop()
        connection.execute(*row(1))

    log = Writer(gated.execute, opened)
    gated.let(10)
    log.later(fails_twice)
    await until(lambda: gated.done() == [1])
    await soon(log.flush())
    assert log.failure is None


async def test_l5_row_that_rolls_back_loses_no_other(gated, monkeypatch):
    """An error that rolls back the transaction loses no other row."""
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    errors = [MemoryError()]

    def runs_out_of_memory(connection):
        if errors:
            gated.connection.execute("rollback")
            raise errors.pop()

    log = Writer(gated.execute, opened)
    gated.let(10)
    log.later(row(1))
    log.later(runs_out_of_memory)
    await until(lambda: gated.done() == [1])
    await soon(log.flush())


async def test_l5_shutdown_retries_once(gated, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    gated.errors = [sqlite3.OperationalError("database is locked")]
    log = Writer(gated.execute, opened)
    log.later(row(1))
    gated.let(1)
    await until(lambda: log.failure is not None)
    gated.let(10)
    await soon(log.close())
    assert gated.done() == [1]
    assert log.dropped == 0


async def test_l5_shutdown_reports_lost_writes(gated, monkeypatch, caplog):
    monkeypatch.setattr(writer, "RETRY_S", 0.001)
    gated.errors = [sqlite3.OperationalError("database is locked")] * 10
    log = Writer(gated.execute, opened)
    gated.let(10)
    log.later(row(1))
    log.later(row(2))
    await soon(log.close())
    assert log.dropped == 2
    assert messages_of(caplog, logging.ERROR)[1:] == [
        "Datasette stopped before the LLM call log could be written: 2 writes lost"
    ]


async def test_writer_task_has_empty_context(gated):
    seen = []

    async def execute(work):
        seen.append(CURRENT.get(None))
        return await gated.execute(work)

    gated.let(1)
    log = Writer(execute, opened)
    CURRENT.set("a call")
    assert await soon(log.commit(row(1))) is True
    assert set(seen) == {None}


async def test_l5_refused_commit_returns_false(gated):
    log = Writer(gated.execute, opened)
    gated.let(10)
    assert await soon(log.commit(row(object()))) is False
    assert await soon(log.commit(row(1))) is True


# Sessions


@pytest.fixture
def session(connection):
    """A function that opens a session; its lock is let go of when the test ends."""
    with ExitStack() as stack:

        def opened(session_id, moment="then"):
            session = Session(session_id)
            stack.callback(session.release)
            session.lost = session.open(connection, moment)
            return session

        connection.execute("delete from llm_log_sessions")
        yield opened


@pytest.fixture
def first(session, connection):
    """The session of the rows that there are, opened before they were written."""
    connection.execute("delete from llm_log_sessions")
    connection.execute("insert into llm_log_sessions values ('session', 'then')")
    return session("session")


def session_ids(connection):
    return [i for (i,) in connection.execute("select id from llm_log_sessions order by id")]


def locks_of(path):
    return sorted(
        file.name.partition("-llm-")[2] for file in path.parent.glob(f"{path.name}-llm-*")
    )


def test_rows_of_live_session_are_kept(connection, path, first, session):
    assert session("second").lost == 0
    assert session_ids(connection) == locks_of(path) == ["second", "session"]


def test_a_session_that_opens_twice_is_one(connection, path, first):
    assert first.open(connection, "later") == 0
    assert session_ids(connection) == locks_of(path) == ["session"]


@pytest.mark.parametrize("killed", [False, True])
def test_rows_without_lock_are_lost_once(connection, path, first, session, killed):
    """Unfinished rows of a session without a lock are marked exactly once."""
    first.release()
    if killed:  # its file is still there
        path.with_name(f"{path.name}-llm-session").touch()
    assert session("second", "later").lost == 2
    assert session("third", "even later").lost == 0
    assert session_ids(connection) == locks_of(path) == ["second", "third"]
    columns = "id, outcome, finished_at"
    assert connection.execute(f"select {columns} from llm_calls order by id").fetchall() == [
        ("a", "ok", "then"),
        ("b", "ok", "then"),
        ("c", "lost", "later"),
        ("d", "lost", "later"),
    ]


def test_unknown_lock_state_counts_as_alive(connection, path, session):
    """The rows of a session whose lock cannot be read are left alone."""
    path.with_name(f"{path.name}-llm-session").mkdir()  # which SQLite cannot open
    connection.execute("insert into llm_log_sessions values ('session', 'then')")
    assert session("second").lost == 0


@pytest.mark.parametrize(
    "odd", ["a/b", "/etc/passwd", "../internal.db", "", "..", "a" * 400, "a\0b", b"\xff", "A B"]
)
async def test_s3_odd_session_is_ignored_with_warning(
    make_datasette, register_models, path, caplog, odd
):
    """Datasette starts, and leaves the row and its calls alone."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("insert into llm_log_sessions values (?, 'then')", (odd,))
        before = sorted(file.name for file in path.parent.iterdir())
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette(internal=str(path))
    await datasette.invoke_startup()
    assert await prompted(await LLM(datasette).model("scripted")) == "a"
    await datasette.invoke_shutdown()
    assert [outcome for _, outcome in columns_of(path)] == ["ok"]
    assert sorted(file.name for file in path.parent.iterdir()) == before
    with closing(sqlite3.connect(path)) as connection:
        assert session_ids(connection) == [odd]
    [warning] = messages_of(caplog, logging.WARNING)
    assert repr(odd)[:80] in warning


def test_closed_session_loses_unfinished_rows(connection, first, session):
    first.close(connection)
    assert session("second").lost == 0  # it may still finish them
    finish(connection, "c")
    first.release()
    assert session("third", "later").lost == 1
    assert connection.execute("select outcome from llm_calls where id = 'd'").fetchone() == (
        "lost",
    )


def test_closed_session_without_rows_is_removed(connection, path, first):
    finish(connection, "c")
    finish(connection, "d")
    first.close(connection)
    first.release()
    first.release()
    assert session_ids(connection) == locks_of(path) == []


def test_rows_of_unknown_session_are_lost(session):
    assert session("second", "later").lost == 2


async def test_temporary_database_has_no_lock_file(make_datasette, register_models):
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette()
    await datasette.invoke_startup()
    await prompted(await LLM(datasette).model("scripted"))
    assert locks_of(Path(datasette.get_internal_database().path)) == []


async def test_two_instances_keep_each_others_rows(make_datasette, register_models, path):
    gate = asyncio.Event()
    register_models(ScriptedModel("slow", ["a", gate, "b"]), ScriptedModel("quick", ["c"]))
    first = make_datasette(internal=str(path))
    await first.invoke_startup()
    response = await (await LLM(first).model("slow")).prompt("x")
    second = make_datasette(internal=str(path))
    await second.invoke_startup()
    await prompted(await LLM(second).model("quick"))
    await second.invoke_shutdown()
    assert columns_of(path, "model_id, outcome") == [("slow", None), ("quick", "ok")]
    gate.set()
    await response.text()
    await first.invoke_shutdown()
    assert columns_of(path, "model_id, outcome") == [("slow", "ok"), ("quick", "ok")]


@pytest.mark.parametrize("stopped_while_writing", [False, True])
def test_garbage_collected_instance_frees_lock(path, register_models, stopped_while_writing):
    class Forgetful(ScriptedModel):  # a ScriptedModel keeps its calls, and so the Datasette
        async def execute(self, *args, **kwargs):
            yield "a"

    async def use():
        datasette = Datasette(internal=str(path))
        await prompted(await LLM(datasette).model("scripted"))
        if not stopped_while_writing:
            await Recorder.of(datasette).writer.flush()
        datasette.close()
        return weakref.ref(datasette)

    register_models(Forgetful("scripted"))
    gone = asyncio.run(use())
    gc.collect()
    assert gone() is None
    end = time.monotonic() + BOUND_S
    while locks_of(path) and time.monotonic() < end:
        gc.collect()  # now of what belonged to it, which the thread that looks after loops may hold
        time.sleep(0.01)
    assert locks_of(path) == []


# What may wait


@pytest.fixture
def transactions(monkeypatch):
    """A writer whose writes that may wait would do so for ever, and what it has written."""
    monkeypatch.setattr(writer, "GATHER_S", 1e6)
    written = []

    async def execute(work):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            return work(connection)

    def note(*names):
        return lambda connection: written.extend(names)

    return Writer(execute, note()), note, written


async def test_r3_rows_of_hits_are_written_together(transactions):
    """With the next row that a call waits for, which does not wait for more."""
    ours, note, written = transactions
    ours.later(note("a"), may_wait=True)
    for _ in range(20):
        await asyncio.sleep(0)
    ours.later(note("b"), may_wait=True)
    assert not written
    assert await soon(ours.commit(("select 1", {})))
    assert written == ["a", "b"]


@pytest.mark.parametrize("way", ["other", "flush", "close", "many"])
async def test_r3_rows_of_hits_wait_for_no_more(transactions, monkeypatch, way):
    """Once there is another write, who reads, the end of Datasette, or a full batch."""
    ours, note, written = transactions
    monkeypatch.setattr(writer, "MAX_BATCH", 3)
    ours.later(note("a"), may_wait=True)
    await asyncio.sleep(0)
    match way:
        case "other":
            ours.later(note("b"))
        case "many":
            ours.later(note("b"), may_wait=True)
            ours.later(note("c"), may_wait=True)
        case "flush":
            await soon(ours.flush())
        case "close":
            await soon(ours.close())
    await until(lambda: written[:1] == ["a"])


def test_r3_rows_of_hits_outlive_their_loop(transactions):
    """One that was closed while its writes were waited with: the next loop writes them."""
    ours, note, written = transactions

    async def use():
        ours.later(note("a"), may_wait=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    loop.close()
    asyncio.run(soon(ours.flush()))
    assert written == ["a"]

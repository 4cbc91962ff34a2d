"""A record of the released version, brought up to date where it stands."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click.testing
import pytest
from datasette.app import Datasette
from datasette.cli import cli
from sqlite_utils import Database, Migrations

from datasette_llm import LLM
from datasette_llm import migrations as database
from datasette_llm.access import assignments
from datasette_llm.consultant.advice import store
from datasette_llm.log import retention, schema
from datasette_llm.log.queries import id_at
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.schema import migrate
from datasette_llm.sanitize import now
from datasette_llm.testing import ScriptedModel

ANA = {"id": "ana"}
# In the order of their ids, which begin with a time of 2026.
OLD = [f"01kbc{number}0000000000000000000z" for number in range(3)]
NEW_COLUMNS = ("attempt", "prompt_id", "waited_ms", "tags")
GATEWAY = (
    *("response_id", "request_id", "gateway_call_id", "gateway_model_id"),
    "gateway_cost_nanodollars",
)
CACHE = ("cached_from", "saved_nanodollars")
NEW_AT_THE_END = ("finish_reason", "failure_kind", "hook_error", *GATEWAY, *CACHE)
OLD_COLUMNS = tuple(
    name
    for name in (*schema.STARTED_COLUMNS, *schema.FINISHED_COLUMNS)
    if name not in (*NEW_COLUMNS, *NEW_AT_THE_END)
)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "internal.db"
    first = Migrations("datasette_llm")
    first()(schema.m001_record)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        first.apply(Database(connection))
        columns = [row[1] for row in connection.execute("pragma table_info(llm_calls)")]
        assert sorted(columns) == sorted(OLD_COLUMNS)
        for call_id, outcome in zip(OLD, ("ok", "error", None), strict=True):
            connection.execute(
                "insert into llm_calls (id, session_id, started_at, model_id, chain_id, streaming, "
                "prompt_chars, system_chars, message_count, attachment_count, outcome, "
                "input_tokens, duration_ms) values (?, 'gone', '2025-12-01T00:00:00.000Z', 'm', "
                f"'{OLD[0]}', 1, 2, 0, 1, 0, ?, 7, 3.5)",
                (call_id, outcome),
            )
        connection.execute(
            "insert into llm_call_content (call_id, part, content) values (?, 'request', '{}')",
            (OLD[0],),
        )
    return path


@pytest.fixture
def released(made_once: Path, tmp_path: Path) -> Path:
    """A database as the released version wrote it: two calls that ended and one that did not."""
    return shutil.copy(made_once, tmp_path / "internal.db")


@pytest.fixture(scope="module")
def migrated_once(made_once: Path) -> tuple[Path, list[tuple[Any, ...]]]:
    path = shutil.copy(made_once, made_once.with_name("migrated.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        before = rows_of(connection)
        migrate(connection)
        connection.execute(
            "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
            "system_chars, message_count, attachment_count, attempt, prompt_id, waited_ms) "
            f"values ('n', 'gone', '', 'm', 1, 2, 0, 1, 0, 2, '{OLD[0]}', 4.5)"
        )
    return path, before


@pytest.fixture
def migrated(migrated_once: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path) -> Any:
    """A connection to it once it was migrated, with another call; and the rows before."""
    path, before = migrated_once
    copy = shutil.copy(path, tmp_path / "internal.db")
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        yield connection, before


def rows_of(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    sql = f"select {', '.join(OLD_COLUMNS)} from llm_calls where id <> 'n' order by id"
    return connection.execute(sql).fetchall()


def test_old_rows_become_first_attempts(migrated: Any) -> None:
    connection, before = migrated
    assert len(before) == 3
    assert rows_of(connection) == before
    sql = f"select {', '.join(NEW_COLUMNS + NEW_AT_THE_END)} from llm_calls where id <> 'n'"
    assert connection.execute(sql).fetchall() == [(1, *[None] * 13)] * 3
    migrate(connection)  # nothing is left to do
    assert rows_of(connection) == before


@pytest.mark.parametrize("call_id", [*OLD, "n"])
@pytest.mark.parametrize(
    "change",
    [
        *(f"{name} = {value}" for name in NEW_COLUMNS for value in (3, "null", "'x'")),
        *(f"{name} = 'x'" for name in NEW_AT_THE_END),
        "model_id = 'x'",
        "prompt_chars = 9",
        "session_id = 'x'",
        # Also together with the end, which an unfinished one may get.
        *(f"{name} = 3, outcome = 'ok'" for name in NEW_COLUMNS),
    ],
)
def test_l3_no_column_can_be_changed(migrated: Any, call_id: str, change: str) -> None:
    connection, _ = migrated
    before = connection.execute("select * from llm_calls").fetchall()
    for verb in ("update", "update or replace"):
        # None of the other refusals of SQLite: an attempt that is null is one of its own.
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"{verb} llm_calls set {change} where id = ?", (call_id,))
    assert connection.execute("select * from llm_calls").fetchall() == before


@pytest.mark.parametrize("call_id", [*OLD, "n"])
@pytest.mark.parametrize("recursive", [0, 1])
def test_l3_no_row_can_be_replaced_or_removed(migrated: Any, call_id: str, recursive: int) -> None:
    connection, _ = migrated
    connection.execute(f"pragma recursive_triggers = {recursive}")
    before = connection.execute("select * from llm_calls").fetchall()
    columns = ", ".join(row[1] for row in connection.execute("pragma table_info(llm_calls)"))
    changed = columns.replace("attempt,", "9,")
    for statement in (
        f"replace into llm_calls ({columns}) select {changed} from llm_calls where id = :id",
        f"insert or replace into llm_calls ({columns}) select {changed} from llm_calls "
        "where id = :id",
        "delete from llm_calls where id = :id",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement, {"id": call_id})
    assert connection.execute("select * from llm_calls").fetchall() == before


def test_w3_end_of_a_call_has_reason_and_kind(migrated: Any) -> None:
    """They come with the end of a call that an earlier version began too, and stay."""
    connection, _ = migrated
    end = "update llm_calls set outcome = 'error', failure_kind = 'network' where outcome is null"
    assert connection.execute(end).rowcount == 2
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("update llm_calls set failure_kind = null")


@pytest.mark.parametrize("name", [*GATEWAY, *CACHE])
def test_k3_names_of_a_request_come_with_its_end(migrated: Any, name: str) -> None:
    """They are written once, with the outcome, and not with what a hook fails with later."""
    connection, _ = migrated
    failed = "hook_error = 'llm_prompt_context of plugin x'"
    for change in (f"{name} = 7", f"{failed}, {name} = 7"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"update llm_calls set {change} where id = ?", (OLD[0],))
    end = f"update llm_calls set outcome = 'ok', {name} = 7 where outcome is null"
    assert connection.execute(end).rowcount == 2
    assert connection.execute(f"update llm_calls set {failed} where id = 'n'").rowcount == 1
    for value in (8, "null"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"update llm_calls set {name} = {value} where id = 'n'")


def test_h9_hook_error_comes_later_and_once(migrated: Any) -> None:
    connection, before = migrated
    added = "llm_prompt_context of plugin 'budget' raised ValueError: no settling"
    sql = "update llm_calls set hook_error = ? where id = ?"
    assert connection.execute(sql, (added, OLD[0])).rowcount == 1
    assert rows_of(connection) == before
    for text in (added, None):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(sql, (text, OLD[0]))


def test_retention_removes_old_and_new_rows(migrated: Any) -> None:
    connection, _ = migrated
    newest = OLD[2].replace("01kb", "01kc")  # a month later
    connection.execute(
        "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
        "system_chars, message_count, attachment_count) "
        f"values ('{newest}', '', '', '', 1, 2, 0, 1, 0)"
    )
    connection.execute("begin immediate")
    assert retention.remove_batch(connection, OLD[2], 7) == 2
    connection.execute("commit")
    left = [call_id for (call_id,) in connection.execute("select id from llm_calls order by id")]
    assert left == [OLD[2], newest, "n"]
    assert connection.execute("select count(*) from llm_call_content").fetchone() == (0,)


# The site that is started with it


@pytest.fixture
def start(
    released: Path, make_datasette: Callable[..., Datasette], register_models: Callable[..., None]
) -> Any:
    register_models(ScriptedModel("m", ["Hello"]))

    async def start(config: Any = None) -> Datasette:
        datasette = make_datasette(config, internal=str(released))
        datasette.config["permissions"] = {"view-llm-log": ANA, "manage-llm": ANA}
        await datasette.invoke_startup()
        return datasette

    return start


async def shown(datasette: Datasette, path: str) -> Any:
    response = await datasette.client.get(path, actor=ANA)
    assert response.status_code == 200, response.text
    return response


async def test_running_call_is_marked_as_lost(start: Any) -> None:
    datasette = await start()
    found = (await shown(datasette, f"/-/llm/log/{OLD[2]}.json")).json()
    assert found["call"]["outcome"] == "lost"
    assert found["attempts"] == []


@pytest.mark.parametrize("config", [None, {"log": False}], ids=["recording", "log off"])
async def test_pages_show_rows_of_released_version(start: Any, config: Any) -> None:
    datasette = await start(config)
    for path in ("/-/llm", f"/-/llm/log/{OLD[0]}", "/-/llm/log", "/-/llm/log.csv"):
        await shown(datasette, path)
    listed = (await shown(datasette, "/-/llm/log.json?since=2020-01-01")).json()
    assert [row["id"] for row in listed["rows"]] == OLD[::-1]
    assert listed["totals"]["calls"] == 3
    assert [row["attempt"] for row in listed["rows"]] == [1, 1, 1]
    one = (await shown(datasette, f"/-/llm/log/{OLD[0]}.json")).json()
    assert [row["id"] for row in one["chain"]] == OLD
    assert one["content"] == {"request": {}}


async def test_what_is_new_stands_beside_what_is_old(start: Any, released: Path) -> None:
    datasette = await start()
    response = await (await LLM(datasette).model("m")).prompt("Hi")
    await response.text()
    await Recorder.of(datasette).close()
    arguments = ["llm", "log", "--internal", str(released), "--json"]
    output = await asyncio.to_thread(click.testing.CliRunner().invoke, cli, arguments)
    rows = json.loads(output.output)
    assert [(row["id"], row["attempt"]) for row in rows] == [
        (response.id, 1),
        *((call_id, 1) for call_id in OLD[::-1]),
    ]


TABLES = (*schema.TABLES, "llm_assignments", "llm_consultations")


@pytest.fixture
def used(tmp_path: Path, make_datasette: Callable[..., Datasette]) -> Any:
    """A site that starts with a changed database, is used, and stops; gives what was recorded."""

    async def used(path: Path, register_models: Callable[..., None], *changes: str) -> Any:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for migrated in (migrate, store.migrate):
                migrated(connection)
            database.migrate(connection, assignments.migrations)
            for change in changes:
                connection.execute(change)
        register_models(ScriptedModel("m", ["Hello"]))
        datasette = make_datasette({"log": {"content": True, "keep_days": 7}}, internal=str(path))
        await datasette.start_background_tasks()
        assert await (await (await LLM(datasette).model("m")).prompt("Hi")).text() == "Hello"
        await datasette.invoke_shutdown()
        with closing(sqlite3.connect(path)) as connection:
            sql = "select outcome, (select count(*) from llm_call_content) from llm_calls"
            found = connection.execute(sql).fetchall()
            tables = connection.execute("select name from sqlite_master").fetchall()
            return found, {name for (name,) in tables}

    return used


@pytest.mark.parametrize("table", TABLES)
async def test_s3_missing_table_is_made_again(
    used: Any, register_models: Any, tmp_path: Path, caplog: Any, table: str
) -> None:
    found, names = await used(tmp_path / "internal.db", register_models, f"drop table {table}")
    assert found == [("ok", 2)]
    if table != "llm_consultations":  # which is made by the first consultation
        assert {*TABLES} - {"llm_consultations"} <= names
        assert {f"{table}_insert", f"{table}_update"} <= names or table == "llm_log_sessions"
        [warning] = [record.getMessage() for record in caplog.records]
        assert warning.endswith(f"made again without rows: {table}")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("column", ["later text", "later text not null default 'x'"])
async def test_s3_column_of_newer_version_is_ignored(
    used: Any, register_models: Any, tmp_path: Path, caplog: Any, table: str, column: str
) -> None:
    change = f"alter table {table} add column {column}"
    found, _ = await used(tmp_path / "internal.db", register_models, change)
    assert found == [("ok", 2)]
    assert caplog.messages == []


@pytest.mark.parametrize(
    "change",
    [
        *(
            f"insert into llm_assignments values (1, {values})"
            for values in (
                "'', 'p', 5, null",
                "'', x'ff', 'm', null",
                "'', cast(x'ff' as text), cast(x'ff' as text), null",
                "5.5, '', '', x'00'",
            )
        ),
        *(
            "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
            "system_chars, message_count, attachment_count, token_details, outcome) "
            f"values ({call_id}, x'ff', x'ff', 0.5, 'x', 'x', -1, 1e99, x'', '[', 'ok')"
            for call_id in ("x'ff'", "''", "'zz'", "cast(x'30ff' as text)")
        ),
        "insert into llm_call_content values (x'ff', 'request', x'00ff')",
        "insert into llm_consultations (id, created_at, type, database_name, table_name, exclude, "
        "rejected, checks, outcome) values (x'ff', '', '', '', '', '[', '[', '[', 'ok')",
        "drop trigger llm_log_removals_remove",
    ],
)
async def test_s3_odd_row_does_not_stop_the_log(
    used: Any, register_models: Any, tmp_path: Path, change: str
) -> None:
    found, _ = await used(tmp_path / "internal.db", register_models, change)
    assert "ok" in {outcome for outcome, _ in found}
    assert len(found) == 1 + ("into llm_calls" in change)


async def test_newer_version_is_ignored_with_log_off(
    start: Any, released: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(released, isolation_level=None)) as connection:
        connection.execute(
            "insert into _sqlite_migrations (migration_set, name, applied_at) "
            "values ('datasette_llm', 'm999', 'then')"
        )
    await start({"log": False})
    assert "cannot be brought up to date" in caplog.text


# A removal is accepted only as retention makes it

MINUTE_MS = 60 * 1000
DAY_MS = 24 * 60 * MINUTE_MS
NOW_MS = int(time.time() * 1000)
CALL = (
    "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
    "system_chars, message_count, attachment_count, outcome) "
    "values (?, ?, '', 'm', 1, 2, 0, 1, 0, ?)"
)
REMOVAL = (
    "insert into llm_log_removals (id, removed_at, below_id, call_count, keep_days) "
    "values (:id, :removed_at, :below_id, :call_count, :keep_days)"
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Calls 9, 5 and 0 days old, and one of 8 days that still runs."""
    with closing(sqlite3.connect(tmp_path / "internal.db", isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("insert into llm_log_sessions values ('here', '')")
        for days in (9, 5, 0):
            connection.execute(CALL, (id_at(NOW_MS - days * DAY_MS), "gone", "ok"))
        connection.execute(CALL, (id_at(NOW_MS - 8 * DAY_MS), "here", None))
        yield connection


def removal(days: float, **values: Any) -> dict[str, Any]:
    """One that SQLite accepts, for 7 days, and with other values one that it may not."""
    right = {"id": None, "removed_at": now(), "call_count": 1, "keep_days": 7}
    return right | {"below_id": id_at(NOW_MS - int(days * DAY_MS))} | values


def test_s1_true_removal_removes_by_itself(log: sqlite3.Connection) -> None:
    """It leaves the call that still runs, which nobody else can delete either."""
    for part in ("request", "response"):
        content = (id_at(NOW_MS - 9 * DAY_MS), part, "x")
        log.execute("insert into llm_call_content values (?, ?, ?)", content)
    log.execute(REMOVAL, removal(7))
    ids = [call_id for (call_id,) in log.execute("select id from llm_calls order by id")]
    assert ids == [id_at(NOW_MS - days * DAY_MS) for days in (8, 5, 0)]
    assert log.execute("select count(*) from llm_call_content").fetchone() == (0,)
    for call_id in ids:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            log.execute("delete from llm_calls where id = ?", (call_id,))


@pytest.mark.parametrize(
    ("days", "values"),
    [
        (6.9, {}),
        (0, {"call_count": 2}),
        (7, {"call_count": 0}),
        (7, {"call_count": 2}),
        (7, {"call_count": "1 call"}),
        (7, {"keep_days": 8}),
        (0, {"keep_days": 0, "call_count": 2}),
        (0, {"keep_days": -1000, "call_count": 2}),
        (0, {"keep_days": 0.001, "call_count": 2}),
        (0, {"keep_days": 10**18, "call_count": 2}),
        (0, {"keep_days": "none", "call_count": 2}),
        (7, {"below_id": "zz", "call_count": 3}),
        (7, {"below_id": b"0", "call_count": 3}),
        (7, {"below_id": b"", "call_count": 3}),
        (7, {"removed_at": "2020-01-01T00:00:00.000Z"}),
        (7, {"removed_at": "then"}),
        (7, {"removed_at": "now"}),
        (7, {"removed_at": bytes}),
        (7, {"id": 2**63 - 1}),
        (7, {"id": 7}),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["insert", "insert or replace", "insert or ignore"])
def test_s1_forged_removal_is_refused(
    log: sqlite3.Connection, days: float, values: dict[str, Any], verb: str
) -> None:
    forged = removal(days, **values)
    if forged["removed_at"] is bytes:
        forged["removed_at"] = now().encode()
    before = list(log.iterdump())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        log.execute(REMOVAL.replace("insert", verb, 1), forged)
    assert list(log.iterdump()) == before


@pytest.mark.parametrize("newest_days", [-3650, 4])
def test_s1_removal_is_older_than_clock_and_newest(tmp_path: Path, newest_days: int) -> None:
    """Neither a call from the future nor a clock that is ahead makes others old."""
    with closing(sqlite3.connect(tmp_path / "internal.db", isolation_level=None)) as log:
        migrate(log)
        limit = max(newest_days, 0) + 7
        for days in (limit + 1, newest_days):
            log.execute(CALL, (id_at(NOW_MS - days * DAY_MS), "gone", "ok"))
        with pytest.raises(sqlite3.IntegrityError, match="no such removal"):
            log.execute(REMOVAL, removal(limit - 0.01))
        log.execute(REMOVAL, removal(limit + 0.01))
        assert log.execute("select count(*) from llm_calls").fetchone() == (1,)


def test_s1_id_without_a_time_does_not_stop_removals(log: sqlite3.Connection) -> None:
    for call_id in ("zz", "7~~", "", "A", "~"):
        log.execute(CALL, (call_id, "gone", "ok"))
    log.execute(REMOVAL, removal(7, call_count=2))  # the empty one is below it
    assert log.execute("select count(*) from llm_calls").fetchone() == (7,)


def test_s1_call_is_lost_only_with_its_session(log: sqlite3.Connection) -> None:
    lost = "update llm_calls set outcome = 'lost' where outcome is null"
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        log.execute(lost)
    log.execute("delete from llm_log_sessions")
    assert log.execute(lost).rowcount == 1


def test_s1_large_log_is_migrated_at_once(released: Path) -> None:
    """The migration reads no row: it takes as many steps for 3 calls as for 20,000."""

    def steps(path: Path) -> int:
        count = 0

        def step() -> None:
            nonlocal count
            count += 1

        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            migrate(connection)
            connection.execute("delete from _sqlite_migrations where name = 'm005_strict'")
            connection.execute("drop trigger llm_log_removals_remove")
            connection.set_progress_handler(step, 1)
            migrate(connection)
        return count

    few = steps(released)
    with closing(sqlite3.connect(released)) as connection, connection:
        rows = [(id_at(number), "gone", "ok") for number in range(20_000)]
        connection.executemany(CALL, rows)
    assert steps(released) < 1.1 * few


# Tags

TAGGED = (
    "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
    "system_chars, message_count, attachment_count, outcome, tags) "
    "values (?, 'gone', '', 'm', 1, 2, 0, 1, 0, 'ok', ?)"
)
TAGS = ('{"job": 12, "html": "<b>\'\\u0000"}', '{"job": "12"}')


def indexed(log: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return log.execute("select key, value, call_id from llm_call_tags order by 3, 1").fetchall()


@pytest.fixture
def tagged_log(log: sqlite3.Connection) -> Any:
    """A log with a call of 8 days and a new one that have tags; the ids of these."""
    ids = [id_at(NOW_MS - days * DAY_MS + 1) for days in (8, 0)]
    log.executemany(TAGGED, zip(ids, TAGS, strict=True))
    return log, ids


def test_k1_index_of_tags_follows_the_calls(tagged_log: Any) -> None:
    log, (old, new) = tagged_log
    assert [(key, call_id) for key, _, call_id in indexed(log)] == [
        ("html", old),
        ("job", old),
        ("job", new),
    ]
    log.execute(REMOVAL, removal(7, call_count=2))
    assert indexed(log) == [("job", "12", new)]


@pytest.mark.parametrize(
    "statement",
    [
        "update llm_calls set tags = '{}' where id = :new",
        "update or replace llm_calls set tags = null where id = :new",
        "update llm_call_tags set value = '13'",
        "update or ignore llm_call_tags set key = 'other'",
        "delete from llm_call_tags where call_id = :new",
        "delete from llm_call_tags",
        "insert into llm_call_tags values ('job', '13', :new)",
        "insert or replace into llm_call_tags values ('job', '12', 'no-such-call')",
        "insert or ignore into llm_call_tags values ('other', '12', :new)",
    ],
)
def test_k1_tags_cannot_be_changed(tagged_log: Any, statement: str) -> None:
    log, (_, new) = tagged_log
    before = list(log.iterdump())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        log.execute(statement, {"new": new})
    assert list(log.iterdump()) == before


def test_k1_tags_come_to_an_older_log(migrated: Any) -> None:
    connection, _ = migrated
    call_id = id_at(NOW_MS)
    connection.execute(TAGGED, (call_id, TAGS[0]))
    assert {found for *_, found in indexed(connection)} == {call_id}

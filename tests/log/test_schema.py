"""A record of the released version, brought up to date where it stands."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click.testing
import pytest
from datasette.app import Datasette
from datasette.cli import cli
from sqlite_utils import Database, Migrations

from datasette_llm import LLM
from datasette_llm.log import retention, schema
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.schema import migrate
from datasette_llm.testing import ScriptedModel

ANA = {"id": "ana"}
# In the order of their ids, which begin with a time of 2026.
OLD = [f"01kbc{number}0000000000000000000z" for number in range(3)]
NEW_COLUMNS = ("attempt", "prompt_id", "waited_ms")
NEW_AT_THE_END = ("finish_reason", "failure_kind", "hook_error")
OLD_COLUMNS = tuple(
    name
    for name in (*schema.STARTED_COLUMNS, *schema.FINISHED_COLUMNS)
    if name not in (*NEW_COLUMNS, *NEW_AT_THE_END)
)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A database as the released version wrote it: two calls that ended and one that did not."""
    path = tmp_path / "internal.db"
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
def migrated(released: Path) -> Any:
    with closing(sqlite3.connect(released, isolation_level=None)) as connection:
        before = rows_of(connection)
        migrate(connection)
        connection.execute(
            "insert into llm_calls (id, session_id, started_at, model_id, streaming, prompt_chars, "
            "system_chars, message_count, attachment_count, attempt, prompt_id, waited_ms) "
            f"values ('n', 'gone', '', 'm', 1, 2, 0, 1, 0, 2, '{OLD[0]}', 4.5)"
        )
        yield connection, before


def rows_of(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    sql = f"select {', '.join(OLD_COLUMNS)} from llm_calls where id <> 'n' order by id"
    return connection.execute(sql).fetchall()


def test_old_rows_become_first_attempts(migrated: Any) -> None:
    connection, before = migrated
    assert len(before) == 3
    assert rows_of(connection) == before
    sql = f"select {', '.join(NEW_COLUMNS + NEW_AT_THE_END)} from llm_calls where id <> 'n'"
    assert connection.execute(sql).fetchall() == [(1, *[None] * 5)] * 3
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
    connection.execute("begin immediate")
    assert retention.remove_batch(connection, OLD[2], 7) == 2
    connection.execute("commit")
    assert connection.execute("select id from llm_calls").fetchall() == [(OLD[2],), ("n",)]
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

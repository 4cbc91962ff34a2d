"""Models assigned to purposes: stored, polled, and limited by the configuration."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from sqlite_utils import Database, Migrations

from datasette_llm import LLM, NewerDatabaseError, instance
from datasette_llm.access import assignments
from datasette_llm.access.assignments import Assignments, history
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.log.schema import m001_record
from datasette_llm.log.schema import migrations as log_migrations
from datasette_llm.testing import ScriptedModel

from ..support.call_log import call_row

BOUND_S = 30
Make = Callable[..., Datasette]


@pytest.fixture(autouse=True)
def models(register_models: Callable[..., None], llm_folder: Path) -> None:
    (llm_folder / "aliases.json").write_text(json.dumps({"grey": "heron"}))
    register_models(ScriptedModel("pelican"), ScriptedModel("heron"))


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The file of the internal database."""
    return str(tmp_path / "internal.db")


async def started(make: Make, config: object = None, **kwargs: Any) -> tuple[Datasette, Any]:
    datasette = make(config, **kwargs)
    await datasette.invoke_startup()
    return datasette, instance.of(datasette, Assignments)


async def default(datasette: Datasette, purpose: str = "chat") -> str:
    return (await LLM(datasette).model(purpose=purpose)).model_id


async def until(happened: Callable[[], bool]) -> None:
    """Wait until another task or thread has done something."""
    async with asyncio.timeout(BOUND_S):
        while not happened():  # noqa: ASYNC110 - what happens sets no event
            await asyncio.sleep(0.001)


# What counts


async def test_choice_counts_at_once_for_its_purpose(make_datasette: Make) -> None:
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"})

    await chosen.assign(datasette, "chat", "heron", "ana")

    assert await default(datasette) == "heron"
    assert await default(datasette, "sql") == "pelican"
    assert (await LLM(datasette).model()).model_id == "pelican"
    assert (await LLM(datasette).models(purpose="chat"))[0].model_id == "heron"


async def test_s3_odd_choice_is_ignored(
    make_datasette: Make, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that no version has written, newer than one of ours, hides nothing; it is named."""
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"}, internal=path)
    await chosen.assign(datasette, "chat", "heron", "ana")
    sql = "insert into llm_assignments (assigned_at, purpose, model_id) values ('x', ?, ?)"
    internal = datasette.get_internal_database()
    await internal.execute_write(sql, ["chat", b"\xff"])
    await internal.execute_write(sql, [b"chat", "heron"])

    datasette, _ = await started(make_datasette, {"default_model": "pelican"}, internal=path)

    assert await default(datasette, "chat") == "heron"
    assert [row.id for row in await history(datasette)] == [1]
    for number in (2, 3):
        assert f"The row {number} of llm_assignments is ignored" in caplog.text


async def test_choice_ranks_after_hooks(make_datasette: Make, plugin: Callable[..., Any]) -> None:
    """An assignment ranks after the caller's id and the hooks, before the configuration."""
    config = {"purposes": {"chat": {"model": "pelican"}}}
    datasette, chosen = await started(make_datasette, config)
    await chosen.assign(datasette, "chat", "heron", None)
    assert await default(datasette) == "heron"

    class Chooses:
        @hookimpl
        def llm_default_model(self, purpose: str) -> str:
            return "pelican"

    plugin(Chooses())
    assert await default(datasette) == "pelican"
    assert (await LLM(datasette).model("heron", purpose="chat")).model_id == "heron"


@pytest.mark.parametrize(
    "ours",
    [
        {"blocked_models": ["heron"]},
        {"models": ["pelican"]},
        {"purposes": {"chat": {"blocked_models": ["heron"]}}},
        {"purposes": {"chat": {"models": ["pelican"]}}},
    ],
)
async def test_choice_must_be_allowed_by_configuration(
    make_datasette: Make, ours: dict[str, Any]
) -> None:
    """An assignment counts only while the configuration allows it, also after a change."""
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"})
    await chosen.assign(datasette, "chat", "heron", None)
    config = datasette.config["plugins"]

    config["datasette-llm"] = {"default_model": "pelican"} | ours
    assert await default(datasette) == "pelican"
    config["datasette-llm"] = {"default_model": "pelican"}
    assert await default(datasette) == "heron"


async def test_choice_of_unknown_model_does_not_count(make_datasette: Make) -> None:
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"})

    await chosen.assign(datasette, "chat", "gone", None)

    assert await default(datasette) == "pelican"


async def test_choice_follows_an_alias_of_the_old_name(
    make_datasette: Make,
) -> None:
    """If the model was renamed, an alias of the old name keeps the assignment."""
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"})

    await chosen.assign(datasette, "chat", "grey", None)

    assert await default(datasette) == "heron"


@pytest.mark.parametrize("purpose", ["", "a/b", "x" * 100_000, "<b>'\"; drop table", "ünïcode 🦤"])
async def test_any_name_of_a_purpose_can_have_a_choice(
    make_datasette: Make, path: str, purpose: str
) -> None:
    datasette, chosen = await started(make_datasette, internal=path)
    await chosen.assign(datasette, purpose, "heron", None)

    again, _ = await started(make_datasette, internal=path)

    assert await default(again, purpose) == "heron"


async def test_chosen_model_has_its_options_and_key(make_datasette: Make) -> None:
    """The options and key of the assigned model's own references apply."""
    references = [{"model": "heron", "options": {"temperature": 0.5}, "key": "HERONS_KEY"}]
    chat = {"model": {"model": "pelican", "options": {"max_tokens": 1}}, "models": references}
    datasette, chosen = await started(make_datasette, {"purposes": {"chat": chat}})

    await chosen.assign(datasette, "chat", "heron", None)

    snapshot = (await snapshot_of(datasette)).for_purpose("chat")
    chosen_default = snapshot.default()
    assert chosen_default is not None
    route = snapshot.route(chosen_default.model_id)
    assert (route.options, route.secret_names) == ({"temperature": 0.5}, ("HERONS_KEY",))


async def test_going_back_stays_in_the_history(make_datasette: Make) -> None:
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"})

    await chosen.assign(datasette, "chat", "heron", "ana")
    await chosen.assign(datasette, "chat", None, "ben")

    assert await default(datasette) == "pelican"
    assert chosen.current == {}
    past = [(each.purpose, each.model_id, each.actor_id) for each in await history(datasette)]
    assert past == [("chat", None, "ben"), ("chat", "heron", "ana")]


# Several at once


async def test_concurrent_choices_last_one_wins(make_datasette: Make, path: str) -> None:
    """All of many concurrent assignments are in the history, and the last one counts."""
    datasette, chosen = await started(make_datasette, internal=path)
    both = ["pelican", "heron"] * 20

    await asyncio.gather(
        *[chosen.assign(datasette, "chat", name, f"a{n}") for n, name in enumerate(both)]
    )

    past = await history(datasette)
    assert sorted(each.actor_id for each in past) == sorted(f"a{n}" for n in range(40))
    assert chosen.current["chat"] == past[0]
    assert await default(datasette) == past[0].model_id


async def test_stale_read_does_not_undo_a_choice(
    make_datasette: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were read before an assignment do not replace it."""
    datasette, chosen = await started(make_datasette)
    await chosen.assign(datasette, "chat", "pelican", None)
    has_read, may_answer = threading.Event(), threading.Event()
    newest = assignments.newest_rows

    def slow(connection: sqlite3.Connection, unless: int | None = None) -> Any:
        rows = newest(connection, None)
        if unless is not None:
            has_read.set()
            assert may_answer.wait(BOUND_S)
        return rows

    monkeypatch.setattr(assignments, "newest_rows", slow)
    reading = asyncio.create_task(chosen.load(datasette))
    assert await asyncio.to_thread(has_read.wait, BOUND_S)
    await chosen.assign(datasette, "chat", "heron", None)
    may_answer.set()
    await reading

    assert chosen.current["chat"].model_id == "heron"


async def test_cancelled_choice_counts_when_written(
    make_datasette: Make,
) -> None:
    """An assignment whose caller was cancelled counts once it is written."""
    datasette, chosen = await started(make_datasette)
    is_writing, may_write = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        is_writing.set()
        assert may_write.wait(BOUND_S)

    held = asyncio.create_task(datasette.get_internal_database().execute_write_fn(hold))
    assert await asyncio.to_thread(is_writing.wait, BOUND_S)
    choosing = asyncio.create_task(chosen.assign(datasette, "chat", "heron", None))
    await asyncio.sleep(0)
    choosing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await choosing
    may_write.set()
    await held

    await until(lambda: "chat" in chosen.current)
    assert [each.model_id for each in await history(datasette)] == ["heron"]


async def test_another_process_on_the_database_follows(
    make_datasette: Make, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "REREAD_S", 0.001)
    one, chosen = await started(make_datasette, {"default_model": "pelican"}, internal=path)
    other, followed = await started(make_datasette, {"default_model": "pelican"}, internal=path)
    await other.start_background_tasks()

    await chosen.assign(one, "chat", "heron", "ana")
    await until(lambda: "chat" in followed.current)
    assert await default(other) == "heron"

    await chosen.assign(one, "chat", None, "ana")
    await until(lambda: not followed.current)
    assert await default(other) == "pelican"
    await other.invoke_shutdown()


async def test_what_did_not_change_makes_no_new_view(make_datasette: Make) -> None:
    datasette, chosen = await started(make_datasette)
    await chosen.assign(datasette, "chat", "heron", None)
    view = await snapshot_of(datasette)

    await chosen.load(datasette)

    assert await snapshot_of(datasette) is view


async def test_in_memory_database_is_not_polled(make_datasette: Make) -> None:
    """No other process can share an in-memory database, so it is not read again."""
    alone, _ = await started(make_datasette, {"log": False})

    await alone.start_background_tasks()

    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if "assignments" in name]
    await alone.invoke_shutdown()


# The database


def add_foreign_table(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table llm_assignments (other text)")
        connection.commit()


async def test_missing_table_is_logged_once(
    make_datasette: Make,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without its table the site starts, and the problem is logged once."""
    monkeypatch.setattr(assignments, "REREAD_S", 0.001)
    add_foreign_table(path)
    attempts = 0
    load = Assignments.load

    async def counted(self: Assignments, datasette: Datasette) -> None:
        nonlocal attempts
        attempts += 1
        await load(self, datasette)

    monkeypatch.setattr(Assignments, "load", counted)
    config = {"default_model": "pelican", "log": False}
    datasette, chosen = await started(make_datasette, config, internal=path)
    await datasette.start_background_tasks()
    await until(lambda: attempts > 4)

    assert await default(datasette) == "pelican"
    assert "already exists" in chosen.failure
    assert len([message for message in caplog.messages if "cannot be read" in message]) == 1
    with pytest.raises(sqlite3.OperationalError):
        await chosen.assign(datasette, "chat", "heron", None)

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop table llm_assignments")
        connection.commit()
    await until(lambda: chosen.failure is None)
    await chosen.assign(datasette, "chat", "heron", None)
    assert await default(datasette) == "heron"
    assert len([message for message in caplog.messages if "can be read again" in message]) == 1
    await datasette.invoke_shutdown()


async def test_choice_creates_the_missing_table(make_datasette: Make, path: str) -> None:
    """An assignment creates the table if it could not be created at startup."""
    add_foreign_table(path)
    datasette, chosen = await started(make_datasette, {"log": False}, internal=path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop table llm_assignments")
        connection.commit()

    await chosen.assign(datasette, "chat", "heron", None)

    assert (await default(datasette), chosen.failure) == ("heron", None)


async def test_unwritable_database_changes_nothing(make_datasette: Make, path: str) -> None:
    datasette, chosen = await started(make_datasette, {"default_model": "pelican"}, internal=path)
    await chosen.assign(datasette, "chat", "heron", None)
    before = chosen.current

    def refuse(connection: sqlite3.Connection) -> None:
        connection.execute("pragma query_only = on")

    await datasette.get_internal_database().execute_write_fn(refuse, transaction=False)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await chosen.assign(datasette, "chat", "pelican", None)

    assert chosen.current is before
    assert [each.model_id for each in await history(datasette)] == ["heron"]


async def test_table_is_append_only(make_datasette: Make, path: str) -> None:
    datasette, chosen = await started(make_datasette, internal=path)
    await chosen.assign(datasette, "chat", "heron", "ana")

    for statement in (
        "update llm_assignments set actor_id = 'ben'",
        "delete from llm_assignments",
        "insert or replace into llm_assignments values (1, 'now', 'chat', 'pelican', 'ben')",
    ):
        with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)


async def test_older_database_gains_the_table(make_datasette: Make, path: str) -> None:
    """A database of the previous version gains the table and keeps its call log."""
    before = Migrations("datasette_llm")
    before()(m001_record)
    database: Any = Database(path)
    before.apply(database)
    row = call_row(datetime.datetime.now(datetime.UTC))
    columns = {column.name for column in database["llm_calls"].columns}
    database["llm_calls"].insert({name: row[name] for name in columns})
    database.close()

    datasette, chosen = await started(make_datasette, internal=path)
    await chosen.assign(datasette, "chat", "heron", None)

    internal = datasette.get_internal_database()
    assert (await internal.execute("select id from llm_calls")).first()["id"] == row["id"]
    applied = await internal.execute(
        "select name from _sqlite_migrations where migration_set = 'datasette_llm' order by id"
    )
    names = [row["name"] for row in applied.rows]
    known: Any = log_migrations.pending(Database(memory=True))
    assert names == [migration.name for migration in known]


async def test_newer_database_stops_the_start(make_datasette: Make, path: str) -> None:
    newer = Migrations("datasette_llm_console")
    newer(name="m999_later")(lambda database: None)
    database: Any = Database(path)
    newer.apply(database)
    database.close()

    with pytest.raises(NewerDatabaseError, match="m999_later"):
        await make_datasette({"log": False}, internal=path).invoke_startup()


async def test_newer_database_found_late_stops_polling(
    make_datasette: Make,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A newer version that is found after startup is logged once, and polling ends."""
    monkeypatch.setattr(assignments, "REREAD_S", 0.001)
    add_foreign_table(path)
    datasette, chosen = await started(make_datasette, {"log": False}, internal=path)
    newer = Migrations("datasette_llm_console")
    newer(name="m999_later")(lambda database: None)
    database: Any = Database(path)
    newer.apply(database)
    database.close()

    with caplog.at_level(logging.ERROR, "datasette_llm"):
        async with asyncio.timeout(BOUND_S):
            await chosen.follow(datasette)

    assert "m999_later" in chosen.failure
    assert len([message for message in caplog.messages if "m999_later" in message]) == 1


async def test_lone_surrogate_is_refused(make_datasette: Make) -> None:
    datasette, chosen = await started(make_datasette)

    with pytest.raises(UnicodeEncodeError):
        await chosen.assign(datasette, "\ud800", "heron", None)

    assert chosen.current == {}

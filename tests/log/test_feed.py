"""The feed of the call log: what has begun or ended, for all who follow, from one look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_llm import instance
from datasette_llm.log import feed
from datasette_llm.log.feed import Changes, Feed, look
from datasette_llm.log.queries import Filter
from datasette_llm.log.schema import migrate

from ..support.call_log import DAY, NOW, add, call_row
from ..support.waiting import soon, until

UNENDED = {"outcome": None, "duration_ms": None}
ALL = Filter()


@pytest.fixture
def connection() -> Any:
    connection = sqlite3.connect(":memory:")
    migrate(connection)
    return connection


def end(connection: sqlite3.Connection, call_id: str, outcome: str = "ok") -> None:
    connection.execute("update llm_calls set outcome = ? where id = ?", [outcome, call_id])


def test_p6_look_finds_what_began_and_ended(connection: sqlite3.Connection) -> None:
    old = add(connection, call_row(NOW), call_row(NOW, **UNENDED))
    seen, found = look(connection, None, [ALL])
    assert found == {}

    (new,) = add(connection, call_row(NOW + DAY, **UNENDED))
    end(connection, old[1], "error")
    seen, found = look(connection, seen, [ALL])
    assert found == {ALL: Changes({old[1]: "error", new: "running"})}

    assert look(connection, seen, [ALL])[1] == {}
    end(connection, new)
    assert look(connection, seen, [ALL])[1] == {ALL: Changes({new: "ok"})}


def test_p6_call_that_waited_is_found(connection: sqlite3.Connection) -> None:
    """Its id is from before the newest one."""
    add(connection, call_row(NOW))
    seen, _ = look(connection, None, [ALL])

    (waited,) = add(connection, call_row(NOW - timedelta(minutes=1), **UNENDED))

    assert look(connection, seen, [ALL])[1] == {ALL: Changes({waited: "running"})}


def test_p6_each_filter_finds_its_own_calls(connection: sqlite3.Connection) -> None:
    seen, _ = look(connection, None, [])
    tagged = '{"job": 12}'
    ids = add(
        connection,
        call_row(NOW, model_id="a", purpose="chat"),
        call_row(NOW, model_id="b", outcome="error", tags=tagged),
        call_row(NOW, model_id="b", actor_id="ana"),
    )
    filters = {
        Filter(model="b"): ids[1:],
        Filter(model="b", outcome="ok"): ids[2:],
        Filter(tag=("job:12",)): ids[1:2],
        Filter(purpose=""): ids[1:],
        Filter(since="2026-01-01"): ids,
    }

    _, found = look(connection, seen, [*filters, Filter(model="c"), Filter(until="2026-01-01")])

    assert {each: sorted(changes.outcomes) for each, changes in found.items()} == filters


def test_p6_too_many_changes_are_not_named(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_CHANGES", 3)
    seen, _ = look(connection, None, [])
    add(connection, *(call_row(NOW) for _ in range(4)))

    assert look(connection, seen, [ALL])[1] == {ALL: Changes({}, complete=False)}


def test_p6_there_may_be_no_log_yet() -> None:
    seen, found = look(sqlite3.connect(":memory:"), None, [ALL])

    assert (seen.newest, found) == ("", {})


@pytest.fixture
async def datasette(
    make_datasette: Callable[..., Datasette], monkeypatch: pytest.MonkeyPatch
) -> Datasette:
    monkeypatch.setattr(feed, "POLL_S", 0.01)
    datasette = make_datasette()
    await datasette.invoke_startup()
    return datasette


@asynccontextmanager
async def following(datasette: Datasette, *filters: Filter) -> AsyncIterator[list[Any]]:
    """Changes for each filter, in lists that grow."""
    found: list[list[Changes]] = [[] for _ in filters]

    async def collect(log_filter: Filter, into: list[Changes]) -> None:
        async for changes in instance.of(datasette, Feed).follow(datasette, log_filter):
            into.append(changes)

    pairs = zip(filters, found, strict=True)
    tasks = [asyncio.create_task(collect(each, into)) for each, into in pairs]
    try:
        yield [tasks, *found]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_p6_all_follow_from_one_look(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three followers, of two filters: one query of the database at a time."""
    looks: list[frozenset[Filter]] = []

    def counted(connection: Any, before: Any, filters: Any) -> Any:
        looks.append(filters)
        return look(connection, before, filters)

    monkeypatch.setattr(feed, "look", counted)
    chat = Filter(purpose="chat")
    async with following(datasette, ALL, ALL, chat) as (_, first, second, of_chat):
        await until(lambda: len(looks) > 1)
        rows = [call_row(NOW), call_row(NOW, purpose="chat")]
        await datasette.get_internal_database().execute_write_fn(lambda c: add(c, *rows))
        await until(lambda: first and second and of_chat)
        assert set(looks[1]) == {ALL, chat}
    count = len(looks)

    assert first == second == [Changes({row["id"]: "ok" for row in rows})]
    assert of_chat == [Changes({rows[1]["id"]: "ok"})]
    # Without followers it looks no more; with a new one it does again.
    await soon(instance.of(datasette, Feed)._task)
    assert len(looks) <= count + 1
    async with following(datasette, ALL):
        await until(lambda: len(looks) > count + 1)


async def test_p6_followers_are_let_go_when_it_cannot_be_read(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(connection: Any, before: Any, filters: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(feed, "look", broken)
    with caplog.at_level(logging.WARNING):
        async with following(datasette, ALL) as (tasks, _):
            await soon(asyncio.wait(tasks))
            assert not tasks[0].cancelled()

    assert "cannot be followed: disk I/O error" in caplog.text

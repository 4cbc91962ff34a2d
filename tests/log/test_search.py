"""Full-text search over recorded content."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm import LLM
from datasette_llm.log import listing, retention, search
from datasette_llm.log.listing import Cursor, Listing, page
from datasette_llm.log.queries import BadFilterError, Filter
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.schema import migrate
from datasette_llm.testing import ScriptedModel, registered

from ..support.call_log import DAY, NOW, add, call_row, id_at
from ..support.waiting import BOUND_S, soon

CONTENT = "insert into llm_call_content (call_id, part, content) values (?, ?, ?)"


def content(text: str, role: str = "user") -> str:
    part = {"type": "text", "text": text}
    return json.dumps({"messages": [{"role": role, "parts": [part]}]}, ensure_ascii=False)


def found(
    connection: sqlite3.Connection,
    words: str,
    log_filter: Filter = Filter(),  # noqa: B008  # it is immutable
    before: str | None = None,
    limit: int = 100,
) -> list[str]:
    """The ids of a page of the calls with certain words."""
    cursor = None if before is None else Cursor(before)
    listing = Listing(log_filter, words, cursor=cursor, limit=limit)
    return [row["id"] for row in page(connection, listing).rows]


class Log:
    """A call log."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        migrate(connection)
        search.migrate(connection)

    def add(self, text: str, moment: datetime.datetime = NOW, **columns: Any) -> str:
        (call_id,) = add(self.connection, call_row(moment, **columns))
        self.record(call_id, content(text))
        return call_id

    def record(self, call_id: str, recorded: str) -> None:
        self.connection.execute(CONTENT, (call_id, "request", recorded))
        search.enqueue(self.connection, call_id)
        search.index_batch(self.connection)

    def found(self, words: str, log_filter: Filter | None = None, **options: Any) -> list[str]:
        return found(self.connection, words, log_filter or Filter(), **options)

    def weeks(self) -> int:
        sql = "select count(*) from sqlite_master where name glob 'llm_search_week_*[0-9]'"
        return self.connection.execute(sql).fetchone()[0]


@pytest.fixture
def log():
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield Log(connection)


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        ("pelican", True),
        ("PELICAN Ångström", True),
        ("angstrom", True),
        ('"grey pelican"', True),
        ('"pelican grey"', False),
        ("peli", False),
        ("peli*", True),
        ("pelican walrus", False),
        ("pelican OR walrus", False),
        ('pelican"', True),
        ("text:pelican", False),
        ("(pelican", True),
        ("-pelican", True),
    ],
)
def test_p4_words_find_calls(log, words, is_found):
    call_id = log.add("A grey pelican of one Ångström")
    assert log.found(words) == ([call_id] if is_found else [])


@pytest.mark.parametrize("words", ["", "  ", "*", '"', "- ( )", "x" * 501, "a " * 21])
def test_p4_no_words_are_refused(log, words):
    with pytest.raises(BadFilterError, match="search: "):
        log.found(words)


@given(st.text(max_size=60))
def test_p4_any_text_is_a_search_or_refused(words):
    with contextlib.suppress(BadFilterError), contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("create virtual table t using fts5(text)")
        db.execute("select * from t where t match ?", (search.match_of(words),)).fetchall()


@pytest.mark.parametrize("rare", [0, 1_000])
def test_p4_newest_first_over_weeks_and_pages(log, monkeypatch, rare: int):
    """Pages go on where the last one ended, also within a millisecond and over weeks."""
    monkeypatch.setattr(listing, "MAX_RARE", rare)
    moments = [NOW, NOW, NOW + DAY, NOW + 8 * DAY, NOW + 8 * DAY, NOW + 30 * DAY]
    ids = [log.add("pelican", moment) for moment in moments]
    log.add("walrus", NOW + 40 * DAY)
    assert log.weeks() == 4
    pages, before = [], None
    while some := log.found("pelican", before=before, limit=2):
        pages += some
        before = some[-1]
    assert pages == ids[::-1]
    newer = Listing(words="pelican", cursor=Cursor(ids[2], newer=True), limit=2)
    assert [row["id"] for row in page(log.connection, newer).rows] == ids[4:2:-1]


def test_p4_search_within_a_filter(log):
    log.add("pelican", purpose="chat")
    call_id = log.add("pelican", purpose="sql")
    assert log.found("pelican", Filter(purpose="sql")) == [call_id]
    condition, values = search.condition(log.connection, "pelican")
    sql = f"select id from llm_calls where {condition} and purpose = 'sql'"
    assert log.connection.execute(sql, values).fetchall() == [(call_id,)]


def test_p4_what_is_no_content_is_not_indexed(log):
    for odd in ("null", "[", '{"not_recorded": "pelican"}', '{"messages": [{"parts": 1}]}'):
        log.record(id_at(NOW), odd)
    log.record("no-ulid", content("pelican"))
    assert search.is_complete(log.connection)
    assert log.found("pelican") == []


@pytest.mark.parametrize(
    "recorded",
    [
        r'{"messages": [{"parts": [{"type": "text", "text": "half \ud83d of it"}]}]}',
        r'{"messages": [{"parts": [{"type": "tool_call", "arguments": {"a": "\ud83d"}}]}]}',
        '{"messages": [{"parts": ["text"]}]}',
        '{"messages": [{"parts": {"type": "text"}}]}',
    ],
)
def test_p4_odd_content_does_not_stop_indexing(log, recorded: str):
    """Content that no version has written keeps no other call from being indexed."""
    (odd,) = add(log.connection, call_row(NOW))
    log.record(odd, recorded)
    assert search.is_complete(log.connection)
    other = log.add("pelican")
    assert log.found("pelican") == [other]


def test_p4_a_batch_of_large_contents_is_small(log, monkeypatch):
    """A batch ends after so many characters, since other calls wait for it."""
    monkeypatch.setattr(search, "MAX_BATCH_CHARS", 1_000)
    for call_id in add(log.connection, *(call_row(NOW) for _ in range(3))):
        log.connection.execute(CONTENT, (call_id, "request", content("pelican " * 100)))
        search.enqueue(log.connection, call_id)
    left = []
    for _ in range(2):
        search.index_batch(log.connection)
        left += log.connection.execute("select count(*) from llm_search_queue").fetchone()
    assert left == [1, 0]


def test_p4_retention_drops_the_index_of_a_week(log):
    old, kept = log.add("pelican"), log.add("pelican", NOW + 14 * DAY)
    search.remove(log.connection, id_at(NOW + 7 * DAY))
    assert (log.weeks(), log.found("pelican")) == (1, [kept])
    assert not log.connection.execute(
        "select 1 from llm_search_calls where call_id = ?", (old,)
    ).fetchone()


def test_p4_removed_calls_are_not_found(log):
    """The index of a week has words of calls that are gone, as long as others of it are left."""
    old = log.add("pelican", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    kept = log.add("pelican", datetime.datetime(2020, 1, 1, 1, tzinfo=datetime.UTC))
    log.add("walrus", datetime.datetime.now(datetime.UTC))
    assert retention.remove_batch(log.connection, kept, 30) == 1
    assert (log.weeks(), log.found("pelican")) == (2, [kept])
    assert log.connection.execute("select 1 from llm_calls where id = ?", (old,)).fetchone() is None


def test_p4_older_content_is_indexed_in_batches(monkeypatch):
    monkeypatch.setattr(search, "MAX_BATCH", 2)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        migrate(connection)
        ids = add(connection, *(call_row() for _ in range(3)))
        for call_id in ids:
            connection.execute(CONTENT, (call_id, "request", content("pelican")))
        search.migrate(connection)
        search.index_batch(connection)
        assert not search.is_complete(connection)
        search.index_batch(connection)
        assert search.is_complete(connection)
        assert found(connection, "pelican") == ids[::-1]


async def test_p4_recorded_content_can_be_found(path: Path):
    """Prompt and answer of a real call, as soon as its row is finished."""
    config = {"log": {"content": True}}
    datasette = Datasette(internal=str(path), config={"plugins": {"datasette-llm": config}})
    await datasette.invoke_startup()
    with registered(ScriptedModel("pelican", ["a walrus answers"])):
        model = await LLM(datasette).model("pelican")
        await (await model.prompt("Who lives in Ålesund?")).text()
    await soon(Recorder.of(datasette).writer.flush())
    internal = datasette.get_internal_database()
    await datasette.start_background_tasks()
    async with asyncio.timeout(BOUND_S):
        while not await internal.execute_fn(search.is_complete):  # noqa: ASYNC110  # no event is set
            await asyncio.sleep(0.01)
    for words in ("alesund", "walrus answers"):
        ids = await internal.execute_fn(lambda connection, words=words: found(connection, words))
        assert len(ids) == 1


async def test_p4_a_damaged_index_loses_no_call(path: Path, caplog):
    config = {"log": {"content": True}}
    datasette = Datasette(internal=str(path), config={"plugins": {"datasette-llm": config}})
    await datasette.invoke_startup()
    internal = datasette.get_internal_database()
    await internal.execute_write("drop table llm_search_queue")
    with registered(ScriptedModel("pelican", ["an answer"])):
        model = await LLM(datasette).model("pelican")
        await (await model.prompt("Hello")).text()
    await soon(Recorder.of(datasette).writer.flush())
    rows = (await internal.execute("select outcome from llm_calls")).rows
    contents = (await internal.execute("select part from llm_call_content")).rows
    assert ([row[0] for row in rows], len(contents)) == (["ok"], 2)
    assert "will not be found by search" in caplog.text

"""Lookups in the response cache: in a thread and by a connection of their own, and in time."""

import asyncio
import gc
import threading
import time
from pathlib import Path

import pytest
from datasette.utils.sqlite import sqlite3

from datasette_llm.calls import cache_lookups
from datasette_llm.calls.cache_lookups import Lookups
from datasette_llm.log import cache_store

from ..support.waiting import soon, until

NAME = "datasette-llm response cache"


def threads():
    return {each for each in threading.enumerate() if each.name == NAME}


@pytest.fixture
def database(make_datasette, tmp_path):
    """An internal database with the tables of the cache, and no answers."""
    path = tmp_path / "internal.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("begin")
    cache_store.Guard().write(lambda _: None, connection)
    connection.execute("commit")
    connection.close()
    return make_datasette(internal=str(path)).get_internal_database()


@pytest.fixture
def lookups():
    made = Lookups()
    yield made
    made.close()


@pytest.fixture
def reads(monkeypatch):
    """A list of the digests that were read; `reads.gate` holds the thread up while it is clear."""

    class Reads(list):
        gate = threading.Event()

    found = Reads()
    found.gate.set()
    find = cache_store.find

    def noted(connection, digest, keep_days):
        found.append(digest)
        assert found.gate.wait(5)
        return find(connection, digest, keep_days)

    monkeypatch.setattr(cache_store, "find", noted)
    yield found
    found.gate.set()


async def test_r5_busy_threads_of_datasette_do_not_matter(database, lookups):
    """The queries of slow pages hold up no prompt."""
    done = threading.Event()
    pages = [asyncio.create_task(database.execute_fn(lambda _: done.wait(5))) for _ in range(4)]
    await asyncio.sleep(0)
    assert await soon(lookups.find(database, b"a", 7)) == (None, False)
    assert not any(each.done() for each in pages)
    done.set()
    await asyncio.gather(*pages)


async def test_r5_what_waits_is_read_together(database, lookups, reads, monkeypatch):
    """In batches of a bounded size, each answered at once when it has been read."""
    monkeypatch.setattr(cache_lookups, "MAX_BATCH", 4)
    reads.gate.clear()
    first = asyncio.create_task(lookups.find(database, b"first", 7))
    await until(lambda: reads)
    others = [asyncio.create_task(lookups.find(database, b"%d" % n, 7)) for n in range(6)]
    await asyncio.sleep(0)
    assert reads == [b"first"]
    reads.gate.set()
    assert await soon(asyncio.gather(first, *others)) == [(None, False)] * 7
    assert reads[1:] == [b"%d" % n for n in range(6)]


async def test_r5_read_that_hangs_is_given_up(database, lookups, reads, monkeypatch):
    """Then none is asked for a while; afterwards they are again."""
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 0.05)
    monkeypatch.setattr(cache_lookups, "REST_S", 0.2)
    reads.gate.clear()
    begun = time.monotonic()
    asked = [lookups.find(database, each, 7) for each in (b"a", b"b")]
    assert await soon(asyncio.gather(*asked)) == [(None, False)] * 2
    assert await lookups.find(database, b"c", 7) == (None, False)
    assert time.monotonic() - begun < 2
    assert b"c" not in reads
    reads.gate.set()
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 5.0)
    await asyncio.sleep(0.25)
    await soon(lookups.find(database, b"d", 7))
    assert reads[-1] == b"d"


async def test_r5_many_slow_reads_are_not_given_up(database, lookups, reads, monkeypatch):
    """A burst takes its time: what counts is whether reads end, also within a batch."""
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 0.5)
    find = cache_store.find

    def slow(*arguments):
        time.sleep(0.02)
        return find(*arguments)

    monkeypatch.setattr(cache_store, "find", slow)
    asked = [lookups.find(database, b"%d" % n, 7) for n in range(40)]  # 0.8 seconds
    await soon(asyncio.gather(*asked))
    assert len(reads) == 40


async def test_r5_busy_event_loop_is_no_slow_database(database, lookups, reads, monkeypatch):
    """It holds the thread up, and hears late of what was read."""
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 0.5)
    reads.gate.clear()
    asked = asyncio.create_task(lookups.find(database, b"a", 7))
    await asyncio.sleep(0)
    time.sleep(0.7)  # noqa: ASYNC251  # what is tested
    await asyncio.sleep(0.01)
    assert not asked.done()
    reads.gate.set()
    await soon(asked)
    await soon(lookups.find(database, b"b", 7))
    assert reads == [b"a", b"b"]


async def test_r5_cancelled_lookups_stop_no_other(database, lookups, reads):
    reads.gate.clear()
    tasks = [asyncio.create_task(lookups.find(database, each, 7)) for each in (b"a", b"b")]
    await until(lambda: reads)
    tasks[0].cancel()
    reads.gate.set()
    assert await soon(asyncio.wait(tasks))
    assert [each.cancelled() for each in tasks] == [True, False]


async def test_r5_damage_is_of_one_answer(database, lookups, monkeypatch):
    """Those that are read together with it are found."""
    answer = cache_store.Answer("01", (), {}, None, 0.1, 0)

    def find(connection, digest, keep_days):
        if digest == b"damaged":
            raise sqlite3.DatabaseError("database disk image is malformed")
        return answer, False

    monkeypatch.setattr(cache_store, "find", find)
    asked = [lookups.find(database, each, 7) for each in (b"a", b"damaged", b"b")]
    assert await soon(asyncio.gather(*asked)) == [(answer, False), (None, False), (answer, False)]


async def test_r5_locked_database_has_no_answers_in_time(database, lookups, monkeypatch, tmp_path):
    """The connection itself does not wait for longer."""
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 0.05)
    with sqlite3.connect(tmp_path / "internal.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        assert await soon(lookups.find(database, b"a", 7)) == (None, False)
        other.execute("rollback")
    other.close()


async def test_r5_closed_lookups_end_their_thread(database, lookups):
    others = threads()
    await soon(lookups.find(database, b"a", 7))
    (reader,) = threads() - others
    lookups.close()
    await until(lambda: not reader.is_alive())


async def test_r5_closed_database_is_not_made_again(make_datasette, lookups):
    """A temporary one would be, by a connection that may create it."""
    datasette = make_datasette()
    database = datasette.get_internal_database()
    datasette.close()
    assert await soon(lookups.find(database, b"a", 7)) == (None, False)
    assert not Path(database.path).exists()  # noqa: ASYNC240  # nothing else runs


async def test_r5_forgotten_lookups_end_their_thread(database):
    """As at the end of an event loop."""
    others, forgotten = threads(), Lookups()
    await soon(forgotten.find(database, b"a", 7))
    (reader,) = threads() - others
    del forgotten
    gc.collect()
    await until(lambda: not reader.is_alive())


async def test_r5_system_without_threads_has_no_answers(database, lookups, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await lookups.find(database, b"a", 7) == (None, False)

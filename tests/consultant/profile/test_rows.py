"""Which rows of a table are read, and in which order."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.consultant.profile.rows import Rows, TableRows, rows_of
from datasette_llm.consultant.profile.table import read_table


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def table_of(connection: sqlite3.Connection, rowids: list[int]) -> TableRows:
    connection.execute("create table t (id integer primary key)")
    connection.executemany("insert into t values (?)", [(rowid,) for rowid in rowids])
    return rows_of(connection, read_table(connection, "t"))


def read(connection: sqlite3.Connection, rows: Rows, column: str = "id") -> list[int]:
    sql = f"select t.{column} from {rows.source(column)}"
    return [row[0] for row in connection.execute(sql, rows.parameters)]


@given(st.sets(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), max_size=300))
def test_a5_each_row_is_in_one_chunk(rowids: set[int]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        rows = table_of(connection, list(rowids))
        found = [rowid for chunk in rows.chunks for rowid in read(connection, chunk)]

    assert sorted(found) == sorted(rowids)
    assert sum(high - low + 1 for low, high in rows.spans) >= len(rowids)


def test_first_chunks_are_spread(connection: sqlite3.Connection) -> None:
    rows = table_of(connection, list(range(50_000)))

    found = [rowid for chunk in rows.chunks[:16] for rowid in read(connection, chunk)]

    parts = Counter(rowid // 6_250 for rowid in found)
    assert set(parts) == set(range(8))
    assert max(parts.values()) <= min(parts.values()) * 1.1
    assert rows.share(range(16)) == pytest.approx(16 / 256, rel=0.01)


def test_sample_is_spread(connection: sqlite3.Connection) -> None:
    rows = table_of(connection, list(range(50_000)))

    found = read(connection, rows.sample(1_000))

    parts = Counter(rowid // 6_250 for rowid in found)
    assert len(set(found)) == 1_000
    assert max(parts.values()) <= min(parts.values()) * 1.1
    assert found == read(connection, rows.sample(1_000))


def test_outlying_rowids_are_chunks_of_their_own(connection: sqlite3.Connection) -> None:
    rows = table_of(connection, [-(2**63), *range(20_000), 2**63 - 1])

    widths = sorted(high - low + 1 for low, high in rows.spans)

    assert widths[0] == widths[1] == 1
    assert widths[-1] <= 160
    assert len(read(connection, rows.sample(5_000))) == 5_000


@pytest.mark.parametrize(
    "create",
    [
        "create table t (a primary key, b) without rowid",
        "create table u (a); create view t as select a from u",
    ],
    ids=["without rowid", "view"],
)
def test_what_has_no_rowid_is_read_whole(connection: sqlite3.Connection, create: str) -> None:
    connection.executescript(create)
    into = "u" if "view" in create else "t"
    rows = [(number,) for number in range(7_000)]
    connection.executemany(f"insert into {into} (a) values (?)", rows)

    first, whole = rows_of(connection, read_table(connection, "t")).chunks

    assert (len(read(connection, first, "a")), len(read(connection, whole, "a"))) == (5_000, 7_000)

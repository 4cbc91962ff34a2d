"""Pages of calls in every order, on both sides of a cursor, within a time limit."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from datasette_llm.log import listing, queries, search
from datasette_llm.log.listing import SORTS, Cursor, Listing, newest_ids, page
from datasette_llm.log.queries import BadFilterError, Filter
from datasette_llm.log.schema import migrate

from ..support.call_log import DAY, NOW, add, call_row

CONTENT = "insert into llm_call_content (call_id, part, content) values (?, 'request', ?)"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Sixty calls of forty days, with numbers that some do not have and that several share."""
    return [
        call_row(
            NOW + number * DAY * 2 / 3,
            model_id=("heron", "pelican", "walrus")[number % 3],
            purpose=("chat", None)[number % 2],
            actor_id=f"a{number % 5}",
            conversation_id="c1" if number % 7 == 0 else None,
            chain_id="k1" if number % 11 == 0 else None,
            cost_nanodollars=None if number % 4 == 0 else number // 3 * 1_000_000_000,
            duration_ms=None if number % 9 == 0 else float(number % 6 * 1000),
            first_chunk_ms=number * 100.0,
            input_tokens=number % 8,
            output_tokens=None if number % 10 == 0 else 1,
            outcome="ok" if number % 5 else "error",
            tags=json.dumps({"job": number % 2}),
        )
        for number in range(60)
    ]


@pytest.fixture(scope="module")
def connection(rows) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        search.migrate(connection)
        add(connection, *rows)
        for number, row in enumerate(rows):
            text = "heron" if number % 2 else "pelican"
            message = {"role": "user", "parts": [{"type": "text", "text": text}]}
            connection.execute(CONTENT, (row["id"], json.dumps({"messages": [message]})))
            search.enqueue(connection, row["id"])
        search.index_batch(connection)
        yield connection


def is_met(wanted: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a call meets a filter, said in Python."""
    columns = {"model": "model_id", "actor": "actor_id"}
    columns |= {"conversation": "conversation_id", "chain": "chain_id"}
    numbers = {
        "cost": row["cost_nanodollars"] and row["cost_nanodollars"] / 1e9,
        "tokens": tokens(row),
        "duration": row["duration_ms"] and row["duration_ms"] / 1000,
        "first_chunk": row["first_chunk_ms"] / 1000,
    }
    for name, value in wanted.items():
        bound, _, number = name.partition("_")
        if bound in ("min", "max"):
            known = numbers[number]
            if known is None or (known < float(value) if bound == "min" else known > float(value)):
                return False
        elif name == "tag":
            if f"job:{json.loads(row['tags'])['job']}" not in value:
                return False
        elif (row[columns.get(name, name)] or "") not in queries.several(value):
            return False
    return True


def tokens(row: dict[str, Any]) -> int | None:
    known = row["input_tokens"], row["output_tokens"]
    return None if None in known else sum(known)


WANTED = [
    {},
    {"model": "heron"},
    {"model": ("heron", "walrus")},
    {"model": ("heron", "walrus"), "actor": ("a1", "a2"), "purpose": ("chat", "")},
    {"model": ("heron", "pelican", "walrus"), "actor": ("a0", "a1", "a2"), "outcome": "ok"},
    {"outcome": ("ok", "error"), "tag": ("job:1",)},
    {"conversation": "c1"},
    {"chain": ("k1", "k2")},
    {"min_cost": "3", "max_cost": "12.5"},
    {"min_tokens": "4"},
    {"max_duration": "2", "model": "heron"},
    {"min_first_chunk": "1.5", "max_first_chunk": "4", "tag": ("job:0",)},
]
KEYS = {
    "time": lambda row: 0,
    "cost": lambda row: row["cost_nanodollars"],
    "duration": lambda row: row["duration_ms"],
    "tokens": tokens,
}


@pytest.mark.parametrize("few", [1, 10_000], ids=["along the order", "from few"])
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: "-".join(wanted) or "all")
def test_p4_pages_in_every_order(connection, rows, monkeypatch, wanted, sort, few) -> None:
    """Older pages have every call once, in order, and the newer ones lead back."""
    monkeypatch.setattr(queries, "MAX_FEW", few)
    monkeypatch.setattr(queries, "MAX_COMBINATIONS", 4)
    known = [row for row in rows if is_met(wanted, row) and KEYS[sort](row) is not None]
    for descending in (True, False):
        ordered = sorted(known, key=lambda row: (KEYS[sort](row), row["id"]), reverse=descending)
        expected = [row["id"] for row in ordered]
        first = Listing(Filter(**wanted), None, sort, descending, limit=7)

        pages = [page(connection, first)]
        while pages[-1].older is not None:
            pages.append(page(connection, replace(first, cursor=pages[-1].older)))
        back = [pages[-1]]
        while back[-1].newer is not None:
            back.append(page(connection, replace(first, cursor=back[-1].newer)))

        assert [row["id"] for each in pages for row in each.rows] == expected
        assert [row["id"] for each in back[::-1] for row in each.rows] == expected
        assert not [each for each in pages if each.cut]


@pytest.mark.parametrize("rare", [0, 1_000])
@pytest.mark.parametrize("sort", SORTS)
def test_p4_search_in_every_order(connection, rows, monkeypatch, sort: str, rare: int) -> None:
    monkeypatch.setattr(listing, "MAX_RARE", rare)
    expected = {
        row["id"]
        for number, row in enumerate(rows)
        if number % 2 and row["model_id"] == "walrus" and KEYS[sort](row) is not None
    }

    found = page(connection, Listing(Filter(model="walrus"), "heron", sort))

    assert {row["id"] for row in found.rows} == expected


@pytest.mark.parametrize("wanted", [{}, {"min_first_chunk": "1"}, {"model": ("heron", "walrus")}])
@pytest.mark.parametrize("sort", SORTS)
def test_p4_a_reached_limit_is_said(connection, wanted: dict[str, Any], sort: str) -> None:
    found = page(connection, Listing(Filter(**wanted), sort=sort), limit_ms=0)

    assert (found.rows, found.cut) == ([], True)
    assert newest_ids(connection, Listing(Filter(**wanted)), 0) == ([], True)


def test_p4_a_reached_limit_can_be_passed(connection, rows, monkeypatch) -> None:
    """The next page begins where the time ended, though nothing was found until there."""
    monkeypatch.setattr(queries, "MAX_FEW", 1)
    monkeypatch.setattr(listing, "_FIRST_SPAN_MS", DAY // datetime.timedelta(milliseconds=1))
    wanted = Listing(Filter(max_first_chunk="0.5", min_first_chunk="0"))
    real = queries.Conditions.unindexed

    def watch(call_id: str) -> int:
        if call_id < rows[20]["id"]:
            connection.interrupt()
        return 1

    connection.create_function("watch", 1, watch)
    monkeypatch.setattr(queries.Conditions, "unindexed", lambda self: f"watch(id) and {real(self)}")

    cut = page(connection, wanted)
    monkeypatch.setattr(queries.Conditions, "unindexed", real)
    rest = page(connection, replace(wanted, cursor=cut.older))

    assert (cut.rows, cut.cut) == ([], True)
    assert cut.older is not None
    assert rows[5]["id"] < cut.older.id < rows[-1]["id"]
    assert [row["id"] for row in rest.rows] == [row["id"] for row in rows[5::-1]]


@pytest.mark.parametrize("call_id", ["0" * 26, "7" + "z" * 25])
def test_p4_a_stale_cursor_is_a_place(connection, rows, call_id: str) -> None:
    for sort in SORTS:
        value = None if sort == "time" else 1e6
        for newer in (True, False):
            found = page(connection, Listing(sort=sort, cursor=Cursor(call_id, value, newer)))
            assert len(found.rows) <= 50


@pytest.mark.parametrize("wanted", [{"min_cost": "x"}, {"outcome": ("ok", "great")}])
def test_p4_an_invalid_filter_is_refused(connection, wanted: dict[str, Any]) -> None:
    with pytest.raises(BadFilterError):
        page(connection, Listing(Filter(**wanted)))

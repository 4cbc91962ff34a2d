"""Calls of a page that belong together, with what all of them add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from datasette_llm.log import folding, queries
from datasette_llm.log.folding import folds
from datasette_llm.log.queries import Filter
from datasette_llm.log.schema import migrate

from ..support.call_log import add, call_row

COST = {"cost_nanodollars": 5}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        add(
            connection,
            call_row(group_id="g", **COST),
            call_row(group_id="g", chain_id="c", chain_step=1, **COST),
            call_row(chain_id="d", chain_step=1, outcome="error"),
            call_row(group_id="g", chain_id="c", chain_step=2, **COST),
            call_row(),
        )
        first = call_row(outcome="error")
        add(connection, first, call_row(prompt_id=first["id"], attempt=2, input_tokens=7, **COST))
        yield connection


def folded(connection, *apart: str, limit: int = 50) -> list[tuple[str, int, int]]:
    """Of each fold the kind, the calls on the page, and all its calls."""
    rows = queries.calls(connection, Filter(), limit=limit)
    found = folds(connection, rows, apart)
    assert sorted(row["id"] for fold in found for row in fold.rows) == sorted(
        row["id"] for row in rows
    )
    return [(fold.kind, len(fold.rows), fold.sums.calls) for fold in found]


def test_p4_groups_chains_and_attempts_are_folded(connection) -> None:
    assert folded(connection) == [
        ("prompt", 2, 2),
        ("prompt", 1, 1),
        ("group", 3, 3),
        ("chain", 1, 1),
    ]


def test_p4_what_a_list_is_of_is_not_folded(connection) -> None:
    """In the list of a group, its chains are folded."""
    assert ("chain", 2, 2) in folded(connection, "group")
    assert all(each[1] == 1 for each in folded(connection, *folding.KINDS))


def test_p4_the_sum_is_of_all_members(connection) -> None:
    """Also of those that are not on the page."""
    assert folded(connection, limit=1) == [("prompt", 1, 2)]
    (fold,) = folds(connection, queries.calls(connection, Filter(), limit=1))
    assert (fold.sums.failures, fold.sums.tokens, fold.sums.cost_nanodollars) == (1, 7, 5)


def test_p4_members_are_bounded(connection, monkeypatch) -> None:
    monkeypatch.setattr(folding, "MAX_MEMBERS", 2)

    (fold,) = folds(connection, queries.calls(connection, Filter(group="g"), limit=9))

    assert (fold.sums.calls, fold.complete) == (2, False)

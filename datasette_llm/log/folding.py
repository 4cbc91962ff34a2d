"""Calls of a page that belong together: of one group, one chain, or attempts at one response."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from datasette.utils.sqlite import sqlite3

from .totals import NUMBERS_SQL, Sums

Row = dict[str, Any]

# In all, of the calls that are added up for a page.
MAX_MEMBERS = 10_000
# What belongs together, the largest first: the name of its filter, and the condition.
KINDS = {
    "group": "group_id = :id",
    "chain": "chain_id = :id",
    "prompt": "(id = :id or prompt_id = :id)",
}


@dataclass(frozen=True, slots=True)
class Fold:
    """Calls of a page that belong together.

    Attributes:
        kind: one of `KINDS`.
        id: of the group, the chain or the response.
        rows: those on the page, in its order.
        sums: of all calls that belong to it, those that are not on the page too.
        complete: whether all are added up.
    """

    kind: str
    id: str
    rows: list[Row]
    sums: Sums
    complete: bool


def folds(
    connection: sqlite3.Connection, rows: Sequence[Row], apart: Collection[str] = ()
) -> list[Fold]:
    """The calls of a page, those that belong together in one fold, in the order of the first ones.

    Args:
        connection: a connection to the internal database.
        rows: the calls.
        apart: the kinds that are not folded.
    """
    members: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        members.setdefault(_key(row, apart), []).append(row)
    limit = MAX_MEMBERS // max(1, len(members))
    return [_fold(connection, *key, of, limit) for key, of in members.items()]


def _key(row: Row, apart: Collection[str]) -> tuple[str, str]:
    for kind in ("group", "chain"):
        if kind not in apart and row[f"{kind}_id"]:
            return kind, row[f"{kind}_id"]
    return "prompt", row["id"] if "prompt" in apart else row["prompt_id"] or row["id"]


def _fold(
    connection: sqlite3.Connection, kind: str, fold_id: str, rows: list[Row], limit: int
) -> Fold:
    sql = f"select outcome, {NUMBERS_SQL}, null, null from llm_calls where {KINDS[kind]} limit :n"
    sums, found = Sums(), connection.execute(sql, {"id": fold_id, "n": limit + 1}).fetchall()
    for outcome, *values in found[:limit]:
        sums.add(outcome, values)
    return Fold(kind, fold_id, rows, sums, len(found) <= limit)

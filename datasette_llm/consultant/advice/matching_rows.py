"""The first rows that meet the evidence of a claim or a finding."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3
from pydantic import TypeAdapter, ValidationError

from ...access.snapshot import settings_of
from ...errors import LLMError
from ..connections import own_connections
from ..evidence import (
    ClaimEvidence,
    Orphans,
    Pattern,
    Rows,
    columns_of,
    evidence_sql,
    in_words,
    prepare,
    problem_of,
)
from ..findings.time_limit import LateError, TimeLimit
from ..profile.groups import display_value
from ..profile.table import column_ref, columns_left_out, may_hold_excluded
from ..table_access import all_viewable_tables
from .claims import problem_of_other

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette
    from datasette.database import Database

    from ..table_access import Actor

MAX_ROWS = 20
_COUNT = "select count(*) from"
_EVIDENCE: TypeAdapter[ClaimEvidence] = TypeAdapter(ClaimEvidence)


class EvidenceError(LLMError):
    """There are no rows to show for some evidence; the message says why."""


@dataclass(frozen=True, slots=True)
class MatchingRows:
    """The first rows that meet some evidence.

    Attributes:
        words: what the evidence counts.
        columns: its columns.
        keys: the names of the columns of the primary key; empty for a rowid.
        rows: for each row the values of its key, and those of the columns.
        more: whether there are more rows.
    """

    words: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]
    more: bool


def has_rows(evidence: object) -> bool:
    """Whether there may be rows to show; evidence is as stored, by any version."""
    kinds = ("rows", "orphans", "pattern")
    return isinstance(evidence, dict) and evidence.get("kind") in kinds


async def matching_rows(
    datasette: Datasette, database: str, table: str, evidence: str, actor: Actor
) -> MatchingRows:
    """Find the first rows that meet evidence.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of an existing table; the caller checks that the actor may analyze it.
        evidence: as JSON.
        actor: who asks.

    Raises:
        EvidenceError: the evidence is invalid, about what must not be shown, or too slow.
    """
    parsed = _parsed(evidence)
    settings = (await settings_of(datasette)).consultant
    if settings.values == "none":
        raise EvidenceError("The setting consultant.values is none, so no rows are shown")
    db = datasette.get_database(database)
    if await db.view_exists(table):
        raise EvidenceError("A view has no rows with pages of their own")
    keys = tuple(await db.primary_keys(table))
    await _check_columns(db, table, columns_of(parsed), settings.exclude)
    viewable = await all_viewable_tables(datasette, actor, database)
    work = partial(
        _find,
        db,
        parsed,
        table=table,
        keys=keys,
        problem=partial(_problem, parsed, database, table, viewable, settings.exclude),
        limit_s=settings.time_limit_ms / 1_000,
    )
    try:
        return await asyncio.to_thread(work)
    except LateError:
        raise EvidenceError("It takes too long to find these rows") from None
    except sqlite3.Error as error:
        raise EvidenceError(f"SQLite cannot find these rows: {error}") from None


def _parsed(text: str) -> Rows | Orphans | Pattern:
    try:
        evidence = _EVIDENCE.validate_json(text)
    except ValidationError as error:
        raise EvidenceError(f"evidence: {error.errors()[0]['msg']}") from None
    if not isinstance(evidence, Rows | Orphans | Pattern):
        raise EvidenceError("evidence: it is not about single rows")
    problem = problem_of(evidence)
    if problem is not None:
        raise EvidenceError(f"evidence: {problem}")
    return evidence


async def _check_columns(
    db: Database, table: str, shown: Sequence[str], exclude: Sequence[str]
) -> None:
    columns = await db.table_columns(table)
    unknown = [name for name in shown if name not in columns]
    if unknown:
        raise EvidenceError(f"evidence: the table has no column {unknown[0]!r}")
    left_out = columns_left_out(db.name, table, shown, exclude)
    if left_out:
        raise EvidenceError(f"evidence: `{left_out[0]}` is in consultant.exclude")


def _problem(
    evidence: Rows | Orphans | Pattern,
    database: str,
    table: str,
    viewable: Collection[str],
    exclude: Sequence[str],
    connection: Connection,
) -> str | None:
    if may_hold_excluded(connection, database, table, exclude):
        return "the table may have a column in consultant.exclude"
    if not isinstance(evidence, Orphans):
        return None
    return problem_of_other(connection, evidence, database, viewable, exclude)


def _find(
    db: Database,
    evidence: Rows | Orphans | Pattern,
    *,
    table: str,
    keys: tuple[str, ...],
    problem: Callable[[Connection], str | None],
    limit_s: float,
) -> MatchingRows:
    columns = tuple(columns_of(evidence))
    sql, params = evidence_sql(evidence, table)
    key = ", ".join(map(column_ref, keys)) or "t.rowid"
    shown = "".join(f", {column_ref(name)}" for name in columns)
    sql = f"select {key}{shown} from{sql.removeprefix(_COUNT)} limit {MAX_ROWS + 1}"
    with own_connections(db, 1) as [connection]:
        connection.execute("pragma query_only = 1")
        if sentence := problem(connection):
            raise EvidenceError(f"evidence: {sentence}")
        prepare(connection)
        connection.text_factory = lambda text: text.decode(errors="replace")
        with TimeLimit(connection, limit_s, time.perf_counter).until(1):
            found = connection.execute(sql, params).fetchall()
    width = len(keys) or 1
    rows = [(row[:width], tuple(map(_shown, row[width:]))) for row in found[:MAX_ROWS]]
    return MatchingRows(in_words(evidence), columns, keys, tuple(rows), len(found) > MAX_ROWS)


def _shown(value: Any) -> Any:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else display_value(value)

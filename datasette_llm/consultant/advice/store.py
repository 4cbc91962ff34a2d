"""The record of consultations: written by one insert each, read by those who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database, Migrations

from ... import migrations as database
from ...log.schema import OUTCOMES
from ...sanitize import storable

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.sqlite import sqlite3

migrations = Migrations("datasette_llm_consultant")

COLUMNS = (
    "id",
    "created_at",
    "type",
    "database_name",
    "table_name",
    "actor_id",
    "question",
    "exclude",
    "profile",
    "system_prompt",
    "user_prompt",
    "model_id",
    "raw_answer",
    "advice",
    "rejected",
    "checks",
    "outcome",
    "error_type",
    "error_message",
    "latency_ms",
    "call_id",
)


@migrations()
def m001_consultations(db: Database) -> None:
    outcomes = ", ".join(f"'{outcome}'" for outcome in OUTCOMES)
    for statement in (
        f"""
        create table llm_consultations (
            id text primary key,
            created_at text not null,
            type text not null,
            database_name text not null,
            table_name text not null,
            actor_id text,
            question text,
            exclude text not null,
            profile text,
            system_prompt text,
            user_prompt text,
            model_id text,
            raw_answer text,
            advice text,
            rejected text not null,
            checks text not null,
            outcome text not null check (outcome in ({outcomes})),
            error_type text,
            error_message text,
            latency_ms real,
            call_id text
        ) without rowid
        """,
        """
        create index llm_consultations_table
        on llm_consultations (database_name, table_name, id)
        """,
    ):
        db.execute(statement)
    database.append_only(db, "llm_consultations")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the table up to date, as `database.migrate`."""
    database.migrate(connection, migrations)


Row = dict[str, Any]

JSON_COLUMNS = ("exclude", "profile", "advice", "rejected", "checks")
# What a list needs of each; profiles and prompts are long.
LIST_COLUMNS = (
    "id",
    "created_at",
    "type",
    "database_name",
    "table_name",
    "actor_id",
    "question",
    "model_id",
    "outcome",
    "error_type",
    "error_message",
    "latency_ms",
    "call_id",
)
_INSERT = (
    f"insert into llm_consultations ({', '.join(COLUMNS)}) "
    f"values ({', '.join(f':{name}' for name in COLUMNS)})"
)
_SEEN = (
    "(database_name, table_name) in "
    "(select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:tables))"
)


async def write(datasette: Datasette, row: Mapping[str, Any]) -> None:
    """Write a consultation, also when whoever waits for it is cancelled.

    Args:
        datasette: the Datasette instance.
        row: a value for each of `COLUMNS`; those of `JSON_COLUMNS` not as text yet.

    Raises:
        sqlite3.Error: it cannot be written.
        NewerDatabaseError: a newer version of datasette-llm has changed the table.
    """
    texts = {name: _json(row[name]) for name in JSON_COLUMNS}
    values = storable(dict(row) | texts)

    def insert(connection: sqlite3.Connection) -> None:
        migrate(connection)
        connection.execute(_INSERT, values)

    writing = asyncio.ensure_future(datasette.get_internal_database().execute_write_fn(insert))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


async def one(datasette: Datasette, consultation_id: str, tables: str) -> Row | None:
    """A consultation, if it is about one of some tables.

    Args:
        datasette: the Datasette instance.
        consultation_id: its id.
        tables: as `access.analyzable` gives them.
    """
    where = f"id = :id and {_SEEN}"
    rows = await _read(datasette, COLUMNS, where, {"id": consultation_id, "tables": tables})
    if not rows:
        return None
    row = rows[0]
    return row | {name: json.loads(row[name]) for name in JSON_COLUMNS if row[name] is not None}


async def some(datasette: Datasette, tables: str, before: str | None, limit: int) -> list[Row]:
    """The newest consultations about some tables, newest first.

    Args:
        datasette: the Datasette instance.
        tables: as `access.analyzable` gives them.
        before: the id of the last of the page before; None for the first page.
        limit: how many at the most.
    """
    values: dict[str, Any] = {"tables": tables, "limit": limit}
    where = _SEEN
    if before is not None:
        where += " and id < :before"
        values["before"] = before
    return await _read(datasette, LIST_COLUMNS, f"{where} order by id desc limit :limit", values)


async def _read(
    datasette: Datasette, columns: tuple[str, ...], where: str, values: Mapping[str, Any]
) -> list[Row]:
    def read(connection: sqlite3.Connection) -> list[Row]:
        known = "select 1 from sqlite_master where type = 'table' and name = 'llm_consultations'"
        if connection.execute(known).fetchone() is None:
            return []  # nobody has consulted yet
        sql = f"select {', '.join(columns)} from llm_consultations where {where}"
        rows = connection.execute(sql, values)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    found: list[Row] = await datasette.get_internal_database().execute_fn(read)
    return found

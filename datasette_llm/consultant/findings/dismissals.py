"""Findings that a person has dismissed for a table, with who and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database, Migrations

from ...migrations import migrate as run_migrations
from ...sanitize import brief, now, storable, well_formed
from .find import Findings

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.sqlite import sqlite3

    from ..table_access import Actor

MAX_REASON_CHARS = 500

migrations = Migrations("datasette_llm_findings")


@migrations()
def m001_dismissals(db: Database) -> None:
    db.execute(
        """
        create table llm_dismissed_findings (
            database_name text not null,
            table_name text not null,
            kind text not null,
            columns text not null,
            dismissed_at text not null,
            actor_id text,
            reason text not null,
            primary key (database_name, table_name, kind, columns)
        ) without rowid
        """
    )


async def dismiss(
    datasette: Datasette,
    database: str,
    table: str,
    finding: tuple[str, str],
    actor: Actor,
    reason: str,
) -> None:
    """Dismiss a finding of a table until it is restored.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of the table or view.
        finding: its kind, and its columns as a JSON list.
        actor: who dismisses it; the caller checks that they may.
        reason: why.

    Raises:
        sqlite3.Error: it cannot be written.
        NewerDatabaseError: a newer version of datasette-llm has migrated the table.
    """
    actor_id = (actor or {}).get("id")
    row = {
        "database_name": database,
        "table_name": table,
        "kind": finding[0],
        "columns": finding[1],
        "dismissed_at": now(),
        "actor_id": None if actor_id is None else brief(actor_id),
        "reason": reason,
    }
    sql = (
        f"insert or replace into llm_dismissed_findings ({', '.join(row)}) "
        f"values ({', '.join(f':{name}' for name in row)})"
    )
    await _write(datasette, sql, row)


async def restore(
    datasette: Datasette, database: str, table: str, finding: tuple[str, str]
) -> None:
    """Undo `dismiss`."""
    names = ("database_name", "table_name", "kind", "columns")
    where = " and ".join(f"{name} = :{name}" for name in names)
    values = dict(zip(names, (database, table, *finding), strict=True))
    await _write(datasette, f"delete from llm_dismissed_findings where {where}", values)


async def with_dismissals(
    datasette: Datasette, database: str, table: str, findings: Findings
) -> Findings:
    """Findings that tell which of them are dismissed: `dismissed` is None, or by, at and reason."""
    dismissed = await _dismissed(datasette, database, table)
    found = (
        each | {"dismissed": dismissed.get((each["kind"], key_of(each["columns"])))}
        for each in findings.found
    )
    return replace(findings, found=tuple(found))


def key_of(columns: list[str]) -> str:
    """The columns of a finding as a JSON list."""
    return well_formed(json.dumps(columns, ensure_ascii=False))


async def _dismissed(
    datasette: Datasette, database: str, table: str
) -> dict[tuple[str, str], dict[str, Any]]:
    def read(connection: sqlite3.Connection) -> list[Any]:
        exists = "select 1 from sqlite_master where name = 'llm_dismissed_findings'"
        if connection.execute(exists).fetchone() is None:
            return []  # before the first one
        sql = """
            select kind, columns, actor_id, dismissed_at, reason from llm_dismissed_findings
            where database_name = :database and table_name = :table
        """
        values = storable({"database": database, "table": table})
        return list(connection.execute(sql, values))

    rows = await datasette.get_internal_database().execute_fn(read)
    return {
        (kind, columns): {"by": actor_id, "at": at, "reason": reason}
        for kind, columns, actor_id, at, reason in rows
    }


async def _write(datasette: Datasette, sql: str, values: Mapping[str, Any]) -> None:
    def write(connection: sqlite3.Connection) -> None:
        run_migrations(connection, migrations)
        connection.execute(sql, storable(values))

    await datasette.get_internal_database().execute_write_fn(write)

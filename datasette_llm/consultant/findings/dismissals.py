"""Findings that a person has dismissed for a table, with who and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

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


@migrations()
def m002_which(db: Database) -> None:
    """Those of before are of all findings of a kind in these columns, as they were."""
    db.execute("alter table llm_dismissed_findings rename to llm_dismissed_findings_1")
    db.execute(
        """
        create table llm_dismissed_findings (
            database_name text not null,
            table_name text not null,
            kind text not null,
            columns text not null,
            which text not null,
            dismissed_at text not null,
            actor_id text,
            reason text not null,
            primary key (database_name, table_name, kind, columns, which)
        ) without rowid
        """
    )
    db.execute(
        """
        insert into llm_dismissed_findings
        select database_name, table_name, kind, columns, '', dismissed_at, actor_id, reason
        from llm_dismissed_findings_1
        """
    )
    db.execute("drop table llm_dismissed_findings_1")


class Dismissed(NamedTuple):
    """What a dismissal is of.

    Attributes:
        kind: the kind of finding.
        columns: its columns as a JSON list.
        which: which of these findings, as the finding says; empty for all.
    """

    kind: str
    columns: str
    which: str = ""


async def dismiss(
    datasette: Datasette,
    database: str,
    table: str,
    finding: Dismissed,
    actor: Actor,
    reason: str,
) -> None:
    """Dismiss a finding of a table until it is restored.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of the table or view.
        finding: which finding, or findings.
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
        **finding._asdict(),
        "dismissed_at": now(),
        "actor_id": None if actor_id is None else brief(actor_id),
        "reason": reason,
    }
    sql = (
        f"insert or replace into llm_dismissed_findings ({', '.join(row)}) "
        f"values ({', '.join(f':{name}' for name in row)})"
    )
    await _write(datasette, sql, row)


async def restore(datasette: Datasette, database: str, table: str, finding: Dismissed) -> None:
    """Undo `dismiss`, also where it was of all findings of the kind in these columns."""
    where = """
        database_name = :database_name and table_name = :table_name and kind = :kind
        and columns = :columns and (which = :which or which = '' or :which = '')
    """
    values = {"database_name": database, "table_name": table, **finding._asdict()}
    await _write(datasette, f"delete from llm_dismissed_findings where {where}", values)


async def with_dismissals(
    datasette: Datasette, database: str, table: str, findings: Findings
) -> Findings:
    """Findings that tell which of them are dismissed: `dismissed` is None, or by, at and reason."""
    dismissed = await _dismissed(datasette, database, table)

    def of(finding: Mapping[str, Any]) -> dict[str, Any] | None:
        all_of_them = Dismissed(finding["kind"], key_of(finding["columns"]))
        one = all_of_them._replace(which=finding["which"])
        return dismissed.get(one, dismissed.get(all_of_them))

    found = (each | {"dismissed": of(each)} for each in findings.found)
    return replace(findings, found=tuple(found))


def key_of(columns: list[str]) -> str:
    """The columns of a finding as a JSON list."""
    return well_formed(json.dumps(columns, ensure_ascii=False))


async def _dismissed(
    datasette: Datasette, database: str, table: str
) -> dict[Dismissed, dict[str, Any]]:
    def read(connection: sqlite3.Connection) -> list[Any]:
        sql = "select name from pragma_table_info('llm_dismissed_findings')"
        names = [row[0] for row in connection.execute(sql)]
        if not names:
            return []  # before the first one
        which = "which" if "which" in names else "''"  # a table of before has all of them
        sql = f"""
            select kind, columns, {which}, actor_id, dismissed_at, reason
            from llm_dismissed_findings
            where database_name = :database and table_name = :table
        """
        values = storable({"database": database, "table": table})
        return list(connection.execute(sql, values))

    rows = await datasette.get_internal_database().execute_fn(read)
    return {
        Dismissed(kind, columns, which): {"by": actor_id, "at": at, "reason": reason}
        for kind, columns, which, actor_id, at, reason in rows
    }


async def _write(datasette: Datasette, sql: str, values: Mapping[str, Any]) -> None:
    def write(connection: sqlite3.Connection) -> None:
        run_migrations(connection, migrations)
        connection.execute(sql, storable(values))

    await datasette.get_internal_database().execute_write_fn(write)

"""The console's table: which model somebody chose for which purpose, and every earlier choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Database, Migrations

from .. import database

if TYPE_CHECKING:
    import sqlite3

migrations = Migrations("datasette_llm_console")


@migrations()
def m001_assignments(db: Database) -> None:
    for statement in (
        """
        create table llm_assignments (
            id integer primary key check (id > 0),
            assigned_at text not null,
            purpose text not null,
            model_id text,
            actor_id text
        )
        """,
        "create index llm_assignments_purpose on llm_assignments (purpose, id)",
    ):
        db.execute(statement)
    database.append_only(db, "llm_assignments")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the table up to date, as `database.migrate`."""
    database.migrate(connection, migrations)

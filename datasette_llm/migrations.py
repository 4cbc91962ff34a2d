"""Our tables in Datasette's internal database, brought up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlite_utils import Database, Migrations

from .errors import NewerDatabaseError

if TYPE_CHECKING:
    import sqlite3


def migrate(connection: sqlite3.Connection, migrations: Migrations) -> None:
    """Bring some tables up to date.

    In a transaction that may write, which keeps processes that start together out of each
    other's way; this one makes none of its own around it all.

    Args:
        connection: a connection that may write, in a transaction.
        migrations: those of one part of datasette-llm.

    Raises:
        NewerDatabaseError: a newer version of datasette-llm has changed the tables.
    """
    db: Any = Database(connection)
    known = {migration.name for migration in migrations._migrations}
    unknown = [m.name for m in migrations.applied(db) if m.name not in known]
    if unknown:
        raise NewerDatabaseError(
            "The internal database was written by a newer datasette-llm (it knows "
            f"{', '.join(unknown)}). Upgrade datasette-llm, or use another --internal database"
        )
    migrations.apply(db)


def append_only(db: Database, table: str) -> None:
    """Have SQLite refuse every change of what a table holds.

    Args:
        db: a database, in a migration.
        table: the name of a table whose key is `id`.
    """
    refuse = f"begin select raise(abort, '{table} is append-only'); end"
    # REPLACE removes the old row without asking the triggers for DELETE (SQLite's
    # recursive_triggers is off), so it has to be refused as the INSERT that it also is.
    known = f"when exists (select 1 from {table} where id = new.id)"
    db.execute(f"create trigger {table}_insert before insert on {table} {known} {refuse}")
    db.execute(f"create trigger {table}_update before update on {table} {refuse}")
    db.execute(f"create trigger {table}_delete before delete on {table} {refuse}")

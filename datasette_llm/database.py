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

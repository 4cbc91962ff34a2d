"""Migrations of tables in Datasette's internal database."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database, Migrations

from .errors import NewerDatabaseError

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger("datasette_llm")


def migrate(connection: sqlite3.Connection, migrations: Migrations, *tables: str) -> None:
    """Apply the pending migrations, and make tables again that were dropped.

    The caller's write transaction keeps processes that start at the same time from applying
    them twice; no other transaction is opened around them.

    Args:
        connection: a connection in a write transaction.
        migrations: the migrations of one part of datasette-llm.
        tables: the names of its tables.

    Raises:
        NewerDatabaseError: a newer version of datasette-llm has changed the tables.
    """
    db: Any = Database(connection)
    every: Any = migrations.pending(Database(memory=True))
    known = {migration.name for migration in every}
    unknown = [m.name for m in migrations.applied(db) if m.name not in known]
    if unknown:
        raise NewerDatabaseError(
            "The internal database was written by a newer datasette-llm (it knows "
            f"{', '.join(unknown)}). Upgrade datasette-llm, or use another --internal database"
        )
    migrations.apply(db)
    _restore(connection, migrations, tables)


def _restore(
    connection: sqlite3.Connection, migrations: Migrations, tables: tuple[str, ...]
) -> None:
    known = {name for (name,) in connection.execute("select name from sqlite_master")}
    missing = [name for name in tables if name not in known]
    if not missing:
        return
    fresh: Any = Database(memory=True)
    migrations.apply(fresh)
    sql = "select name, sql from sqlite_master where sql is not null order by rowid"
    for name, statement in fresh.execute(sql).fetchall():
        if name not in known:
            connection.execute(statement)
    logger.warning(
        "Missing from the internal database, and made again without rows: %s", ", ".join(missing)
    )


def append_only(db: Database, table: str) -> None:
    """Have SQLite refuse every change of existing rows of a table.

    Args:
        db: a database, in a migration.
        table: the name of a table whose key is `id`.
    """
    refuse = f"begin select raise(abort, '{table} is append-only'); end"
    # REPLACE deletes the old row without running the DELETE triggers (SQLite's
    # recursive_triggers is off), so it is refused as an INSERT.
    known = f"when exists (select 1 from {table} where id = new.id)"
    db.execute(f"create trigger {table}_insert before insert on {table} {known} {refuse}")
    db.execute(f"create trigger {table}_update before update on {table} {refuse}")
    db.execute(f"create trigger {table}_delete before delete on {table} {refuse}")

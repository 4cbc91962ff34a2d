"""Connections of the consultant's own to a database, for long reads beside Datasette's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from sqlite3 import Connection

from datasette.database import Database


@contextmanager
def own_connections(db: Database, count: int) -> Iterator[list[Connection]]:
    """Connections as Datasette's own are, with its extensions and functions; closed at the end.

    Args:
        db: the database.
        count: how many.
    """
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = db.connect()
            stack.callback(connection.close)
            # Datasette would close it with its own, under the thread that reads, which crashes.
            db._all_connections.remove(connection)  # noqa: SLF001  # it has no public name
            # Plugins add the functions that views use; it has no public name.
            db.ds._prepare_connection(connection, db.name)  # noqa: SLF001  # as above
            connection.row_factory = None
            connection.isolation_level = None  # no transaction is longer than a statement
            opened.append(connection)
        yield opened

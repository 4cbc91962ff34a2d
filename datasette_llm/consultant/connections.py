"""Connections of the consultant's own to a database, for long reads beside Datasette's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from sqlite3 import Connection

from datasette.database import Database

from ..log.connections import own_connection


@contextmanager
def own_connections(db: Database, count: int) -> Iterator[list[Connection]]:
    """Connections as Datasette's own are, with its extensions and functions; closed at the end.

    Args:
        db: the database.
        count: how many.

    Raises:
        DatasetteClosedError: the database has been closed.
        sqlite3.Error: it cannot be opened.
    """
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = own_connection(db)
            stack.callback(connection.close)
            # Plugins add the functions that views use; it has no public name.
            db.ds._prepare_connection(connection, db.name)  # noqa: SLF001  # as above
            connection.row_factory = None
            opened.append(connection)
        yield opened

"""A connection of our own to a database of Datasette's, for reads beside its own."""

from __future__ import annotations

import contextlib
from sqlite3 import Connection

from datasette.database import Database


def own_connection(db: Database) -> Connection:
    """A connection without the extensions and functions that Datasette's have.

    Args:
        db: the database.

    Returns:
        The connection, for its caller to close.

    Raises:
        DatasetteClosedError: the database has been closed.
        sqlite3.Error: it cannot be opened.
    """
    # Else the file of a temporary one would be made again.
    db._check_not_closed()  # noqa: SLF001  # a public name for this does not exist
    connection: Connection = db.connect()
    # Datasette would close it with its own, under the thread that reads, which crashes. It may
    # just have done so.
    with contextlib.suppress(ValueError):
        db._all_connections.remove(connection)  # noqa: SLF001  # a public name for this does not exist
    connection.isolation_level = None  # no transaction is longer than a statement
    return connection

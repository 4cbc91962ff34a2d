"""Which processes write the record, so that what a dead one left unfinished can be told.

A session holds one of SQLite's locks on an empty file of its own, beside the database, for as
long as it lasts. The operating system lets go of it when the process ends, however that
happens. Whoever can share the database can see the lock, in another container too, and on
Windows; process numbers, host names and clocks could not tell.
"""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path

from datasette.utils.sqlite import sqlite3


class Session:
    """One Datasette instance as a writer of the record.

    Attributes:
        id: stands in every row that it writes.
    """

    def __init__(self, session_id: str, *, shared: bool = True) -> None:
        """
        Args:
            session_id: a new id.
            shared: whether another process may have the database open.
        """
        self.id = session_id
        self._shared = shared
        self._lock: _Lock | None = None

    def open(self, connection: sqlite3.Connection, moment: str) -> int:
        """Note that this session writes from now on, and mark what dead ones left unfinished.

        Several processes may share one internal database, so the unfinished rows of one that is
        still alive are left alone.

        Args:
            connection: a connection that may write, in a transaction, so that no other session
                opens meanwhile.
            moment: now, as it is written in the tables.

        Returns:
            How many rows were marked as lost.

        Raises:
            sqlite3.Error: there can be no lock beside the database, or the tables cannot be
                written.
        """
        database = _file_of(connection)
        if self._lock is None and self._shared:
            self._lock = _Lock(_beside(database, self.id))
        known = connection.execute("select id from llm_log_sessions").fetchall()
        for (session_id,) in known:
            if session_id != self.id and _has_ended(_beside(database, session_id)):
                connection.execute("delete from llm_log_sessions where id = ?", (session_id,))
        connection.execute(
            "insert or ignore into llm_log_sessions (id, opened_at) values (?, ?)",
            (self.id, moment),
        )
        lost = connection.execute(
            "update llm_calls set outcome = 'lost', finished_at = ?, error_message = ? "
            "where outcome is null and session_id not in (select id from llm_log_sessions)",
            (moment, "The process ended before the call did"),
        )
        return int(lost.rowcount)

    def close(self, connection: sqlite3.Connection) -> None:
        """Note that this session writes no more, unless calls of its own have still to end.

        Those are lost at the next start that finds the lock gone.
        """
        connection.execute(
            "delete from llm_log_sessions where id = :id and not exists "
            "(select 1 from llm_calls where session_id = :id and outcome is null)",
            {"id": self.id},
        )

    def release(self) -> None:
        """Let go of the lock, when nothing more will be written."""
        if self._lock is not None:
            self._lock.release()


class _Lock:
    def __init__(self, file: Path) -> None:
        # It is let go in another thread than the one that writes.
        connection = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
        # Also when nobody stops the Datasette instance before it is dropped. Not at the exit of
        # the process, which may be one that was forked off and has no part in this.
        self.release = weakref.finalize(self, _let_go, connection, file)
        self.release.atexit = False
        connection.execute("pragma journal_mode = off")  # that would be one more file
        connection.execute("begin exclusive")


def _let_go(connection: sqlite3.Connection, file: Path) -> None:
    connection.close()
    _remove(file)


def _file_of(connection: sqlite3.Connection) -> Path:
    # As SQLite has resolved it, so that all who use the database agree on what is beside it.
    sql = "select file from pragma_database_list where name = 'main'"
    return Path(connection.execute(sql).fetchone()[0])


def _beside(database: Path, session_id: str) -> Path:
    return database.with_name(f"{database.name}-llm-{session_id}")


def _has_ended(lock: Path) -> bool:
    """Whether the session with this lock has; where that cannot be told, it has not."""
    if lock.exists():
        uri = f"{lock.as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0)) as reader:
                reader.execute("select 1 from sqlite_master").fetchall()
        except sqlite3.Error:
            return False
        _remove(lock)
    return True


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # an empty file that is left does no harm
        file.unlink()

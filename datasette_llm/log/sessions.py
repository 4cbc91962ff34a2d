"""Sessions: which processes write the call log, to find rows that a dead one left unfinished.

A session holds a lock of SQLite's on an empty file of its own beside the database. The operating
system releases it when the process ends, for whatever reason. Every process that shares the
database sees the lock, also from another container and on Windows; process numbers, host names
and clocks are not reliable for that.
"""

from __future__ import annotations

import contextlib
import logging
import re
import weakref
from pathlib import Path

from datasette.utils.sqlite import sqlite3

logger = logging.getLogger("datasette_llm")

# It is part of a file's name.
_SESSION_ID = re.compile("[0-9a-z]{1,64}")


class Session:
    """One Datasette instance as a writer of the call log.

    Attributes:
        id: in every row that it writes.
    """

    def __init__(self, session_id: str, *, shared: bool = True) -> None:
        """
        Args:
            session_id: a new id.
            shared: whether another process may have the database open.
        """
        self.id = session_id
        self._shared = shared
        self._lock: Lock | None = None

    def open(self, connection: sqlite3.Connection, moment: str) -> int:
        """Register this session, and mark the unfinished rows of ended sessions as lost.

        Several processes may share one internal database: the unfinished rows of running sessions
        stay as they are.

        Args:
            connection: a connection for writing, in a transaction, so that no other session opens
                at the same time.
            moment: now, in the format of the tables.

        Returns:
            How many rows were marked as lost.

        Raises:
            sqlite3.Error: the lock file cannot be made, or the tables cannot be written.
        """
        database = _file_of(connection)
        if self._lock is None and self._shared:
            self._lock = Lock(_beside(database, self.id))
        for session_id in _session_ids(connection):
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
        """Unregister this session, unless some of its calls have not ended.

        Those are marked as lost at the next start after the lock is released.
        """
        connection.execute(
            "delete from llm_log_sessions where id = :id and not exists "
            "(select 1 from llm_calls where session_id = :id and outcome is null)",
            {"id": self.id},
        )

    def release(self) -> None:
        """Release the lock; nothing more will be written."""
        if self._lock is not None:
            self._lock.release()


def lock_beside(connection: sqlite3.Connection, name: str) -> Lock:
    """A lock beside a database, which one process at a time has.

    Args:
        connection: a connection to the database, which has a file.
        name: what it is for, of small letters and digits.

    Raises:
        sqlite3.OperationalError: another process has it, or its file cannot be made.
    """
    return Lock(_beside(_file_of(connection), name))


class Lock:
    """A lock on a file, until it is released or the process ends.

    Attributes:
        release: releases it.
    """

    def __init__(self, file: Path) -> None:
        """
        Args:
            file: the file; it is removed with the lock.

        Raises:
            sqlite3.OperationalError: another process has it, or its file cannot be made.
        """
        # It is released in another thread than the one that writes.
        connection = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = off")  # or there would be one more file
            connection.execute("begin exclusive")
        except sqlite3.Error:
            connection.close()
            raise
        # Also if the Datasette instance is garbage-collected without a shutdown. Not at the exit of
        # the process, which may be a fork that does not own the lock.
        self.release = weakref.finalize(self, _release, connection, file)
        self.release.atexit = False


def _session_ids(connection: sqlite3.Connection) -> list[str]:
    """The ids of the registered sessions; a row that no version has written is left alone."""
    known = [row[0] for row in connection.execute("select id from llm_log_sessions")]
    odd = [each for each in known if not _SESSION_ID.fullmatch(str(each))]
    for each in odd:
        logger.warning("A row of llm_log_sessions is ignored; no session has the id %.80r", each)
    return [each for each in known if each not in odd]


def _release(connection: sqlite3.Connection, file: Path) -> None:
    connection.close()
    _remove(file)


def _file_of(connection: sqlite3.Connection) -> Path:
    # As resolved by SQLite, so that all processes agree on the folder.
    sql = "select file from pragma_database_list where name = 'main'"
    return Path(connection.execute(sql).fetchone()[0])


def _beside(database: Path, session_id: str) -> Path:
    return database.with_name(f"{database.name}-llm-{session_id}")


def _has_ended(lock: Path) -> bool:
    """Whether the session with this lock has ended; False if that is unknown."""
    try:
        exists = lock.exists()
    except OSError:
        return False
    if exists:
        uri = f"{lock.as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0)) as reader:
                reader.execute("select 1 from sqlite_master").fetchall()
        except sqlite3.Error:
            return False
        _remove(lock)
    return True


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # an empty file left behind does no harm
        file.unlink()

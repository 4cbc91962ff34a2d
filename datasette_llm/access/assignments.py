"""The models that administrators assigned to purposes, within what the configuration allows.

The table is append-only; the newest row of a purpose counts. The rows that count are cached,
because each prompt needs them, and read again every `REREAD_S`, because another process may
share the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database, Migrations

from ..errors import NewerDatabaseError
from ..migrations import append_only, migrate
from ..sanitize import now

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")
migrations = Migrations("datasette_llm_console")

# How soon a choice made in another process counts in this one.
REREAD_S = 5.0
HISTORY_ROWS = 100

_COLUMNS = "id, assigned_at, purpose, model_id, actor_id"
_INSERT = (
    "insert into llm_assignments (assigned_at, purpose, model_id, actor_id) values (?, ?, ?, ?)"
)
# A row that no version has written; everything else in these columns is text.
_ODD = "'blob' in (typeof(assigned_at), typeof(purpose), typeof(model_id), typeof(actor_id))"
_NEWEST = (
    f"select {_COLUMNS} from llm_assignments "
    f"where id in (select max(id) from llm_assignments where not {_ODD} group by purpose)"
)
_NONE: Mapping[str, Assignment] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Assignment:
    """A choice that was made for a purpose.

    Attributes:
        id: counts up; the newest choice of a purpose is the one that counts.
        assigned_at: the time in UTC, as `2026-01-31T12:00:00.000Z`.
        purpose: the purpose.
        model_id: the model; None for "back to the configuration".
        actor_id: the id of the actor who chose, or None.
    """

    id: int
    assigned_at: str
    purpose: str
    model_id: str | None
    actor_id: str | None


class Assignments:
    """The assignments of one Datasette instance.

    Attributes:
        current: the newest choice for each purpose that has one; replaced, never changed.
        failure: why they cannot be read at the moment; None when they can.
    """

    def __init__(self) -> None:
        self.current: Mapping[str, Assignment] = _NONE
        self.failure: str | None = None
        self._has_table = False
        self._newest_id = 0

    async def load(self, datasette: Datasette) -> None:
        """Create the table if it is missing, and read the rows that count.

        If the database cannot be used, `failure` says why, and it is logged once.

        Raises:
            NewerDatabaseError: a newer version of datasette-llm has changed the tables.
        """
        try:
            await self._make_table(datasette)
            database = datasette.get_internal_database()
            self._take(await database.execute_fn(partial(newest_rows, unless=self._newest_id)))
        except sqlite3.Error as error:
            if self.failure is None:
                logger.error("The models assigned to purposes cannot be read: %s", error)
            self.failure = str(error)
        else:
            if self.failure is not None:
                logger.warning("The models assigned to purposes can be read again")
            self.failure = None

    async def assign(
        self, datasette: Datasette, purpose: str, model_id: str | None, actor_id: str | None
    ) -> None:
        """Assign a model to a purpose; it counts for every prompt from now on.

        Args:
            datasette: the Datasette instance.
            purpose: the purpose.
            model_id: a canonical id; None to go back to the configuration.
            actor_id: the id of the actor who chooses, or None.

        Raises:
            UnicodeEncodeError: SQLite cannot hold one of these texts.
            NewerDatabaseError: a newer version of datasette-llm has changed the tables.
            sqlite3.Error: the database cannot be written; nothing has changed.
        """
        row = (now(), purpose, model_id, actor_id)
        # Shielded: a cancelled caller must not lose a row that may have been written.
        await asyncio.shield(self._write(datasette, row))

    async def follow(self, datasette: Datasette) -> None:
        """Read the rows that count every `REREAD_S`, for as long as Datasette runs."""
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                await self.load(datasette)
            except DatasetteClosedError:
                return
            except NewerDatabaseError as error:
                # Only if the database could not be read at startup.
                self.failure = str(error)
                logger.error("%s", error)
                return

    async def _make_table(self, datasette: Datasette) -> None:
        if not self._has_table:
            database = datasette.get_internal_database()
            await database.execute_write_fn(_update_table)
            self._has_table = True

    async def _write(self, datasette: Datasette, row: tuple[str | None, ...]) -> None:
        await self._make_table(datasette)

        def insert(connection: sqlite3.Connection) -> list[Assignment]:
            connection.execute(_INSERT, row)
            return newest_rows(connection)

        self._take(await datasette.get_internal_database().execute_write_fn(insert))
        self.failure = None

    def _take(self, rows: list[Assignment]) -> None:
        newest_id = max((row.id for row in rows), default=0)
        # Rows that were read before another choice was written may arrive after it.
        if newest_id > self._newest_id:
            chosen = {row.purpose: row for row in rows if row.model_id is not None}
            self._newest_id, self.current = newest_id, MappingProxyType(chosen)


async def history(datasette: Datasette) -> list[Assignment]:
    """The latest choices for all purposes, at most `HISTORY_ROWS`, the newest first.

    Raises:
        sqlite3.Error: the database cannot be read.
    """
    sql = (
        f"select {_COLUMNS} from llm_assignments where not {_ODD} "
        f"order by id desc limit {HISTORY_ROWS}"
    )
    rows: list[Assignment] = await datasette.get_internal_database().execute_fn(
        lambda connection: _rows(connection, sql)
    )
    return rows


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
    append_only(db, "llm_assignments")


def newest_rows(connection: sqlite3.Connection, unless: int | None = None) -> list[Assignment]:
    """The newest choice of each purpose; nothing if `unless` is the newest id of all."""
    newest = f"select max(id) from llm_assignments where not {_ODD}"
    (newest_id,) = connection.execute(newest).fetchone()
    return [] if newest_id == unless else _rows(connection, _NEWEST)


def _rows(connection: sqlite3.Connection, sql: str) -> list[Assignment]:
    return [Assignment(*row) for row in connection.execute(sql)]


def _update_table(connection: sqlite3.Connection) -> None:
    migrate(connection, migrations, "llm_assignments")
    _warn_of_odd_rows(connection)


def _warn_of_odd_rows(connection: sqlite3.Connection) -> None:
    sql = f"select id from llm_assignments where {_ODD} limit {HISTORY_ROWS}"
    for (each,) in connection.execute(sql):
        logger.warning("The row %d of llm_assignments is ignored, since it has bytes", each)

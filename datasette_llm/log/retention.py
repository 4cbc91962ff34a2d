"""Retention: the only way to remove calls from the log, those older than `log.keep_days`.

Each removal is a row of `llm_log_removals`, which SQLite checks; triggers prevent all other
deletions. A running call keeps its row, whatever its age, since its outcome and cost are still to
be written. Once its process has ended or closed its session, the row is removed by its age like
others. Consultations and evaluations are removed by their age, too.

A clock that jumped ahead must not remove anything: the age counts from the newest call where that
is older than the clock, and a clock that has jumped is not trusted before it has run steadily for
a day.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from .. import instance
from ..sanitize import now
from . import evaluation_removal, search
from .evaluation_removal import Sweeper
from .queries import id_at
from .schema import REMOVABLE, newest_ms

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .writer import Writer

logger = logging.getLogger("datasette_llm")

INTERVAL_S = 3600.0
# After a failure, such as a database that another process has locked.
RETRY_S = 60.0
# Small enough not to delay calls that wait for their row: about 0.4 seconds with 100 KB of content
# a call, since SQLite overwrites deleted content.
MAX_BATCH = 250
# Between two transactions, for other processes: one that waits for SQLite's lock tries every
# 100 ms.
PAUSE_S = 0.1
DAY_MS = 24 * 60 * 60 * 1000
# What corrects a clock that runs well, from one look to the next.
STEADY_MS = 60_000

_CALLS = f"select 0 as kind, id from llm_calls where id < :below and {REMOVABLE}"
_CONSULTATIONS = "select 1 as kind, id from llm_consultations where id < :below"
_EVALUATIONS = "select 2 as kind, id from llm_evaluations where id < :below"
_HAS_EVALUATIONS = "select 1 from sqlite_master where name = 'llm_evaluations'"
_HAS_CONSULTATIONS = "select 1 from sqlite_master where name = 'llm_consultations'"


async def keep(datasette: Datasette, *, writer: Writer, keep_days: int) -> None:
    """Remove old calls, now and then every hour, as long as Datasette runs.

    Args:
        datasette: the Datasette instance, which supervises this as a background task.
        writer: the writer of its call log, which creates the tables.
        keep_days: how many days calls are kept.
    """
    failed = False
    clock = Clock(keep_days)
    while True:
        try:
            await writer.prepare()
            database = datasette.get_internal_database()
            if clock.is_trusted(*await database.execute_fn(clock.newest)):
                await remove(datasette, first_kept_id(keep_days), keep_days)
        except DatasetteClosedError:
            return  # closed without a shutdown, which would have cancelled this task
        except sqlite3.Error as error:
            if not failed:
                logger.error("Old calls cannot be removed from the LLM call log: %s", error)
            failed = True
        else:
            failed = False
        await asyncio.sleep(RETRY_S if failed else INTERVAL_S)


class Clock:
    """Whether the clock can be trusted to say what is old.

    Not after a jump of more than `keep_days`, until it has run as steadily as the monotonic clock
    for a day. From before this process a jump shows as a gap in the call log, as does a site that
    no one used.
    """

    def __init__(self, keep_days: int) -> None:
        """
        Args:
            keep_days: how many days calls are kept.
        """
        self._keep_ms = keep_days * DAY_MS
        self._wall_ms = self._now_ms()
        self._monotonic_ms = self._steady_since_ms = time.monotonic() * 1000
        self._jumped_ms = 0.0  # in all, since it was last steady for a day
        self._jumped = False
        self._warned = False

    def newest(self, connection: sqlite3.Connection) -> tuple[int | None, int | None]:
        """When the newest call began, and the newest of those that are older than a day.

        Args:
            connection: a connection for reading.

        Returns:
            Both in milliseconds since 1970; None where there is none.
        """
        day_ago = id_at(self._now_ms() - DAY_MS)
        sql = f"select {newest_ms()}, {newest_ms(':day_ago')}"
        row = connection.execute(sql, {"day_ago": day_ago}).fetchone()
        return row[0], row[1]

    def is_trusted(self, newest: int | None, older: int | None) -> bool:
        """Whether the clock can be trusted now; warns once each time that it cannot.

        Args:
            newest: as from `newest()`.
            older: likewise.
        """
        wall_ms, monotonic_ms = self._now_ms(), time.monotonic() * 1000
        jump_ms = (wall_ms - self._wall_ms) - (monotonic_ms - self._monotonic_ms)
        self._wall_ms, self._monotonic_ms = wall_ms, monotonic_ms
        if abs(jump_ms) > STEADY_MS:
            self._steady_since_ms = monotonic_ms
        self._jumped_ms += jump_ms
        if abs(self._jumped_ms) > self._keep_ms:
            self._jumped, self._warned, self._jumped_ms = True, False, 0.0
        steady = monotonic_ms - self._steady_since_ms >= DAY_MS
        if steady:
            self._jumped, self._jumped_ms = False, 0.0
        gap = _is_gap(wall_ms, newest, self._keep_ms) or _is_gap(
            wall_ms, older, self._keep_ms + DAY_MS
        )
        trusted = steady or not (self._jumped or gap)
        if not trusted and not self._warned:
            logger.warning(
                "The clock has jumped by more than log.keep_days, or there were no calls for that "
                "long. Nothing is removed from the LLM call log before the clock has run steadily "
                "for 24 hours"
            )
            self._warned = True
        return trusted

    def _now_ms(self) -> int:
        return int(time.time() * 1000)


def _is_gap(wall_ms: int, call_ms: int | None, longest_ms: int) -> bool:
    return call_ms is not None and wall_ms - call_ms > longest_ms


async def remove(datasette: Datasette, below_id: str, keep_days: int) -> int:
    """Remove what has smaller ids in bounded transactions, and see that the rest of evaluations go.

    Args:
        datasette: the Datasette instance, whose internal database has the call log.
        below_id: the first id that stays.
        keep_days: the setting, for the table of removals.

    Returns:
        How many calls, consultations and evaluations were removed.

    Raises:
        sqlite3.Error: the database cannot be written; earlier removals are committed.
    """
    database = datasette.get_internal_database()
    total = 0
    while True:
        removed: int = await database.execute_write_fn(
            lambda connection: remove_batch(connection, below_id, keep_days)
        )
        total += removed
        if removed < MAX_BATCH:
            instance.of(datasette, Sweeper).wake()
            return total
        await asyncio.sleep(PAUSE_S)


def remove_batch(connection: sqlite3.Connection, below_id: str, keep_days: int) -> int:
    """Remove the oldest rows with smaller ids, `MAX_BATCH` at most, and note the removal.

    Args:
        connection: a connection for writing, in a transaction.
        below_id: the first id that stays; an earlier one does where the newest call is older than
            the clock.
        keep_days: the setting, for the table of removals.

    Returns:
        How many rows were removed; fewer than `MAX_BATCH` if there are no more.
    """
    (newest,) = connection.execute(f"select {newest_ms()}").fetchone()
    if newest is not None:
        below_id = min(below_id, id_at(newest - keep_days * DAY_MS))
    old = _CALLS
    has_consultations = connection.execute(_HAS_CONSULTATIONS).fetchone()
    if has_consultations:
        old += f" union all {_CONSULTATIONS}"
    has_evaluations = connection.execute(_HAS_EVALUATIONS).fetchone()
    if has_evaluations:
        old += f" union all {_EVALUATIONS}"
    values = {"below": below_id, "limit": MAX_BATCH + 1}
    found = connection.execute(f"{old} order by id limit :limit", values).fetchall()
    batch = found[:MAX_BATCH]
    if not batch:
        return 0
    # Not every SQLite does so by default; deleted text would stay readable in the file.
    connection.execute("pragma secure_delete = on")
    # The first of the next batch, or the first that stays.
    below = found[MAX_BATCH][1] if len(found) > MAX_BATCH else below_id
    calls = sum(kind == 0 for kind, _ in batch)
    # Its trigger removes the calls.
    connection.execute(
        "insert into llm_log_removals (removed_at, below_id, call_count, keep_days) "
        "values (?, ?, ?, ?)",
        (now(), below, calls, keep_days),
    )
    search.remove(connection, below)
    if has_consultations:
        connection.execute("delete from llm_consultations where id < ?", (below,))
    if has_evaluations:
        evaluation_removal.remove_old(connection, below, keep_days)
    return len(batch)


def first_kept_id(keep_days: int) -> str:
    """The smallest id that a call of the last `keep_days` days can have."""
    return id_at(int(time.time() * 1000) - keep_days * DAY_MS)

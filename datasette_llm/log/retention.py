"""Retention: the only way to remove calls from the log, those older than `log.keep_days`.

Each removal is first noted in `llm_log_removals`, in the same transaction; triggers prevent all
other deletions. A running call keeps its row, whatever its age, since its outcome and cost are
still to be written. Once its process has ended or closed its session, the row is removed by its
age like others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..sanitize import now
from .queries import id_at

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

_REMOVABLE = "(outcome is not null or session_id not in (select id from llm_log_sessions))"


async def keep(datasette: Datasette, *, writer: Writer, keep_days: int) -> None:
    """Remove old calls, now and then every hour, as long as Datasette runs.

    Args:
        datasette: the Datasette instance, which supervises this as a background task.
        writer: the writer of its call log, which creates the tables.
        keep_days: how many days calls are kept.
    """
    failed = False
    while True:
        try:
            await writer.prepare()
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


async def remove(datasette: Datasette, below_id: str, keep_days: int) -> int:
    """Remove the calls with smaller ids, in transactions of a bounded size.

    Args:
        datasette: the Datasette instance, whose internal database has the call log.
        below_id: the first id that stays.
        keep_days: the setting, for the table of removals.

    Returns:
        How many calls were removed.

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
            return total
        await asyncio.sleep(PAUSE_S)


def remove_batch(connection: sqlite3.Connection, below_id: str, keep_days: int) -> int:
    """Remove the oldest calls with smaller ids, `MAX_BATCH` at most, and note the removal.

    Args:
        connection: a connection for writing, in a transaction.
        below_id: the first id that stays.
        keep_days: the setting, for the table of removals.

    Returns:
        How many calls were removed; fewer than `MAX_BATCH` if there are no more.
    """
    ids = [
        row[0]
        for row in connection.execute(
            f"select id from llm_calls where id < ? and {_REMOVABLE} order by id limit ?",
            (below_id, MAX_BATCH + 1),
        )
    ]
    count = min(len(ids), MAX_BATCH)
    if not count:
        return 0
    # Not every SQLite does so by default; deleted text would stay readable in the file.
    connection.execute("pragma secure_delete = on")
    # The first of the next batch, or the first that stays.
    below = ids[MAX_BATCH] if len(ids) > MAX_BATCH else below_id
    connection.execute(
        "insert into llm_log_removals (removed_at, below_id, call_count, keep_days) "
        "values (?, ?, ?, ?)",
        (now(), below, count, keep_days),
    )
    connection.execute(f"delete from llm_calls where id < ? and {_REMOVABLE}", (below,))
    connection.execute(
        "delete from llm_call_content where call_id < ? "
        "and call_id not in (select id from llm_calls where id < ?)",
        (below, below),
    )
    return count


def first_kept_id(keep_days: int) -> str:
    """The smallest id that a call of the last `keep_days` days can have."""
    return id_at(int(time.time() * 1000) - keep_days * DAY_MS)

"""Remove what belonged to removed evaluations, in transactions that hold the writer for a moment.

The removal of an evaluation is a row of `llm_evaluation_removals`, whose trigger removes its own
row: from then on it cannot be seen. Its cases and answers may be many, and go afterwards; what a
process leaves that ends meanwhile, the next one removes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..sanitize import now

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# The tables with what belongs to an evaluation, each with a column that tells its rows apart.
PARTS: Mapping[str, str] = {
    "llm_evaluation_verdicts": "id",
    "llm_evaluation_judgings": "id",
    "llm_evaluation_answers": "rowid",
    "llm_evaluation_cases": "number",
}
# How long one transaction removes rows, and how many at a time at most: SQLite overwrites deleted
# text.
SLICE_S = 0.05
ROWS = 50
# Between two transactions, for other processes, as in `retention`.
PAUSE_S = 0.1
RETRY_S = 60.0
_PENDING = f"""
    select distinct evaluation_id from llm_evaluation_removals as r
    where {
    " or ".join(
        f"exists (select 1 from {table} where evaluation_id = r.evaluation_id)" for table in PARTS
    )
}
"""
# One look at the index for each evaluation; reading all of their cases would take long.
_UNFINISHED = """
    with recursive made (id) as (
        select min(evaluation_id) from llm_evaluation_cases where evaluation_id < :below
        union all
        select (
            select min(evaluation_id) from llm_evaluation_cases
            where evaluation_id > made.id and evaluation_id < :below
        ) from made where made.id is not null
    )
    select id from made where id is not null
        and not exists (select 1 from llm_evaluation_removals where evaluation_id = made.id)
"""


class Sweeper:
    """Waits for removals of a Datasette instance."""

    def __init__(self) -> None:
        self._removed = asyncio.Event()

    def wake(self) -> None:
        """Have the rest of what was removed be removed."""
        self._removed.set()

    async def keep(self, datasette: Datasette) -> None:
        """Remove the rest of removed evaluations, as long as Datasette runs.

        Args:
            datasette: the Datasette instance, which supervises this as a background task.
        """
        while True:
            self._removed.clear()
            try:
                await sweep(datasette)
            except DatasetteClosedError:
                return  # closed without a shutdown, which would have cancelled this task
            except sqlite3.Error as error:
                logger.error("What removed evaluations have left cannot be removed: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            await self._removed.wait()


def remove_old(connection: sqlite3.Connection, below: str, keep_days: int) -> None:
    """Note the removal of all evaluations with smaller ids, and of those not made to their end.

    Args:
        connection: a connection for writing, in a transaction.
        below: the first id that stays.
        keep_days: the setting, for the table of removals.
    """
    for ids in ("select id from llm_evaluations where id < :below", _UNFINISHED):
        connection.execute(
            "insert into llm_evaluation_removals (removed_at, evaluation_id, keep_days) "
            f"select :at, id, :keep_days from ({ids})",
            {"at": now(), "keep_days": keep_days, "below": below},
        )


async def sweep(datasette: Datasette) -> None:
    """Remove the rest of all removed evaluations, in bounded transactions.

    Args:
        datasette: the Datasette instance.

    Raises:
        sqlite3.Error: the database cannot be read or written; earlier removals are committed.
    """
    database = datasette.get_internal_database()
    for evaluation_id in await database.execute_fn(_pending):
        more = True
        while more:
            more = await database.execute_write_fn(partial(_remove_slice, evaluation_id))
            await asyncio.sleep(PAUSE_S)


def _pending(connection: sqlite3.Connection) -> list[str]:
    """The removed evaluations of which there still is something."""
    sql = "select count(*) from sqlite_master where type = 'table' and name in ({})".format(
        ", ".join(f"'{table}'" for table in PARTS)
    )
    if connection.execute(sql).fetchone()[0] < len(PARTS):
        return []
    return [evaluation_id for (evaluation_id,) in connection.execute(_PENDING)]


def _remove_slice(evaluation_id: str, connection: sqlite3.Connection) -> bool:
    """Remove rows for a moment; whether there are more."""
    # Not every SQLite does so by default; deleted text would stay readable in the file.
    connection.execute("pragma secure_delete = on")
    end_s = time.perf_counter() + SLICE_S
    rows = 1  # at first, since each may be a megabyte
    for table, key in PARTS.items():
        some = f"select {key} from {table} where evaluation_id = :id limit :rows"
        sql = f"delete from {table} where evaluation_id = :id and {key} in ({some})"
        began_s = time.perf_counter()
        while connection.execute(sql, {"id": evaluation_id, "rows": rows}).rowcount:
            now_s = time.perf_counter()
            if now_s > end_s:
                return True
            rows = min(2 * rows, ROWS) if now_s - began_s < SLICE_S / 4 else max(1, rows // 2)
            began_s = now_s
    return False

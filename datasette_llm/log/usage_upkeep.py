"""Adds up past hours, days and months of the call log, in the background.

Longer periods are made of shorter ones. A period is announced before its calls are read, so that
a trigger takes the announcement back if any of them changes meanwhile; only a period that is still
announced when its sums are written becomes complete.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from ..errors import NewerDatabaseError
from . import queries
from .queries import first_id, time_of
from .usage import Reader
from .usage_schema import COLUMNS, DAY, SUMS, UNITS, Unit, ceiling, floor, is_kept, migrate

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

INTERVAL_S = 60.0
# Calls that began before the end of a period may be written a little later.
GRACE = datetime.timedelta(minutes=2)
# Of older days only the day is kept; hours of them are added up when they are asked for.
KEPT_HOURS = 8 * DAY
# A call that runs for longer is no reason to wait with its period.
LONG_RUNNING = DAY
MAX_ROWS = 500  # that are written in one transaction, since calls wait for it
PAUSE_S = 0.01

_INSERT = (
    "insert into llm_log_sums (period_id, with_actor, number, "
    f"{', '.join((*COLUMNS.values(), *SUMS))}) "
    f"values ({', '.join('?' * (3 + len(COLUMNS) + len(SUMS)))})"
)
# Steps from one id to the next, however many rows each has.
_UNUSED = """
    with recursive found(id) as (
        select min(period_id) from llm_log_sums
        union all
        select (select min(period_id) from llm_log_sums where period_id > found.id)
        from found where found.id is not null
    )
    select id from found
    where id is not null and id not in (select id from llm_log_periods)
"""


class Period(NamedTuple):
    """An hour, a day or a month."""

    unit: Unit
    begin: datetime.datetime
    end: datetime.datetime


async def keep(datasette: Datasette) -> None:
    """Add up past periods, now and then every minute, as long as Datasette runs."""
    failed = False
    upkeep = Upkeep(datasette)
    while True:
        try:
            await upkeep.update(datetime.datetime.now(datetime.UTC))
        except DatasetteClosedError:
            return
        except (sqlite3.Error, NewerDatabaseError) as error:
            if not failed:
                logger.error("The usage of the LLM call log cannot be added up: %s", error)
            failed = True
        else:
            failed = False
        await asyncio.sleep(INTERVAL_S)


class Upkeep:
    """Adds up the past periods of a Datasette instance's call log."""

    def __init__(self, datasette: Datasette) -> None:
        self._database = datasette.get_internal_database()
        self._unused: set[int] = set()  # a reader may still need them
        self._ready = False

    async def update(self, now: datetime.datetime) -> None:
        """Add up what is past and not yet known, hours before days before months.

        Raises:
            sqlite3.Error: the database cannot be read or written.
            NewerDatabaseError: a newer version of datasette-llm has changed the tables.
        """
        if not await self._database.execute_fn(queries.has_tables):
            return
        # Also while Datasette runs, a program may drop the tables.
        if not (self._ready and await self._database.execute_fn(is_kept)):
            await self._database.execute_write_fn(migrate)
            self._ready = True
        await self._remove_old(now)
        for unit in reversed(UNITS):
            for period in await self._database.execute_fn(partial(_missing, unit=unit, now=now)):
                await self._add_up(period, now)
                await asyncio.sleep(PAUSE_S)

    async def _add_up(self, period: Period, now: datetime.datetime) -> None:
        number = await self._database.execute_write_fn(partial(_announce, period=period))
        rows = await self._database.execute_fn(
            partial(_rows, number=number, period=period, now=now)
        )
        for place in range(0, len(rows), MAX_ROWS):
            part = rows[place : place + MAX_ROWS]
            await self._database.execute_write_fn(partial(_write, rows=part))
            await asyncio.sleep(PAUSE_S)
        await self._database.execute_write_fn(partial(_complete, number=number))

    async def _remove_old(self, now: datetime.datetime) -> None:
        """Remove hours that are old, and sums of periods that have changed a while ago."""
        unused = {row[0] for row in await self._database.execute(_UNUSED)}
        removed, self._unused = self._unused & unused, unused
        before = first_id(now - KEPT_HOURS)
        await self._database.execute_write_fn(partial(_remove, numbers=removed, before=before))


def _missing(connection: sqlite3.Connection, unit: Unit, now: datetime.datetime) -> list[Period]:
    """The periods of a unit that have calls, are over and not added up, the newest first."""
    first = now - KEPT_HOURS if unit == "hour" else _oldest(connection)
    sql = "select start_id, end_id from llm_log_periods where complete"
    known = {(start, end) for start, end in connection.execute(sql)}
    return [
        period
        for period in _past(connection, unit, first, floor(unit, now - GRACE))
        if (first_id(period.begin), first_id(period.end)) not in known
        and not _still_changes(connection, period, now)
    ]


def _past(
    connection: sqlite3.Connection, unit: Unit, first: datetime.datetime, end: datetime.datetime
) -> Iterator[Period]:
    sql = "select max(id) from llm_calls where id >= ? and id < ?"
    while end > first:
        (newest,) = connection.execute(sql, [first_id(first), first_id(end)]).fetchone()
        if newest is None:
            return
        begin = floor(unit, time_of(newest))
        yield Period(unit, begin, ceiling(unit, begin))
        end = begin


def _oldest(connection: sqlite3.Connection) -> datetime.datetime:
    (oldest,) = connection.execute("select min(id) from llm_calls").fetchone()
    return time_of(oldest or "")


def _still_changes(connection: sqlite3.Connection, period: Period, now: datetime.datetime) -> bool:
    """Whether retention has begun to remove the period, or one of its calls is to end soon."""
    sql = "select below_id from llm_log_removals order by id desc limit 1"
    removed = connection.execute(sql).fetchone()
    if removed and first_id(period.begin) < removed[0]:
        return True
    if period.end < now - LONG_RUNNING:
        return False
    sql = "select exists (select 1 from llm_calls where outcome is null and id >= ? and id < ?)"
    ids = [first_id(period.begin), first_id(period.end)]
    return bool(connection.execute(sql, ids).fetchone()[0])


def _announce(connection: sqlite3.Connection, period: Period) -> int:
    ids = [first_id(period.begin), first_id(period.end)]
    connection.execute("delete from llm_log_periods where start_id = ? and end_id = ?", ids)
    sql = "insert into llm_log_periods (unit, start_id, end_id) values (?, ?, ?)"
    return int(connection.execute(sql, [period.unit, *ids]).lastrowid or 0)


def _rows(
    connection: sqlite3.Connection, number: int, period: Period, now: datetime.datetime
) -> list[tuple[object, ...]]:
    """The rows of `llm_log_sums` for a period."""
    reader = Reader(connection, now)
    return [
        (number, with_actor, place, *row)
        for with_actor in (False, True)
        for place, row in enumerate(reader.full(period.begin, period.end, with_actor=with_actor))
    ]


def _write(connection: sqlite3.Connection, rows: list[tuple[object, ...]]) -> None:
    connection.executemany(_INSERT, rows)


def _complete(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("update llm_log_periods set complete = 1 where id = ?", [number])


def _remove(connection: sqlite3.Connection, numbers: set[int], before: str) -> None:
    for number in numbers:
        connection.execute("delete from llm_log_sums where period_id = ?", [number])
    sql = "delete from llm_log_periods where unit = 'hour' and end_id <= ?"
    connection.execute(sql, [before])

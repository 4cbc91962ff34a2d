"""What the pages of the record show, as their JSON twins give it; the pages only format it."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from datasette.utils.sqlite import sqlite3
from datasette.views.base import DatasetteError

from ... import instance
from ...access.snapshot import settings_of
from ...log import queries, totals
from ...log.queries import Filter
from ...log.recorder import Recorder
from ...log.totals import Aggregate, dollars
from ...log.totals_cache import QueryCache
from .chart import Chart
from .list_request import LogListRequest, fingerprint

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...log.writer import Writer

logger = logging.getLogger("datasette_llm")

T = TypeVar("T")
Row = dict[str, Any]

MAX_STEPS = 200
# Of a model and 9 fallbacks with 20 retries each, which nobody waits for.
MAX_ATTEMPTS = 210
GROUP_ROWS = 20
# Long enough for a commit, and no longer than somebody waits for a page.
FLUSH_S = 2.0


# The list


async def list_payload(
    datasette: Datasette, wanted: LogListRequest
) -> tuple[dict[str, Any], Chart | None]:
    """A page of calls, and on the first one the totals and the chart of the filter.

    Returns:
        What JSON has, and the chart in it as an object, to draw it; None where there is none.
    """
    status = await record_status(datasette)
    now = datetime.datetime.now(datetime.UTC)
    covered = totals.with_days(wanted.filter, now)
    page = read(datasette, lambda connection: _page(connection, wanted))
    if wanted.before is not None:
        return status | _listed(wanted, await page) | _NO_SUMS, None
    kept = instance.of(datasette, QueryCache)
    found, days = await asyncio.gather(
        page, read(datasette, lambda c: totals.totals(c, covered, wanted.by, now, kept))
    )
    days = days or totals.Days(Aggregate(), {}, earlier=False)
    chart = Chart.of(days, wanted.by, wanted.measure)
    sums = {
        "covered": _covered(wanted.filter, covered),
        "totals": days.total.summary() | days.latency(),
        "chart": chart.payload(),
    }
    return status | _listed(wanted, found) | sums, chart


async def choices(datasette: Datasette) -> dict[str, dict[str, Any]]:
    """What can be chosen in the filters; see `totals.choices`."""
    return await read(datasette, totals.choices) or NO_CHOICES


NO_CHOICES: dict[str, dict[str, Any]] = {
    name: {"values": [], "more": False, "none": False} for name in totals.CHOICE_COLUMNS
}
_EMPTY_PAGE: Row = {"rows": [], "next": None, "choices": NO_CHOICES}
_NO_SUMS: Row = {"covered": None, "totals": None, "chart": None}


def _page(connection: sqlite3.Connection, wanted: LogListRequest) -> Row:
    limit = wanted.limit
    rows = queries.calls(connection, wanted.filter, before=wanted.before, limit=limit + 1)
    more = len(rows) > limit
    return {
        "rows": [with_dollars(row) for row in rows[:limit]],
        "next": f"{fingerprint(wanted.filter)}-{rows[limit - 1]['id']}" if more else None,
        "choices": totals.choices(connection),
    }


def _listed(wanted: LogListRequest, page: Row | None) -> Row:
    filters = {name: value for name, value in asdict(wanted.filter).items() if value is not None}
    return {"filter": filters} | (page or _EMPTY_PAGE)


def _covered(wanted: Filter, covered: Filter) -> Row:
    return {
        "since": covered.since,
        "until": covered.until,
        "default_days": totals.DEFAULT_DAYS if covered != wanted else None,
    }


def with_dollars(row: Row) -> Row:
    """A call, with its cost in dollars too."""
    return row | {"cost_dollars": dollars(row["cost_nanodollars"])}


# One call


async def call_payload(datasette: Datasette, call_id: str) -> dict[str, Any] | None:
    """One call with its group, its chain's steps, its response's attempts and its content.

    None where there is no call with this id.
    """
    status = await record_status(datasette)
    found = await read(datasette, lambda connection: _call(connection, call_id))
    return status | found if found else None


def _call(connection: sqlite3.Connection, call_id: str) -> Row | None:
    row = queries.call(connection, call_id)
    if row is None:
        return None
    attempts = queries.attempts(connection, row["prompt_id"] or row["id"], limit=MAX_ATTEMPTS)
    steps: list[Row] = []
    if row["chain_id"]:
        steps = queries.chain_steps(connection, row["chain_id"], limit=MAX_STEPS + 1)
    return {
        "call": with_dollars(row),
        # One alone is no list, but where retention has removed those before it.
        "attempts": [with_dollars(each) for each in attempts if attempts[-1]["attempt"] != 1],
        "group": _group(connection, row["group_id"]) if row["group_id"] else None,
        "chain": [with_dollars(step) for step in steps[:MAX_STEPS]],
        "chain_has_more": len(steps) > MAX_STEPS,
        "content": _content(queries.content(connection, call_id)),
    }


def _group(connection: sqlite3.Connection, group_id: str) -> Row | None:
    wanted = Filter(group=group_id)
    first = queries.first_call(connection, wanted)
    if not first:
        return None  # retention has removed it since its call was read
    rows = queries.calls(connection, wanted, limit=GROUP_ROWS)
    return {
        "id": group_id,
        "since": queries.time_of(first).date().isoformat(),
        "totals": totals.tally(connection, wanted).summary(),
        "rows": [with_dollars(row) for row in rows],
    }


def _content(parts: Mapping[str, str]) -> Row | None:
    return {part: _parsed(text) for part, text in parts.items()} if parts else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# The state of the record


async def record_status(datasette: Datasette) -> dict[str, Any]:
    """Whether calls are recorded, and what is wrong with that, once all that waits is written."""
    writer = Recorder.of(datasette).writer
    in_time = await flushed(writer)
    log = (await settings_of(datasette)).log
    return {
        "ok": True,
        "recording": log is not None,
        "content_recorded": log is not None and log.content,
        "warnings": list(_warnings(writer, in_time)),
    }


async def flushed(writer: Writer) -> bool:
    """Wait until what was given to the writer is written; not for long.

    Returns:
        Whether that was so in time.
    """
    try:
        async with asyncio.timeout(FLUSH_S):
            await writer.flush()
    except TimeoutError:
        return False
    return True


def _warnings(writer: Writer, in_time: bool) -> Iterator[str]:
    if writer.failure is not None:
        yield (
            f"The record cannot be written at the moment ({writer.failure}). What is new is "
            "kept in memory and tried again; it is missing here."
        )
    elif not in_time:
        yield "The record is still being written, so the newest calls may be missing here."
    if writer.dropped:
        yield (
            f"Calls are missing for good: {writer.dropped:,} writes were given up, because too "
            "many waited while the record could not be written."
        )


async def read(datasette: Datasette, work: Callable[[sqlite3.Connection], T]) -> T | None:
    """What some work finds in the record; None where there is none.

    Args:
        datasette: the Datasette instance whose record is read.
        work: called in a reading thread with a connection.

    Raises:
        DatasetteError: SQLite cannot read it; Datasette shows this with a status of 503.
    """

    def in_thread(connection: sqlite3.Connection) -> T | None:
        return work(connection) if queries.has_record(connection) else None

    try:
        found = await datasette.get_internal_database().execute_fn(in_thread)
    except sqlite3.Error as error:
        logger.error("The record of LLM calls cannot be read: %s", error)
        raise DatasetteError(
            f"The internal database cannot be read at the moment ({error}). Calls to models go "
            "on meanwhile, unless the record is required. Try again in a while; if this stays, "
            "look whether another program holds the file, and whether its disk works.",
            title="The record cannot be read",
            status=503,
        ) from error
    # Datasette has no types; it returns what the function does.
    return cast("T | None", found)

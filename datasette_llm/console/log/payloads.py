"""The payloads of the call log's pages and JSON; the pages only format them."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from datasette.utils.sqlite import sqlite3
from datasette.views.base import DatasetteError

from ...access.snapshot import settings_of
from ...consultant.advice.consultation import PURPOSE
from ...consultant.advice.store import tables_of_call
from ...consultant.table_access import may_view
from ...log import queries, totals
from ...log.queries import Filter
from ...log.recorder import Recorder
from ...log.totals import dollars
from ...log.usage import Reader, totals_of
from ...log.usage_schema import DAY, floor
from .list_request import LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...consultant.table_access import Actor
    from ...log.writer import Writer

logger = logging.getLogger("datasette_llm")

T = TypeVar("T")
Row = dict[str, Any]

MAX_STEPS = 200
# A model and 9 fallbacks with 20 retries each; more are not to be expected.
MAX_ATTEMPTS = 210
GROUP_ROWS = 20
# Of the totals, unless the filter names a time.
DEFAULT_DAYS = 30


# The list


async def list_payload(datasette: Datasette, list_request: LogListRequest) -> dict[str, Any]:
    """A page of calls, and on the first page the totals of the filter."""
    status = await log_status(datasette)
    now = datetime.datetime.now(datetime.UTC)
    covered = _with_days(list_request.filter, now)
    page = read(datasette, lambda connection: _page(connection, list_request))
    if list_request.before is not None:
        return status | _listed(list_request, await page) | _NO_SUMS
    limit_ms = datasette.setting("sql_time_limit_ms")
    found, sums = await asyncio.gather(
        page,
        read(datasette, lambda c: _sums(Reader(c, now, limit_ms), list_request.filter, covered)),
    )
    return status | _listed(list_request, found) | (sums or _NO_SUMS)


def _with_days(log_filter: Filter, now: datetime.datetime) -> Filter:
    """The filter for totals: the last `DEFAULT_DAYS` days, unless it names a time."""
    if log_filter.since is not None or log_filter.until is not None:
        return log_filter
    first = floor("day", now) - (DEFAULT_DAYS - 1) * DAY
    return replace(log_filter, since=first.date().isoformat())


def _sums(reader: Reader, given: Filter, covered: Filter) -> Row:
    return {
        "totals": totals_of(reader, covered),
        "covered": {
            "since": covered.since,
            "until": covered.until,
            "default_days": DEFAULT_DAYS if covered != given else None,
            # None where all calls of the time are counted.
            "complete_since": reader.cut.isoformat() if reader.cut else None,
        },
    }


async def choices(datasette: Datasette) -> dict[str, dict[str, Any]]:
    """The choices of the filters; see `totals.choices`."""
    return await read(datasette, totals.choices) or NO_CHOICES


NO_CHOICES: dict[str, dict[str, Any]] = {
    name: {"values": [], "more": False, "none": False} for name in totals.CHOICE_COLUMNS
}
_EMPTY_PAGE: Row = {"rows": [], "next": None, "choices": NO_CHOICES}
_NO_SUMS: Row = {"covered": None, "totals": None}


def _page(connection: sqlite3.Connection, list_request: LogListRequest) -> Row:
    limit, before = list_request.limit, list_request.before
    rows = queries.calls(connection, list_request.filter, before=before, limit=limit + 1)
    more = len(rows) > limit
    return {
        "rows": [with_dollars(row) for row in rows[:limit]],
        "next": rows[limit - 1]["id"] if more else None,
        "choices": totals.choices(connection),
    }


def _listed(list_request: LogListRequest, page: Row | None) -> Row:
    return {"filter": list_request.filter.given()} | (page or _EMPTY_PAGE)


def with_dollars(row: Row) -> Row:
    """A call with its cost in dollars, and with what its gateway says that it is."""
    names = ("cost", "gateway_cost", "saved")
    return row | {f"{each}_dollars": dollars(row[f"{each}_nanodollars"]) for each in names}


# One call


async def call_payload(datasette: Datasette, call_id: str, actor: Actor) -> Row | None:
    """One call with its group, chain, attempts and content; None if there is no such call.

    Of a consultation's call, content is only for an actor who may view the table.
    """
    status = await log_status(datasette)
    found = await read(datasette, lambda connection: _call(connection, call_id))
    if found is None:
        return None
    hidden = found["call"]["purpose"] == PURPOSE and not await _may_view(datasette, call_id, actor)
    return status | found | ({"content": None} if hidden else {}) | {"content_hidden": hidden}


async def _may_view(datasette: Datasette, call_id: str, actor: Actor) -> bool:
    """Whether an actor may view the tables of a consultation; False until it is stored."""
    tables = await tables_of_call(datasette, call_id)
    return bool(tables) and all([await may_view(datasette, actor, *table) for table in tables])


def _call(connection: sqlite3.Connection, call_id: str) -> Row | None:
    row = queries.call(connection, call_id)
    if row is None:
        return None
    attempts = queries.attempts(connection, row["prompt_id"] or row["id"], limit=MAX_ATTEMPTS)
    content = queries.content(connection, call_id)
    steps: list[Row] = []
    if row["chain_id"]:
        steps = queries.chain_steps(connection, row["chain_id"], limit=MAX_STEPS + 1)
    return {
        "call": with_dollars(row),
        # A first attempt alone is not listed; a later one alone is, after retention.
        "attempts": [with_dollars(each) for each in attempts if attempts[-1]["attempt"] != 1],
        "group": _group(connection, row["group_id"]) if row["group_id"] else None,
        "chain": [with_dollars(step) for step in steps[:MAX_STEPS]],
        "chain_has_more": len(steps) > MAX_STEPS,
        "content": _content(content),
        "content_chars": {part: len(text) for part, text in content.items()},
    }


def _group(connection: sqlite3.Connection, group_id: str) -> Row | None:
    log_filter = Filter(group=group_id)
    first = queries.first_call(connection, log_filter)
    if not first:
        return None  # retention has removed it since its call was read
    rows = queries.calls(connection, log_filter, limit=GROUP_ROWS)
    reader = Reader(connection, datetime.datetime.now(datetime.UTC))
    return {
        "id": group_id,
        "since": queries.time_of(first).date().isoformat(),
        "totals": totals_of(reader, log_filter),
        "rows": [with_dollars(row) for row in rows],
    }


def _content(parts: Mapping[str, str]) -> Row | None:
    return {part: _parsed(text) for part, text in parts.items()} if parts else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# The state of the call log


async def log_status(datasette: Datasette) -> dict[str, Any]:
    """Whether calls are recorded, and warnings about that; waits for pending writes."""
    writer = Recorder.of(datasette).writer
    in_time = await writer.flush_in_time()
    log = (await settings_of(datasette)).log
    return {
        "ok": True,
        "recording": log is not None,
        "content_recorded": log is not None and log.content,
        "warnings": list(_warnings(writer, in_time)),
    }


def _warnings(writer: Writer, in_time: bool) -> Iterator[str]:
    if writer.failure is not None:
        yield (
            f"The call log cannot be written at the moment ({writer.failure}). New calls are "
            "kept in memory and written later; they are missing here."
        )
    elif not in_time:
        yield "The call log is still being written, so the newest calls may be missing here."
    if writer.dropped or writer.dropped_contents:
        yield (
            f"Calls are lost: {writer.dropped:,} writes were dropped, and the contents of "
            f"{writer.dropped_contents:,} calls, because too much waited while the call log could "
            "not be written."
        )


async def read(datasette: Datasette, work: Callable[[sqlite3.Connection], T]) -> T | None:
    """Read from the call log; None if it has no tables yet.

    Args:
        datasette: the Datasette instance.
        work: called in a reading thread with a connection.

    Raises:
        DatasetteError: SQLite cannot read it; Datasette shows this with status 503.
    """

    def in_thread(connection: sqlite3.Connection) -> T | None:
        return work(connection) if queries.has_tables(connection) else None

    try:
        found = await datasette.get_internal_database().execute_fn(in_thread)
    except sqlite3.Error as error:
        logger.error("The LLM call log cannot be read: %s", error)
        raise DatasetteError(
            f"The internal database cannot be read at the moment ({error}). Calls to models "
            "continue, unless log.required is set. Try again later; if this persists, check "
            "whether another program locks the file, and whether its disk works.",
            title="The call log cannot be read",
            status=503,
        ) from error
    # Datasette has no types; execute_fn returns what the function returns.
    return cast("T | None", found)

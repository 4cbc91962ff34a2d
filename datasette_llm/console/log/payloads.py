"""The payloads of the call log's pages and JSON; the pages only format them."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from datasette.utils.sqlite import sqlite3
from datasette.views.base import DatasetteError

from ...access.snapshot import settings_of
from ...consultant.advice.consultation import PURPOSE
from ...consultant.advice.store import consultations_of_call
from ...consultant.table_access import may_analyze, may_view
from ...log import facets, folding, queries, search, totals
from ...log.facets import Facets
from ...log.folding import Fold
from ...log.listing import Listing
from ...log.listing import page as listing_page
from ...log.queries import Condition, Filter
from ...log.recorder import Recorder
from ...log.totals import dollars
from ...log.usage import Reader, totals_of
from ..running import running_call
from .list_request import LogListRequest, cursor_text
from .saved_views import saved_views
from .timeline import timeline

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
# Of the line of a prompt in the list.
PROMPT_CHARS = 100
# How much of the time that Datasette has for one facet all facets and totals together take.
FACETS_SHARE = 0.25


# The list


async def list_payload(
    datasette: Datasette, list_request: LogListRequest, actor: Actor
) -> dict[str, Any]:
    """A page of calls, and on the first page the totals and facets of the list.

    Args:
        datasette: the Datasette instance.
        list_request: which page.
        actor: whose saved views are part of it.
    """
    status = await log_status(datasette)
    listing = listing_of(list_request)
    limit_ms = datasette.setting("sql_time_limit_ms")
    page = read(datasette, lambda c: _page(c, list_request, listing, limit_ms))
    views = saved_views(datasette, actor)
    if list_request.cursor is not None:
        found, own = await asyncio.gather(page, views)
        return status | _listed(list_request, found) | _NO_SUMS | {"views": own}
    now = datetime.datetime.now(datetime.UTC)
    facets_ms = datasette.setting("facet_time_limit_ms") * FACETS_SHARE
    size = datasette.setting("default_facet_size")
    found, sums, own = await asyncio.gather(
        page,
        read(datasette, lambda c: _sums(facets.counted(c, listing, now, facets_ms), listing, size)),
        views,
    )
    return status | _listed(list_request, found) | (sums or _NO_SUMS) | {"views": own}


def listing_of(list_request: LogListRequest) -> Listing:
    """What to list."""
    log_filter = list_request.filter
    if list_request.search is not None:
        # Its content is for those who may view the table, see `call_payload`.
        only = Condition("purpose is not :consultant", (("consultant", PURPOSE),))
        log_filter = replace(log_filter, only=only)
    return Listing(
        log_filter,
        list_request.search,
        list_request.sorted_by,
        list_request.sort.startswith("-"),
        list_request.cursor,
        list_request.limit,
    )


def _sums(found: Facets, listing: Listing, size: int) -> Row:
    if found.since and not found.sums:
        return _NO_SUMS  # the time was over before a call was counted, which are not none
    since = {name: each.isoformat() for name, each in found.since.items()}
    return {
        "totals": totals.totals(found.sums),
        "covered": {
            "since": listing.filter.since,
            "until": listing.filter.until,
            # None where all calls of the time are counted.
            "complete_since": since.get("outcome"),
        },
        "facets": {
            name: {
                "values": [
                    {"value": value, "calls": calls} for value, calls in facets.top(counts, size)
                ],
                "more": len(counts) > size,
                "complete_since": since.get(name),
            }
            for name, counts in found.counts.items()
        },
    }


async def choices(datasette: Datasette) -> dict[str, dict[str, Any]]:
    """The choices of the filters; see `totals.choices`."""
    return await read(datasette, totals.choices) or NO_CHOICES


NO_CHOICES: dict[str, dict[str, Any]] = {
    name: {"values": [], "more": False, "none": False} for name in totals.CHOICE_COLUMNS
}
_EMPTY_PAGE: Row = {
    **{"rows": [], "folds": [], "prompts": {}, "next": None, "previous": None},
    **{"cut": False, "choices": NO_CHOICES, "content_exists": False, "search_complete": True},
}
_NO_SUMS: Row = {"covered": None, "totals": None, "facets": None}


def _page(
    connection: sqlite3.Connection,
    list_request: LogListRequest,
    listing: Listing,
    limit_ms: float,
) -> Row:
    page = listing_page(connection, listing, limit_ms)
    # Advice about tables is only for those who may view these.
    shown = [row["id"] for row in page.rows if row["purpose"] != PURPOSE]
    return {
        "rows": [with_dollars(row) for row in page.rows],
        "folds": [_fold(each) for each in _folds(connection, list_request, page.rows)],
        "prompts": queries.prompts(connection, shown, PROMPT_CHARS, limit_ms / 10),
        "next": cursor_text(page.older),
        "previous": cursor_text(page.newer),
        "cut": page.cut,
        "choices": totals.choices(connection),
        "content_exists": queries.has_content(connection),
        "search_complete": search.is_complete(connection),
    }


def _folds(
    connection: sqlite3.Connection, list_request: LogListRequest, rows: Sequence[Row]
) -> list[Fold]:
    # In another order than that of time, each call has its own place.
    if list_request.sorted_by != "time":
        return folding.folds(connection, rows, tuple(folding.KINDS))
    return folding.folds(connection, rows, tuple(list_request.filter.given()))


def _fold(fold: Fold) -> Row:
    return {
        "kind": fold.kind,
        "id": fold.id,
        "calls": [row["id"] for row in fold.rows],
        "totals": fold.sums.summary(latencies=False),
        "complete": fold.complete,
    }


def _listed(list_request: LogListRequest, page: Row | None) -> Row:
    asked = {"filter": list_request.filter.given(), "search": list_request.search}
    return asked | {"sort": list_request.sort} | (page or _EMPTY_PAGE)


def with_dollars(row: Row) -> Row:
    """A call with its cost in dollars, and with what its gateway says that it is."""
    names = ("cost", "gateway_cost", "saved")
    return row | {f"{each}_dollars": dollars(row[f"{each}_nanodollars"]) for each in names}


# One call


async def call_payload(datasette: Datasette, call_id: str, actor: Actor) -> Row | None:
    """One call with its group, chain, attempts, timeline and content; None if there is none.

    Of a consultation's call, content is only for an actor who may view the table.
    """
    status = await log_status(datasette)
    now = datetime.datetime.now(datetime.UTC)
    found = await read(datasette, lambda connection: _call(connection, call_id, now))
    if found is None:
        return None
    call = found["call"]
    hidden = await is_hidden(datasette, call, actor)
    ids = {call_id, call["prompt_id"] or call_id}
    here = running_call(datasette, ids) if call["outcome"] == queries.RUNNING else None
    return (
        status
        | found
        | ({"content": None} if hidden else {})
        | {
            "content_hidden": hidden,
            "running": here and here.payload(),
            "consultations": await _consultations(datasette, call, actor),
        }
    )


async def call_content(datasette: Datasette, call_id: str, actor: Actor) -> Row | None:
    """The recorded content of one call, by part; None if there is none that the actor may see."""
    await log_status(datasette)

    def work(connection: sqlite3.Connection) -> tuple[Row | None, Row | None]:
        return queries.call(connection, call_id), content_of(queries.content(connection, call_id))

    call, content = await read(datasette, work) or (None, None)
    if call is None or await is_hidden(datasette, call, actor):
        return None
    return content


async def is_hidden(datasette: Datasette, call: Row, actor: Actor) -> bool:
    """Whether an actor may not see a call's content, as it is about tables that they may not view.

    So it is of every consultation until it is stored.
    """
    if call["purpose"] != PURPOSE:
        return False
    rows = await consultations_of_call(datasette, call["id"])
    tables = {(row["database_name"], row["table_name"]) for row in rows}
    return not (tables and all([await may_view(datasette, actor, *table) for table in tables]))


async def _consultations(datasette: Datasette, call: Row, actor: Actor) -> list[str]:
    """The ids of the consultations that a call was made for, and that the actor may see."""
    if call["purpose"] != PURPOSE:
        return []
    rows = await consultations_of_call(datasette, call["id"])
    return [
        row["id"]
        for row in rows
        if await may_analyze(datasette, actor, row["database_name"], row["table_name"])
    ]


def _call(connection: sqlite3.Connection, call_id: str, now: datetime.datetime) -> Row | None:
    row = queries.call(connection, call_id)
    if row is None:
        return None
    attempts = queries.attempts(connection, row["prompt_id"] or row["id"], limit=MAX_ATTEMPTS)
    content = queries.content(connection, call_id)
    steps: list[Row] = []
    if row["chain_id"]:
        steps = queries.chain_steps(connection, row["chain_id"], limit=MAX_STEPS + 1)
    shown_steps = [with_dollars(step) for step in steps[:MAX_STEPS]]
    return {
        "call": with_dollars(row),
        # A first attempt alone is not listed; a later one alone is, after retention.
        "attempts": [with_dollars(each) for each in attempts if attempts[-1]["attempt"] != 1],
        "group": _group(connection, row["group_id"]) if row["group_id"] else None,
        "chain": shown_steps,
        "chain_has_more": len(steps) > MAX_STEPS,
        "chain_totals": _totals(shown_steps) if shown_steps else None,
        "timeline": timeline(shown_steps or attempts or [row], now).payload(),
        "content": content_of(content),
        "content_chars": {part: len(text) for part, text in content.items()},
    }


def _totals(rows: Sequence[Row]) -> Row:
    """What a few calls add up to, as the totals of a filter, without percentiles."""
    sums = totals.Sums()
    for row in rows:
        sums.add(row["outcome"], totals.numbers_of(row))
    return sums.summary(latencies=False)


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


def content_of(parts: Mapping[str, str]) -> Row | None:
    """The parts of a content, from JSON; what is none stays text."""
    return {part: _parsed(text) for part, text in parts.items()} if parts else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
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

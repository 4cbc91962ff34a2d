"""The page of the calls that run, how one is stopped, and the stream that tells of changes."""

from __future__ import annotations

import asyncio
import datetime
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from ... import instance
from ...log import queries
from ...log.feed import Changes, Feed
from ...log.queries import RUNNING, Filter, time_of
from ...web import client_disconnected
from ..navigation import LOG
from ..running import running_calls, stop
from .call_page import STATES
from .payloads import log_status, read

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiWriter, Request

    from ...consultant.table_access import Actor

Row = dict[str, Any]

RUNNING_CALLS = f"{LOG}/running"
# As a server waits for open streams before it shuts down; a browser connects again.
STREAM_S = 15.0
RECONNECT_MS = 1_000
# Of the rows of other processes.
MAX_ELSEWHERE = 100


async def running_payload(datasette: Datasette) -> Row:
    """The calls that run in this process, and those that others have begun."""
    status = await log_status(datasette)
    here, more = running_calls(datasette)
    rows = await read(
        datasette,
        lambda c: queries.calls(c, Filter(outcome=RUNNING), limit=MAX_ELSEWHERE + len(here)),
    )
    ids, now = {call.id for call in here}, datetime.datetime.now(datetime.UTC)
    elsewhere = [_elsewhere(row, now) for row in rows or () if row["id"] not in ids]
    return status | {
        "calls": [call.payload() for call in here],
        "more": more,
        "elsewhere": elsewhere[:MAX_ELSEWHERE],
    }


def _elsewhere(row: Row, now: datetime.datetime) -> Row:
    seconds = max(0.0, (now - time_of(row["id"])).total_seconds())
    names = ("id", "model_id", "purpose", "actor_id")
    return {name: row[name] for name in names} | {"seconds": round(seconds, 1)}


def running_context(datasette: Datasette, payload: Row, *, may_stop: bool) -> Row:
    """The context of the template."""
    return {
        "payload": payload,
        "rows": [
            *(_row(datasette, call, may_stop=may_stop) for call in payload["calls"]),
            *(
                _row(datasette, call | {"state": None, "queue": None}, may_stop=False)
                for call in payload["elsewhere"]
            ),
        ],
        "follow": datasette.urls.path(f"{LOG}/follow"),
        "address": datasette.urls.path(RUNNING_CALLS),
        "json_address": datasette.urls.path(f"{RUNNING_CALLS}.json"),
    }


def _row(datasette: Datasette, call: Row, *, may_stop: bool) -> Row:
    sent = call["id"] is not None and call["state"] not in ("plugins", "queued")
    address = f"{LOG}/{call['id']}"
    can_stop = may_stop and call["id"] is not None
    return call | {
        "address": datasette.urls.path(address) if sent else None,
        "stop": datasette.urls.path(f"{address}/stop") if can_stop else None,
        "state": _state(call),
        "seconds": int(call["seconds"]),
    }


def _state(call: Row) -> str:
    if call["state"] is None:
        return "in another process, or ending"
    queue = call["queue"]
    place = f", number {queue['place']} of {queue['waiting']}" if queue else ""
    return f"{STATES[call['state']]}{place}"


# Stopping one


async def stop_call(datasette: Datasette, call_id: str, actor: Actor) -> bool:
    """Stop a call that runs in this process.

    Args:
        datasette: the Datasette instance.
        call_id: the id of one of its requests.
        actor: who stops it.

    Returns:
        Whether it ran here.
    """
    row = await _row_of(datasette, call_id)
    response_id = row["prompt_id"] if row is not None else None
    return await stop(datasette, {call_id, response_id or call_id}, actor)


async def page_of(datasette: Datasette, call_id: str) -> str:
    """The address of a call's page; that of those that run, where it is not in the call log."""
    await log_status(datasette)
    row = await _row_of(datasette, call_id)
    path = RUNNING_CALLS if row is None else f"{LOG}/{row['id']}"
    return str(datasette.urls.path(path))


async def _row_of(datasette: Datasette, call_id: str) -> Row | None:
    return await read(datasette, lambda connection: queries.call(connection, call_id))


# Following


def following(datasette: Datasette, request: Request) -> Row:
    """What a template needs for the links that let the list of calls follow new ones.

    Returns:
        Under `following`: `stream`, the address of the changes, if `follow=1` asks for them; `on`
        and `off`, the addresses of the same list with and without it, `on` for the first page
        only; and `running`, that of the calls that run.
    """
    given = parse_qsl(request.query_string, keep_blank_values=True)
    query = urlencode([(name, value) for name, value in given if name != "follow"])
    follows, first = ("follow", "1") in given, "next" not in dict(given)
    stream, page = (datasette.urls.path(each) for each in (f"{LOG}/follow", LOG))
    on = f"{page}?{query}&follow=1" if query else f"{page}?follow=1"
    found = {
        "stream": f"{stream}?{query}" if follows and first else None,
        "on": on if first else None,
        "off": f"{page}?{query}" if query else page,
        "running": datasette.urls.path(RUNNING_CALLS),
    }
    return {"following": found}


async def write_changes(
    datasette: Datasette, log_filter: Filter, writer: AsgiWriter, request: Request
) -> None:
    """Write server-sent events: the calls of a filter that begin or end, for `STREAM_S`."""
    await writer.write(f"retry: {RECONNECT_MS}\n\n")
    writing = asyncio.create_task(_write(datasette, log_filter, writer))
    gone = asyncio.create_task(client_disconnected(request))
    try:
        await asyncio.wait([writing, gone], timeout=STREAM_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (writing, gone):
            task.cancel()
        await asyncio.wait([writing, gone])


async def _write(datasette: Datasette, log_filter: Filter, writer: AsgiWriter) -> None:
    async with aclosing(instance.of(datasette, Feed).follow(datasette, log_filter)) as changes:
        async for each in changes:
            await writer.write(f"data: {json.dumps(event_of(each))}\n\n")


def event_of(changes: Changes) -> Row:
    """What has changed, as an event of the stream; None where there was too much to name."""
    if not changes.complete:
        return {"calls": None}
    return {"calls": [{"id": each, "outcome": how} for each, how in changes.outcomes.items()]}

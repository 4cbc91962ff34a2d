"""New and ended calls for all who follow them, from one look at the database a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from .queries import RUNNING, Filter, has_tables

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

POLL_S = 1.0
# Of one look; after more, all who follow are to read again what they show.
MAX_CHANGES = 500


class Changes(NamedTuple):
    """Calls that have begun or ended.

    Attributes:
        outcomes: their outcomes by id; `RUNNING` for those that have begun only.
        complete: False where there are more than `MAX_CHANGES`, of which none is named.
    """

    outcomes: Mapping[str, str]
    complete: bool = True


@dataclass(slots=True)
class _Seen:
    """What the last look found.

    Attributes:
        newest: the greatest id.
        running: the calls that had not ended.
    """

    newest: str = ""
    running: set[str] = field(default_factory=set)


class Feed:
    """The changes of a Datasette instance's call log. It looks only while there are followers."""

    def __init__(self) -> None:
        self._followers: dict[asyncio.Queue[Changes | None], Filter] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(
        self, datasette: Datasette, log_filter: Filter
    ) -> AsyncGenerator[Changes, None]:
        """The changes of the calls that match a filter, as they happen.

        It ends when the database cannot be read.

        Args:
            datasette: the Datasette instance.
            log_filter: which calls, valid.
        """
        queue: asyncio.Queue[Changes | None] = asyncio.Queue()
        self._followers[queue] = log_filter
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_often(datasette))
        try:
            while (changes := await queue.get()) is not None:
                yield changes
        finally:
            del self._followers[queue]

    async def _look_often(self, datasette: Datasette) -> None:
        internal, seen = datasette.get_internal_database(), None
        while self._followers:
            filters = frozenset(self._followers.values())
            try:
                seen, found = await internal.execute_fn(partial(look, before=seen, filters=filters))
            except sqlite3.Error as error:
                logger.warning("The LLM call log cannot be followed: %s", error)
                for queue in self._followers:
                    queue.put_nowait(None)
                return
            for queue, log_filter in self._followers.items():
                changes = found.get(log_filter)
                if changes is not None:
                    queue.put_nowait(changes)
            await asyncio.sleep(POLL_S)


def look(
    connection: sqlite3.Connection, before: _Seen | None, filters: Iterable[Filter]
) -> tuple[_Seen, Mapping[Filter, Changes]]:
    """Look for calls that have begun or ended.

    Args:
        connection: to the internal database.
        before: what the last look found; None for the first one, which finds no changes.
        filters: those of the followers.

    Returns:
        What this one found, and for each filter with changes among its calls these.
    """
    if not has_tables(connection):
        return _Seen(), {}
    sql = "select id from llm_calls where outcome is null order by id desc limit ?"
    running = {call_id for (call_id,) in connection.execute(sql, [MAX_CHANGES])}
    newest = connection.execute("select max(id) from llm_calls").fetchone()[0] or ""
    seen = _Seen(newest, running)
    if before is None:
        return seen, {}
    sql = "select id from llm_calls where id > ? order by id limit ?"
    begun = {call_id for (call_id,) in connection.execute(sql, [before.newest, MAX_CHANGES + 1])}
    # A call that waited or was tried again may have an id from before the newest.
    changed = begun | (running ^ before.running)
    if len(changed) > MAX_CHANGES:
        return seen, dict.fromkeys(filters, Changes({}, complete=False))
    found = {each: _matching(connection, each, changed) for each in filters if changed}
    return seen, {each: Changes(outcomes) for each, outcomes in found.items() if outcomes}


def _matching(
    connection: sqlite3.Connection, log_filter: Filter, ids: Iterable[str]
) -> dict[str, str]:
    condition, values = log_filter.where()
    parameters: dict[str, Any] = {f"_{number}": each for number, each in enumerate(ids)}
    places = ", ".join(f":{name}" for name in parameters)
    # The limit keeps SQLite from reading all calls of the filter in order to find these few.
    sql = (
        f"select id, outcome from (select * from llm_calls where id in ({places}) "
        f"limit {MAX_CHANGES}) as llm_calls where {condition}"
    )
    rows = connection.execute(sql, parameters | values)
    return {call_id: outcome or RUNNING for call_id, outcome in rows}

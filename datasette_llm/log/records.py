"""Calls of the log as typed values, for plugins."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..events import FinishReason, Outcome
from ..tags.values import Tags
from . import queries
from .cost import Cost
from .queries import RUNNING, Filter
from .recorder import Recorder

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.sqlite import sqlite3


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A row of the call log: one request to a provider.

    What is not known is None; times are in UTC.

    Attributes:
        id: its own; of the first attempt at a response the response's.
        started_at: when it began.
        finished_at: when it ended; None while it runs.
        outcome: how it ended; None while it runs.
        model_id: the model that was asked.
        resolved_model: the model that the provider says it used.
        purpose: what it was for.
        actor_id: who asked.
        group_id: the group that it belongs to.
        chain_id: the id of the first response of its chain.
        chain_step: its number in the chain, from 1.
        conversation_id: the conversation that it was a turn of.
        prompt_id: of a later attempt the id of the response; of a repair the repaired one's.
        attempt: 1 for the first attempt.
        finish_reason: why the answer ended.
        failure_kind: what kind of failure it was.
        error_type: the name of the exception's class.
        error_message: its message, without keys.
        blocked_by: the plugin or the rule that kept it from being sent.
        hook_error: what a hook raised after it had ended.
        input_tokens: as the provider reported.
        output_tokens: as the provider reported.
        cost: what it cost.
        duration_ms: from before it was sent, in milliseconds.
        first_chunk_ms: until the first event, in milliseconds.
        waited_ms: how long it waited for a concurrency limit, in milliseconds.
        tags: what it is tied to.
    """

    id: str
    started_at: datetime.datetime
    finished_at: datetime.datetime | None
    outcome: Outcome | None
    model_id: str
    resolved_model: str | None
    purpose: str | None
    actor_id: str | None
    group_id: str | None
    chain_id: str | None
    chain_step: int | None
    conversation_id: str | None
    prompt_id: str | None
    attempt: int
    finish_reason: FinishReason | None
    failure_kind: str | None
    error_type: str | None
    error_message: str | None
    blocked_by: str | None
    hook_error: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost: Cost | None
    duration_ms: float | None
    first_chunk_ms: float | None
    waited_ms: float | None
    tags: Tags


# Of calls at once, since they are all in memory.
MAX_LIMIT = 10_000
# The columns that are values of a record as they are.
_PLAIN = frozenset(CallRecord.__slots__) - {
    *("started_at", "finished_at", "outcome", "finish_reason", "cost", "tags")
}


async def call_record(datasette: Datasette, call_id: str) -> CallRecord | None:
    """One call, once what waits to be written is; None if there is none.

    Args:
        datasette: the Datasette instance.
        call_id: its id.

    Raises:
        sqlite3.Error: the internal database cannot be read.
    """

    def work(connection: sqlite3.Connection) -> list[dict[str, Any]]:
        row = queries.call(connection, call_id)
        return [] if row is None else [row]

    return next(iter(await _records(datasette, work)), None)


async def call_records(
    datasette: Datasette, log_filter: Filter, *, before: str | None, limit: int
) -> list[CallRecord]:
    """Calls, newest first, once what waits to be written is.

    Args:
        datasette: the Datasette instance.
        log_filter: which calls.
        before: the id of the last call of the previous page; None for the first page.
        limit: the maximum number.

    Raises:
        BadFilterError: the filter or the limit is invalid.
        sqlite3.Error: the internal database cannot be read.
    """
    if not 0 < limit <= MAX_LIMIT:
        raise queries.BadFilterError(f"limit: from 1 to {MAX_LIMIT:,} calls, not {limit}")
    log_filter.where()  # an invalid filter is reported without a call log, too
    return await _records(
        datasette, lambda c: queries.calls(c, log_filter, before=before, limit=limit)
    )


async def _records(datasette: Datasette, work: Any) -> list[CallRecord]:
    def in_thread(connection: sqlite3.Connection) -> list[CallRecord]:
        return list(map(_record, work(connection))) if queries.has_tables(connection) else []

    await Recorder.of(datasette).writer.flush_in_time()
    records: list[CallRecord] = await datasette.get_internal_database().execute_fn(in_thread)
    return records


def _record(row: Mapping[str, Any]) -> CallRecord:
    ended, nanodollars = row["outcome"] != RUNNING, row["cost_nanodollars"]
    reason = row["finish_reason"]
    return CallRecord(
        started_at=queries.time_of(row["id"]),
        finished_at=_moment(row["finished_at"]),
        outcome=Outcome(row["outcome"]) if ended else None,
        finish_reason=FinishReason(reason) if reason in queries.FINISH_REASONS else None,
        cost=None if nanodollars is None else Cost(nanodollars / 1e9, row["price_source"] or ""),
        tags=MappingProxyType(row["tags"]),
        **{name: row[name] for name in _PLAIN},
    )


def _moment(text: str | None) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text) if text else None
    except ValueError:  # which no version has written
        return None

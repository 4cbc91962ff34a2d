"""How many calls of a list have each value, and what they add up to, within a time limit.

As on Datasette's page of a table, all filters count, a facet's own too. Where the sums of past
periods answer, see `usage`, all calls are counted; otherwise the newest, as many as
the time allows.
"""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from datasette.utils.sqlite import sqlite3

from . import latency
from .listing import Cursor, Listing, newest_ids
from .queries import RUNNING, tag_text, tags_of, text_of, time_of
from .totals import NUMBERS_SQL, TIMED, Sums
from .usage import Question, Reader, sums_of
from .usage_schema import DIMENSIONS

FACETS = ("model", "purpose", "actor", "tag", "outcome", "failure_kind", "finish_reason")
# Where calls without a value are a value of the facet; in the others, they are not counted.
NONE_COUNTS = ("purpose", "actor")
# The sums by actor are as many as actors, so the newest calls have to do.
_KEPT = ("model", "purpose", "outcome", "failure_kind")
_COLUMNS = {**DIMENSIONS, "finish_reason": "finish_reason"}
_FIRST_BATCH, _BATCH = 1_000, 1_500
# The share of the time that is for the sums of past periods, and the least for the first batch.
_KEPT_SHARE = 0.6
_LEAST_MS = 25.0


@dataclass(slots=True)
class Facets:
    """The counts of a list.

    Attributes:
        counts: for each of `FACETS` the calls by value; an empty text for those without one.
        sums: what the calls add up to, by outcome.
        since: from when on they are complete, by facet; without one, all calls are counted.
            The time of the sums is that of "outcome".
    """

    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in FACETS}
    )
    sums: dict[tuple[Any, ...], Sums] = field(default_factory=dict)
    since: dict[str, datetime.datetime] = field(default_factory=dict)

    def add(self, name: str, value: str | None, calls: int = 1) -> None:
        """Count calls with a value."""
        if name == "outcome":
            value = value or RUNNING
        if value is not None or name in NONE_COUNTS:
            self.counts[name][value or ""] += calls

    def sums_of(self, outcome: str | None) -> Sums:
        """The sums of the calls with an outcome."""
        return self.sums.setdefault((outcome,), Sums())


def counted(
    connection: sqlite3.Connection, listing: Listing, now: datetime.datetime, limit_ms: float
) -> Facets:
    """Count the calls of a list.

    Args:
        connection: a connection to the internal database.
        listing: which calls.
        now: the present.
        limit_ms: the time for it.

    Raises:
        BadFilterError: the filter or the words are invalid.
    """
    end_s = time.perf_counter() + limit_ms / 1000
    found, newest = Facets(), _Newest(connection, listing, now, end_s)
    newest.read(_FIRST_BATCH)
    is_kept = listing.words is None and Question(listing.filter).is_kept
    kept = set(_KEPT) if is_kept and newest.has_more else set()
    if kept:
        _add_kept(found, Reader(connection, now, limit_ms * _KEPT_SHARE), listing)
    names = set(FACETS) - kept
    newest.add_to(found, names)
    while newest.has_more and newest.has_time:
        newest.read(_BATCH)
        newest.add_to(found, names)
    if newest.has_more:
        found.since |= dict.fromkeys(names, newest.since)
    return found


def top(counts: Counter[str], size: int) -> list[tuple[str, int]]:
    """The most frequent values, then in their own order."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:size]


def _add_kept(found: Facets, reader: Reader, listing: Listing) -> None:
    """Count all calls, by what the sums of past periods know."""
    for key, sums in sums_of(reader, listing.filter, _KEPT).items():
        values = dict(zip(_KEPT, key, strict=True))
        found.sums_of(values["outcome"]).merge(sums)
        for name, value in values.items():
            found.add(name, value, sums.calls)
    if reader.cut is not None:
        found.since |= dict.fromkeys(_KEPT, reader.cut)


class _Newest:
    """Reads calls in batches, the newest first.

    Attributes:
        since: when the last call began that was read.
        has_more: whether there are older ones, or there was no time to find any.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        listing: Listing,
        now: datetime.datetime,
        end_s: float,
    ) -> None:
        self.since = now
        self.has_more = True
        self._connection = connection
        self._listing = replace(listing, cursor=None)
        self._end_s = end_s
        self._ids: list[str] = []

    def read(self, size: int) -> None:
        """Find the next batch."""
        rest_ms = (self._end_s - time.perf_counter()) * 1000
        batch = replace(self._listing, limit=size)
        self._ids, cut = newest_ids(self._connection, batch, max(_LEAST_MS, rest_ms))
        if self._ids:
            self.since = time_of(self._ids[-1])
            self._listing = replace(self._listing, cursor=Cursor(self._ids[-1]))
        self.has_more = cut or len(self._ids) == size
        if cut:
            self._end_s = 0.0

    @property
    def has_time(self) -> bool:
        """Whether there is time for another batch."""
        return time.perf_counter() < self._end_s

    def add_to(self, found: Facets, names: set[str]) -> None:
        """Count the batch."""
        sql = (
            f"select {', '.join(_COLUMNS.values())}, tags, {NUMBERS_SQL}, {TIMED}, duration_ms, "
            "first_chunk_ms from llm_calls where id in (select value from json_each(?))"
        )
        _add_calls(found, names, self._connection.execute(sql, (json.dumps(self._ids),)))


def _add_calls(found: Facets, names: set[str], rows: Iterable[tuple[Any, ...]]) -> None:
    width = len(_COLUMNS)
    for row in rows:
        values = dict(zip(_COLUMNS, map(text_of, row[:width]), strict=True))
        for name in names - {"tag"}:
            found.add(name, values[name])
        for key, value in tags_of(row[width]).items():
            found.add("tag", tag_text(key, value))
        if "outcome" in names:
            _add_sums(found, values["outcome"], row[width + 1 :])


def _add_sums(found: Facets, outcome: str | None, row: tuple[Any, ...]) -> None:
    *numbers, is_timed, duration_ms, first_chunk_ms = row
    times = map(latency.character, (duration_ms, first_chunk_ms)) if is_timed else (None, None)
    found.sums_of(outcome).add(outcome, [*numbers, *times])

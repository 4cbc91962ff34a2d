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
from .totals import NUMBERS_SQL, Sums
from .usage import Question, Reader, sums_of
from .usage_schema import DIMENSIONS

FACETS = ("model", "purpose", "actor", "tag", "outcome", "failure_kind", "finish_reason")
# Where calls without a value are a value of the facet; in the others, they are not counted.
NONE_COUNTS = ("purpose", "actor")
# The sums by actor are as many as actors, so the newest calls have to do.
_KEPT = ("model", "purpose", "outcome", "failure_kind")
_COLUMNS = {**DIMENSIONS, "finish_reason": "finish_reason"}
_FIRST_BATCH, _BATCH = 500, 1_500
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
    found, end_s = Facets(), time.perf_counter() + limit_ms / 1000
    names = set(FACETS)
    if listing.words is None and Question(listing.filter).is_kept:
        reader = Reader(connection, now, limit_ms * _KEPT_SHARE)
        for key, sums in sums_of(reader, listing.filter, _KEPT).items():
            values = dict(zip(_KEPT, key, strict=True))
            found.sums_of(values["outcome"]).merge(sums)
            for name, value in values.items():
                found.add(name, value, sums.calls)
        if reader.cut is not None:
            found.since |= dict.fromkeys(_KEPT, reader.cut)
        names -= set(_KEPT)
    _count_newest(connection, listing, found, names, end_s, now)
    return found


def top(counts: Counter[str], size: int) -> list[tuple[str, int]]:
    """The most frequent values, then in their own order."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:size]


def _count_newest(
    connection: sqlite3.Connection,
    listing: Listing,
    found: Facets,
    names: set[str],
    end_s: float,
    now: datetime.datetime,
) -> None:
    """Count the newest calls, in batches."""
    cursor, size, reached = None, _FIRST_BATCH, now
    while True:
        rest_ms = (end_s - time.perf_counter()) * 1000
        if rest_ms <= 0 and cursor is not None:
            break
        batch = replace(listing, cursor=cursor, limit=size)
        ids, cut = newest_ids(connection, batch, max(_LEAST_MS, rest_ms))
        _add_calls(found, names, _rows(connection, ids))
        if ids:
            cursor, reached = Cursor(ids[-1]), time_of(ids[-1])
        if cut:
            break
        if len(ids) < size:
            return
        size = _BATCH
    found.since |= dict.fromkeys(names, reached)


def _rows(connection: sqlite3.Connection, ids: list[str]) -> Iterable[tuple[Any, ...]]:
    sql = (
        f"select {', '.join(_COLUMNS.values())}, tags, {NUMBERS_SQL}, duration_ms, first_chunk_ms "
        "from llm_calls where id in (select value from json_each(?))"
    )
    rows: Iterable[tuple[Any, ...]] = connection.execute(sql, (json.dumps(ids),))
    return rows


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
    *numbers, duration_ms, first_chunk_ms = row
    sent = None if outcome == "blocked" else latency.character(duration_ms)
    found.sums_of(outcome).add(outcome, [*numbers, sent, latency.character(first_chunk_ms)])

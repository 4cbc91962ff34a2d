"""A page of calls in an order, on either side of a cursor, within a time limit.

What indexes do not have in the order of the page is read along the order, or, where a condition is
met by few calls, from these alone. What is not found in the time is left out, and this is said.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from datasette.utils import sqlite_timelimit
from datasette.utils.sqlite import sqlite3

from . import queries, search
from .queries import SHORT_OF_TIME, Condition, Conditions, Filter

# What calls are sorted by: the column, where it is not the time, and its index.
SORTS: Mapping[str, tuple[str, str] | None] = {
    "time": None,
    "cost": ("cost_nanodollars", "llm_calls_cost"),
    "duration": ("duration_ms", "llm_calls_duration"),
    "tokens": ("input_tokens + output_tokens", "llm_calls_tokens"),
}
# So many calls with certain words are looked for first, whatever else is asked of them.
MAX_RARE = 1_000
# The first span of time that is read, in milliseconds; each is twice as long as the one before.
_FIRST_SPAN_MS = 24 * 60 * 60 * 1000


class Cursor(NamedTuple):
    """A place in a list: between a call and the next one.

    Attributes:
        id: of the call.
        value: what the list is sorted by; None for the time.
        newer: whether the page before this place is wanted, not the page after it.
    """

    id: str
    value: float | None = None
    newer: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Which page of which calls.

    Attributes:
        filter: which calls.
        words: words that their content has; None for any content.
        sort: one of `SORTS`.
        descending: whether the greatest, or newest, come first.
        cursor: where the page begins; None for the first page.
        limit: the maximum number of calls.
    """

    filter: Filter = field(default_factory=Filter)
    words: str | None = None
    sort: str = "time"
    descending: bool = True
    cursor: Cursor | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Page:
    """Calls of a list, in its order.

    Attributes:
        rows: the calls.
        newer: the cursor of the page before; None where there is none.
        older: the cursor of the page after; None where there is none.
        cut: whether the time limit was reached, so that calls may be missing after these.
    """

    rows: list[dict[str, Any]]
    newer: Cursor | None
    older: Cursor | None
    cut: bool


def page(connection: sqlite3.Connection, listing: Listing, limit_ms: float | None = None) -> Page:
    """A page of calls.

    Args:
        connection: a connection to the internal database.
        listing: which page.
        limit_ms: the time for finding them; None for no limit.

    Raises:
        BadFilterError: the filter or the words are invalid.
    """
    finder = _Finder(connection, listing, limit_ms)
    backward = listing.cursor is not None and listing.cursor.newer
    ids = finder.ids()
    more, shown = len(ids) > listing.limit, ids[: listing.limit]
    rows = queries.calls_with_ids(connection, shown[::-1] if backward else shown)
    newer, older = more and backward, more and not backward
    if listing.cursor is not None:
        newer, older = newer or not backward, older or backward
    first, last = (_cursor(listing, row) for row in (rows[0], rows[-1])) if rows else (None, None)
    on = Cursor(finder.reached) if finder.cut and finder.reached else last
    return Page(
        rows,
        first._replace(newer=True) if first and newer else None,
        on if older or (finder.cut and not backward) else None,
        finder.cut,
    )


def newest_ids(
    connection: sqlite3.Connection, listing: Listing, limit_ms: float
) -> tuple[list[str], bool]:
    """The ids of the newest calls of a list that are older than its cursor.

    Args:
        connection: a connection to the internal database.
        listing: which calls, in any order.
        limit_ms: the time for finding them.

    Returns:
        At most as many as the list's limit, and whether the time was too short for all of these.
    """
    finder = _Finder(connection, replace(listing, sort="time", descending=True), limit_ms)
    return finder.ids()[: listing.limit], finder.cut


def searched(connection: sqlite3.Connection, listing: Listing) -> Filter:
    """The filter of a list, with the condition that its words make.

    Raises:
        BadFilterError: the words are invalid.
    """
    if listing.words is None:
        return listing.filter
    sql, values = search.condition(connection, listing.words)
    other = listing.filter.only or Condition("1", ())
    only = Condition(f"{sql} and {other.sql}", (*values.items(), *other.values))
    return replace(listing.filter, only=only)


def value_of(sort: str, row: Mapping[str, Any]) -> float | None:
    """What a call is sorted by; None for the time."""
    if sort == "tokens":
        return sum(float(row[name] or 0) for name in ("input_tokens", "output_tokens"))
    found = SORTS[sort]
    return None if found is None else row[found[0]]


def _cursor(listing: Listing, row: Mapping[str, Any]) -> Cursor:
    return Cursor(row["id"], value_of(listing.sort, row))


class _Finder:
    """Finds the ids of a page, and of one call more, in the order of reading.

    Attributes:
        cut: whether the time limit was reached.
        reached: up to which id all calls have been read, if it was, and this is known.
    """

    def __init__(
        self, connection: sqlite3.Connection, listing: Listing, limit_ms: float | None
    ) -> None:
        self.cut = False
        self.reached: str | None = None
        self._connection = connection
        self._listing = listing
        self._limit_ms = limit_ms
        cursor = listing.cursor
        self._backward = cursor is not None and cursor.newer
        self._down = listing.descending is not self._backward
        self._direction = " desc" if self._down else ""

    def ids(self) -> list[str]:
        found: list[str] = []
        try:
            with self._limit():
                for call_id in self._each():
                    found.append(call_id)
                    if len(found) > self._listing.limit:
                        break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in SHORT_OF_TIME:
                raise
            self.cut = True
            if self._listing.sort == "time" and found:
                self.reached = found[-1]
        return found

    def _limit(self) -> AbstractContextManager[None]:
        if self._limit_ms is None:
            return nullcontext()
        limit: AbstractContextManager[None] = sqlite_timelimit(self._connection, self._limit_ms)
        return limit

    def _each(self) -> Iterator[str]:
        """The ids one by one, so that those that are found before the limit count."""
        listing, sort = self._listing, SORTS[self._listing.sort]
        streams = self._streams_words()
        asked = (listing.filter if streams else searched(self._connection, listing)).conditions()
        self._begin_at_cursor(asked, sort)
        if streams and listing.words is not None:
            yield from search.ids(
                self._connection,
                listing.words,
                asked,
                cursor=listing.cursor and listing.cursor.id,
                descending=self._down,
            )
            return
        for sql, values in self._statements(asked, sort):
            wanted = values | {"n": listing.limit + 1}
            yield from (call_id for (call_id,) in self._connection.execute(sql, wanted))

    def _streams_words(self) -> bool:
        words, is_by_time = self._listing.words, SORTS[self._listing.sort] is None
        if words is None or not is_by_time:
            return False
        return not search.is_rare(self._connection, words, MAX_RARE)

    def _statements(
        self, asked: Conditions, sort: tuple[str, str] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What gives the ids, one statement after the other."""
        exact = sort is None and asked.is_exact()
        few = None if exact else asked.few_ids(self._connection)
        if sort is not None:
            yield self._by_value(asked, *sort, few)
        elif exact or few or not self._down:
            yield queries.ids_sql(self._connection, asked, f"id{self._direction}"), asked.values
        else:
            yield from self._along_time(asked)

    def _begin_at_cursor(self, asked: Conditions, sort: tuple[str, str] | None) -> None:
        cursor = self._listing.cursor
        if cursor is None:
            return
        operator = "<" if self._down else ">"
        asked.values["cursor"] = cursor.id
        if sort is None:
            asked.between.append(f"id {operator} :cursor")
        else:
            asked.values["value"] = cursor.value
            # The first part is for the index.
            after = f"({sort[0]}, id) {operator} (:value, :cursor)"
            asked.ranges.append(f"({sort[0]} {operator}= :value and {after})")

    def _by_value(
        self, asked: Conditions, column: str, index: str, few: str | None
    ) -> tuple[str, dict[str, Any]]:
        table = "llm_calls" if few else f"llm_calls indexed by {index}"
        conditions = [f"{column} is not null", asked.unindexed()]
        if few:
            conditions.append(f"id in ({few})")
        else:
            conditions += [each for each in asked.ranges if column in each]
        sql = (
            f"select id from {table} where {' and '.join(conditions)} "
            f"order by {column}{self._direction}, id{self._direction} limit :n"
        )
        return sql, asked.values

    def _along_time(self, asked: Conditions) -> Iterator[tuple[str, dict[str, Any]]]:
        """Spans of time, the newest first: the place is known where the limit is reached."""
        condition = asked.unindexed()
        sql = f"select {{}}(id) from llm_calls where {' and '.join(['1', *asked.between])}"
        oldest, newest = (
            self._connection.execute(sql.format(each), asked.values).fetchone()[0]
            for each in ("min", "max")
        )
        end, span_ms = "~", _FIRST_SPAN_MS
        while newest and (end == "~" or oldest < end):
            at = queries.time_of(newest if end == "~" else end)
            begin = queries.first_id(
                max(queries.EPOCH, at - datetime.timedelta(milliseconds=span_ms))
            )
            last = begin <= oldest
            values = asked.values | {"begin": "" if last else begin, "end": end}
            yield (
                (
                    f"select id from llm_calls where {condition} and id >= :begin and id < :end "
                    "order by id desc limit :n"
                ),
                values,
            )
            if last:
                return
            self.reached = end = begin
            span_ms *= 2

"""Full-text search over the recorded content of calls.

An index is an FTS5 table for the calls of one week, so that retention drops it with its rows:
SQLite before 3.43 cannot delete from an index that has no copy of its text. `llm_search_calls` has
the call of each row of an index; the rows' numbers are in the order in which the calls began.

The calls to be indexed stand in `llm_search_queue`, from the transaction that records their
content on. A background task takes them in batches, which is cheaper than one by one and keeps no
call waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database, Migrations
from ulid import ULID

from .. import migrations as database
from ..sanitize import well_formed
from .queries import BadFilterError, Conditions

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# Of one call. What is beyond cannot be found; it is on the call's page.
MAX_CHARS = 100_000
MAX_QUERY_CHARS = 500
MAX_WORDS = 20
WEEK_MS = 7 * 24 * 60 * 60 * 1000
# Small enough not to delay calls that wait for their row; the characters are those of the content
# as it is recorded, after which a batch ends.
MAX_BATCH = 100
MAX_BATCH_CHARS = 1_000_000
# Between two batches, and between two looks at an empty queue.
PAUSE_S = 0.1
POLL_S = 1.0
RETRY_S = 60.0

_PREFIX = "llm_search_week_"
# So many calls may begin in a millisecond; more are found too, a little out of their order.
_CALLS_BITS = 12
_PHRASE = re.compile(r'"([^"]*)"?|(\S+)')
# What people read of a message's part.
_TEXTS = ("text", "name", "arguments", "output")

migrations = Migrations("datasette_llm_search")


@migrations()
def m001_search(db: Database) -> None:
    for statement in (
        "create table llm_search_calls (row integer primary key, call_id text not null)",
        "create table llm_search_queue (call_id text primary key) without rowid",
        # What earlier versions recorded.
        "insert into llm_search_queue select distinct call_id from llm_call_content",
    ):
        db.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, as `migrations.migrate`; those of the call log have to be."""
    database.migrate(connection, migrations, "llm_search_calls", "llm_search_queue")


def enqueue(connection: sqlite3.Connection, call_id: str) -> None:
    """Have the content of a call indexed soon.

    A failure is logged and not raised, since the call is recorded all the same.

    Args:
        connection: a connection for writing, in a transaction.
        call_id: a call whose content has just been recorded.
    """
    try:
        connection.execute("insert into llm_search_queue (call_id) values (?)", (call_id,))
    except sqlite3.DatabaseError as error:
        if not connection.in_transaction:
            raise  # SQLite has rolled back what else was to be written
        logger.warning("A call of the LLM call log will not be found by search: %s", error)


async def keep_indexing(datasette: Datasette) -> None:
    """Index the content of calls soon after it is recorded, as long as Datasette runs.

    Args:
        datasette: the Datasette instance, which supervises this as a background task.
    """
    internal, failed = datasette.get_internal_database(), False
    while True:
        try:
            if await internal.execute_fn(is_complete):
                pause_s = POLL_S
            else:
                await internal.execute_write_fn(index_batch)
                pause_s = PAUSE_S
            failed = False
        except DatasetteClosedError:
            return  # closed without a shutdown, which would have cancelled this task
        except sqlite3.Error as error:
            if not failed:
                logger.warning("The LLM call log cannot be indexed for search: %s", error)
            failed, pause_s = True, RETRY_S
        await asyncio.sleep(pause_s)


def index_batch(connection: sqlite3.Connection) -> None:
    """Index the newest calls of the queue, `MAX_BATCH` or `MAX_BATCH_CHARS` at most, but one call.

    Args:
        connection: a connection for writing, in a transaction.

    Raises:
        sqlite3.Error: they cannot be indexed.
    """
    newest = f"select call_id from llm_search_queue order by call_id desc limit {MAX_BATCH}"
    chars = 0
    for (call_id,) in connection.execute(newest).fetchall():
        sql = "select content from llm_call_content where call_id = ? order by part"
        contents = [text for (text,) in connection.execute(sql, (call_id,))]
        chars += sum(map(len, contents))
        _add(connection, call_id, contents)
        connection.execute("delete from llm_search_queue where call_id = ?", (call_id,))
        if chars >= MAX_BATCH_CHARS:
            return


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether all that is recorded can be found."""
    sql = "select not exists (select 1 from llm_search_queue)"
    return not has_index(connection) or bool(connection.execute(sql).fetchone()[0])


def remove(connection: sqlite3.Connection, below_id: str) -> None:
    """Drop the indexes of weeks of which nothing is left.

    Args:
        connection: a connection for writing, in a transaction.
        below_id: the first id that is left.
    """
    ms = _milliseconds(below_id)
    if ms is None or not has_index(connection):
        return
    for week, table in _weeks(connection):
        if (week + 1) * WEEK_MS <= ms:
            connection.execute(f"drop table [{table}]")
    connection.execute("delete from llm_search_calls where row < ?", (ms << _CALLS_BITS,))
    connection.execute("delete from llm_search_queue where call_id < ?", (below_id,))


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether there are tables to search."""
    sql = (
        "select count(*) from sqlite_master where name in ('llm_search_calls', 'llm_search_queue')"
    )
    return bool(connection.execute(sql).fetchone()[0] == 2)


def match_of(text: str) -> str:
    """A search that a person typed, in FTS5's language.

    Args:
        text: words, all of which must occur; "words in quotes" must occur as they are, and a word
            that ends with * stands for all that begin so.

    Raises:
        BadFilterError: it has no words, or too many.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise BadFilterError(f"search: at most {MAX_QUERY_CHARS} characters")
    words = [_quoted(*found) for found in _PHRASE.findall(text.replace("\0", " "))]
    words = [word for word in words if any(each.isalnum() for each in word)]
    if not 0 < len(words) <= MAX_WORDS:
        raise BadFilterError(f'search: give 1 to {MAX_WORDS} words, or "words in quotes"')
    return " ".join(words)


def ids(
    connection: sqlite3.Connection,
    text: str,
    conditions: Conditions,
    *,
    cursor: str | None = None,
    descending: bool = True,
) -> Iterator[str]:
    """The ids of the calls whose content has certain words, in their order.

    They are read as they are asked for, a week after the other, so that many calls with these
    words cost no more than few.

    Args:
        connection: a connection to the internal database.
        text: the words, as for `match_of()`.
        conditions: what else has to be true of them.
        cursor: the id after which they begin, in their order; None for the first ones.
        descending: whether the newest come first.

    Raises:
        BadFilterError: the words are invalid.
    """
    values = conditions.values | {"search": match_of(text), "bound": _row_at(cursor, descending)}
    compare, direction = ("<=", "desc") if descending else (">=", "asc")
    for week, table in _weeks(connection, descending):
        if _is_past(week, values["bound"], descending):
            continue
        sql = (
            f"select [{table}].rowid, llm_calls.id from [{table}] "
            f"join llm_search_calls on llm_search_calls.row = [{table}].rowid "
            "join llm_calls on llm_calls.id = llm_search_calls.call_id "
            f"where [{table}] match :search and [{table}].rowid {compare} :bound "
            f"and {conditions.unindexed()} order by [{table}].rowid {direction}"
        )
        rows = connection.execute(sql, values)
        # Of one millisecond, they were indexed in any order.
        for _, same in itertools.groupby(rows, lambda row: row[0] >> _CALLS_BITS):
            yield from sorted((call_id for _, call_id in same), reverse=descending)


def is_rare(connection: sqlite3.Connection, text: str, below: int) -> bool:
    """Whether fewer calls than this have certain words.

    Args:
        connection: a connection to the internal database.
        text: the words, as for `match_of()`.
        below: how many are not rare.

    Raises:
        BadFilterError: the words are invalid.
    """
    match, found = match_of(text), 0
    for _, table in _weeks(connection):
        sql = f"select count(*) from (select 1 from [{table}] where [{table}] match ? limit ?)"
        found += connection.execute(sql, (match, below)).fetchone()[0]
        if found >= below:
            return False
    return True


def condition(connection: sqlite3.Connection, text: str) -> tuple[str, dict[str, Any]]:
    """The SQL condition on `llm_calls` for calls whose content has certain words.

    Args:
        connection: a connection to the internal database.
        text: the words, as for `match_of()`.

    Returns:
        The condition, and its parameters.

    Raises:
        BadFilterError: the words are invalid.
    """
    match = match_of(text)
    tables = [table for _, table in _weeks(connection)]
    if not tables:
        return "0", {}
    rows = " union all ".join(
        f"select rowid from [{table}] where [{table}] match :search" for table in tables
    )
    sql = f"id in (select call_id from llm_search_calls where row in ({rows}))"
    return sql, {"search": match}


def _add(connection: sqlite3.Connection, call_id: str, contents: Iterable[str]) -> None:
    ms = _milliseconds(call_id)
    text = "\n".join(_texts(contents))[:MAX_CHARS]
    if ms is None or not text.strip():
        return
    first = ms << _CALLS_BITS
    (last,) = connection.execute(
        "select max(row) from llm_search_calls where row >= ? and row < ?",
        (first, first + (1 << _CALLS_BITS)),
    ).fetchone()
    values = (first if last is None else last + 1, call_id)
    connection.execute("insert into llm_search_calls (row, call_id) values (?, ?)", values)
    table = f"{_PREFIX}{ms // WEEK_MS}"
    connection.execute(
        f"create virtual table if not exists [{table}] using fts5(text, content='', "
        "tokenize='unicode61 remove_diacritics 2')"
    )
    connection.execute(f"insert into [{table}] (rowid, text) values (?, ?)", (values[0], text))


def _weeks(connection: sqlite3.Connection, descending: bool = True) -> Sequence[tuple[int, str]]:
    """The weeks that have an index, by default newest first, each with the name of its table."""
    if not has_index(connection):
        return ()
    sql = "select name from sqlite_master where type = 'table' and name glob ?"
    names = [name for (name,) in connection.execute(sql, (f"{_PREFIX}[0-9]*",))]
    weeks = [(name.removeprefix(_PREFIX), name) for name in names]
    numbered = ((int(week), name) for week, name in weeks if week.isdecimal())
    return sorted(numbered, reverse=descending)


def _is_past(week: int, bound: int, descending: bool) -> bool:
    """Whether a week is on the other side of a row."""
    if descending:
        return week * WEEK_MS << _CALLS_BITS > bound
    return (week + 1) * WEEK_MS << _CALLS_BITS <= bound


def _milliseconds(call_id: str) -> int | None:
    """When a call began, since 1970; None for an id that is no ULID."""
    try:
        return int(ULID.from_str(call_id.upper()).milliseconds)
    except ValueError:
        return None


def _row_at(cursor: str | None, descending: bool) -> int:
    """The last row, or the first, of the millisecond of a call."""
    ms = _milliseconds(cursor) if cursor is not None else None
    if ms is None:
        return (1 << 62) if descending else 0
    return (ms + 1 << _CALLS_BITS) - 1 if descending else ms << _CALLS_BITS


def _quoted(phrase: str, word: str) -> str:
    if word.endswith("*"):
        return '"{}"*'.format(word.rstrip("*").replace('"', '""'))
    return '"{}"'.format((phrase or word).replace('"', '""'))


def _texts(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        try:
            messages = json.loads(content)["messages"]
            parts = [part for message in messages for part in message["parts"]]
            texts = [_text(part[name]) for part in parts for name in _TEXTS if part.get(name)]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # a call of which something else was recorded
        yield from texts


def _text(value: object) -> str:
    return well_formed(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

"""Full-text search over the recorded content of calls.

An index is an FTS5 table for the calls of one week, so that retention drops it with its rows:
SQLite before 3.43 cannot delete from an index that has no copy of its text. `llm_search_calls` has
the call of each row of an index; the rows' numbers are in the order in which the calls began.

An index is made of what is recorded, and can be made again. So its failure is no failure of the
call log: what cannot be indexed is recorded all the same.
"""

from __future__ import annotations

import asyncio
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
from ..errors import NewerDatabaseError
from ..sanitize import message_of
from .queries import COLUMNS, BadFilterError, Filter

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# Of one call. What is beyond cannot be found; it is on the call's page.
MAX_CHARS = 100_000
MAX_QUERY_CHARS = 500
MAX_WORDS = 20
WEEK_MS = 7 * 24 * 60 * 60 * 1000
# Content of earlier versions is indexed in batches that do not delay calls for long.
MAX_BATCH = 100
PAUSE_S = 0.1
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
        # Below which call there is content that is still to be indexed.
        """
        create table llm_search_older (
            id integer primary key check (id = 1),
            below_id text not null
        )
        """,
        "insert into llm_search_older select 1, coalesce(max(call_id) || '~', '') "
        "from llm_call_content",
    ):
        db.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, as `migrations.migrate`; those of the call log have to be."""
    database.migrate(connection, migrations, "llm_search_calls", "llm_search_older")


def add(connection: sqlite3.Connection, call_id: str, contents: Iterable[str]) -> None:
    """Index what was recorded of a call, once.

    Args:
        connection: a connection for writing, in a transaction.
        call_id: the call.
        contents: its parts, as they are recorded.

    Raises:
        sqlite3.Error: it cannot be indexed.
    """
    ms = _milliseconds(call_id)
    text = "\n".join(_texts(contents))[:MAX_CHARS]
    if ms is None or not text.strip():
        return
    first = ms << _CALLS_BITS
    known = connection.execute(
        "select row, call_id from llm_search_calls where row >= ? and row < ? order by row",
        (first, first + (1 << _CALLS_BITS)),
    ).fetchall()
    if any(each == call_id for _, each in known):
        return
    row = known[-1][0] + 1 if known else first
    table = f"{_PREFIX}{ms // WEEK_MS}"
    connection.execute(
        f"create virtual table if not exists [{table}] using fts5(text, content='', "
        "tokenize='unicode61 remove_diacritics 2')"
    )
    connection.execute(f"insert into [{table}] (rowid, text) values (?, ?)", (row, text))
    # Last, since a row without an index would take the call for indexed. There is no savepoint,
    # at each of which FTS5 would write what it has gathered.
    values = (row, call_id)
    connection.execute("insert into llm_search_calls (row, call_id) values (?, ?)", values)


def try_add(connection: sqlite3.Connection, call_id: str, contents: Iterable[str]) -> None:
    """As `add()`; what cannot be indexed is logged, and not raised."""
    try:
        add(connection, call_id, contents)
    except sqlite3.DatabaseError as error:
        if not connection.in_transaction:
            raise  # SQLite has rolled back what else was to be written
        logger.error("A call of the LLM call log could not be indexed: %s", message_of(error))


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


async def index_older(datasette: Datasette) -> None:
    """Index the content of earlier versions, newest first, in batches.

    Args:
        datasette: the Datasette instance, which supervises this as a background task.
    """
    left, failed = True, False
    while left:
        try:
            left = await datasette.get_internal_database().execute_write_fn(index_batch)
        except (DatasetteClosedError, NewerDatabaseError):
            return  # closed without a shutdown, or the call log says why
        except sqlite3.Error as error:
            if not failed:
                logger.warning("Older calls of the LLM call log are not indexed: %s", error)
            failed = True
            await asyncio.sleep(RETRY_S)
        await asyncio.sleep(PAUSE_S)


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether there are tables to search."""
    sql = "select count(*) from sqlite_master where name in ('llm_search_calls', 'llm_calls')"
    return bool(connection.execute(sql).fetchone()[0] == 2)


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether the content of earlier versions is indexed, too."""
    row = connection.execute("select below_id from llm_search_older").fetchone()
    return row is None or row[0] == ""


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


def calls(
    connection: sqlite3.Connection,
    text: str,
    log_filter: Filter,
    *,
    before: str | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """A page of the calls whose content has certain words, newest first.

    Args:
        connection: a connection to the internal database.
        text: the words, as for `match_of()`.
        log_filter: which calls.
        before: the id of the last call of the previous page; None for the first page.
        limit: the maximum number of calls.

    Raises:
        BadFilterError: the words or the filter are invalid.
    """
    condition, values = log_filter.where()
    values |= {"search": match_of(text), "before": before or "~"}
    values["last"] = _last_row(before)
    found: list[dict[str, Any]] = []
    if not has_index(connection):
        return found
    for week, table in _weeks(connection):
        if week * WEEK_MS << _CALLS_BITS > values["last"]:
            continue
        sql = (
            f"select {', '.join(COLUMNS)} from [{table}] "
            f"join llm_search_calls on llm_search_calls.row = [{table}].rowid "
            f"join llm_calls on llm_calls.id = llm_search_calls.call_id "
            f"where [{table}] match :search and [{table}].rowid <= :last "
            f"and llm_calls.id < :before and {condition} "
            f"order by [{table}].rowid desc limit :n"
        )
        rows = connection.execute(sql, values | {"n": limit - len(found)})
        found += (dict(zip(COLUMNS, row, strict=True)) for row in rows)
        if len(found) >= limit:
            break
    return sorted(found, key=lambda call: call["id"], reverse=True)


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
    tables = [table for _, table in _weeks(connection)] if has_index(connection) else []
    if not tables:
        return "0", {}
    rows = " union all ".join(
        f"select rowid from [{table}] where [{table}] match :search" for table in tables
    )
    sql = f"id in (select call_id from llm_search_calls where row in ({rows}))"
    return sql, {"search": match}


def index_batch(connection: sqlite3.Connection) -> bool:
    """Index a batch of older content; whether there may be more."""
    migrate(connection)
    (below,) = connection.execute("select below_id from llm_search_older").fetchone() or ("",)
    found = connection.execute(
        "select distinct call_id from llm_call_content where call_id < ? "
        "order by call_id desc limit ?",
        (below, MAX_BATCH),
    ).fetchall()
    for (call_id,) in found:
        sql = "select content from llm_call_content where call_id = ? order by part"
        try_add(connection, call_id, [text for (text,) in connection.execute(sql, (call_id,))])
    rest = found[-1][0] if len(found) == MAX_BATCH else ""
    if rest != below:
        connection.execute("update llm_search_older set below_id = ?", (rest,))
    return rest != ""


def _weeks(connection: sqlite3.Connection) -> Sequence[tuple[int, str]]:
    """The weeks that have an index, newest first, each with the name of its table."""
    sql = "select name from sqlite_master where type = 'table' and name glob ?"
    names = [name for (name,) in connection.execute(sql, (f"{_PREFIX}[0-9]*",))]
    weeks = [(name.removeprefix(_PREFIX), name) for name in names]
    return sorted(((int(week), name) for week, name in weeks if week.isdecimal()), reverse=True)


def _milliseconds(call_id: str) -> int | None:
    """When a call began, since 1970; None for an id that is no ULID."""
    try:
        return int(ULID.from_str(call_id.upper()).milliseconds)
    except ValueError:
        return None


def _last_row(before: str | None) -> int:
    ms = _milliseconds(before) if before is not None else None
    return (1 << 62) if ms is None else (ms + 1 << _CALLS_BITS) - 1


def _quoted(phrase: str, word: str) -> str:
    if word.endswith("*"):
        return '"{}"*'.format(word.rstrip("*").replace('"', '""'))
    return '"{}"'.format((phrase or word).replace('"', '""'))


def _texts(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        try:
            messages = json.loads(content)["messages"]
            parts = [part for message in messages for part in message["parts"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # a call of which something else was recorded
        yield from (_text(part[name]) for part in parts for name in _TEXTS if part.get(name))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

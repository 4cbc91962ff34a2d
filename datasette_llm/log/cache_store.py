"""The answers that the response cache keeps, in Datasette's internal database.

`llm_cache` has one row for each answer, `llm_cache_sizes` how many there are and how large: by the
setting that keeps them, since that bounds them, and by purpose. Triggers keep the sums. An answer
that is damaged is none, and a failure of this table is none of the call log, in whose transactions
it is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from datasette.utils.sqlite import sqlite3
from llm.parts import StreamEvent
from sqlite_utils import Database, Migrations

from .. import migrations as database
from ..errors import NewerDatabaseError
from ..redaction import Keys, without_key

logger = logging.getLogger("datasette_llm")

# Of one answer, as it is kept.
MAX_ANSWER_BYTES = 10_000_000
# What the rest of its row and the indexes take, about; most of it where answers are a word or two.
ROW_BYTES = 350
# So many are removed at once; the same number in one transaction by age.
MAX_BATCH = 250
# So much of `max_mb` is made free together.
FREED_SHARE = 0.02
# Room is made for so long in one transaction, since the call log waits meanwhile. After `max_mb`
# was lowered the next ones do the rest.
MAKE_ROOM_S = 0.05
DAY_MS = 24 * 60 * 60 * 1000
# The use of an answer is noted no more often.
TOUCH_MS = 60_000
# By so much two clocks may differ; an answer that is younger than now is none.
CLOCK_MS = 60_000

TABLES = ("llm_cache", "llm_cache_sizes")
_READ = "select call_id, created_ms, used_ms, checksum, answer from llm_cache where digest = ?"
_TOUCH = "update llm_cache set used_ms = ? where digest = ?"
_INSERT = (
    "insert into llm_cache (digest, setting, purpose, model_id, call_id, created_ms, used_ms, "
    "bytes, checksum, answer) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_BYTES = "select coalesce(sum(bytes), 0) from llm_cache_sizes where setting = ?"
_OLDEST = (
    "select digest, bytes from llm_cache where setting = ? and digest != ? order by used_ms limit ?"
)
_RECOUNT = (
    "insert into llm_cache_sizes (setting, purpose, answers, bytes) "
    "select setting, purpose, count(*), sum(bytes) from llm_cache where setting = ? group by 1, 2"
)
_PLAIN_EVENT = StreamEvent("text", "")

migrations = Migrations("datasette_llm_cache")


@migrations()
def m001_cache(db: Database) -> None:
    for statement in (
        """
        create table llm_cache (
            digest blob primary key,
            setting text not null,
            purpose text not null,
            model_id text not null,
            call_id text not null,
            created_ms integer not null,
            used_ms integer not null,
            bytes integer not null,
            checksum blob not null,
            answer blob not null
        )
        """,
        "create index llm_cache_used on llm_cache (setting, used_ms)",
        "create index llm_cache_created on llm_cache (setting, created_ms)",
        "create index llm_cache_purpose on llm_cache (purpose)",
        """
        create table llm_cache_sizes (
            setting text not null,
            purpose text not null,
            answers integer not null,
            bytes integer not null,
            primary key (setting, purpose)
        ) without rowid
        """,
        """
        create trigger llm_cache_insert after insert on llm_cache
        begin
            insert into llm_cache_sizes (setting, purpose, answers, bytes)
            values (new.setting, new.purpose, 1, new.bytes)
            on conflict do update set answers = answers + 1, bytes = bytes + new.bytes;
        end
        """,
        """
        create trigger llm_cache_delete after delete on llm_cache
        begin
            update llm_cache_sizes set answers = answers - 1, bytes = bytes - old.bytes
            where setting = old.setting and purpose = old.purpose;
            delete from llm_cache_sizes
            where setting = old.setting and purpose = old.purpose and answers <= 0;
        end
        """,
    ):
        db.execute(statement)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Answer:
    """A whole answer.

    Attributes:
        call_id: the call that it was the answer of.
        events: what came, in order.
        attributes: what the provider set on the response: its tokens, its JSON, its model.
        gateway_cost_dollars: what a gateway said that it cost, or None.
        duration_s: how long its request took, in seconds.
        created_ms: when it was complete, in milliseconds since 1970.
        keys: it is not kept if it or its request holds one of these; None once it is kept.
    """

    call_id: str
    events: tuple[StreamEvent, ...]
    attributes: Mapping[str, Any]
    gateway_cost_dollars: float | None
    duration_s: float
    created_ms: int
    keys: Keys = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """Its text, without its reasoning."""
        return "".join(each.chunk for each in self.events if each.type == "text")


class Place(NamedTuple):
    """Where an answer is kept.

    Attributes:
        digest: of the request.
        setting: the path of the setting that keeps it.
        purpose: of the call, or None.
        model_id: the model that was asked.
        max_bytes: how much all answers of the setting may take.
    """

    digest: bytes
    setting: str
    purpose: str | None
    model_id: str
    max_bytes: int


class Bounds(NamedTuple):
    """What a setting keeps.

    Attributes:
        keep_days: how long.
        max_bytes: how much.
    """

    keep_days: int
    max_bytes: int


class Size(NamedTuple):
    """How much is kept.

    Attributes:
        setting: the path of the setting that keeps it.
        purpose: the purpose; empty for calls without one.
        answers: how many.
        bytes: how large they are.
    """

    setting: str
    purpose: str
    answers: int
    bytes: int


def now_ms() -> int:
    """Now, in milliseconds since 1970."""
    return int(time.time() * 1000)


def find(
    connection: sqlite3.Connection, digest: bytes, keep_days: int
) -> tuple[Answer | None, bool]:
    """The answer that is kept for a request, unless it is too old or damaged.

    Args:
        connection: a connection for reading.
        digest: of the request.
        keep_days: older answers are none.

    Returns:
        The answer or None, and whether its use is to be noted.

    Raises:
        sqlite3.Error: the database cannot be read, or has no such table.
    """
    row = connection.execute(_READ, (digest,)).fetchone()
    if row is None:
        return None, False
    call_id, created_ms, used_ms, checksum, text = row
    now = now_ms()
    if not isinstance(text, bytes) or _checksum(digest, call_id, created_ms, text) != checksum:
        return None, False
    if not now - keep_days * DAY_MS < created_ms <= now + CLOCK_MS:
        return None, False
    try:
        answer = _decoded(call_id, created_ms, text)
    except Exception:  # of another version of llm, or of ours
        return None, False
    return answer, not isinstance(used_ms, int) or abs(now - used_ms) > TOUCH_MS


def encoded(answer: Answer, form: str) -> str | None:
    """An answer as JSON; None if it has no such form, or it or its request holds a key.

    Args:
        answer: the answer.
        form: the canonical form of the request.
    """
    try:
        text = _encoded(answer)
    except (TypeError, ValueError, RecursionError):
        return None  # a provider's own objects
    searched = (text, *_texts(answer), form)
    return None if any(without_key(each, answer.keys) != each for each in searched) else text


def keep(connection: sqlite3.Connection, place: Place, answer: Answer, form: str) -> None:
    """Keep an answer in the place of an older one, and make room for it.

    Args:
        connection: a connection for writing, in a transaction.
        place: where.
        answer: the answer; not kept if it cannot be `encoded()`, or is too large.
        form: the canonical form of the request.
    """
    found = encoded(answer, form)
    if found is None:
        return
    text = found.encode()
    if len(text) > min(MAX_ANSWER_BYTES, place.max_bytes):
        note_too_large(place.model_id, len(text))
        return
    connection.execute("delete from llm_cache where digest = ?", (place.digest,))
    values = (place.setting, place.purpose or "", place.model_id, answer.call_id)
    times = (answer.created_ms, answer.created_ms)
    checksum = _checksum(place.digest, answer.call_id, answer.created_ms, text)
    size = len(text) + ROW_BYTES
    connection.execute(_INSERT, (place.digest, *values, *times, size, checksum, text))
    # Not every SQLite does so by default; deleted text would stay readable in the file.
    connection.execute("pragma secure_delete = on")
    _make_room(connection, place.setting, place.max_bytes, place.digest)


def touch(connection: sqlite3.Connection, digest: bytes) -> None:
    """Note that an answer was used."""
    connection.execute(_TOUCH, (now_ms(), digest))


def note_too_large(model_id: str, size: int) -> None:
    """Tell the administrator of an answer that is not kept."""
    logger.warning(
        "An answer of model %r was not kept in the response cache: it has %s bytes, and there is "
        "room for %s, or for max_mb of the setting",
        model_id,
        f"{size:,}",
        f"{MAX_ANSWER_BYTES:,}",
    )


class Guard:
    """Writes to the tables: a failure is none of the transaction that a write is a part of."""

    def __init__(self) -> None:
        self._failure: str | None = None

    def write(
        self, work: Callable[[sqlite3.Connection], object], connection: sqlite3.Connection
    ) -> None:
        """Write; the administrator hears of a failure once, until a write succeeds.

        Args:
            work: what writes.
            connection: a connection for writing, in a transaction.
        """
        connection.execute("savepoint llm_cache")
        failure = None
        try:
            _migrated(connection)
            work(connection)
        except (sqlite3.Error, NewerDatabaseError) as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back everything
            connection.execute("rollback to llm_cache")
            failure = str(error)
        connection.execute("release llm_cache")
        if failure is not None and failure != self._failure:
            logger.error("The response cache cannot be written: %s", failure)
        self._failure = failure


def sizes(connection: sqlite3.Connection) -> list[Size]:
    """How much is kept, by setting and purpose; empty where nothing ever was.

    Raises:
        sqlite3.Error: the database cannot be read.
    """
    if not has_tables(connection):
        return []
    sql = "select setting, purpose, answers, bytes from llm_cache_sizes order by purpose, setting"
    return [Size(*row) for row in connection.execute(sql)]


def clear(connection: sqlite3.Connection, purpose: str | None) -> int:
    """Remove `MAX_BATCH` answers at most.

    Args:
        connection: a connection for writing, in a transaction.
        purpose: only those of this purpose, empty for none; None for all.

    Returns:
        How many were removed.
    """
    if not has_tables(connection):
        return 0
    which, values = ("", ()) if purpose is None else (" where purpose = ?", (purpose,))
    return _remove(connection, f"select digest from llm_cache{which}", values)


def expire(connection: sqlite3.Connection, bounds: Mapping[str, Bounds]) -> int:
    """Remove some answers that are too old, too much, or that no setting keeps any more.

    Those that a clock has put into the future go as well: none is a hit, and as the ones that
    were used last they would be the last to make room.

    Args:
        connection: a connection for writing, in a transaction.
        bounds: of each setting that keeps answers, by its path.

    Returns:
        How many were removed; 0 once there are no more.
    """
    for setting in {each.setting for each in sizes(connection)}:
        own, now = bounds.get(setting), now_ms()
        oldest_ms = now + CLOCK_MS + 1 if own is None else now - own.keep_days * DAY_MS
        sql = (
            "select digest from llm_cache where setting = ? and (created_ms < ? or created_ms > ?)"
        )
        removed = _remove(connection, sql, (setting, oldest_ms, now + CLOCK_MS))
        if not removed and own is not None:
            removed = _make_room(connection, setting, own.max_bytes)
        if removed:
            return removed
    return 0


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether anything was ever kept."""
    sql = "select count(*) from sqlite_master where name in (?, ?)"
    return bool(connection.execute(sql, TABLES).fetchone()[0] == len(TABLES))


def _make_room(
    connection: sqlite3.Connection, setting: str, max_bytes: int, digest: bytes = b""
) -> int:
    """Remove least recently used answers of a setting that keeps too much.

    Args:
        connection: a connection for writing, in a transaction.
        setting: the path of the setting.
        max_bytes: how much it keeps.
        digest: of the answer that room is made for.

    Returns:
        How many were removed.
    """
    total: int = connection.execute(_BYTES, (setting,)).fetchone()[0]
    if total <= max_bytes:
        return 0
    excess = total - max_bytes * (1 - FREED_SHARE)
    end, removed = time.monotonic() + MAKE_ROOM_S, 0
    while excess > 0 and (time.monotonic() < end or not removed):
        oldest = connection.execute(_OLDEST, (setting, digest, MAX_BATCH)).fetchall()
        if not oldest:  # the new one is as large as all, or the sums were damaged
            connection.execute("delete from llm_cache_sizes where setting = ?", (setting,))
            connection.execute(_RECOUNT, (setting,))
            break
        for each, size in oldest:
            if excess <= 0:
                break
            connection.execute("delete from llm_cache where digest = ?", (each,))
            excess -= size
            removed += 1
    return removed


def _remove(connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> int:
    connection.execute("pragma secure_delete = on")
    sql = f"delete from llm_cache where digest in ({which} limit {MAX_BATCH})"
    return int(connection.execute(sql, values).rowcount)


def _migrated(connection: sqlite3.Connection) -> None:
    if not has_tables(connection):
        database.migrate(connection, migrations, *TABLES)


def _checksum(digest: bytes, call_id: str, created_ms: int, text: bytes) -> bytes:
    return hashlib.sha256(digest + f"{call_id!r} {created_ms!r} ".encode() + text).digest()


def _encoded(answer: Answer) -> str:
    events = [_event(each) for each in answer.events]
    measured = (answer.gateway_cost_dollars, answer.duration_s)
    return json.dumps([events, dict(answer.attributes), *measured])


def _texts(answer: Answer) -> Iterator[str]:
    """What a reader sees, in one piece by type: chunks may hold a key in parts."""
    for kind in {each.type for each in answer.events}:
        yield "".join(each.chunk for each in answer.events if each.type == kind)


def _event(event: StreamEvent) -> list[Any] | dict[str, Any]:
    """An event as JSON; of nearly all of them only the text and its part."""
    values = vars(event)
    plain = vars(_PLAIN_EVENT) | {"chunk": event.chunk, "part_index": event.part_index}
    return [event.chunk, event.part_index] if values == plain else values


def _decoded(call_id: str, created_ms: int, text: bytes) -> Answer:
    events, attributes, cost, duration_s = json.loads(text)
    made = tuple(
        StreamEvent("text", each[0], each[1]) if isinstance(each, list) else StreamEvent(**each)
        for each in events
    )
    return Answer(call_id, made, attributes, cost, duration_s, created_ms)

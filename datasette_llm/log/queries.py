"""Queries on the call log; functions of a connection, for a reading thread."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, NamedTuple, get_args

from datasette.utils.sqlite import sqlite3
from ulid import ULID

from ..errors import FailureKind, LLMError
from ..events import FinishReason
from .schema import FINISHED_COLUMNS, OUTCOMES, STARTED_COLUMNS, TIME_DIGITS

RUNNING = "running"
BATCH_ROWS = 1_000
MAX_TAG_KEYS = 50
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST_MS = 250_000_000_000_000  # in the year 9892

FINISH_REASONS = tuple(map(str, FinishReason))
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
# The filters by what is known at the end of a call, with their values.
CLOSED: Mapping[str, tuple[str, ...]] = {
    "outcome": (*OUTCOMES, RUNNING),
    "finish_reason": FINISH_REASONS,
    "failure_kind": FAILURE_KINDS,
}
_FILTER_COLUMNS = {
    "model": "model_id",
    "purpose": "purpose",
    "actor": "actor_id",
    "group": "group_id",
} | {name: name for name in CLOSED}
# The index of tags, with the name of the other table for a call's id.
_TAGS = "(select key, value, call_id as id from llm_call_tags)"
COLUMNS = tuple(name for name in STARTED_COLUMNS + FINISHED_COLUMNS if name != "session_id")
NUMBERS = frozenset(
    name
    for name in COLUMNS
    if name.endswith(("_ms", "_chars", "_count", "_tokens", "_nanodollars"))
    or name in ("streaming", "attempt", "chain_step")
)


class Conditions(NamedTuple):
    """The conditions of a filter, as SQL.

    Attributes:
        equal: on values of a call.
        tagged: on tags of a call, each on a row of `_TAGS`.
        between: on the id, for the time.
        values: the parameters.
    """

    equal: list[str]
    tagged: list[str]
    between: list[str]
    values: dict[str, Any]

    def on_calls(self) -> str:
        """One condition for a row of `llm_calls`."""
        in_tags = [f"id in ({_select(_TAGS, each, self.between)})" for each in self.tagged]
        return " and ".join(["1", *self.equal, *self.between, *in_tags])

    def newest_ids(self) -> str:
        """SQL for the ids of the newest `:n` calls that meet all conditions.

        Each value's ids come from its own index, in order, and SQLite intersects them: no other
        row of the table is read, however rare the combination is.
        """
        selects = [_select("llm_calls", each, self.between) for each in self.equal]
        selects += [_select(_TAGS, each, self.between) for each in self.tagged]
        selects = selects or [_select("llm_calls", "1", self.between)]
        return f"{' intersect '.join(selects)} order by id desc limit :n"


class BadFilterError(LLMError):
    """A filter of the call log is invalid; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which calls to select; None for any value, an empty text for calls without one.

    Attributes:
        model: a model id.
        purpose: a purpose.
        actor: an actor's id.
        outcome: one of `OUTCOMES`, or `RUNNING` for calls that have not ended.
        group: a group's id.
        since: the start, inclusive; an ISO 8601 date or time, in UTC unless it has a zone.
        until: the end, exclusive; likewise.
        finish_reason: why the answer ended, one of `FINISH_REASONS`.
        failure_kind: what kind of failure it was, one of `FAILURE_KINDS`.
        tag: tags that a call has to have, all of them, such as `job:12`.
    """

    model: str | None = None
    purpose: str | None = None
    actor: str | None = None
    outcome: str | None = None
    group: str | None = None
    since: str | None = None
    until: str | None = None
    finish_reason: str | None = None
    failure_kind: str | None = None
    tag: tuple[str, ...] = ()

    def where(self) -> tuple[str, dict[str, Any]]:
        """The SQL condition and its parameters.

        Raises:
            BadFilterError: the outcome, the reason, the kind, a time or a tag is invalid.
        """
        found = self.conditions()
        return found.on_calls(), found.values

    def conditions(self) -> Conditions:
        """The conditions as SQL, with their parameters.

        Raises:
            BadFilterError: the outcome, the reason, the kind, a time or a tag is invalid.
        """
        equal, tagged, between, values = [], [], [], dict[str, Any]()
        for name, column in _FILTER_COLUMNS.items():
            value = _known(name, getattr(self, name))
            if value == "" or (name, value) == ("outcome", RUNNING):
                equal.append(f"{column} is null")
            elif value is not None:
                equal.append(f"{column} = :{name}")
                values[name] = value
        for number, text in enumerate(self.tag):
            key, value = _tag(text)
            place = f":value{number}"
            if _is_number(value):  # which SQLite writes in its own way
                place = f"cast(cast({place} as real) as text)"
            tagged.append(f"key = :key{number} and value = {place}")
            values |= {f"key{number}": key, f"value{number}": value}
        # By id, which begins with the time and is the order of the table.
        for name, operator in (("since", ">="), ("until", "<")):
            if getattr(self, name) is not None:
                between.append(f"id {operator} :{name}")
                values[name] = first_id(moment(name, getattr(self, name)))
        return Conditions(equal, tagged, between, values)

    def given(self) -> dict[str, Any]:
        """The filters that are set, by name."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: value for name, value in values.items() if value not in (None, ())}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the filters."""
        return tuple(f.name for f in fields(cls))


def calls(
    connection: sqlite3.Connection, log_filter: Filter, *, before: str | None = None, limit: int
) -> list[dict[str, Any]]:
    """A page of calls, newest first.

    Args:
        connection: a connection to the internal database.
        log_filter: which calls.
        before: the id of the last call of the previous page; None for the first page.
        limit: the maximum number.

    Returns:
        The rows; `outcome` is `RUNNING` for calls that have not ended.
    """
    found = log_filter.conditions()
    if before is not None:
        found.between.append("id < :before")
        found.values["before"] = before
    sql = (
        f"select {', '.join(COLUMNS)} from llm_calls "
        f"where id in ({found.newest_ids()}) order by id desc"
    )
    return _rows(connection, sql, found.values | {"n": limit})


def all_calls(connection: sqlite3.Connection, log_filter: Filter) -> Iterator[dict[str, Any]]:
    """All calls, newest first, with a bounded number of rows in memory."""
    before = None
    while page := calls(connection, log_filter, before=before, limit=BATCH_ROWS):
        yield from page
        before = page[-1]["id"]


def calls_since(
    connection: sqlite3.Connection, log_filter: Filter, ids: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The calls that have started or ended since the last look, oldest first.

    Args:
        connection: a connection to the internal database.
        log_filter: which calls.
        ids: the known calls: outcome by id.
    """
    running = [call_id for call_id, outcome in ids.items() if outcome == RUNNING]
    newest = max(ids, default="")
    condition, values = log_filter.where()
    places = ", ".join(f":r{number}" for number in range(len(running)))
    sql = (
        f"select {', '.join(COLUMNS)} from llm_calls where {condition} "
        f"and (id > :newest or (id in ({places}) and outcome is not null)) order by id"
    )
    values |= {f"r{number}": call_id for number, call_id in enumerate(running)}
    return _rows(connection, sql, values | {"newest": newest})


def call(connection: sqlite3.Connection, call_id: str) -> dict[str, Any] | None:
    """One call, or None if there is none with this id."""
    sql = f"select {', '.join(COLUMNS)} from llm_calls where id = :id"
    return next(iter(_rows(connection, sql, {"id": call_id})), None)


def chain_steps(
    connection: sqlite3.Connection, chain_id: str, *, limit: int
) -> list[dict[str, Any]]:
    """The requests of a chain, in order."""
    sql = f"select {', '.join(COLUMNS)} from llm_calls where chain_id = :chain order by id limit :n"
    return _rows(connection, sql, {"chain": chain_id, "n": limit})


def attempts(
    connection: sqlite3.Connection, response_id: str, *, limit: int
) -> list[dict[str, Any]]:
    """The attempts at one response, in order; the first has the response's id."""
    sql = (
        f"select {', '.join(COLUMNS)} from llm_calls "
        "where id = :response or prompt_id = :response order by attempt limit :n"
    )
    return _rows(connection, sql, {"response": response_id, "n": limit})


def first_call(connection: sqlite3.Connection, log_filter: Filter) -> str:
    """The id of the oldest call that matches; empty if there is none."""
    condition, values = log_filter.where()
    sql = f"select min(id) from llm_calls where {condition}"
    return connection.execute(sql, values).fetchone()[0] or ""


def content(connection: sqlite3.Connection, call_id: str) -> dict[str, str]:
    """The recorded `request` and `response` of a call, as JSON text."""
    sql = "select part, content from llm_call_content where call_id = ?"
    return dict(connection.execute(sql, (call_id,)).fetchall())


def gives_reasons(connection: sqlite3.Connection, model_id: str) -> bool:
    """Whether the newest answers of a model had a finish reason.

    Args:
        connection: to the internal database.
        model_id: the model.
    """
    newest = "select finish_reason from llm_calls where model_id = ? order by id desc limit 100"
    sql = f"select exists (select 1 from ({newest}) where finish_reason is not null)"
    return bool(connection.execute(sql, [model_id]).fetchone()[0])


def tag_keys(connection: sqlite3.Connection) -> list[str]:
    """The keys of tags, in order; the first `MAX_TAG_KEYS`."""
    # Steps from one key to the next in the index, however many rows each has.
    sql = """
        with recursive found(key) as (
            select min(key) from llm_call_tags
            union all
            select (select min(key) from llm_call_tags where key > found.key)
            from found where found.key is not null
        )
        select key from found where key is not null limit ?
    """
    return [key for (key,) in connection.execute(sql, (MAX_TAG_KEYS,))]


def tag_text(key: str, value: object) -> str:
    """A tag as the filter takes it."""
    return f"{key}:{value if isinstance(value, str) else json.dumps(value)}"


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the tables exist; they are created with the first write."""
    sql = "select 1 from sqlite_master where type = 'table' and name = 'llm_calls'"
    return connection.execute(sql).fetchone() is not None


def moment(name: str, text: str) -> datetime.datetime:
    """Parse the time of a filter, to UTC; not before 1970, where ids begin.

    Raises:
        BadFilterError: it is no date or time.
    """
    try:
        found = datetime.datetime.fromisoformat(text)
        zoned = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
        return max(EPOCH, zoned.astimezone(datetime.UTC))
    except (ValueError, OverflowError):
        raise BadFilterError(
            f"{name}: {text!r} is no date or time; write it like 2026-01-31 or 2026-01-31T12:00"
        ) from None


def cached(
    connection: sqlite3.Connection, log_filter: Filter, *conditions: str, **values: Any
) -> tuple[int, int | None]:
    """How many calls got an answer that another one had paid for, and what that has saved.

    Args:
        connection: a connection for reading.
        log_filter: which calls.
        *conditions: further conditions, as SQL.
        **values: their parameters.

    Returns:
        The number, and nano-dollars; None where no price is known.
    """
    where, known = log_filter.where()
    every = " and ".join(["cached_from is not null", f"({where})", *conditions])
    sql = f"select count(*), sum(cast(saved_nanodollars as real)) from llm_calls where {every}"
    count, saved = connection.execute(sql, known | values).fetchone()
    return count, None if saved is None else round(saved)


def first_id(time: datetime.datetime) -> str:
    """The smallest id of a time."""
    return id_at(int(time.timestamp() * 1000))


def id_at(milliseconds: int) -> str:
    """The smallest id of a time in milliseconds since 1970; of 1970 for a time before it."""
    return str(ULID(max(0, milliseconds).to_bytes(6, "big") + bytes(10))).lower()


def time_of(call_id: str) -> datetime.datetime:
    """The time of an id, in UTC; some time for an id that no version has written."""
    places = (max(0, TIME_DIGITS.find(each)) for each in str(call_id)[:10].ljust(10, "0"))
    milliseconds = reduce(lambda value, digit: value * 32 + digit, places, 0)
    return EPOCH + datetime.timedelta(milliseconds=min(milliseconds, _LAST_MS))


def _known(name: str, value: str | None) -> str | None:
    """A value of a filter.

    Raises:
        BadFilterError: there is no such value.
    """
    known = CLOSED.get(name)
    if known is not None and value is not None and value not in known:
        what = name.replace("_", " ")
        raise BadFilterError(f"There is no {what} {value!r}; use one of {', '.join(known)}")
    return value


def _tag(text: str) -> tuple[str, str]:
    """The key and the value of a tag that a filter names.

    Raises:
        BadFilterError: it is no tag.
    """
    key, colon, value = text.partition(":")
    if not colon:
        raise BadFilterError(f"tag: {text!r} has no value; write it like job:12")
    return key, value


def _is_number(text: str) -> bool:
    """Whether a text is a number with a fraction or an exponent, as JSON has it."""
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and repr(number) == text


def text_of(value: Any) -> str | None:
    """A text as any version has written it; also of bytes, which only others write."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _shown(name: str, value: Any) -> Any:
    """A value of a row, of the type of its column; None for a number that is none."""
    if name == "tags":
        return _tags(value)
    if name not in NUMBERS:
        return text_of(value)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _tags(value: Any) -> dict[str, Any]:
    try:
        found = json.loads(value) if value else None
    except (TypeError, ValueError):  # which no version has written
        return {}
    return found if isinstance(found, dict) else {}


def _rows(
    connection: sqlite3.Connection, sql: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    rows = [
        {name: _shown(name, value) for name, value in zip(COLUMNS, row, strict=True)}
        for row in connection.execute(sql, values)
    ]
    for row in rows:
        row["outcome"] = row["outcome"] or RUNNING
    return rows


def _select(table: str, condition: str, between: list[str]) -> str:
    return f"select id from {table} where {' and '.join([condition, *between])}"

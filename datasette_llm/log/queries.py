"""Queries on the call log; functions of a connection, for a reading thread."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, NamedTuple, get_args

from datasette.utils import sqlite_timelimit
from datasette.utils.sqlite import sqlite3
from ulid import ULID

from ..errors import FailureKind, LLMError
from ..events import FinishReason
from ..sanitize import well_formed
from ..tags.values import MAX_TAGS
from .cost import NANODOLLARS
from .schema import FINISHED_COLUMNS, OUTCOMES, STARTED_COLUMNS, TIME_DIGITS

# The values that a filter allows: one, several, or any.
Values = str | tuple[str, ...] | None

RUNNING = "running"
MAX_AMOUNT = 1_000_000_000
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
_COLUMN_OF = {
    "model": "model_id",
    "purpose": "purpose",
    "actor": "actor_id",
    "group": "group_id",
    "conversation": "conversation_id",
    "chain": "chain_id",
    "prompt": "prompt_id",
} | {name: name for name in CLOSED}
# The filters that take several values.
VALUES = tuple(_COLUMN_OF)
# The filters that take bounds: their column, how much of it a unit is, and the unit.
RANGES: Mapping[str, tuple[str, int, str]] = {
    "cost": ("cost_nanodollars", NANODOLLARS, "dollars"),
    "tokens": ("input_tokens + output_tokens", 1, "tokens"),
    "duration": ("duration_ms", 1000, "seconds"),
    "first_chunk": ("first_chunk_ms", 1000, "seconds"),
}
# SQLite's errors where a time limit is reached; the second one while it reads the schema again.
SHORT_OF_TIME = ("SQLITE_INTERRUPT", "SQLITE_SCHEMA")
# As many combinations of values are read from indexes, and as many calls from the table at most.
MAX_COMBINATIONS = 8
MAX_FEW = 10_000
# The index of tags, with the name of the other table for a call's id.
_TAGS = "(select key, value, call_id as id from llm_call_tags)"
COLUMNS = tuple(name for name in STARTED_COLUMNS + FINISHED_COLUMNS if name != "session_id")
SELECT = f"select {', '.join(COLUMNS)} from llm_calls"
NUMBERS = frozenset(
    name
    for name in COLUMNS
    if name.endswith(("_ms", "_chars", "_count", "_tokens", "_nanodollars"))
    or name in ("streaming", "attempt", "chain_step")
)

_PROMPT_SQL = """
    select substr(json_extract(part.value, '$.text'), 1, ?)
    from llm_call_content, json_each(content, '$.messages') as message,
        json_each(message.value, '$.parts') as part
    where call_id = ? and llm_call_content.part = 'request' and json_valid(content)
        and json_extract(message.value, '$.role') = 'user'
        and json_extract(part.value, '$.type') = 'text'
    order by message.key desc, part.key limit 1
"""


class Condition(NamedTuple):
    """A further condition on calls, as SQL.

    Attributes:
        sql: on a row of `llm_calls`.
        values: the names and values of its parameters.
    """

    sql: str
    values: tuple[tuple[str, Any], ...]


class Conditions(NamedTuple):
    """The conditions of a filter, as SQL.

    Attributes:
        equal: on values of a call; each a list of alternatives.
        tagged: on tags of a call, each on a row of `_TAGS`.
        ranges: on numbers of a call, and the further condition.
        between: on the id, for the time.
        values: the parameters.
    """

    equal: list[list[str]]
    tagged: list[str]
    ranges: list[str]
    between: list[str]
    values: dict[str, Any]

    def plain(self) -> list[str]:
        """The conditions on values and numbers of a call."""
        return [*(_either(each) for each in self.equal), *self.ranges]

    def on_calls(self) -> str:
        """One condition for a row of `llm_calls`."""
        in_tags = [f"id in ({_select(_TAGS, each, self.between)})" for each in self.tagged]
        return " and ".join(["1", *self.plain(), *self.between, *in_tags])

    def unindexed(self) -> str:
        """The same for a row that is found otherwise: SQLite uses no index for it."""
        plain = [f"+({each})" for each in self.plain()]
        in_tags = [f"+id in ({_select(_TAGS, each, self.between)})" for each in self.tagged]
        return " and ".join(["1", *plain, *self.between, *in_tags])

    def is_exact(self) -> bool:
        """Whether indexes have the ids that meet the conditions, in order."""
        return not self.ranges and math.prod(map(len, self.equal)) <= MAX_COMBINATIONS

    def exact_ids(self, order: str = "id desc") -> str:
        """SQL for the ids of the first `:n` calls that meet all conditions, which are exact.

        Each value's ids come from its own index, in order, and SQLite intersects them: no other
        row of the table is read, however rare the combination is.
        """
        selects = [self._intersected(each) for each in itertools.product(*self.equal)]
        last = f" order by {order} limit :n"
        if len(selects) == 1:
            return selects[0] + last
        return " union all ".join(f"select id from ({each}{last})" for each in selects) + last

    def few_ids(self, connection: sqlite3.Connection) -> str | None:
        """SQL for the ids that meet the most selective condition, unless even these are many."""
        every = [_select("llm_calls", _either(each), self.between) for each in self.equal]
        every += [_select(_TAGS, each, self.between) for each in self.tagged]
        # Their indexes are not in the order of the ids.
        every += [_select("llm_calls", each, []) for each in self.ranges]
        if self.between:
            every.append(_select("llm_calls", "1", self.between))
        least, found = MAX_FEW, None
        for sql in every:
            counted = f"select count(*) from ({sql} limit {least})"
            count = connection.execute(counted, self.values).fetchone()[0]
            if count < least:
                least, found = count, sql
        return found

    def _intersected(self, equal: Sequence[str]) -> str:
        selects = [_select("llm_calls", each, self.between) for each in equal]
        selects += [_select(_TAGS, each, self.between) for each in self.tagged]
        return " intersect ".join(selects or [_select("llm_calls", "1", self.between)])


# A call has no more: those that are given, and two of our own.
MAX_FILTER_TAGS = MAX_TAGS + 2


class BadFilterError(LLMError):
    """A filter of the call log is invalid; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which calls to select; None for any value, an empty text for calls without one.

    Of several values, a call has one.

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
        conversation: a conversation's id.
        chain: a chain's id.
        prompt: the id of the first attempt at a response, for all attempts at it.
        min_cost: the least cost, in dollars, as a text; the other bounds likewise.
        max_cost: the greatest cost.
        min_tokens: the fewest tokens, in and out together.
        max_tokens: the most tokens.
        min_duration: the shortest time to the end, in seconds.
        max_duration: the longest.
        min_first_chunk: the shortest time to the first chunk, in seconds.
        max_first_chunk: the longest.
        only: a further condition, which is no argument of an address.
    """

    model: Values = None
    purpose: Values = None
    actor: Values = None
    outcome: Values = None
    group: Values = None
    since: str | None = None
    until: str | None = None
    finish_reason: Values = None
    failure_kind: Values = None
    tag: tuple[str, ...] = ()
    conversation: Values = None
    chain: Values = None
    prompt: Values = None
    min_cost: str | None = None
    max_cost: str | None = None
    min_tokens: str | None = None
    max_tokens: str | None = None
    min_duration: str | None = None
    max_duration: str | None = None
    min_first_chunk: str | None = None
    max_first_chunk: str | None = None
    only: Condition | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """The SQL condition and its parameters.

        Raises:
            BadFilterError: a value, a number, a time or a tag is invalid.
        """
        found = self.conditions()
        return found.on_calls(), found.values

    def conditions(self) -> Conditions:
        """The conditions as SQL, with their parameters.

        Raises:
            BadFilterError: a value, a number, a time or a tag is invalid.
        """
        found = Conditions([], [], [], [], {})
        for name in VALUES:
            self._add_values(found, name)
        if len(self.tag) > MAX_FILTER_TAGS:
            raise BadFilterError(f"tag: up to {MAX_FILTER_TAGS} at once, not {len(self.tag)}")
        for number, text in enumerate(self.tag):
            _add_tag(found, number, text)
        for name in RANGES:
            self._add_range(found, name)
        # By id, which begins with the time and is the order of the table.
        for name, operator in (("since", ">="), ("until", "<")):
            if getattr(self, name) is not None:
                found.between.append(f"id {operator} :{name}")
                found.values[name] = first_id(moment(name, getattr(self, name)))
        if self.only is not None:
            found.ranges.append(self.only.sql)
            found.values.update(self.only.values)
        return found

    def _add_values(self, found: Conditions, name: str) -> None:
        alternatives = []
        for number, value in enumerate(several(getattr(self, name))):
            _check_known(name, value)
            if value == "" or (name, value) == ("outcome", RUNNING):
                alternatives.append(f"{_COLUMN_OF[name]} is null")
                continue
            place = f":{name}{number}"
            found.values[place[1:]] = value
            if name == "prompt":
                alternatives.append(f"(id = {place} or prompt_id = {place})")
            else:
                alternatives.append(f"{_COLUMN_OF[name]} = {place}")
        if alternatives:
            found.equal.append(alternatives)

    def _add_range(self, found: Conditions, name: str) -> None:
        column, per_unit, _ = RANGES[name]
        bounds = {}
        for bound, operator in (("min", ">="), ("max", "<=")):
            text = getattr(self, f"{bound}_{name}")
            if text is not None:
                bounds[bound] = amount(f"{bound}_{name}", text)
                found.values[f"{bound}_{name}"] = bounds[bound] * per_unit
                found.ranges.append(f"{column} {operator} :{bound}_{name}")
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            raise BadFilterError(
                f"min_{name} is {bounds['min']:g}, which is more than max_{name}, {bounds['max']:g}"
            )

    def given(self) -> dict[str, Any]:
        """The filters that are set, by name."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: value for name, value in values.items() if value not in (None, ())}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the filters, as arguments of an address."""
        return tuple(f.name for f in fields(cls) if f.name != "only")


def several(values: Values) -> tuple[str, ...]:
    """The values of a filter."""
    if values is None:
        return ()
    return (values,) if isinstance(values, str) else values


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
    sql = f"{SELECT} where id in ({ids_sql(connection, found)}) order by id desc"
    return _rows(connection, sql, found.values | {"n": limit})


def ids_sql(connection: sqlite3.Connection, found: Conditions, order: str = "id desc") -> str:
    """SQL for the ids of the first `:n` calls that meet conditions, in the order of their ids.

    Args:
        connection: a connection to the internal database.
        found: the conditions.
        order: `id desc` or `id`.
    """
    if found.is_exact():
        return found.exact_ids(order)
    few = found.few_ids(connection)
    # Otherwise along the table, which has the order: most conditions are met by many calls.
    start = f"id in ({few})" if few else "+id is not null"
    where = f"{start} and {found.unindexed()}"
    return f"select id from llm_calls where {where} order by {order} limit :n"


def calls_with_ids(connection: sqlite3.Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The calls with these ids, in their order; those that are gone are left out."""
    sql = f"{SELECT} where id in (select value from json_each(:ids))"
    rows = {row["id"]: row for row in _rows(connection, sql, {"ids": json.dumps(ids)})}
    return [rows[each] for each in ids if each in rows]


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


def turns(
    connection: sqlite3.Connection, conversation_id: str, *, after: str | None = None, limit: int
) -> list[dict[str, Any]]:
    """The requests of a conversation, in order.

    Args:
        connection: a connection to the internal database.
        conversation_id: the conversation.
        after: the id of the last one before; None for the first ones.
        limit: the maximum number.
    """
    sql = (
        f"select {', '.join(COLUMNS)} from llm_calls "
        "where conversation_id = :conversation and id > :after order by id limit :n"
    )
    values = {"conversation": conversation_id, "after": after or "", "n": limit}
    return _rows(connection, sql, values)


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


def has_content(connection: sqlite3.Connection) -> bool:
    """Whether the content of any call is recorded."""
    return connection.execute("select 1 from llm_call_content limit 1").fetchone() is not None


def prompts(
    connection: sqlite3.Connection, ids: Sequence[str], chars: int, limit_ms: float
) -> dict[str, str]:
    """How the last message of a user in some calls begins, where content is recorded.

    Args:
        connection: a connection to the internal database.
        ids: of the calls.
        chars: the maximum number of characters of each, white space as one.
        limit_ms: the time for all; later ones are left out.
    """
    found = {}
    with suppress(sqlite3.OperationalError), sqlite_timelimit(connection, limit_ms):
        for call_id in ids:
            row = connection.execute(_PROMPT_SQL, (4 * chars, call_id)).fetchone()
            if row is not None and isinstance(row[0], str):
                found[call_id] = shortened(" ".join(row[0].split()), chars)
    return found


def shortened(text: str, chars: int) -> str:
    """The begin of a text, with an ellipsis where it goes on."""
    return text if len(text) <= chars else f"{text[: chars - 1]}\N{HORIZONTAL ELLIPSIS}"


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


def amount(name: str, text: str) -> float:
    """Parse a bound of a filter, which is not negative.

    Raises:
        BadFilterError: it is no number.
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not (0 <= found <= MAX_AMOUNT) or not text.isascii():
        unit = RANGES[name.partition("_")[2]][2]
        raise BadFilterError(
            f"{name}: {text!r} is no number of {unit} from 0 to {MAX_AMOUNT:,}; write it like 0.5"
        )
    return found


def _check_known(name: str, value: str) -> None:
    known = CLOSED.get(name)
    if known is not None and value not in known:
        what = name.replace("_", " ")
        raise BadFilterError(f"There is no {what} {value!r}; use one of {', '.join(known)}")


def _add_tag(found: Conditions, number: int, text: str) -> None:
    key, colon, value = text.partition(":")
    if not colon:
        raise BadFilterError(f"tag: {text!r} has no value; write it like job:12")
    place = f":value{number}"
    if _is_number(value):  # which SQLite writes in its own way
        place = f"cast(cast({place} as real) as text)"
    found.tagged.append(f"key = :key{number} and value = {place}")
    found.values.update({f"key{number}": key, f"value{number}": value})


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
        return tags_of(value)
    if name not in NUMBERS:
        return text_of(value)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def tags_of(value: Any) -> dict[str, Any]:
    """The tags of a call, as the column has them; none of an odd one."""
    try:
        found = json.loads(value) if value else None
    except (TypeError, ValueError):  # which no version has written
        return {}
    return found if isinstance(found, dict) else {}


def _rows(
    connection: sqlite3.Connection, sql: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    # As texts are stored.
    bound = {name: well_formed(v) if isinstance(v, str) else v for name, v in values.items()}
    rows = [
        {name: _shown(name, value) for name, value in zip(COLUMNS, row, strict=True)}
        for row in connection.execute(sql, bound)
    ]
    for row in rows:
        row["outcome"] = row["outcome"] or RUNNING
    return rows


def _either(alternatives: Sequence[str]) -> str:
    return alternatives[0] if len(alternatives) == 1 else f"({' or '.join(alternatives)})"


def _select(table: str, condition: str, between: list[str]) -> str:
    return f"select id from {table} where {' and '.join([condition, *between])}"

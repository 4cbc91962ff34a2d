"""Where cases are from: recorded calls with content, rows with a template, lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.database import QueryInterrupted
from datasette.utils import InvalidSql, escape_sqlite, validate_sql_select
from datasette.utils.sqlite import sqlite3

from ..errors import LLMError
from ..events import FinishReason, Outcome
from ..log import queries
from ..log.queries import Filter
from ..log.recorder import Recorder
from ..structured.validation import Shape
from . import templates
from .cases import Answer, Case
from .definition import (
    CallCases,
    Definition,
    EvaluationError,
    LineCases,
    QueryCases,
    TableCases,
)

if TYPE_CHECKING:
    from datasette.app import Datasette

BATCH_ROWS = 200
# That are looked at after the first ones.
MANY_CALLS = 20_000
# Of broken lines that are named.
MAX_NAMED = 20
_CUT = re.compile(r"… and [0-9,]+ more characters\Z")
# Of the consultant, whose prompts hold what only those who may view a table see.
TABLE_PURPOSE = "dataset-consultant"
_LINE_FIELDS = ("prompt", "system", "expected", "schema", "name")

NO_CONTENT = "its content was not recorded"
NO_CALLS = (
    "No recorded call with content matches. To record content, set log.content: true (or "
    "purposes.<name>.log.content) in the configuration of datasette-llm, and wait for calls; or "
    "take cases from a table, a query, or lines of JSON"
)


async def read_cases(
    datasette: Datasette,
    definition: Definition,
    left_out: Counter[str],
    at_most: int | None = None,
) -> AsyncGenerator[Case, None]:
    """The cases of an evaluation, each once.

    Args:
        datasette: the Datasette instance.
        definition: what it is made of; the caller has checked that the actor may read it.
        left_out: gets how many were left out, by reason.
        at_most: how many were confirmed, as there may be more meanwhile; None for all.

    Raises:
        EvaluationError: the source cannot be read as it is defined.
    """
    seen, read = set[bytes](), 0
    calls = definition.cases.calls
    async with contextlib.aclosing(_of_source(datasette, definition, left_out)) as cases:
        async for case in cases:
            read += 1
            if read % BATCH_ROWS == 0:
                await asyncio.sleep(0)  # to the event loop's other work
            if case.digest in seen:
                left_out["it is the same as an earlier case"] += 1
                continue
            if len(seen) == at_most:
                return
            seen.add(case.digest)
            yield case
            if calls is not None and len(seen) == calls.limit:
                return


def _of_source(
    datasette: Datasette, definition: Definition, left_out: Counter[str]
) -> AsyncGenerator[Case, None]:
    source = definition.cases
    if source.calls is not None:
        return _of_calls(datasette, definition.purpose, source.calls, left_out)
    if source.jsonl is not None:
        return _of_lines(source.jsonl, left_out)
    rows = source.table or source.query
    assert rows is not None  # one of them is set
    return _of_rows(datasette, rows, left_out)


# Recorded calls


async def _of_calls(
    datasette: Datasette, purpose: str | None, wanted: CallCases, left_out: Counter[str]
) -> AsyncGenerator[Case, None]:
    log_filter = Filter(
        model=wanted.model,
        purpose=purpose,
        actor=wanted.actor,
        outcome="ok",
        since=wanted.since,
        until=wanted.until,
        tag=() if wanted.tag is None else (wanted.tag,),
    )
    log_filter.where()  # an invalid filter is reported without a call log, too
    await Recorder.of(datasette).writer.flush_in_time()
    database = datasette.get_internal_database()
    taken, last, count = 0, "", 2 * wanted.limit + 100
    while ids := await database.execute_fn(
        partial(_call_ids, log_filter=log_filter, seed=wanted.seed, last=last, count=count)
    ):
        for start in range(0, len(ids), BATCH_ROWS):
            batch = ids[start : start + BATCH_ROWS]
            found: list[Case | str] = await database.execute_fn(
                lambda c, batch=batch: [_replayable(c, each) for each in batch]
            )
            for case in found:
                if isinstance(case, str):
                    left_out[case] += 1
                else:
                    taken += 1
                    yield case
        # Many cannot be replayed, as the requests of earlier evaluations.
        last, count = ids[-1], MANY_CALLS
    if not taken and set(left_out) <= {NO_CONTENT}:
        raise EvaluationError(NO_CALLS)


def _call_ids(
    connection: sqlite3.Connection, log_filter: Filter, seed: int | None, last: str, count: int
) -> list[str]:
    """The next calls to look at, after the last one; none where no content is recorded."""
    if not queries.has_tables(connection) or not queries.has_content(connection):
        return []
    found = log_filter.conditions()
    if seed is None:
        if last:
            found.between.append("id < :last")
        sql = queries.ids_sql(connection, found)
        rows = connection.execute(sql, found.values | {"n": count, "last": last})
        return [call_id for (call_id,) in rows]
    sql = f"select id from llm_calls where {found.on_calls()}"
    after = _place(seed, last) if last else b""
    ids = (call_id for (call_id,) in connection.execute(sql, found.values))
    left = (call_id for call_id in ids if _place(seed, call_id) > after)
    return heapq.nsmallest(count, left, key=lambda call_id: _place(seed, call_id))


def _place(seed: int, call_id: str) -> bytes:
    """Where a call stands in the random order of a seed."""
    return hashlib.blake2b(f"{seed}:{call_id}".encode(errors="replace"), digest_size=8).digest()


def _replayable(connection: sqlite3.Connection, call_id: str) -> Case | str:
    """A recorded call as a case, or why it is none."""
    row, content = queries.call(connection, call_id), queries.content(connection, call_id)
    if row is None or not content.get("request"):
        return NO_CONTENT
    if row["purpose"] == TABLE_PURPOSE:
        return "it is about a table that not everyone may view"
    if "evaluation" in row["tags"]:
        return "it is a request of an evaluation"
    if row["cached_from"] is not None:
        return "its answer is from the response cache"
    try:
        request, response = (
            json.loads(content.get(part, "{}")) for part in ("request", "response")
        )
        return _case_of_call(row, request, response)
    except _UnfitError as error:
        return str(error)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "its content cannot be read"


class _UnfitError(Exception):
    """A call cannot be replayed."""


def _case_of_call(row: Mapping[str, Any], request: Any, response: Any) -> Case:
    if "not_recorded" in request:
        raise _UnfitError("its content could not be recorded")
    if request.get("tools"):
        raise _UnfitError("it has tools")
    messages = request["messages"]
    texts = [_plain_text(message) for message in messages]
    *earlier, last = messages
    if last["role"] != "user" or not texts[-1]:
        raise _UnfitError("it does not end with a prompt")
    system = None
    if earlier and earlier[0]["role"] == "system":
        system, earlier = texts[0], earlier[1:]
    return Case(
        prompt=texts[-1],
        system=system or None,
        history=tuple(earlier),
        options=request.get("options") or {},
        schema=request.get("schema"),
        name=row["id"],
        baseline=_recorded_answer(row, response),
    )


def _plain_text(message: Mapping[str, Any]) -> str:
    parts = message["parts"]
    kinds = {part["type"] for part in parts}
    if kinds & {"tool_call", "tool_result"}:
        raise _UnfitError("it has tools")
    if kinds - {"text", "reasoning"}:
        raise _UnfitError("it has attachments")
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    if any(_CUT.search(str(part.get("text", ""))) for part in parts):
        raise _UnfitError("its text was cut when it was recorded")
    return text


def _recorded_answer(row: Mapping[str, Any], response: Mapping[str, Any]) -> Answer:
    texts = [_plain_text(message) for message in response.get("messages", ())]
    reason = row["finish_reason"]
    return Answer(
        outcome=Outcome(row["outcome"]),
        text="".join(texts),
        finish_reason=FinishReason(reason) if reason in queries.FINISH_REASONS else None,
        latency_ms=row["duration_ms"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cost_nanodollars=row["cost_nanodollars"],
        price_source=row["price_source"],
        call_id=row["id"],
    )


# Rows


async def _of_rows(
    datasette: Datasette, wanted: TableCases | QueryCases, left_out: Counter[str]
) -> AsyncGenerator[Case, None]:
    if wanted.database not in datasette.databases:
        raise EvaluationError(f"There is no database {wanted.database!r}")
    if isinstance(wanted, TableCases):
        await _refuse_no_table(datasette, wanted)
    sql = _sql(wanted)
    for start in range(0, wanted.limit, BATCH_ROWS):
        size = min(BATCH_ROWS, wanted.limit - start)
        names, rows = await _rows(datasette, wanted, sql, size, start)
        for number, row in enumerate(rows, start + 1):
            values = dict(zip(names, row, strict=False))
            case = _case_of_row(wanted, values, number)
            if case.prompt.strip():
                yield case
            else:
                left_out["its prompt is empty"] += 1
        if len(rows) < size:
            return


async def _refuse_no_table(datasette: Datasette, wanted: TableCases) -> None:
    """Refuse what SQLite reads as a table and has no permission of its own, as its schema."""
    database = datasette.get_database(wanted.database)
    if wanted.table not in (*await database.table_names(), *await database.view_names()):
        raise EvaluationError(f"There is no table or view {wanted.table!r}")


def _sql(wanted: TableCases | QueryCases) -> str:
    if isinstance(wanted, TableCases):
        return f"select * from {escape_sqlite(wanted.table)}"
    sql = wanted.sql.strip().rstrip(";")
    try:
        validate_sql_select(sql)
    except InvalidSql as error:
        raise EvaluationError(f"The query cannot be used: {error}") from None
    return f"select * from (\n{sql}\n)"


async def _rows(
    datasette: Datasette, wanted: TableCases | QueryCases, sql: str, size: int, start: int
) -> tuple[list[str], Sequence[Sequence[Any]]]:
    """The names of the columns, and a batch of rows."""
    limited = f"{sql} limit {size} offset {start}"
    try:
        found = await datasette.get_database(wanted.database).execute(limited, truncate=False)
    except QueryInterrupted:
        raise EvaluationError("The query takes too long; make it simpler, or take fewer") from None
    except sqlite3.Error as error:
        raise EvaluationError(f"The rows cannot be read: {error}") from None
    names = list(found.columns)
    _refuse_unknown(wanted, names)
    return names, found.rows


def _refuse_unknown(wanted: TableCases | QueryCases, names: list[str]) -> None:
    unknown = templates.unknown_columns(f"{wanted.template}\n{wanted.system or ''}", names)
    if wanted.expected and wanted.expected not in (*names, *unknown):
        unknown.append(wanted.expected)
    if unknown:
        raise EvaluationError(
            f"There is no column {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, names))}"
        )


def _case_of_row(wanted: TableCases | QueryCases, values: Mapping[str, Any], number: int) -> Case:
    system = templates.filled(wanted.system, values) if wanted.system else None
    expected = None if wanted.expected is None else values[wanted.expected]
    return Case(
        prompt=templates.filled(wanted.template, values),
        system=system,
        expected=None if expected is None else templates.shown(expected),
        name=f"row {number}",
    )


# Lines of JSON


async def _of_lines(wanted: LineCases, left_out: Counter[str]) -> AsyncGenerator[Case, None]:
    broken: list[str] = []
    cases: list[Case] = []
    # Not split at other line ends, which JSON may have within its texts.
    for number, line in enumerate(wanted.text.removeprefix("\ufeff").split("\n"), 1):
        if number % BATCH_ROWS == 0:
            await asyncio.sleep(0)  # to the event loop's other work
        if not line.strip():
            continue
        try:
            cases.append(await _case_of_line(line, number))
        except (LLMError, ValueError, RecursionError) as error:
            broken.append(f"line {number}: {_problem(error)}")
    if broken:
        more = f" and {len(broken) - MAX_NAMED:,} more" if len(broken) > MAX_NAMED else ""
        raise EvaluationError("; ".join(broken[:MAX_NAMED]) + more)
    for case in cases[: wanted.limit]:
        yield case


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON ({error.msg} at column {error.colno})"
    return str(error)


async def _case_of_line(line: str, number: int) -> Case:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError('expected an object such as {"prompt": …}')
    unknown = [name for name in fields if name not in _LINE_FIELDS]
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(_LINE_FIELDS)}")
    texts = {name: fields[name] for name in fields if name != "schema"}
    wrong = [name for name, value in texts.items() if not isinstance(value, str | None)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected text")
    prompt, schema = texts.get("prompt") or "", fields.get("schema")
    if not prompt.strip():
        raise ValueError("it has no prompt")
    if schema is not None:
        if not isinstance(schema, dict):
            raise ValueError("schema: expected a JSON schema")
        await Shape.of(schema)
    return Case(
        prompt,
        texts.get("system") or None,
        schema=schema,
        expected=texts.get("expected"),
        name=texts.get("name") or f"line {number}",
    )

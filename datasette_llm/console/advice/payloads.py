"""Payloads of the consultant's pages and their JSON twins, and the fields of a request."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ...consultant.advice import store
from ...consultant.advice.consultation import ConsultationRequest
from ...consultant.advice.dataset import earlier_checks, plain
from ...consultant.advice.previews import Preview
from ...consultant.advice.readers import readable
from ...consultant.advice.types import DATASET_ANALYSIS, type_named, types
from ...consultant.findings.dismissals import MAX_REASON_CHARS, Dismissed, key_of
from ...consultant.findings.find import KINDS, Findings
from ...consultant.table_access import all_viewable_tables, analyzable_tables
from ...errors import LLMError, ProfileError
from ...log import queries
from ...log.cost import NANODOLLARS
from ...log.recorder import Recorder
from ...log.usage import Reader, totals_of
from ...permissions import VIEW_LOG
from ...web import EARLIER_NAMES, page_cursor, page_limit
from ..log.payloads import read

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette

    from ...consultant.table_access import Actor
    from ...web import Payload

MAX_QUESTION_CHARS = 2_000
FIELDS = ("model", *EARLIER_NAMES.values(), "question", "exclude", "type")
# Of the earlier advice about a table, and of the newest consultations that are searched for it.
MAX_EARLIER, MAX_SEARCHED = 5, 50
_ID = re.compile("[0-9a-z]{26}")


class BadRequestError(LLMError):
    """A request has an invalid field; the message names it."""


async def consultation_request(
    datasette: Datasette, database: str, table: str, fields: Mapping[str, list[str]]
) -> ConsultationRequest:
    """The request in the fields of a form, a query string or a JSON body.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of an existing table.
        fields: each field with its values; empty values are ignored.

    Raises:
        BadRequestError: a field is invalid.
        ProfileError: SQLite cannot read the table.
    """
    try:
        names = await datasette.get_database(database).table_columns(table)
    except sqlite3.Error as error:
        raise ProfileError(f"SQLite cannot read {database}/{table}: {error}") from error
    exclude = tuple(name for name in names if name in fields.get("exclude", ()))
    unknown = [name for name in fields.get("exclude", ()) if name not in names]
    if unknown:
        raise BadRequestError(f"exclude: the table has no column {unknown[0]!r}")
    question = _single(fields, "question")
    if question is not None and len(question) > MAX_QUESTION_CHARS:
        raise BadRequestError(f"question: at most {MAX_QUESTION_CHARS:,} characters")
    kind = type_named(_single(fields, "type") or types()[0].name)
    if kind is None:
        known = ", ".join(each.name for each in types())
        raise BadRequestError(f"type: there is no such type; use one of {known}")
    model_id = _single(fields, "model") or _single(fields, EARLIER_NAMES["model"])
    return ConsultationRequest(database, table, model_id, question, exclude, kind)


def beside_of(fields: Mapping[str, list[str]]) -> str | None:
    """The id of the consultation to show another one beside; None without one."""
    found = next(iter(fields.get("beside", ())), "")
    return found if _ID.fullmatch(found) else None


async def valid_fields(
    datasette: Datasette, database: str, table: str, fields: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """The fields of an invalid request that are valid, so that nothing has to be typed again."""
    kept: dict[str, list[str]] = {}
    for name in FIELDS:
        tried = {name: fields.get(name, [])}
        try:
            await consultation_request(datasette, database, table, tried)
        except BadRequestError:
            continue
        kept |= tried
    return kept


def _single(fields: Mapping[str, list[str]], name: str) -> str | None:
    values = [value.strip() for value in fields.get(name, ()) if value.strip()]
    if len(values) > 1:
        raise BadRequestError(f"{name}: give it once")
    return values[0] if values else None


def finding_named(fields: Mapping[str, str]) -> Dismissed:
    """The finding that a form or a JSON body names; all of its kind and columns without `which`.

    Raises:
        BadRequestError: a field is invalid.
    """
    kind = fields.get("kind", "")
    if kind not in KINDS:
        raise BadRequestError("kind: there is no such kind of findings")
    try:
        columns = json.loads(fields.get("columns", "[]"))
    except (ValueError, RecursionError):
        columns = None
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise BadRequestError("columns: expected the finding's columns as a JSON list, in a text")
    return Dismissed(kind, key_of(columns), fields.get("which", ""))


def reason_of(fields: Mapping[str, str]) -> str:
    """Why a finding is dismissed.

    Raises:
        BadRequestError: there is no reason, or a long one.
    """
    reason = plain(fields.get("reason", "").strip())
    if not 0 < len(reason) <= MAX_REASON_CHARS:
        raise BadRequestError(f"reason: say why, in at most {MAX_REASON_CHARS} characters")
    return reason


async def findings_payload(
    datasette: Datasette,
    request: ConsultationRequest,
    profile: Mapping[str, Any],
    findings: Findings,
) -> Payload:
    """What is known of a table without a model, as JSON."""
    database, table, config = request.database, request.table, findings.config
    return {
        "ok": True,
        "database": database,
        "table": table,
        "findings": list(findings.found),
        "findings_note": findings.note,
        "suggested_config": config,
        "derived": await _derived(request.kind.name, database, table, config),
        "profile": profile,
    }


async def preview_payload(datasette: Datasette, preview: Preview) -> Payload:
    """A preview as JSON."""
    request, profile = preview.request, preview.profile
    columns = await datasette.get_database(request.database).table_columns(request.table)
    cost = preview.cost.cost_nanodollars
    return await findings_payload(datasette, request, profile, preview.findings) | {
        "type": request.kind.name,
        "types": [{"name": each.name, "label": each.label} for each in types()],
        "model_id": preview.model_id,
        "models": list(preview.models),
        "fallbacks": list(preview.fallbacks),
        "problem": preview.problem,
        "question": request.question,
        "columns": [{"name": name, "excluded": name in request.exclude} for name in columns],
        "left_out": [name for name in profile["left_out"] if name not in request.exclude],
        "system_prompt": preview.prompts.system,
        "user_prompt": preview.prompts.user,
        "cut": list(preview.prompts.cut),
        "input_tokens": preview.cost.input_tokens,
        "answer_tokens": preview.cost.answer_tokens,
        "cost_dollars": None if cost is None else cost / NANODOLLARS,
        "estimated_by": preview.cost.how,
        "digest": preview.digest,
        "earlier": await earlier_advice(datasette, request.database, request.table),
    }


async def earlier_advice(datasette: Datasette, database: str, table: str) -> list[Payload]:
    """The newest consultations about a table that asked a model; the caller checks permissions.

    None where they cannot be read, since the page of the table has more to show.
    """
    tables = json.dumps([[database, table]])
    try:
        rows = await store.read_page(datasette, tables, None, MAX_SEARCHED)
    except sqlite3.Error:
        return []
    asked = [row for row in rows if row["model_id"] is not None or row["outcome"] != "ok"]
    return [_renamed(row) for row in asked[:MAX_EARLIER]]


async def list_payload(
    datasette: Datasette, actor: Actor, arguments: Mapping[str, list[str]]
) -> Payload:
    """A page of the list of consultations that an actor may see.

    Raises:
        BadRequestError: an argument is given twice.
        ArgumentError: an argument is invalid.
    """
    limit = page_limit(_single(arguments, "limit"))
    before = page_cursor(_single(arguments, "next"))
    database, table = (_single(arguments, name) for name in ("database", "table"))
    tables = _only_of(await analyzable_tables(datasette, actor), database, table)
    rows = await store.read_page(datasette, tables, before, limit + 1)
    page = rows[:limit]
    return {
        "ok": True,
        "database": database,
        "table": table,
        "consultations": [_renamed(row) for row in page],
        "next": page[-1]["id"] if len(rows) > limit else None,
        "limit": limit,
    }


def _only_of(tables: str, database: str | None, table: str | None) -> str:
    """The pairs of a JSON list that are of a database, or of one of its tables."""
    given = [(database, 0), (table, 1)]
    wanted = [(name, at) for name, at in given if name is not None]
    if not wanted:
        return tables
    pairs = json.loads(tables)
    return json.dumps([pair for pair in pairs if all(pair[at] == name for name, at in wanted)])


async def stored_payload(
    datasette: Datasette, actor: Actor, consultation_id: str
) -> Payload | None:
    """A stored consultation; None where there is none of this id that the actor may see."""
    row = await store.read_one(
        datasette, consultation_id, await analyzable_tables(datasette, actor)
    )
    if row is None:
        return None
    viewable = await all_viewable_tables(datasette, actor, row["database_name"])
    return await shown_payload(datasette, actor, readable(row, viewable))


async def shown_payload(datasette: Datasette, actor: Actor, row: Mapping[str, Any]) -> Payload:
    """A consultation as JSON, with what its calls cost where the actor may see the call log."""
    usage = None
    if row["call_id"] and await datasette.allowed(action=VIEW_LOG, actor=actor):
        await Recorder.of(datasette).writer.flush_in_time()
        usage = await read(datasette, lambda connection: _usage(connection, row["call_id"]))
    return await consultation_payload(row) | {"usage": usage}


def _usage(connection: Connection, call_id: str) -> Payload | None:
    """The tokens and the cost of a consultation's calls, which are in one group."""
    call = queries.call(connection, call_id)
    if call is None or not call["group_id"]:  # retention has removed it
        return None
    reader = Reader(connection, datetime.datetime.now(datetime.UTC))
    sums = totals_of(reader, queries.Filter(group=call["group_id"]))
    names = ("calls", "input_tokens", "output_tokens", "cost_dollars", "calls_without_cost")
    return {name: sums[name] for name in names}


async def consultation_payload(row: Mapping[str, Any]) -> Payload:
    """A consultation as JSON.

    Args:
        row: its row, with JSON columns as values.
    """
    advice, where = row["advice"], (row["database_name"], row["table_name"])
    kind, derived = type_named(row["type"]), None
    if advice is None:
        derived = await _derived(row["type"], *where, row["suggested_config"])
    elif kind is not None:
        derived = await asyncio.to_thread(kind.derived, *where, advice)
    # Earlier versions had no findings.
    findings = {"findings": row["findings"] or []}
    # Earlier versions checked otherwise.
    checks = earlier_checks(advice or {})
    more = {"checks": row["checks"] if checks is None else checks, "derived": derived} | findings
    return {"ok": True, "consultation": _renamed(row) | more}


async def _derived(
    kind_name: str, database: str, table: str, config: Mapping[str, Any] | None
) -> Payload | None:
    """What is shown of a configuration that was suggested by rule."""
    # Only the advice about tables has a configuration.
    if config is None or kind_name != DATASET_ANALYSIS.name:
        return None
    advice = {"suggested_config": config}
    return await asyncio.to_thread(DATASET_ANALYSIS.derived, database, table, advice)


def _renamed(row: Mapping[str, Any]) -> Payload:
    """A row with the names of JSON."""
    names = {"database_name": "database", "table_name": "table"}
    return {names.get(name, name): value for name, value in row.items()}

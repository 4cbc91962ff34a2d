"""What the consultant's pages show, as their JSON twins give it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...consultant.advice import store as record
from ...consultant.advice.consultation import ConsultationRequest
from ...consultant.advice.previews import Preview
from ...consultant.advice.types import type_named, types
from ...consultant.table_access import Access, analyzable
from ...errors import LLMError

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...consultant.table_access import Actor

    Payload = dict[str, Any]

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_QUESTION_CHARS = 2_000
FIELDS = ("model_id", "question", "exclude", "type")
_ID = re.compile("[0-9a-z]{26}")


class BadRequestError(LLMError):
    """What somebody asks for makes no sense; the message says why."""


async def asked_of(
    datasette: Datasette, database: str, table: str, given: Mapping[str, list[str]]
) -> ConsultationRequest:
    """What the fields of a form, an address or a JSON body ask for.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of an existing table.
        given: each field with its values; empty ones do not count.

    Raises:
        BadRequestError: they make no sense.
    """
    names = await datasette.get_database(database).table_columns(table)
    exclude = tuple(name for name in names if name in given.get("exclude", ()))
    unknown = [name for name in given.get("exclude", ()) if name not in names]
    if unknown:
        raise BadRequestError(f"exclude: the table has no column {unknown[0]!r}")
    question = _single(given, "question")
    if question is not None and len(question) > MAX_QUESTION_CHARS:
        raise BadRequestError(f"question: at most {MAX_QUESTION_CHARS:,} characters")
    kind = type_named(_single(given, "type") or types()[0].name)
    if kind is None:
        known = ", ".join(each.name for each in types())
        raise BadRequestError(f"type: there is no such type; use one of {known}")
    return ConsultationRequest(database, table, _single(given, "model_id"), question, exclude, kind)


def _single(given: Mapping[str, list[str]], name: str) -> str | None:
    values = [value.strip() for value in given.get(name, ()) if value.strip()]
    if len(values) > 1:
        raise BadRequestError(f"{name}: give it once")
    return values[0] if values else None


async def preview_payload(datasette: Datasette, made: Preview) -> Payload:
    """A preview as the page and its JSON twin show it."""
    asked = made.asked
    columns = await datasette.get_database(asked.database).table_columns(asked.table)
    cost = made.cost.cost_nanodollars
    return {
        "ok": True,
        "database": asked.database,
        "table": asked.table,
        "type": asked.kind.name,
        "types": [{"name": each.name, "label": each.label} for each in types()],
        "model_id": made.model_id,
        "models": list(made.models),
        "fallbacks": list(made.fallbacks),
        "problem": made.problem,
        "question": asked.question,
        "columns": [{"name": name, "excluded": name in asked.exclude} for name in columns],
        "left_out": [name for name in made.profile["left_out"] if name not in asked.exclude],
        "system_prompt": made.prompts.system,
        "user_prompt": made.prompts.user,
        "input_tokens": made.cost.input_tokens,
        "answer_tokens": made.cost.answer_tokens,
        "cost_dollars": None if cost is None else cost / 1_000_000_000,
        "estimated_by": made.cost.how,
        "digest": made.digest,
    }


async def list_payload(
    datasette: Datasette, actor: Actor, arguments: Mapping[str, list[str]]
) -> Payload:
    """A page of the consultations that an actor may see.

    Raises:
        BadRequestError: the arguments make no sense.
    """
    limit = _limit(_single(arguments, "limit"))
    before = _single(arguments, "next")
    if before is not None and not _ID.fullmatch(before):
        raise BadRequestError(f"next: {before!r} is no cursor that a page of this list gave")
    rows = await record.some(datasette, await analyzable(datasette, actor), before, limit + 1)
    shown = rows[:limit]
    return {
        "ok": True,
        "consultations": [_named(row) for row in shown],
        "next": shown[-1]["id"] if len(rows) > limit else None,
        "limit": limit,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= number <= MAX_LIMIT:
        raise BadRequestError(f"limit: {text!r} is no whole number from 1 to {MAX_LIMIT}")
    return number


async def stored_payload(
    datasette: Datasette, actor: Actor, consultation_id: str
) -> Payload | None:
    """A consultation of the record, for an actor; None where they may not see one of this id."""
    row = await record.one(datasette, consultation_id, await analyzable(datasette, actor))
    return None if row is None else await payload(row, Access(datasette, actor))


async def payload(row: Mapping[str, Any], access: Access) -> Payload:
    """A consultation as the page and its JSON twin show it.

    Args:
        row: of the record, with JSON columns as values.
        access: what whoever looks may do. A query's rows may come from other tables, so they are
            shown to those who may view all that it read.
    """
    shown = dict(_named(row))
    shown["checks"] = [
        await _shown_check(check, row["database_name"], access) for check in row["checks"]
    ]
    kind = type_named(row["type"])
    advice = row["advice"]
    derived = None
    if advice is not None and kind is not None:
        where = (row["database_name"], row["table_name"])
        derived = await asyncio.to_thread(kind.derived, *where, advice)
    return {"ok": True, "consultation": shown | {"derived": derived}}


async def _shown_check(check: Mapping[str, Any], database: str, access: Access) -> Payload:
    for table in check["tables"]:
        if not await access.may_view(database, table):
            hidden = "its result is not shown, since it read a table that you may not view"
            return {**check, "reason": hidden, "columns": [], "rows": [], "more": False}
    return dict(check)


def _named(row: Mapping[str, Any]) -> Payload:
    """A row with the names that addresses use."""
    names = {"database_name": "database", "table_name": "table"}
    return {names.get(name, name): value for name, value in row.items()}

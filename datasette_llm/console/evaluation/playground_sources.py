"""What the playground opens with: a recorded call, or a row of a table with a template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datasette import Forbidden
from datasette.utils import row_sql_params_pks, urlsafe_components
from datasette.utils.sqlite import sqlite3

from ...consultant.table_access import may_view
from ...evaluation.templates import filled, unknown_columns
from ...permissions import VIEW_LOG
from ..formatting import counted
from ..log.payloads import call_payload
from .playground_request import PlaygroundError, PlaygroundRequest

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

NO_CONTENT = (
    "No content of this call is recorded, so there is no prompt to open. To record that of new "
    "calls, set log.content: true (or purposes.<name>.log.content) in the configuration of "
    "datasette-llm"
)
HIDDEN = "The content of this call is for those who may view the table that it was about"


@dataclass(frozen=True, slots=True)
class Opened:
    """What the form begins with.

    Attributes:
        request: its fields.
        notices: what of the source it has not.
        row: `database`, `table`, `row` and `template`, where a row was named.
    """

    request: PlaygroundRequest
    notices: tuple[str, ...] = ()
    row: Mapping[str, str] | None = None


async def opened(datasette: Datasette, request: Request, given: PlaygroundRequest) -> Opened:
    """What an address names: a call, a row, or what is typed into the fields.

    Args:
        datasette: the Datasette instance.
        request: the request; `?call=`, or `?database=&table=&row=&template=`.
        given: its fields, which a call and a row fill where they are empty.

    Raises:
        Forbidden: the actor may not see the call log, or not view the table.
        PlaygroundError: there is no such call, content, table, row or column.
    """
    if call_id := (request.args.get("call") or "").strip():
        await datasette.ensure_permission(action=VIEW_LOG, actor=request.actor)
        return await _of_call(datasette, request, call_id, given)
    row = {name: request.args.get(name) or "" for name in ("database", "table", "row", "template")}
    if any(row.values()):
        return await _of_row(datasette, request, row, given)
    return Opened(given)


# A recorded call


async def _of_call(
    datasette: Datasette, request: Request, call_id: str, given: PlaygroundRequest
) -> Opened:
    found = await call_payload(datasette, call_id, request.actor)
    if found is None:
        raise PlaygroundError(f"The call log has no call {call_id!r}")
    if found["content_hidden"]:
        raise PlaygroundError(HIDDEN)
    call, content = found["call"], (found["content"] or {}).get("request")
    if not isinstance(content, dict) or not content.get("messages"):
        raise PlaygroundError(NO_CONTENT)
    system, prompt, notices = _texts(content["messages"])
    if content.get("tools"):
        notices.append("Its tools are left out.")
    if content.get("schema"):
        notices.append("Its schema is left out, so that the answers are free text.")
    options = content.get("options")
    return Opened(
        replace(
            given,
            prompt=given.prompt or prompt,
            system=given.system or system,
            options=given.options or (json.dumps(options) if options else ""),
            purpose=given.purpose or call["purpose"] or "",
            models=given.models or (call["model_id"],),
        ),
        tuple(notices),
    )


def _texts(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[str]]:
    """The system prompt, the last prompt, and what is left out."""
    notices = []
    system = _text(messages[0]) if messages[0].get("role") == "system" else ""
    turns = [each for each in messages if each.get("role") != "system"]
    if len(turns) > 1:
        earlier = counted(len(turns) - 1, "earlier message")
        notices.append(f"Of its conversation, {earlier} are left out.")
    kinds = {part.get("type") for each in turns[-1:] for part in each.get("parts") or ()}
    if kinds - {"text", "reasoning"}:
        notices.append("Its attachments and the results of tools are left out.")
    return system, _text(turns[-1]) if turns else "", notices


def _text(message: Mapping[str, Any]) -> str:
    parts = message.get("parts") or ()
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


# A row


async def _of_row(
    datasette: Datasette, request: Request, named: Mapping[str, str], given: PlaygroundRequest
) -> Opened:
    database, table = named["database"], named["table"]
    # First, so that nothing reveals whether there is such a table.
    if not await may_view(datasette, request.actor, database, table):
        raise Forbidden("view-table")
    row = await _row(datasette, named)
    template = named["template"] or "\n".join(f"{name}: {{{{ {name} }}}}" for name in row)
    if unknown := unknown_columns(template, row):
        raise PlaygroundError(
            f"The table has no column {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, row))}"
        )
    opened = replace(given, prompt=filled(template, row))
    return Opened(opened, row={**named, "template": template})


async def _row(datasette: Datasette, named: Mapping[str, str]) -> dict[str, Any]:
    if named["database"] not in datasette.databases:
        raise PlaygroundError(f"There is no database {named['database']!r}")
    database, table = datasette.get_database(named["database"]), named["table"]
    if not await database.table_exists(table):
        raise PlaygroundError(f"There is no table {table!r}, or it is a view")
    if not named["row"]:
        raise PlaygroundError("row: give the primary key of the row, as in its page's address")
    values = urlsafe_components(named["row"])
    sql, params, keys = await row_sql_params_pks(database, table, values)
    if len(values) != len(keys):
        raise PlaygroundError(f"row: the primary key of {table!r} is {', '.join(keys)}")
    try:
        found = (await database.execute(sql, params)).first()
    except sqlite3.Error as error:
        raise PlaygroundError(f"The row cannot be read: {error}") from None
    if found is None:
        raise PlaygroundError(f"The table {table!r} has no row {named['row']!r}")
    return dict(found)

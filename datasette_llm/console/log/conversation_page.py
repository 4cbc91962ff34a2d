"""All turns of a conversation on one page: the payload and the template's context."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_encode

from ...log import queries
from ...sanitize import well_formed
from ..formatting import counted, dollars
from ..navigation import LOG
from .conversation import Source, as_text, count_parts, messages_of, shown
from .list_page import row_context
from .payloads import content_of, is_hidden, log_status, read, with_dollars

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.sqlite import sqlite3

    from ...consultant.table_access import Actor

Row = dict[str, Any]

CONVERSATION = f"{LOG}/conversation"
# Of a page; the request of each turn repeats the ones before it.
MAX_TURNS = 100
MAX_READ_CHARS = 20_000_000


def conversation_address(datasette: Datasette, conversation_id: str) -> str:
    """The address of a conversation's page."""
    path = f"{CONVERSATION}/{tilde_encode(well_formed(conversation_id))}"
    return str(datasette.urls.path(path))


async def conversation_payload(
    datasette: Datasette, conversation_id: str, actor: Actor, after: str | None
) -> Row | None:
    """The turns of a conversation, each with the messages that are new in it; None without any.

    Args:
        datasette: the Datasette instance.
        conversation_id: the conversation.
        actor: who reads it; some contents may be hidden from them.
        after: the id of the last call of the page before; None for the first page.
    """
    status = await log_status(datasette)
    rows = await read(
        datasette,
        lambda c: queries.turns(c, conversation_id, after=after, limit=MAX_TURNS + 1),
    )
    if not rows:
        return None
    hidden = {row["id"] for row in rows if await is_hidden(datasette, row, actor)}
    turns = await read(datasette, lambda c: _turns(c, rows[:MAX_TURNS], hidden, after)) or []
    return status | {
        "conversation": conversation_id,
        "turns": turns,
        "next": turns[-1]["call"]["id"] if turns and len(turns) < len(rows) else None,
    }


def _turns(
    connection: sqlite3.Connection,
    rows: Sequence[Row],
    hidden: AbstractSet[str],
    after: str | None,
) -> list[Row]:
    """As many turns as there is room for."""
    left, turns = MAX_READ_CHARS, list[Row]()
    known = messages_of(content_of(queries.content(connection, after))) if after else []
    for row in rows:
        parts = {} if row["id"] in hidden else queries.content(connection, row["id"])
        left -= sum(map(len, parts.values()))
        if left < 0 and turns:
            break
        messages = messages_of(content_of(parts))
        repeated = count_repeated(known, messages)
        turns.append(
            {
                "call": with_dollars(row),
                "messages": messages[repeated:],
                "parts_before": count_parts(messages[:repeated]),
                "content_hidden": row["id"] in hidden,
            }
        )
        known = messages or known
    return turns


def count_repeated(known: Sequence[Any], messages: Sequence[Any]) -> int:
    """How many of the first messages repeat what an earlier turn had.

    A system prompt may be left out later on, and so may the reasoning of an answer.

    Args:
        known: the messages of the earlier turn, its answer included.
        messages: those of the later one.
    """
    gists, place = [_gist(each) for each in known], 0
    for number, message in enumerate(messages):
        gist = _gist(message)
        while place < len(gists) and gists[place] != gist and gists[place][0] == "system":
            place += 1
        if place == len(gists) or gists[place] != gist:
            return number
        place += 1
    return len(messages)


def _gist(message: Any) -> tuple[object, str]:
    """What makes two messages the same: who speaks, and what is said, without reasoning."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return None, as_text(message)
    plain = ("provider_metadata", "server_executed")
    parts = [
        {name: value for name, value in part.items() if name not in plain}
        if isinstance(part, dict)
        else part
        for part in message["parts"]
        if not (isinstance(part, dict) and part.get("type") == "reasoning")
    ]
    return message.get("role"), as_text(parts)


async def conversation_context(datasette: Datasette, payload: Row) -> Row:
    """The context of the template."""
    turns = payload["turns"]
    sources = [Source(turn["call"]["id"], turn["messages"], turn["parts_before"]) for turn in turns]
    messages = await asyncio.to_thread(shown, sources)
    address = conversation_address(datasette, payload["conversation"])
    return {
        "payload": payload,
        "turns": [
            row_context(datasette, turn["call"])
            | {
                "messages": [each for each in messages if each.call_id == turn["call"]["id"]],
                "error": turn["call"]["error_message"],
                "content_hidden": turn["content_hidden"],
            }
            for turn in turns
        ],
        "summary": _summary([turn["call"] for turn in turns]),
        "next": payload["next"] and f"{address}?next={payload['next']}",
        "json_address": f"{address}.json",
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many calls there are, and what they cost."""
    costs = [row["cost_dollars"] for row in rows if row["cost_dollars"] is not None]
    spent = f", {dollars(sum(costs))}" if costs else ""
    return f"{counted(len(rows), 'call')}{spent}"

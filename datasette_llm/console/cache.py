"""What the response cache keeps, and clearing it: no page shows what is in an answer."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.sqlite import sqlite3

from ..access.call_policy import cache_policies
from ..access.snapshot import settings_of
from ..log import cache_store
from ..log.queries import time_of
from ..log.recorder import Recorder
from ..permissions import MANAGE
from ..web import PostError, as_json, method_not_allowed, posted, refused, wants_html
from .formatting import counted, dollars
from .navigation import PURPOSES, ROOT

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

CLEAR = f"{ROOT}/cache/clear"


async def kept(datasette: Datasette, purpose: str | None = None) -> Payload:
    """How much the response cache keeps, once what waits to be written is.

    Args:
        datasette: the Datasette instance.
        purpose: only for this purpose, empty for none; None for all.

    Returns:
        `sizes`, by purpose and setting: `purpose`, None for none, `setting`, `answers` and
        `bytes`; `settings`, by their paths: `keep_days`, `max_bytes` and `scope`.

    Raises:
        sqlite3.Error: the internal database cannot be read.
    """
    await Recorder.of(datasette).writer.flush_in_time()
    policies = cache_policies(await settings_of(datasette))
    sizes = await datasette.get_internal_database().execute_fn(cache_store.sizes)
    return {
        "ok": True,
        "settings": {
            setting: {
                "keep_days": each.keep_days,
                "max_bytes": each.max_bytes,
                "scope": "actor" if each.of_actor else "purpose",
            }
            for setting, each in policies.items()
        },
        "sizes": [
            each._asdict() | {"purpose": each.purpose or None}
            for each in sizes
            if purpose in (None, each.purpose)
        ],
    }


async def kept_sizes(datasette: Datasette) -> list[dict[str, Any]]:
    """The sizes of `kept()`; none where the internal database cannot be read."""
    try:
        sizes: list[dict[str, Any]] = (await kept(datasette))["sizes"]
    except sqlite3.Error:  # which other parts of the page report
        return []
    return sizes


async def clear(datasette: Datasette, purpose: str | None) -> Payload:
    """Remove what the response cache keeps, in transactions of a bounded size.

    Args:
        datasette: the Datasette instance.
        purpose: only for this purpose, empty for none; None for all.

    Returns:
        `{ok, purpose, removed}`, or why it cannot be done.
    """
    await Recorder.of(datasette).writer.flush_in_time()
    database, total = datasette.get_internal_database(), 0
    work = partial(cache_store.clear, purpose=purpose)
    try:
        while removed := await database.execute_write_fn(work):
            total += removed
            await asyncio.sleep(0)
    except sqlite3.Error as error:
        left = f"{total:,} answers were removed before"
        return refused(f"The internal database cannot be written; {left}: {error}", 503)
    return {"ok": True, "purpose": purpose, "removed": total}


def origin(call: Mapping[str, Any]) -> str | None:
    """Where the answer of a call is from, how old it was, and what that saved; None if its own."""
    paid = call["cached_from"]
    if paid is None:
        return None
    age = time_of(call["id"]) - time_of(paid)
    saved = dollars(call["saved_dollars"])
    return f"answer of call {paid}, {_age(age)} old; {saved or 'an unknown cost'} saved"


def _age(age: datetime.timedelta) -> str:
    if age.days > 1:
        return f"{age.days:,} days"
    minutes = max(0, round(age.total_seconds())) // 60
    if minutes >= 120:
        return f"{minutes // 60} hours"
    return f"{minutes} minutes" if minutes > 1 else "about a minute"


def sentence(payload: Mapping[str, Any]) -> str:
    """The result of `clear` as a sentence."""
    return f"{counted(payload['removed'], 'answer')} removed from the response cache."


async def clear_view(datasette: Datasette, request: Request) -> Response:
    """Takes `purpose`, and removes all without it, from a form or as JSON."""
    await datasette.ensure_permission(action=MANAGE, actor=request.actor)
    if request.method != "POST":
        return method_not_allowed(["POST"])
    try:
        payload = await clear(datasette, (await posted(request)).get("purpose"))
    except PostError as error:
        payload = refused(str(error))
    if not wants_html(request):
        return as_json(payload)
    kind = datasette.INFO if payload["ok"] else datasette.ERROR
    text = sentence(payload) if payload["ok"] else payload["error"]
    datasette.add_message(request, text, kind)
    return Response.redirect(datasette.urls.path(PURPOSES), status=303)

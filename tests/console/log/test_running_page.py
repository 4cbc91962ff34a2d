"""The stream of changes that pages follow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from datasette_llm.console.log import running_page
from datasette_llm.log import feed

from ...support.call_log import add, call_row
from ...support.console import ANA, Page, Start
from ...support.waiting import soon

FOLLOW = "/-/llm/log/follow"


async def test_p6_stream_tells_of_changes_and_ends(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself, so that no server waits for it when it shuts down."""
    monkeypatch.setattr(feed, "POLL_S", 0.01)
    monkeypatch.setattr(running_page, "STREAM_S", 1.0)
    datasette = await start(may=("view-llm-log",))
    rows = [call_row(purpose="chat"), call_row()]
    looked = asyncio.Event()
    look = feed.look

    def looking(*args: Any, **kwargs: Any) -> Any:
        found = look(*args, **kwargs)
        loop.call_soon_threadsafe(looked.set)
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(feed, "look", looking)
    getting = asyncio.create_task(datasette.client.get(f"{FOLLOW}?purpose=chat", actor=ANA))
    await soon(looked.wait())
    await datasette.get_internal_database().execute_write_fn(lambda c: add(c, *rows))

    response = await soon(getting)

    assert response.headers["content-type"].startswith("text/event-stream")
    head, *events = response.text.strip().split("\n\n")
    assert head == "retry: 1000"
    (event,) = [json.loads(each.removeprefix("data: ")) for each in events]
    assert event == {"calls": [{"id": rows[0]["id"], "outcome": "ok"}]}


async def test_p6_invalid_filter_is_refused(start: Start) -> None:
    datasette = await start(may=("view-llm-log",))

    response = await datasette.client.get(f"{FOLLOW}?outcome=nonsense", actor=ANA)

    assert (response.status_code, "no outcome 'nonsense'" in response.text) == (400, True)


async def test_p6_list_follows_when_asked(start: Start) -> None:
    """The stream has the list's filter; without a script there is a link that loads it again."""
    datasette = await start(may=("view-llm-log",))

    async def page(query: str) -> Page:
        return Page((await datasette.client.get(f"/-/llm/log{query}", actor=ANA)).text)

    def stream(page: Page) -> list[str | None]:
        return [each["data-follow"] for each in page.all("span") if "data-follow" in each]

    plain, filtered = await page(""), await page("?purpose=a%26b&follow=")
    following, older = (
        await page("?purpose=a%26b&follow=1"),
        await page(f"?next={'0' * 26}&follow=1"),
    )

    assert "/-/llm/log?follow=1" in plain.links()
    assert "/-/llm/log?purpose=a%26b&follow=1" in filtered.links()
    assert {"/-/llm/log?purpose=a%26b&follow=1", "/-/llm/log?purpose=a%26b"} <= set(
        following.links()
    )
    assert stream(following) == [f"{FOLLOW}?purpose=a%26b"]
    assert [stream(each) for each in (plain, filtered, older)] == [[], [], []]
    assert "/-/llm/log/running" in older.links()

"""One call, a conversation and what runs, as a person reads and stops it: in a real browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from datasette.utils.sqlite import sqlite3

from datasette_llm.log.schema import migrate

from ..support.browser import browser, fits, needs_browser, picture, visit
from ..support.call_log import add, call_row
from ..support.openai_server import write_model
from ..support.server import Served, alone

pytestmark = needs_browser

ANSWER = (
    "## Of *penguins*\n\n| they | how |\n| --- | --- |\n| swim | well |\n\n```sql\nselect 1\n```"
)


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path, server: Any) -> AsyncIterator[Served]:
    """A Datasette that everyone may manage, with a conversation, and a model that hangs."""
    write_model(llm_folder, server.url)
    (llm_folder / "keys.json").write_text(json.dumps({"wire": "sk-0123456789abcdef"}))
    server.play(["po", asyncio.Event()])
    file, internal = tmp_path / "datasette.json", tmp_path / "internal.db"
    file.write_text(json.dumps({"permissions": {"manage-llm": True, "view-llm-log": True}}))
    connection = sqlite3.connect(internal)
    migrate(connection)
    with connection:
        _add_conversation(connection)
    connection.close()
    options = ("--memory", "--internal", str(internal), "--config", str(file))
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


def _add_conversation(connection: sqlite3.Connection) -> None:
    """Five turns, the second of which calls a tool; each repeats the ones before it."""
    history: list[dict[str, Any]] = [_said("system", {"type": "text", "text": "Be kind"})]
    tool = {"name": "count_birds", "tool_call_id": "1"}
    for number in range(1, 6):
        moment = datetime.now(UTC) - timedelta(minutes=6 - number)
        times = {"waited_ms": 200.0, "first_chunk_ms": 300.0, "duration_ms": 900.0}
        row = call_row(moment, conversation_id="birds", finish_reason="stop", **times)
        add(connection, row)
        if number == 3:
            history.append(_said("tool", {"type": "tool_result", "output": '{"n": 7}', **tool}))
        history.append(_said("user", {"type": "text", "text": f"Question {number}"}))
        called = [{"type": "tool_call", "arguments": {"where": "here"}, **tool}]
        answer = _said("assistant", {"type": "text", "text": ANSWER}, *called * (number == 2))
        for part, messages in (("request", history), ("response", [answer])):
            content = json.dumps({"messages": messages})
            sql = "insert into llm_call_content values (?, ?, ?)"
            connection.execute(sql, [row["id"], part, content])
        history.append(answer)


def _said(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_p5_conversation_is_read_on_a_phone(site: Served, javascript: bool) -> None:
    """From the newest call to all of its five turns, one of which is copied."""
    options = {
        "viewport": {"width": 390, "height": 800},
        "color_scheme": "dark" if javascript else "light",
        "java_script_enabled": javascript,
        "permissions": ["clipboard-read", "clipboard-write"],
    }
    async with browser() as chromium, visit(chromium, site.url, **options) as page:
        await page.goto("/-/llm/log")
        await page.get_by_role("table", name="Calls").get_by_role("link").first.click()
        await page.get_by_text("Earlier messages: 9").click()
        await page.get_by_text("Question 1", exact=True).wait_for()
        await page.get_by_text("Raw JSON").click()
        await page.get_by_role("region", name="Request").get_by_text('"Be kind"').wait_for()
        times = await page.locator(".llm-timeline li").all_inner_texts()
        assert [text.split("\n")[:2] for text in times] == [
            ["Queue for the concurrency limit", "200 ms"],
            ["Until the first chunk", "300 ms"],
            ["Answer, until its end", "600 ms"],
        ]
        await picture(page, f"call-phone-{javascript}")
        assert await fits(page)
        await page.get_by_role("link", name="birds").click()
        assert await page.get_by_role("heading", level=2).count() == 5
        for number in range(1, 6):
            assert await page.get_by_text(f"Question {number}", exact=True).count() == 1
        assert await page.get_by_role("cell", name="swim").count() == 5
        tool = page.locator(".llm-tool")
        assert await tool.count() == 1
        assert '"n": 7' in await tool.inner_text()
        await picture(page, f"conversation-phone-{javascript}")
        assert await fits(page)
        copying = page.get_by_role("button", name="Copy message 3", exact=True)
        assert await copying.count() == int(javascript)
        if javascript:
            await copying.click()
            await page.get_by_text("Copied").wait_for()
            assert await page.evaluate("navigator.clipboard.readText()") == ANSWER


async def test_p6_running_call_is_followed_and_stopped(site: Served) -> None:
    """One tests a model that hangs; another sees the call appear, its seconds, and stops it."""
    async with (
        browser() as chromium,
        visit(chromium, site.url) as tester,
        visit(chromium, site.url, may_fail="/-/llm/log/follow") as page,
    ):
        await page.goto("/-/llm/log")
        await page.get_by_role("link", name="Follow new calls").click()
        shown = page.get_by_role("table", name="Calls")
        await shown.wait_for()
        await tester.goto("/-/llm/test?model=wire")
        await tester.get_by_role("button", name="Test").click()
        await tester.get_by_text("first chunk after").wait_for()
        await picture(tester, "test-streams")
        await shown.get_by_text("running").wait_for()
        await picture(page, "log-follows")
        await page.get_by_role("link", name="Running calls").click()
        await page.get_by_role("cell", name="the answer arrives").wait_for()
        await picture(page, "running")
        await page.get_by_role("button", name="Stop the call of wire").click()
        await page.get_by_role("heading", name="Call of").wait_for()
        await page.get_by_text("Stopped by an actor without an id").wait_for()
        assert "cancelled" in await page.locator(".llm-facts").first.inner_text()
        await tester.get_by_text("Stopped by an actor without an id").wait_for()


async def test_p6_call_page_follows_its_call_to_the_end(site: Served) -> None:
    """Without a script a link loads the page again, and the test can be cancelled with one."""
    async with (
        browser() as chromium,
        visit(chromium, site.url, may_fail="/-/llm/test") as tester,
        visit(chromium, site.url, may_fail="/-/llm/log/follow") as page,
        visit(chromium, site.url, java_script_enabled=False) as plain,
    ):
        await tester.goto("/-/llm/test?model=wire")
        await tester.get_by_role("button", name="Test").click()
        await tester.get_by_text("first chunk after").wait_for()
        await plain.goto("/-/llm/log/running")
        await plain.get_by_role("link", name="Its call").click()
        await page.goto(plain.url)
        seconds = await page.locator("[data-seconds]").get_attribute("data-seconds")
        await page.locator("[data-seconds]", has_not_text=f"{seconds} s").wait_for()
        await tester.get_by_role("button", name="Cancel").click()
        await tester.get_by_text("Cancelled", exact=True).wait_for()
        await page.get_by_text("Running for").wait_for(state="detached")
        assert "cancelled" in await page.locator(".llm-facts").first.inner_text()
        await plain.get_by_role("link", name="Refresh").click()
        assert not await plain.get_by_text("Running for").count()

"""The playground in a real browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ..support.browser import browser, fits, needs_browser, picture, visit
from ..support.openai_server import write_model
from ..support.server import Served, alone

pytestmark = needs_browser
QUERY = "prompt=Tell+me&model=wire&model=wire&model=nonsense"


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path, server: Any) -> AsyncIterator[Served]:
    """A Datasette that everyone may manage, with a model on a server."""
    write_model(llm_folder, server.url)
    (llm_folder / "keys.json").write_text(json.dumps({"wire": "sk-0123456789abcdef"}))
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps({"permissions": {"manage-llm": True, "view-llm-log": True}}))
    options = ("--memory", "--internal", str(tmp_path / "internal.db"), "--config", str(file))
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_v1_answers_come_side_by_side(site: Served, server: Any, scheme: str) -> None:
    """One is cancelled while it comes, by keyboard, and the others stay; all are on record."""
    server.play(["**whole**"], ["half", 3600.0])
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    failing = {"may_fail": "/-/llm/playground"}  # the request that is cancelled
    async with browser() as chromium, visit(chromium, site.url, **failing, **options) as page:
        await page.goto(f"/-/llm/playground?{QUERY}")
        await page.get_by_role("button", name="Send", exact=True).click()
        answers = page.locator("#llm-answers article")
        await answers.get_by_text("Unknown model:").wait_for()
        await answers.locator("strong", has_text="whole").wait_for()
        hanging = answers.filter(has_text="half")
        await hanging.wait_for()
        await page.get_by_role("button", name="Cancel wire").press("Enter")
        await hanging.get_by_text("Cancelled after").wait_for()
        await page.get_by_text("1 of 3 answered").wait_for()
        assert "half" in await page.evaluate("document.activeElement.textContent")
        await picture(page, f"playground-{scheme}")
        assert await fits(page)
        await page.get_by_role("link", name="These calls in the call log").click()
        await page.get_by_role("heading", name="Calls", exact=True).first.wait_for()
        listed = await (await page.request.get(page.url.replace("/log?", "/log.json?"))).json()
        assert sorted(row["outcome"] for row in listed["rows"]) == ["cancelled", "ok"]


async def test_v1_estimate_follows_what_is_typed(site: Served) -> None:
    """So does the address to share; nothing is sent for it."""
    async with browser() as chromium, visit(chromium, site.url) as page:
        await page.goto("/-/llm/playground?model=wire")
        await page.get_by_label("Prompt", exact=True).fill("Tell me of pelicans")
        await page.get_by_text("wire: unknown price").wait_for()
        address = page.get_by_role("link", name="Address of this prompt")
        assert "Tell+me+of+pelicans" in (await address.get_attribute("href") or "")
        await page.get_by_label("Model 2").fill("nonsense")
        await page.get_by_text("nonsense: Unknown model").wait_for()

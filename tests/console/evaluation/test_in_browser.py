"""An evaluation as a person makes it: a real browser on a real Datasette."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ...support.browser import browser, fits, needs_browser, picture, visit
from ...support.server import Served, alone

pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
PATH = "/prefix/-/llm/evaluations"
PLUGIN = """
from datasette_llm.testing import ScriptedModel, registered

models = registered(
    ScriptedModel("quick", ["A short answer"]), ScriptedModel("slow", [0.3, "Another answer"])
)
models.__enter__()
"""
LINES = "\n".join(f'{{"prompt": "case {number}"}}' for number in range(1, 13))


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette below a prefix, with a quick model and a slow one."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "models.py").write_text(PLUGIN)
    options = ("--root", "--plugins-dir", str(plugins), "--setting", "base_url", "/prefix/")
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


async def verdicts(page: Any) -> str:
    return str(await page.inner_text("section[aria-labelledby=verdicts]"))


async def test_v3_evaluation_made_watched_and_judged(site: Served) -> None:
    """Enter only estimates; progress needs no reload; verdicts and cases go by keyboard."""
    async with browser() as chromium, visit(chromium, site.url, **PHONE) as page:
        await page.goto(re.search(r"/prefix/-/auth-token\?token=\w+", site.output)[0])
        await page.goto(f"{PATH}/new")
        assert await fits(page)
        await page.fill("#llm-candidate1", "quick")
        await page.fill("#llm-candidate2", "slow")
        await page.select_option("#llm-source", "jsonl")
        await page.click("summary:has-text('Lines of JSON')")
        await page.fill("#llm-text", LINES)
        await page.fill("#llm-concurrency", "4")
        await page.press("#llm-concurrency", "Enter")
        await page.wait_for_selector("#estimate")
        await page.press("#llm-concurrency", "Enter")
        await page.wait_for_load_state()
        assert await fits(page)
        await picture(page, "evaluation-estimate")

        await page.click("text=Send 24 requests")
        await page.wait_for_selector("progress")
        assert await fits(page)
        await page.wait_for_selector("progress", state="detached")
        assert "24" not in await page.inner_text("h1")
        assert "worse in 0 of 12" in await page.inner_text("#content, body")
        assert await fits(page)
        await picture(page, "evaluation-result")

        await page.click("text=Case 1")
        await page.wait_for_selector("#differences")
        assert await fits(page)
        await page.fill("#llm-note-2", "bad news")  # letters that are typed are no verdicts
        await page.click("h1")
        await page.keyboard.press("b")
        await page.wait_for_selector("#verdicts")
        assert "slow: better, by root" in await verdicts(page)
        assert (await verdicts(page)).endswith("bad news")
        await picture(page, "evaluation-case")
        await page.keyboard.press("n")
        await page.wait_for_url("**/2")
        await page.keyboard.press("p")
        await page.wait_for_url("**/1")
        await shortcuts_switched_off(page)


async def shortcuts_switched_off(page: Any) -> None:
    """By keyboard alone, and on the next page, too; then on again (WCAG 2.1.4)."""
    shortcuts = page.get_by_role("checkbox", name="Keyboard shortcuts")
    await shortcuts.focus()
    await page.keyboard.press("Space")
    await page.click("text=Next case")
    await page.wait_for_url("**/2")
    assert not await shortcuts.is_checked()
    await page.evaluate("clicks = 0; addEventListener('click', () => clicks++, true)")
    for key in "bswnp":
        await page.keyboard.press(key)
    assert await page.evaluate("clicks") == 0
    await shortcuts.focus()
    await page.keyboard.press("Space")
    await page.keyboard.press("p")  # with the focus on the box
    await page.wait_for_url("**/1")

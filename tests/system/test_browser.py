"""The pages as a person uses them: a real browser on a real Datasette."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from datasette.utils.sqlite import sqlite3

from datasette_llm.log.schema import migrate

from ..support.browser import browser, fits, needs_browser, picture, visit
from ..support.call_log import add, call_row
from ..support.server import Served, alone

pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}


@pytest.fixture
async def served(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette with a week of calls in its log, which everyone may see."""
    internal = tmp_path / "internal.db"
    connection = sqlite3.connect(internal)
    migrate(connection)
    with connection:
        add(connection, *_week())
    connection.close()
    config = tmp_path / "datasette.json"
    config.write_text(json.dumps({"permissions": {"view-llm-log": True}}))
    served = await Served.start(
        alone(llm_folder), "--memory", "--internal", str(internal), "--config", str(config)
    )
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


def _week() -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    purposes = ("chat", "enrichments", None)
    outcomes = ("ok", "ok", "ok", "error")
    return [
        call_row(
            now - timedelta(hours=2 * number),
            purpose=purposes[number % 3],
            outcome=outcomes[number % 4],
            input_tokens=10**11 + number,
            output_tokens=number,
            cost_nanodollars=1_000_000 * number,
        )
        for number in range(80)
    ]


async def test_log_pages_on_a_phone_and_in_the_dark(served):
    async with browser() as chromium, visit(chromium, served.url, **PHONE) as page:
        await page.goto("/-/llm/log")
        await picture(page, "log-phone-dark")
        assert await fits(page)
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in ground.strip("rgb()").split(","))
        assert brightness < 150
        await page.set_viewport_size({"width": 320, "height": 800})
        assert await fits(page)
        cut = "tiles => tiles.filter(tile => tile.scrollWidth > tile.clientWidth).length"
        assert await page.locator(".llm-tile").evaluate_all(cut) == 0


async def test_p3_usage_on_a_phone_and_by_keyboard(served):
    """The first tap shows a bar's value, the second one opens its calls; arrow keys go along."""
    async with browser() as chromium, visit(chromium, served.url, has_touch=True, **PHONE) as page:
        await page.goto("/-/llm/usage?measure=calls")
        await picture(page, "usage-phone-dark")
        assert await fits(page)
        assert not await page.get_by_label("Since", exact=True).is_visible()  # filters are folded
        chart = page.get_by_role("list", name="Calls by day and model")
        bar = chart.get_by_role("link").last
        await bar.focus()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d: \d+", await bar.get_attribute("data-text"))
        opacity = "text => getComputedStyle(text).opacity"
        assert await bar.locator(".llm-bar-text").evaluate(opacity) == "1"
        await page.keyboard.press("ArrowLeft")
        assert await chart.get_by_role("link").nth(-2).evaluate("a => a === document.activeElement")
        box = await bar.bounding_box()
        assert box["width"] >= 24
        await bar.tap()
        readout = page.locator("#llm-readout")
        assert await bar.get_attribute("data-text") in await readout.inner_text()
        await page.set_viewport_size({"width": 320, "height": 800})
        assert await fits(page)
        await readout.get_by_role("link").tap()
        await page.wait_for_url("**/-/llm/log?since=**")


async def test_p3_usage_without_a_script(served):
    """A bar is a link, and a table has its numbers."""
    options = {"java_script_enabled": False}
    async with browser() as chromium, visit(chromium, served.url, **options) as page:
        await page.goto("/-/llm/usage?measure=cost")
        await picture(page, "usage")
        numbers = page.get_by_role("table", name="Cost by day and model")
        assert not await numbers.is_visible()
        await page.get_by_text("The same numbers in a table").focus()
        await page.keyboard.press("Enter")
        assert await numbers.get_by_role("row").count() == 1 + 30
        assert "$" in await numbers.inner_text()
        await page.get_by_role("link", name="purpose", exact=True).first.click()
        await page.get_by_role("heading", name="By purpose").wait_for()


# The console


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette with llm-echo, which root may manage."""
    root = {"id": "root"}
    config = {
        "permissions": {"manage-llm": root, "view-llm-log": root},
        "plugins": {"datasette-llm": {"purposes": {"pets": {"models": ["echo", "gpt-4o"]}}}},
    }
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps(config))
    environment = alone(llm_folder) | {"LLM_LOAD_PLUGINS": "llm-echo"}
    internal = str(tmp_path / "internal.db")
    options = ("--memory", "--root", "--internal", internal, "--config", str(file))
    served = await Served.start(environment, *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_administrator_assigns_tests_and_explains(site, javascript):
    async with (
        browser() as chromium,
        visit(chromium, site.url, java_script_enabled=javascript) as page,
    ):
        refused = await page.goto("/-/llm")
        assert refused.status == 403
        await page.goto(re.search(r"/-/auth-token\?token=\w+", site.output)[0])
        await page.goto("/-/llm")
        await picture(page, "console")
        await page.get_by_role("link", name="Purposes").click()
        await page.get_by_label("Model for purpose pets").select_option("echo")
        await page.get_by_role("button", name="Use for purpose pets").click()
        choices = page.get_by_role("table", name="Purposes and their models")
        await choices.get_by_text("by root").wait_for()
        await picture(page, "console-purposes")

        await choices.get_by_role("link", name="pets", exact=True).click()
        await page.get_by_role("link", name="Test its models").click()
        await page.get_by_role("button", name="Test", exact=True).click()
        await page.get_by_text("1 of 2 answered").wait_for()
        results = page.get_by_role("table", name="The result of each test")
        assert await results.get_by_role("row").count() == 1 + 2
        assert "Reply with the single word" in await results.inner_text()
        await picture(page, "console-test")

        await page.get_by_role("link", name="Explain").click()
        await page.get_by_label("Model", exact=True).fill("o1")
        await page.get_by_label("Purpose").fill("pets")
        await page.get_by_label("Actor").fill('{"id": "ana"}')
        await page.get_by_role("button", name="Explain").click()
        await page.get_by_text("it is not on the allowlist").first.wait_for()
        await picture(page, "console-explain")

        await page.get_by_role("link", name="Calls", exact=True).first.click()
        await page.get_by_role("cell", name="echo").first.wait_for()


async def test_console_on_a_phone_and_in_the_dark(site):
    async with browser() as chromium, visit(chromium, site.url, **PHONE) as page:
        await page.goto(re.search(r"/-/auth-token\?token=\w+", site.output)[0])
        for name in ("", "/models", "/purposes", "/test", "/explain", "/keys"):
            await page.goto(f"/-/llm{name}")
            await picture(page, f"console{name.replace('/', '-')}-phone-dark")
            assert await fits(page), name

"""The list of calls as people explore it: a real browser on a real Datasette."""

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

PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
WHY = "The organisation has reached its limit; try again in 20 seconds"


@pytest.fixture
async def served(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette with three days of calls, of which everyone may see the log."""
    internal = tmp_path / "internal.db"
    connection = sqlite3.connect(internal)
    migrate(connection)
    with connection:
        add(connection, *_calls())
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


def _calls() -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    calls = [
        call_row(
            now - timedelta(hours=n),
            model_id=("heron", "pelican")[n % 2],
            purpose=("chat", "titles", None)[n % 3],
            actor_id=f"actor-{n % 4}",
            input_tokens=1_000 + n,
            output_tokens=n,
            cost_nanodollars=1_000_000 * n,
        )
        for n in range(72)
    ]
    failed = {"outcome": "error", "error_message": WHY, "error_type": "APIError"}
    calls[24] |= failed | {"failure_kind": "rate_limit"}
    calls[50] |= failed | {"failure_kind": "timeout", "error_message": "too late"}
    chain = {"chain_id": "c", "purpose": "agent"}
    steps = [call_row(now, chain_step=n, cost_nanodollars=10**7, **chain) for n in (1, 2, 3)]
    return [*calls, *steps]


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_p4_a_failure_is_found_in_four_clicks(served, javascript):
    """A failure of yesterday: by outcome, by kind, its call, and back to the list."""
    async with (
        browser() as chromium,
        visit(chromium, served.url, java_script_enabled=javascript) as page,
    ):
        await page.goto("/-/llm/log")
        await picture(page, "calls")
        await page.get_by_role("region", name="Outcome").get_by_role("link", name="error").click()
        kinds = page.get_by_role("region", name="Failure")
        await kinds.get_by_role("link", name="Rate limit or quota").click()
        await page.wait_for_url("**failure_kind=rate_limit**")
        shown = page.get_by_role("table", name="Calls")
        await shown.wait_for()
        assert await shown.get_by_role("row").count() == 1 + 1
        filtered = page.url
        await shown.get_by_role("link").first.click()
        await page.get_by_role("heading", name="Call of").wait_for()
        assert WHY in await page.locator("body").inner_text()
        await picture(page, "calls-failure")
        await page.get_by_role("link", name="Back to the list").click()
        await page.wait_for_url(filtered)


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_p4_calls_are_filtered_sorted_and_paged(served, javascript):
    async with (
        browser() as chromium,
        visit(chromium, served.url, java_script_enabled=javascript) as page,
    ):
        await page.goto("/-/llm/log?limit=20")
        fold = page.get_by_text("Chain of 3 requests, $0.03")
        assert not await page.locator(".llm-fold-rows li").first.is_visible()
        await fold.focus()
        await page.keyboard.press("Enter")
        assert await page.locator(".llm-fold-rows li:visible").count() == 2
        await page.locator("#filters > summary").click()
        await page.get_by_role("combobox", name="Model").select_option("heron")
        await page.get_by_label("Tokens from").fill("1010")
        await page.get_by_role("button", name="Filter").click()
        # A script leaves out what is empty.
        assert ("purpose=" in page.url) is not javascript
        await page.get_by_role("link", name="cost", exact=True).click()
        costs = page.locator("tbody tr td[data-label=Cost]")
        await page.wait_for_url("**sort=-cost**")
        await costs.first.wait_for()
        first = await costs.all_inner_texts()
        assert first[0] == "$0.07"
        await page.get_by_role("link", name="Older").click()
        await page.wait_for_url("**next=**")
        assert await costs.first.inner_text() not in first
        await page.get_by_role("link", name="Newer").click()
        await page.wait_for_url("**previous=**")
        await costs.first.wait_for()
        assert await costs.all_inner_texts() == first
        await page.get_by_role("link", name="Remove Model: heron").click()
        await page.get_by_text("Model: heron").wait_for(state="hidden")
        await page.wait_for_url("**min_tokens=1010**")
        assert not re.search("model=heron", page.url)


async def test_p4_a_phone_begins_with_calls(served):
    """The filter is folded, the facets come after the list, and nothing is too wide."""
    async with browser() as chromium, visit(chromium, served.url, **PHONE) as page:
        await page.goto("/-/llm/log")
        await picture(page, "calls-phone-dark")
        assert await fits(page)
        assert not await page.get_by_label("Since", exact=True).is_visible()
        shown = page.get_by_role("table", name="Calls").get_by_role("link").first
        assert (await shown.bounding_box())["y"] < 844
        await page.get_by_role("link", name="Facets and saved views").click()
        assert await page.get_by_role("region", name="Outcome").is_visible()
        await page.set_viewport_size({"width": 320, "height": 800})
        assert await fits(page)

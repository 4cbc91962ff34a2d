"""What all pages of the console share, in a real browser: local times, navigation, sorting."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..support.browser import browser, fits, needs_browser, picture, visit
from ..support.server import Served, alone

pytestmark = needs_browser


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette that everyone may manage."""
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps({"permissions": {"manage-llm": True, "view-llm-log": True}}))
    options = ("--memory", "--internal", str(tmp_path / "internal.db"), "--config", str(file))
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


@pytest.mark.parametrize("javascript", [True, False])
async def test_p7_model_is_tested_sorted_and_chosen(site: Served, javascript: bool) -> None:
    """Which model a purpose should have: test one, see its use, choose it; times are local too."""
    options = {"timezone_id": "Asia/Kolkata", "java_script_enabled": javascript}
    async with browser() as chromium, visit(chromium, site.url, **options) as page:
        await page.goto("/-/llm/test?model=echo&purpose=dataset-consultant")
        await page.get_by_role("button", name="Test").click()
        await page.get_by_role("link", name="Call log").first.click()
        times = await page.locator("h1 time + small.llm-local").all_inner_texts()
        assert [time.endswith("GMT+5:30") for time in times] == ([True] if javascript else [])
        await page.get_by_role("navigation", name="LLM").get_by_role("link", name="Models").click()
        await page.get_by_role("columnheader", name="Calls").first.get_by_role("link").click()
        sorted_by = page.locator("th[aria-sort]").first
        assert await sorted_by.get_attribute("aria-sort") == "descending"
        await picture(page, f"console-models-{javascript}")
        await (
            page.get_by_role("navigation", name="LLM").get_by_role("link", name="Purposes").click()
        )
        await page.get_by_role("link", name="dataset-consultant").click()
        await page.get_by_label("Model for purpose").select_option("echo")
        await page.get_by_role("button", name="Use").click()
        await page.get_by_text("Purpose dataset-consultant now uses echo.").wait_for()
        assert page.url.endswith("/-/llm/purposes/dataset-consultant")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_p1_pages_fit_a_phone(site: Served, scheme: str) -> None:
    """The current page of the navigation is in view, in one line."""
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    async with browser() as chromium, visit(chromium, site.url, **options) as page:
        for path in ("", "/models", "/models/echo", "/purposes", "/explain?model=echo", "/keys"):
            await page.goto(f"/-/llm{path}")
            await picture(page, f"console{path.replace('/', '-').partition('?')[0]}-{scheme}")
            assert await fits(page), path
            box = await page.locator(".llm-tabs [aria-current]").bounding_box()
            assert box["x"] >= 0, path
            assert box["x"] + box["width"] <= 390, path
            assert (await page.locator("h1").bounding_box())["y"] < 160, path

"""What all pages of the console share, in a real browser: local times, navigation, sorting."""

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


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path, server: Any) -> AsyncIterator[Served]:
    """A Datasette that everyone may manage, with a model that answers."""
    write_model(llm_folder, server.url)
    (llm_folder / "keys.json").write_text(json.dumps({"wire": "sk-0123456789abcdef"}))
    server.play(["pong"])
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps({"permissions": {"manage-llm": True, "view-llm-log": True}}))
    options = ("--memory", "--internal", str(tmp_path / "internal.db"), "--config", str(file))
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_p7_model_is_tested_sorted_and_chosen(site: Served, javascript: bool) -> None:
    """Which model a purpose should have: test one, see its use, choose it; times are local too."""
    options = {"timezone_id": "Asia/Kolkata", "java_script_enabled": javascript}
    async with browser() as chromium, visit(chromium, site.url, **options) as page:
        navigation = page.get_by_role("navigation", name="LLM")
        await page.goto("/-/llm/test?model=wire&purpose=dataset-consultant")
        await page.get_by_role("button", name="Test").click()
        await page.get_by_role("link", name="Call log").first.click()
        await page.get_by_role("heading", name="Call of").wait_for()
        times = await page.locator("h1 small.llm-local").all_inner_texts()
        assert [time.endswith("GMT+5:30") for time in times] == ([True] if javascript else [])
        await navigation.get_by_role("link", name="Models").click()
        await page.get_by_role("columnheader", name="Calls").first.get_by_role("link").click()
        sorted_by = page.locator("th[aria-sort]").first
        assert await sorted_by.get_attribute("aria-sort") == "descending"
        await picture(page, f"console-models-{javascript}")
        await navigation.get_by_role("link", name="Purposes").click()
        await page.get_by_role("link", name="dataset-consultant").click()
        await page.get_by_label("Model for purpose").select_option("wire")
        await page.get_by_role("button", name="Use").click()
        await page.get_by_text("Purpose dataset-consultant now uses wire.").wait_for()
        assert page.url.endswith("/-/llm/purposes/dataset-consultant")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_p1_pages_fit_a_phone(site: Served, scheme: str) -> None:
    """The current page of the navigation is in view, in one line."""
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    async with browser() as chromium, visit(chromium, site.url, **options) as page:
        for path in ("", "/models", "/models/wire", "/purposes", "/explain?model=wire", "/keys"):
            await page.goto(f"/-/llm{path}")
            await picture(page, f"console{path.replace('/', '-').partition('?')[0]}-{scheme}")
            assert await fits(page), path
            box = await page.locator(".llm-tabs [aria-current]").bounding_box()
            assert box["x"] >= 0, path
            assert box["x"] + box["width"] <= 390, path
            assert (await page.locator("h1").bounding_box())["y"] < 160, path

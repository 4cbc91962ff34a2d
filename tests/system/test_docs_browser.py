"""The pages of the documentation in a real browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datasette_llm.console.docs import SUBJECTS

from ..support.browser import browser, fits, needs_browser, picture, visit
from ..support.server import Served, alone

pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 800}}


@pytest.fixture
async def site(tmp_path: Path, llm_folder: Path) -> AsyncIterator[Served]:
    """A Datasette that everyone may manage."""
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps({"permissions": {"manage-llm": True, "view-llm-log": True}}))
    internal = str(tmp_path / "internal.db")
    options = ("--memory", "--internal", internal, "--config", str(file))
    served = await Served.start(alone(llm_folder), *options)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


async def test_reader_follows_links_to_a_section(site):
    """From a page of the console to its section, to another subject, and to the list."""
    async with browser() as chromium, visit(chromium, site.url) as page:
        await page.goto("/-/llm/purposes")
        await picture(page, "docs-link")
        await page.get_by_role("link", name="Documentation", exact=True).click()
        await page.wait_for_url("**/-/llm/docs/console#purposes")
        heading = page.get_by_role("heading", name="Purposes")
        assert (await heading.bounding_box())["y"] < 200
        await page.get_by_role("link", name="run in a thread").click()
        await page.wait_for_url("**/-/llm/docs/models#models-without-an-async-version")
        await page.get_by_role("link", name="Docs", exact=True).first.click()
        await picture(page, "docs")
        await page.get_by_role("link", name="Configuration").click()
        await picture(page, "docs-configuration")
        await page.get_by_role("link", name="Calls", exact=True).click()
        await page.get_by_role("link", name="Documentation", exact=True).click()
        await page.wait_for_url("**/-/llm/docs/log")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_docs_fit_a_phone(site, scheme):
    """Wide tables and code scroll in their own box."""
    async with (
        browser() as chromium,
        visit(chromium, site.url, color_scheme=scheme, **PHONE) as page,
    ):
        for subject in ("", *(f"/{each}" for each in SUBJECTS)):
            await page.goto(f"/-/llm/docs{subject}")
            assert await fits(page), subject
            if subject in ("", "/configuration", "/hooks", "/benchmarks"):
                await picture(page, f"docs{subject.replace('/', '-')}-phone-{scheme}")
        boxes = page.locator(".llm-wide-table")
        assert await boxes.evaluate_all("all => all.some(box => box.scrollWidth > box.clientWidth)")


async def test_docs_are_dark_in_the_dark(site):
    async with browser() as chromium, visit(chromium, site.url, color_scheme="dark") as page:
        await page.goto("/-/llm/docs/hooks")
        await picture(page, "docs-hooks-dark")
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(part) for part in ground.strip("rgb()").split(",")) < 150

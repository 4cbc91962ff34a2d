"""A real browser for the tests of pages: Chromium, driven by playwright, offline but for us."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
MISSING = "no Chromium on the PATH; Debian has it as the package chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason=MISSING)


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A browser without any history."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=EXECUTABLE, args=FLAGS)
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def visit(
    chromium: Any, url: str, *, may_fail: str | None = None, **options: Any
) -> AsyncIterator[Any]:
    """A page of its own, which fails the test at its end if a script or a resource failed.

    Requests to paths that begin with `may_fail` may, for example as the page cancels them.
    """
    context = await chromium.new_context(base_url=url, **options)
    context.set_default_timeout(15_000)
    page = await context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))

    def failed(request: Any) -> None:
        if may_fail is None or not request.url.startswith(f"{url}{may_fail}"):
            problems.append(f"{request.url} failed")

    page.on("requestfailed", failed)
    try:
        yield page
    finally:
        await context.close()
    assert not problems, problems


async def picture(page: Any, name: str) -> None:
    """Keep a picture of a page in the folder SCREENSHOTS, if that is set."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


async def fits(page: Any) -> bool:
    """Whether a page is no wider than its window."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

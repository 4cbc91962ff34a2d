"""Every page of ours on the site of `datasette llm demo`: its frame, its links, and axe-core."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import yaml
from click.testing import CliRunner
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm.console.navigation import LINKS
from datasette_llm.console.routes import routes

from ..support.browser import browser, needs_browser
from ..support.console import Page
from ..support.server import Served, alone, log_in

ROOT = {"id": "root"}
PREFIX = "/prefix"
# What has no page: data, and the targets of forms.
OTHERS = re.compile(
    r"\.(json|csv|\(\?P<format>.+)\$$|/text/|<action>"
    r"|/(assign|dismiss|views|stop|follow|cache/clear|judge|remove)\$$"
)
# So many pages of one route, besides those of STATES.
MOST = 1
# Arguments that some page refuses.
NONSENSE = "limit=x&outcome=x&period=x&availability=x&actor={"
STATES = (
    *(f"{link.path}?{NONSENSE}" for link in LINKS),
    "/-/llm/log?purpose=nowhere",
    "/-/llm/usage?purpose=nowhere",
    "/-/llm/usage?by=tag&tag_key=job&measure=cost&period=yesterday",
    "/-/llm/models?q=gpt&purpose=harbour",
    "/-/llm/explain?model=gpt-4-turbo&purpose=harbour&actor=customs",
    "/-/llm/explain?model=echo",
    "/-/llm/test?purpose=translations",
    "/-/llm/models/quay-7b",
)
# Calls that look different from each other.
CALLS = (
    *("outcome = 'error'", "outcome = 'cancelled'", "outcome = 'blocked'", "attempt = 3"),
    *("chain_step = 2", "group_id is not null", "conversation_id is not null"),
    *("finish_reason = 'length'", "waited_ms > 0"),
)
# What is there after an action: the address, a button, and what comes of it.
ACTIONS = (
    ("/-/llm/test?model=echo", "Test", "table .llm-outcome"),
    ("/harbour/arrivals/-/llm-analyze", "Send", "h1:has-text('Advice about')"),
)
SIZES = ({"width": 1280, "height": 900}, {"width": 390, "height": 800})
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
# All that is folded is shown. Of what is listed, and is alike, some is left: contrast takes long.
# Datasette's search box has a property that axe takes for a method of every element.
PREPARE = """() => {
  const rest = document.querySelectorAll("main :is(tbody tr, li, option):nth-child(n+7)");
  rest.forEach((each) => each.remove());
  document.querySelectorAll("navigation-search").forEach((each) => each.remove());
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
}"""
# The header and the footer are Datasette's.
RUN = """async (options) => {
  const found = await axe.run(
    { exclude: [["header.hd"], ["footer.ft"]] },
    {
      resultTypes: ["violations"],
      rules: { "target-size": { enabled: true } },
      preload: false,
      iframes: false,
      ...options,
    },
  );
  return found.violations
    .filter((each) => each.impact !== "minor")
    .flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.target}`));
}"""
# What depends on the colours.
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}
# All in our part of the page that is used by itself, and not in the middle of a text.
SMALL = """() => [...document.querySelectorAll("main :is(button, select, summary, input)")]
  .filter((each) => !["checkbox", "radio", "hidden"].includes(each.type))
  .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 24)
  .map((each) => `smaller than 24 px: ${each.outerHTML.slice(0, 80)}`)"""
# A page that lists something begins with it.
UNFOLDED = """() => [...document.querySelectorAll("main:has(table) form[method=get].llm-filter")]
  .filter((each) => each.checkVisibility()).map((each) => `unfolded: ${each.ariaLabel}`)"""

IN_VIEW = "each => { const { top } = each.getBoundingClientRect(); return -1 < top && top < 800; }"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demo with some weeks of calls."""
    place = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(tmp_path_factory.mktemp("llm")))
        words = ["llm", "demo", str(place), "--no-serve", "--days", "16"]
        made = CliRunner().invoke(cli, words)
        assert made.exit_code == 0, made.output
        yield place


def patterns() -> list[str]:
    """The routes of all pages."""
    return [pattern for pattern, _ in routes() if not OTHERS.search(pattern)]


class Site:
    """The pages of a site, found by its links.

    Attributes:
        statuses: the status of each address that was read.
        pages: the page at each of them.
        found: the addresses of each route.
        states: further addresses.
    """

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self.statuses: dict[str, int] = {}
        self.pages: dict[str, Page] = {}
        self.found: dict[str, list[str]] = {pattern: [] for pattern in patterns()}
        self.states: list[str] = []

    @property
    def addresses(self) -> list[str]:
        """All pages of ours, and their states."""
        return [*(each for found in self.found.values() for each in found), *self.states]

    async def read(self, address: str) -> Page:
        """Read a page, once."""
        if address not in self.pages:
            response = await self._datasette.client.get(address, actor=ROOT)
            self.statuses[address], self.pages[address] = response.status_code, Page(response.text)
        return self.pages[address]

    async def explore(self) -> None:
        """Read a page of each route, from the start page on, then the states, then all links."""
        todo = ["/"]
        for address in todo:
            await self.read(address)
            for link in self.links(address):
                route = self._route_of(link)
                if route and len(self.found[route]) < MOST and link not in todo:
                    self.found[route].append(link)
                    todo.append(link)
        for address in self.states:
            await self.read(address)
        # Other pages take no arguments, and look as before.
        refused = self.statuses
        self.states = [each for each in self.states if NONSENSE not in each or refused[each] == 400]
        for address in todo:
            for link in self.links(address):
                await self.read(link)

    def links(self, address: str) -> list[str]:
        """The addresses in the site that a page leads to, without the prefix."""
        absolute = [urljoin(f"{PREFIX}{address}", href) for href in self.pages[address].links()]
        ours = [each for each in absolute if each.startswith("/")]
        assert all(each.startswith(f"{PREFIX}/") for each in ours), address
        return list(dict.fromkeys(each.removeprefix(PREFIX).partition("#")[0] for each in ours))

    def _route_of(self, address: str) -> str | None:
        path = urlsplit(address).path
        return next((pattern for pattern in self.found if re.search(pattern, path)), None)


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    """The site of the demo, under a base_url, as it was explored."""

    async def explored() -> Site:
        parts = {
            name: yaml.safe_load((folder / f"{file}.yaml").read_text("utf-8"))
            for name, file in (("config", "datasette"), ("metadata", "metadata"))
        }
        internal = folder / "internal" / "internal.db"
        datasette = Datasette(
            [str(folder / "harbour.db")],
            internal=str(internal),
            settings={"base_url": f"{PREFIX}/"},
            **parts,
        )
        await datasette.invoke_startup()
        try:
            found = Site(datasette)
            found.states += [*STATES, *calls(internal)]
            await found.explore()
        finally:
            await datasette.invoke_shutdown()
        return found

    return asyncio.run(explored())


def calls(internal: Path) -> list[str]:
    """The addresses of CALLS, and of the calls of a group."""
    with contextlib.closing(sqlite3.connect(internal)) as connection:
        sql = "select id from llm_calls where {} order by id desc limit 1"
        ids = [connection.execute(sql.format(condition)).fetchone()[0] for condition in CALLS]
        (group,) = connection.execute("select max(group_id) from llm_calls").fetchone()
    return [*(f"/-/llm/log/{each}" for each in ids), f"/-/llm/log?group={group}"]


def test_p1_every_page_is_framed(site: Site) -> None:
    """One h1, a title, the navigation and crumbs, without a script."""
    assert [pattern for pattern, found in site.found.items() if not found] == []
    for address in site.addresses:
        page = site.pages[address]
        assert site.statuses[address] in ((200, 400) if address in site.states else (200,)), address
        assert [len(page.all(tag)) for tag in ("h1", "main")] == [1, 1], address
        assert re.search(r"\S: LLM\s", page.text), address
        classes = [attributes.get("class") for _, attributes in page.tags]
        assert {"llm-tabs", "crumbs"} <= set(classes), address


def test_p1_no_link_is_dead(site: Site) -> None:
    """Also under base_url, and without a script."""
    dead = [
        (address, link)
        for address in (*site.addresses, "/")
        if address not in site.states
        for link in site.links(address)
        if site.statuses[link] != 200
    ]
    assert dead == []


# In a browser


Open = Callable[..., Awaitable[Any]]


@pytest.fixture
async def opened(folder: Path, llm_folder: Path) -> AsyncIterator[Open]:
    """A function that opens a window of the site; its other arguments are playwright's."""
    environment = alone(llm_folder) | {"LLM_LOAD_PLUGINS": "llm-echo"}
    internal = str(folder / "internal" / "internal.db")
    served = await Served.start(environment, str(folder), "--internal", internal, "--root")
    try:
        await served.ready()
        async with served.client() as client:
            await log_in(client, served)
            cookie = {"name": "ds_actor", "value": client.cookies["ds_actor"], "url": served.url}
        async with browser() as chromium:

            async def window(*, as_root: bool = True, **options: Any) -> Any:
                context = await chromium.new_context(base_url=served.url, **options)
                context.set_default_timeout(15_000)
                await context.add_cookies([cookie] if as_root else [])
                return await context.new_page()

            yield window
    finally:
        await served.kill()


@needs_browser
@pytest.mark.timeout(240)  # a hundred pages, beside other tests
async def test_p10_axe_finds_nothing(site: Site, opened: Open) -> None:
    """On every page and state, light and dark, wide and narrow; targets have at least 24 px."""
    looks = zip(SIZES, ("light", "dark"), strict=True)
    found = await asyncio.gather(*(problems(opened, site, *look) for look in looks))
    assert {**found[0], **found[1]} == {}


async def problems(
    opened: Open, site: Site, size: dict[str, int], scheme: str
) -> dict[str, list[str]]:
    """What is wrong in a window of a size, if anything: states are looked at in one scheme."""
    page, found = await opened(viewport=size), dict[str, list[str]]()
    await page.add_init_script(AXE)
    for address in site.addresses:
        await page.emulate_media(color_scheme=scheme)
        await page.goto(address)
        narrow, is_state = size["width"] < 700, address in site.states
        wrong = await page.evaluate(UNFOLDED) if narrow and not is_state else []
        wrong += await problems_of(page)
        if not is_state:
            await page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
            wrong += await page.evaluate(RUN, COLOURS)
        found[f"{size['width']} {address}"] = wrong
    for address, button, result in ACTIONS:
        await page.goto(address)
        await page.get_by_role("button", name=button, exact=True).click()
        await page.locator(result).first.wait_for()
        found[f"{size['width']} {address}, {button}"] = await problems_of(page)
    visitor = await opened(viewport=size, as_root=False, color_scheme=scheme)
    await visitor.add_init_script(AXE)
    await visitor.goto("/-/llm")
    found[f"{size['width']} 403"] = await problems_of(visitor)
    return {name: wrong for name, wrong in found.items() if wrong}


async def problems_of(page: Any) -> list[str]:
    """What is wrong with a page, with all that it folds shown."""
    await page.evaluate(PREPARE)
    return [*await page.evaluate(RUN, {}), *await page.evaluate(SMALL)]


@needs_browser
async def test_p10_focus_goes_where_the_eye_goes(opened: Open) -> None:
    """After an action by keyboard the focus is at what came of it, and that is in view."""
    page = await opened(viewport=SIZES[1])

    async def focused() -> str:
        element = page.locator(":focus")
        assert await element.evaluate(IN_VIEW)
        return str(await element.inner_text())

    await page.goto("/-/llm/purposes/harbour")
    await page.get_by_label("Model for purpose harbour").select_option("echo")
    await page.get_by_role("button", name="Use").press("Enter")
    await page.wait_for_selector(".message-info")
    assert await focused() == "Purpose harbour now uses echo."
    await page.goto("/-/llm/models")
    await page.get_by_text("Search and sort").press("Enter")
    await page.get_by_label("Search", exact=True).fill("gpt-4.1")
    await page.get_by_label("Search", exact=True).press("Enter")
    await page.wait_for_url("**q=gpt-4.1*#found")
    assert re.match(r"\d of \d+ models", await focused())
    await page.goto("/-/llm/explain")
    await page.get_by_label("Actor").fill("{")
    await page.get_by_label("Actor").press("Enter")
    await page.wait_for_url("**actor=%7B*")
    assert "actor" in (await focused()).casefold()
    await page.goto("/harbour/arrivals/-/llm-analyze")
    await page.locator("summary", has_text="Dismiss").first.press("Enter")
    await page.get_by_label("Why, for all who see this table").first.fill("known")
    await page.get_by_label("Why, for all who see this table").first.press("Enter")
    await page.wait_for_url("**#llm-findings")
    assert (await focused()).startswith("Findings")


@needs_browser
async def test_p10_an_action_needs_no_script(opened: Open) -> None:
    """What a search finds is in view, and a refusal has a role that is read aloud."""
    page = await opened(viewport=SIZES[1], java_script_enabled=False)
    await page.goto("/-/llm/explain")
    await page.get_by_label("Model").fill("echo")
    await page.get_by_label("Model").press("Enter")
    await page.get_by_role("heading", name="echo").wait_for()
    box = await page.locator("#decision").bounding_box()
    assert 0 <= box["y"] < SIZES[1]["height"] / 2
    await page.goto("/-/llm/explain?actor=%7B")
    assert await page.get_by_role("alert").is_visible()

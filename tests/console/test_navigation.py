"""What all pages have in common: navigation, crumbs, headings, times, names, and the 403."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
import yaml
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.console import formatting
from datasette_llm.console.forbidden import explanation
from datasette_llm.console.navigation import LINKS
from datasette_llm.testing import ScriptedModel
from tests.support.console import ANA, BEN, CONSOLE, HOSTILE, Page, Start, assert_harmless

ALL = ("manage-llm", "view-llm-log", "analyze-table")


@pytest.fixture
async def site(start: Start, register_models: Any) -> Any:
    """A site with a call and a consultation's page, below `/prefix/`."""
    register_models(ScriptedModel("scripted", ["hello"]))
    datasette = await start(may=ALL, settings={"base_url": "/prefix/"})
    response = await (await LLM(datasette).model("scripted")).prompt("x")
    await response.text()
    zoo = Database(datasette, memory_name="navigation")
    datasette.add_database(zoo, "zoo")
    await zoo.execute_write("create table if not exists pets (name text)")
    await datasette.refresh_schemas()
    datasette.call_page = f"{CONSOLE}/log/{response.id}"  # for the tests below
    return datasette


async def page_of(datasette: Any, path: str, actor: Any = ANA) -> tuple[str, Page]:
    response = await datasette.client.get(path, actor=actor)
    assert response.status_code == 200, path
    return response.text, Page(response.text)


def current(page: Page) -> list[tuple[str | None, str | None]]:
    """The marked links of the navigation."""
    paths = {f"/prefix{link.path}" for link in LINKS}
    marked = [(a["href"], a["aria-current"]) for a in page.all("a") if a.get("aria-current")]
    return [(href, value) for href, value in marked if href in paths]


def crumbs(text: str) -> list[str]:
    found = re.search(r'<p class="crumbs">(.*?)</p>', text, re.S)
    assert found
    return [html.unescape(re.sub(r"<[^>]+>", "", each)).strip() for each in found[1].split(" / ")]


def heading(text: str) -> str:
    (found,) = re.findall(r"<h1[^>]*>(.*?)</h1>", text, re.S)
    return html.unescape(re.sub(r"<[^>]+>", "", found)).strip()


async def test_p1_same_navigation_everywhere(site: Any) -> None:
    """Each page has all links, its own is marked, and its name is that of its heading and title."""
    for link in LINKS:
        text, page = await page_of(site, link.path)
        assert {f"/prefix{each.path}" for each in LINKS} <= set(page.links())
        assert current(page) == [(f"/prefix{link.path}", "page")]
        assert heading(text) == link.label
        assert f"<title>{link.label}: LLM</title>" in text
        last = "LLM" if link.path == CONSOLE else link.label
        assert crumbs(text)[-1] == last
        assert 'src="/prefix/-/static-plugins/datasette-llm/llm-page.js' in text


async def test_p1_crumbs_lead_back_from_inner_pages(site: Any) -> None:
    inner = {
        site.call_page: ("Calls", "/prefix/-/llm/log"),
        f"{CONSOLE}/docs/keys": ("Docs", "/prefix/-/llm/docs"),
        "/zoo/pets/-/llm-analyze": ("Advice", "/prefix/-/llm/consultations"),
    }
    for path, (label, above) in inner.items():
        text, page = await page_of(site, path)
        assert crumbs(text)[:-1] == ["home", "LLM", label]
        assert current(page) == [(above, "true")]
        assert heading(text)


@pytest.mark.parametrize("permission", ALL)
async def test_p1_links_only_to_what_may_be_seen(site: Any, permission: str) -> None:
    for each in ALL:
        if each != permission:
            del site.config["permissions"][each]
    may = {link.path for link in LINKS if permission in link.permissions}
    for path in may:
        _, page = await page_of(site, path)
        listed = {f"/prefix{link.path}" for link in LINKS} & set(page.links())
        assert listed == {f"/prefix{each}" for each in may}
        for each in may:
            assert (await site.client.get(each, actor=ANA)).status_code == 200


async def test_p1_times_name_their_moment(site: Any) -> None:
    """The script finds each time by its `datetime`; without it there is UTC."""
    _, page = await page_of(site, site.call_page)
    times = [each["datetime"] or "" for each in page.all("time")]
    assert times
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each) for each in times)


@pytest.mark.parametrize(
    ("value", "before", "shown"),
    [
        (112, 100, "+12 %"),
        (50, 100, "\N{MINUS SIGN}50 %"),
        (100, 100, "as much"),
        (0, 5, "\N{MINUS SIGN}100 %"),
        (12_345, 1, "+1,234,400 %"),
        (1, 0, ""),
        (1, None, ""),
        (None, 1, ""),
    ],
)
def test_p1_change_against_before(value: Any, before: Any, shown: str) -> None:
    assert formatting.change(value, before) == shown


@pytest.mark.parametrize("name", ["model", "model_id"])
async def test_p1_earlier_name_of_model_works(site: Any, name: str) -> None:
    """In addresses, forms and JSON; where both are given, the new one counts."""
    test = f"{CONSOLE}/test"
    _, page = await page_of(site, f"{test}?{name}=scripted")
    assert page.form()["model"] == "scripted"
    for body in ({"data": {name: "scripted"}}, {"json": {name: "scripted", "model": "scripted"}}):
        answer = await site.client.post(test, actor=ANA, **body)
        assert answer.json()["model_id"] == "scripted"
    analyze = f"/zoo/pets/-/llm-analyze.json?{name}=scripted"
    assert (await site.client.get(analyze, actor=ANA)).json()["model_id"] == "scripted"


# The 403


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        (CONSOLE, "manage-llm"),
        (f"{CONSOLE}/log", "view-llm-log"),
        (f"{CONSOLE}/consultations", "analyze-table"),
        ("/zoo/pets/-/llm-analyze", "analyze-table"),
    ],
)
async def test_p7_forbidden_names_permission(site: Any, path: str, permission: str) -> None:
    """What it tells to write into `datasette.yaml` does grant it."""
    site.config["permissions"] = {}
    for actor in (None, BEN):
        page = await site.client.get(path, actor=actor)
        assert page.status_code == 403
        assert f"the permission {permission}" in page.text
        assert ("signed in as ben" in page.text) is (actor is BEN)
        answer = await site.client.get(f"{path}.json", actor=actor)
        assert (answer.status_code, answer.json()["permission"]) == (403, permission)
        assert answer.json()["error"] in html.unescape(page.text)
    site.config |= yaml.safe_load(answer.json()["grant"])
    await page_of(site, path, BEN)


@pytest.mark.parametrize("actor_id", [HOSTILE, "x" * 2_000, 7, None])
async def test_p7_forbidden_with_odd_actors(site: Any, actor_id: Any) -> None:
    site.config["permissions"] = {}
    page = await site.client.get(CONSOLE, actor={"id": actor_id})
    assert page.status_code == 403
    assert_harmless(Page(page.text))
    assert len(explanation({"id": actor_id}, "manage-llm")["error"]) < 400


def test_p7_forbidden_names_restricted_token() -> None:
    assert "token" in explanation({"id": "ana", "_r": {"a": ["vi"]}}, "manage-llm")["error"]


async def test_p7_other_403_are_left_alone(site: Any) -> None:
    site.config["databases"] = {"zoo": {"allow": {"id": "ana"}}}
    answer = await site.client.get("/zoo.json", actor=BEN)
    assert answer.status_code == 403
    assert "permission" not in answer.json()

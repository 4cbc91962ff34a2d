"""The documentation: who may read it, where its links lead, and what it shows of Markdown."""

from __future__ import annotations

import re

import pytest
from datasette.app import Datasette
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.console import docs
from datasette_llm.console.docs import SUBJECTS, as_html, unique_slug
from datasette_llm.console.navigation import BY_PATH, LINKS, section
from datasette_llm.console.routes import PAGES
from datasette_llm.testing import ScriptedModel

from ..support.console import ANA, BEN, CONSOLE, Start, starter
from .log.test_pages import Page

DOCS = f"{CONSOLE}/docs"
ADDRESSES = (DOCS, f"{DOCS}.json", f"{DOCS}/hooks", f"{DOCS}/hooks.json")


@pytest.fixture
def start(make_datasette) -> Start:
    return starter(make_datasette)


async def statuses(datasette: Datasette, address: str) -> list[int]:
    responses = [await datasette.client.get(address, actor=actor) for actor in (None, BEN, ANA)]
    return [response.status_code for response in responses]


# Permissions


@pytest.mark.parametrize("permission", ["manage-llm", "view-llm-log"])
async def test_readers_of_our_pages_read_docs(start, permission):
    datasette = await start(may=(permission,))
    for address in ADDRESSES:
        assert await statuses(datasette, address) == [403, 403, 200]


async def test_who_may_analyze_a_table_reads_docs(start, tmp_path):
    datasette = await start(may=())
    database = Database(datasette, str(tmp_path / "zoo.db"), is_mutable=True)
    datasette.add_database(database, "zoo")
    await database.execute_write("create table animals (name text)")
    allowed = {"tables": {"animals": {"permissions": {"analyze-table": {"id": "ana"}}}}}
    datasette.config["databases"] = {"zoo": allowed}
    await datasette.refresh_schemas()
    for address in ADDRESSES:
        assert await statuses(datasette, address) == [403, 403, 200]
    page = Page((await datasette.client.get(DOCS, actor=ANA)).text)
    assert DOCS in page.links()
    assert CONSOLE not in page.links()
    for path in ("/zoo/animals/-/llm-analyze", f"{CONSOLE}/consultations"):
        page = Page((await datasette.client.get(path, actor=ANA)).text)
        assert f"{DOCS}/consultant" in page.links(), path


async def test_missing_subject_is_hidden_like_others(start):
    """Without the permission, an unknown subject is refused as a known one is."""
    datasette = await start(may=())
    assert await statuses(datasette, f"{DOCS}/nothing") == [403, 403, 403]


async def test_docs_are_in_the_navigation(start):
    datasette = await start(may=("view-llm-log",))
    page = Page((await datasette.client.get(f"{DOCS}/log", actor=ANA)).text)
    current = [each for each in page.all("a") if each.get("aria-current") == "true"]
    assert [each["href"] for each in current] == [DOCS]
    assert f"{CONSOLE}/log" in page.links()
    assert f"{CONSOLE}/keys" not in page.links()


# Addresses


@pytest.mark.parametrize("subject", ["nothing", "hooks.md", "Hooks", "~2E~2E~2FREADME"])
@pytest.mark.parametrize("twin", ["", ".json"])
async def test_unknown_subject_is_not_found(start, subject, twin):
    datasette = await start()
    response = await datasette.client.get(f"{DOCS}/{subject}{twin}", actor=ANA)
    assert response.status_code == 404
    assert "There is no documentation about" in response.text
    assert response.headers["content-type"].startswith("application/json" if twin else "text/html")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_refused(start, address, method):
    datasette = await start()
    response = await datasette.client.request(method, address, actor=ANA)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    head = await datasette.client.head(address, actor=ANA)
    assert head.status_code == 200


async def test_json_has_the_subjects_and_markdown(start):
    datasette = await start()
    listed = (await datasette.client.get(f"{DOCS}.json", actor=ANA)).json()
    assert listed["ok"] is True
    assert [each["subject"] for each in listed["subjects"]] == list(SUBJECTS)
    for each in listed["subjects"]:
        found = (await datasette.client.get(f"{each['path']}.json", actor=ANA)).json()
        assert found.keys() == {"ok", "subject", "title", "markdown"}
        assert (found["subject"], found["title"]) == (each["subject"], each["title"])
        assert found["markdown"] == (docs.FOLDER / f"{each['subject']}.md").read_text("utf-8")


# Pages


@pytest.mark.parametrize("subject", SUBJECTS)
async def test_page_of_a_subject(start, subject):
    """Links begin with the base_url, ids are unique, and comments are not shown."""
    datasette = await start(settings={"base_url": "/prefix/"})
    response = await datasette.client.get(f"{DOCS}/{subject}", actor=ANA)
    page = Page(response.text)
    for target in page.links():
        assert target.startswith(("/prefix/", "https://", "#")), target
        assert not re.search(r"\.md\b", target), target
    ids = [each["id"] for _, each in page.tags if each.get("id")]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.links() if target.startswith("#")} <= set(ids)
    assert "<!--" not in page.text
    assert len(page.all("h1")) == 1


async def test_links_to_other_subjects_lead_there(start):
    datasette = await start(settings={"base_url": "/prefix/"})
    links = Page((await datasette.client.get(f"{DOCS}/hooks", actor=ANA)).text).links()
    assert f"/prefix{DOCS}/models#which-models-are-available" in links


async def test_each_page_links_to_its_section(start):
    datasette = await start(settings={"base_url": "/prefix/"}, may=("manage-llm", "view-llm-log"))
    assert {page.path for page in PAGES} < BY_PATH.keys()
    assert [link.path for link in LINKS if not link.section] == [DOCS]
    for path in [*(page.path for page in PAGES), f"{CONSOLE}/log"]:
        page = Page((await datasette.client.get(path, actor=ANA)).text)
        explained = section(datasette, BY_PATH[path])
        assert explained == f"/prefix{DOCS}/{BY_PATH[path].section}"
        assert page.links().count(explained) == 1, path


async def test_call_page_links_to_docs(start, register_models):
    register_models(ScriptedModel("scripted"))
    datasette = await start(may=("view-llm-log",))
    response = await (await LLM(datasette).model("scripted")).prompt("x")
    await response.text()
    page = await datasette.client.get(f"{CONSOLE}/log/{response.id}", actor=ANA)
    assert f"{DOCS}/log" in Page(page.text).links()


# Markdown


def test_html_is_off():
    html = as_html("# A\n\n<b>x</b> <script>alert(1)</script>\n\n<img src=x>\n", "/docs")
    assert "<b>" not in html
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_script_addresses_are_no_links():
    assert "<a " not in as_html("[x](javascript:alert(1)) [y](data:text/html,x)", "/docs")


def test_comments_are_left_out():
    html = as_html("<!-- example: a -->\n```python\nx = 1\n```\n\n<!-- settings -->\n", "/docs")
    assert html == '<pre tabindex="0"><code class="language-python">x = 1\n</code></pre>\n'


def test_headings_have_anchors():
    html = as_html("# Title\n\n## `llm_x(a, b)`\n\n## Again\n\n## Again\n", "/docs")
    assert re.findall(r'<(h\d) id="([^"]+)"', html) == [
        ("h1", "title"),
        ("h2", "llm_xa-b"),
        ("h2", "again"),
        ("h2", "again-1"),
    ]
    assert re.findall(r'href="#([^"]+)"', html) == ["title", "llm_xa-b", "again", "again-1"]


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("Timeouts, retries, fallbacks and limits", "timeouts-retries-fallbacks-and-limits"),
        ("`llm_group_exit(datasette, group)`", "llm_group_exitdatasette-group"),
        ("A - B", "a---b"),
        ("Über uns", "über-uns"),
    ],
)
def test_slug_is_githubs(heading, slug):
    assert unique_slug(heading, {}) == slug


def test_tables_and_links_between_files():
    html = as_html("| a | b |\n| --- | --- |\n| [x](hooks.md#y) | [z](log.md) |\n", "/p/docs")
    assert html.startswith('<div class="llm-wide-table"><table class="llm-table">')
    assert html.endswith("</table></div>\n")
    assert re.findall(r'href="([^"]+)"', html) == ["/p/docs/hooks#y", "/p/docs/log"]


async def test_files_are_read_once_and_off_the_loop(start, monkeypatch):
    """In a thread, and never again."""
    datasette = await start()
    docs.documents.cache_clear()
    first = await datasette.client.get(f"{DOCS}/hooks", actor=ANA)
    monkeypatch.setattr(docs, "FOLDER", None)
    again = await datasette.client.get(f"{DOCS}/hooks", actor=ANA)
    assert (first.status_code, again.text) == (200, first.text)

"""Saved views: lists of calls that an actor has named."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from datasette.app import Datasette

from datasette_llm.console.log import saved_views

from ...support.console import ANA, BEN, HOSTILE, Page, Start, assert_harmless, starter

LOG = "/-/llm/log"
VIEWS = f"{LOG}/views"
HTML = {"accept": "text/html"}


@pytest.fixture
def start(make_datasette) -> Start:
    return starter(make_datasette)


@pytest.fixture
async def datasette(start: Start) -> Datasette:
    """A site whose call log ana and ben may see."""
    datasette = await start(may=())
    datasette.config["permissions"] = {"view-llm-log": {"id": ["ana", "ben"]}}
    return datasette


async def post(datasette: Datasette, status: int = 200, actor: Any = ANA, **fields: str) -> Any:
    response = await datasette.client.post(VIEWS, json=fields, actor=actor)
    assert response.status_code == status, response.text
    return response.json()


async def views_of(datasette: Datasette, actor: Any = ANA) -> dict[str, str]:
    found = (await datasette.client.get(f"{LOG}.json", actor=actor)).json()
    return {view["name"]: view["query"] for view in found["views"]}


async def test_p4_a_view_is_saved_shown_and_deleted(datasette: Datasette) -> None:
    """Without what belongs to one page; a form is led to the list."""
    query = f"?outcome=error&outcome=lost&sort=-cost&limit=50&next=1~{'7' * 26}&_x=1"
    fields = {"name": "  my   failures ", "query": query}

    response = await datasette.client.post(VIEWS, data=fields, actor=ANA, headers=HTML)
    kept = "outcome=error&outcome=lost&sort=-cost"

    assert (response.status_code, response.headers["location"]) == (302, f"{LOG}?{kept}")
    assert await views_of(datasette) == {"my failures": kept}
    page = Page((await datasette.client.get(LOG, actor=ANA)).text)
    assert f"{LOG}?{kept}" in page.links()
    (shown,) = [each["value"] for each in page.all("input") if each.get("name") == "delete"]
    await post(datasette, delete=shown)
    assert await views_of(datasette) == {}


async def test_p4_a_name_is_used_once(datasette: Datasette) -> None:
    await post(datasette, name="mine", query="model=a")
    await post(datasette, name="mine", query="model=b")

    assert await views_of(datasette) == {"mine": "model=b"}


async def test_p4_views_are_their_actors(datasette: Datasette) -> None:
    found = await post(datasette, name="mine", query="")

    assert await views_of(datasette, BEN) == {}
    await post(datasette, actor=BEN, delete=found["views"][0]["id"])
    assert await views_of(datasette) == {"mine": ""}


async def test_p4_hostile_names_are_text(datasette: Datasette) -> None:
    await post(datasette, name=HOSTILE[:80], query=urlencode({"model": HOSTILE, "actor": HOSTILE}))

    page = Page((await datasette.client.get(LOG, actor=ANA)).text)

    assert_harmless(page)
    assert HOSTILE in page.text


BAD = [
    ({}, "name: give the view a name of at most 80 characters"),
    ({"name": " "}, "name: give the view a name"),
    ({"name": "x" * 81}, "name: give the view a name"),
    ({"name": "x", "query": "outcome=great"}, "There is no outcome 'great'"),
    ({"name": "x", "query": f"model={'y' * 9_000}"}, "query: at most 8000 characters"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
async def test_p4_bad_views_are_refused(datasette: Datasette, fields, message: str) -> None:
    refused = await post(datasette, 400, **fields)
    page = await datasette.client.post(VIEWS, data=fields, actor=ANA, headers=HTML)

    assert refused["error"].startswith(message)
    assert page.status_code == 400
    assert message in Page(page.text).text
    assert await views_of(datasette) == {}


async def test_p4_views_are_bounded(datasette: Datasette, monkeypatch) -> None:
    monkeypatch.setattr(saved_views, "MAX_VIEWS", 1)
    await post(datasette, name="one")
    await post(datasette, name="one", query="model=a")

    assert (await post(datasette, 400, name="two"))["error"] == (
        "You have 1 views; delete one first"
    )


async def test_p4_views_need_an_actor(datasette: Datasette) -> None:
    datasette.config["permissions"] = {"view-llm-log": True}

    assert "log in first" in (await post(datasette, 400, actor=None, name="x"))["error"]
    assert "Log in to save views." in (await datasette.client.get(LOG)).text


async def test_p4_other_sites_cannot_save(datasette: Datasette) -> None:
    headers = {"sec-fetch-site": "cross-site"}
    response = await datasette.client.post(VIEWS, data={"name": "x"}, actor=ANA, headers=headers)

    assert response.status_code == 403
    assert await views_of(datasette) == {}

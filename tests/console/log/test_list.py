"""What people explore on the list: facets, folds, orders, searches, and the way back."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from datasette.app import Datasette

from datasette_llm.console.log import payloads
from datasette_llm.consultant.advice.consultation import PURPOSE
from datasette_llm.log import facets, search
from datasette_llm.log.listing import SORTS

from ...support.call_log import add, call_row
from ...support.console import ANA, HOSTILE, Page, assert_harmless

LOG = "/-/llm/log"
NOW = datetime.datetime.now(datetime.UTC)
Start = Callable[..., Awaitable[Datasette]]


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette with calls in its log, which ana may view."""

    async def start(*rows: dict[str, Any], **settings: int) -> Datasette:
        datasette = make_datasette(settings={"facet_time_limit_ms": 60_000} | settings)
        datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
        await datasette.invoke_startup()
        await datasette.get_internal_database().execute_write_fn(lambda c: add(c, *rows))
        return datasette

    return start


async def record(datasette: Datasette, call_id: str, *texts: str, indexed: bool = True) -> None:
    """Record messages of a user as the content of a call."""
    messages = [{"role": "user", "parts": [{"type": "text", "text": text}]} for text in texts]

    def work(connection: Any) -> None:
        sql = "insert into llm_call_content (call_id, part, content) values (?, 'request', ?)"
        connection.execute(sql, (call_id, json.dumps({"messages": messages})))
        search.enqueue(connection, call_id)
        if indexed:
            search.index_batch(connection)

    await datasette.get_internal_database().execute_write_fn(work)


async def get(datasette: Datasette, path: str = LOG, **arguments: Any) -> Any:
    response = await datasette.client.get(
        f"{path}?{urlencode(arguments, doseq=True)}" if arguments else path, actor=ANA
    )
    assert response.status_code == 200, response.text
    return response


async def page_of(datasette: Datasette, path: str = LOG, **arguments: Any) -> Page:
    return Page((await get(datasette, path, **arguments)).text)


async def ids(datasette: Datasette, **arguments: Any) -> list[str]:
    found = (await get(datasette, f"{LOG}.json", **arguments)).json()
    return [row["id"] for row in found["rows"]]


def arguments_of(link: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(unescape(link)).query)


# Facets


async def test_p4_facets_lead_to_their_calls(start: Start) -> None:
    """A value is added to those that are chosen, or removed; other filters stay."""
    kinds = [{"model_id": "heron"}, {"model_id": "heron", "purpose": "chat"}, {"purpose": "chat"}]
    datasette = await start(*(call_row(NOW, **kind) for kind in kinds))

    found = (await get(datasette, f"{LOG}.json", purpose="chat")).json()["facets"]
    links = (await page_of(datasette, purpose="chat", model="heron")).links()

    assert found["model"]["values"] == [
        {"value": "heron", "calls": 1},
        {"value": "pelican", "calls": 1},
    ]
    assert [arguments_of(each) for each in links if "/-/llm/log?" in each][:2] == [
        {"purpose": ["chat"]},
        {"model": ["heron"]},
    ]
    link = next(
        each for each in (await page_of(datasette, purpose="chat")).links() if "heron" in each
    )
    assert arguments_of(link) == {"model": ["heron"], "purpose": ["chat"]}
    assert len(await ids(datasette, model=["heron", "pelican"], purpose="chat")) == 2


async def test_p4_facets_say_where_time_was_short(start: Start, monkeypatch) -> None:
    monkeypatch.setattr(facets, "_FIRST_BATCH", 1)
    monkeypatch.setattr(payloads, "FACETS_SHARE", 0)
    datasette = await start(*(call_row(NOW) for _ in range(3)))

    page = await page_of(datasette, min_duration="0")

    assert (
        "Model, Purpose, Actor, Tag, Outcome, Failure, Finish reason: of calls since" in page.text
    )
    assert "(UTC) only: the time limit was reached" in page.text


# Folds and lines


async def test_p4_calls_are_folded_under_the_first(start: Start) -> None:
    chain = [
        call_row(NOW, chain_id="c", chain_step=n, cost_nanodollars=10**7, input_tokens=5)
        for n in (1, 2, 3)
    ]
    datasette = await start(*chain, call_row(NOW))

    page = await page_of(datasette)
    apart = await page_of(datasette, chain="c")
    found = (await get(datasette, f"{LOG}.json")).json()["folds"]

    assert "Chain of 3 requests, 15 tokens, $0.03" in page.text
    assert "Chain of" not in apart.text
    assert [len(fold["calls"]) for fold in found] == [1, 3]
    assert found[1]["totals"]["cost_dollars"] == 0.03


async def test_p4_a_line_of_the_prompt(start: Start) -> None:
    """The begin of the last message of the user; not of advice about tables."""
    rows = [call_row(NOW), call_row(NOW, purpose=PURPOSE)]
    datasette = await start(*rows)
    for row in rows:
        await record(datasette, row["id"], "an earlier one", f"{HOSTILE}\n  how {'long ' * 50}")

    page = await page_of(datasette)
    found = (await get(datasette, f"{LOG}.json")).json()["prompts"]

    assert_harmless(page)
    assert list(found) == [rows[0]["id"]]
    assert found[rows[0]["id"]].startswith(f"{HOSTILE} how long")
    assert len(found[rows[0]["id"]]) == 100
    assert found[rows[0]["id"]] in page.text


# Search


async def test_p4_search_finds_content(start: Start) -> None:
    """But no advice about tables, whose content is for those who may view them."""
    rows = [call_row(NOW), call_row(NOW, purpose=PURPOSE), call_row(NOW)]
    datasette = await start(*rows)
    for row in rows[:2]:
        await record(datasette, row["id"], "Where do herons nest?")

    exported = (await get(datasette, f"{LOG}.csv", search="herons")).text

    assert await ids(datasette, search="herons nest") == [rows[0]["id"]]
    assert await ids(datasette, search="herons", sort="-duration") == [rows[0]["id"]]
    assert await ids(datasette, search="her*", outcome="error") == []
    assert (rows[0]["id"] in exported, rows[1]["id"] in exported) == (True, False)
    totals = (await get(datasette, f"{LOG}.json", search="herons")).json()["totals"]
    assert totals["calls"] == 1


async def test_p4_search_says_what_it_cannot_find(start: Start) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    assert "no content is recorded. Set content: true" in (await page_of(datasette)).text
    await record(datasette, row["id"], "heron", indexed=False)
    page = await page_of(datasette, search="heron")
    assert "Not all content is indexed yet" in page.text
    assert (await get(datasette, f"{LOG}.json")).json()["search_complete"] is False


# Orders and limits


@pytest.mark.parametrize("sort", [f"{sign}{sort}" for sort in SORTS for sign in ("", "-")])
async def test_p4_newer_and_older_in_every_order(start: Start, sort: str) -> None:
    numbers = range(1, 6)
    rows = [
        call_row(
            NOW, cost_nanodollars=n % 3, duration_ms=float(n % 3), input_tokens=n, output_tokens=0
        )
        for n in numbers
    ]
    datasette = await start(*rows)
    every = await ids(datasette, sort=sort)

    pages, path = [], f"{LOG}?{urlencode({'sort': sort, 'limit': 2})}"
    while path:
        page = await page_of(datasette, path)
        found = (await get(datasette, path.replace(LOG, f"{LOG}.json", 1))).json()
        pages.append([row["id"] for row in found["rows"]])
        path = next((each["href"] for each in page.all("a") if each.get("rel") == "next"), None)
    newer = next(each["href"] for each in page.all("a") if each.get("rel") == "prev")
    back = (await get(datasette, newer.replace(LOG, f"{LOG}.json", 1))).json()["rows"]

    assert [each for some in pages for each in some] == every
    assert len(every) == len(rows)
    assert [row["id"] for row in back] == pages[1]


@pytest.mark.parametrize(
    "arguments", [{}, {"min_duration": "1"}, {"sort": "-cost"}, {"search": "heron"}], ids=json.dumps
)
async def test_p4_a_cut_list_is_no_error(
    start: Start, monkeypatch, arguments: dict[str, str]
) -> None:
    datasette = await start(*(call_row(NOW) for _ in range(5)))
    real = datasette.setting
    monkeypatch.setattr(
        datasette, "setting", lambda name: 0 if name == "sql_time_limit_ms" else real(name)
    )

    page = await page_of(datasette, **arguments)

    assert "There may be more calls: the time limit was reached" in page.text
    assert (await get(datasette, f"{LOG}.json", **arguments)).json()["cut"] is True


async def test_p4_the_log_is_written_meanwhile(start: Start) -> None:
    """No page fails, and none has a call twice."""
    datasette = await start(*(call_row(NOW) for _ in range(20)))
    database = datasette.get_internal_database()

    async def write() -> None:
        for _ in range(40):
            await database.execute_write_fn(lambda c: add(c, call_row(NOW, group_id="g")))

    async def read() -> None:
        for arguments in ({}, {"sort": "-duration"}, {"outcome": ["ok", "error"]}, {"group": "g"}):
            found = await ids(datasette, **arguments)
            assert len(found) == len(set(found))
            await page_of(datasette, **arguments)

    await asyncio.gather(write(), read(), read())


# The way back


async def test_p4_a_call_leads_back_to_its_list(start: Start) -> None:
    row = call_row(NOW, outcome="error", model_id="a&b")
    datasette = await start(row)
    arguments = {"model": "a&b", "outcome": ["error", "lost"], "sort": "-duration"}

    links = (await page_of(datasette, **arguments)).links()
    (link,) = [each for each in links if row["id"] in each]
    back = [
        arguments_of(each) for each in (await page_of(datasette, link)).links() if "sort=" in each
    ]

    assert back == [{"model": ["a&b"], "outcome": ["error", "lost"], "sort": ["-duration"]}]


@pytest.mark.parametrize("back", [HOSTILE, "outcome=great", "//evil.example/", "next=x", "%"])
async def test_p4_a_bad_way_back_is_the_whole_list(start: Start, back: str) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    page = await page_of(datasette, f"{LOG}/{row['id']}", back=back)

    assert_harmless(page)
    assert not [each for each in page.links() if "evil" in each or "great" in each]


# Hostile names


async def test_p4_long_and_hostile_names(start: Start) -> None:
    """An actor's id of 5,000 characters, and 200 models."""
    long = "x" * 5_000
    names = {"purpose": HOSTILE, "group_id": HOSTILE, "conversation_id": HOSTILE}
    rows = [call_row(NOW, model_id=f"m{n}", actor_id=long, **names) for n in range(200)]
    datasette = await start(*rows)

    page = await page_of(datasette, actor=long, purpose=HOSTILE)

    assert_harmless(page)
    assert len(await ids(datasette, actor=long, group=HOSTILE, limit=500)) == 200
    assert len(await ids(datasette, conversation=[HOSTILE, "c"], limit=500)) == 200
    assert "There are still more; the filter takes any." in page.text

"""The pages of the record: who may see them, what they show, and what they make of nonsense."""

from __future__ import annotations

import asyncio
import csv
import datetime
import html
import io
import json
import re
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from datasette.app import Datasette

import datasette_llm
from datasette_llm import LLM
from datasette_llm.console import formatting
from datasette_llm.console.log import call_page, csv_export, list_request
from datasette_llm.log import queries, writer
from datasette_llm.log.listing import Listing
from datasette_llm.log.queries import COLUMNS, RANGES, Filter
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.totals import Sums
from datasette_llm.testing import ScriptedModel

from ...support.call_log import add, call_row
from ...support.console import ANA, Page

LOG = "/-/llm/log"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
Start = Callable[..., Awaitable[Datasette]]


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette whose record has some rows, and which ana may view."""

    async def start(*rows: dict[str, Any], config: object = None, **kwargs: Any) -> Datasette:
        # A busy machine is no reason to count less.
        settings = {"facet_time_limit_ms": 60_000} | kwargs.pop("settings", {})
        datasette = make_datasette(config, settings=settings, **kwargs)
        datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
        await datasette.invoke_startup()
        if rows:
            database = datasette.get_internal_database()
            await database.execute_write_fn(lambda connection: add(connection, *rows))
        return datasette

    return start


async def get(datasette: Datasette, path: str = LOG, status: int = 200, **arguments: Any) -> Any:
    """What ana gets."""
    path += f"?{urlencode(arguments, doseq=True)}" if arguments else ""
    response = await datasette.client.get(path, actor=ANA)
    assert response.status_code == status, response.text
    return response


async def get_json(datasette: Datasette, **arguments: Any) -> Any:
    return (await get(datasette, f"{LOG}.json", **arguments)).json()


def listed(page: str) -> list[str]:
    """The ids of the calls on a page, in its order."""
    return re.findall(rf'href="[^"]*{LOG}/([0-9a-z]{{26}})[?"]', page)


def chosen(page: str) -> set[tuple[str, str]]:
    """The fields of the form that have a value, with it; a field may be there several times."""
    found, name = set(), ""
    for tag, each in Page(page).tags:
        name = each.get("name") or name
        if tag == "input" or (tag == "option" and "selected" in each):
            found.add((name, each.get("value") or ""))
    return {each for each in found if each[1]}


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Who may see it

ADDRESSES = [LOG, f"{LOG}.json", f"{LOG}.csv", "call page", "call json", f"{LOG}/no-such-call"]
ADDRESSES += [f"{LOG}?since=nonsense", f"{LOG}.json?since=nonsense", f"{LOG}.csv?since=nonsense"]


def address(name: str, call_id: str) -> str:
    return {"call page": f"{LOG}/{call_id}", "call json": f"{LOG}/{call_id}.json"}.get(name, name)


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("actor", [None, {"id": "ben"}])
async def test_no_actor_and_wrong_actor_are_refused(
    start: Start, name: str, actor: dict[str, str] | None
) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    response = await datasette.client.get(address(name, row["id"]), actor=actor)

    assert response.status_code == 403
    assert row["id"] not in response.text


@pytest.mark.parametrize("name", ADDRESSES[:5])
async def test_the_right_actor_sees_the_record(start: Start, name: str) -> None:
    row = call_row(NOW, model_id="brown-pelican")
    datasette = await start(row)

    response = await get(datasette, address(name, row["id"]))

    assert "brown-pelican" in response.text
    assert response.headers["cache-control"] == "private, no-store"


async def test_every_actor_is_refused_by_default(
    make_datasette: Callable[..., Datasette],
) -> None:
    datasette = make_datasette()
    await datasette.invoke_startup()

    assert (await datasette.client.get(LOG, actor=ANA)).status_code == 403


@pytest.mark.parametrize(("actor", "shown"), [(None, False), ({"id": "ben"}, False), (ANA, True)])
async def test_menu_link_for_permitted_actors(
    start: Start, actor: dict[str, str] | None, shown: bool
) -> None:
    datasette = await start()

    page = Page((await datasette.client.get("/", actor=actor)).text)

    assert (LOG in page.links()) is shown


# The list


async def test_ended_call_is_on_the_page_at_once(
    start: Start, register_models: Callable[..., None]
) -> None:
    register_models(ScriptedModel("pelican", ["Hello"]))
    datasette = await start(config={"log": {"content": True}})
    model = await LLM(datasette).model("pelican", purpose="chat", actor=ANA)
    await (await model.prompt("Say hello")).text()

    (row,) = (await get_json(datasette))["rows"]
    call = (await get(datasette, f"{LOG}/{row['id']}.json")).json()

    assert (row["model_id"], row["purpose"], row["actor_id"], row["outcome"]) == (
        "pelican",
        "chat",
        "ana",
        "ok",
    )
    assert "Say hello" in json.dumps(call["content"]["request"])
    assert "Hello" in json.dumps(call["content"]["response"])


async def test_the_newest_call_comes_first(start: Start) -> None:
    rows = [call_row(NOW - 2 * DAY), call_row(NOW), call_row(NOW - DAY)]
    datasette = await start(*rows)

    ordered = [rows[1]["id"], rows[2]["id"], rows[0]["id"]]
    assert listed((await get(datasette)).text) == ordered
    assert [row["id"] for row in (await get_json(datasette))["rows"]] == ordered
    assert [row["id"] for row in csv_rows((await get(datasette, f"{LOG}.csv")).text)] == ordered


FIELDS = [
    ({"model": "heron"}, {"model_id": "heron"}),
    ({"purpose": "chat"}, {"purpose": "chat"}),
    ({"actor": "ana"}, {"actor_id": "ana"}),
    ({"outcome": "error"}, {"outcome": "error"}),
    ({"outcome": "running"}, {"outcome": None}),
    ({"group": "g1"}, {"group_id": "g1"}),
    ({"finish_reason": "length"}, {"finish_reason": "length"}),
    ({"failure_kind": "network"}, {"failure_kind": "network", "outcome": "error"}),
]


@pytest.mark.parametrize(("arguments", "columns"), FIELDS)
async def test_each_filter_on_page_json_and_csv(
    start: Start, arguments: dict[str, str], columns: dict[str, Any]
) -> None:
    wanted, other = call_row(NOW, **columns), call_row(NOW)
    datasette = await start(wanted, other)

    page = (await get(datasette, **arguments)).text
    found = await get_json(datasette, **arguments)
    exported = csv_rows((await get(datasette, f"{LOG}.csv", **arguments)).text)

    assert listed(page) == [wanted["id"]]
    assert [row["id"] for row in found["rows"]] == [wanted["id"]]
    assert [row["id"] for row in exported] == [wanted["id"]]
    assert found["totals"]["calls"] == 1
    assert arguments.items() <= chosen(page)


async def test_k1_tags_on_page_json_and_csv(start: Start) -> None:
    """A call has to have all tags of the filter; each key is a column of the CSV."""
    tags = {"job": 12, "note": f"=1+1{HOSTILE}", "share": 1.5}
    wanted = call_row(NOW, tags=json.dumps(tags))
    others = [call_row(NOW, tags=json.dumps({"job": 12, "row": 5})), call_row(NOW)]
    datasette = await start(wanted, *others)
    both: dict[str, Any] = {"tag": ["job:12", f"note:{tags['note']}"]}

    html = (await get(datasette, **both)).text
    page = Page(html)
    found = await get_json(datasette, **both)
    exported = csv_rows((await get(datasette, f"{LOG}.csv", **both)).text)

    assert listed(html) == [wanted["id"]]
    fields = [each["value"] for each in page.all("input") if each.get("name") == "tag"]
    assert fields == [*both["tag"], ""]
    assert [row["tags"] for row in found["rows"]] == [tags]
    assert found["filter"] == both
    assert found["totals"]["calls"] == 1
    assert json.loads(exported[0]["tags"]) == tags
    assert exported[0]["tags.job"] == "12"
    assert exported[0]["tags.note"] == f"'{tags['note']}"
    assert exported[0]["tags.row"] == ""
    assert [row["id"] for row in (await get_json(datasette, tag="row:5"))["rows"]] == [
        others[0]["id"]
    ]
    assert (await get_json(datasette, tag="job:a:b"))["rows"] == []


async def test_k1_tags_of_a_call_lead_to_the_list(start: Start) -> None:
    tags = {"job": 12, "note": HOSTILE, "share": 1e20, "empty": ""}
    wanted = call_row(NOW, tags=json.dumps(tags))
    datasette = await start(wanted, call_row(NOW))

    page = Page((await get(datasette, f"{LOG}/{wanted['id']}")).text)

    assert_no_markup_of_strangers(page)
    links = [each["href"] for each in page.all("a") if "?tag=" in each.get("href", "")]
    assert len(links) == len(tags)
    for link in links:
        assert listed((await get(datasette, link)).text) == [wanted["id"]]


@pytest.mark.parametrize("name", ["purpose", "actor", "group"])
async def test_filter_for_calls_without_a_value(start: Start, name: str) -> None:
    column = {"purpose": "purpose", "actor": "actor_id", "group": "group_id"}[name]
    without = call_row(NOW)
    datasette = await start(without, call_row(NOW, **{column: "x"}))

    found = await get_json(datasette, **{name: "(none)"})

    assert [row["id"] for row in found["rows"]] == [without["id"]]


async def test_since_and_until_filter_by_time(start: Start) -> None:
    rows = [call_row(NOW - days * DAY) for days in (3, 2, 1)]
    datasette = await start(*rows)
    since, until = ((NOW - days * DAY).date().isoformat() for days in (2, 1))

    found = await get_json(datasette, since=since, until=until)

    assert [row["id"] for row in found["rows"]] == [rows[1]["id"]]
    assert found["covered"] == {"since": since, "until": until, "complete_since": None}


async def test_a_form_sent_as_it_is_shows_everything(start: Start) -> None:
    datasette = await start(call_row(NOW), call_row(NOW, purpose="chat", outcome="error"))
    form = Page((await get(datasette)).text).form()

    page = (await get(datasette, **{name: form[name] for name in Filter.names()})).text

    assert set(form) == {*Filter.names(), "search", "name", "query"}
    assert len(listed(page)) == 2


async def test_the_form_offers_what_is_on_record(start: Start) -> None:
    datasette = await start(call_row(NOW, model_id="heron"), call_row(NOW, purpose="chat"))

    offered = [each["value"] for each in Page((await get(datasette)).text).all("option")]

    assert {"heron", "pelican", "chat", "(none)", "ok", "lost", "running"} <= set(offered)


# Pages


@pytest.mark.parametrize("arguments", [{}, {"purpose": "chat"}, {"purpose": "chat", "model": "b"}])
async def test_pages_have_every_call_once(start: Start, arguments: dict[str, str]) -> None:
    kinds = [{"purpose": p, "model_id": m} for p in ("chat", None) for m in ("a", "b")]
    rows = [call_row(NOW, **kind) for kind in kinds for _ in range(5)]
    datasette = await start(*rows)
    wanted = await get_json(datasette, **arguments)
    assert wanted["next"] is None

    found, cursor, page_count = [], {}, 0
    while True:
        page = await get_json(datasette, **arguments, **cursor, limit=2)
        found += [row["id"] for row in page["rows"]]
        page_count += 1
        if page["next"] is None:
            break
        cursor = {"next": page["next"]}

    assert found == [row["id"] for row in wanted["rows"]]
    assert page_count == -(-len(found) // 2)


async def test_paging_links_reach_every_call_once(start: Start) -> None:
    rows = [call_row(NOW, purpose="a&b") for _ in range(5)] + [call_row(NOW)]
    datasette = await start(*rows)

    found: list[str] = []
    path: str | None = f"{LOG}?{urlencode({'purpose': 'a&b', 'limit': 2})}"
    while path:
        text = (await get(datasette, path)).text
        found += listed(text)
        older = [link["href"] for link in Page(text).all("a") if link.get("rel") == "next"]
        path = older[0] if older else None

    assert found == sorted((row["id"] for row in rows[:5]), reverse=True)


async def test_calls_that_come_meanwhile_move_nothing(start: Start) -> None:
    rows = [call_row(NOW) for _ in range(4)]
    datasette = await start(*rows)
    first = await get_json(datasette, limit=2)
    database = datasette.get_internal_database()
    await database.execute_write_fn(lambda connection: add(connection, call_row(NOW)))

    second = await get_json(datasette, limit=2, next=first["next"])

    assert [row["id"] for row in second["rows"]] == [rows[1]["id"], rows[0]["id"]]


async def test_only_first_page_has_totals(start: Start) -> None:
    datasette = await start(*(call_row(NOW) for _ in range(3)))
    first = await get_json(datasette, limit=2)

    second = await get_json(datasette, limit=2, next=first["next"])
    page = Page((await get(datasette, limit=2, next=first["next"])).text)

    assert first["totals"]["calls"] == 3
    assert (second["totals"], second["covered"]) == (None, None)
    assert f"{LOG}?limit=2" in page.links()


async def test_cursor_is_the_id_of_the_last_call(start: Start) -> None:
    """It continues a list with any filter: with the calls before that call."""
    rows = [call_row(NOW, purpose=purpose) for purpose in ("rows", "chat", "rows", "chat", "chat")]
    datasette = await start(*rows)

    cursor = (await get_json(datasette, purpose="chat", limit=2))["next"]
    older = (await get_json(datasette, purpose="rows", next=cursor))["rows"]

    assert cursor == rows[3]["id"]
    assert [row["id"] for row in older] == [rows[2]["id"], rows[0]["id"]]


async def test_page_limit_is_50_by_default_500_at_most(start: Start) -> None:
    datasette = await start(*(call_row(NOW) for _ in range(501)))

    assert len((await get_json(datasette))["rows"]) == 50
    assert len((await get_json(datasette, limit=500))["rows"]) == 500


# Nonsense

NONSENSE = [
    ({"limit": "0"}, "limit: '0' is no whole number from 1 to 500"),
    ({"limit": "501"}, "limit: '501' is no whole number from 1 to 500"),
    ({"limit": "ten"}, "limit: 'ten' is no whole number from 1 to 500"),
    ({"limit": "\N{ARABIC-INDIC DIGIT THREE}"}, "limit: "),
    ({"since": "yesterday"}, "since: 'yesterday' is no date or time"),
    ({"until": "2026-13-01"}, "until: '2026-13-01' is no date or time"),
    ({"since": "2026-02-01", "until": "2026-01-01"}, "since is 2026-02-01, which is not before"),
    ({"since": "2026-02-01", "until": "2026-02-01"}, "since is 2026-02-01, which is not before"),
    ({"outcome": "great"}, "There is no outcome 'great'; use one of ok, error"),
    ({"next": "x"}, "next: 'x' is not a cursor from a page of this list"),
    ({"modle": "gpt"}, "There is no filter 'modle'; use one of model, purpose"),
    ({"since": ["2026-01-01", "2026-01-02"]}, "since is given 2 times; give it once"),
    ({"model": [str(n) for n in range(101)]}, "At most 100 values can be given in all"),
    ({"min_cost": "x"}, "min_cost: 'x' is no number of dollars from 0 to 1,000,000,000; write it"),
    ({"max_tokens": "-1"}, "max_tokens: '-1' is no number of tokens"),
    ({"min_duration": "nan"}, "min_duration: 'nan' is no number of seconds"),
    ({"max_first_chunk": "1e99"}, "max_first_chunk: '1e99' is no number of seconds"),
    ({"min_cost": "2", "max_cost": "1"}, "min_cost is 2, which is more than max_cost, 1"),
    ({"outcome": ["ok", "great"]}, "There is no outcome 'great'; use one of ok, error"),
    ({"sort": "colour"}, "sort: 'colour' is none of time, -time, cost, -cost, duration"),
    ({"previous": "x"}, "previous: 'x' is not a cursor from a page of this list"),
    ({"sort": "-cost", "next": "7" * 26}, f"next: {'7' * 26!r} is not a cursor from a page"),
    ({"sort": "-cost", "next": f"nan~{'7' * 26}"}, "next: "),
    ({"sort": "-cost", "next": f"1e999~{'7' * 26}"}, "next: "),
    ({"next": "7" * 26, "previous": "7" * 26}, "next and previous are both given"),
    ({"search": "!?"}, 'search: give 1 to 20 words, or "words in quotes"'),
    ({"search": "x" * 501}, "search: at most 500 characters"),
    ({"tag": "job"}, "tag: 'job' has no value; write it like job:12"),
    ({"tag": ["job:12", "<b>"]}, "tag: '<b>' has no value; write it like job:12"),
]


@pytest.mark.parametrize(("arguments", "message"), NONSENSE)
async def test_invalid_filter_on_page_json_and_csv(
    start: Start, arguments: dict[str, Any], message: str
) -> None:
    datasette = await start(call_row(NOW))

    page = await get(datasette, status=400, **arguments)
    refused = (await get(datasette, f"{LOG}.json", status=400, **arguments)).json()
    exported = await get(datasette, f"{LOG}.csv", status=400, **arguments)

    assert message in Page(page.text).text
    assert refused["error"].startswith(message)
    assert (refused["ok"], refused["status"]) == (False, 400)
    assert exported.text.startswith(message)


async def test_refused_page_keeps_the_form(start: Start) -> None:
    datasette = await start(call_row(NOW))
    given = {
        "model": "pelican",
        "purpose": "nowhere",
        "actor": "",
        "outcome": "great",
        "finish_reason": "bored",
        "failure_kind": "",
        "group": "g1",
        "tag": "",
        "since": "yesterday",
        "until": "2026-01-01",
        "limit": "many",
        "search": "heron",
        "sort": "-cost",
        **{f"{end}_{name}": "x" for end in ("min", "max") for name in RANGES},
        **dict.fromkeys(("conversation", "chain", "prompt"), "x"),
    }

    text = (await get(datasette, status=400, **given)).text
    page = Page(text)

    assert {each for each in given.items() if each[1]} <= chosen(text)
    assert [each for each in page.all("p") if each.get("role") == "alert"]


async def test_datasettes_own_arguments_are_ignored(start: Start) -> None:
    await get(await start(), _extra="1")


# Totals


async def test_totals_are_of_all_calls_of_the_list(start: Start) -> None:
    datasette = await start(call_row(NOW - 60 * DAY), call_row(NOW))

    found = await get_json(datasette)
    page = Page((await get(datasette)).text)

    assert found["totals"]["calls"] == len(found["rows"]) == 2
    assert "/-/llm/usage" in page.links()
    assert "of all calls of this list" in page.text


async def test_totals_of_calls_tokens_cost_and_latency(start: Start) -> None:
    known = {"input_tokens": 1500, "output_tokens": 20, "cost_nanodollars": 1_234_500_000}
    datasette = await start(
        call_row(NOW, duration_ms=100.0, **known),
        call_row(NOW, duration_ms=2_000.0, **known),
        call_row(NOW, outcome="error", duration_ms=300.0),
        call_row(NOW, outcome="blocked", duration_ms=0.0),
    )

    found = (await get_json(datasette))["totals"]
    page = Page((await get(datasette)).text)

    assert (
        found
        | {
            "calls": 4,
            "failures": 1,
            "input_tokens": 3000,
            "output_tokens": 40,
            "cost_dollars": 2.469,
            "median_ms": 294,
            "p95_ms": 1954,
        }
        == found
    )
    shown = [cell.split(" ")[0] for cell in page.cells[:7]]
    assert shown == ["4", "1", "3,000", "40", "$2.47", "294", "1.95"]


async def test_an_unknown_cost_is_empty_and_not_zero(start: Start) -> None:
    row, free = call_row(NOW - DAY), call_row(NOW, cost_nanodollars=0)
    datasette = await start(row, free)

    found = (await get_json(datasette))["rows"]
    page = (await get(datasette)).text
    exported = csv_rows((await get(datasette, f"{LOG}.csv")).text)

    assert [each["cost_dollars"] for each in found] == [0, None]
    assert re.findall(r'data-label="Cost"[^>]*>([^<]*)<', page) == ["$0", ""]
    assert [each["cost_dollars"] for each in exported] == ["0.000000000", ""]
    assert "and 1 call at an unknown price" in Page(page).text


# One call


async def test_call_page_has_group_chain_and_content(start: Start) -> None:
    group = [call_row(NOW, group_id="g1", input_tokens=n) for n in range(3)]
    chain_id = group[1]["id"]
    steps = [call_row(NOW, chain_id=chain_id, chain_step=n) for n in (2, 3)]
    group[1] |= {"chain_id": chain_id, "chain_step": 1}
    datasette = await start(*group, *steps, call_row(NOW))
    content = {"messages": [{"role": "user", "parts": [{"text": "Zwölf <b>Boxkämpfer</b>"}]}]}
    await datasette.get_internal_database().execute_write(
        "insert into llm_call_content values (?, 'request', ?)", [chain_id, json.dumps(content)]
    )

    found = (await get(datasette, f"{LOG}/{chain_id}.json")).json()
    text = (await get(datasette, f"{LOG}/{chain_id}")).text

    assert found["call"]["id"] == chain_id
    assert [row["id"] for row in found["group"]["rows"]] == [row["id"] for row in group[::-1]]
    assert found["group"]["totals"]["input_tokens"] == 3
    assert [row["chain_step"] for row in found["chain"]] == [1, 2, 3]
    assert found["content"] == {"request": content}
    assert html.escape(json.dumps(content, indent=2, ensure_ascii=False), quote=False) in (
        text.replace("&#34;", '"').replace("&#39;", "'")
    )
    others = {row["id"] for row in [*group, *steps]} - {chain_id}
    assert set(listed(text)) == others
    assert len([each for each in Page(text).all("strong") if "aria-current" in each]) == 2


async def test_w3_call_page_has_reason_and_kind(start: Start) -> None:
    cut = call_row(NOW, finish_reason="length")
    message = {"error_type": "APIConnectionError", "error_message": "Connection error. (Refused)"}
    failed = call_row(NOW, outcome="error", failure_kind="network", **message)
    datasette = await start(cut, failed)

    page = Page((await get(datasette, f"{LOG}/{cut['id']}")).text)
    assert f"{LOG}?finish_reason=length" in page.links()
    page = Page((await get(datasette, f"{LOG}/{failed['id']}")).text)
    assert f"{LOG}?failure_kind=network" in page.links()
    assert "Network Connection error. (Refused)" in page.text
    assert "APIConnectionError" in page.cells
    text = Page((await get(datasette)).text).text
    assert "ok length" in text
    assert "error Network" in text


def attempt_rows(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a response's attempts, the first of which has the response's id."""
    rows = [call_row(NOW, attempt=number, **part) for number, part in enumerate(parts, 1)]
    return [row | {"prompt_id": rows[0]["id"] if row["attempt"] > 1 else None} for row in rows]


FAILED = {"outcome": "error", "error_type": "ConnectionError", "error_message": HOSTILE}


async def test_attempt_page_links_all_attempts(start: Start) -> None:
    """The page of each attempt links to all, and to the one that was answered."""
    rows = attempt_rows(FAILED, FAILED | {"waited_ms": 1500.0}, {"model_id": "brown-pelican"})
    datasette = await start(call_row(NOW), *rows)
    ids = [row["id"] for row in rows]
    for number, row in enumerate(rows, 1):
        payload = (await get(datasette, f"{LOG}/{row['id']}.json")).json()
        assert [(each["id"], each["attempt"]) for each in payload["attempts"]] == list(
            zip(ids, (1, 2, 3), strict=True)
        )
        page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)
        assert f"Attempt {number} of 3 answered by" in page.text
        assert_no_markup_of_strangers(page)
        others = [each for each in ids if each != row["id"]]
        assert {f"{LOG}/{each}" for each in others} <= set(page.links())
        assert "1.50 s in the queue" in page.text
        assert [dd for dd in page.cells if dd == f"{number} of 3"]
    assert "answered by this one, brown-pelican" in page.text


@pytest.mark.parametrize(
    ("last", "told"), [(FAILED, "not answered"), ({"outcome": None}, "not answered yet")]
)
async def test_attempts_without_an_answer_say_so(start: Start, last: Any, told: str) -> None:
    rows = attempt_rows(FAILED, last)
    datasette = await start(*rows)
    page = Page((await get(datasette, f"{LOG}/{rows[0]['id']}")).text)
    assert f"Attempt 1 of 2 {told}\n" in page.text
    assert "Attempt" in page.text


async def test_single_attempt_is_not_listed(start: Start) -> None:
    row = call_row(NOW, waited_ms=0.0)
    datasette = await start(row)
    assert (await get(datasette, f"{LOG}/{row['id']}.json")).json()["attempts"] == []
    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)
    assert "Attempt" not in page.text
    assert "Waited for concurrency limitno" in page.text.replace("\n", "")


async def test_attempt_without_removed_first_one(start: Start) -> None:
    row = attempt_rows(FAILED, {})[1]
    datasette = await start(row)
    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)
    assert "Attempt 2 of 2 answered by this one, pelican" in page.text


async def test_attempts_and_waits_in_list_json_and_csv(start: Start) -> None:
    rows = attempt_rows(FAILED, {"waited_ms": 1500.0})
    datasette = await start(*rows)
    page = Page((await get(datasette)).text)
    assert page.text.count("attempt 2") == 1
    assert "attempt 1" not in page.text
    assert page.text.count("after 1.50 s in the queue") == 1
    payload = await get_json(datasette)
    assert payload["totals"]["calls"] == 2
    assert "Calls2 each attempt counts" in page.text.replace("\n", "")
    for found in (payload["rows"], csv_rows((await get(datasette, f"{LOG}.csv")).text)):
        told = [(each["attempt"], each["prompt_id"], each["waited_ms"]) for each in found]
        first = rows[0]["id"]
        assert [tuple(str(v or "") for v in each) for each in told] == [
            ("2", first, "1500.0"),
            ("1", "", ""),
        ]


async def test_response_id_leads_to_answered_attempt(
    start: Start, register_models: Callable[..., None]
) -> None:
    """A plugin knows the id of the response, which is that of the first attempt."""
    register_models(
        ScriptedModel("down", [ConnectionError("refused")]), ScriptedModel("other", ["Hello"])
    )
    datasette = await start(config={"retries": 0, "fallbacks": ["other"], "max_concurrency": 1})
    response = await (await LLM(datasette).model("down")).prompt("Hi")
    await response.text()

    first = Page((await get(datasette, f"{LOG}/{response.id}")).text)

    assert "Attempt 1 of 2 answered by other" in first.text
    (link,) = {link for link in first.links() if re.fullmatch(f"{LOG}/[0-9a-z]{{26}}", link)}
    answer = (await get(datasette, f"{link}.json")).json()["call"]
    assert (answer["model_id"], answer["outcome"]) == ("other", "ok")
    assert answer["waited_ms"] is not None


async def test_group_link_leads_to_calls_and_totals(start: Start) -> None:
    rows = [call_row(NOW - 90 * DAY, group_id="g 1") for _ in range(25)]
    datasette = await start(*rows)
    page = Page((await get(datasette, f"{LOG}/{rows[0]['id']}")).text)
    (link,) = [link for link in page.links() if "group=" in link]

    found = (await get(datasette, link.replace(LOG, f"{LOG}.json"))).json()

    assert len(found["rows"]) == found["totals"]["calls"] == 25
    assert "These are the newest 20." in page.text


async def test_group_removed_during_read_is_omitted(start: Start, monkeypatch) -> None:
    row = call_row(NOW, group_id="g")
    datasette = await start(row)
    monkeypatch.setattr(queries, "first_call", lambda connection, wanted: "")

    assert "Its group" not in (await get(datasette, f"{LOG}/{row['id']}")).text
    assert (await get(datasette, f"{LOG}/{row['id']}.json")).json()["group"] is None


async def test_a_call_without_content_says_so(start: Start) -> None:
    row = call_row(NOW)

    page = Page((await get(await start(row), f"{LOG}/{row['id']}")).text)

    assert "No content of this call is recorded. Set log.content to record it." in page.text


async def test_long_content_is_cut(start: Start, monkeypatch) -> None:
    monkeypatch.setattr(call_page, "MAX_SHOWN_CHARS", 10)
    row = call_row(NOW)
    datasette = await start(row)
    await datasette.get_internal_database().execute_write(
        "insert into llm_call_content values (?, 'response', ?)", [row["id"], '"abcdefghijklmno"']
    )

    text = (await get(datasette, f"{LOG}/{row['id']}")).text

    assert ">abcdefghij<" in text
    assert "5 more characters are in the" in text


@pytest.mark.parametrize("call_id", ["no-such-call", "01m7zaxfxwamyz6yqxtz3s6zxy", "~3Cb~3E"])
async def test_unknown_call_is_404(start: Start, call_id: str) -> None:
    datasette = await start(call_row(NOW))

    page = await get(datasette, f"{LOG}/{call_id}", status=404)
    found = await get(datasette, f"{LOG}/{call_id}.json", status=404)

    assert "<b>" not in page.text
    assert found.json()["error"].startswith("The call log has no call ")


@pytest.mark.parametrize("odd", ["abc", b"\xff\x00", float("inf")], ids=["text", "blob", "inf"])
async def test_s3_odd_rows_are_shown(start: Start, odd: object) -> None:
    """Values that no version has written, each in a row of its own; the other rows are there."""
    rows = []
    for name in sorted({*COLUMNS} - {"id", "outcome"}):
        rows.append(call_row(NOW, group_id="g", purpose="p") | {name: odd})
    rows.append(call_row(NOW, group_id="g", purpose="p", input_tokens=3))
    datasette = await start(*rows)

    shown = await get_json(datasette, limit=len(rows))

    assert [row["id"] for row in shown["rows"]] == [row["id"] for row in rows[::-1]]
    assert shown["rows"][0]["input_tokens"] == 3
    for address in (LOG, f"{LOG}.csv", *(f"{LOG}/{row['id']}" for row in rows)):
        await get(datasette, address)
    for sort in ("cost", "-cost", "duration", "tokens"):
        await get(datasette, sort=sort)
    for by in ("model", "outcome", "failure_kind", "day"):
        for suffix in ("", ".json", ".csv"):
            await get(datasette, f"/-/llm/usage{suffix}", by=by, measure="tokens")


# CSV


async def test_csv_has_all_columns_of_all_calls(start: Start) -> None:
    rows = [call_row(NOW, input_tokens=number, cost_nanodollars=10) for number in range(120)]
    datasette = await start(*rows)

    response = await get(datasette, f"{LOG}.csv", limit=5)
    exported = csv_rows(response.text)

    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert tuple(exported[0]) == (*COLUMNS, "cost_dollars")
    assert [each["id"] for each in exported] == [row["id"] for row in rows[::-1]]
    assert exported[0]["cost_dollars"] == "0.000000010"


@pytest.mark.parametrize(
    "sign", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "\uff1d", "\ufeff=", "\x1b="]
)
async def test_csv_has_no_formulas(start: Start, sign: str) -> None:
    formula = f"{sign}cmd|'/c calc'!A0"
    columns = ("model_id", "purpose", "actor_id", "group_id", "error_message", "resolved_model")
    datasette = await start(call_row(NOW, **dict.fromkeys(columns, formula)))

    (row,) = csv_rows((await get(datasette, f"{LOG}.csv")).text)

    for name in columns:
        assert row[name] == f"'{formula}"


@pytest.mark.parametrize(
    "text", ["x;=1", "x\t=1", 'x;"=1', 'x;""" @1', "x\n-1", "x\r+1", "x; \uff1d1"]
)
@pytest.mark.parametrize("delimiter", [";", "\t", ","])
async def test_s6_csv_is_safe_with_other_separators(
    start: Start, text: str, delimiter: str
) -> None:
    columns = ("model_id", "purpose", "actor_id", "group_id", "error_message", "resolved_model")
    datasette = await start(call_row(NOW, **dict.fromkeys(columns, text)))

    exported = (await get(datasette, f"{LOG}.csv")).text

    for row in csv.reader(io.StringIO(exported, newline=""), delimiter=delimiter):
        for cell in row:
            assert not cell.lstrip(' \t\r\n"').startswith(("=", "+", "-", "@", "\uff1d")), cell


async def test_csv_leaves_other_values_alone(start: Start) -> None:
    datasette = await start(call_row(NOW, model_id='a,b"c', purpose="2 - 1 = 1"))

    (row,) = csv_rows((await get(datasette, f"{LOG}.csv")).text)

    assert (row["model_id"], row["purpose"], row["duration_ms"]) == ('a,b"c', "2 - 1 = 1", "10.0")


async def test_s5_sums_and_csv_are_made_in_threads(start: Start, monkeypatch) -> None:
    """Thousands of purposes take longer than the event loop may stand still."""
    threads: dict[str, set[bool]] = {}

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            here = threading.current_thread() is threading.main_thread()
            threads.setdefault(name, set()).add(here)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(Sums, "summary")
    watch(Sums, "add")
    watch(csv_export, "_csv_cells")
    datasette = await start(call_row(NOW))

    await get(datasette, LOG)
    await get(datasette, f"{LOG}.csv")

    assert threads == {name: {False} for name in ("summary", "add", "_csv_cells")}


async def test_csv_reads_bounded_batches(start: Start, monkeypatch) -> None:
    monkeypatch.setattr(csv_export, "BATCH_ROWS", 4)
    datasette = await start(*(call_row(NOW) for _ in range(10)))

    chunks = [chunk async for chunk in csv_export.csv_chunks(datasette, Listing())]

    assert [chunk.count("\n") for chunk in chunks] == [1, 4, 4, 2]


async def test_csv_stops_when_client_disconnects(start: Start, monkeypatch) -> None:
    monkeypatch.setattr(csv_export, "BATCH_ROWS", 1)
    datasette = await start(*(call_row(NOW) for _ in range(10)))
    gone, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 4:
            gone.set()

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"{LOG}.csv",
        "raw_path": f"{LOG}.csv".encode(),
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"cookie", f"ds_actor={datasette.client.actor_cookie(ANA)}".encode()),
        ],
    }
    await datasette.app()(scope, receive, send)

    assert len(sent) < 10


# The state of the record


async def test_without_any_call_the_page_says_so(start: Start) -> None:
    datasette = await start()

    assert "No calls yet." in Page((await get(datasette)).text).text
    found = await get_json(datasette)
    assert (found["rows"], found["next"], found["totals"]["calls"]) == ([], None, 0)


async def test_log_false_notice(start: Start) -> None:
    datasette = await start(config={"log": False})

    page = Page((await get(datasette)).text)
    found = await get_json(datasette)

    assert "The call log is off: log: false is set" in page.text
    assert (found["recording"], found["rows"]) == (False, [])
    assert csv_rows((await get(datasette, f"{LOG}.csv")).text) == []
    await get(datasette, f"{LOG}/01m7zaxfxwamyz6yqxtz3s6zxy", status=404)
    await get(datasette, status=400, since="nonsense")


async def test_write_failure_warning_on_every_page(start: Start) -> None:
    row = call_row(NOW)
    datasette = await start(row)
    writer = Recorder.of(datasette).writer
    writer.failure, writer.dropped = "OperationalError: disk <is> full", 1234

    for path in (LOG, f"{LOG}/{row['id']}"):
        response = await get(datasette, path)
        warnings = (await get(datasette, f"{path}.json")).json()["warnings"]
        assert len(warnings) == 2
        assert all(warning in Page(response.text).text for warning in warnings)
        assert "(OperationalError: disk <is> full)" in warnings[0]
        assert "1,234 writes were dropped" in warnings[1]
        assert "<is>" not in response.text


@pytest.mark.parametrize("call_id", ["", "zz", "7" + "z" * 25, "A B", " ", "~"])
async def test_s3_odd_ids_are_shown(start: Start, call_id: str) -> None:
    datasette = await start(call_row(NOW), call_row(NOW) | {"id": call_id})
    for address in (LOG, f"{LOG}.json", f"{LOG}.csv", f"{LOG}.json?since=2000-01-01"):
        await get(datasette, address)


@pytest.mark.parametrize("name", [LOG, "call page"])
async def test_unreadable_log_is_503_in_every_format(
    start: Start, name: str, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    async def locked(work: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(datasette.get_internal_database(), "execute_fn", locked)
    path = address(name, row["id"])

    page = await get(datasette, path, status=503)
    found = (await get(datasette, f"{path}.json", status=503)).json()

    told = "The internal database cannot be read at the moment (database is locked)"
    assert told in Page(page.text).text
    assert (found["ok"], told in found["error"]) == (False, True)
    assert told in (await get(datasette, f"{LOG}.csv", status=503)).text
    assert "database is locked" in caplog.text


async def test_a_record_that_works_has_no_warning(start: Start) -> None:
    assert (await get_json(await start(call_row(NOW))))["warnings"] == []


async def test_page_waits_a_bounded_time_for_writes(start: Start, monkeypatch) -> None:
    """A page is shown with a warning if pending writes take too long."""
    datasette = await start(call_row(NOW))

    async def flush() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(writer, "FLUSH_WAIT_S", 0.01)
    monkeypatch.setattr(Recorder.of(datasette).writer, "flush", flush)

    found = await get_json(datasette)

    assert len(found["rows"]) == 1
    assert "the newest calls may be missing here" in found["warnings"][0]


# Markup


@pytest.mark.parametrize("arguments", [{}, {"sort": "time"}, {"model": HOSTILE, "actor": HOSTILE}])
async def test_hostile_text_stays_text_in_the_list(start: Start, arguments: dict[str, str]) -> None:
    columns = ("model_id", "purpose", "actor_id", "group_id", "error_type", "blocked_by")
    hostile = call_row(NOW, **dict.fromkeys(columns, HOSTILE), outcome="error")
    datasette = await start(hostile, call_row(NOW))

    page = Page((await get(datasette, **arguments)).text)

    assert_no_markup_of_strangers(page)
    assert HOSTILE in page.cells


async def test_hostile_text_is_escaped_on_call_page(start: Start) -> None:
    texts = [name for name in COLUMNS if name not in NOT_FREE]
    row = call_row(NOW, attempt=2) | dict.fromkeys(texts, HOSTILE)
    row |= {"outcome": "error", "tags": json.dumps({HOSTILE: HOSTILE})}
    datasette = await start(row)
    for part in ("request", "response"):
        await datasette.get_internal_database().execute_write(
            "insert into llm_call_content values (?, ?, ?)",
            [row["id"], part, HOSTILE if part == "request" else json.dumps({HOSTILE: HOSTILE})],
        )

    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)

    assert_no_markup_of_strangers(page)
    assert page.text.count(HOSTILE) >= len(texts)


@pytest.mark.parametrize("name", [*Filter.names(), *list_request.OPTIONS, "other", HOSTILE])
async def test_hostile_text_in_the_address_stays_text(start: Start, name: str) -> None:
    datasette = await start(call_row(NOW))

    response = await datasette.client.get(f"{LOG}?{urlencode({name: HOSTILE})}", actor=ANA)

    assert response.status_code in (200, 400)
    assert_no_markup_of_strangers(Page(response.text))


NOT_FREE = {"id", "started_at", "finished_at", "outcome", "chain_step", "streaming"} | {
    "attempt",
    "waited_ms",
    "prompt_chars",
    "system_chars",
    "message_count",
    "attachment_count",
    "input_tokens",
    "output_tokens",
    "first_chunk_ms",
    "duration_ms",
    "cost_nanodollars",
}


def assert_no_markup_of_strangers(page: Page) -> None:
    assert not page.all("img")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)


# The frame


async def test_links_respect_base_url(start: Start) -> None:
    rows = [call_row(NOW, group_id="g1", chain_id="c", chain_step=n) for n in (1, 2, 3)]
    datasette = await start(*rows, settings={"base_url": "/prefix/"})

    for path in (f"{LOG}?limit=2", f"{LOG}/{rows[0]['id']}", f"{LOG}?since=x"):
        response = await datasette.client.get(path, actor=ANA)
        page = Page(response.text)
        targets = [*page.links(), *(form["action"] or "" for form in page.all("form"))]
        assert targets
        for target in targets:
            assert target.startswith(("/prefix/", "https://datasette.io/", "#")), target
        (sheet,) = [link["href"] for link in page.all("link") if "llm.css" in (link["href"] or "")]
        assert sheet.startswith("/prefix/")
        style = await datasette.client.get(sheet.removeprefix("/prefix"))
        assert style.headers["content-type"].startswith("text/css")


async def test_json_and_csv_links_keep_the_filter(start: Start) -> None:
    datasette = await start(call_row(NOW, purpose="a&b"), call_row(NOW))

    links = Page((await get(datasette, purpose="a&b")).text).links()

    (found,) = [link for link in links if link.startswith(f"{LOG}.json")]
    (exported,) = [link for link in links if link.startswith(f"{LOG}.csv")]
    assert len((await get(datasette, found)).json()["rows"]) == 1
    assert len(csv_rows((await get(datasette, exported)).text)) == 1


def test_pages_have_no_script_of_their_own() -> None:
    """Scripts are modules of ours, so that a Content-Security-Policy may forbid all others."""
    folder = Path(datasette_llm.__file__).parent / "templates"

    for path in folder.glob("*.html"):
        found = re.findall(r"<script(?![^>]*\bsrc=)|javascript:|\son\w+=", path.read_text())
        assert not found, path


def test_contrast_in_light_and_dark() -> None:
    """As https://www.w3.org/TR/WCAG22/#contrast-minimum and #non-text-contrast ask."""
    css = (Path(datasette_llm.__file__).parent / "static" / "llm.css").read_text()
    themes = [dict(re.findall(r"--llm-([a-z0-9-]+): #(\w{6});", part)) for part in css.split("}")]
    themes = [theme for theme in themes if theme]
    text = ("text", "muted", "link", "good", "bad", "odd")
    drawn = ("edge", "rest", *(str(number) for number in range(8)))

    assert len(themes) == 2
    for theme in themes:
        for ground in ("ground", "card"):
            least = dict.fromkeys(text, 4.5) | dict.fromkeys(drawn, 3.0)
            found = {name: contrast(theme[name], theme[ground]) for name in least}
            assert {n: c for n, c in found.items() if c < least[n]} == {}


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [value / 255 for value in bytes.fromhex(colour)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


async def test_fields_have_labels_and_ids_are_unique(start: Start) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    for path in (LOG, f"{LOG}/{row['id']}"):
        page = Page((await get(datasette, path)).text)
        labelled = {each["for"] for each in page.all("label")}
        fields = [*page.all("select"), *page.all("input")]
        assert all(each["id"] in labelled for each in fields if each.get("type") != "hidden")
        names = [each["id"] for _, each in page.tags if each.get("id")]
        assert len(names) == len(set(names))
        for _, attributes in page.tags:
            for name in (attributes.get("aria-labelledby") or "").split():
                assert name in names
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))


# Words and numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0, "$0"),
        (0.000000001, "$0.000000001"),
        (0.00012345, "$0.000123"),
        (0.05, "$0.05"),
        (0.5, "$0.50"),
        (1, "$1.00"),
        (1234.567, "$1,234.57"),
    ],
)
def test_dollars_are_shown_to_what_counts(value: float | None, shown: str) -> None:
    assert formatting.dollars(value) == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (None, ""),
        (0.0, "0 ms"),
        (0.4, "< 1 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (59_994, "59.99 s"),
        (59_996, "1 min 0 s"),
        (125_000, "2 min 5 s"),
    ],
)
def test_duration_units(milliseconds: float | None, shown: str) -> None:
    assert formatting.duration(milliseconds) == shown

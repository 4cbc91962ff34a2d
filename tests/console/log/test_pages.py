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
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from datasette.app import Datasette

import datasette_llm
from datasette_llm import LLM
from datasette_llm.console.log import call_page, csv_export, payloads
from datasette_llm.console.log import formatting as words
from datasette_llm.console.log import list_request as wanted
from datasette_llm.log import queries
from datasette_llm.log.queries import COLUMNS, Filter
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel
from tests.log.test_queries import add, call_row

ANA = {"id": "ana"}
LOG = "/-/llm/log"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
Start = Callable[..., Awaitable[Datasette]]


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette whose record has some rows, and which ana may view."""

    async def start(*rows: dict[str, Any], config: object = None, **kwargs: Any) -> Datasette:
        datasette = make_datasette(config, **kwargs)
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


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in_cell = False
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "dd"):
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "dd"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def links(self) -> list[str]:
        return [each["href"] or "" for each in self.all("a") if "href" in each]

    def form(self) -> dict[str, str]:
        """The fields of the form with what stands in them."""
        fields = {each["name"]: each.get("value") or "" for each in self.all("input")}
        name = ""
        for tag, attributes in self.tags:
            if tag == "select":
                name = attributes["name"] or ""
                fields.setdefault(name, "")
            elif tag == "option" and "selected" in attributes:
                fields[name] = attributes["value"] or ""
        return fields


def listed(page: str) -> list[str]:
    """The ids of the calls on a page, in its order."""
    return re.findall(rf'href="[^"]*{LOG}/([0-9a-z]{{26}})"', page)


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Who may see it

ADDRESSES = [LOG, f"{LOG}.json", f"{LOG}.csv", "call page", "call json", f"{LOG}/no-such-call"]
ADDRESSES += [f"{LOG}?since=nonsense", f"{LOG}.json?since=nonsense", f"{LOG}.csv?since=nonsense"]


def address(name: str, call_id: str) -> str:
    return {"call page": f"{LOG}/{call_id}", "call json": f"{LOG}/{call_id}.json"}.get(name, name)


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("actor", [None, {"id": "ben"}])
async def test_nobody_and_the_wrong_actor_are_refused_whatever_they_ask(
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


async def test_without_a_word_in_the_configuration_every_actor_is_refused(
    make_datasette: Callable[..., Datasette],
) -> None:
    datasette = make_datasette()
    await datasette.invoke_startup()

    assert (await datasette.client.get(LOG, actor=ANA)).status_code == 403


@pytest.mark.parametrize(("actor", "shown"), [(None, False), ({"id": "ben"}, False), (ANA, True)])
async def test_the_menu_has_an_entry_for_those_who_may_see_it(
    start: Start, actor: dict[str, str] | None, shown: bool
) -> None:
    datasette = await start()

    page = Page((await datasette.client.get("/", actor=actor)).text)

    assert (LOG in page.links()) is shown


# The list


async def test_a_call_is_on_the_page_as_soon_as_it_has_ended(
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
]


@pytest.mark.parametrize(("arguments", "columns"), FIELDS)
async def test_each_filter_finds_its_calls_on_the_page_in_json_and_in_csv(
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
    assert Page(page).form() | arguments == Page(page).form()


@pytest.mark.parametrize("name", ["purpose", "actor", "group"])
async def test_a_filter_can_ask_for_calls_that_have_none(start: Start, name: str) -> None:
    column = {"purpose": "purpose", "actor": "actor_id", "group": "group_id"}[name]
    without = call_row(NOW)
    datasette = await start(without, call_row(NOW, **{column: "x"}))

    found = await get_json(datasette, **{name: "(none)"})

    assert [row["id"] for row in found["rows"]] == [without["id"]]


async def test_since_and_until_leave_out_what_is_before_and_after(start: Start) -> None:
    rows = [call_row(NOW - days * DAY) for days in (3, 2, 1)]
    datasette = await start(*rows)
    since, until = ((NOW - days * DAY).date().isoformat() for days in (2, 1))

    found = await get_json(datasette, since=since, until=until)

    assert [row["id"] for row in found["rows"]] == [rows[1]["id"]]
    assert found["covered"] == {"since": since, "until": until, "default_days": None}


async def test_a_form_sent_as_it_is_shows_everything(start: Start) -> None:
    datasette = await start(call_row(NOW), call_row(NOW, purpose="chat", outcome="error"))
    form = Page((await get(datasette)).text).form()

    page = (await get(datasette, **form)).text

    assert set(form) == set(Filter.names())
    assert len(listed(page)) == 2


async def test_the_form_offers_what_is_on_record(start: Start) -> None:
    datasette = await start(call_row(NOW, model_id="heron"), call_row(NOW, purpose="chat"))

    offered = [each["value"] for each in Page((await get(datasette)).text).all("option")]

    assert {"heron", "pelican", "chat", "(none)", "ok", "lost", "running"} <= set(offered)


async def test_the_form_keeps_what_the_chart_shows(start: Start) -> None:
    datasette = await start(call_row(NOW))

    form = Page((await get(datasette, by="model", measure="cost", limit=7)).text).form()

    assert form | {"by": "model", "measure": "cost", "limit": "7"} == form


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


async def test_the_links_of_the_pages_lead_to_every_call_once(start: Start) -> None:
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


async def test_the_first_page_has_the_totals_and_the_others_a_way_back(start: Start) -> None:
    datasette = await start(*(call_row(NOW) for _ in range(3)))
    first = await get_json(datasette, limit=2)

    second = await get_json(datasette, limit=2, next=first["next"])
    page = Page((await get(datasette, limit=2, next=first["next"])).text)

    assert first["totals"]["calls"] == 3
    assert (second["totals"], second["chart"], second["covered"]) == (None, None, None)
    assert f"{LOG}?limit=2" in page.links()


async def test_a_cursor_of_another_filter_is_refused(start: Start) -> None:
    datasette = await start(*(call_row(NOW, purpose="chat") for _ in range(3)))
    cursor = (await get_json(datasette, purpose="chat", limit=2))["next"]

    refused = await get(datasette, f"{LOG}.json", status=400, limit=2, next=cursor)

    assert refused.json()["error"] == (
        "next: this cursor belongs to a list with other filters; leave it out, to begin with "
        "the newest call"
    )


async def test_a_page_may_have_up_to_500_calls_and_has_50_unless_told(start: Start) -> None:
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
    ({"by": "actor"}, "by: 'actor' is none of purpose, model"),
    ({"measure": "words"}, "measure: 'words' is none of calls, tokens, cost"),
    ({"next": "x"}, "next: 'x' is no cursor that a page of this list gave"),
    ({"modle": "gpt"}, "There is no filter 'modle'; use one of model, purpose"),
    ({"model": ["a", "b"]}, "model is given 2 times; give it once"),
]


@pytest.mark.parametrize(("arguments", "message"), NONSENSE)
async def test_nonsense_is_told_on_the_page_in_json_and_in_csv(
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


async def test_a_page_that_refuses_keeps_the_form_as_it_was(start: Start) -> None:
    datasette = await start(call_row(NOW))
    given = {
        "model": "pelican",
        "purpose": "nowhere",
        "actor": "",
        "outcome": "great",
        "group": "g1",
        "since": "yesterday",
        "until": "2026-01-01",
        "limit": "many",
    }

    page = Page((await get(datasette, status=400, **given)).text)

    assert page.form() == given
    assert [each for each in page.all("p") if each.get("role") == "alert"]


async def test_arguments_of_datasette_itself_are_let_through(start: Start) -> None:
    await get(await start(), _extra="1")


# Totals and chart


async def test_totals_and_chart_are_of_the_last_thirty_days_and_say_so(start: Start) -> None:
    datasette = await start(call_row(NOW - 60 * DAY), call_row(NOW))

    found = await get_json(datasette)
    page = Page((await get(datasette)).text)

    assert len(found["rows"]) == 2
    assert found["totals"]["calls"] == 1
    assert found["covered"]["default_days"] == 30
    assert len(found["chart"]["days"]) == 30
    assert f"the last 30 days, since {found['covered']['since']} (UTC)" in page.text


async def test_totals_tell_calls_failures_tokens_cost_and_latency(start: Start) -> None:
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
            "median_ms": 300,
            "p95_ms": 2000,
        }
        == found
    )
    shown = [cell.split(" ")[0] for cell in page.cells[:7]]
    assert shown == ["4", "1", "3,000", "40", "$2.47", "300", "2.00"]


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


@pytest.mark.parametrize("by", ["purpose", "model"])
@pytest.mark.parametrize(
    ("measure", "value", "shown"),
    [("calls", 1, "1"), ("tokens", 1200, "1,200"), ("cost", 0.5, "$0.50")],
)
async def test_the_chart_has_its_numbers_in_the_drawing_and_in_the_table(
    start: Start, by: str, measure: str, value: float, shown: str
) -> None:
    row = call_row(
        NOW,
        purpose="fishing",
        input_tokens=1000,
        output_tokens=200,
        cost_nanodollars=500_000_000,
    )
    datasette = await start(row)
    name = {"purpose": "fishing", "model": "pelican"}[by]

    chart = (await get_json(datasette, by=by, measure=measure))["chart"]
    page = Page((await get(datasette, by=by, measure=measure)).text)

    assert [(each["name"], each["values"][-1]) for each in chart["series"]] == [(name, value)]
    (drawing,) = [each for each in page.all("svg") if each.get("class") == "llm-chart"]
    assert drawing["role"] == "img"
    day = chart["days"][-1]
    assert f"{day}, {name}: {shown}" in page.text
    assert f"In total {name}: {shown}" in page.text
    assert page.text.count(f"{day}{shown}") == 1  # a row of the table


async def test_the_chart_says_when_there_is_nothing_to_draw(start: Start) -> None:
    page = Page((await get(await start(call_row(NOW)), model="heron")).text)

    assert "There are no calls to draw." in page.text
    assert "No call matches this filter." in page.text


# One call


async def test_a_call_has_its_group_its_chain_and_its_content(start: Start) -> None:
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


def attempt_rows(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a response's attempts, the first of which has the response's id."""
    rows = [call_row(NOW, attempt=number, **part) for number, part in enumerate(parts, 1)]
    return [row | {"prompt_id": rows[0]["id"] if row["attempt"] > 1 else None} for row in rows]


FAILED = {"outcome": "error", "error_type": "ConnectionError", "error_message": HOSTILE}


async def test_each_attempt_leads_to_all_and_to_the_one_that_was_answered(start: Start) -> None:
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


async def test_a_response_that_took_one_attempt_has_nothing_to_say_of_it(start: Start) -> None:
    row = call_row(NOW, waited_ms=0.0)
    datasette = await start(row)
    assert (await get(datasette, f"{LOG}/{row['id']}.json")).json()["attempts"] == []
    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)
    assert "Attempt" not in page.text
    assert "Waited for its turnno" in page.text.replace("\n", "")


async def test_an_attempt_whose_first_one_was_removed_is_shown_alone(start: Start) -> None:
    row = attempt_rows(FAILED, {})[1]
    datasette = await start(row)
    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)
    assert "Attempt 2 of 2 answered by this one, pelican" in page.text


async def test_the_list_json_and_csv_tell_attempts_and_waits(start: Start) -> None:
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


async def test_a_plugin_s_response_leads_to_the_attempt_that_was_answered(
    start: Start, register_models: Callable[..., None]
) -> None:
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


async def test_the_link_to_a_group_leads_to_all_its_calls_and_their_totals(start: Start) -> None:
    rows = [call_row(NOW - 90 * DAY, group_id="g 1") for _ in range(25)]
    datasette = await start(*rows)
    page = Page((await get(datasette, f"{LOG}/{rows[0]['id']}")).text)
    (link,) = [link for link in page.links() if "group=" in link]

    found = (await get(datasette, link.replace(LOG, f"{LOG}.json"))).json()

    assert len(found["rows"]) == found["totals"]["calls"] == 25
    assert "These are the newest 20." in page.text


async def test_a_call_whose_group_is_removed_while_it_is_read_is_shown_without_it(
    start: Start, monkeypatch
) -> None:
    row = call_row(NOW, group_id="g")
    datasette = await start(row)
    monkeypatch.setattr(queries, "first_call", lambda connection, wanted: "")

    assert "Its group" not in (await get(datasette, f"{LOG}/{row['id']}")).text
    assert (await get(datasette, f"{LOG}/{row['id']}.json")).json()["group"] is None


async def test_a_call_without_content_says_so(start: Start) -> None:
    row = call_row(NOW)

    page = Page((await get(await start(row), f"{LOG}/{row['id']}")).text)

    assert "No content of this call is recorded. The setting log.content" in page.text


async def test_content_that_would_drown_a_browser_is_cut(start: Start, monkeypatch) -> None:
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
async def test_a_call_that_is_not_on_record_is_not_found(start: Start, call_id: str) -> None:
    datasette = await start(call_row(NOW))

    page = await get(datasette, f"{LOG}/{call_id}", status=404)
    found = await get(datasette, f"{LOG}/{call_id}.json", status=404)

    assert "<b>" not in page.text
    assert found.json()["error"].startswith("The record has no call ")


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


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "\uff1d"])
async def test_csv_has_no_formulas(start: Start, sign: str) -> None:
    formula = f"{sign}cmd|'/c calc'!A0"
    columns = ("model_id", "purpose", "actor_id", "group_id", "error_message", "resolved_model")
    datasette = await start(call_row(NOW, **dict.fromkeys(columns, formula)))

    (row,) = csv_rows((await get(datasette, f"{LOG}.csv")).text)

    for name in columns:
        assert row[name] == f"'{formula}"


async def test_csv_leaves_other_values_alone(start: Start) -> None:
    datasette = await start(call_row(NOW, model_id='a,b"c', purpose="2 - 1 = 1"))

    (row,) = csv_rows((await get(datasette, f"{LOG}.csv")).text)

    assert (row["model_id"], row["purpose"], row["duration_ms"]) == ('a,b"c', "2 - 1 = 1", "10.0")


async def test_csv_is_read_a_bounded_number_of_rows_at_a_time(start: Start, monkeypatch) -> None:
    monkeypatch.setattr(csv_export, "BATCH_ROWS", 4)
    datasette = await start(*(call_row(NOW) for _ in range(10)))

    chunks = [chunk async for chunk in csv_export.csv_chunks(datasette, Filter())]

    assert [chunk.count("\n") for chunk in chunks] == [1, 4, 4, 2]


async def test_csv_is_not_read_on_when_its_reader_has_gone(start: Start, monkeypatch) -> None:
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

    assert "No call is on record yet." in Page((await get(datasette)).text).text
    found = await get_json(datasette)
    assert (found["rows"], found["next"], found["totals"]["calls"]) == ([], None, 0)


async def test_with_log_false_the_page_says_that_the_record_is_off(start: Start) -> None:
    datasette = await start(config={"log": False})

    page = Page((await get(datasette)).text)
    found = await get_json(datasette)

    assert "The record is off: log: false is set" in page.text
    assert (found["recording"], found["rows"]) == (False, [])
    assert csv_rows((await get(datasette, f"{LOG}.csv")).text) == []
    await get(datasette, f"{LOG}/01m7zaxfxwamyz6yqxtz3s6zxy", status=404)
    await get(datasette, status=400, since="nonsense")


async def test_what_keeps_the_record_from_being_written_is_on_every_page(start: Start) -> None:
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
        assert "1,234 writes were given up" in warnings[1]
        assert "<is>" not in response.text


@pytest.mark.parametrize("name", [LOG, "call page"])
async def test_a_record_that_cannot_be_read_is_told_in_every_form(
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


async def test_a_page_does_not_wait_for_ever_for_what_is_being_written(
    start: Start, monkeypatch
) -> None:
    datasette = await start(call_row(NOW))

    async def flush() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(payloads, "FLUSH_S", 0.01)
    monkeypatch.setattr(Recorder.of(datasette).writer, "flush", flush)

    found = await get_json(datasette)

    assert len(found["rows"]) == 1
    assert "the newest calls may be missing here" in found["warnings"][0]


# Markup


@pytest.mark.parametrize(
    "arguments", [{}, {"by": "model"}, {"measure": "cost"}, {"model": HOSTILE, "actor": HOSTILE}]
)
async def test_hostile_text_stays_text_in_the_list(start: Start, arguments: dict[str, str]) -> None:
    columns = ("model_id", "purpose", "actor_id", "group_id", "error_type", "blocked_by")
    hostile = call_row(NOW, **dict.fromkeys(columns, HOSTILE), outcome="error")
    datasette = await start(hostile, call_row(NOW))

    page = Page((await get(datasette, **arguments)).text)

    assert_no_markup_of_strangers(page)
    assert HOSTILE in page.cells


async def test_hostile_text_stays_text_on_the_page_of_a_call(start: Start) -> None:
    texts = [name for name in COLUMNS if name not in NOT_FREE]
    row = call_row(NOW, attempt=2) | dict.fromkeys(texts, HOSTILE) | {"outcome": "error"}
    datasette = await start(row)
    for part in ("request", "response"):
        await datasette.get_internal_database().execute_write(
            "insert into llm_call_content values (?, ?, ?)",
            [row["id"], part, HOSTILE if part == "request" else json.dumps({HOSTILE: HOSTILE})],
        )

    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)

    assert_no_markup_of_strangers(page)
    assert page.text.count(HOSTILE) >= len(texts)


@pytest.mark.parametrize("name", [*Filter.names(), *wanted.OPTIONS, "other", HOSTILE])
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


async def test_under_a_base_url_every_link_begins_with_it(start: Start) -> None:
    rows = [call_row(NOW, group_id="g1", chain_id="c", chain_step=n) for n in (1, 2, 3)]
    datasette = await start(*rows, settings={"base_url": "/prefix/"})

    for path in (f"{LOG}?limit=2", f"{LOG}/{rows[0]['id']}", f"{LOG}?since=x"):
        response = await datasette.client.get(path, actor=ANA)
        page = Page(response.text)
        targets = [*page.links(), *(form["action"] or "" for form in page.all("form"))]
        assert targets
        for target in targets:
            assert target.startswith(("/prefix/", "https://datasette.io/")), target
        (sheet,) = [link["href"] for link in page.all("link") if "llm.css" in (link["href"] or "")]
        assert sheet.startswith("/prefix/")
        style = await datasette.client.get(sheet.removeprefix("/prefix"))
        assert style.headers["content-type"].startswith("text/css")


async def test_the_page_names_its_json_and_csv_with_the_same_filter(start: Start) -> None:
    datasette = await start(call_row(NOW, purpose="a&b"), call_row(NOW))

    links = Page((await get(datasette, purpose="a&b")).text).links()

    (found,) = [link for link in links if link.startswith(f"{LOG}.json")]
    (exported,) = [link for link in links if link.startswith(f"{LOG}.csv")]
    assert len((await get(datasette, found)).json()["rows"]) == 1
    assert len(csv_rows((await get(datasette, exported)).text)) == 1


def test_the_pages_need_no_script() -> None:
    folder = Path(datasette_llm.__file__).parent / "templates"

    names = sorted(path.name for path in folder.glob("*llm_log*.html"))

    assert names == ["_llm_log_parts.html", "llm_log.html", "llm_log_call.html"]
    for name in names:
        text = (folder / name).read_text()
        assert not re.search(r"<script|javascript:|\son\w+=", text), name


def test_text_and_drawings_stand_out_from_their_ground_in_light_and_dark() -> None:
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


async def test_every_field_has_a_label_and_every_heading_its_place(start: Start) -> None:
    row = call_row(NOW)
    datasette = await start(row)

    for path in (LOG, f"{LOG}/{row['id']}"):
        page = Page((await get(datasette, path)).text)
        labelled = {each["for"] for each in page.all("label")}
        for tag in ("select", "input"):
            assert all(each["id"] in labelled for each in page.all(tag))
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
    assert words.dollars(value) == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (None, ""),
        (0.0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (59_994, "59.99 s"),
        (59_996, "1 min 0 s"),
        (125_000, "2 min 5 s"),
    ],
)
def test_a_duration_is_shown_in_the_unit_that_suits_it(
    milliseconds: float | None, shown: str
) -> None:
    assert words.duration(milliseconds) == shown

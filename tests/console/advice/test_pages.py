"""The consultant's pages: permissions, contents, and that only a previewed prompt is sent."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from types import SimpleNamespace
from urllib.parse import urlencode

import llm
import pytest
from datasette import hookimpl
from datasette.utils import tilde_encode

from datasette_llm import instance
from datasette_llm.console.advice.payloads import MAX_QUESTION_CHARS
from datasette_llm.console.advice.profile_cards import MAX_CARDS
from datasette_llm.console.log.call_page import MAX_SHOWN_CHARS
from datasette_llm.consultant.advice import previews, store
from datasette_llm.testing import ScriptedModel
from tests.support.consultant import ANA, BEN, HOSTILE, OPEN, answer, answering, flag, rows_where
from tests.support.openai_server import BOUND_S

from ...support.console import Page

EVE = {"id": "eve"}
PATH = "/-/llm/consultations"
PETS = "/data/pets/-/llm-analyze"
EVERYTHING = ("/data/pets/-/llm-analyze", "/data/pets/-/llm-analyze.json")


@pytest.fixture
async def site(start_site, register_models):
    register_models(answering(answer()), answering(answer(), model_id="other"))
    return await start_site()


def fields(page, **changes):
    """What a browser would send of the form on a preview."""
    found = {each["name"]: each["value"] for each in page.all("input") if each.get("name")}
    names = ("digest", "question")
    return {name: found.get(name) or "" for name in names} | {"model_id": "scripted"} | changes


async def previewed(site, table="pets", query="", **more):
    return Page((await site.get(f"/data/{table}/-/llm-analyze{query}", **more)).text)


# Permissions


async def test_preview_is_refused_without_permission(site):
    for actor in (None, BEN):
        for address in (*EVERYTHING, "/data/ghost/-/llm-analyze"):
            refused = await site.get(address, 403, actor=actor)
            assert "Cleo" not in refused.text
        assert (await site.send({}, actor=actor)).status_code == 403
        await site.ask(status=403, actor=actor)
    assert await site.datasette.get_internal_database().table_exists("llm_consultations") is False
    for address in EVERYTHING:
        assert "Cleo" in (await site.get(address)).text
    assert await site.rows() == []


async def test_analyze_permission_needs_view_permission(site):
    for suffix in ("", ".json"):
        refused = await site.get(f"/data/secrets/-/llm-analyze{suffix}", 403)
        assert "ssn" not in refused.text
    await site.ask("secrets", status=403)
    assert "ssn" in (await site.get("/data/secrets/-/llm-analyze", actor=EVE)).text


async def test_menu_links_follow_permissions(site):
    for table in ("pets", "light"):
        for actor, shown in ((None, False), (BEN, False), (ANA, True)):
            page = Page((await site.get(f"/data/{table}", actor=actor)).text)
            assert (f"/data/{table}/-/llm-analyze" in page.links()) is shown
    for actor, shown in ((None, False), (BEN, False), (ANA, True)):
        page = Page((await site.get("/", actor=actor)).text)
        assert (PATH in page.links()) is shown


async def test_consultations_follow_table_permissions(site):
    mine = (await site.ask())["id"]
    hidden = (await site.ask("secrets", actor=EVE))["id"]
    for suffix in ("", ".json"):
        for actor in (None, BEN):
            await site.get(f"{PATH}{suffix}", 403, actor=actor)
            await site.get(f"{PATH}/{mine}{suffix}", 404, actor=actor)
        assert mine in (await site.get(f"{PATH}/{mine}{suffix}")).text
        await site.get(f"{PATH}/{hidden}{suffix}", 404)
        assert hidden in (await site.get(f"{PATH}/{hidden}{suffix}", actor=EVE)).text
        assert hidden not in (await site.get(f"{PATH}{suffix}")).text
        shown = (await site.get(f"{PATH}{suffix}", actor=EVE)).text
        assert hidden in shown
        assert mine in shown
    await site.get(f"{PATH}/{'0' * 26}", 404)


async def test_list_pages_are_full_despite_hidden_rows(site):
    ids = []
    for number in range(5):
        ids.append((await site.ask())["id"])
        if number % 2:
            await site.ask("secrets", actor=EVE)
    seen, query = [], ""
    for _ in range(3):
        page = (await site.get(f"{PATH}.json?limit=2{query}")).json()
        seen.append([row["id"] for row in page["consultations"]])
        query = f"&next={page['next']}"
    assert seen == [ids[:-3:-1], ids[2:0:-1], ids[:1]]
    assert page["next"] is None
    first = Page((await site.get(f"{PATH}?limit=2")).text)
    (older,) = [link for link in first.links() if "next=" in link]
    assert ids[2] in (await site.get(older)).text


@pytest.mark.parametrize(
    ("column", "value"),
    [("question", b"\xff"), ("latency_ms", "soon"), ("advice", "[1]"), ("rejected", "abc")],
)
async def test_s3_odd_consultation_is_ignored(site, caplog, column, value):
    """A row that no version has written breaks no page, and hides no other; it is named."""
    good = (await site.ask())["id"]
    (row,) = await site.rows()
    row |= {"id": "z" * 26, column: value}
    internal = site.datasette.get_internal_database()
    places = ", ".join("?" * len(row))
    sql = f"insert into llm_consultations ({', '.join(row)}) values ({places})"
    await internal.execute_write(sql, list(row.values()))

    for suffix in ("", ".json"):
        await site.get(f"{PATH}/{'z' * 26}{suffix}", 404)
        assert good in (await site.get(f"{PATH}{suffix}?limit=1&next={'z' * 25}y")).text
        await site.get(f"{PATH}/{good}{suffix}")
    await store.update(site.datasette)
    assert f"The row '{'z' * 26}' of llm_consultations is ignored" in caplog.text


async def test_list_limit_is_50_by_default_500_at_most(site):
    assert (await site.get(f"{PATH}.json")).json()["limit"] == 50
    assert (await site.get(f"{PATH}.json?limit=500")).json()["limit"] == 500
    for query in ("limit=501", "limit=0", "limit=x", "limit=-1", "next=x", "limit=1&limit=2"):
        for suffix in ("", ".json"):
            refused = await site.get(f"{PATH}{suffix}?{query}", 400)
            assert "limit" in refused.text or "next" in refused.text


async def test_consultations_of_missing_table_hidden(site):
    found = await site.ask()
    connection = sqlite3.connect(site.path)
    connection.execute("drop table pets")
    connection.close()
    await site.datasette.refresh_schemas(force=True)
    await site.get(f"{PATH}/{found['id']}", 404)
    await site.get(PETS, 404)
    assert (await site.send({"digest": "x"})).status_code == 404
    await site.ask(status=404)


async def test_s8_log_hides_content_about_private_tables(start_site, register_models):
    """Of every call of the consultation, the one that was repaired too."""
    register_models(answering("not JSON", answer()))
    permissions = OPEN | {"view-llm-log": {"id": ["ana", "eve"]}}
    config = {"default_model": "scripted", "log": {"content": True}}
    site = await start_site(config, permissions=permissions)
    found = await site.ask("secrets", actor=EVE)
    assert found["outcome"] == "ok"
    rows = (await site.get("/-/llm/log.json", actor=ANA)).json()["rows"]
    assert len(rows) == 2
    for row in rows:
        address = f"/-/llm/log/{row['id']}"
        own = (await site.get(f"{address}.json", actor=EVE)).json()
        assert "111-22" in json.dumps(own["content"]["request"])
        assert own["content_hidden"] is False
        assert "111-22" in (await site.get(address, actor=EVE)).text
        seen = (await site.get(f"{address}.json")).json()
        assert (seen["content"], seen["content_hidden"]) == (None, True)
        assert seen["content_chars"] == own["content_chars"]
        assert seen["content_chars"]["request"] > 1_000
        page = (await site.get(address)).text
        assert "111-22" not in page
        assert f"request {seen['content_chars']['request']:,} characters" in page


async def test_s8_content_is_hidden_until_it_is_stored(start_site, register_models):
    gate = asyncio.Event()
    model = ScriptedModel("scripted", [gate, json.dumps(answer())])
    register_models(model)
    permissions = OPEN | {"view-llm-log": {"id": "ana"}}
    config = {"default_model": "scripted", "log": {"content": True}}
    site = await start_site(config, permissions=permissions)
    asking = asyncio.create_task(site.ask())
    await model.received()
    (row,) = (await site.get("/-/llm/log.json")).json()["rows"]
    address = f"/-/llm/log/{row['id']}.json"
    assert (await site.get(address)).json()["content"] is None
    gate.set()
    await asking
    seen = (await site.get(address)).json()
    assert seen["content_hidden"] is False
    assert "Pancakes" in json.dumps(seen["content"])


async def test_s0_long_answer_is_cut_on_the_page(start_site, register_models):
    long = "x" * (MAX_SHOWN_CHARS + 1_000)
    register_models(ScriptedModel("scripted", [long]))
    site = await start_site()
    found = await site.ask()
    page = (await site.get(f"{PATH}/{found['id']}")).text
    assert len(page) < MAX_SHOWN_CHARS * 1.2 + 50_000
    assert "1,000 more characters are in the" in page
    assert (await site.get(f"{PATH}/{found['id']}.json")).json()["consultation"][
        "raw_answer"
    ] == long


# The preview


async def test_the_preview_is_what_is_sent(site):
    shown = await site.preview(query="?question=Why%3F&exclude=owner&exclude=name")
    found = await site.ask(question="Why?", exclude=["name", "owner"])
    assert shown["user_prompt"] == found["user_prompt"]
    assert shown["system_prompt"] == found["system_prompt"]
    assert "Pancakes" not in shown["user_prompt"]
    assert [c["name"] for c in shown["columns"] if c["excluded"]] == ["name", "owner"]
    assert shown["models"][0] == shown["model_id"] == "scripted"
    assert shown["input_tokens"] > 100
    page = await previewed(site, query="?question=Why%3F&exclude=owner&exclude=name")
    assert len([each for each in page.all("input") if "checked" in each]) == 2


async def test_estimate_uses_the_configured_price(start_site, register_models):
    register_models(answering(answer()))
    prices = {"scripted": {"input": 1000, "output": 1000}}
    site = await start_site({"default_model": "scripted", "log": {"prices": prices}})
    shown = await site.preview()
    tokens = shown["input_tokens"] + shown["answer_tokens"]
    assert shown["cost_dollars"] == pytest.approx(tokens / 1000)


async def test_no_model_is_explained_on_the_page(start_site):
    site = await start_site({})
    shown = await site.preview()
    assert shown["model_id"] is None
    assert "default_model" in shown["problem"]
    page = await previewed(site)
    (send,) = [each for each in page.all("button") if each.get("id") == "llm-send"]
    assert "disabled" in send


async def test_previewed_prompt_is_sent_after_a_change(site, register_models):
    model = answering(answer(), model_id="keeps")
    register_models(model)
    query = "?model_id=keeps"
    page = await previewed(site, query=query)
    shown = await site.preview(query=query)
    connection = sqlite3.connect(site.path)
    connection.execute("insert into pets (name) values ('Newcomer'), ('Newcomer')")
    connection.commit()
    connection.close()
    answered = await site.send(fields(page, model_id="keeps"))
    assert answered.status_code == 303
    assert model.calls[0].prompt == shown["user_prompt"]
    stored = await site.get(answered.headers["location"])
    assert "Look at the negative weight" in stored.text


async def test_changed_request_is_shown_and_not_sent(site, register_models):
    model = answering(answer(), model_id="shy")
    register_models(model)
    page = await previewed(site, query="?model_id=shy")
    sent = fields(page, model_id="shy")
    for changed in ({"exclude": "name"}, {"model_id": "scripted"}, {"digest": ""}):
        answered = await site.send(sent | changed)
        assert answered.status_code == 409
        assert "Nothing was sent" in answered.text
    # Nor when it is no longer cached and the table has another profile by now.
    instance.of(site.datasette, previews.PreviewCache).clear()
    connection = sqlite3.connect(site.path)
    connection.execute("delete from pets where id = 1")
    connection.commit()
    connection.close()
    answered = await site.send(sent)
    assert answered.status_code == 409
    assert model.calls == []
    anew = await site.send(fields(Page(answered.text), model_id="shy"))
    assert anew.status_code == 303
    assert len(model.calls) == 1


async def test_a8_typed_question_is_sent_in_one_go(site, register_models):
    """With the very data that was seen, though the table and the default model have changed."""
    model = answering(answer(), answer(), model_id="asked")
    register_models(model)
    page = await previewed(site, query="?model_id=asked&exclude=owner")
    seen = await site.preview(query="?model_id=asked&exclude=owner")
    connection = sqlite3.connect(site.path)
    connection.execute("insert into pets (name) values ('Newcomer'), ('Newcomer')")
    connection.commit()
    connection.close()
    typed = {"model_id": "asked", "exclude": "owner", "question": " Why?\u2028\U0001f436 "}
    answered = await site.send(fields(page, **typed))
    assert answered.status_code == 303
    question, _, rest = model.calls[0].prompt.partition("\n\n")
    assert json.loads(question.removeprefix("The person's question: ")) == typed["question"].strip()
    assert rest == seen["user_prompt"]
    (row,) = await site.rows()
    assert (row["question"], row["exclude"]) == (typed["question"].strip(), '["owner"]')
    # A second tab still has the preview of before; what it shows is what it sends.
    again = await site.send(fields(page, model_id="asked", exclude="owner", question="And?"))
    assert again.status_code == 303
    assert model.calls[1].prompt.partition("\n\n")[2] == rest


async def test_a8_bad_input_loses_nothing(site):
    """A question that is too long stays in the form, with all else that was valid."""
    page = await previewed(site)
    long = "Why? " * 500
    for bad in ({"question": long}, {"question": "Why?", "exclude": ["name", "ghost"]}):
        sent = fields(page, model_id="other", **bad)
        refused = await site.send(sent)
        shown = Page(refused.text)
        assert refused.status_code == 400
        typed = [each["value"] for each in shown.all("input") if each.get("name") == "question"]
        assert typed == [bad["question"]]
        assert shown.form()["model"] == "other"
        lines = (await site.send(sent, accept="application/x-ndjson")).text.splitlines()
        assert list(json.loads(lines[0])) == ["error"]
    assert await site.rows() == []


async def test_a8_findings_come_before_the_model(start_site, plugin):
    """They are sent while a plugin still thinks about the models."""
    gate, chunks = asyncio.Event(), []

    class Slow:
        @hookimpl
        async def llm_filter_models(self, models):
            await gate.wait()
            return models

    plugin(Slow())
    site = await start_site(schema=DIRTY)
    seen = asyncio.Event()

    async def send(message):
        chunks.append(message.get("body", b"").decode())
        if "edge spaces" in "".join(chunks):
            seen.set()

    async def receive():
        await asyncio.Event().wait()

    cookie = f"ds_actor={site.datasette.client.actor_cookie(ANA)}"
    scope = _scope("GET", [(b"host", b"localhost"), (b"cookie", cookie.encode())])
    page = asyncio.create_task(site.datasette.app()(scope, receive, send))
    async with asyncio.timeout(BOUND_S):
        await seen.wait()
        assert 'id="llm-ask"' not in "".join(chunks)
        gate.set()
        await page
    text = "".join(chunks)
    assert text.index("edge spaces") < text.index('id="llm-ask"') < text.index("</html>")


async def test_a8_broken_table_is_named_in_the_page(start_site):
    """Once the page has begun, it says what is wrong; else, as in JSON, there is a status."""
    rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 999)"
    schema = f"create table t (a); insert into t {rows} select i from n; create table u (a);"
    site = await start_site({}, schema=schema, databases={})
    connection = sqlite3.connect(site.path)
    connection.execute("create view broken as select ghost from u")
    connection.close()
    with site.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    await site.datasette.refresh_schemas(force=True)
    shown = (await site.get("/data/t/-/llm-analyze")).text
    assert "llm-notice-error" in shown
    assert "malformed" in shown
    assert shown.rstrip().endswith("</html>")
    assert "malformed" in (await site.get("/data/t/-/llm-analyze.json", 404)).text
    for suffix in ("", ".json"):
        refused = await site.get(f"/data/broken/-/llm-analyze{suffix}", 404)
        assert "no such column: ghost" in refused.text


async def test_a8_profile_is_a_card_a_column(start_site):
    rows = ", ".join(f"({at}, '{'ab'[at % 3 == 0]}', {at * at})" for at in range(100))
    schema = f"create table t (id integer primary key, kind text, n); insert into t values {rows};"
    schema += "create table wide (" + ", ".join(f"c{at}" for at in range(150)) + ");"
    site = await start_site({}, schema=schema, databases={})
    page = Page((await site.get("/data/t/-/llm-analyze")).text)
    text = " ".join(page.text.split())
    assert "id INTEGER primary key MissingnoneRange0 to 99Mean49.5" in text
    assert "a 66 (66 %)b 34 (34 %)" in text
    bars = [each["style"] for each in page.all("li") if "--width" in (each.get("style") or "")]
    assert len(bars) == 8
    assert bars[4] == "--width: 6.25; --height: 100.0%"
    wide = (await site.get("/data/wide/-/llm-analyze")).text
    assert wide.count('class="llm-card"') == MAX_CARDS
    assert "50 more columns are in the JSON" in wide
    assert len((await site.preview("wide"))["profile"]["columns"]) == 150


async def test_a8_cost_is_for_readers_of_the_log(start_site, register_models):
    model = answering("not JSON", answer())
    register_models(model)
    permissions = OPEN | {"view-llm-log": {"id": "eve"}}
    prices = {"scripted": {"input": 1000, "output": 1000}}
    config = {"default_model": "scripted", "log": {"prices": prices}}
    site = await start_site(config, permissions=permissions)
    found = await site.ask()
    address = f"{PATH}/{found['id']}"
    assert (await site.get(f"{address}.json")).json()["usage"] is None
    assert "In the call log" not in (await site.get(address)).text
    usage = (await site.get(f"{address}.json", actor=EVE)).json()["usage"]
    assert usage["calls"] == 2
    assert "2 calls" in " ".join(Page((await site.get(address, actor=EVE)).text).text.split()) or (
        usage["input_tokens"] is None
    )


async def test_a8_answers_are_shown_beside_each_other(site):
    first = (await site.ask(question="Why?", exclude=["owner"]))["id"]
    hidden = (await site.ask("secrets", actor=EVE))["id"]
    page = Page((await site.get(f"{PATH}/{first}")).text)
    again, other = [link for link in page.links() if f"beside={first}" in link]
    assert (again.split("#")[1], other.split("#")[1]) == ("llm-ask", "llm-model")
    form = Page((await site.get(again.split("#")[0])).text)
    names = ("digest", "beside", "question", "model")
    sent = {name: form.form()[name] for name in names} | {"exclude": "owner"}
    assert (sent["question"], sent["beside"]) == ("Why?", first)
    answered = await site.send(sent)
    address = answered.headers["location"]
    both = Page((await site.get(address)).text)
    assert len(both.all("article")) == 2
    ids = [each["id"] for _, each in both.tags if each.get("id")]
    assert len(ids) == len(set(ids))
    twin = (await site.get(address.replace("?", ".json?"))).json()
    assert twin["beside"]["consultation"]["id"] == first
    for suffix in ("", ".json"):
        await site.get(f"{PATH}/{first}{suffix}?beside={hidden}", 404)
        await site.get(f"{PATH}/{first}{suffix}?beside=nonsense")


async def test_a8_earlier_advice_of_the_table_is_linked(site):
    mine = [(await site.ask())["id"] for _ in range(2)]
    hidden = (await site.ask("secrets", actor=EVE))["id"]
    await site.get(PETS)  # which stores the findings
    earlier = [each["id"] for each in (await site.preview())["earlier"]]
    assert earlier == mine[::-1]
    page = await previewed(site)
    assert f"{PATH}/{mine[0]}" in page.links()
    (all_of_it,) = [link for link in page.links() if "database=data" in link]
    listed = (await site.get(all_of_it.replace("?", ".json?"))).json()["consultations"]
    assert len(listed) == 3
    for query in ("table=secrets", "database=data&table=secrets", "database=ghost"):
        assert (await site.get(f"{PATH}.json?{query}")).json()["consultations"] == []
        assert hidden not in (await site.get(f"{PATH}?{query}")).text


async def test_preview_cache_is_bounded(site):
    names = ("id", "name", "kind", "weight", "owner")
    for number in range(previews.MAX_PREVIEWS + 5):
        left_out = [("exclude", name) for at, name in enumerate(names) if number >> at & 1]
        await site.preview(query=f"?{urlencode(left_out)}")
    cache = instance.of(site.datasette, previews.PreviewCache)
    assert len(cache) == previews.MAX_PREVIEWS


async def test_bad_request_is_explained(site):
    many = "x" * (MAX_QUESTION_CHARS + 1)
    for body, message in (
        ({"exclude": ["ghost"]}, "ghost"),
        ({"question": many}, "2,000"),
        ({"modle": "x"}, "no field"),
        ({"question": 5}, "expected text"),
        ({"exclude": [5]}, "expected text"),
        ({"type": "rating"}, "dataset-analysis"),
        ([], "object"),
    ):
        response = await site.datasette.client.post(f"{PETS}.json", json=body, actor=ANA)
        assert (response.status_code, message in response.text) == (400, True), body
    broken = await site.datasette.client.post(f"{PETS}.json", content="{", actor=ANA)
    assert broken.status_code == 400
    assert "ghost" in (await site.get(f"{PETS}?exclude=ghost", 400)).text
    assert (await site.send({"exclude": "ghost"})).status_code == 400
    assert (await site.ask(exclude="owner"))["exclude"] == ["owner"]


async def test_cross_site_post_is_refused(site):
    for suffix in ("", ".json"):
        refused = await site.datasette.client.post(
            f"{PETS}{suffix}", json={}, actor=ANA, headers={"sec-fetch-site": "cross-site"}
        )
        assert refused.status_code == 403


async def test_json_post_returns_201_and_location(start_site, register_models):
    """Also where the consultation failed."""
    register_models(ScriptedModel("scripted", [RuntimeError("It is down")]))
    site = await start_site()
    response = await site.datasette.client.post(f"{PETS}.json", content="{}", actor=ANA)
    assert response.status_code == 201
    assert response.json()["consultation"]["outcome"] == "error"
    stored = (await site.get(response.headers["location"])).json()
    assert stored == response.json()


# While it runs


async def test_a8_ndjson_has_a_line_for_each_event(start_site, register_models):
    """Steps, how the answer grows, each claim and its verdict, and where the advice is."""
    wrong = flag(rows_where("weight", expected=3), claim="Some are below zero: 3")
    register_models(answering(answer(flag(), wrong)))
    site = await start_site()
    sent = fields(await previewed(site))
    answered = await site.send(sent, accept="application/x-ndjson")
    lines = [json.loads(line) for line in answered.text.splitlines()]
    assert [line["step"] for line in lines if "step" in line][:2] == [
        "Looking for the model",
        "Waiting for the answer of scripted",
    ]
    claims = {line["index"]: line["claim"]["claim"] for line in lines if "claim" in line}
    assert claims == {0: flag()["claim"], 1: wrong["claim"]}
    checks = {line["index"]: line["check"] for line in lines if "check" in line}
    stored = (await site.get(lines[-1]["next"].replace("?", ".json?"), 200)).text
    (row,) = await site.rows()
    assert [checks[0], checks[1]] == json.loads(row["checks"])
    assert [checks[at]["status"] for at in (0, 1)] == ["confirmed", "contradicted"]
    assert all(type(line["tokens"]) is int for line in lines if "chars" in line)
    assert "Cleo" not in stored.split("Raw answer")[0]


async def test_a4_infinite_figure_confirms_nothing(start_site, register_models):
    """Nor does it break the lines of JSON."""
    evidence = {"kind": "aggregate", "function": "max", "column": "weight", "any_of": []}
    greatest = flag(evidence | {"expected": 3.0}, claim="The greatest is 3")
    register_models(answering(answer(greatest)))
    site = await start_site()
    connection = sqlite3.connect(site.path)
    connection.execute("insert into pets (weight) values (9e999)")
    connection.commit()
    connection.close()
    answered = await site.send(fields(await previewed(site)), accept="application/x-ndjson")
    assert "Infinity" not in answered.text
    lines = [json.loads(line) for line in answered.text.splitlines()]
    (check,) = [line["check"] for line in lines if "check" in line]
    assert check["status"] == "contradicted"


async def test_ndjson_leads_to_the_changed_preview(site):
    sent = fields(await previewed(site), question="New?", exclude="name")
    answered = await site.send(sent, accept="application/x-ndjson")
    (line,) = [json.loads(line) for line in answered.text.splitlines()]
    page = Page((await site.get(line["next"])).text)
    assert fields(page)["question"] == "New?"
    assert len([each for each in page.all("input") if "checked" in each]) == 1
    assert await site.rows() == []


@pytest.mark.parametrize("accept", ["text/html", "application/x-ndjson"])
async def test_disconnect_cancels_and_is_stored(start_site, register_models, accept):
    model = ScriptedModel("scripted", ["half", asyncio.Event()])
    register_models(model)
    site = await start_site()
    sent = fields(await previewed(site))
    leaves = asyncio.Event()
    call = asyncio.create_task(_posted(site, sent, accept, leaves))
    async with asyncio.timeout(BOUND_S):
        await model.received()
        leaves.set()
        await model.calls[0].ended.wait()
        await call
    assert model.calls[0].outcome == "cancelled"
    (row,) = await site.rows()
    assert (row["outcome"], row["raw_answer"]) == ("cancelled", "half")


async def _posted(site, sent, accept, leaves):
    """A POST of a browser that disconnects, which httpx's client cannot."""
    body = urlencode(sent).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    cookie = site.datasette.client.actor_cookie(ANA)
    headers = [
        (b"host", b"localhost"),
        (b"accept", accept.encode()),
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"cookie", f"ds_actor={cookie}".encode()),
    ]
    await site.datasette.app()(_scope("POST", headers), receive, send)


def _scope(method, headers):
    return {
        "type": "http",
        "method": method,
        "path": PETS,
        "raw_path": PETS.encode(),
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "http_version": "1.1",
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


# Findings, with and without a model

DIRTY = """
create table pets (id integer primary key, name text, weight, kind text, owner text);
insert into pets values (1, 'Cleo', 12.5, 'dog', 'ana'), (2, ' Pancakes', 4, 'cat', 'ben'),
    (3, 'Bob', 'NA', 'Cat', 'ben'), (4, 'Rex', 'NA', 'dog', 'ana'), (5, 'Tom', 5, 'cat', 'ana'),
    (6, 'Mia', 3, 'cat', 'cid'), (7, 'Uno', 7, 'cat', 'ana'), (8, 'Duo', 8, 'dog', 'dan');
create table secrets (ssn text primary key, name text);
insert into secrets values ('111-22', 'ana');
create table notes (id integer primary key, ssn text references secrets(ssn));
insert into notes values (1, '111-22'), (2, '333-44'), (3, '555-66');
"""


async def test_a2_findings_stay_when_llm_fails(site, caplog):
    """The page is whole, though its beginning has been sent."""
    unhashable = SimpleNamespace(register_models=lambda register: None)
    llm.plugins.pm.register(unhashable, "unhashable")
    try:
        page = (await site.get(PETS)).text
    finally:
        llm.plugins.pm.unregister(name="unhashable")
    assert 'id="llm-findings"' in page
    assert "cannot be shown: TypeError" in page
    assert page.rstrip().endswith("</html>")
    assert "is not complete" in caplog.text


async def test_a2_page_has_findings_without_a_model(start_site):
    site = await start_site({}, schema=DIRTY)
    shown = await site.preview()
    assert {(each["kind"], *each["columns"]): each["rows"] for each in shown["findings"]} == {
        ("disguised_missing", "weight"): 2,
        ("edge_spaces", "name"): 1,
        ("case_variants", "kind"): 1,
    }
    (missing,) = [each for each in shown["findings"] if each["kind"] == "disguised_missing"]
    assert (missing["share"], missing["examples"]) == (0.25, ["NA"])
    assert missing["evidence"]["kind"] == "rows"
    assert shown["model_id"] is None
    text = (await site.get(PETS)).text
    assert text.index("disguised missing") < text.index('id="llm-ask"')
    assert "2 of 8 rows (25 %)" in text


async def test_a1_configuration_needs_no_model(start_site):
    """It is shown before a model is asked, and is part of the consultation without one."""
    schema = "create table places (id integer primary key, name text, kind text);" + "".join(
        f"insert into places values ({at}, 'Place {at}', '{'ab'[at % 2]}');" for at in range(20)
    )
    site = await start_site({}, schema=schema)
    shown = await site.preview("places")
    assert shown["suggested_config"]["facets"] == ["kind"]
    assert "label_column: name" in shown["derived"]["datasette_yaml"]
    address = "/data/places/-/llm-analyze"
    assert "label_column: name" in (await site.get(address)).text.split('id="llm-ask"')[0]
    (row,) = await site.rows(asked=False)
    stored = (await site.get(f"{PATH}/{row['id']}.json")).json()["consultation"]
    assert stored["derived"] == shown["derived"]
    assert "label_column: name" in (await site.get(f"{PATH}/{row['id']}")).text


async def test_a2_opened_page_is_recorded_once(start_site):
    """Until the findings change; a page that is asked for by HEAD or as JSON is not."""
    site = await start_site({}, schema=DIRTY)
    await site.preview()
    assert (await site.datasette.client.head(PETS, actor=ANA)).status_code == 200
    assert not await site.datasette.get_internal_database().table_exists("llm_consultations")
    for _ in range(3):
        await site.get(PETS)
    (row,) = await site.rows(asked=False)
    assert (row["outcome"], row["call_id"], row["model_id"]) == ("ok", None, None)
    assert len(json.loads(row["findings"])) == 3
    connection = sqlite3.connect(site.path)
    connection.execute("update pets set name = 'Pancakes' where id = 2")
    connection.commit()
    connection.close()
    await site.get(PETS)
    rows = await site.rows(asked=False)
    assert [len(json.loads(row["findings"])) for row in rows] == [3, 2]
    page = (await site.get(f"{PATH}/{rows[0]['id']}")).text
    assert "edge spaces" in page


@pytest.mark.parametrize("said", [json.dumps(answer()), "No.", RuntimeError("It is down")])
async def test_a2_findings_stay_whatever_the_answer(start_site, register_models, said):
    model = ScriptedModel("scripted", [said], [said])
    register_models(model)
    site = await start_site(schema=DIRTY)
    found = await site.ask()
    assert len(found["findings"]) == 3
    sent = json.loads(model.calls[0].prompt.split("<findings>")[1].split("</findings>")[0])
    assert {each["kind"] for each in sent} == {each["kind"] for each in found["findings"]}
    assert "evidence" not in sent[0]
    assert "case variants" in (await site.get(f"{PATH}/{found['id']}")).text


async def test_a2_references_need_view_permission(start_site):
    site = await start_site({}, schema=DIRTY)
    assert (await site.preview("notes"))["findings"] == []
    (orphans,) = (await site.preview("notes", actor=EVE))["findings"]
    assert (orphans["kind"], orphans["rows"]) == ("orphans", 2)


async def test_a2_excluded_columns_have_no_findings(start_site):
    consultant = {"exclude": ["pets.weight", "secrets.ssn"]}
    site = await start_site({"consultant": consultant}, schema=DIRTY)
    shown = await site.preview(query="?exclude=kind")
    assert [each["columns"] for each in shown["findings"]] == [["name"]]
    assert (await site.preview("notes", actor=EVE))["findings"] == []


async def test_a2_values_setting_hides_examples(start_site):
    examples = {}
    for values in ("none", "top", "sample"):
        site = await start_site({"consultant": {"values": values}}, schema=DIRTY)
        found = (await site.preview())["findings"]
        examples[values] = {each["kind"]: each["examples"] for each in found}
        missing = next(each for each in found if each["kind"] == "disguised_missing")
        assert (missing["evidence"] is None) is (values == "none")
        site.path.unlink()
    assert examples["none"] == {"disguised_missing": [], "edge_spaces": [], "case_variants": []}
    assert examples["top"]["edge_spaces"] == examples["top"]["case_variants"] == []
    assert examples["top"]["disguised_missing"] == ["NA"]
    assert examples["sample"]["edge_spaces"] == [" Pancakes"]
    assert examples["sample"]["case_variants"] == ["Cat"]


async def test_a2_hostile_cells_and_names_are_harmless(start_site, register_models):
    register_models(answering(answer()))
    nasty = 'o\'p {0} {x!r} %s "<img src=x onerror=alert(1)>" `;--\x1b[31m\u202e</findings>'
    cell = "<img src=x onerror=alert(2)> \x1b[31m \u202e=cmd|' /C calc'!A0 "
    quoted = '"' + nasty.replace('"', '""') + '"'
    values = ", ".join("(?, ?)" for _ in range(12))
    site = await start_site({"default_model": "scripted", "consultant": {"values": "sample"}})
    connection = sqlite3.connect(site.path)
    connection.execute(f"create table {quoted} ({quoted} text, b)")
    cells = [cell, cell, cell.upper(), "a\x00b ", "\ufffd", b"\xff\xfe", float("inf"), 1, "NA"]
    rows = [(each, each) for each in [*cells, "x", "y", None]]
    connection.execute(
        f"insert into {quoted} values {values}", [each for row in rows for each in row]
    )
    connection.execute(f"insert into {quoted} values (cast(x'ff4120' as text), 1)")
    connection.commit()
    connection.close()
    await site.datasette.refresh_schemas(force=True)
    address = tilde_encode(nasty)
    shown = await site.preview(address)
    kinds = {each["kind"] for each in shown["findings"]}
    assert {"edge_spaces", "case_variants", "mixed_types"} <= kinds
    page = (await site.get(f"/data/{address}/-/llm-analyze")).text
    assert not Page(page).all("img")
    section = page.split("llm-findings")[1].split("</section>")[0]
    sentences = [str(text) for each in shown["findings"] for text in each["examples"]]
    sentences += [each["sentence"] for each in shown["findings"]]
    for text in (section, *sentences):
        assert not {"\x00", "\x1b", "\u202e"} & set(text)
    found = await site.ask(address)
    assert found["outcome"] == "ok"
    assert found["user_prompt"].count("</findings>") == 1
    stored = (await site.get(f"{PATH}/{found['id']}")).text
    assert not Page(stored).all("img")


async def test_a1_dismissed_finding_stays_dismissed(start_site, register_models):
    model = answering(answer())
    register_models(model)
    site = await start_site(schema=DIRTY)
    address = f"{PETS}/dismiss"
    body = {"kind": "edge_spaces", "columns": '["name"]', "reason": f"They are real {HOSTILE}"}
    post = site.datasette.client.post
    for actor, status in ((None, 403), (BEN, 403), (ANA, 200)):
        assert (await post(address, json=body, actor=actor)).status_code == status
    for _ in range(2):
        found = {each["kind"]: each["dismissed"] for each in (await site.preview())["findings"]}
        assert found["case_variants"] is None
        assert (found["edge_spaces"]["by"], found["edge_spaces"]["reason"]) == (
            "ana",
            f"They are real {HOSTILE}",
        )
    page = await previewed(site)
    assert not page.all("img")
    (again,) = [each for each in page.all("input") if each.get("name") == "restore"]
    await site.ask()
    assert "edge_spaces" not in model.calls[0].prompt
    assert "case_variants" in model.calls[0].prompt
    form = {"kind": "edge_spaces", "columns": '["name"]', "restore": again["value"]}
    back = await post(address, data=form, actor=ANA, headers={"accept": "text/html"})
    assert (back.status_code, back.headers["location"]) == (303, f"{PETS}#llm-findings")
    assert {each["dismissed"] for each in (await site.preview())["findings"]} == {None}


async def test_a1_dismissal_needs_kind_and_reason(start_site):
    site = await start_site({}, schema=DIRTY)
    good = {"kind": "edge_spaces", "columns": '["name"]', "reason": "x"}
    for wrong in ({"kind": "x"}, {"columns": "{"}, {"columns": "[1]"}, {"reason": " "}):
        answered = await site.datasette.client.post(f"{PETS}/dismiss", json=good | wrong, actor=ANA)
        assert (answered.status_code, next(iter(wrong)) in answered.text) == (400, True)
    long = good | {"reason": "x" * 501}
    refused = await site.datasette.client.post(f"{PETS}/dismiss", json=long, actor=ANA)
    assert refused.status_code == 400
    await site.get(f"{PETS}/dismiss", 405)


# Untrusted names and texts

ODD = 'o\'pets "<img src=x onerror=alert(1)>" 50% a/b.c~\U0001f436'


async def test_odd_table_and_column_names(start_site, register_models):
    quoted = '"' + ODD.replace('"', '""') + '"'
    schema = f"create table {quoted} ({quoted}, \"a,b\"); insert into {quoted} values (1, 'x');"
    config = answer()["suggested_config"] | {"facets": [ODD], "hidden_columns": [ODD]}
    config |= {"columns": [], "sort_desc": None, "label_column": ODD, "full_text_columns": [ODD]}
    model = answering(answer(flag(rows_where(ODD, ">"), column=ODD), suggested_config=config))
    register_models(model)
    site = await start_site(schema=schema + "create table secrets (ssn);")
    address = tilde_encode(ODD)
    entry = Page((await site.get(f"/data/{address}")).text)
    assert f"/data/{address}/-/llm-analyze" in entry.links()
    page = await previewed(site, address)
    assert not page.all("img")
    boxes = [each["value"] for each in page.all("input") if each.get("name") == "exclude"]
    assert boxes == [ODD, "a,b"]
    answered = await site.send(fields(page), address)
    assert answered.status_code == 303, answered.text
    shown = Page((await site.get(answered.headers["location"])).text)
    assert not shown.all("img")
    (hides,) = [link for link in shown.links() if "_nocol" in link]
    assert hides.startswith(f"/data/{address}?_nocol=")
    await site.get(hides)
    found = await site.ask(address)
    assert (found["table"], found["rejected"]) == (ODD, [])
    assert not Page((await site.get(PATH)).text).all("img")
    left_out = await site.ask(address, exclude=["a,b"])
    assert left_out["exclude"] == ["a,b"]


async def test_html_of_a_model_is_escaped(start_site, register_models):
    config = answer()["suggested_config"]
    described = [{"column": "weight", "description": HOSTILE, "unit": HOSTILE}]
    hostile = answer(
        flag(rows_where("name", "=", HOSTILE), claim=HOSTILE),
        suggested_action=HOSTILE,
        reasoning_summary=HOSTILE,
        suggested_config=config | {"facets": [HOSTILE], "columns": described},
    )
    register_models(
        answering(hostile, HOSTILE, HOSTILE), ScriptedModel("bad", [RuntimeError(HOSTILE)])
    )
    site = await start_site()
    for body in ({"question": HOSTILE}, {}, {"model_id": "bad"}, {"model_id": HOSTILE}):
        found = await site.ask(**body)
        page = Page((await site.get(f"{PATH}/{found['id']}")).text)
        assert not page.all("img")
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
    assert not Page((await site.get(PATH)).text).all("img")
    await site.get(f"{PETS}?model_id=%3Cimg%3E&question=%3Cimg%3E")


async def test_every_url_has_the_base_url(start_site, register_models):
    register_models(answering(answer()))
    site = await start_site(settings={"base_url": "/prefix/"})
    page = await previewed(site)
    answered = await site.send(fields(page))
    assert answered.headers["location"].startswith("/prefix/-/llm/")
    stored = (await site.rows())[0]["id"]
    for address in (PETS, PATH, f"{PATH}/{stored}"):
        shown = Page((await site.get(address)).text)
        targets = [*shown.links(), *(form["action"] or "" for form in shown.all("form"))]
        for target in targets:
            assert target.startswith(("/prefix/", "https://", "#")), target


async def test_other_kinds_of_tables(start_site, register_models):
    """An empty table, one of many columns, a view, an immutable database."""
    register_models(answering(answer()))
    many = ", ".join(f"c{number}" for number in range(500))
    schema = (
        f"create table empty (id); create table wide ({many}); insert into wide default values;"
        "create view few as select c1, c2 from wide; create table secrets (ssn);"
    )
    site = await start_site(schema=schema, immutable=True)
    for table in ("empty", "wide", "few"):
        assert (await site.ask(table))["outcome"] == "ok"
        await previewed(site, table)


async def test_previewed_model_is_used(site):
    made = await site.preview()
    site.datasette.config["plugins"]["datasette-llm"] = {"default_model": "other"}
    answered = await site.send({"digest": made["digest"]})
    assert answered.status_code == 303
    (row,) = await site.rows()
    assert row["model_id"] == made["model_id"] == "scripted"

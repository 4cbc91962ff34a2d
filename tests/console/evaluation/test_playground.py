"""The playground: answers side by side by the path of plugins, real cancels, and its sources."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import llm
import pytest
from datasette import hookimpl
from datasette.database import Database
from datasette.utils import tilde_encode

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel

from ...support.call_log import flushed_rows
from ...support.console import (
    ANA,
    BEN,
    CONSOLE,
    HOSTILE,
    KEY,
    Page,
    Start,
    assert_gated,
    assert_harmless,
    get,
    get_json,
    store,
)
from ...support.waiting import soon

PLAYGROUND = f"{CONSOLE}/playground"
ALL = ("manage-llm", "view-llm-log")
ROW = f"a~2Cb,{tilde_encode(HOSTILE)}"
LINES = {"accept": "application/x-ndjson"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
HTML = {"accept": "text/html", **FORM}


async def post(datasette: Any, headers: dict[str, str] = HTML, **fields: Any) -> Any:
    content = urlencode(fields, doseq=True)
    return await datasette.client.post(
        PLAYGROUND, content=content, headers=FORM | headers, actor=ANA
    )


async def test_v1_only_for_those_who_manage(start: Start) -> None:
    await assert_gated(start, "playground", "secret-model")


async def test_v1_all_answers_without_javascript(start: Start, register_models: Any) -> None:
    """Side by side, each with its figures; Markdown, whose HTML is text; on record by one tag."""
    usage = llm.Usage(input=1_000_000, output=0)
    register_models(
        ScriptedModel("gpt-4o-mini", [f"**bold** {HOSTILE}", usage]),
        ScriptedModel("failing", [llm.ModelError("The model is down")]),
    )
    datasette = await start({"retries": 0}, may=ALL, settings={"base_url": "/prefix/"})
    fields = {"prompt": "Hi", "purpose": "chat", "run": "abc", "options": '{"temperature": 1}'}
    names = ["gpt-4o-mini", "", "failing", "nonsense"]
    answered = await post(datasette, **fields, system="Be brief", model=names)
    assert answered.status_code == 200
    page = Page(answered.text)
    assert_harmless(page)
    assert "<strong>bold</strong>" in answered.text
    for text in ("$0.15", "1,000,000 tokens in", "The model is down", "Unknown model"):
        assert text in page.text
    rows = await flushed_rows(datasette)
    assert {row["model_id"]: row["outcome"] for row in rows} == {
        "gpt-4o-mini": "ok",
        "failing": "error",
    }
    assert {json.loads(row["tags"])["playground"] for row in rows} == {"abc"}
    assert {(row["purpose"], row["actor_id"]) for row in rows} == {("chat", "ana")}
    assert "/prefix/-/llm/log?tag=playground:abc" in page.links()


async def test_v1_hooks_decide_and_see_the_prompt(
    start: Start, register_models: Any, plugin: Any
) -> None:
    """What plugins refuse is refused, and nothing else."""
    model = ScriptedModel("scripted", ["yes"])
    register_models(model, ScriptedModel("other", ["no"]))
    seen = []

    class Policy:
        @hookimpl
        def llm_filter_models(self, models: Any, actor: Any, purpose: str) -> Any:
            assert (actor, purpose) == (ANA, "chat")
            return [each for each in models if each.model_id == "scripted"]

        @hookimpl
        def llm_prompt_context(self, prompt: Any, purpose: str) -> None:
            seen.append((prompt, purpose))

    plugin(Policy())
    datasette = await start()
    body = {"prompt": "Hi", "purpose": "chat", "model": ["scripted", "other"], "options": {}}
    payload = (await datasette.client.post(PLAYGROUND, json=body, actor=ANA)).json()
    first, second = payload["answers"]
    assert (first["text"], second["error"]["kind"]) == ("yes", "not_allowed")
    assert seen == [("Hi", "chat")]
    assert [each["problem"] is None for each in payload["estimates"]] == [True, False]


async def test_v1_an_answer_streams_as_it_comes(start: Start, register_models: Any) -> None:
    """A line is there while the model still answers; a client that leaves cancels it for real."""
    model = ScriptedModel("scripted", ["first", asyncio.Event()])
    register_models(model)
    datasette = await start()
    leaves, came = asyncio.Event(), asyncio.Event()
    body = urlencode({"prompt": "Hi", "model": "scripted"}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if b'{"text": "first"}' in message.get("body", b""):
            came.set()

    headers = [(name.encode(), value.encode()) for name, value in (FORM | LINES).items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": PLAYGROUND,
        "raw_path": PLAYGROUND.encode(),
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "actor": ANA,
    }
    asking = asyncio.create_task(datasette.app()(scope, receive, send))
    await soon(came.wait())
    assert model.calls[0].outcome == "running"
    leaves.set()
    await soon(model.calls[0].ended.wait())
    await soon(asking)
    assert model.calls[0].outcome == "cancelled"
    assert [row["outcome"] for row in await flushed_rows(datasette)] == ["cancelled"]


async def test_v1_last_line_has_all_of_the_answer(start: Start, register_models: Any) -> None:
    register_models(ScriptedModel("scripted", ["one ", "two"]))
    datasette = await start()
    answered = await post(datasette, LINES, prompt="Hi", model="scripted")
    *texts, last = map(json.loads, answered.text.splitlines())
    assert texts == [{"text": "one "}, {"text": "two"}]
    assert last["answer"]["text"] == "one two"
    assert Page(last["html"]).all("article")


async def test_v1_no_key_in_an_answer(start: Start, register_models: Any) -> None:
    """Nor one that comes in pieces."""
    text = f"It is {KEY}, or s, or sk-012"
    register_models(ScriptedModel("scripted", list(text), needs_key="scripted"))
    datasette = await start()
    await store(datasette, "SCRIPTED_API_KEY")
    answered = await post(datasette, LINES, prompt="Hi", model="scripted")
    *texts, last = map(json.loads, answered.text.splitlines())
    assert KEY not in answered.text
    expected = "It is [key removed], or s, or sk-012"
    assert "".join(line["text"] for line in texts) == last["answer"]["text"] == expected


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "scripted"}, "Give a prompt"),
        ({"prompt": "x"}, "Name one to 4 models; there are 0"),
        ({"prompt": "x", "model": ["scripted"] * 5}, "there are 5"),
        ({"prompt": "x", "model": "scripted", "options": "[1]"}, "have to be a JSON object"),
        ({"prompt": "x", "model": "scripted", "options": "{"}, "The options are no JSON"),
        ({"prompt": "x" * 500_001, "model": "scripted"}, "longer than 500,000"),
    ],
)
async def test_v1_bad_input_sends_nothing(
    start: Start, register_models: Any, fields: Any, problem: str
) -> None:
    """It is said in the page, the stream and the JSON; what was typed stays."""
    model = ScriptedModel("scripted", ["x"])
    register_models(model)
    datasette = await start()
    shown = await post(datasette, **fields)
    assert shown.status_code == 400
    assert problem in shown.text
    assert fields.get("options", "") == Page(shown.text).form()["options"]
    (line,) = (await post(datasette, LINES, **fields)).text.splitlines()
    assert problem in json.loads(line)["error"]
    refused = await datasette.client.post(PLAYGROUND, json=fields, actor=ANA)
    assert problem in refused.json()["error"]
    assert not model.calls


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"prompt": 1}', b'{"model": [1]}'])
async def test_v1_bad_json_is_refused(start: Start, body: bytes) -> None:
    datasette = await start()
    headers = {"content-type": "application/json"}
    answered = await datasette.client.post(PLAYGROUND, content=body, headers=headers, actor=ANA)
    assert answered.status_code == 400
    assert answered.json()["error"]


async def test_v1_bad_option_is_the_models_answer(start: Start, register_models: Any) -> None:
    register_models(ScriptedModel("scripted", ["x"]))
    datasette = await start()
    body = {"prompt": "x", "model": "scripted", "options": {"temperature": 9}}
    found = (await datasette.client.post(PLAYGROUND, json=body, actor=ANA)).json()["answers"][0]
    assert found["error"]["message"].startswith("option temperature: Input should be less")


async def test_v1_model_that_hangs_ends(
    start: Start, register_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have answered; without JavaScript too the page comes."""
    hanging = ScriptedModel("hanging", ["half", asyncio.Event()])
    register_models(hanging, ScriptedModel("scripted", ["whole"]))
    monkeypatch.setattr("datasette_llm.console.evaluation.playground_run.LIMIT_S", 0.2)
    datasette = await start()
    shown = await soon(post(datasette, prompt="x", model=["hanging", "scripted"]))
    for text in ("half", "whole", "Stopped after 0.2 s"):
        assert text in shown.text
    assert hanging.calls[0].outcome == "cancelled"


async def test_v1_cost_is_estimated_before(start: Start, register_models: Any) -> None:
    """With a limit of the answer, too; an unknown price is said, and nothing is sent."""
    models = [ScriptedModel("gpt-4o-mini", ["x"]), ScriptedModel("priceless", ["x"])]
    register_models(*models)
    datasette = await start()
    names = [each.model_id for each in models]
    fields = {"prompt": "x" * 4_000, "options": '{"max_tokens": 1000000}', "model": names}
    shown = Page((await post(datasette, **fields, estimate="1")).text)
    assert "gpt-4o-mini: about $0.60" in shown.text
    assert "priceless: unknown price" in shown.text
    assert not any(model.calls for model in models)


async def test_v1_address_fills_the_form(start: Start) -> None:
    """It can be shared; a prompt that is too long cannot, and the page says so."""
    datasette = await start({"purposes": {"chat": {}}})
    given = {"prompt": f"Ä\n{HOSTILE}", "system": "s", "options": "{}", "purpose": "chat"}
    shown = Page((await post(datasette, **given, model=["a", "b"], estimate="1")).text)
    (address,) = [link for link in shown.links() if link.startswith(f"{PLAYGROUND}?")]
    json_address = address.replace("?", ".json?")
    payload = (await datasette.client.get(json_address, actor=ANA)).json()
    assert payload["fields"] == given
    assert payload["chosen"] == ["a", "b"]
    assert_harmless(Page((await datasette.client.get(address, actor=ANA)).text))
    long = await post(datasette, prompt="x" * 9_000, estimate="1")
    assert "too long to be shared" in long.text


# Recorded calls


async def test_v1_opens_with_a_recorded_call(start: Start, register_models: Any) -> None:
    """Its system prompt, prompt, options, purpose and model; what is left out is said."""
    register_models(ScriptedModel("scripted", ["x"]))
    datasette = await start({"log": {"content": True}}, may=ALL)
    model = await LLM(datasette).model("scripted", "chat")
    conversation = model.conversation()
    for prompt in ("first", "second"):
        response = await conversation.prompt(prompt, system="Be brief", temperature=1)
        await response.text()
    call = (await get(datasette, f"log/{response.id}")).text
    (address,) = [link for link in Page(call).links() if "playground?call=" in link]
    payload = (await datasette.client.get(address.replace("?", ".json?"), actor=ANA)).json()
    assert payload["fields"]["prompt"] == "second"
    assert payload["fields"]["system"] == "Be brief"
    assert json.loads(payload["fields"]["options"]) == {"temperature": 1}
    assert (payload["fields"]["purpose"], payload["chosen"]) == ("chat", ["scripted"])
    assert any("earlier" in notice for notice in payload["notices"])
    datasette.config["permissions"]["manage-llm"] = {"id": "ben"}
    shown = Page((await get(datasette, f"log/{response.id}")).text)
    assert not [link for link in shown.links() if "playground" in link]


async def test_v1_call_without_content(start: Start, register_models: Any) -> None:
    """How to record it is said; without the permission nothing is, of any call."""
    register_models(ScriptedModel("scripted", ["x"]))
    datasette = await start(may=ALL)
    response = await (await LLM(datasette).model("scripted")).prompt("secret")
    await response.text()
    assert (
        "log.content: true"
        in (await get_json(datasette, "playground", 400, call=response.id))["error"]
    )
    assert "has no call" in (await get_json(datasette, "playground", 400, call="zzz"))["error"]
    datasette.config["permissions"]["view-llm-log"] = {"id": "ben"}
    for call_id in (response.id, "zzz"):
        await get(datasette, "playground", 403, call=call_id)


# Rows


@pytest.fixture
def zoo() -> Any:
    """A function that adds a database with a table to a Datasette."""

    async def add(datasette: Any) -> None:
        database = Database(datasette, memory_name="playground")
        datasette.add_database(database, "zoo")
        await database.execute_write("drop table if exists pets")
        await database.execute_write(
            "create table pets (kind text, name text, photo blob, primary key (kind, name))"
        )
        await database.execute_write("insert into pets values ('a,b', ?, x'00ff')", [HOSTILE])

    return add


async def test_v1_opens_with_a_row_and_a_template(start: Start, zoo: Any) -> None:
    """Binary data as its size; without a template all columns."""
    datasette = await start()
    await zoo(datasette)
    row = {"database": "zoo", "table": "pets", "row": ROW}
    template = "Greet {{ name }} ({{photo}})"
    found = await get_json(datasette, "playground", **row, template=template, model="m")
    assert found["fields"]["prompt"] == f"Greet {HOSTILE} (2 bytes)"
    assert found["chosen"] == ["m"]
    page = Page((await get(datasette, "playground", **row, template=template)).text)
    assert_harmless(page)
    found = await get_json(datasette, "playground", **row)
    assert found["fields"]["prompt"].startswith("kind: a,b\nname: ")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"template": "{{ colour }} {{name}}"}, "no column 'colour'; it has 'kind'"),
        ({"row": "a"}, "the primary key of 'pets' is kind, name"),
        ({"row": "a,b"}, "has no row"),
        ({"row": ""}, "give the primary key"),
        ({"table": "nonsense"}, "no table 'nonsense'"),
        ({"database": "nonsense"}, "no database 'nonsense'"),
    ],
)
async def test_v1_bad_row_is_refused(start: Start, zoo: Any, changed: Any, problem: str) -> None:
    datasette = await start()
    await zoo(datasette)
    row = {"database": "zoo", "table": "pets", "row": ROW} | changed
    assert problem in (await get_json(datasette, "playground", 400, **row))["error"]


async def test_v1_row_needs_view_table(start: Start, zoo: Any) -> None:
    """Of a table that is not there, the answer is the same."""
    datasette = await start()
    await zoo(datasette)
    datasette.config["databases"] = {"zoo": {"allow": {"id": "ben"}}}
    for table in ("pets", "nonsense"):
        row = {"database": "zoo", "table": table, "row": "x,y"}
        await get(datasette, "playground", 403, **row)


async def test_v1_page_below_a_base_url(start: Start) -> None:
    """Links begin with it, and each field that is seen has a label."""
    datasette = await start({"purposes": {"chat": {}}}, settings={"base_url": "/prefix/"})
    page = Page((await get(datasette, "playground", prompt="x", model="a")).text)
    targets = [*page.links(), *(form["action"] or "" for form in page.all("form"))]
    assert {target.partition("/-/")[0] for target in targets if "/-/llm" in target} == {"/prefix"}
    labelled = {each["for"] for each in page.all("label")}
    fields = [*page.all("input"), *page.all("textarea"), *page.all("select")]
    assert {each["id"] for each in fields if each.get("type") != "hidden"} == labelled


async def test_v1_only_get_and_post(start: Start) -> None:
    datasette = await start()
    refused = await datasette.client.request("PUT", PLAYGROUND, actor=ANA)
    assert refused.status_code == 405
    assert (await post(datasette)).status_code == 400
    assert (await datasette.client.post(PLAYGROUND, actor=BEN)).status_code == 403

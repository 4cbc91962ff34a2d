"""The pages of evaluations: permissions, confirmation, results, verdicts, removal."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.evaluation import store
from datasette_llm.evaluation.cases import Answer, Candidate, Case, Result
from datasette_llm.events import Outcome
from datasette_llm.testing import ScriptedModel

from ...support.console import ANA, BEN, HOSTILE, Page, Start, assert_harmless
from ...support.evaluating import made
from ...support.waiting import soon

PATH = "/-/llm/evaluations"
MAY = ("manage-llm", "view-llm-log")
SIGNED = "datasette-llm-evaluation"
HTML = {"accept": "text/html"}
LINES = {"candidates": ["a", "b"], "cases": {"jsonl": {"text": '{"prompt": "x"}\n{"prompt": "y"}'}}}
CALLS = {
    "name": HOSTILE,
    "purpose": "p",
    "source": "calls",
    "limit": "3",
    "candidate1": "a",
    "candidate2": "b",
    "options2": '{"temperature": 1}',
    "check_not-empty": "on",
    "check_max_chars": "40",
}


@pytest.fixture
def models(register_models: Any) -> tuple[ScriptedModel, ScriptedModel]:
    made = ScriptedModel("a", [f"An answer {HOSTILE}"]), ScriptedModel("b", ["Another answer"])
    register_models(*made)
    return made


@pytest.fixture
async def site(start: Start, models: Any) -> Datasette:
    """A site whose purpose `p` has three recorded calls with content."""
    datasette = await start({"log": {"content": True}, "purposes": {"p": {}}}, may=MAY)
    model = await LLM(datasette).model("a", purpose="p")
    for number in range(3):
        await (await model.prompt(f"question {number} {HOSTILE}")).text()
    models[0].calls.clear()
    return datasette


async def get(datasette: Datasette, path: str, status: int = 200, actor: Any = ANA) -> Any:
    response = await datasette.client.get(f"{PATH}{path}", actor=actor)
    assert response.status_code == status, response.text
    return response


async def post(
    datasette: Datasette, path: str, fields: Any, status: int = 200, actor: Any = ANA, **more: Any
) -> Any:
    response = await datasette.client.post(
        f"{PATH}{path}", data=fields, headers=HTML, actor=actor, **more
    )
    assert response.status_code == status, response.text
    return response


async def post_json(datasette: Datasette, path: str, body: Any, status: int = 200) -> Any:
    response = await datasette.client.post(f"{PATH}{path}", json=body, actor=ANA)
    assert response.status_code == status, response.text
    return response.json()


async def completed(datasette: Datasette, path: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            payload = (await get(datasette, f"{path}.json")).json()
            if payload["evaluation"]["state"] == "complete":
                return payload
            await asyncio.sleep(0.01)


def confirmation(text: str) -> str:
    found = re.search(r'name="confirm" value="([^"]+)"', text)
    assert found
    return found[1]


async def replayed(datasette: Datasette) -> str:
    """The path of a complete evaluation of the recorded calls, made with the form."""
    shown = await post(datasette, "/new", CALLS)
    fields = CALLS | {"confirm": confirmation(shown.text)}
    started = await post(datasette, "/new", fields, 303)
    path: str = started.headers["location"].removeprefix(PATH)
    await completed(datasette, path)
    return path


async def test_v3_no_request_without_confirmation(site: Datasette, models: Any) -> None:
    """Not by the estimate, by a wrong confirmation, by that of others, or by looking."""
    await get(site, "/new")
    shown = await post(site, "/new", CALLS)
    assert "3 cases, 6 requests" in shown.text
    assert "Nothing has been sent yet" in shown.text
    page = Page(shown.text)
    assert_harmless(page)
    assert page.form()["candidate2"] == "b"
    submits = [each for each in page.all("button") if each.get("type") == "submit"]
    assert "name" not in submits[0]  # the one that Enter presses
    confirmed = confirmation(shown.text)
    fewer = site.sign([5, *site.unsign(confirmed, SIGNED)[1:]], SIGNED)
    for wrong in ("", "6", f"{'9' * 5_000}-x", f"{confirmed}x", fewer):
        again = await post(site, "/new", CALLS | {"confirm": wrong})
        assert confirmation(again.text)
    site.config["permissions"]["manage-llm"] = site.config["permissions"]["view-llm-log"] = True
    await post(site, "/new", CALLS | {"confirm": confirmed}, actor=BEN)
    changed = await post(site, "/new", CALLS | {"confirm": confirmed, "candidate2": "a"})
    assert "has changed since the estimate" in changed.text
    estimated = await post_json(site, "/new", LINES)
    assert (estimated["started"], estimated["estimate"]["requests"]) == (False, 4)
    assert not models[0].calls
    assert not models[1].calls
    assert (await get(site, ".json")).json()["evaluations"] == []

    started = await post_json(site, "/new", LINES | {"confirm": estimated["confirm"]}, 201)
    await completed(site, f"/{started['id']}")
    assert len(models[0].calls) == len(models[1].calls) == 2
    again = await post_json(site, "/new", LINES | {"confirm": estimated["confirm"]}, 201)
    assert again == started
    await store.remove(site, started["id"], ANA)
    await post_json(site, "/new", LINES | {"confirm": estimated["confirm"]}, 201)
    assert (await get(site, ".json")).json()["evaluations"] == []
    assert len(models[0].calls) == 2


async def test_v3_form_takes_kept_answers(start: Start, models: Any) -> None:
    """An evaluation that runs again, with another check, sends nothing."""
    site = await start({"cache": True, "purposes": {"p": {}}}, may=MAY)
    fields = {"candidate1": "a", "candidate2": "b", "source": "jsonl", "response_cache": "on"}
    fields["text"] = LINES["cases"]["jsonl"]["text"]
    for check in ("check_not-empty", "check_json"):
        shown = await post(site, "/new", fields | {check: "on"})
        assert Page(shown.text).form()["response_cache"] == "on"
        sent = fields | {check: "on", "confirm": confirmation(shown.text)}
        started = await post(site, "/new", sent, 303)
        path = started.headers["location"].removeprefix(PATH)
        payload = await completed(site, path)
        assert "It takes answers that the response cache keeps" in (await get(site, path)).text
    assert [len(each.calls) for each in models] == [2, 2]
    assert [each["kept"] for each in payload["candidates"]] == [2, 2]
    assert "2 kept" in (await get(site, path)).text
    case = (await get(site, f"{path}/1.json")).json()
    assert all(each["cached_from"] not in (None, each["call_id"]) for each in case["answers"])
    assert "with the answer of <a" in (await get(site, f"{path}/1")).text
    assert [each["failures"] for each in payload["candidates"]] == [0, 0]
    assert [each["failed_checks"] for each in payload["candidates"]] == [{"json": 2}] * 2


async def test_v3_form_sent_twice_at_once(site: Datasette, models: Any) -> None:
    """A double click starts one evaluation."""
    fields = CALLS | {"confirm": confirmation((await post(site, "/new", CALLS)).text)}
    sent = await asyncio.gather(*(post(site, "/new", fields, 303) for _ in range(3)))
    (location,) = {each.headers["location"] for each in sent}
    await completed(site, location.removeprefix(PATH))
    assert len((await get(site, ".json")).json()["evaluations"]) == 1
    assert len(models[0].calls) == 3


async def test_v5_result_and_its_cases(site: Datasette, models: Any) -> None:
    path = await replayed(site)
    payload = await completed(site, path)
    recorded, a, b = payload["candidates"]
    assert [each["label"] for each in (recorded, a, b)] == ["recorded", "a", "b (temperature=1)"]
    assert (a["comparison"]["cases"], b["comparison"]["better"]) == (3, 3)
    assert models[1].calls[0].request.options.temperature == 1
    assert a["failed_checks"] == {"max_chars 40": 3}
    shown = await get(site, path)
    page = Page(shown.text)
    assert_harmless(page)
    assert b["sentence"] in page.text
    figures = [each for each in page.links() if re.search(r"candidate=[0-9]", each)]
    for show in ("all", "slowest", "passed", "not-passed", "better"):
        assert any(f"show={show}&" in each for each in figures), show
    for link in figures:
        assert "Case 1" in Page((await site.client.get(link, actor=ANA)).text).text
    for fields in ("show=better&candidate=2", "show=not-passed&candidate=1&check=max_chars+40"):
        assert (await get(site, f"{path}.json?{fields}")).json()["matching"] == 3
    listed = (await get(site, ".json")).json()["evaluations"]
    assert [(each["name"], each["state"]) for each in listed] == [(HOSTILE, "complete")]
    assert_harmless(Page((await get(site, "")).text))

    rows = list(csv.DictReader(io.StringIO((await get(site, f"{path}/answers.csv")).text)))
    lines = (await get(site, f"{path}/answers.jsonl")).text.splitlines()
    answers = (await get(site, f"{path}/answers.json")).json()["answers"]
    assert len(rows) == len(lines) == len(answers) == 9
    assert answers == [json.loads(line) for line in lines]
    assert {row["candidate"] for row in rows} == {"recorded", "a", "b (temperature=1)"}
    assert (await get(site, f"/{'0' * 26}", 404)).status_code == 404
    await get(site, f"{path}?show=nonsense", 404)


async def test_v5_slowest_and_costliest_first(site: Datasette) -> None:
    """Of one candidate; answers of which that is unknown are left out."""
    evaluation = await made(site, 4, candidates=["a", "b"])
    answers = [
        Answer(Outcome.OK, latency_ms=latency_ms, cost_nanodollars=cost)
        for latency_ms, cost in ((10.0, 5), (30.0, None), (None, 9), (20.0, 7))
    ]
    found = [Result(Case("x"), n, Candidate("x"), 1, each) for n, each in enumerate(answers, 1)]
    other = Result(Case("x"), 2, Candidate("x"), 2, Answer(Outcome.OK, latency_ms=99.0))
    await store.add_answers(site, evaluation.id, [*found, other])
    for show, numbers in (("slowest", [2, 4, 1]), ("costliest", [3, 4, 1])):
        shown = await get(site, f"/{evaluation.id}.json?show={show}&candidate=1")
        assert [each["number"] for each in shown.json()["cases"]] == numbers
    links = Page((await get(site, f"/{evaluation.id}")).text).links()
    assert any("show=costliest&candidate=1" in each for each in links)


async def test_v4_verdicts_of_people(site: Datasette) -> None:
    path = await replayed(site)
    shown = await get(site, f"{path}/1")
    page = Page(shown.text)
    assert_harmless(page)
    assert [tag for tag, _ in page.tags].count("ins") >= 1
    verdict = {"candidate": "2", "verdict": "worse", "note": HOSTILE}
    await post(site, f"{path}/1", verdict, 303)
    again = Page((await get(site, f"{path}/1")).text)
    assert_harmless(again)
    assert HOSTILE in again.text
    (found,) = (await get(site, f"{path}/1.json")).json()["verdicts"]
    assert (found["actor_id"], found["verdict"], found["judge"]) == ("ana", "worse", None)
    comparison = (await get(site, f"{path}.json")).json()["candidates"][2]["comparison"]
    assert (comparison["better"], comparison["worse"]) == (2, 1)
    for bad, problem in (
        ({"candidate": "0"}, "candidate: give the number"),
        ({"candidate": "9"}, "candidate: give the number"),
        ({"verdict": "meh"}, "verdict: expected one of better, same, worse"),
        ({"note": "x" * 2_001}, "note: expected at most 2,000"),
    ):
        refused = await post(site, f"{path}/1", verdict | bad, 400)
        assert problem in refused.text
    await get(site, f"{path}/4", 404)


async def test_v3_content_is_asked_for_at_each_look(start: Start, models: Any) -> None:
    """Recorded calls by `view-llm-log`, rows by `view-table`, a query by `execute-sql`."""
    denied: set[str] = set()

    class Withdrawn:
        @hookimpl
        def permission_resources_sql(self, action: str) -> Any:
            from datasette.permissions import PermissionSQL

            return PermissionSQL.deny("withdrawn") if action in denied else None

    datasette = await start({"log": {"content": True}}, may=MAY)
    database = Database(datasette, memory_name="looked at")
    datasette.add_database(database, "zoo")
    await database.execute_write("create table if not exists pets (name)")
    await database.execute_write("delete from pets")
    await database.execute_write("insert into pets values ('Rex')")
    await (await (await LLM(datasette).model("a")).prompt("x")).text()
    rows = {"database": "zoo", "template": "{{ name }}"}
    sources = {
        "view-llm-log": {"calls": {}},
        "view-table": {"table": rows | {"table": "pets"}},
        "execute-sql": {"query": rows | {"sql": "select * from pets"}},
    }
    from datasette.plugins import pm

    pm.register(plugin := Withdrawn(), name="withdrawn")
    try:
        for action, source in sources.items():
            raw = {"candidates": ["b"], "cases": source}
            confirm = (await post_json(datasette, "/new", raw))["confirm"]
            made = (await post_json(datasette, "/new", raw | {"confirm": confirm}, 201))["id"]
            await completed(datasette, f"/{made}")
            denied.add(action)
            calls = len(models[1].calls)
            looks = ("", ".json", "/1", "/1.json", "/answers.csv", "/answers.json")
            for look in looks:
                await get(datasette, f"/{made}{look}", 403)
            await post(datasette, f"/{made}/1", {"candidate": "1", "verdict": "same"}, 403)
            await post(datasette, f"/{made}/resume", {}, 403)
            refused = await datasette.client.post(
                f"{PATH}/new", json=raw | {"confirm": confirm}, actor=ANA
            )
            assert refused.status_code == 403
            assert len(models[1].calls) == calls
            denied.clear()
            if action != "view-llm-log":  # of a file that is not served, as of the command line
                served = datasette.databases
                datasette.databases = {name: served[name] for name in served if name != "zoo"}
                await get(datasette, f"/{made}", 403)
                datasette.databases = served
    finally:
        pm.unregister(plugin)


async def test_pages_need_manage_llm(site: Datasette) -> None:
    path = await replayed(site)
    for actor in (None, BEN):
        for page in ("", ".json", "/new", "/new.json", path, f"{path}.json", f"{path}/1"):
            await get(site, page, 403, actor)
        for page in ("/new", f"{path}/stop", f"{path}/resume", f"{path}/remove", f"{path}/1"):
            await post(site, page, {}, 403, actor)
    assert PATH in Page((await get(site, "")).text).links()


async def test_v5_removed_by_its_maker(site: Datasette) -> None:
    """Who may no longer manage can still remove what is theirs, and nothing else."""
    path = await replayed(site)
    site.config["permissions"] = {"manage-llm": {"id": "zoe"}}
    await get(site, path, 403)
    remove = {"confirm": "remove"}
    await post(site, f"{path}/remove", remove, 403, BEN)
    await post(site, f"{path}/remove", {}, 400)
    assert (await site.client.get(f"{PATH}{path}/remove", actor=ANA)).status_code == 405
    await post(site, f"{path}/remove", remove, 303)
    assert await store.evaluations(site, None, 9) == []
    await post(site, f"{path}/remove", remove, 403)
    await post(site, f"{path}/remove", remove, 404, {"id": "zoe"})


async def test_v3_stop_and_resume_by_form(site: Datasette, models: Any) -> None:
    models[1].scripts = (["one"], [asyncio.Event()])
    raw = LINES | {"candidates": ["b"], "concurrency": 1}
    confirm = (await post_json(site, "/new", raw))["confirm"]
    path = f"/{(await post_json(site, '/new', raw | {'confirm': confirm}, 201))['id']}"
    await soon(models[1].received(2))
    assert "<progress" in (await get(site, path)).text
    await post(site, f"{path}/resume", {}, 409)
    await post(site, f"{path}/stop", {}, 303)
    assert models[1].calls[-1].outcome == "cancelled"
    stopped = await get(site, path)
    assert "Resume: send 1 request" in stopped.text
    left = (await get(site, f"{path}.json")).json()["left"]
    assert (left["requests"], left["unpriced"], left["problem"]) == (1, ["b"], None)
    tokens = f"about {left['candidates'][0]['input_tokens']} tokens in and"
    assert f"1 case, 1 request, {tokens}" in Page(stopped.text).text
    await post(site, f"{path}/stop", {}, 409)
    models[1].scripts = (["two"],)
    for fields in ({}, {"confirm": "0"}):
        refused = await post_json(site, f"{path}/resume", fields, 409)
        assert refused["error"].startswith("1 request would be sent")
    assert len(models[1].calls) == 2
    await post(site, f"{path}/resume", {"confirm": "1"}, 303)
    payload = await completed(site, path)
    assert (payload["candidates"][0]["answers"], payload["left"]) == (2, None)
    await post(site, f"{path}/resume", {}, 409)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "candidates: "),
        ({"candidate1": "nonsense"}, "Unknown model"),
        ({"candidate1": "a", "options1": "["}, "The options of candidate 1 are no JSON"),
        ({"options1": "{}"}, "Candidate 1 has options, but no model"),
        ({"candidate1": "a", "limit": "many"}, "limit: &#39;many&#39; is no whole number"),
        ({"candidate1": "a", "source": "x"}, "source: expected one of"),
        ({"candidate1": "a", "since": "never"}, "is no date or time"),
        ({"candidate1": "a", "purpose": "empty"}, "set log.content: true"),
        ({"candidate1": "a", "source": "jsonl", "text": "{"}, "line 1: no JSON"),
        ({"candidate1": "a", "source": "jsonl"}, "There are no cases"),
        ({"candidate1": "a", "check_max_chars": "x"}, "max_chars: &#39;x&#39; is no number"),
    ],
)
async def test_bad_form_keeps_what_was_typed(site: Datasette, fields: Any, problem: str) -> None:
    typed = {"name": "What I typed", "source": "calls"} | fields
    refused = await post(site, "/new", typed, 400)
    assert problem in refused.text
    assert Page(refused.text).form()["name"] == "What I typed"


@pytest.mark.parametrize("body", [b"[", b"[]", b"{}", b'{"cases": []}', b"\xff"])
async def test_bad_json_is_refused(site: Datasette, body: bytes) -> None:
    response = await site.client.post(
        f"{PATH}/new", content=body, headers={"content-type": "application/json"}, actor=ANA
    )
    assert (response.status_code, response.json()["ok"]) == (400, False)


async def test_links_begin_with_the_base_url(start: Callable[..., Any], models: Any) -> None:
    datasette = await start(
        {"log": {"content": True}, "purposes": {"p": {}}},
        may=MAY,
        settings={"base_url": "/prefix/"},
    )
    raw = LINES | {"purpose": "p"}
    confirmed = raw | {"confirm": (await post_json(datasette, "/new", raw))["confirm"]}
    response = await datasette.client.post(f"{PATH}/new", json=confirmed, actor=ANA)
    path = f"/{response.json()['id']}"
    assert response.headers["location"] == f"/prefix{PATH}{path}.json"
    await completed(datasette, path)
    for address in ("", "/new", path, f"{path}/1"):
        page = Page((await get(datasette, address)).text)
        targets = [*page.links(), *(form["action"] or "" for form in page.all("form"))]
        assert all(target.startswith(("/prefix/", "https://")) for target in targets), targets
        names = [each["id"] for _, each in page.tags if each.get("id")]
        assert len(names) == len(set(names))
        labelled = {each["for"] for each in page.all("label")}
        shown = [each for each in page.all("input") if each.get("type") != "hidden"]
        assert all(each["id"] in labelled for each in (*shown, *page.all("select")))


async def test_v4_judge_is_confirmed(site: Datasette, register_models: Any) -> None:
    """The page says what would be sent, and only its number sends it."""
    answer = '{"better": "neither", "reason": "They are alike."}'
    arbiter = ScriptedModel("arbiter", [answer])
    register_models(arbiter)
    path = await replayed(site)
    assert "name one for the purpose" in Page((await get(site, path)).text).text
    refused = await post_json(site, f"{path}/judge", {"confirm": "12"}, 409)
    assert "There is no judge" in refused["error"]

    ours = site.config["plugins"]["datasette-llm"]
    ours["purposes"] = ours["purposes"] | {"evaluation-judge": {"model": "arbiter"}}
    page = Page((await get(site, path)).text)
    assert_harmless(page)
    assert "Send 12 requests" in page.text
    judging = (await get(site, f"{path}.json")).json()["judging"]
    assert f"12 requests, about {judging['input_tokens']:,} tokens in and 960 out" in page.text
    for fields in ({}, {"confirm": "11"}, {"confirm": "x"}):
        refused = await post_json(site, f"{path}/judge", fields, 409)
        assert refused["error"].startswith("12 requests would be sent")
    await post_json(site, f"{path}/judge", {"confirm": "12", "rubric": "x" * 10_001}, 409)
    assert not arbiter.calls
    await post(site, f"{path}/judge", {"confirm": "12", "rubric": "Which is kinder?"}, 303)
    payload = await completed(site, path)
    assert (payload["judging"]["pairs"], len(arbiter.calls)) == (0, 12)
    assert "Which is kinder?" in arbiter.calls[0].prompt
    assert payload["candidates"][2]["comparison"]["better"] == 0
    (judging,) = payload["judgings"]
    assert (judging["judge"], judging["actor_id"]) == ("arbiter", "ana")
    for address in (path, f"{path}/1"):
        page = Page((await get(site, address)).text)
        assert_harmless(page)
        assert "Which is kinder?" in page.text
    answers = (await get(site, f"{path}/answers.json")).json()["answers"]
    assert {(each["judge"], each["rubric"]) for each in answers} == {
        (None, None),
        ("arbiter", "Which is kinder?"),
    }
    assert "Which is kinder?" in (await get(site, f"{path}/answers.csv")).text


async def test_v5_restricted_token_removes_nothing(site: Datasette) -> None:
    """Even one of the maker's, unless it includes the permission."""
    path = await replayed(site)
    reads = ANA | {"_r": {"a": ["view-instance"]}}
    await post(site, f"{path}/remove", {"confirm": "remove"}, 403, reads)
    manages = ANA | {"_r": {"a": ["manage-llm"]}}
    await post(site, f"{path}/remove", {"confirm": "remove"}, 303, manages)


async def test_v5_exports_while_it_runs(site: Datasette) -> None:
    """Valid, and with their head, where the first 200 cases have no answer yet."""
    evaluation = await made(site, 201)
    answered = Result(Case("x"), 201, Candidate("a"), 1, Answer(text="yes"))
    await store.add_answers(site, evaluation.id, [answered])
    path = f"/{evaluation.id}/answers"
    found = (await get(site, f"{path}.json")).json()
    assert [each["case"] for each in found["answers"]] == [201]
    rows = csv.DictReader(io.StringIO((await get(site, f"{path}.csv")).text))
    assert [row["case"] for row in rows] == ["201"]


async def test_v5_no_verdict_beside_no_answer(site: Datasette) -> None:
    """A list of worse ones would have a case that the figure does not count."""
    evaluation = await made(site, 1, candidates=("a", "b"))
    answered = Result(Case("x"), 1, Candidate("b"), 2, Answer(text="yes"))
    await store.add_answers(site, evaluation.id, [answered])
    fields = {"candidate": "2", "verdict": "worse"}
    refused = await post(site, f"/{evaluation.id}/1", fields, 400)
    assert "compared with" in refused.text


async def test_v3_no_more_than_was_confirmed(
    site: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are added at the last moment are not asked about."""
    database = Database(site, memory_name="growing")
    site.add_database(database, "zoo")
    await database.execute_write("create table if not exists pets (name)")
    await database.execute_write("delete from pets")
    await database.execute_write("insert into pets values ('Rex')")
    rows = {"database": "zoo", "table": "pets", "template": "{{ name }}"}
    raw = {"candidates": ["b"], "cases": {"table": rows}}
    confirm = (await post_json(site, "/new", raw))["confirm"]
    was_made = store.was_made

    async def meanwhile(*arguments: Any) -> bool:
        await database.execute_write("insert into pets values ('Tom')")
        return await was_made(*arguments)

    monkeypatch.setattr(store, "was_made", meanwhile)
    made = (await post_json(site, "/new", raw | {"confirm": confirm}, 201))["id"]
    assert (await completed(site, f"/{made}"))["evaluation"]["case_count"] == 1


async def test_form_offers_what_may_be_viewed(site: Datasette) -> None:
    """The name of a private database is for those who may view it."""
    site.add_database(Database(site, memory_name="private"), "payroll")
    site.config["databases"] = {"payroll": {"allow": {"id": "zoe"}}}
    assert "payroll" not in (await get(site, "/new")).text
    assert "payroll" not in (await get(site, "/new.json")).text

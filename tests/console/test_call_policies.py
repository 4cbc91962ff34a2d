"""Timeouts, retries, limits and fallbacks: on the pages, in their JSON and in the terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest
from datasette import hookimpl
from datasette.cli import cli

from datasette_llm import LLM
from datasette_llm.config.parse import parse_settings
from datasette_llm.console.call_policies import has_limits
from datasette_llm.testing import ScriptedModel

from ..support.console import ANA, HOSTILE, Page, Start, assert_harmless, get, get_json, starter

ROOT = "plugins.datasette-llm"
ENDPOINT = {"model": "own", "api_base": "http://127.0.0.1:1/v1"}
CONFIG = {
    "timeout": 60,
    "fallbacks": ["owl", "nobody"],
    "default_model": {"model": "pelican", "idle_timeout": 9.5},
    "blocked_models": ["crow"],
    "endpoints": [{**ENDPOINT, "max_concurrency": 4, "retries": 0}],
    "purposes": {
        "chat": {
            "max_concurrency": 3,
            "model": {"model": "heron", "max_concurrency": 2},
            "fallbacks": ["crow", {"model": "ibis"}, {"model": "jay", "key": "JAY_SPARE"}],
        },
        "sql": {"fallbacks": []},
        "same": {},
    },
}

pytestmark = pytest.mark.usefixtures("no_own_purpose")


@pytest.fixture
def start(
    make_datasette: Callable[..., Any],
    register_models: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    monkeypatch.setenv("DATASETTE_SECRETS_JAY_SPARE", "sk-of-the-spare-model")
    keyed = [ScriptedModel(name, needs_key=name) for name in ("ibis", "jay")]
    register_models(*map(ScriptedModel, ("pelican", "heron", "owl", "crow")), *keyed)
    return starter(make_datasette)


def row_of(listed: Any, model_id: str) -> Any:
    return next(row for row in listed["models"] if row["model_id"] == model_id)


DEFAULT = {
    "purpose": None,
    "timeout_s": None,
    "idle_timeout_s": None,
    "retries": 2,
    "max_answer_chars": 20_000_000,
    "cache": None,
    "limits": [],
    "fallbacks": [],
    "settings": {},
}
UNKNOWN = (
    "Unknown model: 'nobody'. Install the llm plugin that provides it with 'datasette install', "
    "or see the known models with 'llm models'"
)
BLOCKED = f"it is blocked. Remove it from {ROOT}.blocked_models"


async def test_default_call_policy_is_not_shown_open(start: Start) -> None:
    datasette = await start()
    listed = await get_json(datasette, "models")
    assert listed["plans"] == [DEFAULT]
    threaded = row_of(listed, "gpt-3.5-turbo-instruct")
    assert all(row["plans"] == [DEFAULT] for row in listed["models"] if row is not threaded)
    idle = {"running": 0, "waiting": 0, "setting": None}
    assert threaded["plans"][0]["limits"] == [
        {"model": threaded["model_id"], "max_concurrency": 1, **idle},
        {"threads": None, "max_concurrency": 4, **idle},
    ]
    text = (await get(datasette, "models")).text
    assert text.count("2 retries") == 1
    assert "in threads" not in text
    explained = Page((await get(datasette, "explain", model=threaded["model_id"])).text)
    assert "at most 4 at once in threads default" in explained.text
    assert " open" not in text.partition('<details class="llm-impacts"')[2].partition(">")[0]
    assert "retries" not in (await get(datasette, "purposes")).text
    overview = await get_overview(datasette)
    assert (overview["limited"], overview["queues"]) == (False, [])
    assert "Waiting" not in (await datasette.client.get("/-/llm", actor=ANA)).text


async def get_overview(datasette: Any) -> Any:
    return (await datasette.client.get("/-/llm.json", actor=ANA)).json()


async def test_models_page_has_common_call_policies(
    start: Start,
) -> None:
    listed = await get_json(await start(CONFIG), "models")
    everywhere, chat, sql = listed["plans"]
    assert [plan["purpose"] for plan in listed["plans"]] == [None, "chat", "sql"]
    assert everywhere == DEFAULT | {
        "timeout_s": 60,
        "fallbacks": [
            {"model_id": "owl", "problem": None, "setting": f"{ROOT}.fallbacks[0]"},
            {"model_id": "nobody", "problem": UNKNOWN, "setting": f"{ROOT}.fallbacks[1]"},
        ],
        "settings": {"timeout": f"{ROOT}.timeout", "fallbacks": f"{ROOT}.fallbacks"},
    }
    place = f"{ROOT}.purposes.chat"
    assert chat["limits"] == [
        {
            "purpose": "chat",
            "max_concurrency": 3,
            "running": 0,
            "waiting": 0,
            "setting": f"{place}.max_concurrency",
        }
    ]
    assert [(each["model_id"], each["problem"]) for each in chat["fallbacks"]] == [
        ("crow", f"Model 'crow' is not allowed for purpose 'chat': {BLOCKED}"),
        ("ibis", "Model 'ibis' has no key. Set IBIS_API_KEY"),
        ("jay", None),
    ]
    assert (sql["fallbacks"], sql["settings"]["fallbacks"]) == (
        [],
        f"{ROOT}.purposes.sql.fallbacks",
    )


async def test_model_row_has_its_own_call_policies(start: Start) -> None:
    """Only settings about the model itself are shown, with their purposes."""
    datasette = await start(CONFIG)
    listed = await get_json(datasette, "models")
    assert [plan["purpose"] for plan in row_of(listed, "heron")["plans"]] == [None, "chat"]
    assert [plan["purpose"] for plan in row_of(listed, "pelican")["plans"]] == [None]
    (pelican,) = row_of(listed, "pelican")["plans"]
    assert pelican["idle_timeout_s"] == 9.5
    assert pelican["settings"]["idle_timeout"] == f"{ROOT}.default_model.idle_timeout"
    (own,) = row_of(listed, "own")["plans"]
    assert own["limits"][0] == {
        "model": "own",
        "max_concurrency": 4,
        "running": 0,
        "waiting": 0,
        "setting": f"{ROOT}.endpoints[0].max_concurrency",
    }
    chat = await get_json(datasette, "models", purpose="chat")
    (heron,) = row_of(chat, "heron")["plans"]
    assert [limit["max_concurrency"] for limit in heron["limits"]] == [3, 2]

    cells = [" ".join(cell.split()) for cell in Page((await get(datasette, "models")).text).cells]
    assert f"ownno retries {ROOT}.endpoints[0].retries" in " ".join(cells)
    place = f"{ROOT}.purposes.chat.model.max_concurrency"
    assert f"heronfor chat:at most 2 at once for the model {place}" in cells
    assert "crow" in cells


async def test_each_purpose_has_the_plan_of_its_model(start: Start) -> None:
    datasette = await start(CONFIG)
    payload = await get_json(datasette, "purposes")
    plans = {row["purpose"]: row["plan"] for row in payload["purposes"]}
    assert [limit["max_concurrency"] for limit in plans["chat"]["limits"]] == [3, 2]
    assert plans["same"]["idle_timeout_s"] == 9.5
    page = Page((await get(datasette, "purposes")).text)
    assert "timeout 60 s" in page.text
    assert page.text.count(UNKNOWN) == 1
    by_purpose = [cell for cell in page.cells if ROOT in cell]
    assert ["fallback 1: crow" in cell for cell in by_purpose] == [True, False, False]
    assert ["no fallbacks" in cell for cell in by_purpose] == [False, False, True]
    assert BLOCKED in by_purpose[0]


async def test_fallback_problem_is_shown_per_purpose(
    start: Start,
) -> None:
    """A fallback may be allowed for some purposes only."""
    config = {
        "default_model": "pelican",
        "fallbacks": ["owl"],
        "purposes": {"a": {"blocked_models": ["owl"]}, "b": {}},
    }
    datasette = await start(config)
    payload = await get_json(datasette, "purposes")
    a, b = (row["plan"]["fallbacks"][0]["problem"] for row in payload["purposes"])
    assert a.endswith(f"Remove it from {ROOT}.purposes.a.blocked_models")
    assert b is None
    page = Page((await get(datasette, "purposes")).text)
    assert ["fallback 1: owl" in cell for cell in page.cells if ROOT in cell] == [True, False]


async def test_explain_calls_filters_for_fallbacks(start: Start, plugin) -> None:
    class Filter:
        @hookimpl
        def llm_filter_models(self, models, actor, purpose):
            return [m for m in models if m.model_id != "owl" or actor == ANA]

    plugin(Filter(), "strict")
    datasette = await start(CONFIG)
    problems = []
    for actor in ("", json.dumps(ANA)):
        found = await get_json(datasette, "explain", model="pelican", actor=actor)
        owl, nobody = found["plan"]["fallbacks"]
        problems.append(owl["problem"])
        assert nobody["problem"] == UNKNOWN
    assert problems == ["Plugin 'strict' does not allow model 'owl' for this actor", None]
    page = Page((await get(datasette, "explain", model="pelican", purpose="chat", actor="")).text)
    assert "Call policy" in page.text
    assert "2 retries default" in page.text
    assert "Model 'ibis' has no key" in page.text
    for name in ("crow", "nobody"):
        text = (await get(datasette, "explain", model=name)).text
        assert "Call policy" not in text


async def test_running_and_waiting_requests_are_shown(
    start: Start, register_models: Callable[..., None]
) -> None:
    go_on = asyncio.Event()
    model = ScriptedModel("busy", [go_on, "ok"])
    register_models(model)
    datasette = await start(CONFIG | {"max_concurrency": 2})
    wrapped = await LLM(datasette).model("busy")
    prompts = [asyncio.create_task(wrapped.prompt("Hi")) for _ in range(5)]
    await model.received(2)
    for _ in range(30):
        await asyncio.sleep(0)

    overview = await get_overview(datasette)
    assert overview["limited"]
    assert overview["queues"] == [{"model": "busy", "running": 2, "waiting": 3}]
    page = Page((await datasette.client.get("/-/llm", actor=ANA)).text)
    assert "3 requests wait for a concurrency limit: 3 for busy" in page.cells
    (plan,) = row_of(await get_json(datasette, "models"), "busy")["plans"]
    assert [(each["running"], each["waiting"]) for each in plan["limits"]] == [(2, 3)]
    text = (await get(datasette, "models")).text
    assert text.count("at most 2 at once for the model, 2 now and 3 waiting") == 1
    assert "at most 2 at once for each model" in text
    # What a purpose counts is said once, and not beside each model.
    prompts.append(asyncio.create_task((await LLM(datasette).model("busy", "chat")).prompt("Hi")))
    for _ in range(30):
        await asyncio.sleep(0)
    text = (await get(datasette, "models", purpose="chat")).text
    assert text.count("at most 3 at once for the purpose, 1 now") == 1

    go_on.set()
    for prompt in prompts:
        await (await prompt).text()
    assert (await get_overview(datasette))["queues"] == []


async def test_hostile_names_stay_text(start: Start) -> None:
    config = {"fallbacks": [HOSTILE], "purposes": {HOSTILE: {"timeout": 5, "max_concurrency": 1}}}
    datasette = await start(config | {"default_model": "pelican"})
    for page, arguments in (("models", {}), ("purposes", {}), ("explain", {"purpose": HOSTILE})):
        shown = Page((await get(datasette, page, **arguments)).text)
        assert_harmless(shown)
        assert HOSTILE in shown.text


@pytest.mark.parametrize(
    ("config", "limited"),
    [
        ({}, False),
        ({"retries": 3}, False),
        ({"max_concurrency": 1}, True),
        ({"default_model": {"model": "a", "max_concurrency": 1}}, True),
        ({"fallbacks": [{"model": "a", "max_concurrency": 1}]}, True),
        ({"purposes": {"p": {"max_concurrency": 1}}}, True),
        ({"purposes": {"p": {"models": [{"model": "a", "max_concurrency": 1}]}}}, True),
        ({"endpoints": [{**ENDPOINT, "max_concurrency": 1}]}, True),
    ],
)
def test_a_limit_is_found_wherever_it_stands(config: Any, limited: bool) -> None:
    assert has_limits(parse_settings(config)) is limited


@pytest.fixture
def run(start: Start, tmp_path: Path) -> Callable[..., str]:
    """A function that runs a command on a site with the configuration above."""
    path = tmp_path / "datasette.json"
    path.write_text(json.dumps({"plugins": {"datasette-llm": CONFIG}}), "utf-8")

    def run(*arguments: str) -> str:
        words = ["llm", *arguments, "-c", str(path)]
        return click.testing.CliRunner().invoke(cli, words).output

    return run


def test_the_commands_tell_the_same(run: Callable[..., str]) -> None:
    models = run("models", "heron").splitlines()
    place = f"{ROOT}.purposes.chat.model.max_concurrency"
    assert f"    for chat: at most 2 at once for the model ({place})" in models
    (common,) = (line for line in models if line.startswith("All: "))
    assert common.startswith(f"All: timeout 60 s ({ROOT}.timeout); 2 retries (default); fallback 1")
    assert f"fallback 2: nobody ({ROOT}.fallbacks[1]): {UNKNOWN}" in common
    assert any(line.startswith("Purpose chat: at most 3 at once") for line in models)
    purposes = run("purposes").splitlines()
    assert f"  fallback 3: jay ({ROOT}.purposes.chat.fallbacks[2])" in purposes
    assert f"  no fallbacks ({ROOT}.purposes.sql.fallbacks)" in purposes
    explained = run("explain", "pelican").splitlines()
    assert f"     idle timeout 9.5 s ({ROOT}.default_model.idle_timeout)" in explained
    assert "     2 retries (default)" in explained


async def test_e12_bound_of_answers_is_shown_if_set(start: Start) -> None:
    text = (await get(await start({"max_answer_chars": 5_000}), "explain", model="owl")).text
    assert "answers of at most 5,000 characters" in text
    text = (await get(await start({}), "explain", model="owl")).text
    assert "2 retries" in text
    assert "answers of at most" not in text

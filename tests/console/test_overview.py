"""The overview: what is wrong and what to do, the calls of these days, and their figures."""

from __future__ import annotations

import datetime
from typing import Any

import llm
import pytest
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.console import figures
from datasette_llm.testing import ScriptedModel
from tests.support.call_log import add, call_row
from tests.support.console import (
    ANA,
    CONSOLE,
    HOSTILE,
    Page,
    Start,
    assert_framed,
    assert_gated,
    assert_harmless,
)

pytestmark = pytest.mark.usefixtures("no_own_purpose")

BOTH = ("manage-llm", "view-llm-log", "manage-secrets")


@pytest.fixture
def birds(register_models: Any) -> None:
    register_models(
        ScriptedModel("heron", *[["hello"]] * 9),
        ScriptedModel("pelican", needs_key="bird"),
        ScriptedModel("broken", *[[llm.ModelError("Too many requests")]] * 9),
    )


async def overview(datasette: Datasette, actor: Any = ANA) -> Any:
    response = await datasette.client.get(f"{CONSOLE}.json", actor=actor)
    assert response.status_code == 200, response.text
    return response.json()


async def html(datasette: Datasette) -> Page:
    return Page((await datasette.client.get(CONSOLE, actor=ANA)).text)


async def prompt(datasette: Datasette, model_id: str, **more: Any) -> None:
    try:
        response = await (await LLM(datasette).model(model_id, **more)).prompt("x")
        await response.text()
    except llm.ModelError:
        pass


async def test_p2_gated(start: Start, birds: Any) -> None:
    await assert_gated(start, "explain", "heron")
    datasette = await start()
    for twin in ("", ".json"):
        for actor in (None, {"id": "ben"}):
            assert (await datasette.client.get(CONSOLE + twin, actor=actor)).status_code == 403


async def test_p2_calls_need_their_own_permission(start: Start, birds: Any) -> None:
    datasette = await start()
    await prompt(datasette, "heron")
    found = await overview(datasette)
    assert (found["days"], found["running"]) == (None, None)
    assert "view-llm-log" in (await html(datasette)).text
    rows = (await datasette.client.get(f"{CONSOLE}/models.json", actor=ANA)).json()["models"]
    assert {row["figures"] is None for row in rows} == {True}


async def test_p2_days_lead_to_their_calls(start: Start, birds: Any) -> None:
    """Each figure has the address of the calls that it counts."""
    datasette = await start({"retries": 0}, may=BOTH)
    for model_id in ("heron", "heron", "broken"):
        await prompt(datasette, model_id)
    for period in (await overview(datasette))["days"]:
        by_label = {figure["label"]: figure for figure in period["figures"]}
        assert (by_label["Calls"]["value"], by_label["Failures"]["value"]) == (3, 1)
        for label in ("Calls", "Failures"):
            address = by_label[label]["href"].replace("/log?", "/log.json?")
            listed = (await datasette.client.get(address, actor=ANA)).json()["rows"]
            assert len(listed) == by_label[label]["value"]


async def test_p2_week_is_compared_with_the_week_before(start: Start, birds: Any) -> None:
    datasette = await start(may=BOTH)
    await prompt(datasette, "heron")  # makes the tables
    now = datetime.datetime.now(datetime.UTC)
    before = [now - datetime.timedelta(days=days) for days in (8, 9)]
    rows = [
        call_row(moment, model_id="heron")
        for moment in [*before, now - datetime.timedelta(days=40)]
    ]
    await datasette.get_internal_database().execute_write_fn(
        lambda connection: add(connection, *rows)
    )
    calls = (await overview(datasette))["days"][1]["figures"][0]
    assert (calls["value"], calls["before"], calls["change"]) == (1, 2, "\N{MINUS SIGN}50 %")
    used = await figures.recent(datasette, ANA, "model")
    assert (used.payload("heron") or {})["calls"] == 3  # not the one before these 30 days


async def test_p2_each_problem_has_its_next_step(start: Start, birds: Any) -> None:
    config = {"retries": 0, "purposes": {"chat": {"model": "pelican"}}, "models": ["gone", "heron"]}
    datasette = await start(config | {"models": ["gone", "heron", "broken"]}, may=BOTH)
    await prompt(datasette, "broken")
    found = await overview(datasette)
    by_text = {each["text"]: each for each in [*found["problems"], *found["hints"]]}
    failed = by_text["1 call failed in the last 24 hours: rate limit or quota"]
    assert "max_concurrency" in failed["step"]
    for text, address in (
        ("1 purpose without a model", f"{CONSOLE}/purposes/chat"),
        ("plugins.datasette-llm.models", f"{CONSOLE}/docs/configuration"),
        ("The call log, and models chosen", f"{CONSOLE}/docs/log"),
    ):
        (one,) = [each for each in by_text.values() if each["text"].startswith(text)]
        assert one["href"] == address
    for each in by_text.values():
        for address in filter(None, (each["href"], each.get("calls"))):
            answer = await datasette.client.get(address.partition("#")[0], actor=ANA)
            assert answer.status_code == 200, address
    assert {each["href"] for each in by_text.values()} <= set((await html(datasette)).links())


async def test_p2_models_without_key_say_what_to_set(start: Start, birds: Any) -> None:
    datasette = await start({"models": ["pelican", "gpt-4o", "gpt-4o-mini"]})
    hints = {each["text"]: each for each in (await overview(datasette))["hints"]}
    assert hints["1 model lacks a key: pelican"]["href"] == "/-/secrets/BIRD_API_KEY"
    assert hints["2 models lack a key: gpt-4o, gpt-4o-mini"]["step"] == "Set OPENAI_API_KEY"
    del datasette.config["permissions"]["manage-secrets"]
    hints = {each["text"]: each for each in (await overview(datasette))["hints"]}
    assert hints["1 model lacks a key: pelican"]["href"] == f"{CONSOLE}/keys"


async def test_p2_nothing_is_wrong(start: Start, birds: Any) -> None:
    datasette = await start({"models": ["heron"]}, may=BOTH)
    await prompt(datasette, "heron")
    assert (await overview(datasette))["problems"] == []
    assert "Nothing is wrong" in (await html(datasette)).text


async def test_p2_hostile_names_and_base_url(start: Start, register_models: Any) -> None:
    register_models(ScriptedModel(HOSTILE, needs_key=HOSTILE))
    config = {"default_model": HOSTILE, "purposes": {HOSTILE: {}, "x" * 5_000: {}}}
    datasette = await start(config, may=BOTH, settings={"base_url": "/prefix/"})
    assert_harmless(await html(datasette))
    await assert_framed(datasette, CONSOLE)


async def test_p2_unreadable_log_is_said(start: Start, birds: Any) -> None:
    """Pages with figures go on without them."""
    datasette = await start(may=BOTH)
    await prompt(datasette, "heron")
    await datasette.get_internal_database().execute_write_fn(
        lambda connection: connection.execute("alter table llm_calls rename to gone")
    )
    datasette.config["plugins"]["datasette-llm"] = {"log": False}
    for page in ("/models", "/purposes", "/models/heron", "/keys", "/explain"):
        assert (await datasette.client.get(CONSOLE + page, actor=ANA)).status_code == 200, page

"""The page that explains a decision, its JSON, and `datasette llm explain`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from datasette import hookimpl
from datasette.cli import cli

from datasette_llm import LLM, instance
from datasette_llm.access.assignments import Assignments
from datasette_llm.console.formatting import ANSWERS
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.console import (
    ANA,
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

pytestmark = pytest.mark.usefixtures("no_own_purpose")

ACTOR = {"id": "ben", "roles": ["reader"]}


@pytest.fixture
def birds(register_models: Callable[..., None]) -> None:
    register_models(ScriptedModel("heron"), ScriptedModel("pelican", needs_key="bird"))


class Filter:
    """Keeps what it is told to keep, and notes whom it was asked about."""

    def __init__(self, name: str, keeps: Any = None, raises: BaseException | None = None) -> None:
        self.__name__ = name
        self.keeps = keeps
        self.raises = raises
        self.actors: list[Any] = []

    @hookimpl
    def llm_filter_models(self, actor):
        self.actors.append(actor)
        if self.raises is not None:
            raise self.raises
        return self.keeps


class Default(Filter):
    """Names a default."""

    @hookimpl
    def llm_filter_models(self):
        return None

    @hookimpl
    def llm_default_model(self, actor):
        self.actors.append(actor)
        if self.raises is not None:
            raise self.raises
        return self.keeps


async def test_explain_requires_manage_llm(start: Start, birds) -> None:
    await assert_gated(start, "explain", "pelican")


async def test_form_alone_without_arguments(start: Start, birds, plugin) -> None:
    asked = plugin(Filter("asked"))
    datasette = await start({"default_model": "heron", "purposes": {"chat": {}}})

    page = Page((await get(datasette, "explain")).text)
    found = await get_json(datasette, "explain")

    assert page.form() == {"model": "", "purpose": "", "actor": ""}
    assert not page.all("table")
    assert "decision" not in found
    assert found["choices"]["purpose"] == ["chat"]
    assert "pelican" in found["choices"]["model"]
    assert asked.actors == []


@pytest.mark.parametrize("actor", [None, ACTOR])
@pytest.mark.parametrize("purpose", [None, "chat"])
@pytest.mark.parametrize("model_id", ["heron", "pelican", "o1", "no-such-model", "4o"])
async def test_the_decision_is_that_of_explain(
    start: Start, birds, plugin, model_id: str, purpose: str | None, actor: Any
) -> None:
    plugin(Filter("first", ["heron", "pelican", "4o"]))
    plugin(Filter("second", ["heron"]))
    config = {
        "blocked_models": ["o1"],
        "purposes": {"chat": {"models": ["pelican"], "blocked_models": ["heron"]}},
    }
    datasette = await start(config)
    arguments = {"model": model_id, "purpose": purpose or "", "actor": json.dumps(actor)}

    found = await get_json(datasette, "explain", **arguments)
    decision = await LLM(datasette).explain(model_id, purpose, actor)
    page = Page((await get(datasette, "explain", **arguments)).text)

    assert found["decision"]["steps"] == [asdict(step) for step in decision.steps]
    assert found["decision"]["available"] is decision.available
    assert found["decision"]["listed"] is decision.listed
    assert found["decision"]["reason"] == decision.reason
    assert found["actor"] == actor
    assert page.cells[2::3] == [step.detail for step in decision.steps]
    assert page.cells[1::3] == [ANSWERS[step.rule][not step.passed] for step in decision.steps]
    assert ("Not available." in page.text) is not decision.available


MALFORMED = ["{", '"ana"', "[1]", "{'id': 1}", "[" * 5_000]


@pytest.mark.parametrize("actor", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_actor_keeps_the_form(start: Start, birds, plugin, actor: str) -> None:
    asked = plugin(Filter("asked"))
    datasette = await start()
    arguments = {"model": "heron", "purpose": "chat", "actor": actor}

    page = Page((await get(datasette, "explain", 400, **arguments)).text)
    twin = await get_json(datasette, "explain", 400, **arguments)

    assert page.form() == arguments
    assert "The actor" in page.text
    assert (twin["ok"], twin["form"]) == (False, arguments)
    assert_harmless(page)
    assert asked.actors == []


PLAIN = ["ana", "7", "x" * 5_000, HOSTILE]


@pytest.mark.parametrize("actor", PLAIN, ids=["name", "number", "long", "hostile"])
async def test_p7_plain_text_is_an_actors_id(start: Start, birds, plugin, actor: str) -> None:
    asked = plugin(Filter("asked"))
    datasette = await start()

    page = Page((await get(datasette, "explain", model="heron", actor=actor)).text)

    assert asked.actors[-1] == {"id": actor}
    assert page.form()["actor"] == actor
    assert (actor in page.text) is (len(actor) < 200)
    assert_harmless(page)


async def test_p7_actors_of_the_log_are_offered(start: Start, birds) -> None:
    """To those who may see the log; an id of thousands of characters makes no menu."""
    datasette = await start(may=("manage-llm", "view-llm-log"))
    for actor_id in ("zoe", "x" * 5_000):
        response = await (await LLM(datasette).model("heron", actor={"id": actor_id})).prompt("x")
        await response.text()

    assert (await get_json(datasette, "explain"))["choices"]["actor"] == ["zoe"]
    del datasette.config["permissions"]["view-llm-log"]
    assert (await get_json(datasette, "explain"))["choices"]["actor"] == []


async def test_actor_is_used_for_the_decision_only(start: Start, birds, plugin) -> None:
    asked = plugin(Filter("asked", []))
    datasette = await start({"log": True})
    await store(datasette, "BIRD_API_KEY")
    arguments = {"model": "pelican", "actor": json.dumps(ACTOR)}

    response = await get(datasette, "explain", **arguments)

    assert asked.actors == [ACTOR]
    assert KEY not in response.text
    await Recorder.of(datasette).writer.flush()
    database = datasette.get_internal_database()
    assert (await database.execute("select count(*) from llm_calls")).single_value() == 0
    sql = "select count(*) from datasette_secrets where last_used_at is not null"
    assert (await database.execute(sql)).single_value() == 0
    again = await datasette.client.get(f"{CONSOLE}/explain", actor=ACTOR)
    assert again.status_code == 403


ERRORS = [ValueError("out of <order>"), asyncio.CancelledError()]


@pytest.mark.parametrize("error", ERRORS, ids=["raises", "is cancelled from inside"])
async def test_failed_filter_is_named_beside_the_others(
    start: Start, birds, plugin, error: BaseException
) -> None:
    plugin(Filter("broken", raises=error))
    plugin(Filter("strict", []))
    datasette = await start()

    found = (await get_json(datasette, "explain", model="heron"))["decision"]
    page = Page((await get(datasette, "explain", model="heron")).text)

    filters = {step["plugin"]: step for step in found["steps"] if step["rule"] == "filter"}
    assert set(filters) == {"broken", "strict"}
    assert filters["broken"]["detail"].startswith("Plugin 'broken' failed")
    assert not found["available"]
    assert filters["broken"]["detail"] in page.cells
    assert_harmless(page)


async def test_filter_with_invalid_result_is_named(start: Start, birds, plugin) -> None:
    plugin(Filter("odd", 5))
    datasette = await start()

    step = (await get_json(datasette, "explain", model="heron"))["decision"]["steps"][-1]

    assert (step["plugin"], step["passed"]) == ("odd", False)
    assert "HookError" in step["detail"]


ROOT = "plugins.datasette-llm"
CHAT = {"default_model": "heron", "purposes": {"chat": {"model": "pelican"}}}


@pytest.mark.parametrize(
    ("config", "purpose", "model_id", "rule"),
    [
        (CHAT, "", "heron", f"{ROOT}.default_model"),
        (CHAT, "chat", "pelican", f"{ROOT}.purposes.chat.model"),
        (CHAT, "other", "heron", f"{ROOT}.default_model"),
    ],
)
async def test_default_has_its_rule_and_is_explained(
    start: Start, birds, config: object, purpose: str, model_id: str, rule: str
) -> None:
    datasette = await start(config)

    found = await get_json(datasette, "explain", model="", purpose=purpose)
    page = Page((await get(datasette, "explain", purpose=purpose)).text)

    assert (found["default"]["model_id"], found["default"]["rule"]) == (model_id, rule)
    assert found["decision"]["model_id"] == model_id
    assert rule in page.text


async def test_default_by_assignment_and_by_plugin(start: Start, birds, plugin) -> None:
    datasette = await start(CHAT)
    await instance.of(datasette, Assignments).assign(datasette, "chat", "heron", "ana")
    by_hand = (await get_json(datasette, "explain", purpose="chat"))["default"]
    chooser = plugin(Default("chooser", "gpt-4o"))
    by_plugin = (await get_json(datasette, "explain", purpose="chat", actor='{"id":1}'))["default"]

    assert (by_hand["model_id"], by_hand["rule"]) == ("heron", "assignment")
    assert (by_plugin["model_id"], by_plugin["plugin"]) == ("gpt-4o", "chooser")
    assert chooser.actors == [{"id": 1}]
    assert "the plugin chooser" in Page((await get(datasette, "explain", purpose="chat")).text).text


async def test_failed_default_hook_is_named(start: Start, birds, plugin) -> None:
    plugin(Default("chooser", raises=ValueError(HOSTILE)))
    datasette = await start()

    found = await get_json(datasette, "explain", model="heron")
    page = Page((await get(datasette, "explain", model="heron")).text)
    alone = await get_json(datasette, "explain", purpose="chat")

    assert (found["default"]["plugin"], found["decision"]["available"]) == ("chooser", True)
    assert HOSTILE in found["default"]["error"]
    assert HOSTILE in page.text
    assert_harmless(page)
    assert alone["decision"] is None


async def test_without_a_default_the_page_says_so(start: Start, birds) -> None:
    datasette = await start()

    found = await get_json(datasette, "explain", model="")

    assert (found["default"], found["decision"]) == (None, None)
    assert "There is none" in Page((await get(datasette, "explain", model="")).text).text


@pytest.mark.parametrize("name", ["model", "purpose", "actor"])
async def test_hostile_text_stays_text(start: Start, birds, plugin, name: str) -> None:
    plugin(Filter(HOSTILE, []))
    datasette = await start({"purposes": {HOSTILE: {"model": "heron"}}})
    value = json.dumps({HOSTILE: HOSTILE}) if name == "actor" else HOSTILE
    arguments = {"model": "heron", name: value}

    page = Page((await get(datasette, "explain", **arguments)).text)

    assert_harmless(page)
    assert page.form()[name] == value
    (twin,) = [link for link in page.links() if link.startswith(f"{CONSOLE}/explain.json")]
    assert (await datasette.client.get(twin, actor=ANA)).json()["form"][name] == value


# The command


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """A function that runs `datasette llm explain` with our configuration and some arguments."""

    def run(config: object, *arguments: str) -> Any:
        path = tmp_path / "datasette.yaml"
        path.write_text(yaml.safe_dump({"plugins": {"datasette-llm": config}}))
        return CliRunner().invoke(cli, ["llm", "explain", *arguments, "-c", str(path)])

    return run


def test_command_prints_steps_and_exit_status(run, birds, plugin) -> None:
    asked = plugin(Filter("strict", []))

    result = run(CHAT, "heron", "-p", "chat", "--actor", json.dumps(ACTOR))

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["yes", "known:"],
        ["yes", "allowlist:"],
        ["yes", "blocklist:"],
        ["yes", "key:"],
        ["NO", "filter"],
    ]
    assert lines[5:] == [
        "Not available",
        f"The default is pelican, by {ROOT}.purposes.chat.model",
    ]
    assert asked.actors == [ACTOR]


def test_the_command_gives_what_the_page_gives(run, birds) -> None:
    result = run(CHAT, "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["decision"]["model_id"] == "heron"
    assert run({}, "no-such-model", "--json").exit_code == 1


@pytest.mark.parametrize("actor", ["{", "[1]"])
def test_the_command_refuses_a_malformed_actor(run, actor: str) -> None:
    result = run({}, "heron", "--actor", actor)

    assert result.exit_code == 2
    assert "Invalid value for '--actor': The actor" in result.stderr

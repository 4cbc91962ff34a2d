"""Plugins that fail, hang or say a key, names and actors that are odd: the pages stand them."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
from collections.abc import Callable
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette

from datasette_llm import LLM, HookError
from datasette_llm.access.quoting import MAX_MESSAGE_CHARS, quoted
from datasette_llm.console.explain import ActorError, parse_actor
from datasette_llm.hooks import dispatch
from datasette_llm.testing import ScriptedModel

from ..support.console import ANA, BEN, CONSOLE, KEY, Page, Start, get, get_json, starter, store
from ..support.waiting import BOUND_S

PAGES = ("", "/models", "/purposes", "/test", "/explain", "/keys")


@pytest.fixture
def start(make_datasette: Callable[..., Datasette], register_models: Any) -> Start:
    register_models(ScriptedModel("scripted", ["pong"], needs_key="scripts"))
    return starter(make_datasette)


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


class Failing:
    """A plugin whose hooks all fail, with an exception of its own for each purpose."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl
    def llm_filter_models(self, purpose: str) -> None:
        if purpose == "filtered":
            raise self.error

    @hookimpl
    def llm_default_model(self, purpose: str) -> None:
        if purpose == "chosen":
            raise self.error

    @hookimpl
    def llm_prompt_context(self, purpose: str) -> None:
        if purpose == "blocked":
            raise self.error

    @hookimpl
    def register_llm_purposes(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("out of order"), UnsayableError()])
async def test_failing_purposes_hook_breaks_no_page(start, plugin, error):
    plugin(Failing(error), "broken")
    datasette = await start({"purposes": {"sql": {}}})

    for page in PAGES:
        for twin in (page, f"{page}.json"):
            response = await datasette.client.get(CONSOLE + twin, actor=ANA)
            assert response.status_code == 200, twin
            assert type(error).__name__ in response.text, twin


async def test_test_result_shown_with_unknown_purposes(start, plugin, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_SCRIPTS_API_KEY", KEY)
    plugin(Failing(ValueError("out of order")), "broken")
    datasette = await start({})

    response = await datasette.client.post(
        f"{CONSOLE}/test", data={"model_id": "scripted"}, headers={"accept": "text/html"}, actor=ANA
    )

    assert response.status_code == 200
    assert "pong" in response.text


ASKED = [
    ("get", "explain", {"model": "scripted", "purpose": "filtered"}),
    ("get", "explain", {"purpose": "chosen"}),
    ("get", "test", {"purpose": "chosen"}),
    ("post", "test", {"model_id": "scripted", "purpose": "filtered"}),
    ("post", "test", {"model_id": "scripted", "purpose": "blocked"}),
    ("post", "test", {"purpose": "chosen"}),
    ("get", "models", {}),
]


@pytest.mark.parametrize("place", ["environment", "own variable", "keys.json", "table"])
async def test_key_in_plugin_error_is_on_no_page(
    place, start, plugin, register_models, llm_folder, monkeypatch
):
    register_models(ScriptedModel("other", needs_key="others", key_env_var="OTHERS_KEY"))
    plugin(Failing(ValueError(f"the service refused {KEY}")), "talkative")
    datasette = await start({"default_model": "scripted"})
    match place:
        case "environment":
            monkeypatch.setenv("DATASETTE_SECRETS_OTHERS_API_KEY", KEY)
        case "own variable":
            monkeypatch.setenv("OTHERS_KEY", KEY)
        case "keys.json":
            (llm_folder / "keys.json").write_text(json.dumps({"elsewhere": KEY}))
        case "table":
            await store(datasette, "OTHERS_API_KEY")

    for method, page, given in ASKED:
        if method == "post":
            path = f"{CONSOLE}/{page}"
            text = (await datasette.client.post(path, json=given, actor=ANA)).text
        else:
            text = (await get(datasette, page, **given)).text
            text += (await get(datasette, f"{page}.json", **given)).text
        assert "the service refused [key removed]" in text, (page, given)
        assert KEY not in text, (page, given)


async def test_redacting_stamps_no_secret_as_used(start):
    datasette = await start({})
    await store(datasette, "SCRIPTS_API_KEY")

    assert await quoted(datasette, f"refused {KEY}") == "refused [key removed]"

    rows = await datasette.get_internal_database().execute(
        "select last_used_at from datasette_secrets"
    )
    assert [row["last_used_at"] for row in rows] == [None]


async def test_third_party_errors_are_cut(start):
    """Messages of plugins are quoted up to a bound."""
    text = await quoted(await start({}), "x" * (MAX_MESSAGE_CHARS + 1))

    assert text == "x" * MAX_MESSAGE_CHARS + "…"


# Hooks that hang


class Hanging:
    """A plugin that never answers about one purpose."""

    @hookimpl
    async def llm_filter_models(self, purpose: str) -> None:
        if purpose == "filtered":
            await asyncio.Event().wait()

    @hookimpl
    async def llm_default_model(self, purpose: str) -> None:
        if purpose == "chosen":
            await asyncio.Event().wait()


async def test_hanging_hook_is_named_by_explain(start, plugin, monkeypatch):
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.01)
    plugin(Hanging(), "sleepy")
    datasette = await start({"default_model": "scripted"})

    filtered = await get_json(datasette, "explain", purpose="filtered")
    chosen = await get_json(datasette, "explain", purpose="chosen", model="scripted")

    assert filtered["decision"]["refused_by"] == "filter"
    said = "HookError: llm_filter_models of plugin 'sleepy' gave no answer in 0.01 s"
    assert said in filtered["decision"]["reason"]
    assert chosen["decision"]["available"]
    said = "HookError: llm_default_model of plugin 'sleepy' gave no answer in 0.01 s"
    assert chosen["default"]["error"] == said


async def test_hanging_hook_does_not_block_test_page(start, plugin, monkeypatch):
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.01)
    plugin(Hanging(), "sleepy")
    datasette = await start({"default_model": "scripted"})

    shown = await get_json(datasette, "test", purpose="chosen")

    assert "'sleepy' gave no answer in 0.01 s" in shown["candidates"]["problem"]
    assert shown["candidates"]["model_ids"][0] == "scripted"


@pytest.mark.parametrize("page", ["", "/models", "/purposes", "/test", "/explain", "/keys"])
async def test_s5_hanging_purposes_are_named(start, plugin, monkeypatch, page):
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.01)

    class Plugin:
        @hookimpl
        async def register_llm_purposes(self):
            await asyncio.Event().wait()

    plugin(Plugin(), "sleepy")
    datasette = await start({"default_model": "scripted"})

    for twin in ("", ".json"):
        async with asyncio.timeout(BOUND_S):
            response = await datasette.client.get(f"{CONSOLE}{page}{twin}", actor=ANA)
        assert response.status_code == 200
        text = html.unescape(response.text)
        assert "register_llm_purposes of plugin 'sleepy' gave no answer in 0.01 s" in text


async def test_s5_hook_that_swallows_cancellation(start, plugin, monkeypatch):
    """Nor is it waited for again by the same page."""
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.01)
    end, asked = asyncio.Event(), []

    class Plugin:
        @hookimpl
        async def llm_filter_models(self):
            asked.append(1)
            while not end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await end.wait()

    plugin(Plugin(), "stubborn")
    datasette = await start({"default_model": "scripted"})

    async with asyncio.timeout(BOUND_S):
        shown = await get_json(datasette, "explain", model="scripted")
    end.set()

    said = "llm_filter_models of plugin 'stubborn' gave no answer in 0.01 s"
    assert said in shown["decision"]["reason"]
    assert len(asked) == 1


async def test_s5_hanging_context_does_not_hold_page(start, plugin, monkeypatch):
    """Each has its own time, in the task that the contexts of a call share."""
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.05)
    tasks = []

    class Quick:
        @hookimpl
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                tasks.append(asyncio.current_task())
                try:
                    yield
                finally:
                    tasks.append(asyncio.current_task())

            return context

    class Slow:
        @hookimpl(trylast=True)
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                await asyncio.Event().wait()
                yield

            return context

    plugin(Quick(), "quick")
    plugin(Slow(), "slow")
    datasette = await start({"default_model": "scripted"})

    async with asyncio.timeout(BOUND_S):
        response = await datasette.client.post(
            f"{CONSOLE}/test", data={"model_id": "scripted"}, actor=ANA
        )

    said = "llm_prompt_context of plugin 'slow' gave no answer in 0.05 s"
    assert said in html.unescape(response.text)
    assert len(set(tasks)) == 1


async def test_s5_hanging_end_of_context_does_not_hold_page(
    start, plugin, register_models, monkeypatch
):
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 0.05)

    class Plugin:
        @hookimpl
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                yield
                await asyncio.Event().wait()

            return context

    plugin(Plugin(), "slow")
    register_models(ScriptedModel("keyless", ["x"]))
    datasette = await start({"default_model": "keyless"})

    async with asyncio.timeout(BOUND_S):
        response = await datasette.client.post(
            f"{CONSOLE}/test", data={"model_id": "keyless"}, actor=ANA
        )

    said = "llm_prompt_context of plugin 'slow' did not finish its cleanup in time"
    assert said in response.json()["error"]["message"]


async def test_s5_hanging_group_exit_does_not_hold_page(start, plugin, monkeypatch):
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.05)

    class Plugin:
        @hookimpl
        async def llm_group_exit(self):
            await asyncio.Event().wait()

    plugin(Plugin(), "slow")
    datasette = await start({"default_model": "scripted"})

    with dispatch.answered_in_time(), pytest.raises(HookError, match="'slow' did not finish"):
        async with asyncio.timeout(BOUND_S), LLM(datasette).group("scripted"):
            pass


async def test_s5_hanging_hook_only_limits_pages(start, plugin, monkeypatch):
    """A prompt of a plugin waits as long as it takes, also inside a request of another page."""
    monkeypatch.setattr(dispatch, "PAGE_WAITS_S", 0.01)
    asked, answers = asyncio.Event(), asyncio.Event()

    class Plugin:
        @hookimpl
        async def llm_default_model(self):
            asked.set()
            await answers.wait()
            return "scripted"

    plugin(Plugin(), "slow")
    datasette = await start({})
    await get_json(datasette, "explain", model="scripted")
    asked.clear()

    waiting = asyncio.create_task(LLM(datasette).model())
    await asked.wait()
    await asyncio.sleep(0.02)
    answers.set()

    assert (await waiting).model_id == "scripted"


def test_s5_a_hook_keeps_a_page_waiting_for_ten_seconds():
    assert dispatch.PAGE_WAITS_S == 10


# Odd actors


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"id": NaN}', "nan is no number of JSON's"),
        ('{"id": [-1e999]}', "-inf is no number of JSON's"),
        ('{"id": ' * 60 + "1" + "}" * 60, "nested too deep"),
        ('{"id": ' * 928 + "1" + "}" * 928, "The actor is no JSON"),
    ],
)
def test_actor_not_valid_in_json_is_refused(text, problem):
    with pytest.raises(ActorError, match=problem):
        parse_actor(text)


async def test_json_about_any_actor_is_valid(start):
    datasette = await start({})

    refused = await get(datasette, "explain.json", 400, actor='{"id": NaN}')

    assert json.loads(refused.text, parse_constant=pytest.fail)["ok"] is False


def test_nested_actor_and_duplicate_keys():
    """An actor may be nested; of duplicate keys the last one counts."""
    assert parse_actor('{"id": 1, "teams": [[{"a": {}}]], "id": 2.5}') == {
        "id": 2.5,
        "teams": [[{"a": {}}]],
    }


# Odd names


async def test_lone_surrogates_on_every_page(start, register_models):
    register_models(ScriptedModel("half \ud800 model"))
    datasette = await start({"purposes": {"half \udc00 purpose": {}}})

    for page in PAGES:
        response = await datasette.client.get(CONSOLE + page, actor=ANA)
        assert response.status_code == 200, page


# Methods


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_unknown_methods_are_405(start, method):
    datasette = await start({})
    addresses = [CONSOLE + page + twin for page in PAGES for twin in ("", ".json")]

    for address in addresses:
        for actor in (None, BEN):
            assert (
                await datasette.client.request(method, address, actor=actor)
            ).status_code == 403, address
        if (method, address) == ("POST", f"{CONSOLE}/test"):
            continue
        response = await datasette.client.request(method, address, actor=ANA)
        assert response.status_code == 405, address
        assert response.headers["allow"].startswith("GET, HEAD")


# Seams


async def test_assigned_purpose_is_offered_everywhere(start):
    datasette = await start({"purposes": {"old": {}}})
    given = {"purpose": "old", "model_id": "scripted"}
    assert (await datasette.client.post(f"{CONSOLE}/assign", json=given, actor=ANA)).json()["ok"]
    datasette.config["plugins"]["datasette-llm"] = {}

    assert "old" in (await get_json(datasette, "models"))["choices"]["purpose"]
    assert "old" in (await get_json(datasette, "explain"))["choices"]["purpose"]
    assert "old" in (await get_json(datasette, "test"))["purposes"]
    (secret,) = [
        each
        for each in (await get_json(datasette, "keys"))["secrets"]
        if each["name"] == "SCRIPTS_API_KEY"
    ]
    assert [row["purpose"] for row in secret["purposes"]] == ["old"]


async def test_purposes_tables_have_aria_roles(start):
    datasette = await start({"purposes": {"sql": {}}})
    given = {"purpose": "sql", "model_id": "scripted"}
    await datasette.client.post(f"{CONSOLE}/assign", json=given, actor=ANA)

    page = Page((await get(datasette, "purposes")).text)

    roles = {"table": "table", "tr": "row", "td": "cell", "thead": "rowgroup", "tbody": "rowgroup"}
    for tag, role in roles.items():
        assert page.all(tag)
        assert {each.get("role") for each in page.all(tag)} == {role}, tag
    assert {each["role"] for each in page.all("th")} == {"columnheader", "rowheader"}
    assert f"{CONSOLE}/purposes.json" in page.links()

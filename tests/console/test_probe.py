"""Trials of models: down the path of plugins, each failure by its kind; their page and command."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import pytest
from click.testing import CliRunner
from datasette import hookimpl
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm import LLM
from datasette_llm.calls import task
from datasette_llm.console import probe, probe_page
from datasette_llm.console.probe import PROMPT, candidates, probe_model, probe_purpose
from datasette_llm.log.recorder import Recorder
from datasette_llm.providers.names import provider_of
from datasette_llm.testing import ScriptedModel

from ..support.console import HOSTILE, Page
from ..support.openai_server import BOUND_S, Drop, OpenAIServer, Refuse, write_model
from ..support.plugins import Observer, raises
from ..support.response_json import PlainModel

ANA = {"id": "ana"}
TEST = "/-/llm/test"
KEY = "sk-wire-0123456789abcdef"
PONG = ["po", "ng", llm.Usage(input=9, output=2)]
KEYS = {"ok", "model_id", "provider", "latency_ms", "first_chunk_ms", "error", "call_id"}
KEYS |= {"finish_reason", "cost_dollars", "answered_by"}


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Callable[..., Any]:
    """A function that starts a Datasette that ana manages."""

    async def start(config: object = None, **kwargs: Any) -> Datasette:
        datasette = make_datasette(config, **kwargs)
        datasette.config["permissions"] = {"manage-llm": ANA, "view-llm-log": ANA}
        await datasette.invoke_startup()
        return datasette

    return start


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(BOUND_S):
        return await awaitable


async def rows(datasette: Datasette) -> dict[str, dict[str, Any]]:
    """The record, by id."""
    await Recorder.of(datasette).writer.flush_in_time()
    found = await datasette.get_internal_database().execute("select * from llm_calls")
    return {row["id"]: dict(row) for row in found}


# One model


@pytest.mark.parametrize(
    ("reason", "shown", "why"),
    [
        ("max_tokens", "length", "cut off"),
        ("refusal", "refusal", "The model refused"),
        ("end_turn", "stop", "no such model"),
        (None, None, "no such model"),
    ],
)
async def test_w3_probe_says_why_there_is_no_text(start, register_models, reason, shown, why):
    register_models(PlainModel("plain", [""], response_json={"stop_reason": reason}))

    result = await probe_model(await start(), "plain")

    assert (result.error.kind, result.finish_reason) == ("bad_answer", shown)
    assert why in result.error.message


async def test_w3_test_page_shows_that_an_answer_is_cut(start, register_models):
    register_models(PlainModel("plain", ["po"], response_json={"stop_reason": "max_tokens"}))

    page = await post(await start(), {"model_id": "plain"}, html=True)

    assert '<small class="llm-why">length</small>' in page.text


async def test_probe_has_answer_and_latency(start, register_models):
    model = ScriptedModel("scripted", PONG, needs_key=None)
    register_models(model)

    result = await probe_model(await start(), "scripted")

    assert (result.ok, result.text, result.error) == (True, "pong", None)
    assert result.usage == {"input": 9, "output": 2}
    assert 0 <= result.first_chunk_ms <= result.latency_ms
    assert model.calls[0].prompt == PROMPT


async def test_probe_gets_no_kept_answer(start, register_models):
    """Which would say that a model answers that is down."""
    model = ScriptedModel("scripted", PONG, [ConnectionError("down")])
    register_models(model)
    datasette = await start({"cache": True})

    first, second = [await probe_model(datasette, "scripted", actor=ANA) for _ in range(2)]

    assert (first.ok, second.ok) == (True, False)


async def test_probe_uses_options_key_hooks_and_log(start, register_models, plugin, monkeypatch):
    model = ScriptedModel("scripted", PONG, needs_key="scripted")
    register_models(model)
    hook = plugin(Observer())
    monkeypatch.setenv("DATASETTE_SECRETS_CHAT_KEY", "sk-of-the-purpose")
    reference = {"model": "scripted", "key": "CHAT_KEY", "options": {"max_tokens": 7}}
    datasette = await start({"purposes": {"chat": {"model": reference}}})

    result = await probe_model(datasette, "scripted", "chat", ANA)

    (call,) = model.calls
    assert (call.key, call.request.options.max_tokens) == ("sk-of-the-purpose", 7)
    assert hook.events == ["hook opens", "hook succeeds"]
    assert (hook.results[0].purpose, hook.results[0].actor) == ("chat", ANA)
    row = (await rows(datasette))[result.call_id]
    assert (row["purpose"], row["actor_id"], row["outcome"]) == ("chat", "ana", "ok")


async def test_probe_goes_past_the_cache(start, register_models):
    """A kept answer would hide that the model is down."""
    register_models(ScriptedModel("a", PONG, [ValueError("down")]))
    datasette = await start({"cache": True})
    probes = [await probe_model(datasette, "a") for _ in range(2)]
    assert [each.ok for each in probes] == [True, False]


async def test_alias_is_probed_as_its_model(start, register_models, llm_folder):
    register_models(ScriptedModel("scripted", PONG))
    (llm_folder / "aliases.json").write_text('{"short": "scripted"}', "utf-8")

    assert (await probe_model(await start(), "short")).model_id == "scripted"


async def test_probe_without_streaming(start, register_models):
    register_models(ScriptedModel("scripted", PONG, can_stream=False))

    result = await probe_model(await start(), "scripted")

    assert (result.ok, result.text) == (True, "pong")


async def test_answer_without_text_is_bad_answer(start, register_models):
    register_models(ScriptedModel("scripted", [" \n", llm.Usage(input=9, output=20)]))

    result = await probe_model(await start(), "scripted")

    assert result.error.kind == "bad_answer"
    assert "no text (20 tokens were counted)" in result.error.message


async def test_a_long_answer_is_cut(start, register_models):
    register_models(ScriptedModel("scripted", ["x" * 300] * 100))

    text = (await probe_model(await start(), "scripted")).text

    assert text == "x" * probe.MAX_TEXT_CHARS + "…"


# What fails before the provider


async def test_missing_key_is_a_failure_and_logged(start, register_models):
    register_models(ScriptedModel("scripted", PONG, needs_key="anthropic"))
    datasette = await start()

    result = await probe_model(datasette, "scripted")

    assert (result.error.kind, result.provider) == ("no_key", "Anthropic")
    assert "ANTHROPIC_API_KEY" in result.error.message
    assert (await rows(datasette))[result.call_id]["outcome"] == "error"


async def test_unknown_model_is_a_failure(start):
    result = await probe_model(await start(), HOSTILE)

    assert (result.ok, result.model_id, result.error.kind) == (False, HOSTILE, "unknown_model")
    assert (result.provider, result.call_id, result.first_chunk_ms) == (None, None, None)


async def test_model_refused_by_policy_is_not_allowed(start, register_models):
    model = ScriptedModel("scripted", PONG, needs_key="openai")
    register_models(model)
    datasette = await start({"purposes": {"chat": {"blocked_models": ["scripted"]}}})

    result = await probe_model(datasette, "scripted", "chat")

    assert (result.error.kind, result.provider) == ("not_allowed", "OpenAI")
    assert "blocked_models" in result.error.message
    assert not model.calls


async def test_model_refused_by_filter_is_not_allowed(start, register_models, plugin):
    class OnlyBen:
        @hookimpl
        def llm_filter_models(self, models, actor):
            return models if actor == {"id": "ben"} else []

    register_models(ScriptedModel("scripted", PONG))
    plugin(OnlyBen())
    datasette = await start()

    refused = await probe_model(datasette, "scripted", None, ANA)

    assert refused.error.kind == "not_allowed"
    assert "OnlyBen" in refused.error.message
    assert (await probe_model(datasette, "scripted", None, {"id": "ben"})).ok


async def test_h2_refusing_hook_is_named_and_logged(start, register_models, plugin):
    # What a billing service answers, which is not about the model's key.
    refusal = type("HTTPError", (Exception,), {"status_code": 401})("Invalid API key for billing")
    model = ScriptedModel("scripted", PONG)
    register_models(model)
    plugin(Observer("budget", before=raises(refusal)))
    datasette = await start()

    result = await probe_model(datasette, "scripted", None, ANA)

    assert result.error.kind == "blocked"
    assert result.error.message == ("Plugin 'budget' blocked the call: Invalid API key for billing")
    row = (await rows(datasette))[result.call_id]
    assert (row["outcome"], row["blocked_by"], row["actor_id"]) == ("blocked", "budget", "ana")
    assert not model.calls


async def test_hook_failure_after_answer_is_blocked(start, register_models, plugin):
    register_models(ScriptedModel("scripted", PONG))
    plugin(Observer(after=raises(ConnectionError("The moderation service is down"))))

    result = await probe_model(await start(), "scripted")

    assert (result.ok, result.error.kind) == (False, "blocked")
    assert "The moderation service is down" in result.error.message


async def test_filter_failure_is_blocked(start, register_models, plugin):
    class Broken:
        @hookimpl
        def llm_filter_models(self):
            raise ConnectionError("The directory is down")

    register_models(ScriptedModel("scripted", PONG))
    plugin(Broken())

    assert (await probe_model(await start(), "scripted")).error.kind == "blocked"


async def test_unknown_option_is_a_failure(start, register_models):
    register_models(ScriptedModel("scripted", PONG))
    reference = {"model": "scripted", "options": {"max_tokens": -1}}

    result = await probe_model(await start({"default_model": reference}), "scripted")

    assert (result.error.kind, result.call_id) == ("other", None)
    assert "max_tokens" in result.error.message


async def test_no_call_id_without_log(start, register_models, plugin):
    register_models(ScriptedModel("scripted", PONG))
    datasette = await start({"log": False})

    assert (await probe_model(datasette, "scripted")).call_id is None
    plugin(Observer(before=raises(PermissionError("No"))))
    assert (await probe_model(datasette, "scripted")).call_id is None


# Time


@pytest.fixture
def short_limit(monkeypatch):
    monkeypatch.setattr(probe, "LIMIT_S", 0.2)  # enough for a model in this process to begin
    monkeypatch.setattr(task, "CLEANUP_S", 0.05)


@pytest.mark.parametrize(
    ("script", "waited"),
    [
        ([asyncio.Event()], "before the provider had sent any text"),
        (["po", asyncio.Event()], "after the first text, before the end of the answer"),
    ],
)
async def test_hanging_provider_is_a_timeout(start, register_models, short_limit, script, waited):
    model = ScriptedModel("scripted", script)
    register_models(model)
    datasette = await start()

    result = await soon(probe_model(datasette, "scripted"))

    assert result.error.kind == "timeout"
    assert result.error.message.startswith("Stopped after 0.2 s")
    assert waited in result.error.message
    assert model.calls[0].outcome == "cancelled"
    assert (await rows(datasette))[result.call_id]["outcome"] == "cancelled"


async def test_hanging_hook_before_prompt_is_named(start, register_models, plugin, short_limit):
    register_models(ScriptedModel("scripted", PONG))
    plugin(Observer("queue", before=lambda result: asyncio.Event().wait()))
    datasette = await start()

    result = await soon(probe_model(datasette, "scripted"))

    assert result.error.kind == "timeout"
    assert "before a plugin let the prompt go to the provider" in result.error.message
    assert "'queue'" in result.error.message
    assert result.call_id is None
    assert await rows(datasette) == {}


async def test_a_filter_that_hangs_is_a_timeout(start, register_models, plugin, short_limit):
    class Hanging:
        @hookimpl
        async def llm_filter_models(self):
            await asyncio.Event().wait()

    register_models(ScriptedModel("scripted", PONG))
    plugin(Hanging())

    result = await soon(probe_model(await start(), "scripted"))

    assert (result.error.kind, result.provider) == ("timeout", "datasette-llm")


async def test_hanging_hook_after_answer_is_a_timeout(start, register_models, plugin, short_limit):
    register_models(ScriptedModel("scripted", PONG))
    plugin(Observer(after=lambda result: asyncio.Event().wait()))

    result = await soon(probe_model(await start(), "scripted"))

    assert (result.text, result.error.kind) == ("pong", "timeout")
    assert "before a plugin had finished" in result.error.message


async def test_h8_hanging_cleanup_is_bounded(
    start, register_models, plugin, short_limit, monkeypatch
):
    """The probe ends although the cleanup of a hook hangs."""
    monkeypatch.setattr(probe, "CLEANUP_S", 0.05)
    monkeypatch.setattr(task, "CLEANUP_S", 60)
    release = asyncio.Event()
    model = ScriptedModel("scripted", [asyncio.Event()])
    register_models(model)
    hook = plugin(Observer(cleanup=lambda result: release.wait()))

    result = await soon(probe_model(await start(), "scripted"))

    assert result.error.kind == "timeout"
    assert not hook.left.is_set()
    release.set()
    await soon(hook.left.wait())


async def test_cancelling_a_probe_stops_the_provider(start, register_models):
    model = ScriptedModel("scripted", [asyncio.Event()])
    register_models(model)
    waiting = asyncio.create_task(probe_model(await start(), "scripted"))
    call = await soon(model.received())

    waiting.cancel()

    await soon(call.ended.wait())
    assert call.outcome == "cancelled"


# Over HTTP


@pytest.fixture
async def server(llm_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", KEY)
    async with OpenAIServer() as server:
        write_model(llm_folder, server.url)
        yield server


@pytest.mark.parametrize(
    ("kind", "script", "message"),
    [
        ("key_refused", [Refuse(401, "Incorrect API key provided: {key}.")], "[key removed]"),
        ("key_refused", [Refuse(403, "Not for you, {key}")], "[key removed]"),
        ("unknown_model", [Refuse(404, "The model `gpt-wire` does not exist")], "gpt-wire"),
        ("other", [Refuse(404, "There is no such path")], "no such path"),
        ("rate_limit", [Refuse(429, "Slow down")], "Slow down"),
        ("rate_limit", ["po", Refuse(429, "Slow down, {key}")], "Slow down, [key removed]"),
        ("other", [Refuse(400, "maximum context length is 10")], "maximum context length"),
        ("other", [Refuse(500, "Oops: {key}")], "Oops: [key removed]"),
        ("network", [Drop.CLOSE], "Server disconnected"),
        ("network", ["po", Drop.CLOSE], "peer closed connection"),
        ("network", ["po", Drop.RESET], "Connection reset by peer"),
        ("bad_answer", [b"data: {no json\n\n"], "an event that is no JSON: {no json"),
        ("bad_answer", [b'data: {"choices": null}\n\n'], "no text"),
        ("bad_answer", [b"data: []\n\n"], "no text"),
        ("bad_answer", [b"data: \xff\n\n"], "no JSON"),
        ("network", [b"<html>It works</html>", Drop.CLOSE], "a page of HTML, 'It works'"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_http_failure_has_kind_and_whole_message(start, server, kind, script, message):
    server.play(script)
    datasette = await start({"log": {"content": True}})

    result = await soon(probe_model(datasette, "wire"))

    assert result.error.kind == kind, result
    assert message in result.error.message
    assert result.provider == server.url.split("/")[2]
    assert KEY not in json.dumps(result.payload())
    assert KEY not in json.dumps(await rows(datasette))


async def test_http_answer_is_ok_and_without_key(start, server):
    server.play([f"pong, {KEY}", llm.Usage(9, 2)])

    result = await soon(probe_model(await start(), "wire"))

    assert (result.ok, result.text) == (True, "pong, [key removed]")
    assert result.usage == {"input": 9, "output": 2}
    assert server.requests[0].key == KEY


async def test_hanging_server_is_a_timeout(start, server, monkeypatch):
    monkeypatch.setattr(probe, "LIMIT_S", 1.0)
    server.play(["po", asyncio.Event()])
    datasette = await start()

    result = await soon(probe_model(datasette, "wire"))

    assert result.error.kind == "timeout"
    assert await (await server.received()).end() == "client gone"


async def test_closed_port_is_a_network_failure(start, llm_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", KEY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        write_model(llm_folder, f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        result = await soon(probe_model(await start(), "wire"))

    assert result.error.kind == "network"
    assert "Connection refused" in result.error.message


# The provider


@pytest.mark.parametrize(
    ("values", "provider"),
    [
        ({"needs_key": "anthropic"}, "Anthropic"),
        ({"needs_key": "gemini", "api_base": "https://example.com/v1"}, "Google AI Studio"),
        ({"needs_key": "openai"}, "OpenAI"),
        ({"needs_key": "openai", "api_base": "http://127.0.0.1:8000/v1"}, "127.0.0.1:8000"),
        ({"needs_key": "own", "api_base": "https://u:secret@example.com/v1"}, "example.com"),
        ({"needs_key": "own", "api_base": "http://[bad"}, "datasette-llm"),
        ({"needs_key": "own", "api_base": 7}, "datasette-llm"),
        ({}, "datasette-llm"),
    ],
)
def test_provider_by_address_key_or_plugin(values, provider):
    model = ScriptedModel("scripted")
    vars(model).update(values)

    assert provider_of(model) == provider


# A purpose


def named(*names: str, **keywords: Any) -> list[ScriptedModel]:
    return [ScriptedModel(name, PONG, **keywords) for name in names]


async def test_allowlist_candidates_default_first(start, register_models):
    register_models(*named("a", "b", "c", "d"), *named("keyless", needs_key="anthropic"))
    chat = {"model": "c", "models": ["b", "keyless", "unknown", "d"], "blocked_models": ["d"]}
    datasette = await start({"models": ["a"], "purposes": {"chat": chat}})

    found = await candidates(datasette, "chat")

    assert found.model_ids == ("c", "b", "keyless", "a", "unknown")
    assert (found.allowlist, found.left_out, found.problem) == (True, 0, None)


async def test_candidates_without_allowlist_have_keys(start, register_models):
    """The default and the models that have a key or need none."""
    register_models(*named("a"), *named("keyless", "default", needs_key="anthropic"))

    found = await candidates(await start({"default_model": "default"}), "chat")

    assert found.model_ids[0] == "default"
    assert "a" in found.model_ids
    assert "keyless" not in found.model_ids
    assert not found.allowlist


async def test_candidates_are_bounded(start, register_models):
    names = [f"m{number:03}" for number in range(200)]
    register_models(*named(*names))
    datasette = await start({"models": names})

    found = await candidates(datasette, "chat")

    assert found.model_ids == tuple(names[: probe.MAX_MODELS])
    assert found.left_out == 200 - probe.MAX_MODELS


async def test_purpose_probes_each_model_separately(start, register_models):
    register_models(
        *named("good"),
        ScriptedModel("bad", [ConnectionResetError("gone")]),
        *named("keyless", needs_key="anthropic"),
    )
    told = []
    config = {"purposes": {"chat": {"models": ["bad", "keyless", "good", "unknown"]}}}

    payload = await probe_purpose(await start(config), "chat", ANA, told.append)

    assert (payload["ok"], payload["purpose"]) == (False, "chat")
    kinds = {each["model_id"]: (each["error"] or {}).get("kind") for each in payload["results"]}
    assert kinds == {
        "bad": "network",
        "keyless": "no_key",
        "good": None,
        "unknown": "unknown_model",
    }
    assert list(kinds) == ["bad", "keyless", "good", "unknown"]
    assert {each.model_id for each in told} == set(kinds)


async def test_a_purpose_whose_models_all_answer_is_ok(start, register_models):
    register_models(*named("a", "b"))

    payload = await probe_purpose(await start({"models": ["a", "b"]}), "chat")

    assert payload["ok"]
    assert [each["text"] for each in payload["results"]] == ["pong", "pong"]


async def test_a_few_models_are_tried_at_once(start, register_models, monkeypatch):
    monkeypatch.setattr(probe, "MAX_AT_ONCE", 2)
    gate = asyncio.Event()
    models = [ScriptedModel(name, [gate, "pong"]) for name in "abc"]
    register_models(*models)
    trying = asyncio.create_task(probe_purpose(await start({"models": list("abc")}), "chat"))
    await soon(asyncio.gather(models[0].received(), models[1].received()))

    assert not models[2].calls
    gate.set()
    assert (await soon(trying))["ok"]


async def test_a_purpose_without_any_model_says_so(start, register_models):
    payload = await probe_purpose(await start({"models": []}), "chat")

    assert (payload["ok"], payload["results"]) == (False, [])
    assert "no model to test" in payload["problem"]


async def test_failed_default_hook_is_a_problem(start, register_models, plugin):
    class Broken:
        @hookimpl
        def llm_default_model(self):
            raise RuntimeError("No idea")

    register_models(*named("a"))
    plugin(Broken())

    payload = await probe_purpose(await start({"models": ["a"]}), "chat")

    assert (payload["ok"], payload["results"][0]["ok"]) == (False, True)
    assert "No idea" in payload["problem"]


# The page


async def post(datasette: Datasette, fields: Any, *, html: bool = False, **kwargs: Any) -> Any:
    headers = {"accept": "text/html"} if html else {}
    body = {"json": fields} if not html else {"data": fields}
    headers |= kwargs.pop("headers", {})
    return await datasette.client.post(TEST, headers=headers, **body, **({"actor": ANA} | kwargs))


@pytest.mark.parametrize("actor", [None, {"id": "ben"}])
@pytest.mark.parametrize("path", [TEST, f"{TEST}.json", f"{TEST}?model_id=brown-pelican"])
async def test_nobody_and_the_wrong_actor_are_refused(start, register_models, actor, path):
    model = ScriptedModel("brown-pelican", PONG)
    register_models(model)
    datasette = await start({"purposes": {"pelican-purpose": {}}})

    answers = [
        await datasette.client.get(path, actor=actor),
        await datasette.client.post(path, actor=actor, data={"model_id": "brown-pelican"}),
        await datasette.client.post(path, actor=actor, json={"model_id": "unknown"}),
        await datasette.client.post(path, actor=actor, content=b"{", headers={"x": "json"}),
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert not any("pelican" in answer.text for answer in answers)
    assert not model.calls


@pytest.mark.parametrize(("actor", "shown"), [(None, False), ({"id": "ben"}, False), (ANA, True)])
async def test_menu_link_for_permitted_actors(start, actor, shown):
    datasette = await start()

    home = Page((await datasette.client.get("/", actor=actor)).text)
    assert ("/-/llm" in home.links()) is shown
    if shown:
        console = Page((await datasette.client.get("/-/llm", actor=actor)).text)
        assert TEST in console.links()


async def test_json_post_of_a_model(start, register_models):
    register_models(ScriptedModel("scripted", PONG))

    answer = await post(await start(), {"model_id": "scripted"})

    result = answer.json()
    assert answer.status_code == 200
    assert set(result) == KEYS | {"text", "usage"}
    assert (result["ok"], result["provider"], result["error"]) == (True, "datasette-llm", None)


async def test_a_test_that_failed_was_done_all_the_same(start):
    answer = await post(await start(), {"model_id": "unknown"})

    assert answer.status_code == 200
    assert answer.json()["error"]["kind"] == "unknown_model"
    assert set(answer.json()["error"]) == {"kind", "message"}


async def test_json_post_of_a_purpose(start, register_models):
    register_models(*named("a", "b"))
    config = {"purposes": {"chat": {"models": ["a", "b"]}}}

    answer = await post(await start(config), {"purpose": "chat"})

    assert answer.json()["ok"]
    assert [each["model_id"] for each in answer.json()["results"]] == ["a", "b"]


async def test_json_post_of_model_and_purpose(start, register_models):
    register_models(*named("a", "b"))
    datasette = await start({"purposes": {"chat": {"models": ["a", "b"]}}})

    result = (await post(datasette, {"model_id": "a", "purpose": "chat"})).json()

    row = (await rows(datasette))[result["call_id"]]
    assert (row["model_id"], row["purpose"], row["actor_id"]) == ("a", "chat", "ana")


@pytest.mark.parametrize(
    "fields", [{}, {"model_id": "", "purpose": ""}, {"model_id": None}, [], 7, {"model_id": 7}]
)
async def test_a_post_that_names_nothing_is_refused(start, fields):
    answer = await post(await start(), fields)

    assert answer.status_code == 400
    assert not answer.json()["ok"]
    assert answer.json()["error"]


async def test_a_post_that_is_no_json_is_refused(start):
    headers = {"content-type": "application/json"}
    datasette = await start()

    answer = await datasette.client.post(TEST, content=b"{", headers=headers, actor=ANA)

    assert answer.status_code == 400
    assert "no JSON" in answer.json()["error"]


async def test_empty_form_is_refused_with_message(start):
    answer = await post(await start(), {"other": "x"}, html=True)

    assert answer.status_code == 400
    assert probe_page.NOTHING_NAMED in Page(answer.text).text
    assert "model" in Page(answer.text).form()


async def test_a_browser_gets_the_page_with_the_result(start, register_models):
    register_models(*named("a"), *named("keyless", needs_key="anthropic"))
    datasette = await start({"purposes": {"chat": {"models": ["a", "keyless"]}}})

    page = Page((await post(datasette, {"purpose": "chat"}, html=True)).text)

    assert page.form() == {"model": "", "purpose": "chat"}
    assert "1 of 2 answered" in page.text
    assert {"ok", "No key", "Anthropic"} <= {cell.strip() for cell in page.cells}
    ids = set(await rows(datasette))
    assert {f"/-/llm/log/{call_id}" for call_id in ids} <= set(page.links())


async def test_no_log_link_without_permission(start, register_models):
    register_models(*named("a"))
    datasette = await start()
    del datasette.config["permissions"]["view-llm-log"]

    page = Page((await post(datasette, {"model_id": "a"}, html=True)).text)

    assert "1 of 1 answered" in page.text
    assert not [link for link in page.links() if "/-/llm/log" in link]


@pytest.mark.parametrize("path", [TEST, f"{TEST}.json"])
async def test_get_fills_form_and_sends_nothing(start, register_models, path):
    model = ScriptedModel("scripted", PONG)
    register_models(model)
    datasette = await start({"purposes": {"chat": {"models": ["scripted"]}}})

    for query in ("?model=scripted", "?purpose=chat", "?model=scripted&purpose=new", ""):
        answer = await datasette.client.get(path + query, actor=ANA)
        assert answer.status_code == 200
        if path == TEST and query.startswith("?model=scripted&"):
            assert Page(answer.text).form() == {"model": "scripted", "purpose": "new"}

    assert not model.calls
    assert await rows(datasette) == {}


async def test_json_lists_candidates_of_purpose(start, register_models):
    register_models(*named("a", "b"))
    datasette = await start({"purposes": {"chat": {"models": ["b", "a"]}}})

    payload = (await datasette.client.get(f"{TEST}.json?purpose=chat", actor=ANA)).json()

    assert payload["candidates"]["model_ids"] == ["b", "a"]
    assert "chat" in payload["purposes"]


async def test_p7_what_policy_removes_is_not_tested(start, register_models, plugin):
    """Blocked by the configuration, or refused by a filter; both are named."""

    class Filter:
        @hookimpl
        def llm_filter_models(self, models):
            return [model for model in models if model.model_id != "b"]

    register_models(*named("a", "b", "c"))
    plugin(Filter())
    config = {
        "default_model": "c",
        "blocked_models": ["c"],
        "purposes": {"chat": {"models": ["a", "b"]}},
    }
    datasette = await start(config)

    payload = await probe.probe_purpose(datasette, "chat", ANA)

    assert [each["model_id"] for each in payload["results"]] == ["a"]
    assert set(payload["removed"]) == {"b", "c"}
    form = await datasette.client.get(f"{TEST}?purpose=chat", actor=ANA)
    assert "as policy removes them" in form.text


async def test_p7_refused_test_links_to_its_row(start, register_models):
    register_models(*named("a"))
    datasette = await start({"blocked_models": ["a"]})

    result = (await post(datasette, {"model": "a"})).json()

    row = (await rows(datasette))[result["call_id"]]
    assert (row["outcome"], result["error"]["kind"]) == ("blocked", "not_allowed")
    page = (await datasette.client.get(f"/-/llm/log/{result['call_id']}", actor=ANA)).text
    assert "nothing was sent" in page
    assert ">unknown<" not in page


async def test_a_post_from_another_site_is_refused(start, register_models):
    model = ScriptedModel("scripted", PONG)
    register_models(model)

    answer = await post(
        await start(),
        {"model_id": "scripted"},
        html=True,
        headers={"Sec-Fetch-Site": "cross-site"},
    )

    assert answer.status_code == 403
    assert not model.calls


async def test_hostile_texts_are_shown_as_texts(start, register_models, plugin):
    register_models(
        ScriptedModel(HOSTILE, [HOSTILE]),
        ScriptedModel("failing", [llm.ModelError(HOSTILE)]),
        ScriptedModel("broken", ["half \ud83d"], [llm.ModelError("\ud83d")]),
    )
    config = {"purposes": {HOSTILE: {"models": [HOSTILE, "failing", "broken"]}}}
    datasette = await start(config)

    answer = await post(datasette, {"purpose": HOSTILE}, html=True)
    for path in (f"{TEST}?model_id={HOSTILE}", f"{TEST}?purpose={HOSTILE}"):
        page = Page((await datasette.client.get(path, actor=ANA)).text)
        assert not page.all("img")

    assert answer.status_code == 200
    page = Page(answer.text)
    assert not page.all("img")
    assert page.text.count(HOSTILE) >= 4
    assert (await post(datasette, {"purpose": HOSTILE})).status_code == 200


async def test_links_respect_base_url(start, register_models):
    datasette = await start(settings={"base_url": "/data/"})

    page = Page((await datasette.client.get(TEST, actor=ANA)).text)

    assert f"/data{TEST}" in [form["action"] for form in page.all("form")]
    assert any(each.get("src", "").startswith("/data/") for each in page.all("script"))


# The command


def config_file(folder: Path, **settings: Any) -> str:
    path = folder / "datasette.json"
    path.write_text(json.dumps({"plugins": {"datasette-llm": settings}}), "utf-8")
    return str(path)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["llm", "test", *arguments])


def test_the_command_tests_a_model(register_models):
    register_models(ScriptedModel("scripted", PONG))

    result = command("scripted")

    assert result.exit_code == 0, result.output
    head, answer = result.output.splitlines()
    assert head.startswith("scripted (datasette-llm): ok in ")
    assert head.endswith("tokens: 9 input, 2 output")
    assert answer == "    pong"


def test_the_command_fails_when_a_test_failed(register_models, tmp_path):
    register_models(*named("good"), *named("keyless", needs_key="anthropic"))
    config = config_file(tmp_path, purposes={"chat": {"models": ["good", "keyless"]}})

    result = command("-p", "chat", "-c", config)

    assert result.exit_code == 1
    assert "keyless (Anthropic): No key in" in result.output
    assert "    No key for model 'keyless'" in result.output
    assert result.output.splitlines()[-1] == "1 of 2 answered"


@pytest.mark.parametrize(("name", "status"), [("scripted", 0), ("unknown", 1)])
def test_the_commands_json_is_that_of_the_post(register_models, name, status):
    register_models(ScriptedModel("scripted", PONG))

    result = command(name, "--json")

    assert result.exit_code == status
    assert set(json.loads(result.stdout)) == KEYS | {"text", "usage"}


def test_command_json_equals_post_json(register_models, tmp_path):
    register_models(*named("good"))

    result = command("-p", "chat", "--json", "-c", config_file(tmp_path, models=["good"]))

    assert result.exit_code == 0
    payload = json.loads(result.stdout)
    assert (payload["ok"], payload["results"][0]["text"]) == (True, "pong")


def test_the_command_tells_what_it_did_not_try(register_models, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MAX_MODELS", 1)
    register_models(*named("a", "b"))

    result = command("-p", "chat", "-c", config_file(tmp_path, models=["a", "b"]))

    assert (result.exit_code, result.stderr) == (0, "1 more models were not tested\n")
    assert command("-p", "chat", "-c", config_file(tmp_path, models=[])).exit_code == 1


def test_the_command_wants_a_model_or_a_purpose():
    result = command()

    assert result.exit_code == 2
    assert "Name a model, a purpose with -p, or both" in result.output


def test_the_command_shows_no_control_characters(register_models):
    register_models(ScriptedModel("scripted", ["\x1b[2Jpong\ud83d"]))

    result = command("scripted")

    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "pong" in result.output


# One model, and nothing but it


async def test_a_trial_is_of_one_model_asked_once(start, register_models):
    down = ScriptedModel("down", [ConnectionError("refused")], PONG)
    other = ScriptedModel("other", PONG)
    register_models(down, other)
    datasette = await start({"fallbacks": ["other"], "retries": 5})

    result = await probe_model(datasette, "down")

    assert (result.ok, result.error.kind) == (False, "network")
    assert (len(down.calls), len(other.calls)) == (1, 0)
    assert list(await rows(datasette)) == [result.call_id]


@pytest.mark.parametrize("setting", ["timeout", "idle_timeout"])
async def test_configured_timeout_is_a_timeout(start, register_models, setting):
    register_models(ScriptedModel("scripted", [asyncio.Event()]))

    result = await soon(probe_model(await start({setting: 0.01}), "scripted"))

    assert result.error.kind == "timeout"
    assert setting in result.error.message


async def test_probe_waits_for_concurrency_limit(start, register_models, monkeypatch):
    monkeypatch.setattr(probe, "LIMIT_S", 0.05)
    go_on = asyncio.Event()
    model = ScriptedModel("scripted", [go_on, "ok"], PONG)
    register_models(model)
    datasette = await start({"max_concurrency": 1})
    first = asyncio.create_task((await LLM(datasette).model("scripted")).prompt("Hi"))
    await soon(model.received())

    result = await soon(probe_model(datasette, "scripted"))

    assert len(model.calls) == 1
    assert result.error.kind == "timeout"
    assert "waited for the concurrency limit (max_concurrency)" in result.error.message
    assert (await rows(datasette))[result.call_id]["outcome"] == "cancelled"
    go_on.set()
    assert await (await soon(first)).text() == "ok"
    assert (await probe_model(datasette, "scripted")).ok


# Line by line


async def test_p8_first_chunk_is_there_at_once(start, register_models):
    """The time to the first chunk comes while the answer still arrives, the row at the end."""
    rest = asyncio.Event()
    model = ScriptedModel("scripted", ["po", rest, "ng"])
    register_models(model)
    told = []

    def on_first_chunk(milliseconds: float) -> None:
        told.append(milliseconds)
        rest.set()  # without which the probe would not end

    result = await soon(probe_model(await start(), "scripted", on_first_chunk=on_first_chunk))

    assert told == [result.first_chunk_ms]
    assert result.text == "pong"


async def test_p8_lines_are_first_chunk_and_result(start, register_models):
    register_models(
        ScriptedModel("scripted", PONG), ScriptedModel("broken", [llm.ModelError("no")])
    )
    datasette = await start()
    headers = {"accept": "application/x-ndjson"}

    good = await post(datasette, {"model": "scripted"}, headers=headers)
    bad = await post(datasette, {"model": "broken"}, headers=headers)

    assert good.headers["content-type"] == "application/x-ndjson"
    first, last = map(json.loads, good.text.splitlines())
    assert list(first) == ["first_chunk_ms"]
    assert (last["result"]["ok"], last["result"]["first_chunk_ms"]) == (True, *first.values())
    assert f"/-/llm/log/{last['result']['call_id']}" in Page(last["row"]).links()
    (line,) = map(json.loads, bad.text.splitlines())
    assert (line["result"]["ok"], "Other failure" in line["row"]) == (False, True)


async def test_p8_client_that_goes_away_cancels(start, server):
    """With and without the script: the call is recorded as cancelled."""
    datasette = await start()
    for accept in ("application/x-ndjson", "text/html"):
        server.play([asyncio.Event()])
        gone = asyncio.Event()
        posting = asyncio.create_task(_post_until(datasette, accept, gone))
        request = await server.received()
        gone.set()
        await soon(posting)
        assert await request.end() == "client gone"
    assert {row["outcome"] for row in (await rows(datasette)).values()} == {"cancelled"}


async def _post_until(datasette: Datasette, accept: str, gone: asyncio.Event) -> None:
    """POST a test of the model on the wire, and go away."""
    body = [{"type": "http.request", "body": b"model=wire", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    cookie = datasette.client.actor_cookie(ANA)
    headers = {"accept": accept, "cookie": f"ds_actor={cookie}", "host": "localhost"}
    headers["content-type"] = "application/x-www-form-urlencoded"
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": TEST,
        "raw_path": TEST.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await datasette.app()(scope, receive, send)

"""The response cache: what is kept, who gets it, what it costs, and what is shared in flight."""

import asyncio
import contextlib
import copy
import gc
import json
import logging
import os
import pathlib
import sqlite3
import sys
import threading
import weakref
from enum import StrEnum

import llm
import pytest
import sqlite_utils
from datasette import hookimpl
from llm.parts import StreamEvent
from markupsafe import Markup
from pydantic import BaseModel

from datasette_llm import LLM, ModelNotAllowedError, instance
from datasette_llm.calls import cache_lookups
from datasette_llm.calls.cache import Cache
from datasette_llm.log import cache_store, cache_upkeep
from datasette_llm.log.cache_store import Bounds
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support import log_faults
from ..support.call_log import flushed_rows, writing_held_up
from ..support.plugins import Accountant, Observer, raises
from ..support.waiting import soon, until

ANA, BOB = {"id": "ana"}, {"id": "bob"}
PRICES = {"prices": {"m": {"input": 1, "output": 2}}}
SCRIPT = ["Short ", "text", llm.Usage(input=12, output=2, details={"x": 1})]
NOTHING = llm.Usage(0, 0, {"cached_response": {"input": 12, "output": 2, "details": {"x": 1}}})
DAY_MS = 86_400_000
SETTING = "plugins.datasette-llm.cache"


@pytest.fixture
def site(make_datasette, register_models, tmp_path):
    """A function that makes an LLM of some models, with a cache, on an internal database."""

    def make(*models, cache=True, internal=tmp_path / "internal.db", **config):
        register_models(*models)
        config = {"cache": cache, "log": PRICES, **config}
        return LLM(make_datasette(config, internal=str(internal)))

    return make


async def kept(models):
    """What is in the database, once all that is being written has been."""
    await soon(Recorder.of(models.datasette).writer.flush())
    try:
        return await flushed_rows(models.datasette, "llm_cache")
    except sqlite3.OperationalError:
        return []


async def texts(model, *prompts, **kwargs):
    return [await (await model.prompt(each, **kwargs)).text() for each in prompts]


async def calls(models):
    return await flushed_rows(models.datasette)


async def test_r1_nothing_is_kept_without_the_setting(site):
    model = ScriptedModel("m", SCRIPT)
    models = site(model, cache=False)
    await texts(await models.model("m"), "a", "a")
    assert len(model.calls) == 2
    assert not await kept(models)


async def test_r1_most_specific_setting_counts(site):
    """A purpose may have a cache of its own, and a model none."""
    model, other = ScriptedModel("m"), ScriptedModel("n")
    models = site(
        *(model, other),
        cache=False,
        purposes={"p": {"cache": {"keep_days": 3}, "models": [{"model": "n", "cache": False}]}},
        models=["m", "n"],
    )
    for model_id, purpose in (("m", None), ("m", "p"), ("n", "p")):
        await texts(await models.model(model_id, purpose=purpose), "a", "a")
    assert (len(model.calls), len(other.calls)) == (2 + 1, 2)
    (row,) = await kept(models)
    assert (row["setting"], row["purpose"]) == ("plugins.datasette-llm.purposes.p.cache", "p")


async def test_r1_response_cache_goes_past_or_renews(site):
    model = ScriptedModel("m", ["1"], ["2"], ["3"])
    wrapped = await site(model).model("m")
    assert await texts(wrapped, "a", "a") == ["1", "1"]
    assert await texts(wrapped, "a", response_cache=False) == ["2"]
    assert await texts(wrapped, "a", response_cache=True) == ["1"]
    assert await texts(wrapped, "a", response_cache="refresh") == ["3"]
    assert await texts(wrapped, "a", response_cache=None) == ["3"]


@pytest.mark.parametrize("value", ["x", 1, "", [], "Refresh"])
async def test_r1_bad_response_cache_is_refused_first(site, plugin, value):
    """Before any hook, in a prompt, a conversation and a chain."""
    observer = plugin(Observer())
    wrapped = await site(ScriptedModel("m")).model("m")
    for begin in (wrapped.prompt, wrapped.conversation().prompt):
        with pytest.raises(ValueError, match="response_cache= is True, False"):
            await begin("a", response_cache=value)
    with pytest.raises(ValueError, match="response_cache="):
        wrapped.chain("a", response_cache=value)
    assert not observer.events


async def test_r2_hit_is_the_first_answer(site):
    """Its chunks, reasoning, JSON and model, in a stream and at once."""

    class Detailed(ScriptedModel):
        async def execute(self, prompt, stream, response, conversation, key=None):
            response.response_json = {"id": "r1", "choices": [{"finish_reason": "stop"}]}
            response.set_resolved_model("m-2026")
            async for chunk in super().execute(prompt, stream, response, conversation, key):
                yield chunk

    thought = StreamEvent("reasoning", "hm", provider_metadata={"signature": "s"})
    model = Detailed("m", [thought, *SCRIPT])
    wrapped = await site(model).model("m")

    async def answer():
        response = await wrapped.prompt("a")
        events = [vars(event) async for event in response.astream_events()]
        messages = [message.to_dict() for message in await response.messages()]
        return (
            *(events, messages, await response.text(), response.finish_reason),
            *(response.response_json, response.resolved_model),
        )

    first = await answer()
    assert [event["chunk"] for event in first[0]] == ["hm", "Short ", "text"]
    assert await answer() == first
    await soon(Recorder.of(wrapped.route.datasette).writer.flush())
    assert await answer() == first
    assert len(model.calls) == 1


async def test_r2_hit_is_what_came_whatever_became_of_it(site):
    """A plugin may change the JSON that it has got, before or after it is written."""

    class Detailed(ScriptedModel):
        async def execute(self, prompt, stream, response, conversation, key=None):
            response.response_json = {"id": "r1", "choices": [{}]}
            async for chunk in super().execute(prompt, stream, response, conversation, key):
                yield chunk

    models = site(Detailed("m"))
    wrapped = await models.model("m")
    for _ in range(3):
        response = await wrapped.prompt("a")
        assert await response.json() == {"id": "r1", "choices": [{}]}
        response.response_json["choices"].clear()
    await kept(models)
    assert await (await wrapped.prompt("a")).json() == {"id": "r1", "choices": [{}]}


@pytest.mark.parametrize(
    "script",
    [
        ["text", ValueError("no")],
        ["text", StreamEvent("tool_result", "1", server_executed=True, tool_name="t")],
        [llm.ToolCall(name="t", arguments={})],
        [],
    ],
    ids=["failed", "tool result", "tool call", "empty"],
)
async def test_r2_only_whole_texts_are_kept(site, script):
    model = ScriptedModel("m", script)
    models = site(model, retries=0)
    wrapped = await models.model("m")
    for _ in range(2):
        with contextlib.suppress(ValueError):
            await texts(wrapped, "a")
    assert len(model.calls) == 2
    assert not await kept(models)


@pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls", "strange"])
async def test_r2_cut_off_answers_are_not_kept(site, reason):
    class Cut(ScriptedModel):
        async def execute(self, prompt, stream, response, conversation, key=None):
            response.response_json = {"choices": [{"finish_reason": reason}]}
            async for chunk in super().execute(prompt, stream, response, conversation, key):
                yield chunk

    model = Cut("m")
    models = site(model)
    await texts(await models.model("m"), "a", "a")
    assert len(model.calls) == 2


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    "answer", ["Sorry, no.", '{"x": 1', '{"y": 2}', "[]", '```json\n{"x": 1}\n```', "[" * 10**5]
)
@pytest.mark.parametrize("wait", [True, False], ids=["written", "at once"])
async def test_r2_answer_that_does_not_fit_its_schema_is_asked_for_again(site, answer, wait):
    """Or who tries again would get it again, for days."""
    model = ScriptedModel("m", [answer], ['{"x":', " 1}"], supports_schema=True)
    models = site(model, log=False)
    wrapped = await models.model("m")
    got = []
    for _ in range(3):
        got += await texts(wrapped, "a", schema=SCHEMA)
        if wait:
            await kept(models)
    assert got == [answer, '{"x": 1}', '{"x": 1}']
    assert len(model.calls) == 2


@pytest.mark.parametrize("script", [[" ", "\n"], [StreamEvent("reasoning", "Let me think")], []])
async def test_r2_answer_without_a_text_is_asked_for_again(site, script):
    model = ScriptedModel("m", script, ["text"])
    wrapped = await site(model).model("m")
    assert (await texts(wrapped, *"aaa"))[1:] == ["text", "text"]
    assert len(model.calls) == 2


async def test_r2_answer_of_no_use_replaces_none(site):
    model = ScriptedModel("m", ["good"], [" "])
    wrapped = await site(model).model("m")
    assert await texts(wrapped, "a") == ["good"]
    assert await texts(wrapped, "a", response_cache="refresh") == [" "]
    assert await texts(wrapped, "a") == ["good"]


async def test_r2_plain_prompt_gets_no_answer_that_was_repaired(site):
    """`structured()` has the same one repaired again, without a request."""
    model = ScriptedModel("m", ["no"], ['{"x": 1}'], ['{"x": 2}'], supports_schema=True)
    wrapped = await site(model).model("m")
    for _ in range(2):
        assert (await wrapped.structured("a", schema=SCHEMA)).value == {"x": 1}
    sent = model.calls[0].request
    assert await texts(wrapped, "a", schema=sent.schema) == ['{"x": 2}']


async def test_r2_cancelled_answer_is_not_kept(site):
    model = ScriptedModel("m", ["a", asyncio.Event()], ["b"])
    models = site(model)
    wrapped = await models.model("m")
    reading = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert model.calls[0].outcome == "cancelled"
    assert await texts(wrapped, "a") == ["b"]


async def test_r2_prompts_with_tools_and_chains_ask(site):
    def tool() -> str:
        """Says one."""
        return "1"

    model = ScriptedModel("m")
    wrapped = await site(model).model("m")
    for _ in range(2):
        await texts(wrapped, "a", tools=[tool])
        await wrapped.chain("a", response_cache=True).text()
    assert len(model.calls) == 4


async def test_r2_conversation_goes_on_from_hits(site):
    """Each turn is kept by its history, and a hit is a turn as the first answer was."""
    model = ScriptedModel("m", ["1"], ["2"], ["3"])
    wrapped = await site(model).model("m")

    async def talk(first):
        conversation = wrapped.conversation()
        found = [await (await conversation.prompt(each)).text() for each in (first, "b")]
        return found, len(conversation.responses)

    assert await talk("a") == await talk("a") == (["1", "2"], 2)
    assert (await talk("other"))[0] == ["3", "3"]
    for _ in range(2):
        response = await wrapped.prompt("a")
        await (await response.reply("b")).text()
    assert len(model.calls) == 6


async def test_r2_turns_count_beside_messages(site):
    """Some plugins read the turns of a conversation, whatever `messages=` say."""
    model = ScriptedModel("m", ["1"], ["2"], ["3"], ["4"])
    wrapped = await site(model).model("m")

    async def ask(first):
        conversation = wrapped.conversation()
        await (await conversation.prompt(first)).text()
        messages = [llm.parts.Message("user", [llm.parts.TextPart("b")])]
        return await (await conversation.prompt("a", messages=messages)).text()

    assert [await ask(each) for each in ("x", "y", "x")] == ["2", "4", "2"]


async def test_r2_tool_calls_of_turns_count_beside_messages(site):
    """Two turns with the same text, that have called a tool in another way."""

    def tool(number: int) -> str:
        """Says one."""
        return "1"

    first, second = (llm.ToolCall("tool", {"number": each}, f"t{each}") for each in (1, 2))
    model = ScriptedModel("m", ["x", first], ["1"], ["x", second], ["2"])
    wrapped = await site(model).model("m")
    messages = [llm.parts.Message("user", [llm.parts.TextPart("b")])]
    found = []
    for _ in range(2):
        conversation = wrapped.conversation()
        await (await conversation.prompt("a", tools=[tool])).text()
        response = await conversation.prompt("a", messages=messages)
        found.append(await response.text())
    assert found == ["1", "2"]


async def test_r2_tool_call_is_not_lost(site):
    """One that comes though the prompt has no tools, from a provider that adds it at its end."""
    model = ScriptedModel("m", ["text", llm.ToolCall(name="t", arguments={})])
    wrapped = await site(model).model("m")
    for _ in range(2):
        response = await wrapped.prompt("a")
        assert [each.name for each in await response.tool_calls()] == ["t"]
    assert len(model.calls) == 2


async def test_r2_files_of_the_history_are_read_in_a_thread(site, tmp_path, monkeypatch):
    path, threads = tmp_path / "a.txt", []
    path.write_text("seen")
    read = pathlib.Path.read_bytes

    def noted(self):
        threads.append(threading.current_thread())
        return read(self)

    monkeypatch.setattr(pathlib.Path, "read_bytes", noted)
    model = ScriptedModel("m", attachment_types=["text/plain"])
    conversation = (await site(model).model("m")).conversation()
    attachment = llm.Attachment(type="text/plain", path=str(path))
    await (await conversation.prompt("a", attachments=[attachment])).text()
    await (await conversation.prompt("b")).text()
    assert threads
    assert threading.main_thread() not in threads


async def test_r2_file_that_changes_meanwhile_is_not_kept(site, tmp_path):
    """It was looked up as it was, and sent as it is once there is a place."""
    path, block = tmp_path / "a.txt", asyncio.Event()
    path.write_text("seen")
    scripts = ([block, "first"], ["of another"], ["of what was seen"])
    model = ScriptedModel("m", *scripts, attachment_types=["text/plain"])
    wrapped = await site(model, max_concurrency=1).model("m")

    def ask():
        attachment = llm.Attachment(type="text/plain", path=str(path))
        return texts(wrapped, "a", attachments=[attachment])

    first = asyncio.create_task(texts(wrapped, "first"))
    await model.received()
    second = asyncio.create_task(ask())
    await until(lambda: len(instance.of(wrapped.route.datasette, Cache).shared()) == 2)
    path.write_text("another")
    block.set()
    assert await soon(asyncio.gather(first, second)) == [["first"], ["of another"]]
    path.write_text("seen")
    assert await ask() == ["of what was seen"]


async def test_r2_attachment_that_has_gone_is_no_hit(site, tmp_path):
    """The call goes on, and fails or not as the model does."""
    path = tmp_path / "a.txt"
    path.write_text("seen")
    model = ScriptedModel("m", ["1"], ["2"], attachment_types=["text/plain"])
    wrapped = await site(model).model("m")

    async def ask():
        attachment = llm.Attachment(type="text/plain", path=str(path))
        return await texts(wrapped, "a", attachments=[attachment])

    assert await ask() == await ask() == ["1"]
    path.unlink()
    assert await ask() == ["2"]


class Dog(BaseModel):
    name: str


async def test_r3_structured_works_on_hits(site):
    """Also where an answer had to be repaired: both prompts are hits."""
    model = ScriptedModel("m", ["no JSON"], ['{"name": "Cleo"}'])
    wrapped = await site(model).model("m")
    found = [await wrapped.structured("a", schema=Dog) for _ in range(2)]
    assert [each.value for each in found] == [Dog(name="Cleo")] * 2
    assert [len(each.attempts) for each in found] == [2, 2]
    assert len(model.calls) == 2


async def test_r3_row_of_a_repair_that_is_kept_says_of_what(site):
    model = ScriptedModel("m", ["no"], ['{"x": 1}'], supports_schema=True)
    models = site(model)
    wrapped = await models.model("m")
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    for _ in range(2):
        await wrapped.structured("a", schema=schema)
    assert len(model.calls) == 2
    rows = await calls(models)
    assert [row["prompt_id"] for row in rows] == [None, rows[0]["id"], None, rows[2]["id"]]


async def test_r3_hit_costs_nothing_and_has_its_row(site):
    model = ScriptedModel("m", SCRIPT)
    models = site(model)
    wrapped = await models.model("m", purpose="p", actor=ANA)
    for expected in (llm.models.Usage(12, 2, {"x": 1}), NOTHING):
        assert await (await wrapped.prompt("a")).usage() == expected
    first, hit = await calls(models)
    assert (first["cached_from"], first["saved_nanodollars"]) == (None, None)
    assert first["cost_nanodollars"] == 16_000
    found = {name: hit[name] for name in ("outcome", "cached_from", "saved_nanodollars")}
    assert found == {"outcome": "ok", "cached_from": first["id"], "saved_nanodollars": 16_000}
    assert (hit["cost_nanodollars"], hit["price_source"]) == (0, "cache")
    assert (hit["purpose"], hit["actor_id"], hit["prompt_chars"]) == ("p", "ana", 1)


async def test_r3_hit_that_is_not_read_says_where_it_is_from(site):
    """Its time, too, is none of a request."""
    models = site(ScriptedModel("m", ["a"] * 1_000))
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    reading = asyncio.create_task((await wrapped.prompt("a")).text())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    first, hit = await calls(models)
    found = (hit["outcome"], hit["cached_from"], hit["saved_nanodollars"])
    assert found == ("cancelled", first["id"], None)


async def test_r3_hooks_know_before_they_open(site, plugin):
    """So does a plugin that charges by usage, in its callbacks too."""
    known, charged = [], []

    async def note(result):
        known.append(result.cached)

        async def charge(response):
            charged.append((await response.usage()).input)

        await result.on_response_done(charge)

    observer = plugin(Observer(before=note, after=lambda result: known.append(result.cached)))
    accountant = plugin(Accountant())
    wrapped = await site(ScriptedModel("m", SCRIPT)).model("m")
    await texts(wrapped, "a", "a")
    assert known == [False, False, True, True]
    assert charged == [12, 0]
    assert (accountant.settled, accountant.open) == (2, 0)
    assert (await observer.results[1].cost()).dollars == 0


def _new_prompt(response):
    response.prompt = llm.Prompt("b", response.model, options=response.prompt.options)


def _new_text(response):
    response.prompt._prompt = "b"  # noqa: SLF001  # as a hook does that rewrites a text


def _new_options(response):
    response.prompt.options.temperature = 0.1


def _new_message(response):
    response.prompt.messages[0].parts[0].text = "b"


def _new_fragment(response):
    response.prompt.fragments.append("b")


def _new_schema(response):
    response.prompt.schema["title"] = "b"


def _new_tools(response):
    response.prompt.tools.append(llm.Tool("t"))


@pytest.mark.parametrize(
    "change",
    [_new_prompt, _new_text, _new_options, _new_message, _new_fragment, _new_schema, _new_tools],
)
async def test_r2_prompt_that_a_hook_changes_is_asked(site, plugin, change):
    """Its answer is not kept, and it gets none that is, also where a message inside changes."""
    answers = [json.dumps({"of": each}) for each in ("a", "b", "b, again", "a, anew")]
    model = ScriptedModel("m", *([each] for each in answers), supports_schema=True)
    changes = [lambda response: None, lambda response: None, change, change]
    observer = Observer(before=lambda result: changes and changes.pop(0)(result.response))
    plugin(observer)
    wrapped = await site(model).model("m")
    messages = [llm.parts.Message("user", [llm.parts.TextPart("a")])]

    def ask(**kwargs):
        asked = {"messages": copy.deepcopy(messages), "schema": {"type": "object"}}
        return texts(wrapped, None, **asked, **kwargs)

    assert await ask() == await ask() == answers[:1]
    assert [*await ask(), *await ask(response_cache="refresh")] == answers[1:3]
    assert await ask() == answers[:1]
    assert [each.cached for each in observer.results] == [False, True, False, False, True]


async def test_r4_prompt_that_a_hook_changes_asks_alone(site, plugin):
    """It neither rides along with an equal request, nor is one ridden along with."""
    block = asyncio.Event()
    model = ScriptedModel("m", *([block, each] for each in ("of a", "of b", "of b, too")))
    wrapped = await site(model).model("m")
    first = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    plugin(Observer(before=lambda result: _new_text(result.response)))
    others = [asyncio.create_task(texts(wrapped, "a")) for _ in range(2)]
    await soon(model.received(3))
    block.set()
    found = await soon(asyncio.gather(first, *others))
    assert found == [["of a"], ["of b"], ["of b, too"]]


async def test_r3_policy_comes_before_the_cache(site, plugin, register_models):
    """A model that is no longer allowed, and a budget that says no."""
    model = ScriptedModel("m")
    models = site(model)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    refusing = plugin(Observer(before=raises(PermissionError("no money"))))
    with pytest.raises(PermissionError):
        await wrapped.prompt("a")
    assert refusing.results[0].cached

    class Filter:
        @hookimpl
        def llm_filter_models(self, models):
            return []

    plugin(Filter())
    with pytest.raises(ModelNotAllowedError):
        await models.model("m")
    assert [row["outcome"] for row in await calls(models)] == ["ok", "blocked", "blocked"]


async def test_r3_hit_needs_no_key_and_no_place(site, monkeypatch):
    """The key has gone, and another request has the only place."""
    monkeypatch.setenv("M_API_KEY", "sk-0123456789")
    model = ScriptedModel("m", ["1"], [asyncio.Event()], needs_key="m", key_env_var="M_API_KEY")
    models = site(model, max_concurrency=1)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    other = asyncio.create_task(texts(wrapped, "other"))
    await model.received(2)
    monkeypatch.delenv("M_API_KEY")
    assert await soon(texts(wrapped, "a")) == ["1"]
    other.cancel()
    await asyncio.wait([other])
    with pytest.raises(llm.NeedsKeyException):
        await wrapped.prompt("new")


async def test_r3_required_row_is_committed_first(site):
    """With log.required a hit is refused, too, where it cannot be recorded."""
    models = site(ScriptedModel("m"), log=PRICES | {"required": True})
    wrapped = await models.model("m")
    await texts(wrapped, "a", "a")
    first, hit = await calls(models)
    assert (hit["cached_from"], hit["saved_nanodollars"]) == (first["id"], None)
    assert hit["outcome"] == "ok"


async def test_r3_content_of_a_hit_is_recorded(site):
    models = site(ScriptedModel("m", SCRIPT), log=PRICES | {"content": True})
    await texts(await models.model("m"), "a", "a")
    await soon(Recorder.of(models.datasette).writer.flush())
    rows = await flushed_rows(models.datasette, "llm_call_content")
    parts = [(row["part"], row["content"]) for row in rows]
    assert sorted(parts[:2]) == sorted(parts[2:])


async def test_r3_without_a_log_answers_are_kept(site):
    model = ScriptedModel("m", SCRIPT)
    models = site(model, log=False)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await soon(Recorder.of(models.datasette).writer.flush())
    assert await texts(wrapped, "a") == ["Short text"]
    assert len(model.calls) == 1


# In flight


def held(*rest, **kwargs):
    release = asyncio.Event()
    return ScriptedModel("m", ["1", release, *(rest or ["2"])], ["other"], **kwargs), release


async def first_chunks(model, count, **kwargs):
    """Readers that have got the first chunk of an equal prompt each."""
    responses = [await model.prompt("a", **kwargs) for _ in range(count)]
    readers = [response.__aiter__() for response in responses]
    assert [await soon(anext(reader)) for reader in readers] == ["1"] * count
    return responses


async def test_r4_equal_requests_share_one(site, plugin):
    """Both stream, one pays, and the rows of the others say which."""
    observer = plugin(Observer())
    model, release = held("2", llm.Usage(input=12, output=2))
    models = site(model)
    responses = await first_chunks(await models.model("m"), 3)
    release.set()
    assert [await response.text() for response in responses] == ["12"] * 3
    assert sorted([(await each.usage()).input for each in responses]) == [0, 0, 12]
    assert len(model.calls) == 1
    await soon(asyncio.sleep(0))
    first, *others = await calls(models)
    assert [row["cached_from"] for row in others] == [first["id"]] * 2
    assert [row["saved_nanodollars"] for row in others] == [16_000] * 2
    assert [result.cached for result in observer.results] == [False, True, True]
    assert len(await kept(models)) == 1


async def test_r4_finished_requests_are_freed_at_once(site):
    """By no garbage collection, which takes longer the more there is."""
    wrapped = await site(ScriptedModel("m"), log=False).model("m")
    await texts(wrapped, "warm up")
    gc.collect()
    gc.disable()
    try:
        responses = weakref.WeakSet()
        for text in ("miss", "miss"):
            asked = [await wrapped.prompt(text) for _ in range(2)]
            assert [await each.text() for each in asked] == ["Hello"] * 2
            responses.update(asked)
            del asked
        await until(lambda: not responses)
    finally:
        gc.enable()


async def test_r4_one_cancelled_does_not_stop_the_other(site):
    """The request goes on without the one that began it, and another one pays."""
    model, release = held("2", llm.Usage(input=12, output=2))
    models = site(model)
    wrapped = await models.model("m")

    responses = [await wrapped.prompt("a") for _ in range(3)]  # which have the first chunk
    begun, *others = [asyncio.create_task(response.text()) for response in responses]
    await asyncio.sleep(0)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(begun)
    assert model.calls[0].outcome == "running"
    release.set()
    assert await soon(asyncio.gather(*others)) == ["12"] * 2
    rows = await calls(models)
    assert sorted(row["outcome"] for row in rows) == ["cancelled", "ok", "ok"]
    (payer,) = [row for row in rows if row["outcome"] == "ok" and row["cached_from"] is None]
    assert (payer["input_tokens"], payer["cost_nanodollars"]) == (12, 16_000)
    assert [row["call_id"] for row in await kept(models)] == [payer["id"]]


async def test_r4_all_cancelled_stops_the_request(site):
    model, _ = held()
    wrapped = await site(model).model("m")
    reading = [asyncio.create_task(texts(wrapped, "a")) for _ in range(2)]
    await model.received()
    for each in reading:
        each.cancel()
    await soon(asyncio.wait(reading))
    await soon(model.calls[0].ended.wait())
    assert model.calls[0].outcome == "cancelled"
    assert await texts(wrapped, "a") == ["other"]


async def test_r4_rider_that_gets_all_pays(site):
    """Not the first one, which is cancelled after the end, before it has all."""
    release = asyncio.Event()
    model = ScriptedModel("m", ["x"] * 300 + [release, llm.Usage(input=12, output=2)])
    models = site(model)
    wrapped = await models.model("m")
    begun = asyncio.create_task(texts(wrapped, "a"))
    await until(lambda: model.calls and model.calls[0].sent == 300)
    (shared,) = instance.of(models.datasette, Cache).shared().values()
    late, last = [asyncio.create_task(texts(wrapped, "a")) for _ in range(2)]
    await until(lambda: len(shared.riders) == 3)
    release.set()
    begun.cancel()
    await until(lambda: not instance.of(models.datasette, Cache).shared())
    late.cancel()
    await soon(asyncio.wait([begun, late]))
    assert await soon(last) == ["x" * 300]
    (row,) = [row for row in await calls(models) if row["outcome"] == "ok"]
    assert (row["input_tokens"], row["cached_from"]) == (12, None)


async def test_r4_duration_is_that_of_the_request(site):
    """Also in the row of one that has joined late, and pays since the first one has gone."""
    block = asyncio.Event()
    model = ScriptedModel("m", [block, "text"])
    models = site(model)
    wrapped = await models.model("m")
    first = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    await asyncio.sleep(0.2)
    second = asyncio.create_task(texts(wrapped, "a"))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    block.set()
    assert await second == ["text"]
    (payer,) = [row for row in await calls(models) if row["outcome"] == "ok"]
    assert payer["duration_ms"] >= 240
    (kept_answer,) = await kept(models)
    assert json.loads(kept_answer["answer"])[3] == pytest.approx(payer["duration_ms"] / 1000, 0.01)


async def test_r4_rider_has_its_own_duration(site):
    """From when it has joined; what the request took is saved."""
    block = asyncio.Event()
    models = site(ScriptedModel("m", [block, "text"]))
    wrapped = await models.model("m")
    first = asyncio.create_task(texts(wrapped, "a"))
    await asyncio.sleep(0.3)
    second = asyncio.create_task(texts(wrapped, "a"))
    await asyncio.sleep(0.05)
    block.set()
    await asyncio.gather(first, second)
    payer, rider = await calls(models)
    assert rider["cached_from"] == payer["id"]
    assert rider["duration_ms"] < payer["duration_ms"] - 100


async def test_r4_request_that_ends_late_forgets_no_other(site):
    """One whose provider takes its time to stop does not hide the one that was made meanwhile."""
    stopped, release = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedModel):
        async def execute(self, *args, **kwargs):
            try:
                async for chunk in super().execute(*args, **kwargs):
                    yield chunk
            finally:
                await stopped.wait()

    model = Slow("m", [asyncio.Event()], [release, "text"])
    models = site(model)
    wrapped = await models.model("m")
    first = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    first.cancel()
    await until(lambda: not instance.of(models.datasette, Cache).shared())
    second = asyncio.create_task(texts(wrapped, "a"))
    await model.received(2)
    stopped.set()
    await soon(asyncio.wait([first]))
    third = asyncio.create_task(texts(wrapped, "a"))
    (shared,) = instance.of(models.datasette, Cache).shared().values()
    await until(lambda: len(shared.riders) == 2)
    release.set()
    assert await soon(asyncio.gather(second, third)) == [["text"]] * 2
    assert len(model.calls) == 2


async def test_r4_failure_reaches_both_and_is_not_kept(site):
    error = ValueError("no")
    model, release = held(error)
    models = site(model, retries=0)
    responses = await first_chunks(await models.model("m"), 2)
    release.set()
    for response in responses:
        with pytest.raises(ValueError, match="no"):
            await soon(response.text())
    assert [row["outcome"] for row in await calls(models)] == ["error", "error"]
    assert await texts(await models.model("m"), "a") == ["other"]
    assert len(model.calls) == 2


@pytest.mark.parametrize(("failures", "requests"), [(2, 3), (9, 3)])
async def test_r4_riders_share_their_retries(site, monkeypatch, failures, requests):
    """Though their pauses differ, and each request is over before the next rider wakes."""
    pauses = iter(range(1000))

    async def sleep(seconds):
        for _ in range(5 * next(pauses)):
            await asyncio.sleep(0)

    monkeypatch.setattr("datasette_llm.calls.retry.sleep", sleep)
    release, error = asyncio.Event(), ConnectionError("no")
    model = ScriptedModel("m", [release, error], *[[error]] * (failures - 1), ["text"])
    models = site(model, retries=2)
    wrapped = await models.model("m")
    riders = [asyncio.create_task(texts(wrapped, "a")) for _ in range(10)]
    await model.received()
    shared = instance.of(models.datasette, Cache).shared()
    await until(lambda: [len(each.riders) for each in shared.values()] == [10])
    release.set()
    found = await soon(asyncio.gather(*riders, return_exceptions=True))
    assert len(model.calls) == requests
    if failures < requests:
        assert found == [["text"]] * 10
        rows = await calls(models)
        assert [row["outcome"] for row in rows].count("error") == 20
        assert [row["cached_from"] for row in rows if row["outcome"] == "ok"].count(None) == 1
    else:
        assert {type(each) for each in found} == {ConnectionError}


async def test_r4_other_key_asks_by_itself(site):
    model, release = held(needs_key="m")
    wrapped = await site(model).model("m")
    mine = await wrapped.prompt("a", key="sk-0123456789")
    theirs = await wrapped.prompt("a", key="sk-9876543210")
    assert await theirs.text() == "other"
    release.set()
    assert await mine.text() == "12"
    assert [call.key for call in model.calls] == ["sk-0123456789", "sk-9876543210"]


async def test_r4_answer_of_a_fallback_is_not_kept(site):
    model, other = ScriptedModel("m", [ValueError("no")]), ScriptedModel("n", ["by n"])
    models = site(model, other, retries=0, fallbacks=["n"])
    wrapped = await models.model("m")
    assert await texts(wrapped, "a", "a") == ["by n"] * 2
    assert (len(model.calls), len(other.calls)) == (2, 2)
    assert not await kept(models)


async def test_r4_rider_with_a_fallback_pays(site, plugin):
    """What it rode along with has failed, so its answer is its own."""
    observer, release = plugin(Observer()), asyncio.Event()
    model, other = ScriptedModel("m", [release, ValueError("no")]), ScriptedModel("n", ["by n"])
    wrapped = await site(model, other, retries=0, fallbacks=["n"]).model("m")
    both = asyncio.gather(*(texts(wrapped, "a") for _ in range(2)))
    await model.received()
    await until(lambda: [result.attempts for result in observer.results] == [1, 1])
    await asyncio.sleep(0.01)
    release.set()
    assert await soon(both) == [["by n"]] * 2
    assert (len(model.calls), len(other.calls)) == (1, 2)
    assert [result.cached for result in observer.results] == [False, False]


async def test_r4_callbacks_know_who_has_paid(site, plugin):
    """Also where the one that began the request is cancelled, and another one pays."""
    seen = []

    async def note(result):
        async def done(response):
            seen.append((result.cached, (await response.usage()).input))

        await result.on_response_done(done)

    plugin(Observer(before=note))
    model, release = held("2", llm.Usage(input=12, output=2))
    responses = await first_chunks(await site(model).model("m"), 3)
    first = asyncio.create_task(responses[0].text())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    release.set()
    assert await soon(asyncio.gather(*(each.text() for each in responses[1:]))) == ["12"] * 2
    assert sorted(seen) == [(False, 12), (True, 0)]


async def test_r4_waiting_for_a_place_is_shared(site):
    """Equal prompts wait for the one place together, and take it once."""
    block, model = asyncio.Event(), None
    model = ScriptedModel("m", [block, "first"], ["shared"])
    wrapped = await site(model, max_concurrency=1).model("m")
    first = asyncio.create_task(texts(wrapped, "first"))
    await model.received()
    equal = [asyncio.create_task(texts(wrapped, "a")) for _ in range(3)]
    for _ in range(30):
        await asyncio.sleep(0)
    equal[0].cancel()  # the one that waits for the place: another one takes its turn
    block.set()
    assert await soon(asyncio.gather(first, *equal[1:])) == [["first"], ["shared"], ["shared"]]
    assert len(model.calls) == 2


# What is kept


async def test_r4_request_without_its_first_rider_has_its_place(site):
    """The limit of its purpose counts it until it ends."""
    model, release = held()
    models = site(model, purposes={"p": {"max_concurrency": 1}}, log=False)
    wrapped = await models.model("m", purpose="p")
    begun = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    (shared,) = instance.of(models.datasette, Cache).shared().values()
    rider = asyncio.create_task(texts(wrapped, "a"))
    await until(lambda: len(shared.riders) == 2)
    begun.cancel()
    await soon(asyncio.wait([begun]))
    other = asyncio.create_task(texts(wrapped, "b", response_cache=False))  # without a thread
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(model.calls) == 1
    release.set()
    assert await soon(asyncio.gather(rider, other)) == [["12"], ["other"]]


async def test_r4_provider_that_swallows_a_cancellation_is_stopped(site, monkeypatch):
    """By the next one, when the time to clean up is over; its place is free then."""
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 0.01)

    class Stubborn(ScriptedModel):
        async def execute(self, *args, **kwargs):
            try:
                async for chunk in super().execute(*args, **kwargs):
                    yield chunk
            except asyncio.CancelledError:
                await asyncio.Event().wait()

    model = Stubborn("m", [asyncio.Event()], ["other"])
    wrapped = await site(model, max_concurrency=1).model("m")
    reading = asyncio.create_task(texts(wrapped, "a"))
    await model.received()
    reading.cancel()
    await soon(asyncio.wait([reading]))
    assert await soon(texts(wrapped, "b")) == ["other"]


async def test_r5_answer_is_found_before_it_is_written(site):
    model = ScriptedModel("m", ["1"], ["2"])
    models = site(model)
    wrapped = await models.model("m")
    await texts(wrapped, "0")
    async with writing_held_up(models.datasette):
        ours = asyncio.create_task(texts(wrapped, "a", "a"))
        await asyncio.wait([ours], timeout=0.1)
    assert await soon(ours) == ["2", "2"]
    assert len(model.calls) == 2


async def change(models, sql, *values):
    await kept(models)
    await models.datasette.get_internal_database().execute_write(sql, values)


@pytest.mark.parametrize(
    "sql",
    [
        "update llm_cache set answer = x'5b5d'",
        "update llm_cache set answer = 'text'",
        "update llm_cache set answer = substr(answer, 1, 20)",
        "update llm_cache set checksum = x''",
        "update llm_cache set call_id = 'x'",
        "update llm_cache set created_ms = 'x'",
        "update llm_cache set answer = replace(answer, 'Short', 'Wrong')",
        "drop table llm_cache",
        "drop table llm_cache_sizes",
    ],
)
async def test_r5_damaged_entry_is_a_miss(site, sql):
    """The call goes on, and its answer is kept in the place of the damaged one."""
    model = ScriptedModel("m", SCRIPT)
    models = site(model)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await change(models, sql)
    assert await texts(wrapped, "a") == ["Short text"]
    if "sizes" not in sql:
        assert len(model.calls) == 2
    assert len(await kept(models)) == 1
    assert all(row["outcome"] == "ok" for row in await calls(models))


@pytest.mark.parametrize(
    ("ahead_ms", "requests"),
    [(6 * DAY_MS, 1), (8 * DAY_MS, 2), (-8 * DAY_MS, 2), (-30_000, 1), (10**13, 2)],
)
async def test_r5_old_answers_and_jumping_clocks(site, monkeypatch, ahead_ms, requests):
    """An answer older than keep_days is none, nor is one of the future."""
    model = ScriptedModel("m")
    models = site(model)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await kept(models)
    now_ms = cache_store.now_ms
    monkeypatch.setattr(cache_store, "now_ms", lambda: now_ms() + ahead_ms)
    await texts(wrapped, "a")
    assert len(model.calls) == requests


async def test_r5_config_change_counts_at_once(site, monkeypatch):
    """A shorter time, another scope and no cache at all, for answers that are kept already."""
    model = ScriptedModel("m")
    models = site(model, cache={"keep_days": 30})
    await texts(await models.model("m"), "a")
    await kept(models)
    later_ms = cache_store.now_ms() + 10 * DAY_MS
    monkeypatch.setattr(cache_store, "now_ms", lambda: later_ms)
    settings = models.datasette.config["plugins"]["datasette-llm"]
    for count, cache in enumerate([{"keep_days": 30}, {"keep_days": 5}, False], 1):
        settings["cache"] = cache
        await texts(await models.model("m"), "a")
        assert len(model.calls) == count
    await cache_upkeep.remove(models.datasette, {})
    assert not await kept(models)


async def test_r5_upkeep_removes_what_is_too_old(site):
    models = site(ScriptedModel("m"))
    await texts(await models.model("m"), "a", "b")
    await change(models, "update llm_cache set created_ms = 1 where rowid = 1")
    await cache_upkeep.remove(models.datasette, {SETTING: Bounds(7, 10**9)})
    assert len(await kept(models)) == 1
    (size,) = await models.datasette.get_internal_database().execute_fn(cache_store.sizes)
    (row,) = await kept(models)
    assert (size.answers, size.bytes) == (1, row["bytes"])


async def test_r5_least_recently_used_go_first(site):
    """As soon as there is too much, and no more than that takes; a use is noted."""
    model = ScriptedModel("m", ["x" * 300_000])
    models = site(model, cache={"max_mb": 1})
    wrapped = await models.model("m")
    await texts(wrapped, "a", "b", "c")
    await change(models, "update llm_cache set used_ms = rowid")
    await texts(wrapped, "a")
    await kept(models)
    await texts(wrapped, "d")
    assert len(await kept(models)) == 3
    assert len(model.calls) == 4
    await texts(wrapped, "a", "c", "d")
    assert len(model.calls) == 4
    await texts(wrapped, "b")
    assert len(model.calls) == 5


async def test_r5_answers_of_the_future_are_removed(site, monkeypatch):
    """They would fill the cache for good after the clock was ahead for a moment."""
    models = site(ScriptedModel("m"))
    wrapped = await models.model("m")
    with monkeypatch.context() as ahead:
        now_ms = cache_store.now_ms
        ahead.setattr(cache_store, "now_ms", lambda: now_ms() + 40 * DAY_MS)
        await texts(wrapped, "ahead")
        await kept(models)
    await texts(wrapped, "now")
    await cache_upkeep.remove(models.datasette, {SETTING: Bounds(7, 10**9)})
    (row,) = await kept(models)
    assert row["created_ms"] < now_ms() + DAY_MS


def fill(connection, count, text):
    """Keep some answers, without making room."""
    at = cache_store.now_ms() - DAY_MS
    answer = (len(text), b"", text)
    rows = ((os.urandom(32), SETTING, "", "m", "x", at, at, *answer) for _ in range(count))
    connection.executemany(f"insert into llm_cache values ({', '.join('?' * 10)})", rows)


async def test_r5_lowered_bound_is_kept_in_small_steps(site, monkeypatch):
    """No transaction makes room for everything at once: the call log would wait for it."""
    monkeypatch.setattr(cache_store, "MAKE_ROOM_S", 0)
    models = site(ScriptedModel("m"), cache={"max_mb": 1})
    await texts(await models.model("m"), "a")
    await kept(models)
    database = models.datasette.get_internal_database()
    await database.execute_write_fn(lambda connection: fill(connection, 3_000, b"x" * 1_000))
    await texts(await models.model("m"), "b")
    assert len(await kept(models)) == 3_002 - cache_store.MAX_BATCH
    await cache_upkeep.remove(models.datasette, {SETTING: Bounds(7, 1_000_000)})
    assert sum(row["bytes"] for row in await kept(models)) < 1_000_000


def test_r5_tiny_answers_count_with_their_rows(tmp_path):
    """The file is as small as `max_mb` says, where nearly all of it is rows and indexes."""
    path, at = tmp_path / "kept.db", cache_store.now_ms()
    answer = cache_store.Answer("x" * 26, (StreamEvent("text", "yes"),), {}, None, 0.1, at)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        cache_store.migrations.apply(sqlite_utils.Database(connection))
        for _ in range(6_000):
            place = cache_store.Place(os.urandom(32), SETTING, "purpose", "m", 1_000_000)
            cache_store.keep(connection, place, answer, "")
        connection.commit()
    assert path.stat().st_size < 1_300_000


async def test_r5_damaged_sums_do_not_stop_the_log(site):
    """There is room again once all that they count has gone, and then they are right."""
    models = site(ScriptedModel("m"), cache={"max_mb": 1})
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await change(models, "update llm_cache_sizes set bytes = 1000000000")
    await texts(wrapped, "b")
    (row,) = await soon(kept(models))
    (size,) = await models.datasette.get_internal_database().execute_fn(cache_store.sizes)
    assert (size.answers, size.bytes) == (1, row["bytes"])


@pytest.mark.parametrize("chunks", [["x" * 50_000_000], ["x" * 600_000] * 2])
async def test_r5_large_answer_is_not_kept_and_said(site, caplog, chunks):
    """One of 50 MB, and one that is larger than all that the setting keeps."""
    model = ScriptedModel("m", chunks)
    models = site(model, cache={"max_mb": 1}, max_answer_chars=10**9)
    assert await texts(await models.model("m"), "a") == ["".join(chunks)]
    assert not await kept(models)
    assert "An answer of model 'm' was not kept in the response cache" in caplog.text


@pytest.mark.parametrize("fault", [log_faults.read_only, log_faults.full])
async def test_r5_database_that_fails_keeps_calls_going(site, tmp_path, fault):
    """No answer is kept or used meanwhile; afterwards both are."""
    model = ScriptedModel("m")
    models = site(model, log={"content": True})
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await kept(models)
    writer = Recorder.of(models.datasette).writer
    async with fault(models.datasette, tmp_path / "internal.db"):
        await soon(texts(wrapped, *("x" * 10_000 for _ in range(3)), response_cache=False))
        await until(lambda: writer.failure)
        requests = len(model.calls)
        assert await soon(texts(wrapped, "a", "a")) == ["Hello"] * 2
        assert len(model.calls) == requests + 2
    await until(lambda: not writer.failure)
    await texts(wrapped, "a")
    assert len(model.calls) == requests + 2


async def test_r5_locked_database_is_not_asked_again(site, tmp_path, monkeypatch):
    """One read waits for it, and not one for each call."""
    monkeypatch.setattr(cache_lookups, "LOOKUP_S", 0.01)
    models = site(ScriptedModel("m"), log=False)
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await kept(models)
    reads, read = [], cache_store.find
    monkeypatch.setattr(cache_store, "find", lambda *args: reads.append(args) or read(*args))
    with contextlib.closing(sqlite3.connect(tmp_path / "internal.db")) as connection:
        connection.execute("begin exclusive")
        assert await soon(texts(wrapped, "a", "a", "b")) == ["Hello"] * 3
    assert len(reads) <= 1  # none where its thread has not begun in time


async def test_r5_damaged_text_is_a_miss_for_itself(site):
    """Answers that are looked up together with it are found."""
    model = ScriptedModel("m")
    models = site(model, log=False)
    wrapped = await models.model("m")
    await texts(wrapped, *map(str, range(8)))
    await kept(models)
    await change(models, "update llm_cache set call_id = cast(x'ff' as text) where rowid = 1")
    await asyncio.gather(*(texts(wrapped, str(each)) for each in range(8)))
    assert len(model.calls) == 9


def test_r5_ended_event_loops_leave_nothing(site):
    """As where a program runs one after the other."""
    models, loops = site(ScriptedModel("m")), weakref.WeakSet()

    async def ask():
        loops.add(asyncio.get_running_loop())
        await texts(await models.model("m"), "a")

    others = set(threading.enumerate())
    for _ in range(5):
        asyncio.run(ask())
    gc.collect()
    assert len(loops) <= 2  # the newest one is let go of by the next
    readers = [each for each in {*threading.enumerate()} - others if "response cache" in each.name]
    assert len([each for each in readers if each.is_alive()]) <= 2  # one may be about to end


async def test_r5_shutdown_ends_the_thread_that_reads(site):
    def threads():
        return {each for each in threading.enumerate() if "response cache" in each.name}

    models, others = site(ScriptedModel("m")), threads()
    await texts(await models.model("m"), "a")
    (reader,) = threads() - others
    await soon(models.datasette.invoke_shutdown())
    await until(lambda: not reader.is_alive())
    await texts(await models.model("m"), "a")
    assert threads() <= others


async def test_r5_newer_database_keeps_calls_going(site, caplog):
    """A table that cannot be brought up to date is no failure of the call log, and said once."""
    models = site(ScriptedModel("m"))
    wrapped = await models.model("m")
    await texts(wrapped, "a")
    await change(models, "drop table llm_cache")
    sql = "insert into _sqlite_migrations (migration_set, name, applied_at) values (?, ?, '')"
    await change(models, sql, "datasette_llm_cache", "m999")
    for _ in range(3):
        await texts(wrapped, "a")
        await calls(models)  # each in a transaction of its own
    assert [row["outcome"] for row in await calls(models)] == ["ok"] * 4
    assert caplog.text.count("The response cache cannot be written") == 1


async def test_r5_two_processes_share_it(site, make_datasette):
    """Another Datasette on the same file gets the answers, too."""
    model = ScriptedModel("m", SCRIPT)
    models, others = site(model), site(model)
    await texts(await models.model("m"), "a")
    await kept(models)
    response = await (await others.model("m")).prompt("a")
    assert (await response.text(), await response.usage()) == ("Short text", NOTHING)
    await texts(await others.model("m"), "b")
    await kept(others)
    await texts(await models.model("m"), "b")
    assert len(model.calls) == 2


KILLED = """
import asyncio, os, signal, sys
from datasette.app import Datasette
from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel, registered

async def main():
    with registered(ScriptedModel("m", ["x" * 20_000])):
        config = {"plugins": {"datasette-llm": {"cache": True}}}
        site = Datasette(memory=True, internal=sys.argv[1], config=config)
        await site.invoke_startup()
        model = await LLM(site).model("m")
        for number in range(1_000):
            await (await model.prompt(str(number))).text()
            print(number, flush=True)

asyncio.run(main())
"""


async def test_r5_sigkill_leaves_it_whole(site, tmp_path):
    """Whatever is there after a kill is whole, and its sums are right."""
    path = tmp_path / "killed.db"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(path)), stdout=asyncio.subprocess.PIPE
    )
    for _ in range(60):
        assert await soon(process.stdout.readline())
    process.kill()
    await soon(process.wait())
    model = ScriptedModel("m", ["x" * 20_000])
    models = site(model, internal=path)
    rows = await kept(models)
    assert rows
    (size,) = await models.datasette.get_internal_database().execute_fn(cache_store.sizes)
    assert (size.answers, size.bytes) == (len(rows), sum(row["bytes"] for row in rows))
    wrapped = await models.model("m")
    await texts(wrapped, *map(str, range(40)))
    assert len(model.calls) <= max(0, 40 - len(rows))


# Who sees what


class Purpose(StrEnum):
    P = "p"


async def test_r6_purpose_may_be_of_an_enum(site):
    model = ScriptedModel("m")
    models = site(model, cache={"scope": "purpose"})
    for purpose in (Purpose.P, "p", Markup("p")):
        await texts(await models.model("m", purpose=purpose), "a")
    assert len(model.calls) == 1


async def test_r6_actors_have_their_own_answers(site):
    model = ScriptedModel("m", ["1"], ["2"], ["3"], ["4"], ["5"])
    models = site(model)
    actors = [ANA, BOB, None, ANA | {"role": "x"}, {"name": "no id"}, {"name": "no id"}]
    found = [(await texts(await models.model("m", actor=actor), "a"))[0] for actor in actors]
    assert found == ["1", "2", "3", "1", "4", "5"]


async def test_r6_scope_purpose_is_shared_within_it(site):
    model = ScriptedModel("m", ["1"], ["2"])
    models = site(model, cache={"scope": "purpose"})
    asked = [("p", ANA), ("p", BOB), ("p", None), ("q", ANA)]
    found = [await texts(await models.model("m", purpose=p, actor=a), "a") for p, a in asked]
    assert found == [["1"], ["1"], ["1"], ["2"]]


@pytest.mark.parametrize("where", ["answer", "chunks", "prompt"])
async def test_k_nothing_that_holds_a_key_is_kept(site, where, tmp_path):
    key = "sk-0123456789abcdef"
    scripts = {"answer": ["the key: ", key], "chunks": ["the key: ", key[:9], key[9:]]}
    script, prompt = scripts.get(where, ["ok"]), f"my {key}" if where == "prompt" else "a"
    model = ScriptedModel("m", script, needs_key="m")
    models = site(model)
    wrapped = await models.model("m")
    await texts(wrapped, prompt, key=key)
    assert not await kept(models)
    assert key.encode() not in (tmp_path / "internal.db").read_bytes()
    await texts(wrapped, "b", key="sk-another-0123456789")
    assert b"sk-another" not in (tmp_path / "internal.db").read_bytes()


async def test_k_answer_that_holds_a_key_is_no_hit_meanwhile(site, monkeypatch):
    """Nor gets the key into the row of a prompt that has looked no key up."""
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("M_API_KEY", key)
    model = ScriptedModel("m", [key], needs_key="m", key_env_var="M_API_KEY")
    models = site(model, log={"content": True})
    wrapped = await models.model("m")
    await texts(wrapped, "a", "a", "a")
    assert len(model.calls) == 3
    assert key not in str(await flushed_rows(models.datasette, "llm_call_content"))


async def test_k_rider_knows_the_endpoints_credentials(make_datasette, server, tmp_path):
    """What the headers hold gets neither into its row nor into what is kept."""
    credential = "s3cret-of-the-gateway"
    headers = {"Authorization": credential}
    endpoint = {"model": "local", "api_base": server.url, "headers": headers}
    config = {"cache": True, "log": {"content": True}, "endpoints": [endpoint]}
    models = LLM(make_datasette(config, internal=str(tmp_path / "internal.db")))
    await models.datasette.invoke_startup()
    release = asyncio.Event()
    server.play([credential, release, "."])
    wrapped = await models.model("local")
    begun = asyncio.create_task((await wrapped.prompt("a")).text())
    (shared,) = instance.of(models.datasette, Cache).shared().values()
    other = asyncio.create_task(texts(wrapped, "a"))
    await until(lambda: len(shared.riders) == 2)
    begun.cancel()
    await soon(asyncio.wait([begun]))
    release.set()
    assert await soon(other) == [credential + "."]
    assert not await kept(models)
    contents = await flushed_rows(models.datasette, "llm_call_content")
    assert contents
    assert credential not in str(contents)


async def test_r_enrichment_run_twice_asks_once(site):
    """200 rows, ten at once, in a group; the second run makes no request, also after a restart."""
    model = ScriptedModel("m", SCRIPT)
    models = site(model)

    async def enrich(models):
        async with models.group("m", purpose="enrichments") as grouped:
            for first in range(0, 200, 10):
                rows = [grouped.prompt(f"Row {first + number}") for number in range(10)]
                await asyncio.gather(*rows)
        return grouped

    await enrich(models)
    assert len(model.calls) == 200
    await kept(models)
    await enrich(models)
    await enrich(site(model))
    assert len(model.calls) == 200
    await soon(Recorder.of(models.datasette).writer.flush())
    rows = await calls(models)
    assert len([row for row in rows if row["cached_from"]]) >= 200
    assert sum(row["saved_nanodollars"] or 0 for row in rows) >= 200 * 16_000


async def test_r3_log_of_a_failed_lookup_is_quiet(site, caplog):
    """A table that is not there yet is no message for the administrator."""
    models = site(ScriptedModel("m"))
    with caplog.at_level(logging.INFO):
        await texts(await models.model("m"), "a")
    assert not caplog.messages
    assert json.loads((await kept(models))[0]["answer"])[0] == [["Hello", 0]]

"""What the call log has of a call, and when: promises L1, L2 and L6."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import re
import sqlite3
import threading
import time
import urllib.parse
import weakref
from collections import Counter
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace

import llm
import llm.utils
import pytest
from datasette import hookimpl
from llm.parts import StreamEvent

from datasette_llm import (
    LLM,
    GroupError,
    HookError,
    ModelNotAllowedError,
    ModelNotFoundError,
    ResponseCancelledError,
    instance,
)
from datasette_llm.access.hook_failures import HookFailures
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.limiter import LimiterRegistry
from datasette_llm.console.probe import probe_model
from datasette_llm.decision import Decision, Step
from datasette_llm.errors import ProviderError, ResponseTimeoutError
from datasette_llm.log import writer
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.schema import FINISHED_COLUMNS
from datasette_llm.sanitize import MAX_COUNT, MAX_TEXT_CHARS
from datasette_llm.telemetry.spans import RequestSpan
from datasette_llm.testing import ScriptedModel

from ..support.call_log import rows_of, writing_held_up
from ..support.plugins import Observer, raises
from ..support.response_json import PlainModel
from ..support.waiting import BOUND_S, happens, soon, until

KEY = "sk-log-0123456789abcdef"
# What JSON has to escape, which must not keep it from being found.
ODD_KEY = 'sk-"log\\0123456789/+é='


class LookingModel(ScriptedModel):
    """Reads the call log, by a connection of its own, at the moment it is called."""

    def __init__(self, path, *scripts, **kwargs):
        super().__init__("scripted", *scripts, **kwargs)
        self.path = path
        self.seen = []

    async def execute(self, prompt, stream, response, conversation, key=None):
        self.seen.append({row["id"]: row for row in rows_of(self.path)}.get(response.id))
        async for chunk in super().execute(prompt, stream, response, conversation, key):
            yield chunk


def tables_of(path):
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("select name from sqlite_master where type = 'table'")
        return {name for (name,) in names}


@pytest.fixture
async def start(make_datasette, path):
    """A function that starts a Datasette with this configuration of the log."""

    async def start(log=True, **config):
        datasette = make_datasette({"log": log, **config}, internal=str(path))
        await datasette.invoke_startup()
        return datasette

    return start


@pytest.fixture
def logged(start, register_models, path):
    """A function that starts a Datasette, and gives it, a scripted model, and its wrapper."""

    async def logged(*scripts, log=True, config=None, scripted=None, **kwargs):
        scripted = scripted or ScriptedModel("scripted", *scripts)
        register_models(scripted)
        datasette = await start(log, **(config or {}))
        return datasette, scripted, await LLM(datasette).model("scripted", **kwargs)

    return logged


@pytest.fixture
def recorded(path):
    """A function that waits for all that is being written, and gives the rows."""

    async def recorded(datasette, table="llm_calls"):
        await soon(Recorder.of(datasette).writer.flush())
        return rows_of(path, table)

    return recorded


def audit(path):
    """Have SQLite itself count the second parts; one that it refuses is in our log instead."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            create table audit (id text);
            create trigger audit after update of outcome on llm_calls
            begin insert into audit values (new.id); end;
        """)


# L1: no request leaves before its row is committed


async def prompted(model):
    await (await model.prompt("x")).text()


async def prompted_without_stream(model):
    await (await model.prompt("x", stream=False)).text()


async def prompted_and_replied_to(model):
    await (await (await model.prompt("x")).reply("y")).text()


async def conversed(model):
    conversation = model.conversation()
    for text in ("x", "y", "z"):
        await (await conversation.prompt(text)).text()


async def chained(model):
    def tool():
        return "result"

    await model.chain("x", tools=[tool]).text()


async def gathered(model):
    async def one(number):
        await (await model.prompt(str(number))).text()

    await asyncio.gather(*map(one, range(50)))


@pytest.mark.parametrize(
    ("act", "scripts", "count"),
    [
        (prompted, [["a"]], 1),
        (prompted_without_stream, [["a"]], 1),
        (prompted_and_replied_to, [["a"]], 2),
        (conversed, [["a"]], 3),
        (chained, [[llm.ToolCall("tool", {}, "t1")], ["done"]], 2),
        (gathered, [["a"]], 50),
    ],
)
async def test_l1_row_is_committed_before_provider_call(logged, path, act, scripts, count):
    _, scripted, model = await logged(scripted=LookingModel(path, *scripts))
    await soon(act(model))
    assert len(scripted.seen) == count
    assert None not in scripted.seen
    assert {row["outcome"] for row in scripted.seen} == {None}
    assert len({row["id"] for row in scripted.seen}) == count


async def test_l1_first_part_has_request_and_actor(logged, path):
    datasette, scripted, _ = await logged(scripted=LookingModel(path, ["a"]))
    actor = {"id": "ana", "name": "Ana"}
    async with LLM(datasette).group("scripted", purpose="chat", actor=actor) as model:
        prompt = await model.prompt("hello", system="be kind", attachments=[])
        await prompt.text()
        group_id = prompt.stream_state.producer.result.group.id if prompt.stream_state else None
    (row,) = scripted.seen
    assert row["id"] == prompt.id
    assert (row["model_id"], row["purpose"], row["actor_id"]) == ("scripted", "chat", "ana")
    assert row["group_id"] is not None
    assert group_id in (None, row["group_id"])
    assert (row["prompt_chars"], row["system_chars"]) == (5, 7)
    assert (row["message_count"], row["attachment_count"], row["streaming"]) == (2, 0, 1)
    assert {row[name] for name in FINISHED_COLUMNS} == {None}


async def test_l1_cancelled_before_commit_is_never_sent(logged, recorded):
    datasette, scripted, model = await logged(["a"])
    log = Recorder.of(datasette).writer
    async with writing_held_up(datasette):
        caller = asyncio.create_task(model.prompt("x"))
        await until(lambda: log._task is not None and not log._task.done())
        await until(lambda: not log._awaited)  # it is on its way to the thread that writes
        caller.cancel()
        await asyncio.wait([caller], timeout=BOUND_S)
    assert caller.cancelled()
    assert scripted.calls == []
    (row,) = await recorded(datasette)
    assert row["outcome"] == "cancelled"


async def test_l1_odd_actor_id_is_recorded(logged, path):
    """An actor id may be a number or an object."""
    _, scripted, model = await logged(scripted=LookingModel(path, ["a"]), actor={"id": 7})
    await prompted(model)
    assert [row["actor_id"] for row in scripted.seen] == ["7"]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "nul\0inside"])
async def test_l1_text_invalid_in_sqlite_is_recorded(logged, path, recorded, text):
    looking = LookingModel(path, [f"answer {text}"])
    datasette, scripted, model = await logged(
        scripted=looking, log={"content": True}, actor={"id": text}, purpose=text
    )
    await (await model.prompt(text)).text()
    assert None not in scripted.seen
    (row,) = await recorded(datasette)
    assert row["outcome"] == "ok"
    assert len(await recorded(datasette, "llm_call_content")) == 2


# L2: every call that was started gets its second part, once


async def ends(world):
    await prompted(world.model)


async def ends_without_stream(world):
    await prompted_without_stream(world.model)


async def is_not_read(world):
    await world.model.prompt("x")
    await until(lambda: not world.calls)


async def fails(world):
    with pytest.raises(ValueError, match="out of paper"):
        await prompted(world.model)


async def fails_with_an_error_that_cannot_be_shown(world):
    with pytest.raises(UnshowableError):
        await prompted(world.model)


async def has_no_key(world):
    with pytest.raises(llm.NeedsKeyException):
        await world.model.prompt("x")


async def loses_its_caller(world):
    caller = asyncio.create_task(world.model.prompt("x"))
    await world.scripted.received()
    caller.cancel()
    await asyncio.wait([caller])


async def loses_its_reader(world):
    response = await world.model.prompt("x")
    reader = asyncio.create_task(response.text())
    await until(lambda: response.stream_state.readers)
    reader.cancel()
    await asyncio.wait([reader])


async def is_dropped_half_read(world):
    world.monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0.01)
    chunks = aiter(await world.model.prompt("x"))
    await anext(chunks)
    await chunks.aclose()
    await until(lambda: not world.calls)


async def is_in_a_group_that_is_torn_down(world):
    with pytest.raises(RuntimeError, match="stop"):
        async with LLM(world.datasette).group("scripted") as model:
            await model.prompt("x")
            await model.prompt("y")
            raise RuntimeError("stop")


async def is_in_a_group_that_is_left(world):
    async with LLM(world.datasette).group("scripted") as model:
        await model.prompt("x")
        await model.prompt("y")


async def fails_in_a_group_unseen(world):
    with pytest.raises(GroupError):
        async with LLM(world.datasette).group("scripted") as model:
            await model.prompt("x")


async def is_running_when_datasette_stops(world):
    await world.model.prompt("x")
    await world.datasette.invoke_shutdown()


async def is_failed_by_a_hook_after_the_yield(world):
    world.plugin(Observer(after=raises(RuntimeError("no settling"))))
    with pytest.raises(RuntimeError, match="no settling"):
        await prompted(world.model)


async def is_failed_by_a_callback(world):
    class Callback:
        @hookimpl
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                await result.on_response_done(raises(RuntimeError("no callback")))
                yield

            return context

    world.plugin(Callback())
    with pytest.raises(RuntimeError, match="no callback"):
        await prompted(world.model)


async def is_timed_out_by_a_hook(world):
    class Timer:
        @hookimpl
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                async with asyncio.timeout(0.05):
                    yield

            return context

    world.plugin(Timer())
    with pytest.raises(TimeoutError):
        await prompted(world.model)


async def is_stopped_and_its_hook_fails_in_cleanup(world):
    world.plugin(Observer(cleanup=raises(RuntimeError("no cleanup"))))
    await loses_its_caller(world)


def tool():
    """A tool for the chains."""
    return "result"


CALL = llm.ToolCall("tool", {}, "t1")


async def is_a_chain(world):
    await world.model.chain("x", tools=[tool]).text()


async def is_a_chain_that_fails(world):
    with pytest.raises(ValueError, match="out of paper"):
        await world.model.chain("x", tools=[tool]).text()


async def is_a_chain_that_is_left_between_its_steps(world):
    steps = world.model.chain("x", tools=[tool]).responses()
    await (await anext(steps)).text()
    await steps.aclose()


async def is_a_chain_whose_reader_is_cancelled(world):
    reader = asyncio.create_task(world.model.chain("x", tools=[tool]).text())
    await world.scripted.received(2)
    reader.cancel()
    await asyncio.wait([reader])


async def is_a_chain_that_pauses(world):
    def waits() -> str:
        raise llm.PauseChain("ask a person")

    with pytest.raises(llm.PauseChain):
        await world.model.chain("x", tools=[llm.Tool.function(waits, name="tool")]).text()


async def is_a_chain_that_goes_on_for_too_long(world):
    with pytest.raises(ValueError, match="Chain limit"):
        await world.model.chain("x", tools=[tool], chain_limit=2).text()


async def is_a_chain_whose_tool_raises(world):
    def fails() -> str:
        raise RuntimeError("no such table")

    await world.model.chain("x", tools=[llm.Tool.function(fails, name="tool")]).text()


async def is_cancelled_by_the_provider(world):
    with pytest.raises(ResponseCancelledError):
        await prompted(world.model)


class UnshowableError(Exception):
    def __str__(self):
        raise RuntimeError("this error cannot even be shown")


NEVER = [asyncio.Event]
PAPER = ValueError("out of paper")


@pytest.mark.parametrize(
    ("act", "scripts", "outcomes"),
    [
        (ends, [["a"]], ["ok"]),
        (ends_without_stream, [["a"]], ["ok"]),
        (is_not_read, [["a", "b"]], ["ok"]),
        (fails, [[PAPER]], ["error"]),
        (fails, [["a", PAPER]], ["error"]),
        (fails_with_an_error_that_cannot_be_shown, [[UnshowableError()]], ["error"]),
        (loses_its_caller, [[asyncio.Event]], ["cancelled"]),
        (loses_its_reader, [["a", asyncio.Event]], ["cancelled"]),
        (is_dropped_half_read, [["a", asyncio.Event]], ["cancelled"]),
        (is_in_a_group_that_is_torn_down, [["a", asyncio.Event]], ["cancelled"] * 2),
        (is_in_a_group_that_is_left, [["a"]], ["ok"] * 2),
        (fails_in_a_group_unseen, [["a", PAPER]], ["error"]),
        (is_running_when_datasette_stops, [["a", asyncio.Event]], ["cancelled"]),
        (is_failed_by_a_hook_after_the_yield, [["a"]], ["ok"]),
        (is_failed_by_a_callback, [["a"]], ["ok"]),
        (is_timed_out_by_a_hook, [["a", asyncio.Event]], ["cancelled"]),
        (is_stopped_and_its_hook_fails_in_cleanup, [[asyncio.Event]], ["cancelled"]),
        (is_a_chain, [[CALL], ["done"]], ["ok"] * 2),
        (is_a_chain_that_fails, [[CALL], [PAPER]], ["ok", "error"]),
        (is_a_chain_that_is_left_between_its_steps, [[CALL]], ["ok"]),
        (is_a_chain_that_pauses, [[CALL]], ["ok"]),
        (is_a_chain_that_goes_on_for_too_long, [[CALL]], ["ok"] * 2),
        (is_a_chain_whose_tool_raises, [[CALL], ["done"]], ["ok"] * 2),
        (is_cancelled_by_the_provider, [["a", asyncio.CancelledError()]], ["cancelled"]),
        (ends, [[]], ["ok"]),
        (is_a_chain_whose_reader_is_cancelled, [[CALL], [asyncio.Event]], ["ok", "cancelled"]),
    ],
)
async def test_l2_second_part_is_written_once(
    logged, recorded, path, plugin, monkeypatch, caplog, act, scripts, outcomes
):
    # An event belongs to one event loop, so each test makes its own.
    scripts = [[i() if i is asyncio.Event else i for i in script] for script in scripts]
    datasette, scripted, model = await logged(*scripts)
    audit(path)
    calls = instance.of(datasette, RunningCalls)
    world = SimpleNamespace(
        datasette=datasette,
        scripted=scripted,
        model=model,
        plugin=plugin,
        monkeypatch=monkeypatch,
        calls=calls,
    )
    with caplog.at_level(logging.INFO, "datasette_llm"):
        await soon(act(world))
        rows = await recorded(datasette)
    assert [row["outcome"] for row in rows] == outcomes
    assert_whole(rows)
    with closing(sqlite3.connect(path)) as connection:
        ended = Counter(i for (i,) in connection.execute("select id from audit"))
    assert ended == {row["id"]: 1 for row in rows}
    # What a hook raises is told.
    of_hooks = re.compile(r"llm_prompt_context of plugin '\w+' raised ")
    assert [each for each in caplog.messages if not of_hooks.match(each)] == []


def assert_whole(rows):
    for row in rows:
        assert row["finished_at"] >= row["started_at"]
        assert row["duration_ms"] >= 0
        assert (row["error_type"] is None) == (row["outcome"] == "ok")
        assert row["blocked_by"] is None


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (loses_its_caller, "The reader of the response was cancelled"),
        (is_in_a_group_that_is_torn_down, "The group was left by RuntimeError"),
        (is_running_when_datasette_stops, "Datasette is shutting down"),
        (is_timed_out_by_a_hook, "A plugin's timeout ended the call"),
    ],
)
async def test_l2_cancelled_row_names_its_cause(logged, recorded, plugin, act, why):
    datasette, scripted, model = await logged(["a", asyncio.Event()])
    scripted.can_stream = act is not loses_its_caller
    world = SimpleNamespace(datasette=datasette, scripted=scripted, model=model, plugin=plugin)
    if act is loses_its_caller:
        scripted.scripts = ([asyncio.Event()],)
    await soon(act(world))
    rows = await recorded(datasette)
    causes = {(row["error_type"], row["error_message"]) for row in rows}
    assert causes == {("ResponseCancelledError", why)}
    assert {row["failure_kind"] for row in rows} == {None}


async def test_l2_reply_is_measured_by_its_new_message(logged, recorded):
    datasette, _, model = await logged(["a"])
    response = await model.prompt("hello", system="be kind")
    await (await response.reply("and so on")).text()
    first, second = await recorded(datasette)
    assert (first["prompt_chars"], first["system_chars"], first["message_count"]) == (5, 7, 2)
    assert (second["prompt_chars"], second["system_chars"], second["message_count"]) == (9, 7, 4)


@pytest.mark.parametrize("way", ["prompt", "reply"])
async def test_l2_attachments_are_counted(logged, recorded, way):
    scripted = ScriptedModel("scripted", ["a"], attachment_types=["text/plain"])
    datasette, _, model = await logged(scripted=scripted)
    attachments = [llm.Attachment(type="text/plain", content=b"x")] * 2
    if way == "prompt":
        await (await model.prompt("y", attachments=attachments)).text()
    else:
        parts = [llm.parts.AttachmentPart(attachment=a) for a in attachments]
        response = await model.prompt("y")
        await (await response.reply(messages=[llm.parts.Message("user", parts)])).text()
    assert (await recorded(datasette))[-1]["attachment_count"] == 2


@pytest.mark.parametrize(
    ("who", "arguments"), [("root", {}), (None, {"stream": None}), (["ana"], {"stream": 0})]
)
async def test_l2_odd_arguments_work_with_log(logged, recorded, who, arguments):
    """Whatever llm accepts is accepted with the log too."""
    datasette, _, model = await logged(["a"], actor=who)
    assert await (await model.prompt("x", **arguments)).text() == "a"
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["actor_id"]) == ("ok", None)


@pytest.mark.parametrize(
    "arguments",
    [
        {"system": 5},
        {"system_fragments": [5]},
        {"messages": ["text"]},
        {"tool_results": [llm.ToolResult(name="t", output=5, tool_call_id="1")]},
    ],
)
async def test_l5_unmeasurable_request_is_recorded(logged, recorded, arguments):
    datasette, _, model = await logged(["a"])
    assert await (await model.prompt(**arguments)).text() == "a"
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["prompt_chars"]) == ("ok", 0)


async def test_l2_long_values_are_cut(logged, recorded):
    class Talkative(ScriptedModel):
        async def execute(self, prompt, stream, response, conversation, key=None):
            response.set_resolved_model("m" * 10**6)
            response.set_usage(input=1, output=1, details={"d": "d" * 10**6})
            yield "a"

    who = {"purpose": "p" * 10**6, "actor": {"id": {"a": "a" * 10**6}}}
    datasette, _, model = await logged(scripted=Talkative("scripted"), **who)
    await prompted(model)
    (row,) = await recorded(datasette)
    texts = [value for value in row.values() if isinstance(value, str)]
    assert max(map(len, texts)) == MAX_TEXT_CHARS
    assert json.loads(row["token_details"]).endswith("too much to keep")


async def test_l2_non_json_details_are_recorded(logged, recorded):
    details = {"share": float("nan"), "number": 1234567}
    datasette, _, model = await logged(["a", llm.Usage(True, 3, details)])
    await (await model.prompt("x", key="123456")).text()
    (row,) = await recorded(datasette)
    assert json.loads(row["token_details"]) == {"share": "NaN", "number": 1234567}
    assert row["input_tokens"] is None  # True is no number of tokens


async def test_l2_tokens_of_many_rows_add_up_in_sqlite(logged, recorded, path):
    usage = llm.Usage(MAX_COUNT, MAX_COUNT + 1)
    datasette, _, model = await logged(["a", usage])
    await prompted(model)
    await prompted(model)
    assert [row["output_tokens"] for row in await recorded(datasette)] == [None, None]
    with closing(sqlite3.connect(path)) as connection:
        (total,) = connection.execute("select sum(input_tokens) from llm_calls").fetchone()
    assert total == 2 * MAX_COUNT


async def test_l2_missing_key_ends_row_with_llms_error(logged, recorded):
    scripted = ScriptedModel("scripted", ["a"], needs_key="vault")
    datasette, scripted, model = await logged(scripted=scripted)
    await has_no_key(SimpleNamespace(model=model))
    assert scripted.calls == []
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "NeedsKeyException")


async def test_l2_swallowed_cancellation_is_cancelled(logged, recorded):
    class Stubborn(ScriptedModel):
        async def execute(self, *args, **kwargs):
            async for chunk in super().execute(*args, **kwargs):
                with contextlib.suppress(asyncio.CancelledError):
                    yield chunk
                    await asyncio.Event().wait()
                yield "goes on"

    datasette, _, model = await logged(scripted=Stubborn("scripted", ["a"]))
    response = await model.prompt("x")
    (call,) = instance.of(datasette, RunningCalls)
    call.cancel("enough")
    with pytest.raises(ResponseCancelledError):
        await soon(response.text())
    (row,) = await recorded(datasette)
    assert row["outcome"] == "cancelled"


async def test_l2_second_part_has_tokens_and_times(logged, recorded):
    script = ["a", 0.001, "b", llm.Usage(12, 3, {"prompt_tokens_details": {"cached_tokens": 4}})]
    datasette, _, model = await logged(script)
    await prompted(model)
    (row,) = await recorded(datasette)
    assert (row["input_tokens"], row["output_tokens"]) == (12, 3)
    assert json.loads(row["token_details"]) == {"prompt_tokens_details": {"cached_tokens": 4}}
    assert 0 <= row["first_chunk_ms"] <= row["duration_ms"]
    assert row["error_message"] is None


async def test_l2_failed_row_has_provider_message(logged, recorded):
    datasette, _, model = await logged([ValueError("no " * 5_000)])
    with pytest.raises(ValueError, match="no"):
        await model.prompt("x")
    (row,) = await recorded(datasette)
    assert row["error_type"] == "ValueError"
    assert row["error_message"] == ("ValueError: " + "no " * 5_000)[:MAX_TEXT_CHARS]
    assert row["first_chunk_ms"] is None


async def test_l2_chain_steps_are_linked_and_numbered(logged, recorded):
    datasette, _, model = await logged([CALL], [llm.ToolCall("tool", {}, "t2")], ["done"])
    chain = model.chain("x", tools=[tool])
    steps = [step async for step in chain.responses()]
    await prompted(model)
    *rows, alone = await recorded(datasette)
    assert [row["id"] for row in rows] == [step.id for step in steps]
    assert [row["chain_id"] for row in rows] == [steps[0].id] * 3
    assert [row["chain_step"] for row in rows] == [1, 2, 3]
    assert len({row["conversation_id"] for row in rows}) == 1
    assert (alone["chain_id"], alone["chain_step"]) == (None, None)


ODD_TOKENS = [
    llm.Usage(2**70, 3),
    llm.Usage(-1, 3),
    llm.Usage("12", 3),
    llm.Usage(float("nan"), 3),
    llm.Usage([1], 3),
]
ODD_DETAILS = [
    {"prompt_tokens_details": [1]},
    {"prompt_tokens_details": {"cached_tokens": "four"}},
    {"prompt_tokens_details": {"cached_tokens": 10**30}},
    {("a", 1): 2},
    {"\ud800": "\ud800"},
    {"object": UnshowableError()},
    [1, 2],
    "text",
]
ENDLESS: dict = {}
ENDLESS["again"] = ENDLESS


@pytest.mark.parametrize(
    "usage", [*ODD_TOKENS, *(llm.Usage(12, 3, details) for details in [*ODD_DETAILS, ENDLESS])]
)
@pytest.mark.parametrize("price", [{}, {"scripted": {"input": 1e300, "output": 1e300}}])
async def test_l2_odd_token_counts_are_tolerated(logged, recorded, usage, price):
    datasette, _, model = await logged(["a", usage], ["b"], log={"prices": price})
    assert await (await model.prompt("x")).text() == "a"
    assert await (await model.prompt("x")).text() == "b"
    odd, after = await recorded(datasette)
    assert (odd["outcome"], after["outcome"]) == ("ok", "ok")
    assert odd["output_tokens"] == 3


async def test_l2_error_invalid_in_sqlite_ends_row(logged, recorded):
    datasette, _, model = await logged([ValueError("half a pair: \ud83d")])
    with pytest.raises(ValueError, match="half a pair"):
        await model.prompt("x")
    (row,) = await recorded(datasette)
    assert row["outcome"] == "error"
    assert row["error_message"].startswith("ValueError: half a pair: ")


async def test_l2_split_surrogate_is_recorded(logged, recorded):
    """A surrogate pair that arrives in two chunks keeps row and content."""
    datasette, _, model = await logged(["\ud83d", "\ude00"], log={"content": True})
    await prompted(model)
    (row,) = await recorded(datasette)
    assert row["outcome"] == "ok"
    assert len(await recorded(datasette, "llm_call_content")) == 2


# W3: why an answer ended, and what kind of failure it was


def broken_connection():
    """An error as clients raise it: the reason is that of its cause."""
    try:
        raise ConnectionRefusedError(111, "Connection refused")
    except ConnectionRefusedError as cause:
        error = llm.ModelError("Connection error.")
        error.__cause__ = cause
        return error


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (broken_connection(), "network"),
        (ProviderError("The model is not loaded", status_code=404), "unknown_model"),
        (ProviderError("Too long", kind="bad_answer"), "bad_answer"),
        (ResponseTimeoutError("timeout", 5), "timeout"),
        (KeyError("choices"), "bad_answer"),
        (llm.ModelError(""), "other"),
    ],
)
async def test_w3_row_says_what_the_test_page_says(logged, recorded, failure, kind):
    datasette, _, _ = await logged([failure])
    probe = await probe_model(datasette, "scripted")
    (row,) = await recorded(datasette)
    assert (row["failure_kind"], row["error_message"]) == (kind, probe.error.message)
    assert probe.error.kind == kind
    assert row["finish_reason"] is None


async def test_w3_row_has_cause_without_key(logged, recorded):
    error = broken_connection()
    error.__cause__ = ConnectionError(f"refused by https://{ODD_KEY}@example.org")
    datasette, _, model = await logged([error], config={"retries": 0})
    with pytest.raises(llm.ModelError):
        await model.prompt("x", key=ODD_KEY)
    (row,) = await recorded(datasette)
    assert "refused by https://[key removed]@example.org" in row["error_message"]


@pytest.mark.parametrize(
    ("response_json", "script", "columns"),
    [
        ({"stop_reason": "max_tokens"}, ["a"], ("ok", "length", None)),
        ({"stop_reason": "refusal"}, [llm.ModelError("no")], ("error", "refusal", "other")),
        ({"stop_reason": "unheard of"}, ["a"], ("ok", "other", None)),
        (None, ["a"], ("ok", None, None)),
    ],
)
async def test_w3_row_has_finish_reason(logged, recorded, response_json, script, columns):
    scripted = PlainModel("scripted", script, response_json=response_json)
    datasette, _, model = await logged(scripted=scripted)
    with contextlib.suppress(llm.ModelError):
        await prompted(model)
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["finish_reason"], row["failure_kind"]) == columns


# W7: usage that arrived counts

PRICES = {"prices": {"scripted": {"input": 1, "output": 2}}}


@pytest.mark.parametrize(
    ("usage", "columns"),
    [
        (llm.Usage(1000, 100), (1000, 100, 1_200_000)),
        (llm.Usage(1000, None), (1000, None, 1_000_000)),
        (llm.Usage(None, None), (None, None, None)),
    ],
)
@pytest.mark.parametrize("end", [llm.ModelError("overloaded"), None], ids=["error", "cancelled"])
async def test_w7_usage_of_a_call_that_did_not_end_well(logged, recorded, usage, columns, end):
    datasette, _, model = await logged([usage, "a", end or asyncio.Event()], log=PRICES)
    response = await model.prompt("x")
    if end is None:
        (call,) = instance.of(datasette, RunningCalls)
        call.cancel("enough")
    with pytest.raises((llm.ModelError, ResponseCancelledError)):
        await soon(response.text())
    (row,) = await recorded(datasette)
    assert row["outcome"] == ("error" if end else "cancelled")
    assert (row["input_tokens"], row["output_tokens"], row["cost_nanodollars"]) == columns


@pytest.mark.parametrize("name", ["scripted", "scripted-2026-01-31"])
async def test_w7_row_has_model_of_the_server(logged, recorded, name):
    datasette, _, model = await logged(scripted=PlainModel("scripted", ["a"], resolved_model=name))
    await prompted(model)
    (row,) = await recorded(datasette)
    assert (row["model_id"], row["resolved_model"]) == ("scripted", name)


# H9: a hook that fails after a good answer is named


class Settles:
    """Fails in a callback, in place of the code after its `yield`."""

    @hookimpl
    def llm_prompt_context(self):
        @asynccontextmanager
        async def context(result):
            await result.on_response_done(raises(RuntimeError("no callback")))
            yield

        return context


@pytest.mark.parametrize("chained", [False, True])
async def test_h9_row_is_ok_and_names_the_hook(chained, logged, recorded, plugin):
    plugin(Settles(), name="settles")
    plugin(Observer("budget", after=raises(ValueError("no settling"))), name="budget")
    datasette, _, model = await logged(["a"])

    with pytest.raises(ValueError, match="no settling") as raised:
        await (model.chain("x").text() if chained else prompted(model))

    assert raised.value.__notes__[-1] == "Raised by llm_prompt_context of plugin 'budget'"
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["error_type"]) == ("ok", None)
    assert row["hook_error"] == (
        "llm_prompt_context of plugin 'settles' raised RuntimeError: no callback. "
        "llm_prompt_context of plugin 'budget' raised ValueError: no settling"
    )


async def test_h9_failing_callback_is_named(logged, recorded, plugin):
    plugin(Settles(), name="settles")
    datasette, _, model = await logged(["a"])

    with pytest.raises(RuntimeError, match="no callback") as raised:
        await prompted(model)

    assert raised.value.__notes__ == ["Raised by llm_prompt_context of plugin 'settles'"]
    [warning] = instance.of(datasette, HookFailures).warnings()
    assert "plugin 'settles' raised RuntimeError: no callback" in warning
    (row,) = await recorded(datasette)
    assert (row["outcome"], "'settles'" in row["hook_error"]) == ("ok", True)


# L2: what was blocked is recorded too, with what blocked it


async def test_l2_call_blocked_by_hook_names_plugin(logged, recorded, plugin):
    plugin(Observer("inner"))
    plugin(Observer("budget", before=raises(PermissionError("over budget"))))
    plugin(Observer("outer"))
    datasette, scripted, model = await logged(["a"], purpose="chat", actor={"id": "ana"})
    with pytest.raises(PermissionError):
        await model.prompt("x")
    assert scripted.calls == []
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["blocked_by"]) == ("blocked", "budget")
    message = "PermissionError: over budget"
    assert (row["error_type"], row["error_message"]) == ("PermissionError", message)
    assert row["failure_kind"] == "blocked"
    assert (row["model_id"], row["purpose"], row["actor_id"]) == ("scripted", "chat", "ana")
    assert row["finished_at"] == row["started_at"]


async def test_w3_refusal_of_a_hook_is_blocked(logged, recorded, plugin):
    """Also where a hook passes on that policy does not allow a model that it asked for itself."""
    refusal = ModelNotAllowedError(Decision("x", None, None, (Step("blocklist", False, "No"),)))
    plugin(Observer("budget", before=raises(refusal)))
    datasette, _, model = await logged(["a"])
    with pytest.raises(ModelNotAllowedError):
        await model.prompt("x")
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["failure_kind"]) == ("blocked", "blocked")


class RaisesWhenAsked:
    @hookimpl
    def llm_prompt_context(self):
        raise LookupError("not today")


class RaisesWhenAwaited:
    @hookimpl
    async def llm_prompt_context(self):
        raise LookupError("not today")


class GivesNoFactory:
    @hookimpl
    def llm_prompt_context(self):
        return 7


class GivesNoContext:
    @hookimpl
    def llm_prompt_context(self):
        return lambda result: 7


class TimesOutBeforeTheYield:
    @hookimpl
    def llm_prompt_context(self):
        @asynccontextmanager
        async def context(result):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
            yield

        return context


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (RaisesWhenAsked, LookupError),
        (RaisesWhenAwaited, LookupError),
        (GivesNoFactory, HookError),
        (GivesNoContext, HookError),
        (TimesOutBeforeTheYield, TimeoutError),
    ],
)
@pytest.mark.parametrize("asked", [prompted, conversed, chained])
async def test_l2_every_hook_refusal_is_blocked(logged, recorded, plugin, hook, error, asked):
    plugin(Observer("bystander"))
    plugin(hook(), name="refuser")
    datasette, scripted, model = await logged(["a"])
    with pytest.raises(error):
        await soon(asked(model))
    assert scripted.calls == []
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["blocked_by"]) == ("blocked", "refuser")
    assert row["error_type"] == error.__name__


async def test_l2_blocked_row_has_the_request(logged, recorded, plugin):
    seen = plugin(Observer("budget", before=raises(PermissionError(f"no money for {KEY}"))))
    datasette, _, model = await logged(["a"])
    conversation = model.conversation()
    with pytest.raises(PermissionError):
        await conversation.prompt("hello", system="be kind", key=KEY)
    (row,) = await recorded(datasette)
    assert (row["prompt_chars"], row["system_chars"], row["streaming"]) == (5, 7, 1)
    assert row["id"] == seen.results[0].response.id
    assert row["conversation_id"] == conversation.id
    assert row["error_message"] == "PermissionError: no money for [key removed]"


async def test_l2_timeout_blames_the_plugin_that_set_it(logged, recorded, plugin):
    """While another plugin opens, a timeout is blamed on the plugin that set it."""

    class Timer:
        @hookimpl(tryfirst=True)
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                async with asyncio.timeout(0.01):
                    yield

            return context

    plugin(Observer("slow", before=lambda result: asyncio.Event().wait()))
    plugin(Timer(), name="impatient")
    datasette, scripted, model = await logged(["a"])
    with pytest.raises(TimeoutError):
        await soon(model.prompt("x"))
    assert scripted.calls == []
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["blocked_by"]) == ("blocked", "impatient")


@pytest.mark.parametrize("stop", ["the loop", "the caller"])
async def test_l2_cancelled_during_hook_is_not_blocked(logged, recorded, plugin, stop):
    """A call that is cancelled while a hook opens is cancelled, not blocked."""
    opening = asyncio.Event()

    async def slowly(result):
        opening.set()
        await asyncio.Event().wait()

    plugin(Observer("slow", before=slowly))
    datasette, scripted, model = await logged(["a"])
    caller = asyncio.create_task(model.prompt("x"))
    await soon(opening.wait())
    (call,) = instance.of(datasette, RunningCalls)
    (call._task if stop == "the loop" else caller).cancel()
    await asyncio.wait([caller])
    assert scripted.calls == []
    assert await recorded(datasette) == []


@pytest.mark.parametrize("way_in", ["model", "group"])
async def test_l2_blocked_default_has_its_id(start, register_models, recorded, plugin, way_in):
    class Default:
        @hookimpl
        def llm_default_model(self):
            return "scripted"

    register_models(ScriptedModel("scripted"))
    plugin(Default())
    datasette = await start(blocked_models=["scripted"])
    group = LLM(datasette).group(purpose="chat")
    with pytest.raises(ModelNotAllowedError):
        await (LLM(datasette).model(purpose="chat") if way_in == "model" else group.__aenter__())
    (row,) = await recorded(datasette)
    assert (row["model_id"], row["blocked_by"]) == ("scripted", "configuration (blocklist)")
    assert (row["purpose"], row["group_id"]) == ("chat", group.id if way_in == "group" else None)


async def test_l2_blocked_call_in_group_has_group_id(logged, recorded, plugin):
    plugin(Observer("budget", before=raises(PermissionError("over budget"))))
    datasette, _, _ = await logged(["a"])
    group = LLM(datasette).group("scripted")
    async with group as model:
        with pytest.raises(PermissionError):
            await model.prompt("x")
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["group_id"]) == ("blocked", group.id)


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"models": ["other"]}, "allowlist"),
        ({"blocked_models": ["scripted"]}, "blocklist"),
        ({"purposes": {"chat": {"blocked_models": ["scripted"]}}}, "blocklist"),
    ],
)
async def test_l2_call_blocked_by_config_names_rule(start, register_models, recorded, config, rule):
    register_models(ScriptedModel("scripted"), ScriptedModel("other"))
    datasette = await start(**config)
    with pytest.raises(ModelNotAllowedError) as refused:
        await LLM(datasette).model("scripted", purpose="chat", actor={"id": "ana"})
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["blocked_by"]) == ("blocked", f"configuration ({rule})")
    assert (row["model_id"], row["purpose"], row["actor_id"]) == ("scripted", "chat", "ana")
    assert (row["error_type"], row["error_message"]) == ("ModelNotAllowedError", str(refused.value))


@pytest.mark.parametrize("way_in", ["model", "group"])
async def test_l2_call_blocked_by_filter_names_plugin(
    start, register_models, recorded, plugin, way_in
):
    class Filter:
        @hookimpl
        def llm_filter_models(self, models):
            return [model for model in models if model.model_id != "scripted"]

    register_models(ScriptedModel("scripted"))
    plugin(Filter(), name="gatekeeper")
    datasette = await start()
    with pytest.raises(ModelNotAllowedError):
        if way_in == "model":
            await LLM(datasette).model("scripted")
        else:
            async with LLM(datasette).group("scripted"):
                pass
    (row,) = await recorded(datasette)
    assert (row["outcome"], row["blocked_by"]) == ("blocked", "gatekeeper")
    assert row["failure_kind"] == "not_allowed"


async def test_l2_explain_and_models_leave_no_row(start, register_models, recorded):
    register_models(ScriptedModel("scripted"))
    datasette = await start(blocked_models=["scripted"])
    assert not (await LLM(datasette).explain("scripted")).available
    await LLM(datasette).models()
    with pytest.raises(ModelNotFoundError):
        await LLM(datasette).model("there-is-none-of-this-name")
    assert await recorded(datasette) == []


# L6: what is not enabled is not recorded


async def test_l6_no_tables_or_recorder_without_log(logged, path):
    datasette, _, model = await logged(["a"], log=False)
    before = path.read_bytes()
    await prompted(model)
    assert model.route.recorder is None
    assert not Recorder.of(datasette).writer.used
    await datasette.invoke_shutdown()
    assert {name for name in tables_of(path) if name.startswith("llm_")} == {"llm_assignments"}
    assert path.read_bytes() == before


async def test_l6_blocked_call_without_log_has_no_table(start, register_models, plugin, path):
    register_models(ScriptedModel("scripted"))
    plugin(Observer(before=raises(PermissionError("over budget"))))
    datasette = await start(False, purposes={"chat": {"blocked_models": ["scripted"]}})
    with pytest.raises(ModelNotAllowedError):
        await LLM(datasette).model("scripted", purpose="chat")
    with pytest.raises(PermissionError):
        await (await LLM(datasette).model("scripted")).prompt("x")
    await datasette.invoke_shutdown()
    assert {name for name in tables_of(path) if name.startswith("llm_")} == {"llm_assignments"}


PER_PURPOSE_ON = {"purposes": {"chat": {"log": {"content": True}}}}
PER_PURPOSE_OFF = {"purposes": {"chat": {"log": {"content": False}}}}


@pytest.mark.parametrize(
    ("log", "config", "purpose", "parts"),
    [
        (True, {}, None, 0),
        ({"content": False}, {}, "chat", 0),
        ({"content": True}, {}, None, 2),
        ({"content": True}, {}, "chat", 2),
        (True, PER_PURPOSE_ON, "chat", 2),
        (True, PER_PURPOSE_ON, "other", 0),
        (True, PER_PURPOSE_ON, None, 0),
        ({"content": True}, PER_PURPOSE_OFF, "chat", 0),
        ({"content": True}, PER_PURPOSE_OFF, "other", 2),
        ({"content": True}, PER_PURPOSE_OFF, None, 2),
    ],
)
async def test_l6_content_only_if_enabled(logged, recorded, path, log, config, purpose, parts):
    datasette, _, model = await logged(["the answer"], log=log, config=config, purpose=purpose)
    await (await model.prompt("the question", system="the system")).text()
    contents = await recorded(datasette, "llm_call_content")
    assert len(contents) == parts
    said = ("the question", "the system", "the answer")
    assert all((text.encode() in path.read_bytes()) == bool(parts) for text in said)


async def test_l6_content_has_request_and_response(logged, recorded):
    datasette, _, model = await logged([CALL], ["done"], log={"content": True})
    await model.chain("the question", system="be kind", tools=[tool], temperature=0.5).text()
    contents = await recorded(datasette, "llm_call_content")
    first, second = [row["id"] for row in await recorded(datasette)]
    stored = {(row["call_id"], row["part"]): json.loads(row["content"]) for row in contents}
    assert set(stored) == {(i, part) for i in (first, second) for part in ("request", "response")}
    request = stored[first, "request"]
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert (request["tools"], request["options"]) == (["tool"], {"temperature": 0.5})
    assert "done" in json.dumps(stored[second, "response"])


async def test_l6_partial_answer_is_recorded(logged, recorded):
    datasette, _, model = await logged(["the half", PAPER], log={"content": True})
    with pytest.raises(ValueError, match="paper"):
        await prompted(model)
    contents = await recorded(datasette, "llm_call_content")
    assert [row["part"] for row in contents] == ["request", "response"]
    assert "the half" in contents[1]["content"]


async def test_l6_content_has_no_bytes_of_attachments(logged, recorded):
    scripted = ScriptedModel("scripted", ["a"], attachment_types=["text/plain"])
    datasette, _, model = await logged(scripted=scripted, log={"content": True})
    attachment = llm.Attachment(type="text/plain", content=f"the key is {KEY}".encode())
    await (await model.prompt("x", attachments=[attachment], key=KEY)).text()
    request, _ = await recorded(datasette, "llm_call_content")
    (message,) = json.loads(request["content"])["messages"]
    described = {"type": "text/plain", "bytes": 34, "sha256": attachment.id()}
    assert message["parts"][-1]["attachment"] == described


async def test_l6_long_content_is_cut(logged, recorded):
    datasette, _, model = await logged(["b" * 3_000_000], log={"content": True})
    await (await model.prompt("a" * 1_000_007)).text()
    request, answer = [
        json.loads(row["content"])["messages"][0]["parts"][0]["text"]
        for row in await recorded(datasette, "llm_call_content")
    ]
    assert request == "a" * 1_000_000 + "… and 7 more characters"
    assert answer.endswith("b… and 2,000,000 more characters")


async def test_l6_unreadable_content_keeps_the_row(logged, recorded, caplog):
    mixed = [StreamEvent("text", "a", part_index=0), StreamEvent("reasoning", "b", part_index=0)]
    datasette, _, model = await logged(mixed, log={"content": True})
    await model.prompt("the question")
    await until(lambda: not instance.of(datasette, RunningCalls))
    (row,) = await recorded(datasette)
    request, answer = await recorded(datasette, "llm_call_content")
    assert row["outcome"] == "ok"
    assert "the question" in request["content"]
    assert json.loads(answer["content"])["not_recorded"].startswith("ValueError: ")
    assert caplog.messages == []


async def test_l6_waiting_row_does_not_hold_response(logged, recorded):
    datasette, _, model = await logged(["a"])
    log = Recorder.of(datasette).writer
    async with writing_held_up(datasette):
        log.failure = "as if the disk were full"  # so that no call waits for its first part
        await prompted(model)  # the task that writes, which this starts, has its context
        response = await model.prompt("x")
        await response.text()
        gone = weakref.ref(response)
        del response
        await until(lambda: not instance.of(datasette, RunningCalls))
        await until(lambda: gc.collect() >= 0 and gone() is None)
    log.failure = None
    assert [row["outcome"] for row in await recorded(datasette)] == ["ok", "ok"]


async def test_l6_written_row_releases_response(logged, recorded):
    """A response is released when its row is written, not at the next write."""
    datasette, scripted, model = await logged(["a"], log={"content": True})
    response = await model.prompt("x")
    await response.text()
    scripted.calls.clear()
    gone = weakref.ref(response)
    del response
    await recorded(datasette)
    await until(lambda: gc.collect() >= 0 and gone() is None)


async def test_l5_dropped_row_leaves_no_orphan_content(logged, recorded, monkeypatch):
    """If the first part of a row was dropped, its content is not written either."""
    gate = asyncio.Event()
    datasette, _, model = await logged(["a", gate], log={"content": True})
    log = Recorder.of(datasette).writer
    log.failure = "as if the disk were full"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "MAX_WAITING_BYTES", 0)
        response = await model.prompt("x")
    log.failure = None
    gate.set()
    await response.text()
    await until(lambda: not instance.of(datasette, RunningCalls))
    assert await recorded(datasette) == []
    assert await recorded(datasette, "llm_call_content") == []
    assert log.dropped == 1


# No key in the call log


class Leaking(ScriptedModel):
    """Reveals its key, in the way that it is made with."""

    def __init__(self, leak):
        super().__init__("scripted")
        self.leak = leak

    async def execute(self, prompt, stream, response, conversation, key=None):
        async for item in self.leak(response, key):
            yield item


async def in_its_text(response, key):
    yield f"my key is {key}!"


async def in_two_chunks(response, key):
    yield f"my key is {key[:9]}"
    yield f"{key[9:]}!"


async def in_its_reasoning(response, key):
    yield StreamEvent("reasoning", f"the key is {key}")
    yield "done"


async def in_a_tool_call(response, key):
    response.add_tool_call(llm.ToolCall("tool", {"key": key, key: 1}, f"id-{key}"))
    yield ""


async def in_the_name_of_the_model(response, key):
    yield "done"
    response.set_resolved_model(f"model-{key}")


async def in_its_usage(response, key):
    yield "done"
    response.set_usage(input=1, output=1, details={"key": key, key: [key]})


async def in_an_error(response, key):
    raise ValueError(f"Incorrect API key provided: {key}")
    yield


async def in_an_error_mid_stream(response, key):
    yield "a"
    raise ValueError("x" * (MAX_TEXT_CHARS - 14) + key)


async def in_a_url(response, key):
    response.set_resolved_model(f"https://example.org/?key={urllib.parse.quote_plus(key)}")
    yield f"see {urllib.parse.quote(key, safe='')} and {json.dumps(json.dumps({'key': key}))}"


async def deep_inside(response, key):
    nested = key
    for _ in range(100):
        nested = [nested]
    response.add_tool_call(llm.ToolCall("tool", {"nested": nested}, "t1"))
    yield ""


async def nowhere(response, key):
    yield "done"


def everything_in(path):
    with closing(sqlite3.connect(path)) as connection:
        dump = "\n".join(connection.iterdump())
    return dump + path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("key", [KEY, ODD_KEY])
@pytest.mark.parametrize(
    "leak",
    [
        in_its_text,
        in_two_chunks,
        in_its_reasoning,
        in_a_tool_call,
        in_the_name_of_the_model,
        in_its_usage,
        in_an_error,
        in_an_error_mid_stream,
        in_a_url,
        deep_inside,
    ],
)
async def test_l6_key_from_provider_is_not_recorded(logged, recorded, path, leak, key):
    datasette, _, model = await logged(scripted=Leaking(leak), log={"content": True})
    with contextlib.suppress(ValueError):
        await (await model.prompt("x", key=key)).text()
    (row,) = await recorded(datasette)
    assert row["outcome"] == ("error" if "error" in leak.__name__ else "ok")
    assert len(await recorded(datasette, "llm_call_content")) == 2
    assert_keyless(path, key)


def assert_keyless(path, key):
    said = everything_in(path)
    assert key not in said
    assert key.replace("'", "''") not in said
    assert json.dumps(key)[1:-1] not in said
    assert urllib.parse.quote(key, safe="") not in said
    assert key[:12] not in said  # nor its beginning, where a message was cut


@pytest.mark.parametrize("key", [KEY, ODD_KEY])
async def test_l6_key_in_prompt_is_not_recorded(logged, recorded, path, key):
    datasette, _, model = await logged(scripted=Leaking(nowhere), log={"content": True})
    response = await model.prompt(f"{key} x", system=f"use {key}", key=key)
    await (await response.reply("again")).text()
    assert len(await recorded(datasette)) == 2
    assert len(await recorded(datasette, "llm_call_content")) == 4
    assert_keyless(path, key)


async def test_l6_key_in_purpose_or_actor_not_recorded(logged, recorded, path):
    who = {"purpose": f"for {KEY}", "actor": {"id": KEY}}
    datasette, _, model = await logged(["a"], **who)
    await (await model.prompt("x", key=KEY)).text()
    assert len(await recorded(datasette)) == 1
    assert_keyless(path, KEY)


async def test_l6_key_of_unsent_call_is_not_recorded(logged, recorded, path):
    datasette, scripted, model = await logged(["a"], log={"content": True})
    log = Recorder.of(datasette).writer
    async with writing_held_up(datasette):
        caller = asyncio.create_task(model.prompt(f"my key is {KEY}", key=KEY))
        await until(lambda: log._task is not None and not log._task.done())
        caller.cancel()
        await asyncio.wait([caller], timeout=BOUND_S)
    assert scripted.calls == []
    assert len(await recorded(datasette, "llm_call_content")) == 2
    assert_keyless(path, KEY)


async def test_l6_key_from_secrets_is_not_recorded(logged, recorded, path, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_VAULT_API_KEY", KEY)
    leaking = Leaking(in_its_text)
    leaking.needs_key = "vault"
    datasette, _, model = await logged(scripted=leaking, log={"content": True})
    assert KEY in await (await model.prompt("x")).text()
    assert len(await recorded(datasette, "llm_call_content")) == 2
    assert_keyless(path, KEY)


# Clocks and event loops


async def test_clock_going_backwards(logged, recorded, monkeypatch):
    """Ids stay in order, and durations positive."""
    datasette, _, model = await logged(["a", 0.001, "b"])
    hours = itertools.count(20, -1)
    now_ns = 1_800_000_000_000_000_000

    def an_hour_earlier():
        return now_ns + next(hours) * 3_600_000_000_000

    monkeypatch.setattr(llm.utils, "time", SimpleNamespace(time_ns=an_hour_earlier))
    # What measures durations has no other clock than the monotonic one.
    for module in ("attempt", "response"):
        monkeypatch.setattr(
            f"datasette_llm.calls.{module}.time", SimpleNamespace(monotonic=time.monotonic)
        )
    minutes = itertools.count(59, -1)
    times = (f"2026-01-31T12:{minute}:00.000Z" for minute in minutes)
    monkeypatch.setattr(Recorder.of(datasette), "_clock", times.__next__)
    ids = []
    for _ in range(5):
        response = await model.prompt("x")
        await response.text()
        ids.append(response.id)
    assert ids == sorted(set(ids))
    found = await recorded(datasette)
    assert [row["id"] for row in found] == ids
    assert all(row["finished_at"] < row["started_at"] for row in found)  # as the clock said
    assert all(0 < row["first_chunk_ms"] <= row["duration_ms"] for row in found)


@pytest.fixture
def quiet_loops(caplog):
    """After the test: no event loop has logged anything."""
    with caplog.at_level(logging.INFO):
        yield
        gc.collect()  # asyncio reports only then a task that was not awaited
    said = [*caplog.get_records("call"), *caplog.records]
    assert [r.getMessage() for r in said if r.name in ("asyncio", "datasette_llm")] == []


@pytest.mark.usefixtures("quiet_loops")
def test_two_event_loops_write_one_log(make_datasette, register_models, path):
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette(internal=str(path))

    async def prompts():
        await datasette.invoke_startup()
        model = await LLM(datasette).model("scripted")
        await asyncio.gather(*[prompted(model) for _ in range(5)])

    async def more():
        await prompts()
        await datasette.invoke_shutdown()

    asyncio.run(prompts())
    asyncio.run(more())
    assert [row["outcome"] for row in rows_of(path)] == ["ok"] * 10


def test_loop_ends_during_call_next_loop_ends_row(make_datasette, register_models, path, caplog):
    register_models(ScriptedModel("scripted", ["a"]))
    endless = ScriptedModel("endless")
    register_models(endless)
    datasette = make_datasette(internal=str(path))

    async def begins():
        await datasette.invoke_startup()
        endless.scripts = (["a", asyncio.Event()],)
        await (await LLM(datasette).model("endless")).prompt("x")

    async def goes_on():
        await prompted(await LLM(datasette).model("scripted"))
        await datasette.invoke_shutdown()

    asyncio.run(begins())
    asyncio.run(goes_on())
    rows = rows_of(path)
    assert [(row["model_id"], row["outcome"]) for row in rows] == [
        ("endless", "cancelled"),
        ("scripted", "ok"),
    ]
    assert [r.getMessage() for r in caplog.records if r.name == "datasette_llm"] == []
    gc.collect()  # here asyncio reports the writing that its loop left behind


@pytest.mark.usefixtures("quiet_loops")
def test_loop_ends_during_second_part(make_datasette, register_models, path):
    scripted = ScriptedModel("scripted")
    register_models(scripted)
    datasette = make_datasette(internal=str(path))
    database = datasette.get_internal_database()
    held, may_go = threading.Event(), threading.Event()

    def hold(connection):
        held.set()
        may_go.wait(BOUND_S)

    async def begins():
        end = asyncio.Event()
        scripted.scripts = (["a", end, "b"], ["c"])
        await datasette.invoke_startup()
        response = await (await LLM(datasette).model("scripted")).prompt("x")
        await database.execute_write_fn(hold, block=False, transaction=False)
        await happens(held)
        end.set()
        await response.text()
        await until(lambda: not Recorder.of(datasette).writer._others)

    async def goes_on():
        await prompted(await LLM(datasette).model("scripted"))
        await datasette.invoke_shutdown()

    asyncio.run(begins())
    may_go.set()
    asyncio.run(goes_on())
    assert [row["outcome"] for row in rows_of(path)] == ["ok", "ok"]


def in_a_thread(work):
    """Run something in a thread of its own, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(BOUND_S)
    assert not thread.is_alive()


@pytest.mark.usefixtures("quiet_loops")
def test_e8_rows_are_finished_with_their_loop(make_datasette, register_models, path):
    """A thread with a loop of its own: when it has ended, so have its rows."""
    register_models(ScriptedModel("scripted", ["a"]))
    datasette = make_datasette({"max_concurrency": 2}, internal=str(path))

    async def prompts():
        model = await LLM(datasette).model("scripted")
        await asyncio.gather(*[prompted(model) for _ in range(20)])

    async def site():
        await datasette.invoke_startup()
        for count in (20, 40):
            await asyncio.to_thread(in_a_thread, lambda: asyncio.run(prompts()))
            assert [row["outcome"] for row in rows_of(path)] == ["ok"] * count

    asyncio.run(site())


def closed_without_order(datasette, model_id):
    """Begin a prompt in a loop of its own, and close that without asyncio.run()."""

    async def begins():
        model = await LLM(datasette).model(model_id)
        response = await model.prompt("x")
        if model_id == "scripted":
            await response.text()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begins())
    loop.close()
    return loop  # kept, so that its tasks are not closed by the collection of garbage


async def test_e8_rows_of_a_closed_loop_soon_end(make_datasette, register_models, path, plugin):
    """A loop that is closed with a write and a call in it: both end, and so do contexts."""
    observer = plugin(Observer())
    register_models(
        ScriptedModel("scripted", ["a"]), ScriptedModel("endless", ["a", asyncio.Event()])
    )
    datasette = make_datasette({"max_concurrency": 2}, internal=str(path))
    await datasette.invoke_startup()
    loops = [
        await asyncio.to_thread(closed_without_order, datasette, model_id)
        for model_id in ("scripted", "endless")
    ]
    await until(lambda: all(row["outcome"] for row in rows_of(path)))
    assert [(row["outcome"], row["error_message"]) for row in rows_of(path)] == [
        ("ok", None),
        ("cancelled", "The event loop of the call was closed"),
    ]
    await until(lambda: not instance.of(datasette, RunningCalls))
    assert [type(error) for error in observer.errors] == [ResponseCancelledError]
    assert instance.of(datasette, LimiterRegistry).all_idle()
    assert all(loop.is_closed() for loop in loops)


async def test_e8_two_loops_prompt_at_the_same_time(logged, path, recorded, caplog):
    """Prompts of another loop do not wait for this one, nor the other way round."""
    datasette, _, _ = await logged(["a"])

    async def prompts(count):
        model = await LLM(datasette).model("scripted")
        for _ in range(count):
            await asyncio.gather(*[prompted(model) for _ in range(10)])

    thread = asyncio.to_thread(lambda: asyncio.run(prompts(10)))
    await soon(asyncio.gather(thread, prompts(10)))
    found = await recorded(datasette)
    assert Counter(row["outcome"] for row in found) == {"ok": 200}
    assert [r.getMessage() for r in caplog.records if r.name == "datasette_llm"] == []


async def test_required_log_allows_recorded_call(logged, recorded):
    datasette, _, model = await logged(["a"], log={"required": True})
    assert await (await model.prompt("x")).text() == "a"
    (row,) = await recorded(datasette)
    assert row["outcome"] == "ok"


@pytest.mark.parametrize("method", ["__init__", "end"])
async def test_l2_row_ends_when_tracing_fails(logged, recorded, monkeypatch, method):
    def fail(self, *args, **kwargs):
        raise RuntimeError("a span processor is broken")

    datasette, _, model = await logged(["a"], log={"content": True})
    monkeypatch.setattr("datasette_llm.telemetry.spans.is_traced", lambda: True)
    monkeypatch.setattr(RequestSpan, method, fail)
    with pytest.raises(RuntimeError):
        await (await model.prompt("x")).text()
    [row] = await recorded(datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "RuntimeError")
    assert len(await recorded(datasette, "llm_call_content")) == 2

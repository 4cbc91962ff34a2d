"""max_concurrency: which requests run, which wait, and what the call log has of it."""

import asyncio

import llm
import pytest

from datasette_llm import ResponseTimeoutError, instance
from datasette_llm.calls import retry
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.limiter import LimiterRegistry
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.plugins import Accountant


async def settled():
    """Let everything happen that can happen now."""
    for _ in range(30):
        await asyncio.sleep(0)


def held_model(count, model_id="m", **kwargs):
    """A model whose answers each wait for an event of their own."""
    releases = [asyncio.Event() for _ in range(count)]
    return ScriptedModel(model_id, *([release, "ok"] for release in releases), **kwargs), releases


async def test_limit_is_kept_and_waiters_keep_order(site):
    model, releases = held_model(5)
    wrapped = await site(model, max_concurrency=2).model("m")
    prompts = [asyncio.create_task(wrapped.prompt(f"{n}")) for n in range(5)]
    await settled()
    assert [call.prompt for call in model.calls] == ["0", "1"]
    releases[1].set()
    await model.received(3)
    assert [call.prompt for call in model.calls] == ["0", "1", "2"]
    for release in releases:
        release.set()
    for prompt in prompts:
        assert await (await prompt).text() == "ok"
    assert [call.prompt for call in model.calls] == ["0", "1", "2", "3", "4"]


async def test_limits_count_per_model_and_per_purpose(site):
    """A model's limit counts over all purposes, and a purpose's over all models."""
    a, b = held_model(9, "a")[0], held_model(9, "b")[0]
    llms = site(
        a,
        b,
        default_model={"model": "a", "max_concurrency": 2},
        purposes={"chat": {"max_concurrency": 3}},
    )
    prompts = []
    for model_id, purpose in [("a", None), ("a", "chat"), ("a", "x"), ("b", "chat"), ("b", "chat")]:
        model = await llms.model(model_id, purpose=purpose)
        prompts.append(asyncio.create_task(model.prompt(f"{model_id} {purpose}")))
        await settled()
    assert [call.prompt for call in a.calls] == ["a None", "a chat"]
    assert [call.prompt for call in b.calls] == ["b chat", "b chat"]
    more = asyncio.create_task((await llms.model("b", purpose="chat")).prompt("b chat"))
    free = asyncio.create_task((await llms.model("b")).prompt("b None"))
    await settled()
    assert [call.prompt for call in b.calls] == ["b chat", "b chat", "b None"]
    for task in [*prompts, more, free]:
        task.cancel()
    await asyncio.gather(*prompts, more, free, return_exceptions=True)
    assert instance.of(llms.datasette, LimiterRegistry).all_idle()


async def test_cancelled_waiter_leaves_and_is_recorded(site, plugin):
    accountant = plugin(Accountant())
    model, releases = held_model(3)
    llms = site(model, log=True, max_concurrency=1)
    wrapped = await llms.model("m")
    tasks = [asyncio.create_task(wrapped.prompt(f"{n}")) for n in range(3)]
    await model.received()
    await settled()
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    for release in releases:
        release.set()
    assert await (await tasks[0]).text() == "ok"
    assert await (await tasks[2]).text() == "ok"
    assert [call.prompt for call in model.calls] == ["0", "2"]
    assert accountant.open == 0
    rows = await flushed_rows(llms.datasette)
    assert sorted(row["outcome"] for row in rows) == ["cancelled", "ok", "ok"]
    [cancelled] = [row for row in rows if row["outcome"] == "cancelled"]
    assert cancelled["error_type"] == "ResponseCancelledError"
    assert cancelled["first_chunk_ms"] is None
    assert all(row["waited_ms"] is not None for row in rows)


async def test_waiting_time_is_not_part_of_the_duration(site):
    model = ScriptedModel("m", [0.2, "ok"], ["ok"])
    llms = site(model, log=True, max_concurrency=1)
    wrapped = await llms.model("m")
    responses = await asyncio.gather(wrapped.prompt("1"), wrapped.prompt("2"))
    for response in responses:
        await response.text()
    first, second = await flushed_rows(llms.datasette)
    assert first["waited_ms"] < 100 <= second["waited_ms"]
    assert second["duration_ms"] < 150
    assert first["started_at"] < second["started_at"]


async def test_no_waiting_time_without_a_limit(site):
    llms = site(ScriptedModel("m"), log=True)
    await (await (await llms.model("m")).prompt("1")).text()
    [row] = await flushed_rows(llms.datasette)
    assert row["waited_ms"] is None


async def test_waiting_too_long_is_a_timeout(site):
    model, releases = held_model(1)
    llms = site(
        model, log=True, max_concurrency=1, purposes={"quick": {"timeout": 0.05}}, retries=0
    )
    slow = asyncio.create_task((await llms.model("m")).prompt("slow"))
    await model.received()
    with pytest.raises(ResponseTimeoutError):
        await (await llms.model("m", purpose="quick")).prompt("quick")
    releases[0].set()
    await (await slow).text()
    rows = await flushed_rows(llms.datasette)
    assert sorted((row["outcome"], row["error_type"]) for row in rows if row["purpose"]) == [
        ("error", "ResponseTimeoutError")
    ]
    assert len(model.calls) == 1


async def test_permit_is_released_during_a_pause(site, monkeypatch):
    """A permit is released during a pause, and after a failure."""
    pausing, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(delay, *args):
        pausing.set()
        await go_on.wait()

    monkeypatch.setattr("datasette_llm.calls.retry.sleep", sleep)
    model = ScriptedModel("m", [ConnectionError("no")], ["two"], ["one"])
    wrapped = await site(model, max_concurrency=1).model("m")
    one = asyncio.create_task(wrapped.prompt("one"))
    await pausing.wait()
    two = await wrapped.prompt("two")
    assert await two.text() == "two"
    go_on.set()
    assert await (await one).text() == "one"
    assert retry.WAIT_INITIAL_S == 0.5


class Asking(ScriptedModel):
    """Asks the site's models while it answers."""

    async def execute(self, *args, **kwargs):
        inner = await self.llms.model("inner", purpose="chat")
        self.said = await (await inner.prompt("?")).text()
        async for chunk in super().execute(*args, **kwargs):
            yield chunk


async def test_nested_prompt_does_not_deadlock(site):
    """A model that prompts another does not wait for its own permit."""
    outer = Asking("outer", ["ok"])
    llms = outer.llms = site(
        outer, ScriptedModel("inner", ["inside"]), purposes={"chat": {"max_concurrency": 1}}
    )
    async with asyncio.timeout(10):
        response = await (await llms.model("outer", purpose="chat")).prompt("Hi")
        assert await response.text() == "ok"
    assert outer.said == "inside"


async def test_chain_holds_a_permit_only_while_it_asks(site):
    """A step of a chain has a permit only while the provider runs."""
    call = llm.ToolCall(name="look", arguments={}, tool_call_id="t1")
    model = ScriptedModel("m", [call], ["inside"], ["Done"])
    wrapped = await site(model, max_concurrency=1).model("m")

    async def look():
        return await (await wrapped.prompt("in the tool")).text()

    async with asyncio.timeout(10):
        assert await wrapped.chain("Hi", tools=[look]).text() == "Done"


async def test_callbacks_run_after_permit_is_released(site):
    model = ScriptedModel("m", ["ok"])
    llms = site(
        model,
        default_model={"model": "m", "max_concurrency": 1},
        purposes={"chat": {"max_concurrency": 1}, "titles": {"max_concurrency": 1}},
    )
    chat, titles = await llms.model(purpose="chat"), await llms.model(purpose="titles")
    began = asyncio.Event()
    model.scripts = ([began, "ok"],)

    async def ask_for_a_title(response):
        await (await titles.prompt("of the chat")).text()

    first = asyncio.create_task(chat.prompt("Hi"))
    await model.received(1)
    (call,) = instance.of(llms.datasette, RunningCalls)
    await call.result.on_response_done(ask_for_a_title)
    # This one has a permit of its purpose's limiter, and waits for one of the model's.
    second = asyncio.create_task(titles.prompt("of another chat"))
    await settled()
    began.set()
    async with asyncio.timeout(5):
        assert await (await first).text() == "ok"
        assert await (await second).text() == "ok"
    assert len(model.calls) == 3
    assert instance.of(llms.datasette, LimiterRegistry).busy() == {}

"""Timeouts: in total and without an event, as the caller, the hooks and the record see them."""

import asyncio
import contextlib
import sqlite3

import llm
import pytest

from datasette_llm import LLM, LLMError, ResponseTimeoutError, instance
from datasette_llm.calls import retry as answering
from datasette_llm.calls import task as lifetimes
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.timeout import Deadline
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.plugins import Accountant, Observer

SHORT_S = 0.05
RECORDED_S = 0.3  # enough for the row to be written first, on a busy machine too


def forever() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(answering, "WAIT_INITIAL_S", 0)
    monkeypatch.setattr(answering, "WAIT_JITTER_S", 0)


@pytest.fixture
def site(make_datasette, register_models):
    """A function that makes an LLM of some models and a configuration."""

    def make(*models, **config):
        register_models(*models)
        return LLM(make_datasette({"log": False, **config}))

    return make


async def failure_of(awaitable):
    with pytest.raises(ResponseTimeoutError) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize("setting", ["timeout", "idle_timeout"])
async def test_a_timeout_is_an_error_of_its_own_kind_at_the_yield_and_at_the_caller(
    site, plugin, setting
):
    accountant, recorder = plugin(Accountant()), plugin(Observer())
    model = ScriptedModel("m", [forever()])
    llms = site(model, retries=0, log=True, **{setting: RECORDED_S})
    await llms.datasette.invoke_startup()
    error = await failure_of((await llms.model("m")).prompt("Hi"))
    assert isinstance(error, LLMError)
    assert isinstance(error, TimeoutError)
    assert (error.setting, error.seconds) == (setting, RECORDED_S)
    assert setting in str(error)
    assert "0.3 seconds" in str(error)
    assert recorder.errors == [error]
    assert (accountant.settled, accountant.released) == (0, 1)
    # None was made where the record alone took that long.
    assert {call.outcome for call in model.calls} <= {"cancelled"}
    assert asyncio.current_task().cancelling() == 0
    await Recorder.of(llms.datasette).writer.flush()
    internal = llms.datasette.get_internal_database()
    [row] = (await internal.execute("select * from llm_calls")).rows
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")
    assert row["error_message"] == str(error)


async def test_a_timeout_after_the_first_event_fails_the_response_for_good(site):
    model = ScriptedModel("m", ["Hel", forever()], ["Hello"])
    llms = site(model, idle_timeout=SHORT_S)
    response = await (await llms.model("m")).prompt("Hi")
    error = await failure_of(response.text())
    assert await failure_of(response.text()) is error
    assert len(model.calls) == 1


async def test_a_response_that_goes_on_is_not_idle(site):
    model = ScriptedModel("m", [item for _ in range(8) for item in (0.02, "x")])
    llms = site(model, idle_timeout=0.5)
    response = await (await llms.model("m")).prompt("Hi")
    assert await response.text() == "x" * 8


async def test_the_time_in_total_counts_while_events_come(site):
    model = ScriptedModel("m", [item for _ in range(500) for item in (0.01, "x")])
    llms = site(model, timeout=SHORT_S, idle_timeout=5)
    response = await (await llms.model("m")).prompt("Hi")
    assert (await failure_of(response.text())).setting == "timeout"
    assert 0 < model.calls[0].sent < 500


async def test_an_idle_attempt_is_tried_again_and_one_whose_time_is_over_is_not(site):
    model = ScriptedModel("m", [forever()], ["Hello"])
    response = await (await site(model, idle_timeout=SHORT_S).model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    model = ScriptedModel("m", [forever()], ["Hello"])
    await failure_of((await site(model, timeout=SHORT_S).model("m")).prompt("Hi"))
    assert len(model.calls) == 1


async def test_the_time_in_total_ends_a_pause(site, monkeypatch):
    monkeypatch.setattr(answering, "WAIT_INITIAL_S", 30)
    monkeypatch.setattr(answering, "WAIT_MAX_S", 30)
    model = ScriptedModel("m", [ConnectionError("refused")])
    error = await failure_of((await site(model, timeout=SHORT_S).model("m")).prompt("Hi"))
    assert isinstance(error.__cause__, ConnectionError)
    assert len(model.calls) == 1


async def test_the_time_in_total_ends_a_wait_for_the_record(site, monkeypatch):
    model = ScriptedModel("m", ["Hello"])
    llms = site(model, timeout=SHORT_S, log=True)
    wrapped = await llms.model("m")
    writer = Recorder.of(llms.datasette).writer
    going_on, execute = asyncio.Event(), writer._execute

    async def slow(work):
        await going_on.wait()
        return await execute(work)

    monkeypatch.setattr(writer, "_execute", slow)
    error = await failure_of(wrapped.prompt("Hi"))
    assert error.setting == "timeout"
    assert model.calls == []
    going_on.set()
    await writer.flush()
    internal = llms.datasette.get_internal_database()
    [row] = (await internal.execute("select * from llm_calls")).rows
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")


async def test_each_step_of_a_chain_has_its_time(site):
    call = llm.ToolCall(name="look", arguments={}, tool_call_id="t1")
    model = ScriptedModel("m", [0.06, call], [0.06, call], [0.06, "Done"])

    async def look():
        await asyncio.sleep(0.1)
        return "seen"

    chain = (await site(model, timeout=0.15).model("m")).chain("Hi", tools=[look])
    assert await chain.text() == "Done"


async def test_callbacks_of_a_complete_response_may_take_their_time(site, plugin):
    seen = []

    async def slow(response):
        await asyncio.sleep(SHORT_S * 3)
        seen.append(response)

    plugin(Observer(before=lambda result: result.on_response_done(slow)))
    model = ScriptedModel("m", ["Hello"])
    llms = site(model, timeout=SHORT_S, idle_timeout=SHORT_S)
    response = await (await llms.model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    assert seen == [response]


class Deaf(ScriptedModel):
    """Swallows the first cancellation, and goes on or hangs."""

    async def execute(self, *args, **kwargs):
        try:
            async for chunk in super().execute(*args, **kwargs):
                yield chunk
        except asyncio.CancelledError:
            if self.goes_on:
                yield "I go on"
            await asyncio.Event().wait()


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_provider_that_swallows_its_cancellation_is_ended(site, monkeypatch, goes_on):
    monkeypatch.setattr("datasette_llm.calls.timeout.CLEANUP_S", SHORT_S)
    model = Deaf("m", [forever()])
    model.goes_on = goes_on
    llms = site(model, timeout=SHORT_S)

    async def read():
        return await (await (await llms.model("m")).prompt("Hi")).text()

    await failure_of(read())
    assert not instance.of(llms.datasette, RunningCalls)


class Renaming(ScriptedModel):
    """Makes an error of its own of everything."""

    async def execute(self, *args, **kwargs):
        try:
            async for chunk in super().execute(*args, **kwargs):
                yield chunk
        except BaseException as error:
            raise RuntimeError("something went wrong") from error


async def test_what_a_provider_makes_of_the_cancellation_is_the_cause(site):
    llms = site(Renaming("m", [forever()]), timeout=SHORT_S)
    error = await failure_of((await llms.model("m")).prompt("Hi"))
    assert isinstance(error.__cause__, RuntimeError)


async def test_the_caller_who_cancels_first_gets_a_cancellation(site, plugin):
    recorder = plugin(Observer())
    model = ScriptedModel("m", [forever()])
    llms = site(model, timeout=60, idle_timeout=60)
    prompt = asyncio.create_task((await llms.model("m")).prompt("Hi"))
    await model.received()
    prompt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prompt
    assert [type(error).__name__ for error in recorder.errors] == ["ResponseCancelledError"]


async def test_a_hooks_own_timeout_stays_the_hooks(site, plugin):
    class Impatient(Observer):
        pass

    from contextlib import asynccontextmanager

    from datasette import hookimpl

    class Plugin:
        __name__ = "impatient"

        @hookimpl
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                async with asyncio.timeout(SHORT_S):
                    yield

            return context

    plugin(Plugin())
    llms = site(ScriptedModel("m", [forever()]), timeout=60, idle_timeout=60)
    with pytest.raises(TimeoutError) as caught:
        await (await llms.model("m")).prompt("Hi")
    assert not isinstance(caught.value, ResponseTimeoutError)


async def test_no_timer_is_left(site):
    model = ScriptedModel("m", ["Hello"])
    llms = site(model, timeout=60, idle_timeout=60)
    await (await (await llms.model("m")).prompt("Hi")).text()
    loop = asyncio.get_running_loop()
    left = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert not [timer for timer in left if "Deadline" in repr(timer)]
    assert lifetimes.CLEANUP_S == 5.0


async def test_each_event_begins_the_idle_time_anew_and_the_total_goes_on() -> None:
    end = asyncio.get_running_loop().time() + 1_000
    async with Deadline(end, 1_000, 60) as deadline:
        first = deadline._timer
        deadline.event()
        assert first is not None
        assert first.cancelled()
        assert deadline._timer is not None
        assert not deadline._timer.cancelled()
    async with Deadline(end, 1_000, 5_000) as deadline:
        deadline.event()
        assert deadline._timer is not None
        assert deadline._timer.when() == end


async def test_the_wait_for_the_record_is_part_of_the_timeout(
    make_datasette, register_models, plugin, tmp_path
):
    recorder, path = plugin(Observer()), tmp_path / "internal.db"
    model = ScriptedModel("m", ["Hello"])
    register_models(model)
    datasette = make_datasette({"timeout": SHORT_S, "fallbacks": ["m"]}, internal=str(path))
    await datasette.invoke_startup()
    wrapped = await LLM(datasette).model("m")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        error = await failure_of(wrapped.prompt("Hi"))
    assert model.calls == []
    assert recorder.errors == [error]
    await Recorder.of(datasette).writer.flush()
    [row] = (await datasette.get_internal_database().execute("select * from llm_calls")).rows
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")

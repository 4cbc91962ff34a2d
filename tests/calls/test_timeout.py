"""Timeouts: in total and without an event, as the caller, the hooks and the call log see them."""

import asyncio
import contextlib
import sqlite3

import llm
import pytest
from datasette import hookimpl

from datasette_llm import LLM, LLMError, ResponseTimeoutError, instance
from datasette_llm.calls import retry
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.task import CLEANUP_S
from datasette_llm.calls.timeout import Deadline
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows, writing_held_up
from ..support.plugins import Accountant, Observer

SHORT_S = 0.05
RECORDED_S = 0.3  # enough for the row to be written first, on a busy machine too


def forever() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retry, "WAIT_INITIAL_S", 0)
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0)


async def failure_of(awaitable):
    with pytest.raises(ResponseTimeoutError) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize("setting", ["timeout", "idle_timeout"])
async def test_timeout_error_reaches_hooks_and_caller(site, plugin, setting):
    """A timeout is an error of its own kind at the yield, at the caller and in the log."""
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
    # No request was sent where the call log alone took that long.
    assert {call.outcome for call in model.calls} <= {"cancelled"}
    assert asyncio.current_task().cancelling() == 0
    [row] = await flushed_rows(llms.datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")
    assert row["error_message"] == str(error)


async def test_timeout_after_first_event_is_final(site):
    model = ScriptedModel("m", ["Hel", forever()], ["Hello"])
    llms = site(model, idle_timeout=SHORT_S)
    response = await (await llms.model("m")).prompt("Hi")
    error = await failure_of(response.text())
    assert await failure_of(response.text()) is error
    assert len(model.calls) == 1


async def test_streaming_response_is_not_idle(site):
    model = ScriptedModel("m", [item for _ in range(8) for item in (0.02, "x")])
    llms = site(model, idle_timeout=0.5)
    response = await (await llms.model("m")).prompt("Hi")
    assert await response.text() == "x" * 8


async def test_timeout_counts_while_events_come(site):
    model = ScriptedModel("m", [item for _ in range(500) for item in (0.01, "x")])
    llms = site(model, timeout=SHORT_S, idle_timeout=5)
    response = await (await llms.model("m")).prompt("Hi")
    assert (await failure_of(response.text())).setting == "timeout"
    assert 0 < model.calls[0].sent < 500


async def test_idle_attempt_is_retried(site):
    """An idle attempt is retried, and one whose total time is over is not."""
    model = ScriptedModel("m", [forever()], ["Hello"])
    response = await (await site(model, idle_timeout=SHORT_S).model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    model = ScriptedModel("m", [forever()], ["Hello"])
    await failure_of((await site(model, timeout=SHORT_S).model("m")).prompt("Hi"))
    assert len(model.calls) == 1


async def test_timeout_ends_a_pause(site, monkeypatch):
    monkeypatch.setattr(retry, "WAIT_INITIAL_S", 30)
    monkeypatch.setattr(retry, "WAIT_MAX_S", 30)
    model = ScriptedModel("m", [ConnectionError("refused")])
    error = await failure_of((await site(model, timeout=SHORT_S).model("m")).prompt("Hi"))
    assert isinstance(error.__cause__, ConnectionError)
    assert len(model.calls) == 1


async def test_timeout_ends_a_wait_for_the_log(site):
    model = ScriptedModel("m", ["Hello"])
    llms = site(model, timeout=SHORT_S, log=True)
    wrapped = await llms.model("m")
    async with writing_held_up(llms.datasette):
        error = await failure_of(wrapped.prompt("Hi"))
    assert error.setting == "timeout"
    assert model.calls == []
    [row] = await flushed_rows(llms.datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")


async def test_each_chain_step_has_its_own_timeout(site):
    call = llm.ToolCall(name="look", arguments={}, tool_call_id="t1")
    model = ScriptedModel("m", [0.06, call], [0.06, call], [0.06, "Done"])

    async def look():
        await asyncio.sleep(0.1)
        return "seen"

    chain = (await site(model, timeout=0.15).model("m")).chain("Hi", tools=[look])
    assert await chain.text() == "Done"


async def test_callbacks_are_not_subject_to_timeouts(site, plugin):
    """Callbacks of a complete response may take their time."""
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
async def test_deaf_provider_is_ended(site, monkeypatch, goes_on):
    """A provider that swallows its cancellation is ended."""
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


async def test_error_made_of_cancellation_is_the_cause(site):
    """The error that a provider makes of the cancellation is the cause of the timeout."""
    llms = site(Renaming("m", [forever()]), timeout=SHORT_S)
    error = await failure_of((await llms.model("m")).prompt("Hi"))
    assert isinstance(error.__cause__, RuntimeError)


async def test_caller_cancelling_first_is_cancelled(site, plugin):
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
    class Plugin:
        __name__ = "impatient"

        @hookimpl
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                async with asyncio.timeout(SHORT_S):
                    yield

            return context

    plugin(Plugin())
    llms = site(ScriptedModel("m", [forever()]), timeout=60, idle_timeout=60)
    with pytest.raises(TimeoutError) as caught:
        await (await llms.model("m")).prompt("Hi")
    assert not isinstance(caught.value, ResponseTimeoutError)


async def test_no_timer_remains(site):
    model = ScriptedModel("m", ["Hello"])
    llms = site(model, timeout=60, idle_timeout=60)
    await (await (await llms.model("m")).prompt("Hi")).text()
    loop = asyncio.get_running_loop()
    left = [timer for timer in loop._scheduled if not timer.cancelled()]  # noqa: SLF001  # asyncio's timers
    assert not [timer for timer in left if "Deadline" in repr(timer)]
    assert CLEANUP_S == 5.0


async def test_event_restarts_idle_time_only(monkeypatch) -> None:
    """Each event restarts the idle time, and the total goes on."""
    loop = asyncio.get_running_loop()
    end, call_at, timers = loop.time() + 1_000, loop.call_at, []

    def noted(*args):
        timers.append(call_at(*args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", noted)
    async with Deadline(end, 1_000, 60) as deadline:
        deadline.event()
        assert [timer.cancelled() for timer in timers] == [True, False]
    async with Deadline(end, 1_000, 5_000) as deadline:
        deadline.event()
        assert not timers[-1].cancelled()
        assert timers[-1].when() == end


async def test_timeout_covers_the_wait_for_the_log(
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
    [row] = await flushed_rows(datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "ResponseTimeoutError")

"""Groups: promises G1 to G5."""

from __future__ import annotations

import asyncio

import llm
import pytest
from datasette import hookimpl

from datasette_llm import (
    LLM,
    GroupClosedError,
    GroupError,
    HookError,
    LLMError,
    ResponseCancelledError,
    instance,
)
from datasette_llm.calls.call import RunningCalls
from datasette_llm.testing import ScriptedModel

from ..support.plugins import Accountant, Observer
from ..support.waiting import until


class ExitHook:
    """Notes each group that is left."""

    def __init__(self, name="exit", work=None):
        self.__name__ = name
        self.groups = []
        self.work = work

    @hookimpl
    def llm_group_exit(self, datasette, group):
        async def cleanup():
            self.datasette = datasette
            self.groups.append(group)
            if self.work:
                await self.work(group)

        return cleanup()


@pytest.fixture
def group_of(make_datasette, register_models):
    """Register a scripted model, and make a group of it."""

    def make(*scripts, **kwargs):
        scripted = ScriptedModel("scripted", *scripts)
        register_models(scripted)
        return scripted, LLM(make_datasette()).group("scripted", **kwargs)

    return make


async def test_g1_leaving_waits_for_all_responses(group_of):
    """Leaving waits for every response, for all at once."""
    everyone = asyncio.Event()
    scripted, group = group_of(["a", everyone, "b"])
    async with group as model:
        for number in range(10):
            await model.prompt(str(number))
        assert len(scripted.calls) == 10
        asyncio.get_running_loop().call_soon(everyone.set)
    assert [response.text_or_raise() for response in group.responses] == ["ab"] * 10


async def test_g1_a_response_read_half_way_is_completed(group_of):
    gate = asyncio.Event()
    _, group = group_of(["a", gate, "b"])
    async with group as model:
        response = await model.prompt("x")
        async for _ in response:
            break
        asyncio.get_running_loop().call_later(0.01, gate.set)
    assert response.text_or_raise() == "ab"


async def test_g1_chain_with_cancelled_reader_completes(group_of):
    gate = asyncio.Event()
    scripted, group = group_of(["a", gate, "b"])
    loop = asyncio.get_running_loop()
    async with group as model:
        reader = asyncio.create_task(model.chain("x").text())
        await scripted.received()
        loop.call_soon(reader.cancel)
        loop.call_later(0.01, gate.set)
    assert group.responses[0].text_or_raise() == "ab"
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_g2_unseen_failures_raised_on_leaving(group_of):
    gate = asyncio.Event()
    _, group = group_of(
        ["a", gate, ValueError("row 0")], ["b"], ["c", gate, OSError("row 2")], ["d"]
    )
    with pytest.raises(GroupError) as caught:
        async with group as model:
            for number in range(4):
                await model.prompt(f"row {number}")
            gate.set()
    assert [str(error) for error in caught.value.exceptions] == ["row 0", "row 2"]
    assert [r.prompt.prompt for r in caught.value.responses] == ["row 0", "row 2"]
    assert "prompt 'row 2': row 2" in str(caught.value)
    assert isinstance(caught.value, LLMError)
    assert isinstance(caught.value, ExceptionGroup)
    assert group.error is caught.value
    matched, rest = caught.value.split(ValueError)
    assert len(matched.exceptions) == len(rest.exceptions) == 1


async def test_g2_seen_failures_are_not_raised_again(group_of):
    _, group = group_of([ValueError("early")], ["a", ValueError("late")])
    async with group as model:
        with pytest.raises(ValueError, match="early"):
            await model.prompt("x")
        response = await model.prompt("y")
        with pytest.raises(ValueError, match="late"):
            await response.text()
    assert group.error is None


async def test_g2_abandoned_response_is_no_failure(group_of):
    _, group = group_of(["a", asyncio.Event(), "b"])
    async with group as model:
        response = await model.prompt("x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.text(), 0.01)
    assert group.error is None


@pytest.mark.parametrize("leave", [ValueError("body"), KeyboardInterrupt(), GeneratorExit()])
async def test_g3_exception_stops_running_requests(leave, group_of, plugin):
    accountant = plugin(Accountant())
    scripted, group = group_of(["a", asyncio.Event(), "b"])
    with pytest.raises(type(leave)) as caught:
        async with group as model:
            await model.prompt("x")
            await model.prompt("y")
            raise leave
    assert caught.value is leave
    assert [call.outcome for call in scripted.calls] == ["cancelled", "cancelled"]
    assert (accountant.released, accountant.open) == (2, 0)
    assert group.error is leave


async def test_g3_cancellation_stops_running_requests(group_of, plugin):
    hook = plugin(ExitHook())
    recorder = plugin(Observer())
    scripted, group = group_of(["a", asyncio.Event(), "b"])

    async def work():
        async with group as model:
            await model.prompt("x")
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await scripted.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(recorder.errors[0], ResponseCancelledError)
    assert scripted.calls[0].outcome == "cancelled"
    assert hook.groups == [group]
    assert isinstance(group.error, asyncio.CancelledError)


async def test_g3_cancel_while_leaving_stops_requests(group_of, plugin):
    hook = plugin(ExitHook())
    scripted, group = group_of(["a", asyncio.Event(), "b"])
    leaving = asyncio.Event()

    async def work():
        async with group as model:
            await model.prompt("x")
            leaving.set()

    task = asyncio.create_task(work())
    await leaving.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scripted.calls[0].outcome == "cancelled"
    assert hook.groups == [group]


@pytest.mark.parametrize("way", ["normal", "group error", "exception", "hook error"])
async def test_g4_exit_hook_runs_exactly_once(way, group_of, plugin):
    async def fails(group):
        raise RuntimeError("ledger is down")

    plugin(ExitHook("last"))
    hook = plugin(ExitHook("first", fails if way == "hook error" else None))
    script = ["a", 0, ValueError("unseen")] if way == "group error" else ["a"]
    _, group = group_of(script, purpose="batch", actor={"id": "ana"})
    expected = {"group error": GroupError, "exception": KeyError, "hook error": RuntimeError}

    async def work():
        async with group as model:
            await model.prompt("x")
            if way == "exception":
                raise KeyError("body")

    if way == "normal":
        await work()
    else:
        with pytest.raises(expected[way]):
            await work()
    assert hook.groups == [group]
    assert (group.purpose, group.actor, group.model_id) == ("batch", {"id": "ana"}, "scripted")
    assert len(group.id) == 26
    assert group._responses is group.responses  # noqa: SLF001  # the first release's name
    assert len(group.responses) == 1
    assert (group.error is None) is (way == "normal")


async def test_g4_failing_exit_hook_stops_no_other(group_of, plugin):
    async def fails(group):
        raise RuntimeError("ledger is down")

    hooks = [plugin(ExitHook(str(number), fails)) for number in range(3)]
    _, group = group_of(["a"])
    with pytest.raises(RuntimeError, match="ledger is down"):
        async with group as model:
            await model.prompt("x")
    assert [hook.groups for hook in hooks] == [[group]] * 3


async def test_g4_exit_hook_keeps_the_bodys_exception(group_of, plugin):
    async def fails(group):
        raise RuntimeError("ledger is down")

    plugin(ExitHook(work=fails))
    _, group = group_of(["a"])
    with pytest.raises(KeyError, match="body") as caught:
        async with group:
            raise KeyError("body")
    assert "ledger is down" in "".join(caught.value.__notes__)


async def test_g4_cancelled_caller_keeps_exit_hook(group_of, plugin):
    started, finished = asyncio.Event(), []

    async def slow(group):
        started.set()
        for _ in range(5):
            await asyncio.sleep(0.001)
        finished.append(group)

    plugin(ExitHook(work=slow))
    _, group = group_of(["a"])

    async def work():
        async with group:
            pass

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == [group]


async def test_g5_after_the_block_the_model_is_closed(group_of):
    scripted, group = group_of(["a"])
    async with group as model:
        response = await model.prompt("x")
        conversation = model.conversation()
    for attempt in (
        lambda: model.prompt("y"),
        lambda: conversation.prompt("y"),
        lambda: model.chain("y").text(),
        lambda: response.reply("y"),
        group.__aenter__,
    ):
        with pytest.raises(GroupClosedError):
            await attempt()
    assert len(scripted.calls) == 1


async def test_abandoned_chain_ends_with_its_group(group_of, plugin):
    recorder = plugin(Observer())
    _, group = group_of(["I call.", llm.ToolCall(name="shout", arguments={})], ["Done."])

    def shout() -> str:
        return "!"

    async with group as model:
        steps = model.chain("x", tools=[shout]).responses()
        await (await anext(steps)).text()
    assert recorder.events == ["hook opens", "hook sees ResponseCancelledError"]
    with pytest.raises(ResponseCancelledError, match="group was left"):
        await anext(steps)


async def test_the_contexts_of_a_group_know_it(group_of, plugin):
    recorder = plugin(Observer())
    _, group = group_of(["a"])
    async with group as model:
        await asyncio.gather(*[model.prompt(str(n)) for n in range(3)])
    assert [result.group for result in recorder.results] == [group] * 3


async def test_group_of_unknown_model_is_never_entered(make_datasette, plugin):
    hook = plugin(ExitHook())
    with pytest.raises(LLMError, match="no-such-model"):
        async with LLM(make_datasette()).group("no-such-model"):
            pytest.fail("entered")
    assert hook.groups == []


async def test_the_seeds_group_example_works(group_of):
    scripted, group = group_of(["one"], ["two"])
    async with group as model:
        results = []
        for row in ({"content": "a"}, {"content": "b"}):
            response = await model.prompt(f"Summarize: {row['content']}")
            results.append(await response.text())
    assert results == ["one", "two"]
    assert [call.prompt for call in scripted.calls] == ["Summarize: a", "Summarize: b"]


async def test_g2_hook_as_reader_does_not_hide_failure(group_of, plugin):
    watchers = []

    def before(result):
        watchers.append(asyncio.create_task(result.response.text()))

    plugin(Observer(before=before, cleanup=lambda result: asyncio.wait(watchers)))
    gate = asyncio.Event()
    _, group = group_of(["a", gate, ValueError("row")])
    with pytest.raises(GroupError):
        async with group as model:
            await model.prompt("x")
            gate.set()


async def test_g4_exit_hook_runs_after_repeated_cancels(group_of, plugin):
    """The exit hook runs after every response has ended, however often the caller is cancelled."""
    running = []

    async def note(group):
        running.append(len(instance.of(hook.datasette, RunningCalls)))

    async def slow(result):
        for _ in range(20):
            await asyncio.sleep(0.001)

    hook = plugin(ExitHook(work=note))
    plugin(Observer(cleanup=slow))
    scripted, group = group_of(["a", asyncio.Event()])

    async def work():
        async with group as model:
            await model.prompt("x")
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await scripted.received()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.002)
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: running)
    assert hook.groups == [group]
    assert running == [0]


async def test_g4_exit_hook_cancelled_from_inside(group_of, plugin):
    """An exit hook that is cancelled from inside does not stop the others."""

    async def awaits_a_cancelled_task(group):
        worker = asyncio.create_task(asyncio.Event().wait())
        worker.cancel()
        await worker

    other = plugin(ExitHook("other"))
    plugin(ExitHook("first", awaits_a_cancelled_task))
    _, group = group_of(["a"])
    with pytest.raises(LLMError, match="cancelled from inside"):
        async with group as model:
            await model.prompt("x")
    assert other.groups == [group]


async def test_g4_exit_hook_that_panics(group_of, plugin):
    """What `except Exception` misses, as a library in Rust raises it, stops no other hook."""

    async def panics(group):
        raise BaseException("panicked")

    other = plugin(ExitHook("other"))
    plugin(ExitHook("first", panics))
    _, group = group_of(["a"])
    with pytest.raises(HookError, match="panicked"):
        async with group as model:
            await model.prompt("x")
    assert other.groups == [group]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_g4_hanging_exit_hook_stops_no_other(group_of, plugin, monkeypatch, stubborn):
    monkeypatch.setattr("datasette_llm.calls.group.EXIT_HOOKS_S", 0.02)
    started, release = asyncio.Event(), asyncio.Event()

    async def hangs(group):
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    other = plugin(ExitHook("other"))
    plugin(ExitHook("first", hangs))
    _, group = group_of(["a"])

    async def work():
        async with group:
            pass

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert other.groups == [group]
    release.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)

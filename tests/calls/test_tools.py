"""Tools of a chain: where plain functions run, in which order, and what their accidents become."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
from contextvars import ContextVar

import llm
import pytest

from datasette_llm import HookError

from ..support.plugins import Observer
from ..support.waiting import BOUND_S, happens, soon

who: ContextVar[str] = ContextVar("who", default="no one")


def call(name: str, **arguments: object) -> llm.ToolCall:
    return llm.ToolCall(name=name, arguments=arguments)


def tool_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "datasette-llm tools"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    for thread in tool_threads():
        thread.join(BOUND_S)
    assert tool_threads() == []


def results(scripted, step: int = 1) -> list[str]:
    """What a step of the chain was sent as the outputs of tools."""
    return [each.output for each in scripted.calls[step].request.tool_results]


async def test_e5_sync_tool_frees_the_loop(model_of):
    """The event loop goes on while a plain function waits for something that the loop does."""
    go_on = threading.Event()

    def slow() -> str:
        assert go_on.wait(BOUND_S)
        return "waited"

    scripted, model = await model_of([call("slow")], ["Done."])
    asyncio.get_running_loop().call_later(0.01, go_on.set)
    assert await model.chain("x", tools=[slow]).text() == "Done."
    assert results(scripted) == ["waited"]


async def test_e5_sync_tools_in_order_on_one_thread(model_of):
    """They come one after the other, over all steps, with the context of who reads the chain."""
    seen = []

    def note(number: int) -> str:
        seen.append((number, threading.get_ident(), who.get()))
        return str(number)

    scripted, model = await model_of(
        [call("note", number=1), call("note", number=2)], [call("note", number=3)], ["Done."]
    )
    who.set("ana")
    assert await model.chain("x", tools=[note]).text() == "Done."
    assert [(number, name) for number, _, name in seen] == [(1, "ana"), (2, "ana"), (3, "ana")]
    assert len({thread for _, thread, _ in seen}) == 1
    assert seen[0][1] != threading.get_ident()
    assert results(scripted) == ["1", "2"]


async def test_e5_sqlite_handle_stays_on_its_thread(model_of):
    class Notes(llm.Toolbox):
        connection: sqlite3.Connection | None = None

        def open(self) -> str:
            self.connection = sqlite3.connect(":memory:")
            return "open"

        def read(self) -> int:
            assert self.connection is not None
            return self.connection.execute("select 42").fetchone()[0]

    scripted, model = await model_of([call("Notes_open")], [call("Notes_read")], ["Done."])
    await model.chain("x", tools=[Notes()]).text()
    assert results(scripted, 2) == ["42"]


async def test_e5_chains_do_not_wait_for_each_other(model_of):
    """Tools of two chains that wait for each other: each chain has a thread of its own."""
    both = threading.Barrier(2)

    def meet() -> str:
        both.wait(BOUND_S)
        return "met"

    def scripts():
        return [[call("meet")]] * 2 + [["Done."]]

    _, model = await model_of(*scripts())
    chains = [model.chain("x", tools=[meet]) for _ in range(2)]
    assert await soon(asyncio.gather(*(chain.text() for chain in chains))) == ["Done.", "Done."]


async def test_e5_what_tools_return_is_awaited(model_of):
    """Awaited in the event loop, as llm does."""
    loop = asyncio.get_running_loop()

    async def later() -> str:
        return "on the loop" if asyncio.get_running_loop() is loop else "elsewhere"

    def lazy():
        return later()

    scripted, model = await model_of([call("lazy")], ["Done."])
    await model.chain("x", tools=[lazy]).text()
    assert results(scripted) == ["on the loop"]


async def test_e5_tool_may_stay_in_the_loop(model_of):
    def here() -> str:
        return str(threading.current_thread() is threading.main_thread())

    here.run_in_thread = False
    scripted, model = await model_of([call("here")], ["Done."])
    await model.chain("x", tools=[here]).text()
    assert results(scripted) == ["True"]
    assert tool_threads() == []


async def test_e5_hooks_of_llm_see_each_sync_tool(model_of):
    """before_call and after_call come around each, in turn; a refused tool does not run."""
    events = []

    def work(n: int) -> llm.ToolOutput:
        events.append(f"runs {n}")
        return llm.ToolOutput(output=f"did {n}")

    async def before(tool, tool_call):
        events.append(f"before {tool.name} {tool_call.arguments['n']}")
        if tool_call.arguments["n"] == 2:
            raise llm.CancelToolCall("not this one")

    def after(tool, tool_call, result):
        events.append(f"after {result.output}")

    scripted, model = await model_of([call("work", n=n) for n in (1, 2, 3)], ["Done."])
    chain = model.chain("x", tools=[work], before_call=before, after_call=after)
    assert await chain.text() == "Done."
    one, two, three = ([f"before work {n}", f"runs {n}", f"after did {n}"] for n in (1, 2, 3))
    assert events == [*one, two[0], *three]
    assert results(scripted) == ["did 1", "Cancelled: not this one", "did 3"]


async def test_e5_pause_leaves_later_tools_unrun(model_of):
    ran = []

    def work(n: int) -> str:
        ran.append(n)
        if n == 2:
            raise llm.PauseChain("ask")
        return str(n)

    _, model = await model_of([call("work", n=n) for n in (1, 2, 3)])
    with pytest.raises(llm.PauseChain) as caught:
        await model.chain("x", tools=[work]).text()
    assert ran == [1, 2]
    assert caught.value.tool_call.arguments == {"n": 2}
    assert [result.output for result in caught.value.tool_results] == ["1"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such table"),
        StopIteration("end"),
        asyncio.CancelledError(),
        GeneratorExit(),
        SystemExit(2),
    ],
)
async def test_e5_error_of_a_sync_tool_is_told(error, model_of):
    """The model is told, as llm does; the chain goes on."""

    def breaks() -> str:
        raise error

    scripted, model = await model_of([call("breaks")], ["Done."])
    assert await soon(model.chain("x", tools=[breaks]).text()) == "Done."
    assert results(scripted)[0].startswith("Error: ")


async def awaits_a_cancelled_task() -> str:
    inner = asyncio.create_task(asyncio.sleep(BOUND_S))
    await asyncio.sleep(0)
    inner.cancel()
    await inner
    return "never"


def returns_a_cancelled_task():
    return awaits_a_cancelled_task()


@pytest.mark.parametrize("tool", [awaits_a_cancelled_task, returns_a_cancelled_task])
@pytest.mark.parametrize("in_thread", [True, False])
async def test_e5_inner_cancellation_is_an_error(tool, in_thread, model_of, monkeypatch):
    """It is no cancellation of who reads the chain."""
    monkeypatch.setattr(tool, "run_in_thread", in_thread, raising=False)
    scripted, model = await model_of([call(tool.__name__)], ["Done."])
    assert await model.chain("x", tools=[tool]).text() == "Done."
    [output] = results(scripted)
    assert output.startswith(f"Error: Tool '{tool.__name__}' was cancelled from inside")


@pytest.mark.parametrize("when", ["before_call", "after_call"])
async def test_e5_inner_cancellation_of_a_hook(when, model_of, plugin):
    """It is an error for the reader, and for the contexts."""

    async def hook(*_):
        await awaits_a_cancelled_task()

    def look() -> str:
        return "saw"

    observer = plugin(Observer())
    _, model = await model_of([call("look")], ["Done."])
    chain = model.chain("x", tools=[look], **{when: hook})
    for _ in range(2):
        with pytest.raises(HookError, match="was cancelled from inside"):
            await chain.text()
    assert observer.events == ["hook opens", "hook sees HookError"]


async def test_e5_cancelled_caller_leaves_the_thread(model_of):
    """Who is cancelled does not wait for the function, and no further one runs."""
    began, go_on, ran = threading.Event(), threading.Event(), []

    def slow(n: int) -> str:
        ran.append(n)
        began.set()
        assert go_on.wait(BOUND_S)
        return "late"

    scripted, model = await model_of([call("slow", n=1), call("slow", n=2)], ["Done."])
    reading = asyncio.create_task(model.chain("x", tools=[slow]).text())
    await happens(began)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await soon(reading)
    assert reading.cancelled()
    go_on.set()
    assert (ran, len(scripted.calls)) == ([1], 1)


async def test_e5_chain_in_a_sync_tool(model_of):
    """A plain function may run a chain in an event loop of its own; nothing waits for itself."""

    def inner() -> str:
        return "inner"

    def outer() -> str:
        return asyncio.run(asyncio.wait_for(model.chain("y", tools=[inner]).text(), BOUND_S))

    scripted, model = await model_of([call("outer")], [call("inner")], ["Inside."], ["Done."])
    assert await soon(model.chain("x", tools=[outer]).text()) == "Done."
    assert results(scripted, 3) == ["Inside."]


async def test_e5_reply_runs_sync_tools_in_a_thread(model_of):
    def where() -> str:
        return str(threading.current_thread() is threading.main_thread())

    scripted, model = await model_of([call("where")], ["Done."])
    response = await model.prompt("x", tools=[where])
    assert await (await response.reply("go on")).text() == "Done."
    assert [part.output for part in scripted.calls[1].request.messages[2].parts] == ["False"]


async def test_e5_resumed_tools_run_in_a_thread(model_of):
    asked = []

    def ask() -> str:
        asked.append(threading.current_thread() is threading.main_thread())
        if len(asked) == 1:
            raise llm.PauseChain
        return "yes"

    scripted, model = await model_of([call("ask")], ["Done."])
    conversation = model.conversation(tools=[ask])
    with pytest.raises(llm.PauseChain):
        await conversation.chain("x").text()
    assert await conversation.chain().text() == "Done."
    assert asked == [False, False]
    assert results(scripted) == ["yes"]

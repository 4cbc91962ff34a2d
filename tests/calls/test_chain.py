"""Chains: the promises of a call, for a whole chain, and what a chain adds to them."""

from __future__ import annotations

import asyncio
import contextlib

import llm
import pytest
import sqlite_utils

from datasette_llm import ResponseCancelledError

from ..support.plugins import Accountant, Observer, raises


def shout(word: str) -> str:
    return word.upper()


def call_shout(word: str = "pelican") -> llm.ToolCall:
    return llm.ToolCall(name="shout", arguments={"word": word})


TWO_STEPS = (["I call.", call_shout()], ["Done."])


async def by_text(chain):
    return await chain.text()


async def by_iteration(chain):
    return "".join([chunk async for chunk in chain])


async def by_responses(chain):
    return " ".join([await response.text() async for response in chain.responses()])


async def by_unread_responses(chain):
    texts = [response async for response in chain.responses()]
    return " ".join([await response.text() for response in texts])


async def by_events(chain):
    return "".join([event.chunk async for event in chain.astream_events() if event.type == "text"])


WAYS = [by_text, by_iteration, by_responses, by_unread_responses, by_events]


@pytest.mark.parametrize("read", WAYS)
async def test_h1_chain_opens_contexts_once(read, model_of, plugin):
    """A chain opens the contexts once, however it is read."""
    recorder = plugin(Observer())
    scripted, model = await model_of(*TWO_STEPS, purpose="agent", actor={"id": "ana"})
    chain = model.chain("Shout pelican", tools=[shout])
    assert recorder.events == []
    assert await read(chain) == "I call. Done."
    assert recorder.events == ["hook opens", "hook succeeds"]
    [result] = recorder.results
    assert (result.is_chain, result.chain_complete) == (True, True)
    assert [await r.text() for r in result.responses] == ["I call.", "Done."]
    assert (result.purpose, result.actor) == ("agent", {"id": "ana"})
    assert scripted.calls[1].request.tool_results[0].output == "PELICAN"


@pytest.mark.parametrize("again", WAYS)
async def test_chain_runs_once_however_often_read(again, model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(*TWO_STEPS)
    chain = model.chain("x", tools=[shout])
    await chain.text()
    assert await again(chain) == "I call. Done."
    assert len(scripted.calls) == 2
    assert recorder.events == ["hook opens", "hook succeeds"]


async def test_two_readers_of_one_chain_share_its_steps(model_of):
    scripted, model = await model_of(*TWO_STEPS)
    chain = model.chain("x", tools=[shout])
    assert await asyncio.gather(chain.text(), by_responses(chain)) == ["I call. Done."] * 2
    assert len(scripted.calls) == 2


async def test_h2_blocked_chain_raises_at_first_step(model_of, plugin):
    plugin(Observer(before=raises(PermissionError("over budget"))))
    scripted, model = await model_of(*TWO_STEPS)
    chain = model.chain("x", tools=[shout])
    for _ in range(2):
        with pytest.raises(PermissionError, match="over budget"):
            async for response in chain.responses():
                await response.text()
    assert scripted.calls == []


async def test_step_is_sent_when_it_is_read(model_of):
    scripted, model = await model_of(*TWO_STEPS)
    steps = model.chain("x", tools=[shout]).responses()
    first = await anext(steps)
    assert scripted.calls == []
    await first.text()
    assert len(scripted.calls) == 1
    second = await anext(steps)
    assert len(scripted.calls) == 1
    assert await second.text() == "Done."
    with pytest.raises(StopAsyncIteration):
        await anext(steps)


async def test_h3_contexts_open_until_end_of_chain(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(*TWO_STEPS)
    events = []
    async for response in model.chain("x", tools=[shout]).responses():
        await response.text()
        events.append(list(recorder.events))
    assert events == [["hook opens"], ["hook opens"]]
    assert recorder.events == ["hook opens", "hook succeeds"]


async def test_h4_failed_step_closes_contexts_at_once(model_of, plugin):
    recorder, accountant = plugin(Observer()), plugin(Accountant())
    _, model = await model_of(["I call.", call_shout()], ["D", ValueError("broke")])
    steps = model.chain("x", tools=[shout]).responses()
    await (await anext(steps)).text()
    second = await anext(steps)
    with pytest.raises(ValueError, match="broke"):
        await second.text()
    # The generator of the steps is still alive here, and was not resumed.
    assert recorder.events == ["hook opens", "hook sees ValueError"]
    assert accountant.released == 1
    with pytest.raises(ValueError, match="broke"):
        await anext(steps)


async def test_h4_abandoned_chain_closes_contexts(model_of, plugin):
    recorder, accountant = plugin(Observer()), plugin(Accountant())
    _, model = await model_of(*TWO_STEPS)
    chain = model.chain("x", tools=[shout])
    async for response in chain.responses():
        await response.text()
        break
    await recorder.left.wait()
    assert isinstance(recorder.errors[0], ResponseCancelledError)
    assert (accountant.released, accountant.open) == (1, 0)
    assert recorder.results[0].chain_complete is False
    with pytest.raises(ResponseCancelledError):
        await chain.text()


async def test_chain_left_after_last_step_is_complete(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(["Done."])
    async for response in model.chain("x", tools=[shout]).responses():
        await response.text()
        break
    await recorder.left.wait()
    assert recorder.events == ["hook opens", "hook succeeds"]
    assert recorder.results[0].chain_complete is True


async def test_h4_cancelled_reader_stops_the_provider(model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(["a", asyncio.Event(), "b"])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.chain("x", tools=[shout]).text(), 0.2)
    assert isinstance(recorder.errors[0], ResponseCancelledError)
    assert scripted.calls[0].outcome == "cancelled"


async def test_h4_cancel_in_a_tool_closes_contexts(model_of, plugin):
    started = asyncio.Event()

    async def slow() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    recorder = plugin(Observer())
    _, model = await model_of([llm.ToolCall(name="slow", arguments={})], ["Done."])
    task = asyncio.create_task(model.chain("x", tools=[slow]).text())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == ["hook opens", "hook sees ResponseCancelledError"]


async def test_h5_contexts_of_a_chain_run_in_one_task(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(*TWO_STEPS)
    await model.chain("x", tools=[shout]).text()
    [(opened, closed)] = recorder.tasks
    assert opened is closed


async def test_c5_a_step_that_failed_stays_failed(model_of):
    _, model = await model_of(["a", ValueError("broke")])
    chain = model.chain("x", tools=[shout])
    steps = chain.responses()
    step = await anext(steps)
    for _ in range(2):
        with pytest.raises(ValueError, match="broke"):
            await step.text()
    with pytest.raises(ValueError, match="broke"):
        await anext(steps)
    with pytest.raises(ValueError, match="broke"):
        await chain.text()


async def test_a_pause_is_an_orderly_end(model_of, plugin):
    def ask(question: str) -> str:
        raise llm.PauseChain

    asking = llm.ToolCall(name="ask", arguments={"question": "why?"}, tool_call_id="c1")
    recorder, accountant = plugin(Observer()), plugin(Accountant())
    scripted, model = await model_of(["Let me ask.", asking], ["Thanks."])
    chain = model.chain("x", tools=[ask])
    for _ in range(2):
        with pytest.raises(llm.PauseChain):
            await chain.text()
    assert recorder.events == ["hook opens", "hook succeeds"]
    assert recorder.results[0].chain_complete is False
    assert accountant.settled == 1

    def answer(question: str) -> str:
        return "because"

    first = recorder.results[0].responses[0]
    history = [*first.prompt.messages, *await first.messages()]
    resumed = model.chain(messages=history, tools=[llm.Tool.function(answer, name="ask")])
    assert await resumed.text() == "Thanks."
    assert scripted.calls[1].request.tool_results[0].output == "because"
    assert recorder.events == ["hook opens", "hook succeeds"] * 2


async def test_blocked_chain_runs_no_resumed_tools(model_of, plugin):
    ran = []

    def noted() -> str:
        ran.append(True)
        return "x"

    plugin(Observer(before=raises(PermissionError("no"))))
    _, model = await model_of(["a"])
    part = llm.parts.ToolCallPart(name="noted", arguments={}, tool_call_id="c1")
    history = [llm.user("x"), llm.Message(role="assistant", parts=[part])]
    with pytest.raises(PermissionError):
        await model.chain(messages=history, tools=[noted]).text()
    assert ran == []


async def test_contexts_see_the_chain_limit_error(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(["Again.", call_shout()])
    with pytest.raises(ValueError, match="Chain limit of 2 exceeded"):
        await model.chain("x", tools=[shout], chain_limit=2).text()
    assert recorder.events == ["hook opens", "hook sees ValueError"]


async def test_on_response_done_runs_for_every_step(model_of, plugin):
    done = []
    plugin(Observer(before=lambda result: result.on_response_done(done.append)))
    _, model = await model_of(*TWO_STEPS)
    await model.chain("x", tools=[shout]).text()
    assert [response.text_or_raise() for response in done] == ["I call.", "Done."]


async def test_failing_callback_ends_the_chain(model_of, plugin):
    def too_much(response):
        raise RuntimeError("over the reservation")

    recorder = plugin(Observer(before=lambda result: result.on_response_done(too_much)))
    scripted, model = await model_of(*TWO_STEPS)
    with pytest.raises(RuntimeError, match="over the reservation"):
        await model.chain("x", tools=[shout]).text()
    assert len(scripted.calls) == 1
    assert recorder.events == ["hook opens", "hook succeeds"]


async def test_h3_no_step_while_contexts_are_left(model_of, plugin):
    """A chain that a callback ended gets no further step while its contexts are left."""
    accountant = plugin(Accountant())

    async def after(result):
        for _ in range(10):
            await asyncio.sleep(0)
        assert all(response.is_complete for response in result.responses)

    async def before(result):
        await result.on_response_done(raises(RuntimeError("over the reservation")))

    # The inner of the two gives the reader time to ask for the next step.
    recorder = plugin(Observer(before=before, after=after))
    _, model = await model_of(*TWO_STEPS)
    with pytest.raises(RuntimeError, match="over the reservation"):
        await model.chain("x", tools=[shout]).text()
    assert recorder.events == ["hook opens", "hook succeeds"]
    assert (accountant.settled, accountant.open) == (1, 0)


async def test_h6_chain_limit_keeps_provider_failure(model_of, plugin):
    """The chain limit does not hide a provider's failure from another reader."""
    recorder = plugin(Observer())
    _, model = await model_of(["I call.", call_shout()], [ValueError("broke")])
    chain = model.chain("x", tools=[shout], chain_limit=2)
    outcomes = await asyncio.gather(
        by_text(chain), by_unread_responses(chain), return_exceptions=True
    )
    assert [str(error) for error in outcomes] == ["broke", "broke"]
    assert recorder.events == ["hook opens", "hook sees ValueError"]


async def test_late_step_names_why_the_chain_ended(model_of):
    _, model = await model_of(*TWO_STEPS)
    steps = model.chain("x", tools=[shout]).responses()
    step = await anext(steps)
    step.stream_state.producer.drain("The group was left")
    with pytest.raises(ResponseCancelledError, match="The group was left"):
        await step.text()
    await steps.aclose()


async def test_a_conversation_chain_grows_its_history(model_of):
    scripted, model = await model_of(*TWO_STEPS, ["And more."])
    conversation = model.conversation(tools=[shout])
    await conversation.chain("x").text()
    await (await conversation.prompt("y")).text()
    roles = [message.role for message in scripted.calls[2].request.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


async def test_before_and_after_call_run_as_in_llm(model_of):
    seen = []

    async def before_call(tool, tool_call):
        seen.append(f"before {tool_call.name}")

    async def after_call(tool, tool_call, tool_result):
        seen.append(f"after {tool_result.output}")

    _, model = await model_of(*TWO_STEPS)
    await model.chain("x", tools=[shout], before_call=before_call, after_call=after_call).text()
    assert seen == ["before shout", "after PELICAN"]


async def test_unread_chain_sends_nothing_runs_no_hook(model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(*TWO_STEPS)
    model.chain("x", tools=[shout])
    await asyncio.sleep(0)
    assert recorder.events == []
    assert scripted.calls == []


async def test_a_chain_can_be_logged(model_of, tmp_path):
    _, model = await model_of(*TWO_STEPS)
    chain = model.chain("x", tools=[shout])
    await chain.text()
    with contextlib.closing(sqlite_utils.Database(tmp_path / "logs.db")) as db:
        chain.log_to_db(db)
        assert sum(table.count for table in db.tables) > 0


async def test_a_chain_step_can_be_replied_to(model_of):
    _, model = await model_of(["Done."], ["More."])
    [step] = [response async for response in model.chain("x", tools=[shout]).responses()]
    assert await (await step.reply("go on")).text() == "More."


async def two_readers(chain, tool_started):
    """One reader that is cancelled while a tool runs, and another of the same chain."""
    first = asyncio.create_task(chain.text())
    second = asyncio.create_task(chain.text())
    await tool_started.wait()
    first.cancel()
    await asyncio.wait([first])
    return second


async def test_c5_chain_cut_off_by_reader_is_no_success(model_of, plugin):
    """A chain that another reader cut off is no success."""
    started = asyncio.Event()

    async def slow() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    accountant = plugin(Accountant())
    _, model = await model_of(["one ", llm.ToolCall(name="slow", arguments={})], ["two"])
    other = await two_readers(model.chain("x", tools=[slow]), started)
    with pytest.raises(ResponseCancelledError):
        await other
    assert (accountant.settled, accountant.open) == (0, 0)


async def test_h8_cancel_while_opening_ends_at_once(model_of, plugin):
    opening = asyncio.Event()

    async def wait(result):
        opening.set()
        await asyncio.Event().wait()

    plugin(Observer(before=wait))
    scripted, model = await model_of(["a"])
    task = asyncio.create_task(model.chain("x", tools=[shout]).text())
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scripted.calls == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("when", ["a tool runs", "its contexts are left"])
async def test_h8_a_chains_cleanup_is_bounded(when, model_of, plugin, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 0.02)
    reached = asyncio.Event()

    async def slow() -> str:
        reached.set()
        await asyncio.Event().wait()
        return "never"

    def cleanup(result):
        reached.set()
        return asyncio.Event().wait()

    plugin(Observer(cleanup=cleanup))
    first = ["a", llm.ToolCall(name="slow", arguments={})] if when == "a tool runs" else ["a"]
    _, model = await model_of(first, ["b"])
    task = asyncio.create_task(model.chain("x", tools=[slow]).text())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = asyncio.all_tasks() - {asyncio.current_task()}
    # The name of the hook is on its way into the log.
    assert {each.get_name() for each in left} <= {"datasette-llm call log"}


async def test_c4_a_chain_goes_on_for_its_slower_reader(model_of):
    gate = asyncio.Event()
    scripted, model = await model_of(["one", call_shout()], ["two", gate, " end"])
    chain = model.chain("x", tools=[shout])
    slow = chain.responses()
    await (await anext(slow)).text()
    fast = asyncio.create_task(chain.text())
    await scripted.received(2)
    fast.cancel()
    await asyncio.wait([fast])
    gate.set()
    assert [await step.text() async for step in slow] == ["two end"]


async def test_h2_second_reader_waits_for_admission(model_of, plugin):
    ran, opening, gate = [], asyncio.Event(), asyncio.Event()

    def noted() -> str:
        ran.append(True)
        return "x"

    async def hold(result):
        opening.set()
        await gate.wait()
        raise PermissionError("no")

    plugin(Observer(before=hold))
    _, model = await model_of(["a"])
    part = llm.parts.ToolCallPart(name="noted", arguments={}, tool_call_id="c1")
    history = [llm.user("x"), llm.Message(role="assistant", parts=[part])]
    chain = model.chain(messages=history, tools=[noted])
    readers = [asyncio.create_task(chain.text()) for _ in range(2)]
    await opening.wait()
    readers[0].cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait(readers)
    assert ran == []


async def test_exception_thrown_in_closes_the_contexts(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(*TWO_STEPS)
    steps = model.chain("x", tools=[shout]).responses()
    await (await anext(steps)).text()
    with pytest.raises(KeyError):
        await steps.athrow(KeyError("mine"))
    assert recorder.events == ["hook opens", "hook sees ResponseCancelledError"]


async def test_c4_cancelled_reader_leaves_other_alone(model_of, plugin):
    """A reader cancelled while the contexts open leaves the chain to the other reader."""
    opening, gate = asyncio.Event(), asyncio.Event()

    async def hold(result):
        opening.set()
        await gate.wait()

    plugin(Observer(before=hold))
    _, model = await model_of(["one"])
    chain = model.chain("x", tools=[shout])
    first, second = (asyncio.create_task(chain.text()) for _ in range(2))
    await opening.wait()
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    assert await second == "one"

"""What a caller may rely on: promises C1 to C8."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import llm
import pydantic
import pytest
import sqlite_utils
from llm.parts import StreamEvent

from datasette_llm import LLM, ConversationBusyError, LLMError, ResponseCancelledError
from datasette_llm.calls.response import PromptResponse
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel, registered

from ..support.plugins import Observer
from ..support.response_json import PlainModel


@pytest.fixture
def model_of(make_datasette, register_models):
    """Register a scripted model, and get it through the facade."""

    async def get(*scripts, config=None, **kwargs):
        scripted = ScriptedModel("scripted", *scripts, **kwargs)
        register_models(scripted)
        return scripted, await LLM(make_datasette(config)).model("scripted")

    return get


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"temperature": "hot"}, pydantic.ValidationError),
        ({"options": {"no_such": 1}}, pydantic.ValidationError),
        ({"options": {"temperature": 1}, "temperature": 1}, TypeError),
        ({"attachments": [llm.Attachment(type="image/png", content=b"x")]}, ValueError),
        ({"schema": {"type": "object"}}, ValueError),
        ({"tools": [lambda: None]}, ValueError),
        ({"tools": [42]}, TypeError),
    ],
)
async def test_c1_arguments_are_checked_before_hooks(arguments, error, model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(["a"], supports_schema=False, supports_tools=False)
    with pytest.raises(error):
        await model.prompt("x", **arguments)
    with pytest.raises(error):
        await model.conversation().prompt("x", **arguments)
    assert recorder.events == []
    assert scripted.calls == []


async def test_c2_prompt_returns_at_the_first_event(model_of):
    gate = asyncio.Event()
    _, model = await model_of([StreamEvent(type="reasoning", chunk="hm"), gate, "a"])
    response = await model.prompt("x")
    assert not response.is_complete
    gate.set()
    assert await response.text() == "a"


async def test_c2_early_failure_raises_at_prompt(model_of):
    """A failure before the first event is raised by prompt()."""
    _, model = await model_of([ConnectionError("no such host")])
    with pytest.raises(ConnectionError, match="no such host"):
        await model.prompt("x")


@pytest.mark.parametrize("how", ["model", "call"])
async def test_c2_without_stream_prompt_returns_at_end(how, model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(["a", 0, "b"], can_stream=how != "model")
    response = await model.prompt("x", stream=how != "call")
    assert recorder.events == ["hook opens", "hook succeeds"]
    assert response.text_or_raise() == "ab"


async def test_c3_each_chunk_is_readable_at_once(model_of):
    gates = [asyncio.Event(), asyncio.Event()]
    scripted, model = await model_of(["a", gates[0], "b", gates[1], "c"])
    response = await model.prompt("x")
    read = []
    async for chunk in response:
        read.append((chunk, scripted.calls[0].sent))
        if gates:
            gates.pop(0).set()
    assert read == [("a", 1), ("b", 2), ("c", 3)]


async def test_c3_eager_provider_does_not_delay_chunks(model_of):
    """A provider that never waits does not hold its chunks back."""
    scripted, model = await model_of(["a", "b", "c", "d"])
    gate = asyncio.Event()
    scripted.scripts = ([gate, *"abcdefgh"],)
    task = asyncio.create_task(model.prompt("x"))
    await scripted.received()
    gate.set()
    response = await task
    assert scripted.calls[0].sent < 8
    assert await response.text() == "abcdefgh"


async def test_c4_several_readers_at_the_same_time(model_of):
    gate = asyncio.Event()
    _, model = await model_of(["a", gate, "b"])
    response = await model.prompt("x")

    async def stream():
        return [chunk async for chunk in response]

    async def events():
        return [event.chunk async for event in response.astream_events()]

    reading = asyncio.gather(stream(), stream(), events(), response.text(), response.usage())
    await asyncio.sleep(0)
    gate.set()
    assert (await reading)[:4] == [["a", "b"], ["a", "b"], ["a", "b"], "ab"]


async def test_c4_response_can_be_read_again(model_of):
    _, model = await model_of(["a", "b", llm.Usage(input=1, output=2)])
    response = await model.prompt("x")
    for _ in range(2):
        assert [chunk async for chunk in response] == ["a", "b"]
        assert [event.chunk async for event in response.astream_events()] == ["a", "b"]
        assert await response.text() == "ab"
        assert await response is response
    assert await anext(response) == "a"
    assert await anext(response) == "b"
    with pytest.raises(StopAsyncIteration):
        await anext(response)


async def test_c4_unread_response_completes_by_itself(model_of):
    scripted, model = await model_of(["a", 0, "b"])
    await model.prompt("x")
    await scripted.calls[0].ended.wait()
    assert scripted.calls[0].outcome == "complete"


async def test_c4_reading_on_after_pause_gives_all(model_of):
    gate = asyncio.Event()
    _, model = await model_of(["a", gate, "b"])
    response = await model.prompt("x")
    async for chunk in response:
        assert chunk == "a"
        break
    gc.collect()
    await asyncio.sleep(0)
    gate.set()
    assert [chunk async for chunk in response] == ["a", "b"]


async def test_c4_dropped_response_is_cancelled(model_of, monkeypatch):
    """A response dropped half read is cancelled at the provider."""
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0.01)
    scripted, model = await model_of(["a", asyncio.Event(), "b"])
    response = await model.prompt("x")
    async for _ in response:
        break
    await scripted.calls[0].ended.wait()
    assert scripted.calls[0].outcome == "cancelled"
    with pytest.raises(ResponseCancelledError, match="dropped"):
        await response.text()


async def test_c4_ended_response_has_no_resume_timer(model_of):
    """No timer holds a response that was dropped half read and has ended."""
    gate = asyncio.Event()
    _, model = await model_of(["a", gate, "b"])
    response = await model.prompt("x")
    chunks = aiter(response)
    await anext(chunks)
    await chunks.aclose()
    state = response.stream_state
    assert not state.resume_timer.cancelled()
    gate.set()
    await state.producer.closed.wait()
    assert state.resume_timer.cancelled()


async def test_c4_last_cancelled_reader_stops_provider(model_of):
    """A cancelled reader stops the provider unless another reads."""
    gate = asyncio.Event()
    scripted, model = await model_of(["a", gate, "b"])
    response = await model.prompt("x")
    first, second = (asyncio.create_task(response.text()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert scripted.calls[0].outcome == "running"
    gate.set()
    assert await second == "ab"
    assert scripted.calls[0].outcome == "complete"


async def test_c5_response_that_failed_stays_failed(model_of):
    gate = asyncio.Event()
    _, model = await model_of(["a", gate, ValueError("broke")])
    response = await model.prompt("x")
    read = []
    gate.set()
    with pytest.raises(ValueError, match="broke"):
        async for chunk in response:
            read.append(chunk)
    assert read == ["a"]
    for again in (response.text, response.usage, response.messages, response.tool_calls):
        with pytest.raises(ValueError, match="broke"):
            await again()
    with pytest.raises(ValueError, match="broke"):
        await response
    with pytest.raises(ValueError, match="broke"):
        response.text_or_raise()
    with pytest.raises(ValueError, match="broke"):
        response.tool_calls_or_raise()


async def test_c6_prompts_run_concurrently_in_gather(model_of):
    everyone = asyncio.Event()
    scripted, model = await model_of([everyone, "a"])

    async def release():
        await scripted.received(20)
        everyone.set()

    *got, _ = await asyncio.gather(*[model.prompt(str(n)) for n in range(20)], release())
    assert [await response.text() for response in got] == ["a"] * 20


async def test_c7_turn_during_a_turn_is_refused(model_of):
    gate = asyncio.Event()
    scripted, model = await model_of(["a", gate, "b"], ["c"])
    conversation = model.conversation()
    response = await conversation.prompt("one")
    with pytest.raises(ConversationBusyError, match="previous turn"):
        await conversation.prompt("two")
    with pytest.raises(ConversationBusyError, match="previous turn"):
        conversation.chain("two")
    gate.set()
    await response.text()
    assert await (await conversation.prompt("two")).text() == "c"
    assert [m.role for m in scripted.calls[1].request.messages] == ["user", "assistant", "user"]
    assert len(conversation.responses) == 2


async def test_c7_two_turns_at_once_are_refused(model_of):
    scripted, model = await model_of(["a"])
    conversation = model.conversation()
    outcomes = await asyncio.gather(
        conversation.prompt("one"), conversation.prompt("two"), return_exceptions=True
    )
    assert isinstance(outcomes[1], ConversationBusyError)
    assert len(scripted.calls) == 1


async def test_c7_conversation_continues_after_failure(model_of):
    _, model = await model_of([ValueError("broke")], ["a"])
    conversation = model.conversation()
    with pytest.raises(ValueError, match="broke"):
        await conversation.prompt("one")
    assert await (await conversation.prompt("two")).text() == "a"


async def test_c7_conversation_tools_reach_its_prompts(model_of):
    def clock() -> str:
        return "noon"

    scripted, model = await model_of(["a"])
    response = await model.conversation(tools=[clock]).prompt("x")
    await response.text()
    assert [tool.name for tool in scripted.calls[0].request.tools] == ["clock"]


async def test_c8_registry_is_never_read_on_event_loop(make_datasette):
    threads = []

    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            threads.append(threading.get_ident())

    plugin = Plugin()
    llm.plugins.pm.register(plugin)
    try:
        await LLM(make_datasette()).models()
    finally:
        llm.plugins.pm.unregister(plugin)
    assert threads
    assert threading.get_ident() not in threads


async def test_c8_untyped_attachments_in_a_thread(model_of, monkeypatch, tmp_path):
    """The type of an attachment is detected in a thread."""
    threads = []
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    resolve = llm.Attachment.resolve_type

    def noted(self):
        threads.append(threading.get_ident())
        return resolve(self)

    monkeypatch.setattr(llm.Attachment, "resolve_type", noted)
    _, model = await model_of(["a"], attachment_types=["image/png"])
    await model.prompt("x", attachments=[llm.Attachment(path=str(picture))])
    assert threads
    assert threading.get_ident() not in threads


async def test_a_response_is_genuine_llm(model_of, tmp_path):
    _, model = await model_of(["a", "b", llm.Usage(input=1, output=2)])
    response = await model.prompt("x", system="be brief", temperature=0.5)
    assert isinstance(response, llm.AsyncResponse)
    done = []
    await response.on_done(done.append)
    assert await response.text() == "ab"
    assert await response.json() is None
    assert (await response.messages())[0].parts[0].text == "ab"
    assert await response.duration_ms() >= 0
    assert (await response.datetime_utc()).startswith("20")
    stored = response.to_dict()
    assert (stored["model"], stored["usage"]) == ("scripted", {"input": 1, "output": 2})
    assert stored["prompt"]["options"] == {"temperature": 0.5}
    with contextlib.closing(sqlite_utils.Database(tmp_path / "logs.db")) as db:
        response.log_to_db(db)
        assert sum(table.count for table in db.tables) > 0
    again = PromptResponse.from_dict(stored, model=model)
    assert await again.text() == "ab"
    assert [chunk async for chunk in again] == ["ab"]
    assert await (await again.reply("more")).text() == "ab"
    assert done == [response]


async def test_reply_waits_and_keeps_the_explicit_key(model_of):
    scripted, model = await model_of(["a", 0, "b"], ["c"], needs_key="vendor")
    response = await model.prompt("x", key="sk-explicit")
    assert await (await response.reply("y")).text() == "c"
    assert [call.key for call in scripted.calls] == ["sk-explicit", "sk-explicit"]


async def test_prompt_text_is_optional(model_of):
    """The text of a prompt is optional, and given by position or by name."""
    scripted, model = await model_of(["a"])
    for prompt in (
        model.prompt("x"),
        model.prompt(prompt="x"),
        model.prompt(),
        model.prompt(""),
        model.prompt(messages=[llm.user("x")]),
        model.prompt(fragments=["one", "two"]),
    ):
        assert await (await prompt).text() == "a"
    assert [call.prompt for call in scripted.calls] == ["x", "x", "", "", "", "one\ntwo"]


async def test_a_prompt_of_five_megabytes_arrives_whole(model_of):
    scripted, model = await model_of(["a"])
    text = "x" * 5_000_000
    assert await (await model.prompt(text)).text() == "a"
    assert scripted.calls[0].prompt == text


@pytest.mark.parametrize(
    "given", [{"temperature": 1.5}, {"options": {"temperature": 1.5}}], ids=["keyword", "options"]
)
async def test_configured_options_are_defaults(given, model_of):
    reference = {"model": "scripted", "options": {"temperature": 0.5, "max_tokens": 10}}
    scripted, model = await model_of(["a"], config={"default_model": reference})
    await model.prompt("x")
    await model.prompt("x", **given)
    await model.conversation().prompt("x", **given)
    await model.chain("x", **given).text()
    seen = [(c.request.options.temperature, c.request.options.max_tokens) for c in scripted.calls]
    assert seen == [(0.5, 10), (1.5, 10), (1.5, 10), (1.5, 10)]


async def test_an_empty_answer_is_an_answer(model_of):
    _, model = await model_of([])
    response = await model.prompt("x")
    assert await response.text() == ""
    assert [chunk async for chunk in response] == []


async def test_response_made_by_llm_cannot_skip_hooks(model_of):
    scripted, model = await model_of(["a"])
    plain = llm.AsyncResponse(llm.Prompt("x", model), model, True)
    with pytest.raises(LLMError, match="pass by the hooks"):
        await plain.text()
    assert scripted.calls == []


def test_no_event_loop_is_bound_at_construction(make_datasette):
    datasette = make_datasette()
    scripted = ScriptedModel("scripted", ["a"])

    async def ask():
        model = await LLM(datasette).model("scripted")
        return await (await model.prompt("x")).text()

    with registered(scripted):
        assert [asyncio.run(ask()) for _ in range(3)] == ["a", "a", "a"]


async def test_a_finished_response_keeps_no_task_alive(model_of):
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    await response.text()
    assert response.stream_state is None
    await Recorder.of(model.route.datasette).writer.flush()
    assert len(asyncio.all_tasks()) == 1


async def test_c5_anext_after_a_failure_raises_it_again(model_of):
    _, model = await model_of(["a", ValueError("broke")])
    response = await model.prompt("x")
    assert await anext(response) == "a"
    for _ in range(2):
        with pytest.raises(ValueError, match="broke"):
            await anext(response)


async def test_c5_anext_after_timeout_is_not_the_end(model_of):
    _, model = await model_of(["a", asyncio.Event(), "b"])
    response = await model.prompt("x")
    assert await anext(response) == "a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(response), 0.01)
    with pytest.raises(ResponseCancelledError):
        await anext(response)


async def test_c7_chain_started_during_turn_is_refused(model_of):
    scripted, model = await model_of(["a", asyncio.Event(), "b"])
    conversation = model.conversation()
    first, second = conversation.chain("one"), conversation.chain("two")
    steps = first.responses()
    reading = asyncio.create_task(anext(aiter(await anext(steps))))
    assert await reading == "a"
    with pytest.raises(ConversationBusyError):
        await second.text()
    with pytest.raises(ConversationBusyError):
        await conversation.prompt("three")
    assert len(scripted.calls) == 1
    await steps.aclose()


async def test_c7_chain_made_before_a_turn_is_refused(model_of):
    _, model = await model_of(["a"])
    conversation = model.conversation()
    stale = conversation.chain("two")
    await (await conversation.prompt("one")).text()
    with pytest.raises(ConversationBusyError, match="gone on"):
        await stale.text()


async def test_a_model_may_return_any_async_iterator(model_of):
    class Chunks:
        def __init__(self):
            self.left = ["a", "b"]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    scripted, model = await model_of(["a"])
    scripted.execute = lambda *args, **kwargs: Chunks()
    assert await (await model.prompt("x")).text() == "ab"


async def test_c5_anext_continues_while_another_reads(model_of):
    """After a timeout `anext` goes on while another reads."""
    gate = asyncio.Event()
    _, model = await model_of(["one ", gate, "two ", "three"])
    response = await model.prompt("x")
    other = asyncio.create_task(response.text())
    assert await anext(response) == "one "
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(response), 0.01)
    gate.set()
    assert [await anext(response), await anext(response)] == ["two ", "three"]
    with pytest.raises(StopAsyncIteration):
        await anext(response)
    assert await other == "one two three"


async def test_c7_refused_chain_can_be_read_later(model_of):
    scripted, model = await model_of(["a", asyncio.Event()], ["b"])
    conversation = model.conversation()
    chain = conversation.chain("two")
    first = await conversation.prompt("one")
    with pytest.raises(ConversationBusyError):
        await chain.text()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first.text(), 0.01)
    assert await chain.text() == "b"
    assert len(scripted.calls) == 2


@pytest.mark.parametrize(
    ("response_json", "script", "expected"),
    [
        ({"stop_reason": "max_tokens"}, ["Once upon"], "length"),
        ({"done_reason": "stop"}, [llm.ToolCall(name="f", arguments={})], "tool_calls"),
        (None, ["Hi"], None),
    ],
)
async def test_w3_response_and_result_have_reason(
    register_models, make_datasette, plugin, response_json, script, expected
):
    register_models(PlainModel("plain", script, response_json=response_json))
    seen = []

    def note(result):
        seen.append(result.finish_reason)

    plugin(Observer(before=note, after=note))
    response = await (await LLM(make_datasette()).model("plain")).prompt("Hi")
    await response.text()
    assert response.finish_reason == expected
    assert seen == [None, expected]

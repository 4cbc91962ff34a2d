"""The examples and tables of `prompting.md`."""

from __future__ import annotations

import asyncio
import itertools
import re

import llm
import pytest
from datasette import Request

import datasette_llm
from datasette_llm import (
    ConversationBusyError,
    errors,
)
from datasette_llm.testing import ScriptedModel

from .examples import (
    claude,
    fill_database,
    ours,
    request_by,
    run,
    shows,
)


@shows(source="prompt")
async def test_prompt_takes_what_llms_prompt_takes(source, make_datasette, register_models):
    scripted = ScriptedModel("claude-haiku-4.5", ['{"name": ', '"Ray"}', llm.Usage(input=9)])
    register_models(scripted)
    names = await run(source, datasette=make_datasette(), request=request_by({"id": "ana"}))
    assert names["pet"] == {"name": "Ray"}
    assert names["usage"].input == 9
    assert (names["model"].purpose, names["model"].actor) == ("pets", {"id": "ana"})
    request = scripted.calls[0].request
    assert request.options.temperature == 0.5
    assert request.system == "You breed unusual animals."
    assert request.schema["properties"] == {"name": {"type": "string"}}


@shows(source="cached answers")
async def test_cached_answers_are_passed_or_renewed(source, make_datasette, register_models):
    scripted = ScriptedModel("m", ["1"], ["2"], ["3"])
    register_models(scripted)
    model = await datasette_llm.LLM(make_datasette({"cache": True})).model("m")
    await (await model.prompt("A name for a pelican")).text()
    await run(source, model=model)
    assert len(scripted.calls) == 3
    assert await (await model.prompt("A name for a pelican")).text() == "3"


@shows(source="models", config="datasette.yaml")
async def test_list_has_the_models_of_the_purpose(
    source, config, make_datasette, register_models, anthropic_key
):
    """In order, and ready to prompt."""
    ids = ("gemini-2.5-pro", "gemini-2.5-flash", "claude-opus-4.5", "other", "claude-haiku-4.5")
    register_models(*map(ScriptedModel, ids))
    datasette = make_datasette(ours(config))
    names = await run(source, datasette=datasette, request=request_by(None))
    assert names["choices"] == ["claude-haiku-4.5", "gemini-2.5-pro"]
    assert await (await names["models"][1].prompt("x")).text() == "Hello"


async def _streamed(datasette, path: str, on_chunk) -> int:
    """Request a page, and hand on each chunk of its body as soon as the view writes it."""
    status = 0

    async def send(message):
        nonlocal status
        status = message.get("status", status)
        if message.get("body"):
            on_chunk(message["body"].decode())

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {**Request.fake(path).scope, "headers": [(b"host", b"localhost")]}
    await datasette.app()(scope, receive, send)
    return status


@shows(source="story.py")
async def test_view_streams_each_chunk_as_it_arrives(source, site, register_models):
    next_chunk = asyncio.Event()
    register_models(ScriptedModel("scripted", ["Once ", next_chunk, "upon ", "a time"]))
    chunks = []

    def on_chunk(chunk: str) -> None:
        chunks.append(chunk)
        next_chunk.set()  # the model says no more before its first chunk has left the server

    datasette = site({"default_model": "scripted"}, story=source)
    assert await _streamed(datasette, "/-/story", on_chunk) == 200
    assert chunks == ["Once ", "upon ", "a time"]


@shows(source="story.py")
@pytest.mark.parametrize(
    ("model_id", "status", "message"),
    [
        ("no-such-model", 404, "Unknown model: 'no-such-model'"),
        ("blocked", 403, "it is blocked"),
        ("without-key", 502, "No key for model 'without-key'"),
        ("refusing", 502, "the key was refused"),
    ],
)
async def test_view_answers_early_failure_with_status(
    model_id, status, message, source, site, register_models
):
    register_models(
        ScriptedModel("blocked"),
        claude("without-key"),
        ScriptedModel("refusing", [llm.ModelError("the key was refused")]),
    )
    datasette = site({"blocked_models": ["blocked"]}, story=source)
    response = await datasette.client.get(f"/-/story?model={model_id}")
    assert response.status_code == status
    assert message in response.text


@shows(source="browser gone")
@pytest.mark.parametrize("leaves", ["before the first event", "while it writes", "never"])
async def test_e10_view_stops_model_when_browser_leaves(
    source, leaves, make_datasette, register_models
):
    first, gate, gone, written = asyncio.Event(), asyncio.Event(), asyncio.Event(), []
    scripted = ScriptedModel("scripted", [first, "Once ", gate, "upon a time"])

    class FromBrowser:
        actor = None

        async def receive(self):
            await gone.wait()
            return {"type": "http.disconnect"}

    async def send(message):
        written.append(message.get("body", b"").decode())
        if written[-1] == "Once ":
            (gone if leaves == "while it writes" else gate).set()

    register_models(scripted)
    names = await run(source)
    datasette = make_datasette({"default_model": "scripted"})
    view = asyncio.create_task(names["story"](datasette, FromBrowser()))
    await scripted.received()
    (gone if leaves == "before the first event" else first).set()
    await (await view).asgi_send(send)
    await scripted.calls[0].ended.wait()
    assert scripted.calls[0].outcome == ("complete" if leaves == "never" else "cancelled")
    assert (
        "".join(written)
        == {
            "before the first event": "The browser has gone",
            "while it writes": "Once ",
            "never": "Once upon a time",
        }[leaves]
    )


ROWS = [{"name": name} for name in ("Ada", "Ben", "Cleo")]


@shows(source="group")
async def test_e10_group_loses_no_row_when_one_fails(source, make_datasette, register_models):
    """One row fails before its first event, one breaks off, and the third has its answer."""
    gate = asyncio.Event()
    refused, broke = llm.ModelError("refused"), llm.ModelError("broke")
    scripted = ScriptedModel("scripted", [refused], [gate, "half", broke], [gate, "two ", "pets"])
    register_models(scripted)
    datasette = make_datasette({"default_model": "scripted"})
    running = asyncio.create_task(
        run(source, datasette=datasette, request=request_by(None), rows=ROWS)
    )
    await scripted.received(3)  # all at once: none of them has answered yet
    gate.set()
    names = await running
    assert names["pets"] == [refused, broke, "two pets"]
    assert names["failed"] == ["Ada", "Ben"]
    assert [call.prompt for call in scripted.calls] == [f"A pet for {row['name']}" for row in ROWS]


@shows(source="group error")
async def test_group_error_has_prompts_and_failures(
    source, make_datasette, register_models, capsys
):
    go_on = asyncio.Event()
    broken = ["A ", go_on, RuntimeError("broke")]
    scripted = ScriptedModel("scripted", broken, [RuntimeError("refused")], broken)
    register_models(scripted)
    datasette = make_datasette({"default_model": "scripted"})
    running = asyncio.create_task(run(source, datasette=datasette, rows=ROWS))
    await scripted.received(3)
    go_on.set()
    await running
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Ben -> refused", "A pet for Ada -> broke", "A pet for Cleo -> broke"]


@shows(source="conversation")
async def test_conversation_remembers_its_turns(source, scripted_model):
    _, scripted, model = await scripted_model(["A pelican"], ["Large"])
    names = await run(source, model=model)
    assert (names["bird"], names["size"]) == ("A pelican", "Large")
    roles = [message.role for message in scripted.calls[1].request.messages]
    assert roles == ["user", "assistant", "user"]


@shows(source="conversation")
async def test_conversation_is_busy_while_streaming(source, scripted_model):
    _, scripted, model = await scripted_model(["A ", asyncio.Event()])
    impatient = source.replace("bird = await first.text()\n", "")
    assert impatient != source
    with pytest.raises(ConversationBusyError):
        await run(impatient, model=model)
    assert len(scripted.calls) == 1


@shows(source="reply")
async def test_reply_has_the_exchange_as_its_history(source, scripted_model):
    _, scripted, model = await scripted_model(["Grey, with a long bill"], ["Large, grey"])
    names = await run(source, model=model)
    assert names["summary"] == "Large, grey"
    roles = [message.role for message in scripted.calls[1].request.messages]
    assert roles == ["user", "assistant", "user"]


@shows(source="chain")
async def test_chain_runs_the_tools_that_are_called(source, scripted_model, tmp_path, capsys):
    counting = llm.ToolCall(name="count_rows", arguments={"table": "pelicans"})
    datasette, scripted, model = await scripted_model(["Let me look.", counting], ["There are 2."])
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table pelicans (name text)",
        "insert into pelicans values ('Pat'), ('Pia')",
    )
    await run(source, datasette=datasette, model=model)
    assert capsys.readouterr().out == "Let me look. There are 2."
    assert [result.output for result in scripted.calls[1].request.tool_results] == ["2"]


@shows(source="tool in the loop")
async def test_marked_tool_runs_in_the_event_loop(source, scripted_model):
    noting = llm.ToolCall(name="remember", arguments={"word": "pelican"})
    _, scripted, model = await scripted_model([noting], ["Done."])
    words = []
    names = await run(source, words=words)
    await model.chain("x", tools=[names["remember"]]).text()
    assert [result.output for result in scripted.calls[1].request.tool_results] == ["noted"]
    assert words == ["pelican"]


@shows(source="pause")
async def test_paused_chain_continues_with_the_answer(source, scripted_model):
    asking = llm.ToolCall(name="ask", arguments={"question": "For how many?"}, tool_call_id="1")
    _, scripted, model = await scripted_model(["One moment.", asking], ["Booked."])
    names = await run(source, model=model)
    assert (names["question"], names["booked"]) == ("For how many?", "Booked.")
    assert [r.output for r in scripted.calls[1].request.tool_results] == ["For two, at eight"]


@shows(tree="errors")
def test_error_tree_is_that_of_the_module(tree):
    assert errors.__doc__ is not None
    lines = itertools.dropwhile(lambda line: line != "    LLMError", errors.__doc__.splitlines())
    module_tree = [line.removeprefix("    ") for line in itertools.takewhile(bool, lines)]
    assert tree.splitlines() == module_tree


@shows(tree="errors")
def test_error_tree_is_that_of_the_classes(tree):
    drawn = {}
    above = None
    for line in tree.splitlines():
        name = re.search(r"\w+", line)[0]
        drawn[name] = above if line.startswith("│") else "LLMError"
        above = above if line.startswith("│") else name
    drawn["LLMError"] = None
    classes = [getattr(datasette_llm, name) for name in datasette_llm.__all__]
    real = {
        each.__name__: None if each is errors.LLMError else each.__bases__[0].__name__
        for each in classes
        if isinstance(each, type) and issubclass(each, errors.LLMError)
    }
    assert drawn == real

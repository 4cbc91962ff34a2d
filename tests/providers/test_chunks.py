"""What models yield: halves of surrogate pairs, and what is no text at all."""

from __future__ import annotations

import threading

import llm
import llm.plugins
import pytest
from llm.parts import StreamEvent

from datasette_llm import LLM
from datasette_llm.errors import ProviderError
from datasette_llm.testing import ScriptedModel

BIRD = "\U0001f426"
HIGH, LOW = "\ud83d", "\udc26"


def args(text: str, **more: object) -> StreamEvent:
    return StreamEvent("tool_call_args", text, **more)


@pytest.fixture
def answer_of(make_datasette, register_models):
    """The complete response to what a model yields."""

    async def get(*script):
        register_models(ScriptedModel("scripted", script))
        model = await LLM(make_datasette({"log": {"content": True}})).model("scripted")
        response = await model.prompt("x")
        await response.text()
        return response

    return get


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ([f"Hi {HIGH}", f"{LOW}!"], f"Hi {BIRD}!"),
        ([HIGH, LOW], BIRD),
        ([HIGH, "", LOW], BIRD),
        ([f"{HIGH}{LOW}"], BIRD),
        ([HIGH, LOW + HIGH, LOW], BIRD * 2),
        ([StreamEvent("text", HIGH), LOW], BIRD),
        ([HIGH, StreamEvent("reasoning", "hm"), LOW], BIRD),
        ([f"a{HIGH}", "b"], "a\ufffdb"),
        ([f"a{LOW}b", "c"], "a\ufffdbc"),
        ([HIGH, HIGH, LOW], f"\ufffd{BIRD}"),
        (["a", HIGH], "a\ufffd"),
        (["Grüße", " ", BIRD], f"Grüße {BIRD}"),
    ],
)
async def test_w6_halves_are_joined_or_replaced(script, text, answer_of):
    response = await answer_of(*script)
    assert await response.text() == text
    chunks = [chunk async for chunk in response]
    assert "".join(chunks) == text
    for chunk in chunks:
        chunk.encode()


async def test_w6_halves_in_reasoning_and_arguments(answer_of):
    """Each stream of text by itself, though their events alternate."""
    response = await answer_of(
        StreamEvent("reasoning", f"so {HIGH}", part_index=0),
        StreamEvent("tool_call_name", "look", part_index=1, tool_call_id="1"),
        args('{"x": "' + HIGH, part_index=1, tool_call_id="1"),
        StreamEvent("tool_call_name", "look", part_index=2, tool_call_id="2"),
        StreamEvent("reasoning", LOW, part_index=0),
        args('{"x": "' + HIGH, part_index=2),
        args(LOW + '"}', part_index=1),
        args('"}', part_index=2),
    )
    reasoning, one, two = (await response.messages())[0].parts
    assert reasoning.text == f"so {BIRD}"
    assert (one.arguments, two.arguments) == ({"x": BIRD}, {"x": "\ufffd"})


async def test_w6_half_in_arguments_without_an_id(answer_of):
    """It does not get among those of the next call, which llm tells apart by their order."""
    response = await answer_of(
        StreamEvent("tool_call_name", "look"),
        args(HIGH),
        StreamEvent("tool_call_name", "see"),
        args("{}"),
    )
    one, two = (await response.messages())[0].parts
    assert (one.name, one.arguments) == ("look", {"_raw": "\ufffd"})
    assert (two.name, two.arguments) == ("see", {})


async def test_w6_arguments_of_tools_can_be_encoded(make_datasette, register_models):
    """Also those whose JSON escapes a half without the other, for the tool and the history."""
    got = []

    def look(names: list[str]) -> str:
        got.append(names)
        return "seen"

    arguments = {"names": [HIGH + LOW, f"a{HIGH}"]}
    call = llm.ToolCall(name="look", arguments=arguments, tool_call_id="1")
    escaped = args('{"names": ["\\ud83d"]}', tool_call_id="1")
    scripted = ScriptedModel(
        "scripted",
        [StreamEvent("tool_call_name", "look", tool_call_id="1"), escaped, call],
        ["Done."],
    )
    register_models(scripted)
    model = await LLM(make_datasette()).model("scripted")
    assert await model.chain("x", tools=[look]).text() == "Done."
    assert got == [[BIRD, "a\ufffd"]]
    [part] = scripted.calls[1].request.messages[1].parts
    assert part.arguments == {"names": ["\ufffd"]}


async def test_w6_arguments_from_a_thread(make_datasette):
    """Of a model without an async version."""

    class Local(llm.Model):
        model_id = "local"
        supports_tools = True

        def execute(self, prompt, stream, response, conversation):
            response.add_tool_call(llm.ToolCall(name="look", arguments={"x": HIGH + LOW}))
            yield ""

    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            register(Local())

    llm.plugins.pm.register(Plugin(), name="local")
    try:
        response = await (await LLM(make_datasette()).model("local")).prompt("x")
        assert (await response.tool_calls())[0].arguments == {"x": BIRD}
    finally:
        llm.plugins.pm.unregister(name="local")


@pytest.mark.parametrize(
    ("chunk", "what"),
    [
        (None, "yielded None"),
        (["a"], "type list"),
        (b"a", "type bytes"),
        (5, "type int"),
        ({"text": "a"}, "type dict"),
        (StreamEvent("text", None), "yielded None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_w6_what_is_no_text_is_told(chunk, what, in_thread, make_datasette, register_models):
    """The error names the model and the class of the plugin."""

    class Strange(llm.AsyncModel):
        model_id = "strange"

        async def execute(self, prompt, stream, response, conversation):
            yield chunk

    class StrangeInThread(llm.Model):
        model_id = "strange"

        def execute(self, prompt, stream, response, conversation):
            assert threading.current_thread() is not threading.main_thread()
            yield chunk

    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            register(StrangeInThread())

    if in_thread:
        llm.plugins.pm.register(Plugin(), name="strange")
    else:
        register_models(Strange())
    try:
        model = await LLM(make_datasette()).model("strange")
        with pytest.raises(ProviderError, match=f"Model 'strange' .*{what}.*Strange") as caught:
            await model.prompt("x")
    finally:
        if in_thread:
            llm.plugins.pm.unregister(name="strange")
    assert caught.value.kind == "bad_answer"

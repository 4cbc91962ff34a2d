"""What a turn has before it: after accidents, with system prompts, and for each kind of plugin."""

from __future__ import annotations

import asyncio

import llm
import pytest
from pydantic import BaseModel

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel

from ..support.plugins import Observer, raises

CALL = llm.ToolCall(name="look", arguments={}, tool_call_id="call_1")
PNG = llm.Attachment(type="image/png", content=b"png")


def look() -> str:
    return "saw"


def sent(call) -> list[tuple[str, str]]:
    """The roles and texts of what a request was sent."""
    return [
        (message.role, "".join(getattr(part, "text", "") or "?" for part in message.parts))
        for message in call.request.messages
    ]


class Plain(llm.AsyncModel):
    """Reads the prompt and the conversation, as llm's documentation for plugins shows."""

    model_id = "plain"
    can_stream = True

    def __init__(self, *answers: str) -> None:
        self.answers = iter(answers)
        self.got: list[tuple[list[tuple[str, str, str]], str, str]] = []

    async def execute(self, prompt, stream, response, conversation):
        turns = conversation.responses if conversation else []
        history = [(turn.prompt.system, turn.prompt.prompt, turn.text_or_raise()) for turn in turns]
        self.got.append((history, prompt.system, prompt.prompt))
        yield next(self.answers)


@pytest.fixture
def plain_of(make_datasette, register_models):
    async def get(*answers):
        plain = Plain(*answers)
        register_models(plain)
        return plain, await LLM(make_datasette()).model("plain")

    return get


# After accidents


async def fails(chain, scripted):
    scripted.scripts = (["Hi."], [CALL], ["Hm", ValueError("broke")], ["Fine."])
    with pytest.raises(ValueError, match="broke"):
        await chain.text()


async def is_cancelled(chain, scripted):
    scripted.scripts = (["Hi."], [CALL], ["Hm", asyncio.Event()], ["Fine."])
    reading = asyncio.create_task(chain.text())
    await scripted.received(3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def is_abandoned(chain, scripted):
    steps = chain.responses()
    await (await anext(steps)).text()
    await steps.aclose()


async def is_too_long(chain, scripted):
    chain.chain_limit = 1
    with pytest.raises(ValueError, match="limit"):
        await chain.text()


@pytest.mark.parametrize("accident", [fails, is_cancelled, is_abandoned, is_too_long])
async def test_e4_failed_chain_is_no_part_of_history(accident, model_of):
    """What came before it is, and the next turn has no tool call without its result."""
    scripted, model = await model_of(["Hi."], [CALL], ["Fine."])
    conversation = model.conversation(tools=[look])
    await (await conversation.prompt("Hello")).text()
    await accident(conversation.chain("Look"), scripted)
    assert [turn.prompt.prompt for turn in conversation.responses] == ["Hello"]
    assert await (await conversation.prompt("And now?")).text() == "Fine."
    history = [("user", "Hello"), ("assistant", "Hi.")]
    assert sent(scripted.calls[-1]) == [*history, ("user", "And now?")]


async def test_e4_turn_failed_by_a_hook_is_taken_back(model_of, plugin):
    """The answer was complete, and the caller has not got it."""
    scripted, model = await model_of(["Lost."])
    conversation = model.conversation()
    plugin(Observer(after=raises(PermissionError("no money"))))
    for text in ("One", "Two"):
        with pytest.raises(PermissionError):
            await (await conversation.prompt(text)).text()
        assert conversation.responses == []
    assert sent(scripted.calls[1]) == [("user", "Two")]


async def test_e4_loaded_history_survives_a_failure(model_of):
    """Messages that llm has read from storage are there again."""
    scripted, model = await model_of([CALL], [ValueError("broke")], ["Fine."])
    conversation = model.conversation(tools=[look])
    conversation.loaded_messages = [llm.user("Hello"), llm.assistant("Hi.")]
    with pytest.raises(ValueError, match="broke"):
        await conversation.chain("Look").text()
    await (await conversation.prompt("And now?")).text()
    assert [role for role, _ in sent(scripted.calls[2])] == ["user", "assistant", "user"]


@pytest.mark.parametrize("way", ["prompt", "chain"])
async def test_e4_new_text_leaves_out_a_paused_turn(way, model_of):
    """So that no tool call is without its result; two steps of it are gone too."""

    def wait(paused: bool) -> str:
        if paused:
            raise llm.PauseChain
        return "no"

    calls = [llm.ToolCall(name="wait", arguments={"paused": each}) for each in (False, True)]
    scripted, model = await model_of(["Hi."], [calls[0]], [calls[1]], ["Fine."])
    conversation = model.conversation(tools=[wait])
    await (await conversation.prompt("Hello")).text()
    with pytest.raises(llm.PauseChain):
        await conversation.chain("Wait").text()
    assert len(conversation.responses) == 3
    if way == "prompt":
        await (await conversation.prompt("Never mind")).text()
    else:
        await conversation.chain("Never mind").text()
    assert [text for _, text in sent(scripted.calls[3])] == ["Hello", "Hi.", "Never mind"]


@pytest.mark.parametrize("loaded", [None, [llm.user("Hello"), llm.assistant("Hi.")]])
@pytest.mark.parametrize("way", ["chain", "results", "new text"])
async def test_e4_paused_turn_keeps_results(way, loaded, model_of):
    """Of the tools that ran beside the one that paused; none runs twice."""
    ran = []

    async def work(n: int) -> str:
        ran.append(n)
        if n == 2 and ran.count(2) == 1:
            raise llm.PauseChain
        return f"did {n}"

    calls = [
        llm.ToolCall(name="work", arguments={"n": n}, tool_call_id=f"call_{n}") for n in (1, 2, 3)
    ]
    scripted, model = await model_of(calls, ["Fine."])
    conversation = model.conversation(tools=[work])
    conversation.loaded_messages = loaded
    with pytest.raises(llm.PauseChain):
        await conversation.chain("Work").text()
    if way == "chain":
        await conversation.chain().text()
        assert ran == [1, 2, 3, 2]
    elif way == "results":
        result = llm.ToolResult(name="work", output="did 2", tool_call_id="call_2")
        await (await conversation.prompt(tool_results=[result])).text()
    else:
        await (await conversation.prompt("Never mind")).text()
        assert scripted.calls[1].request.messages == [*(loaded or []), llm.user("Never mind")]
        return
    messages = scripted.calls[1].request.messages
    assert messages[: len(loaded or [])] == (loaded or [])
    results = [part for message in messages if message.role == "tool" for part in message.parts]
    assert [part.output for part in results] == ["did 1", "did 3", "did 2"]


async def test_e4_tool_results_continue_a_turn(model_of):
    scripted, model = await model_of([CALL], ["Fine."])
    conversation = model.conversation(tools=[look])
    await (await conversation.prompt("Look")).text()
    result = llm.ToolResult(name="look", output="a pelican", tool_call_id="call_1")
    await (await conversation.prompt("And?", tool_results=[result])).text()
    roles = [role for role, _ in sent(scripted.calls[1])]
    assert roles == ["user", "assistant", "tool", "user"]


# For plugins that read the prompt and the conversation


async def test_e4_reply_reaches_plain_models(plain_of):
    plain, model = await plain_of("Grey", "Large", "Loud")
    first = await model.prompt("Describe a pelican", system="Be brief")
    second = await first.reply("In one word")
    third = await second.reply("Another")
    assert await third.text() == "Loud"
    one, two = ("Describe a pelican", "Grey"), ("In one word", "Large")
    assert plain.got[1:] == [
        ([("Be brief", *one)], "Be brief", "In one word"),
        ([("Be brief", *one), ("Be brief", *two)], "Be brief", "Another"),
    ]


async def test_e4_reply_within_a_conversation(plain_of):
    """A reply to an earlier turn has what came before that turn, and is no turn itself."""
    plain, model = await plain_of("1", "2", "3", "4")
    conversation = model.conversation()
    turns = [await (await conversation.prompt(text)) for text in "ab"]
    reply = await turns[0].reply("c")
    await reply.text()
    assert plain.got[2] == ([("", "a", "1")], "", "c")
    assert conversation.responses == turns


async def test_e4_repair_reaches_plain_models(plain_of):
    class Pet(BaseModel):
        name: str

    plain, model = await plain_of('{"name": 5}', '{"name": "Bob"}')
    pet, _ = await model.structured("Invent a pet", schema=Pet)
    assert pet.name == "Bob"
    [(_, prompt, answer)], _, wish = plain.got[1]
    assert (prompt.startswith("Invent a pet"), answer) == (True, '{"name": 5}')
    assert "cannot be used" in wish


async def test_e4_reply_passes_on_results_of_tools(model_of):
    """In the messages once, and for plugins that read `prompt.tool_results`."""

    def draw() -> llm.ToolOutput:
        return llm.ToolOutput(output="drawn", attachments=[PNG])

    drawing = llm.ToolCall(name="draw", arguments={}, tool_call_id="1")
    scripted, model = await model_of([drawing], ["Nice."])
    scripted.attachment_types = model.attachment_types = frozenset({"image/png"})
    await (await (await model.prompt("Draw", tools=[draw])).reply("And?")).text()
    request = scripted.calls[1].request
    assert [result.output for result in request.tool_results] == ["drawn"]
    assert request.attachments == [PNG]
    *_, results, news = request.messages
    assert [part.attachments for part in results.parts] == [[]]
    assert [type(part).__name__ for part in news.parts] == ["TextPart", "AttachmentPart"]


# System prompts


async def test_e4_system_of_a_later_turn_is_sent(model_of):
    """It takes the place of the earlier one, and stays for the turns after it."""
    scripted, model = await model_of(["a"])
    conversation = model.conversation()
    for system in ("First", None, "Second", None):
        await (await conversation.prompt("x", system=system)).text()
    systems = [[text for role, text in sent(c) if role == "system"] for c in scripted.calls]
    assert systems == [["First"], ["First"], ["Second"], ["Second"]]
    assert len(scripted.calls[3].request.messages) == 8


async def test_e4_later_turns_have_the_system(model_of):
    """For plugins such as llm-gemini, which read that of the newest prompt and the messages."""
    scripted, model = await model_of(["a"])
    conversation = model.conversation()
    conversation.loaded_messages = [llm.system("Old"), llm.user("Hello"), llm.assistant("Hi.")]
    await conversation.chain("x").text()
    await (await conversation.prompt("x", system="New", system_fragments=["Brief"])).text()
    await (await conversation.prompt("x")).text()
    await conversation.chain("x").text()
    await (await conversation.responses[-1].reply("x")).text()
    systems = ["Old", *["Brief\n\nNew"] * 4]
    assert [call.request.system for call in scripted.calls] == systems
    assert [[text for role, text in sent(call) if role == "system"] for call in scripted.calls] == [
        [system] for system in systems
    ]
    await (await model.conversation().prompt("x")).text()
    assert not scripted.calls[-1].request.system


@pytest.mark.parametrize("way", ["prompt", "chain", "turn"])
@pytest.mark.parametrize("begun_with", [[], [llm.system("Be brief")], [llm.system("Rhyme")]])
async def test_e4_system_beside_messages_is_sent(way, begun_with, model_of):
    scripted, model = await model_of(["a"])
    arguments = {
        "messages": [*begun_with, llm.user("Hi"), llm.assistant("Yes?")],
        "system": "Be",
        "system_fragments": ["brief"],
    }
    if way == "chain":
        await model.chain("Go", **arguments).text()
    else:
        prompted = model if way == "prompt" else model.conversation()
        await (await prompted.prompt("Go", **arguments)).text()
    texts = ("system", "brief\n\nBe"), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go")
    assert sent(scripted.calls[0]) == list(texts)
    assert arguments["messages"][0].role in ("system", "user")


async def test_e4_system_of_messages_is_the_prompts(model_of):
    """For plugins that read `prompt.system`."""
    scripted, model = await model_of(["a"])
    await (await model.prompt("Go", messages=[llm.system("Be brief")])).text()
    assert scripted.calls[0].request.system == "Be brief"
    assert [role for role, _ in sent(scripted.calls[0])] == ["system", "user"]


@pytest.mark.parametrize("way", ["prompt", "chain", "turn"])
@pytest.mark.parametrize("attached", [[], [PNG]])
async def test_e4_text_that_ends_messages_is_sent_once(
    way, attached, make_datasette, register_models
):
    """As datasette-agent does, for plugins that read the one or the other."""
    scripted = ScriptedModel("scripted", attachment_types=["image/png"])
    register_models(scripted)
    model = await LLM(make_datasette()).model("scripted")
    messages = [llm.user("Hi"), llm.assistant("Yes?"), llm.user("Go", *attached)]
    if way == "chain":
        await model.chain("Go", messages=messages).text()
    else:
        prompted = model if way == "prompt" else model.conversation()
        await (await prompted.prompt("Go", messages=messages)).text()
    request = scripted.calls[0].request
    assert (request.prompt, request.messages) == ("Go", messages)
    assert len(messages) == 3


async def test_e4_other_text_is_added_to_messages(model_of):
    scripted, model = await model_of(["a"])
    await (await model.prompt("Go on", messages=[llm.user("Go")])).text()
    assert [text for _, text in sent(scripted.calls[0])] == ["Go", "Go on"]

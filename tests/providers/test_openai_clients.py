"""llm's own OpenAI models over a real connection, in both directions."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from contextlib import suppress

import httpx2
import llm
import openai
import pytest
from cryptography.fernet import Fernet

from datasette_llm import LLM, GroupError, ResponseCancelledError, instance
from datasette_llm.access.snapshot import SnapshotSource

from ..support.exceptions import all_texts
from ..support.openai_server import Drop, OpenAIServer, Refuse, write_model
from ..support.plugins import Observer
from ..support.waiting import soon

KEY = "sk-wire-0123456789abcdef"
OTHER_KEY = "sk-other-fedcba9876543210"
ADMINISTRATOR = {"id": "root"}
REPEATS_KEY = "Incorrect API key provided: {key}. Find yours on our site."


@pytest.fixture
async def server(server, llm_folder, monkeypatch):
    """The server of llm's model "wire"; its key is in datasette-secrets."""
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", KEY)
    write_model(llm_folder, server.url)
    return server


@pytest.fixture
def start(make_datasette):
    """A function that makes a Datasette, started, with secrets that its administrator sets."""

    async def start(config=None):
        secrets = {"encryption-key": Fernet.generate_key().decode()}
        datasette = make_datasette(config, plugins={"datasette-secrets": secrets})
        datasette.config["permissions"] = {"manage-secrets": ADMINISTRATOR}
        await datasette.invoke_startup()
        return datasette

    return start


@pytest.fixture
async def datasette(server, start):
    """A started Datasette with the model "wire"."""
    return await start()


@pytest.fixture
async def model(datasette):
    """The model "wire", ready to prompt."""
    return await LLM(datasette).model("wire")


@pytest.fixture
def hook(plugin):
    """A plugin that records what its contexts see."""
    return plugin(Observer())


async def failure_of(awaitable):
    """The exception that something raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  # the tests look at what it is
        await soon(awaitable)
    return raised.value


# Streaming


async def test_c3_chunks_are_readable_one_by_one(server, model):
    """Each chunk can be read while the server holds back the next."""
    second, third = asyncio.Event(), asyncio.Event()
    server.play(["one ", second, "two ", third, "three"])
    response = await soon(model.prompt("Count"))
    chunks = aiter(response)
    assert await soon(anext(chunks)) == "one "
    second.set()
    assert await soon(anext(chunks)) == "two "
    third.set()
    assert await soon(anext(chunks)) == "three"
    assert [chunk async for chunk in chunks] == []
    assert await response.text() == "one two three"
    assert await server.requests[0].end() == "complete"


async def test_c4_late_readers_get_everything(server, model):
    rest = asyncio.Event()
    server.play(["one ", rest, "two"])
    response = await soon(model.prompt("Count"))
    early = asyncio.create_task(response.text())
    assert await soon(anext(aiter(response))) == "one "
    rest.set()
    late = [chunk async for chunk in response]
    assert await early == "one two"
    assert late == ["one ", "two"]
    assert len(server.requests) == 1


async def test_request_has_the_callers_arguments(server, model):
    server.play(['{"name": "Pip"}'])
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    response = await model.prompt("A dog", system="Be brief", schema=schema, temperature=0.5)
    assert json.loads(await response.text()) == {"name": "Pip"}
    body = server.requests[0].body
    assert body["model"] == "gpt-wire"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "A dog"},
    ]
    assert body["temperature"] == 0.5
    assert body["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_is_what_the_provider_counted(stream, server, model):
    details = {"prompt_tokens_details": {"cached_tokens": 3}}
    server.play(["Hello", " you", llm.Usage(input=12, output=2, details=details)])
    response = await model.prompt("Hi", stream=stream)
    usage = await response.usage()
    assert (usage.input, usage.output, usage.details) == (12, 2, details)
    assert await response.text() == "Hello you"
    assert server.requests[0].body["stream"] is stream


async def test_c2_unstreamed_model_returns_at_the_end(server, llm_folder, start):
    write_model(llm_folder, server.url, model_id="slow", can_stream=False)
    rest = asyncio.Event()
    server.play(["Hello", rest, " you"])
    model = await LLM(await start()).model("slow")
    prompting = asyncio.create_task(model.prompt("Hi"))
    await server.received()
    assert not prompting.done()
    rest.set()
    response = await soon(prompting)
    assert response.text_or_raise() == "Hello you"


async def test_model_without_streaming_is_not_streamed(server, llm_folder, start):
    write_model(llm_folder, server.url, model_id="slow", can_stream=False)
    model = await LLM(await start()).model("slow")
    await (await model.prompt("Hi")).text()
    await (await model.conversation().prompt("Hi")).text()
    await model.chain("Hi").text()
    assert [request.body["stream"] for request in server.requests] == [False, False, False]


async def test_a_conversation_sends_its_history(server, model):
    server.play(["Pip"], ["Still Pip"])
    conversation = model.conversation()
    await (await conversation.prompt("Name the dog")).text()
    assert await (await conversation.prompt("And now?")).text() == "Still Pip"
    assert server.requests[1].body["messages"] == [
        {"role": "user", "content": "Name the dog"},
        {"role": "assistant", "content": "Pip"},
        {"role": "user", "content": "And now?"},
    ]


# Tools


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}"


async def test_chain_runs_tool_and_sends_its_result(server, model, hook):
    server.play(
        [llm.ToolCall("weather", {"city": "Paris"}, "call_1"), llm.Usage(10, 5)],
        ["It ", "rains", llm.Usage(20, 3)],
    )
    chain = model.chain("How is Paris?", tools=[weather])
    assert [chunk async for chunk in chain] == ["It ", "rains"]

    first, second = (request.body["messages"] for request in server.requests)
    assert first == [{"role": "user", "content": "How is Paris?"}]
    assert [message["role"] for message in second] == ["user", "assistant", "tool"]
    [call] = second[1]["tool_calls"]
    assert call["id"] == second[2]["tool_call_id"] == "call_1"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert second[2]["content"] == "Rain in Paris"
    [offered] = server.requests[0].body["tools"]
    assert offered["function"]["name"] == "weather"
    assert offered["function"]["description"] == "The weather in a city."
    assert [request.key for request in server.requests] == [KEY, KEY]

    assert hook.events == ["hook opens", "hook succeeds"]
    [result] = hook.results
    usages = [await response.usage() for response in result.responses]
    assert [(usage.input, usage.output) for usage in usages] == [(10, 5), (20, 3)]


async def test_a_chain_runs_all_the_tools_of_one_step(server, model):
    cities = ["Paris", "Oslo"]
    calls = [llm.ToolCall("weather", {"city": city}, f"call_{city}") for city in cities]
    server.play(calls, ["Wet"])
    assert await soon(model.chain("Where is it dry?", tools=[weather]).text()) == "Wet"
    messages = server.requests[1].body["messages"]
    answers = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    assert answers == {"call_Paris": "Rain in Paris", "call_Oslo": "Rain in Oslo"}


async def test_h4_second_step_failure_reaches_context(server, model, hook):
    """A failure in the second step of a chain is raised in its context."""
    server.play([llm.ToolCall("weather", {"city": "Paris"}, "call_1")], [Refuse(500)])
    chain = model.chain("How is Paris?", tools=[weather])
    error = await failure_of(chain.text())
    assert isinstance(error, openai.InternalServerError)
    assert hook.errors == [error]
    assert hook.events == ["hook opens", "hook sees InternalServerError"]


# Keys


async def set_secret(datasette, name, value):
    form = {"secret": value, "note": ""}
    response = await datasette.client.post(f"/-/secrets/{name}", data=form, actor=ADMINISTRATOR)
    assert response.status_code == 302


async def test_key_from_environment_reaches_provider(server, model):
    """A key in an environment variable of datasette-secrets reaches the provider."""
    await (await model.prompt("Hi")).text()
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_key_from_the_form_is_used_at_once(server, start, monkeypatch):
    monkeypatch.delenv("DATASETTE_SECRETS_WIRE_API_KEY")
    datasette = await start()
    model = await LLM(datasette).model("wire")
    for key in (KEY, OTHER_KEY):
        await set_secret(datasette, "WIRE_API_KEY", key)
        await (await model.prompt("Hi")).text()
    assert [request.key for request in server.requests] == [KEY, OTHER_KEY]


async def test_purpose_uses_its_configured_secret(server, start):
    team = {"model": "wire", "key": "TEAM_KEY"}
    datasette = await start({"purposes": {"chat": {"model": team}}})
    await set_secret(datasette, "TEAM_KEY", OTHER_KEY)
    for purpose in ("chat", None):
        model = await LLM(datasette).model("wire", purpose=purpose)
        await (await model.prompt("Hi")).text()
    assert [request.key for request in server.requests] == [OTHER_KEY, KEY]


async def test_explicit_key_wins_and_holds_for_replies(server, model):
    response = await model.prompt("Hi", key=OTHER_KEY)
    await (await response.reply("Again")).text()
    await (await model.prompt("Hi")).text()
    assert [request.key for request in server.requests] == [OTHER_KEY, OTHER_KEY, KEY]


async def test_without_a_key_nothing_is_sent(server, model, hook, monkeypatch):
    monkeypatch.delenv("DATASETTE_SECRETS_WIRE_API_KEY")
    error = await failure_of(model.prompt("Hi"))
    assert isinstance(error, llm.NeedsKeyException)
    assert "/-/secrets/WIRE_API_KEY" in str(error)
    assert server.requests == []
    assert hook.errors == [error]


# Connections


@pytest.mark.parametrize("script", [["Hello"], ["Hello", b"data: 42\n\n"], [Refuse(401)]], ids=str)
async def test_finished_request_leaves_no_connection(script, llm_folder, start, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", KEY)
    async with OpenAIServer(lingers=True) as server:
        write_model(llm_folder, server.url)
        endpoint = {"model": "local", "api_base": server.url}
        datasette = await start({"endpoints": [endpoint]})
        server.play(script)
        gc.disable()  # which would close what is left, at some time
        try:
            for model_id in ("wire", "local"):
                with suppress(openai.AuthenticationError):
                    await (await (await LLM(datasette).model(model_id)).prompt("x")).text()
            assert len(server.requests) == 2
            await server.idle()
            await instance.of(datasette, SnapshotSource).catalogs.connections.aclose()
            await server.closed()
        finally:
            gc.enable()


# Failures


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_c2_h4_refusal_is_raised_without_the_key(
    status, kind, stream, server, model, hook, caplog
):
    """A refusal is raised by prompt() and at the yield, without the key."""
    server.play([Refuse(status, REPEATS_KEY)])
    error = await failure_of(model.prompt("Hi", stream=stream))
    assert type(error) is kind
    assert error.status_code == status
    assert "Incorrect API key provided: [key removed]." in str(error)
    assert hook.errors == [error]
    assert server.requests[0].key == KEY  # the server had it, and did repeat it
    assert KEY not in all_texts(error)
    assert KEY not in caplog.text
    assert len(server.requests) == 1


async def test_client_retry_is_one_call_for_the_hooks(server, model, hook):
    again = {"x-should-retry": "true", "retry-after-ms": "1"}
    server.play([Refuse(429, "Slow down", again)], ["Hello"])
    response = await soon(model.prompt("Hi"))
    assert await response.text() == "Hello"
    assert [await request.end() for request in server.requests] == ["refused", "complete"]
    assert hook.events == ["hook opens", "hook succeeds"]


async def test_h4_stream_error_is_raised_without_key(server, model, hook):
    """An error in the stream is raised after the text that came, without the key."""
    server.play(["Hello", Refuse(500, REPEATS_KEY)])
    response = await soon(model.prompt("Hi"))
    chunks = aiter(response)
    assert await soon(anext(chunks)) == "Hello"
    error = await failure_of(anext(chunks))
    assert isinstance(error, openai.APIError)
    assert "[key removed]" in str(error)
    assert KEY not in all_texts(error)
    assert hook.errors == [error]
    assert await failure_of(response.text()) is error


@pytest.mark.parametrize("drop", Drop)
async def test_c5_dropped_connection_fails_the_response(drop, server, model, hook):
    cut = asyncio.Event()
    server.play(["Hel", "lo", cut, drop])
    response = await soon(model.prompt("Hi"))
    chunks = aiter(response)
    assert [await soon(anext(chunks)), await soon(anext(chunks))] == ["Hel", "lo"]
    cut.set()
    error = await failure_of(anext(chunks))
    assert isinstance(error, openai.APIError | httpx2.TransportError)
    assert hook.errors == [error]

    got = []
    with pytest.raises(type(error)) as raised:
        async for chunk in response:
            got.append(chunk)
    assert got == ["Hel", "lo"]
    assert raised.value is error
    for read in (response.text, response.usage, response.json, response.tool_calls):
        assert await failure_of(read()) is error
    assert await server.requests[0].end() == "dropped"


async def test_c2_unknown_host_is_raised_by_prompt(llm_folder, server, start, hook):
    # Bound but not listening: it refuses connections, and no other process can take the port.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        write_model(
            llm_folder, f"http://127.0.0.1:{closed.getsockname()[1]}/v1", model_id="nowhere"
        )
        model = await LLM(await start()).model("nowhere")
        error = await failure_of(model.prompt("Hi"))
    assert isinstance(error, openai.APIConnectionError)
    assert hook.errors == [error]
    assert KEY not in all_texts(error)


# Requests that are given up are closed


async def stopped(server, hook, number=0):
    """Wait until the client has disconnected; returns the error that the context got."""
    request = await server.received(number)
    assert await request.end() == "client gone"
    await soon(hook.left.wait())
    [error] = hook.errors
    assert isinstance(error, ResponseCancelledError)
    return str(error)


async def test_c4_cancelled_reader_closes_connection(server, model, hook):
    """When the reader is cancelled, the server sees the client disconnect."""
    server.play(["Hello", asyncio.Event()])
    response = await soon(model.prompt("Hi"))
    first = asyncio.Event()

    async def read():
        async for _ in response:
            first.set()

    reading = asyncio.create_task(read())
    await soon(first.wait())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(reading)
    assert await stopped(server, hook) == "The reader of the response was cancelled"
    assert isinstance(await failure_of(response.text()), ResponseCancelledError)


async def test_c4_dropped_response_closes_connection(server, model, hook):
    """When a response is dropped half-read, the server sees the client disconnect."""
    server.play(["Hello", asyncio.Event()])
    async for chunk in await soon(model.prompt("Hi")):
        assert chunk == "Hello"
        break
    assert "read half-way and then dropped" in await stopped(server, hook)


async def test_c4_unread_response_is_received_fully(server, model, hook):
    rest = asyncio.Event()
    server.play(["Hello", rest, " you"])
    response = await soon(model.prompt("Hi"))
    rest.set()
    await soon(hook.left.wait())
    assert response.text_or_raise() == "Hello you"
    assert await server.requests[0].end() == "complete"


@pytest.mark.parametrize("stream", [True, False])
async def test_h4_cancelled_caller_closes_connection(stream, server, model, hook):
    """When the caller is cancelled before an answer, the server sees the client disconnect."""
    server.play([asyncio.Event()])
    prompting = asyncio.create_task(model.prompt("Hi", stream=stream))
    await server.received()
    prompting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(prompting)
    await stopped(server, hook)


async def test_abandoned_chain_closes_the_connection(server, model, hook):
    server.play([llm.ToolCall("weather", {"city": "Oslo"}, "call_1")], ["Wet", asyncio.Event()])
    chunks = aiter(model.chain("How is Oslo?", tools=[weather]))
    assert await soon(anext(chunks)) == "Wet"
    await soon(chunks.aclose())
    await stopped(server, hook, number=1)
    assert server.requests[0].outcome == "complete"


# Groups


async def test_g1_group_prompts_run_concurrently(server, datasette):
    everyone = asyncio.Event()
    server.play(["Hel", everyone, "lo"])
    async with LLM(datasette).group("wire") as member:
        responses = await soon(asyncio.gather(*[member.prompt(f"Row {n}") for n in range(10)]))
        assert len(server.requests) == 10
        assert {request.outcome for request in server.requests} == {"running"}
        everyone.set()
    assert [response.text_or_raise() for response in responses] == ["Hello"] * 10
    assert [response.prompt.prompt for response in responses] == [f"Row {n}" for n in range(10)]


async def test_g2_dropped_connection_is_in_group_error(server, datasette):
    """A row whose connection drops is reported by the group."""
    cut = asyncio.Event()
    server.play(["Hello"], ["Hel", cut, Drop.CLOSE], ["Hello"])
    with pytest.raises(GroupError) as raised:
        async with LLM(datasette).group("wire") as member:
            for number in range(3):
                await soon(member.prompt(f"Row {number}"))
            cut.set()
    assert [response.prompt.prompt for response in raised.value.responses] == ["Row 1"]
    assert "prompt 'Row 1'" in str(raised.value)


async def test_g3_exception_in_group_stops_all_requests(server, datasette):
    server.play(["Hel", asyncio.Event()])
    with pytest.raises(ZeroDivisionError):
        async with LLM(datasette).group("wire") as member:
            await soon(asyncio.gather(*[member.prompt(f"Row {n}") for n in range(3)]))
            raise ZeroDivisionError
    assert [await request.end() for request in server.requests] == ["client gone"] * 3

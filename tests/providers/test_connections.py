"""Connections are kept, reused and closed, and lead to the configured origin only."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import openai
import pytest

from datasette_llm import LLM, ProviderError, instance
from datasette_llm.access.snapshot import SnapshotSource, snapshot_of
from datasette_llm.providers import connections
from datasette_llm.providers.connections import Connections, Server

from ..support.dialects import STOP, events, http, sse, text
from ..support.faults import open_sockets
from ..support.openai_server import Drop, OpenAIServer, Raw
from ..support.waiting import soon, until

TEXT = "Hello you"
SECRET = "s3cret-of-the-gateway"


@pytest.fixture
async def server(monkeypatch):
    """One that keeps its connections."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with OpenAIServer(lingers=True) as server:
        server.play([TEXT])
        yield server


@pytest.fixture
def start(make_datasette, server):
    async def start(**settings):
        settings = {"model": "local", "api_base": server.url, "retries": 0} | settings
        datasette = make_datasette({"endpoints": [settings]})
        await datasette.invoke_startup()
        return datasette

    return start


async def ask(datasette, prompt="Hi", **kwargs):
    model = await LLM(datasette).model("local")
    return await soon((await soon(model.prompt(prompt, **kwargs))).text())


async def test_w9_connection_is_reused(server, start):
    datasette = await start()
    for stream in (True, False, True):
        assert await ask(datasette, stream=stream) == TEXT
    assert server.connections == 1


async def test_w9_no_more_connections_than_calls_at_once(server, start):
    datasette = await start()
    for _ in range(3):
        await asyncio.gather(*(ask(datasette) for _ in range(8)))
    assert server.connections <= 8


async def test_w9_refused_request_keeps_its_connection(server, start):
    datasette = await start()
    server.play([Raw(b"HTTP/1.1 401 X\r\ncontent-length: 2\r\n\r\nNo"), asyncio.Event()], [TEXT])
    with pytest.raises(openai.AuthenticationError):
        await ask(datasette)


async def test_w9_stale_connection_is_retried_once(server, start):
    """The server closes what it kept; that the client has not heard of it is no failure."""
    datasette = await start()
    # It dies with the request on it, as one does whose end is still on its way.
    server.play([TEXT], [Drop.RESET], [TEXT])
    for _ in range(2):
        assert await ask(datasette) == TEXT
    assert (server.connections, len(server.requests)) == (2, 3)


async def test_w9_new_connection_is_not_retried(server, start):
    datasette = await start()
    server.play([Drop.CLOSE])
    with pytest.raises(openai.APIConnectionError):
        await ask(datasette)
    assert len(server.requests) == 1


async def test_w9_connections_are_closed_at_shutdown(server, start):
    datasette = await start()
    before = open_sockets()
    await ask(datasette)
    assert open_sockets() - before
    await datasette.invoke_shutdown()
    await server.closed()


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_w9_connections_end_with_their_loop(server, start):
    """Prompts from a thread with an event loop of its own leave no socket."""
    datasette = await start()
    await ask(datasette)
    for _ in range(3):
        await asyncio.to_thread(lambda: asyncio.run(ask(datasette)))
    await until(lambda: server.open <= 1)
    gc.collect()
    assert await ask(datasette) == TEXT


async def test_w9_pools_of_closed_loops_are_dropped(server):
    pools = Connections()

    def leave_one_behind():
        loop = asyncio.new_event_loop()

        async def open_one():
            pools.client(Server(server.url))

        loop.run_until_complete(open_one())
        loop.close()

    thread = threading.Thread(target=leave_one_behind)
    thread.start()
    await asyncio.to_thread(thread.join)
    pools.client(Server(server.url))
    assert len(pools._pools) == 1
    await pools.aclose()


async def test_w9_no_cookie_is_kept(server, start):
    """The requests of different people share a pool."""
    datasette = await start()
    body = events(text(TEXT), STOP)
    server.play([http(body, "set-cookie: session=ana", f"content-length: {len(body)}")], [TEXT])
    for _ in range(2):
        assert await ask(datasette) == TEXT
    assert "cookie" not in server.requests[1].headers


# The origin


async def test_w8_redirect_elsewhere_is_refused(server, start):
    async with OpenAIServer() as other:
        target = f"location: {other.url}/chat/completions"
        server.play([http(b"", target, status=307)])
        datasette = await start(headers={"X-Api-Key": SECRET})
        with pytest.raises(ProviderError) as caught:
            await ask(datasette)
        assert other.requests == []
    host = other.url.removesuffix("/v1")
    assert f"redirects to {host}, and prompts and keys are sent to no other host" in str(
        caught.value
    )
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_w8_redirect_on_the_same_origin_is_followed(status, server, start):
    target = "location: /v2/chat/completions"
    server.play([http(b"", target, status=status)], [sse(text(TEXT), STOP)])
    assert await ask(await start(headers={"X-Api-Key": SECRET})) == TEXT
    assert [request.body["messages"] for request in server.requests][1]
    assert server.requests[1].headers["x-api-key"] == SECRET


async def test_w8_endless_redirects_are_ended(server, start):
    server.play([http(b"", "location: /v1/chat/completions", status=307)])
    with pytest.raises(ProviderError, match="redirects without an end"):
        await ask(await start())
    assert len(server.requests) == connections.MAX_REDIRECTS


@pytest.mark.parametrize("target", ["https://127.0.0.1/x", "//elsewhere.example/x", "http://["])
async def test_w8_other_schemes_hosts_and_nonsense(target, server, start):
    server.play([http(b"", f"location: {target}", status=302)])
    with pytest.raises(ProviderError, match="redirects to"):
        await ask(await start())


async def test_w8_llms_own_models_stay_at_their_origin(server, start, monkeypatch):
    """Those that openai's client reads, too: here of the Responses API."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("DATASETTE_SECRETS_OPENAI_API_KEY", "sk-openai-0123456789")
    async with OpenAIServer() as other:
        redirect = f"location: {other.url}/responses"
        server.play([http(b"", redirect, status=307)])
        model = await LLM(await start()).model("gpt-5-nano")
        with pytest.raises(ProviderError, match="redirects to"):
            await soon(model.prompt("Hi"))
        assert other.requests == []


# Proxies and certificates


async def test_w9_endpoint_has_its_own_proxy(server, start):
    """It gets the request for the server, which nobody else knows."""
    datasette = await start(
        api_base="http://models.example/v1", proxy=server.url.removesuffix("/v1")
    )
    assert await ask(datasette) == TEXT
    assert server.requests[0].headers["host"] == "models.example"


async def test_w9_proxy_of_the_environment(server, start, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,direct.example")
    assert await ask(await start(api_base="http://models.example/v1")) == TEXT
    with pytest.raises(openai.APIConnectionError):
        await ask(await start(api_base="http://direct.invalid.direct.example/v1"))


async def test_w9_proxy_password_is_never_shown(start):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        datasette = await start(
            api_base="http://models.example/v1", proxy=f"http://ana:{SECRET}@127.0.0.1:{port}"
        )
        with pytest.raises(openai.APIConnectionError) as caught:
            await ask(datasette)
    settings = (await snapshot_of(datasette)).settings
    assert SECRET not in f"{caught.value} {caught.value!r} {settings!r}"


async def test_w9_bad_ca_file_leaves_the_others(server, make_datasette, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    endpoints = [
        {"model": "local", "api_base": server.url},
        {"model": "bad", "api_base": server.url, "ca_file": str(empty)},
        {"model": "missing", "api_base": server.url, "ca_file": str(tmp_path / "none.pem")},
    ]
    datasette = make_datasette({"endpoints": endpoints})
    await datasette.invoke_startup()
    assert await ask(datasette) == TEXT
    problems = (await snapshot_of(datasette)).catalog.problems
    assert [problem.split(" cannot")[0] for problem in problems] == [
        "The endpoint of model 'bad'",
        "The endpoint of model 'missing'",
    ]


async def test_pools_belong_to_an_instance(start):
    first, second = await start(), await start()
    pools = [instance.of(each, SnapshotSource).catalogs.connections for each in (first, second)]
    assert pools[0] is not pools[1]

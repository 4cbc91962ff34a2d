"""A real Datasette in a process of its own, with plugins that use models, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import signal
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet

from ..support.openai_server import BOUND_S, OpenAIServer, write_model
from ..support.server import Served, alone, log_in

# What a plugin author would write: a view that streams an answer to the browser, and stops
# reading when the browser goes away, which uvicorn reports only to listeners.
VIEWS = """
import asyncio

from datasette import Response, hookimpl
from datasette.utils.asgi import AsgiStream
from datasette_llm import LLM


async def stream(datasette, request):
    model = await LLM(datasette).model(request.args["model"], actor=request.actor)
    response = await model.prompt("Tell me")

    async def copy(writer):
        async for chunk in response:
            await writer.write(chunk)

    async def client_left():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def copy_while_wanted(writer):
        tasks = [asyncio.create_task(copy(writer)), asyncio.create_task(client_left())]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    return AsgiStream(copy_while_wanted, content_type="text/plain; charset=utf-8")


async def begin(datasette, request):
    model = await LLM(datasette).model(request.args["model"], actor=request.actor)
    await model.prompt("Tell me")
    return Response.text("begun")


@hookimpl
def register_routes():
    return [(r"^/-/stream$", stream), (r"^/-/begin$", begin)]
"""

# A model that holds back the end of its answer, and what a test wants to know about it.
GATED_MODEL = """
import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

from datasette import Response, hookimpl
from datasette_llm.testing import ScriptedModel, registered

gate = asyncio.Event()
gated = ScriptedModel("gated", ["first ", gate, "last"])
registration = registered(gated)
registration.__enter__()


async def release(request):
    gate.set()
    return Response.text("released")


async def outcome(request):
    [call] = gated.calls
    await call.ended.wait()
    return Response.json({"outcome": call.outcome, "sent": call.sent})


@hookimpl
def register_routes():
    return [(r"^/-/release$", release), (r"^/-/outcome$", outcome)]


@hookimpl
def llm_prompt_context():
    @asynccontextmanager
    async def context(result):
        try:
            yield
        except BaseException as error:
            Path(os.environ["WITNESS"]).write_text(f"{type(error).__name__}: {error}")
            raise

    return context
"""

BAD_CONFIG = """
plugins:
  datasette-llm:
    default_modle: gpt-4o
    require_keys: perhaps
    purposes:
      chat:
        modle: gpt-4o
      enrichments:
        model:
          model: gpt-4o
          key: sk-proj-0123456789abcdef
"""


@pytest.fixture
def witness(tmp_path):
    """The file in which the plugin's context writes how its call ended."""
    return tmp_path / "witness.txt"


@pytest.fixture
def environment(llm_folder, witness):
    """The environment of a Datasette with our plugins alone, and without any key."""
    return alone(llm_folder) | {"WITNESS": str(witness)}


@pytest.fixture
async def serve(tmp_path, environment):
    """A function that starts Datasette with our configuration, and further arguments."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "views.py").write_text(VIEWS)
    (plugins / "gated_model.py").write_text(GATED_MODEL)
    secrets = {"encryption-key": Fernet.generate_key().decode()}
    async with contextlib.AsyncExitStack() as stack:

        async def start(config=None, *arguments):
            everything = {"datasette-llm": config or {}, "datasette-secrets": secrets}
            file = tmp_path / "datasette.json"
            file.write_text(json.dumps({"plugins": everything}))
            options = ["--memory", "--config", str(file), "--plugins-dir", str(plugins)]
            served = await Served.start(environment, *options, *arguments)
            stack.push_async_callback(served.kill)
            await served.ready()
            return served

        yield start


async def test_view_streams_the_first_chunk_early(serve):
    served = await serve()
    async with served.client() as client:
        async with client.stream("GET", "/-/stream?model=gated") as page:
            chunks = page.aiter_text()
            assert await anext(chunks) == "first "
            await client.get("/-/release")
            assert "".join([chunk async for chunk in chunks]) == "last"
        outcome = await client.get("/-/outcome")
    assert outcome.json() == {"outcome": "complete", "sent": 2}


async def test_client_disconnect_stops_the_model(serve, witness):
    served = await serve()
    async with served.client() as client:
        async with client.stream("GET", "/-/stream?model=gated") as page:
            assert await anext(page.aiter_text()) == "first "
        outcome = await client.get("/-/outcome")
    assert outcome.json() == {"outcome": "cancelled", "sent": 1}
    assert served.process.returncode is None
    assert "Traceback" not in served.output


async def test_refused_model_is_an_error_page(serve):
    served = await serve({"blocked_models": ["gated"]})
    async with served.client() as client:
        page = await client.get("/-/stream?model=gated")
    assert page.status_code == 500
    assert "blocked" in page.text


@pytest.mark.parametrize("way", ["begin", "stream"])
async def test_shutdown_cancels_running_prompts(way, serve, witness):
    served = await serve()
    async with served.client() as client, client.stream("GET", f"/-/{way}?model=gated") as page:
        assert await anext(page.aiter_text()) in ("begun", "first ")
        served.process.send_signal(signal.SIGTERM)
        # uvicorn waits for open pages, so the reader of the stream has to leave.
    status = await served.ended()
    assert status in (0, -signal.SIGTERM)
    reasons = {
        "begin": "Datasette is shutting down",
        "stream": "The reader of the response was cancelled",
    }
    assert witness.read_text() == f"ResponseCancelledError: {reasons[way]}"
    assert "Traceback" not in served.output


def test_bad_configuration_stops_datasette(tmp_path, environment):
    file = tmp_path / "datasette.yaml"
    file.write_text(BAD_CONFIG)
    command = [sys.executable, "-m", "datasette", "serve", "--port", "0", "--config", str(file)]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=BOUND_S
    )
    assert ended.returncode == 1
    heading, *problems = ended.stderr.splitlines()
    assert heading == "Error: datasette-llm cannot start: 4 problems in its configuration"
    paths = [problem.strip().split(": ")[0] for problem in problems]
    assert sorted(paths) == [
        "plugins.datasette-llm.default_modle",
        "plugins.datasette-llm.purposes.chat.modle",
        "plugins.datasette-llm.purposes.enrichments.model.key",
        "plugins.datasette-llm.require_keys",
    ]
    assert '(did you mean "default_model"?)' in ended.stderr
    assert "sk-proj" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


async def test_unknown_model_in_configuration_warns(serve):
    served = await serve({"default_model": "gpt-from-the-future"})
    assert (
        "plugins.datasette-llm.default_model: Unknown model: 'gpt-from-the-future'" in served.output
    )


async def test_secrets_page_lists_every_key(serve):
    references = {
        "default_model": {"model": "gpt-4o-mini", "key": "HOUSE_KEY"},
        "purposes": {
            "chat": {"model": {"model": "gpt-4o", "key": "CHAT_KEY"}},
            "enrichments": {"models": [{"model": "gpt-4o", "key": "BULK_KEY"}]},
        },
    }
    served = await serve(references, "--root")
    async with served.client() as client:
        refused = await client.get("/-/secrets")
        await log_in(client, served)
        page = await client.get("/-/secrets")
    assert refused.status_code == 403
    assert page.status_code == 200
    listed = re.findall(r'href="/-/secrets/(\w+)"', page.text)
    assert {"OPENAI_API_KEY", "HOUSE_KEY", "CHAT_KEY", "BULK_KEY"} <= set(listed)
    assert len(listed) == len(set(listed))
    assert "https://platform.openai.com/api-keys" in html.unescape(page.text)


async def test_key_from_the_form_is_used(serve, llm_folder):
    async with OpenAIServer() as provider:
        write_model(llm_folder, provider.url)
        rest = asyncio.Event()
        provider.play(["first ", rest, "last"])
        served = await serve(None, "--root")
        async with served.client() as client:
            keyless = await client.get("/-/stream?model=wire")
            assert keyless.status_code == 500
            assert "/-/secrets/WIRE_API_KEY" in keyless.text

            await log_in(client, served)
            form = {"secret": "sk-typed-0123456789"}
            # As a browser does; the page it is sent to shows and clears Datasette's message.
            saved = await client.post("/-/secrets/WIRE_API_KEY", data=form, follow_redirects=True)
            assert "Secret WIRE_API_KEY updated" in saved.text
            async with client.stream("GET", "/-/stream?model=wire") as page:
                chunks = page.aiter_text()
                assert await anext(chunks) == "first "
                rest.set()
                assert "".join([chunk async for chunk in chunks]) == "last"
        [request] = provider.requests
        assert request.key == "sk-typed-0123456789"
        assert await request.end() == "complete"
        assert "sk-typed" not in served.output

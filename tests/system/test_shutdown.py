"""A real Datasette that is told to stop while calls and consultations run."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import closing, suppress

import httpx2
import pytest

from ..support.consultant import SCHEMA
from ..support.openai_server import BOUND_S, OpenAIServer, write_model
from ..support.server import Served, alone
from .test_serving import VIEWS

CALLS = 12
CONSULTATIONS = 4


@pytest.fixture
async def server():
    """A provider that begins its answers and does not end them."""
    async with OpenAIServer() as server:
        server.play(["one ", asyncio.Event()])
        yield server


@pytest.fixture
async def served(tmp_path, llm_folder, server):
    """A Datasette with a table to analyze, and views that prompt."""
    write_model(llm_folder, server.url, api_key_name=None)
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        connection.executescript(SCHEMA)
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "views.py").write_text(VIEWS)
    settings = {"datasette-llm": {"default_model": "wire", "log": {"content": True}}}
    config = {"plugins": settings, "permissions": {"analyze-table": True}}
    (tmp_path / "datasette.json").write_text(json.dumps(config))
    options = ("--internal", "internal.db", "--plugins-dir", "plugins", "-c", "datasette.json")
    paths = [str(tmp_path / each) if "." in each or each == "plugins" else each for each in options]
    environment = alone(llm_folder) | {"OPENAI_API_KEY": "sk-0123456789"}
    served = await Served.start(environment, str(tmp_path / "data.db"), *paths)
    try:
        await served.ready()
        yield served
    finally:
        await served.kill()


@pytest.mark.parametrize("way", ["begin", "stream"])
async def test_s10_sigterm_under_load_loses_no_outcome(served, server, tmp_path, way):
    """Also of those whose reader has left, or never came; consultations are stored, too."""

    async def ask(client):
        async with client.stream("GET", f"/-/{way}?model=wire") as page:
            async for _ in page.aiter_text():
                pass

    async def consult(client):
        headers = {"origin": served.url}
        await client.post("/data/pets/-/llm-analyze.json", json={}, headers=headers)

    async with served.client() as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(CALLS)]
        tasks += [asyncio.create_task(consult(client)) for _ in range(CONSULTATIONS)]
        await server.received(CALLS + CONSULTATIONS - 1)
        served.process.send_signal(signal.SIGTERM)
        for task in tasks:  # uvicorn waits for open pages
            task.cancel()
        await asyncio.wait(tasks, timeout=BOUND_S)
    assert await served.ended() in (0, -signal.SIGTERM)
    for task in tasks:
        with suppress(asyncio.CancelledError, httpx2.HTTPError):
            task.result()

    with closing(sqlite3.connect(tmp_path / "internal.db")) as connection:
        calls = connection.execute(
            "select outcome, finished_at is not null, purpose is not null, count(*) "
            "from llm_calls group by 1, 2, 3 order by 3"
        ).fetchall()
        stored = connection.execute(
            "select outcome, profile is not null, count(*) from llm_consultations "
            "where call_id in (select id from llm_calls) group by 1, 2"
        ).fetchall()
        sessions = connection.execute("select * from llm_log_sessions").fetchall()
    assert len(server.requests) == CALLS + CONSULTATIONS
    assert calls == [("cancelled", 1, 0, CALLS), ("cancelled", 1, 1, CONSULTATIONS)]
    assert stored == [("cancelled", 1, CONSULTATIONS)]
    assert sessions == []
    assert "Traceback" not in served.output

"""The call log after processes are killed, and with several processes on one database."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ..support.openai_server import BOUND_S, OpenAIServer

ROOT = Path(__file__).parents[2]
ROUNDS = 50
HELLO = "Hello"


@pytest.fixture
def path(tmp_path):
    """The file of the internal database."""
    return tmp_path / "internal.db"


@pytest.fixture
async def server():
    """A provider that counts."""
    async with OpenAIServer() as server:
        yield server


class Program:
    """The program `tests.support.crash`, whose processes write one call log."""

    def __init__(self, process, path, port):
        self.process = process
        self.settings = {"internal": str(path), "port": port}

    async def start(self, name, prompts=1_000_000, at_once=8):
        settings = self.settings | {"name": name, "prompts": prompts, "at_once": at_once}
        return (await self._do("start", **settings))["pid"]

    async def kill(self, pid):
        await self._do("kill", pid=pid)

    async def wait(self, pid):
        return (await self._do("wait", pid=pid))["status"]

    async def _do(self, what, **arguments):
        self.process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        async with asyncio.timeout(BOUND_S):
            return json.loads(await self.process.stdout.readline())


@pytest.fixture
async def program(llm_folder, server, path, tmp_path):
    """The program, started; it kills what it started when it ends."""
    port = urlsplit(server.url).port
    async with running(llm_folder, path, port, tmp_path / "stderr") as program:
        yield program


@asynccontextmanager
async def running(llm_folder, path, port, stderr):
    environment = os.environ | {
        "LLM_USER_PATH": str(llm_folder),
        "LLM_LOAD_PLUGINS": "",
        "DATASETTE_LOAD_PLUGINS": "datasette-llm,datasette-secrets",
    }
    with stderr.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.crash"),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
        try:
            yield Program(process, path, port)
        finally:
            process.stdin.close()
            try:
                async with asyncio.timeout(BOUND_S):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def rows_of(path, columns="id, purpose, outcome, finished_at"):
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(f"select {columns} from llm_calls order by id")
        return {row["id"]: dict(row) for row in rows}


def sessions_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("select id from llm_log_sessions").fetchall()


def asked_of(server):
    """The texts of the prompts that the provider received, in order."""
    return [request.body["messages"][-1]["content"] for request in server.requests]


async def over(server):
    """Wait until the provider has done with all that it received."""
    for request in list(server.requests):
        await request.end()


@pytest.mark.timeout(180)
async def test_l1_l2_requests_logged_after_50_kills(server, program, path):
    """Every request that left a killed process has a row."""
    server.play([HELLO, 0.001, HELLO], [HELLO], [0.002, HELLO])
    moments = random.Random(0)
    lost, unfinished = {}, set()
    for number in range(ROUNDS + 1):
        name, before = f"r{number}", len(server.requests)
        if number == ROUNDS:  # the last one may end in peace
            pid = await program.start(name, prompts=20)
            assert await program.wait(pid) == 0
        else:
            pid = await program.start(name)
            request = await server.received(before + moments.randrange(30))
            if number % 2:
                await request.end()
            await program.kill(pid)
            await over(server)

        rows = rows_of(path)
        purposes = [row["purpose"] for row in rows.values()]
        assert set(asked_of(server)) <= set(purposes)
        assert len(set(purposes)) == len(purposes)
        # What the round before left unfinished was lost when this one began, and only that;
        # what was lost earlier stays as it was.
        now_lost = {i: row for i, row in rows.items() if row["outcome"] == "lost"}
        assert now_lost.keys() == lost.keys() | unfinished
        assert {i: now_lost[i] for i in lost} == lost
        lost = now_lost
        unfinished = {i for i, row in rows.items() if row["outcome"] is None}
        assert all(rows[i]["purpose"].startswith(f"{name}-") for i in unfinished)
    assert unfinished == set()
    assert lost
    assert {row["outcome"] for row in rows.values()} == {"ok", "lost"}
    assert all(row["finished_at"] for row in rows.values())
    # Some rows are of requests that never reached the provider; none of them is a success.
    asked = set(asked_of(server))
    assert {r["outcome"] for r in rows.values() if r["purpose"] not in asked} <= {"lost"}
    assert sessions_of(path) == []


@pytest.mark.timeout(120)
async def test_kill_at_startup_leaves_usable_database(server, program, path):
    server.play([HELLO])
    for number in range(12):
        pid = await program.start(f"r{number}")
        await asyncio.sleep(0.02 * number)  # any moment will do
        await program.kill(pid)
        await over(server)
    pid = await program.start("last", prompts=3, at_once=1)
    assert await program.wait(pid) == 0
    rows = rows_of(path)
    assert set(asked_of(server)) <= {row["purpose"] for row in rows.values()}
    assert all(row["outcome"] in ("ok", "lost") for row in rows.values())
    assert sessions_of(path) == []


async def test_second_process_keeps_rows_of_the_first(server, program, path):
    gate = asyncio.Event()
    server.play(["one ", gate, "two"], [HELLO])
    first = await program.start("first", prompts=1, at_once=1)
    await server.received(0)
    second = await program.start("second", prompts=5, at_once=1)
    assert await program.wait(second) == 0
    outcomes = {row["purpose"]: row["outcome"] for row in rows_of(path).values()}
    assert outcomes == {"first-0": None} | {f"second-{n}": "ok" for n in range(5)}
    gate.set()
    assert await program.wait(first) == 0
    assert {row["outcome"] for row in rows_of(path).values()} == {"ok"}
    assert sessions_of(path) == []


async def test_only_rows_of_dead_processes_are_lost(server, program, path):
    gate = asyncio.Event()
    server.play([HELLO, gate], [HELLO, gate], [HELLO])
    dies = await program.start("dies", prompts=1, at_once=1)
    await server.received(0)
    lives = await program.start("lives", prompts=1, at_once=1)
    await server.received(1)
    assert {row["outcome"] for row in rows_of(path).values()} == {None}
    await program.kill(dies)
    third = await program.start("third", prompts=1, at_once=1)
    assert await program.wait(third) == 0
    outcomes = {row["purpose"]: row["outcome"] for row in rows_of(path).values()}
    assert outcomes == {"dies-0": "lost", "lives-0": None, "third-0": "ok"}
    gate.set()
    assert await program.wait(lives) == 0
    outcomes = {row["purpose"]: row["outcome"] for row in rows_of(path).values()}
    assert outcomes == {"dies-0": "lost", "lives-0": "ok", "third-0": "ok"}


async def test_two_writing_processes_lose_nothing(server, program, path):
    server.play([HELLO])
    pids = [await program.start("a", prompts=50)]
    await server.received(0)  # it has made the tables
    pids.append(await program.start("b", prompts=50))
    assert [await program.wait(pid) for pid in pids] == [0, 0]
    rows = rows_of(path).values()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert sorted(row["purpose"] for row in rows) == sorted(asked_of(server))
    assert len(rows) == 100
    assert sessions_of(path) == []


async def test_concurrent_starts_on_a_new_database(server, program, path, tmp_path, make_datasette):
    # Datasette's own tables are there: it does not stand several that make those at once.
    await make_datasette({"log": False}, internal=str(path)).invoke_startup()
    server.play([HELLO])
    pids = [await program.start(name, prompts=10, at_once=2) for name in "abcd"]
    assert [await program.wait(pid) for pid in pids] == [0] * 4
    rows = rows_of(path).values()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert sorted(row["purpose"] for row in rows) == sorted(asked_of(server))
    assert len(rows) == 40
    assert sessions_of(path) == []
    assert "LLM call log" not in (tmp_path / "stderr").read_text()


@pytest.mark.timeout(120)
async def test_s10_two_start_at_once_ten_times(server, program, path, tmp_path):
    """On a database that Datasette has made and we have not."""
    await made_without_us(path)
    server.play([HELLO])
    for number in range(10):
        fresh = path.with_name(f"internal-{number}.db")
        shutil.copy(path, fresh)
        program.settings["internal"] = str(fresh)
        pids = [await program.start(name, prompts=2, at_once=2) for name in "ab"]
        assert [await program.wait(pid) for pid in pids] == [0, 0]
        assert [row["outcome"] for row in rows_of(fresh).values()] == ["ok"] * 4
        assert sessions_of(fresh) == []
    assert "LLM call log" not in (tmp_path / "stderr").read_text()


async def made_without_us(path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "datasette", "--internal", str(path), "--get", "/-/versions.json"),
        env=os.environ | {"DATASETTE_LOAD_PLUGINS": ""},
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(BOUND_S):
        assert await process.wait() == 0
    with closing(sqlite3.connect(path)) as connection:
        names = {name for (name,) in connection.execute("select name from sqlite_master")}
    assert "catalog_databases" in names
    assert not [name for name in names if name.startswith("llm_")]

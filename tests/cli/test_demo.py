"""`datasette llm demo`: what it makes, says and serves, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import llm
import pytest
import yaml
from click.testing import CliRunner, Result
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm.cli import demo
from datasette_llm.cli.demo_calls import write_calls
from datasette_llm.cli.demo_data import write_harbour
from datasette_llm.config.parse import parse_settings
from datasette_llm.log.queries import time_of
from datasette_llm.testing import ScriptedModel

from ..support.console import Page

BOUND_S = 50.0
# A Wednesday.
NOW = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)
LAST_LINE = "Ctrl-C ends it."


class Running:
    """A demo that serves; `output` is what it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def ready(self) -> None:
        assert self.process.stdout is not None
        while LAST_LINE not in self.output:
            line = await self.process.stdout.readline()
            assert line, f"The demo ended:\n{self.output}"
            self.output += line.decode()

    async def end(self, number: int) -> tuple[int, str]:
        """Send a signal by its number; gives the exit status and what was still printed."""
        self.process.send_signal(number)
        async with asyncio.timeout(BOUND_S):
            rest, _ = await self.process.communicate()
        return self.process.returncode or 0, rest.decode()

    @property
    def folder(self) -> Path:
        found = re.search(r" is in (.+)$", self.output, re.M)
        assert found
        return Path(found[1])

    def address(self, label: str) -> str:
        """The address that is printed after some words."""
        found = re.search(rf"^{label}: +(\S+)$", self.output, re.M)
        assert found
        return found[1]


async def process_of(llm_folder: Path, *words: str) -> asyncio.subprocess.Process:
    """`datasette` with some words, in a process with our plugins and llm-echo alone."""
    foreign = ("DATASETTE_", "LLM_", "OPENAI_")
    names = [n for n in os.environ if not n.startswith(foreign) and not n.endswith("_API_KEY")]
    environment = {name: os.environ[name] for name in names} | {
        "DATASETTE_LOAD_PLUGINS": "datasette-llm,datasette-secrets",
        "LLM_LOAD_PLUGINS": "llm-echo",
        "LLM_USER_PATH": str(llm_folder),
        "PYTHONUNBUFFERED": "1",
    }
    return await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "datasette", *words],
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@contextlib.asynccontextmanager
async def running(llm_folder: Path, *words: str) -> AsyncIterator[Running]:
    """A demo in a process of its own, from when it serves."""
    served = Running(await process_of(llm_folder, *words))
    try:
        async with asyncio.timeout(BOUND_S):
            await served.ready()
        yield served
    finally:
        if served.process.returncode is None:
            await served.end(signal.SIGTERM)


@pytest.fixture
def invoke(tmp_path, monkeypatch) -> Callable[..., Result]:
    """A function that runs the demo without serving, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["llm", "demo", "--no-serve", "--days", "0", *words])

    return run


async def test_login_link_opens_console_and_call_log(llm_folder):
    """The newest call is the demo's own prompt, by a model that is there."""
    async with running(llm_folder, "llm", "demo", "--days", "2") as served:
        console, record = served.address("The console"), served.address("The call log")
        async with httpx2.AsyncClient(timeout=BOUND_S, trust_env=False) as client:
            assert (await client.get(console)).status_code == 403
            assert (await client.get(record)).status_code == 403
            assert (await client.get(served.address("The harbour"))).status_code == 200
            login = await client.get(served.address("Log in as root, once"))
            assert login.status_code == 302
            assert (await client.get(console)).status_code == 200
            # What only Datasette's root may see.
            assert (await client.get(console.replace("/llm", "/permissions"))).status_code == 200
            call = (await client.get(f"{record}.json")).json()["rows"][0]
            page = await client.get(f"{record}/{call['id']}")
        assert (call["model_id"], call["purpose"]) == ("echo", "harbour")
        assert call["outcome"] == "ok"
        assert demo.QUESTION in page.text
        folder = served.folder
        assert (folder / "datasette.yaml").exists()
        assert await served.end(signal.SIGINT) == (0, "")
    assert not folder.exists()


async def test_sigterm_removes_temporary_folder(llm_folder):
    async with running(llm_folder, "llm", "demo", "--days", "0") as served:
        folder = served.folder
        assert await served.end(signal.SIGTERM) == (0, "")
    assert not folder.exists()


async def test_printed_command_serves_named_folder(llm_folder, tmp_path):
    place = tmp_path / "my harbour"
    async with running(llm_folder, "llm", "demo", "--days", "1", str(place)) as served:
        again = served.output.partition("Begin again with: datasette ")[2].strip()
    assert (place / "internal" / "internal.db").exists()
    process = await process_of(llm_folder, *shlex.split(again), "--get", "/.json")
    async with asyncio.timeout(BOUND_S):
        output, _ = await process.communicate()
    assert [each["name"] for each in json.loads(output)["databases"]] == ["harbour"]


def test_demo_site_works_in_console_and_log(invoke, tmp_path):
    result = invoke("harbour")
    assert result.exit_code == 0, result.output
    site = yaml.safe_load((tmp_path / "harbour" / "datasette.yaml").read_text("utf-8"))
    assert site == demo.settings("echo")
    assert parse_settings(site["plugins"]["datasette-llm"]).default_model.model == "echo"
    assert set(site["permissions"]) == {"manage-llm", "view-llm-log", "analyze-table"}
    connection = sqlite3.connect(tmp_path / "harbour" / "internal" / "internal.db")
    with contextlib.closing(connection):
        rows = connection.execute("select model_id, actor_id, outcome from llm_calls").fetchall()
    assert rows == [("echo", "root", "ok")]


def test_json_has_site_and_answer(invoke, tmp_path):
    payload = json.loads(invoke("harbour", "--json").output)
    assert payload.pop("rows") == {"berths": 6, "ships": 20, "arrivals": 420}
    assert json.loads(payload.pop("answer"))["prompt"] == demo.QUESTION
    assert payload == {
        "ok": True,
        "calls": 0,
        "folder": "harbour",
        "default_model": "echo",
        "models_with_key": [],
        "prompt": demo.QUESTION,
        "login_link": None,
    }


def test_a_folder_that_has_files_is_left_as_it_is(invoke, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    result = invoke("full")
    assert result.exit_code == 1
    assert result.output == "Error: full is not empty. Name a new folder, or none\n"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_folder_that_cannot_be_made_is_an_error(invoke, tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/below"):
        result = invoke(name)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {name} cannot be the folder: ")


def test_unwritable_folder_is_named_in_error(invoke, tmp_path, monkeypatch):
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    result = invoke("mounted")
    assert result.exit_code == 2
    assert result.output.endswith("Path 'mounted' is not writable.\n")


def test_a_port_that_is_taken_is_told_as_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(cli, ["llm", "demo", "harbour", "--port", port])
    assert result.exit_code == 1
    assert result.output == f"Error: Port {port} cannot be used: Address already in use\n"
    assert list((tmp_path / "harbour").iterdir()) == []


def test_missing_llm_echo_says_how_to_install(invoke, tmp_path, monkeypatch):
    echo = next(p for p in llm.plugins.pm.get_plugins() if "echo" in getattr(p, "__name__", ""))
    llm.plugins.pm.unregister(echo)
    try:
        result = invoke("harbour")
    finally:
        llm.plugins.pm.register(echo)
    assert result.exit_code == 1
    assert "datasette install llm-echo" in result.output
    assert list((tmp_path / "harbour").iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "default"), [(None, "first"), ("second", "second"), ("keyless", "first")]
)
def test_default_is_llms_own_or_first_with_key(
    chosen, default, invoke, tmp_path, register_models, monkeypatch
):
    """Of the models with a key, llm's default model is preferred."""
    monkeypatch.setenv("DATASETTE_SECRETS_PELICAN_API_KEY", "sk-pelican-123456")
    monkeypatch.setattr(llm, "get_default_model", lambda: chosen or "gpt-4o-mini")
    models: dict[str, Any] = {
        name: ScriptedModel(name, [f"I am {name}"], needs_key=key)
        for name, key in [("keyless", None), ("first", "pelican"), ("second", "pelican")]
    }
    register_models(*models.values())
    result = invoke("harbour")
    assert f"The default model is {default}. Models with a key: 2\n" in result.output
    assert result.output.endswith(f"> {demo.QUESTION}\nI am {default}\n")
    assert models[default].calls[0].key == "sk-pelican-123456"
    text = (tmp_path / "harbour" / "datasette.yaml").read_text("utf-8")
    assert yaml.safe_load(text) == demo.settings(default)
    assert "sk-pelican" not in text + result.output


def test_demo_continues_after_provider_error(invoke, register_models, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_PELICAN_API_KEY", "sk-pelican-123456")
    failing = ScriptedModel("first", [RuntimeError("bad sk-pelican-123456")], needs_key="pelican")
    register_models(failing)
    result = invoke("harbour")
    assert result.exit_code == 0
    assert result.output.endswith("No answer came: RuntimeError: bad [key removed]\n")


# What scripted models did


async def written(path: Path, days: int, now: datetime = NOW) -> sqlite3.Connection:
    """A call log that ends at a time."""
    datasette = Datasette(config=demo.settings("echo"), internal=str(path))
    count = await write_calls(datasette, now, days)
    connection = sqlite3.connect(path)
    assert connection.execute("select count(*) from llm_calls").fetchone() == (count,)
    return connection


async def test_p9_calls_are_reproducible(tmp_path):
    """The same rows at the same time, all but the sessions that wrote them."""
    dumps = []
    for name in ("one.db", "two.db"):
        with contextlib.closing(await written(tmp_path / name, 2)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("select * from llm_calls order by id").fetchall()
            dumps.append([dict(row) | {"session_id": None} for row in rows])
    assert len(dumps[0]) > 80
    assert dumps[0] == dumps[1]


async def test_p9_calls_show_what_pages_have(tmp_path):
    with contextlib.closing(await written(tmp_path / "internal.db", 30)) as connection:

        def found(column: str, table: str = "llm_calls") -> set[Any]:
            return {row[0] for row in connection.execute(f"select distinct {column} from {table}")}

        def count(condition: str) -> int:
            sql = f"select count(*) from llm_calls where {condition}"
            return int(connection.execute(sql).fetchone()[0])

        assert found("outcome") == {"ok", "error", "cancelled", "blocked"}
        assert found("purpose") == set(demo.SETTINGS["purposes"])
        assert {"rate_limit", "not_allowed", "other"} <= found("failure_kind")
        assert {"stop", "length", "tool_calls"} <= found("finish_reason")
        assert found("key", "llm_call_tags") >= {"table", "job", "language", "trial"}
        assert len(found("actor_id")) == 5
        assert {1, 2, 3} == found("attempt")
        assert {1, 2, 3} <= found("chain_step")
        assert count("group_id is not null") > 100
        assert count("waited_ms > 0") > 10
        assert count("cost_nanodollars is null and outcome = 'ok'") == count("model_id='quay-7b'")
        assert count("cost_nanodollars > 0") > 1_000
        assert 0 < len(found("call_id", "llm_call_content")) < count("1")
        longest = "select count(*) from llm_calls group by conversation_id order by 1 desc limit 1"
        assert connection.execute(longest).fetchone()[0] >= 4


async def test_p9_calls_have_the_times_of_the_past(tmp_path):
    """Ids, starts, durations and ends agree; weekends are calm, and yesterday has failures."""
    with contextlib.closing(await written(tmp_path / "internal.db", 14)) as connection:
        sql = "select id, started_at, finished_at, duration_ms, outcome from llm_calls"
        rows = connection.execute(f"{sql} where outcome <> 'blocked'").fetchall()
        days = dict(
            connection.execute("select date(started_at), count(*) from llm_calls group by 1")
        )
    for call_id, started, finished, duration_ms, _ in rows:
        began, ended = datetime.fromisoformat(started), datetime.fromisoformat(finished)
        assert began < NOW
        assert (ended - began) / timedelta(milliseconds=1) == pytest.approx(duration_ms, abs=2)
        assert abs(time_of(call_id) - began) < timedelta(seconds=10)  # what it waited in a queue
    assert len(days) == 14
    assert days["2026-03-08"] < days["2026-03-10"] / 2
    yesterday = [row for row in rows if row[1].startswith("2026-03-10") and row[4] == "error"]
    assert len(yesterday) >= 21


async def test_p9_start_page_leads_to_what_it_names(llm_folder):
    """Every address of the start page answers, to root alone."""
    async with running(llm_folder, "llm", "demo", "--days", "5") as served:
        start = served.address("What to look at")
        async with httpx2.AsyncClient(timeout=BOUND_S, trust_env=False) as client:
            page = Page((await client.get(start)).text)
            links = [href for href in page.links() if "/-/llm" in f"/{href}"]
            assert len(links) == 12
            refused = {(await client.get(f"{start}{href}")).status_code for href in links}
            assert refused <= {403, 404}
            await client.get(served.address("Log in as root, once"))
            for href in links:
                shown = await client.get(f"{start}{href}")
                assert shown.status_code == 200, href
                assert "No calls match" not in shown.text
            advice = next(href for href in links if "consultations" in href)
            (evaluation,) = [href for href in links if "evaluations" in href]
            result = (await client.get(f"{start}{evaluation}.json")).json()
            checked = (await client.get(f"{start}{advice}.json")).json()["consultation"]["checks"]
    assert [check["status"] for check in checked].count("contradicted") == 1
    assert result["evaluation"]["state"] == "complete"
    assert all(each["sentence"] and each["passed"] for each in result["candidates"][1:])


def test_harbour_is_reproducible(tmp_path):
    """Each run makes the same rows, and all foreign keys are valid."""
    dumps = []
    for name in ("one.db", "two.db"):
        write_harbour(tmp_path / name)
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("pragma foreign_key_check").fetchall() == []
            assert len(connection.execute("pragma foreign_key_list(arrivals)").fetchall()) == 2
            dumps.append(list(connection.iterdump()))
    assert dumps[0] == dumps[1]


def test_harbour_has_data_errors(tmp_path):
    write_harbour(tmp_path / "harbour.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "harbour.db")) as connection:

        def count(condition: str, table: str = "arrivals") -> int:
            sql = f"select count(*) from {table} where {condition}"
            return int(connection.execute(sql).fetchone()[0])

        assert count("departed is null") == 6
        assert count("departed < arrived") >= 3
        assert count("arrived like '__/__/____'") == 4
        assert count("tonnes > 100000") >= 1
        assert count("fee < 0") == 3
        assert count("flag <> trim(flag) or flag = upper(flag)", "ships") == 3
        assert count("arrived between '2025-01-01' and '2026-02-01'") > 400

"""The examples of `telemetry.md`; its tables are compared in `tests/telemetry`."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel

from ..support.otlp_receiver import OTLPReceiver
from .examples import PYPROJECT, ours, shows

PLUGIN = """
from datasette import Response, hookimpl
from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel, registered

models = registered(ScriptedModel("scripted", ["a"]))
models.__enter__()


@hookimpl
def register_routes():
    async def ask(datasette):
        model = await LLM(datasette).model("scripted")
        return Response.text(await (await model.prompt("x")).text())

    return [(r"^/-/ask$", ask)]
"""


@pytest.fixture
def served(tmp_path):
    """Run commands that serve a site, as shown, for one request that prompts a model."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "asking.py").write_text(PLUGIN)
    sqlite3.connect(tmp_path / "data.db").close()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("OTEL_")}

    async def serve(commands):
        once = "datasette serve data.db --plugins-dir plugins --get /-/ask"
        commands = re.sub("^pip install .*$", "", commands, flags=re.M)
        script = commands.replace("datasette serve data.db", once)
        return await asyncio.to_thread(
            subprocess.check_output,
            ["bash", "-euc", script],
            cwd=tmp_path,
            env=environment | {"PATH": path, "OTEL_BSP_SCHEDULE_DELAY": "60000"},
            text=True,
            timeout=50,
        )

    return serve


@shows(commands="any collector")
async def test_k5_site_sends_its_spans_as_shown(commands, served):
    """With the request above the prompt, and the last of them before the process ends."""
    with OTLPReceiver() as receiver:
        everything = commands.replace("_SAMPLER_ARG=0.1", "_SAMPLER_ARG=1")
        await served(everything.replace("http://127.0.0.1:4318", receiver.url))
    tree = receiver.tree()
    request = next(number for number, line in enumerate(tree) if line.startswith("GET "))
    assert "  chat scripted" in tree[request:]
    assert receiver.headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="


@shows(short="instrument", phoenix="to phoenix", full="any collector")
def test_k5_others_are_sent_likewise(short, phoenix, full):
    """The shorter commands are those that are run, without what they leave out."""
    variables = [dict(re.findall(r"(OTEL_\w+)=(\S+)", text)) for text in (short, phoenix, full)]
    endpoints = [each.pop("OTEL_EXPORTER_OTLP_ENDPOINT") for each in variables]
    assert endpoints == [f"http://127.0.0.1:{port}" for port in (4318, 6006, 4318)]
    signals = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    assert variables[0].items() <= variables[2].items()
    assert variables[1] == variables[0] | signals
    assert len({text.splitlines()[-1] for text in (short, phoenix, full)}) == 1


@shows(install="instrument", phoenix="phoenix")
def test_k5_what_is_installed_is_no_dependency(install, phoenix):
    """The administrator chooses an exporter; what tests need of it is what is shown."""
    [shown] = re.findall("^pip install (.*)$", install, re.M)
    project = PYPROJECT["project"]
    dependencies = {Requirement(each).name for each in project["dependencies"]}
    tests = {Requirement(each).name for each in project["optional-dependencies"]["test"]}
    assert set(shown.split()) <= tests - dependencies
    assert "arize-phoenix" in phoenix
    assert "arize-phoenix" not in tests | dependencies


@shows(config="telemetry.yaml")
async def test_k2_content_is_configured_as_shown(config, make_datasette, register_models):
    register_models(ScriptedModel("scripted", ["a"]))
    model = await LLM(make_datasette(ours(config))).model("scripted")
    settings = model.route.target.telemetry
    assert (settings.content, settings.actor) == (True, True)

"""README.md: the demo, the tests, the smallest plugin, the table of the documentation."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import yaml
from datasette.cli import cli

from datasette_llm import (
    LLM,
)
from datasette_llm.console.docs import documents
from datasette_llm.hooks import specs as hookspecs
from datasette_llm.testing import ScriptedModel

from ..cli.test_demo import running
from .examples import (
    PYPROJECT,
    README,
    ROOT,
    claude,
    ours,
    shows,
)


@shows(command="try", output="try output")
async def test_demo_command_prints_the_output_shown(command, output, llm_folder):
    venv, install, demo = command.strip().split(" && ")
    assert venv == "python3 -m venv .venv"
    assert install == ".venv/bin/pip install -q . llm-echo"
    program, *words = shlex.split(demo)
    assert program == ".venv/bin/datasette"
    varying = r"(?<=datasette-llm-demo-)\w+|(?<=127\.0\.0\.1:)\d+|(?<=token=)\w+|[\d,]+(?= calls)"
    async with running(llm_folder, *words) as served:
        assert re.sub(varying, "*", served.output) == re.sub(varying, "*", output)


@shows(command="tests", gate="gate")
def test_tests_command_is_run_by_ci(command, gate):
    assert command.strip().split(" && ") == [
        "python3 -m venv .venv",
        ".venv/bin/pip install -q -e '.[test]'",
        ".venv/bin/pytest -n auto",
    ]
    assert "pytest>=8" in PYPROJECT["project"]["optional-dependencies"]["test"]
    script = ROOT / gate.removeprefix("bash ").strip()
    assert "<!-- example: tests -->" in script.read_text("utf-8")
    assert os.access(script, os.X_OK)


@shows(commands="install")
def test_install_commands(commands):
    lines = [shlex.split(line) for line in commands.splitlines() if not line.startswith("#")]
    packages = [package for line in lines for package in line[2:]]
    assert PYPROJECT["project"]["name"] in packages
    assert {line[1] for line in lines} == {"install"}
    assert "install" in cli.commands


@shows(source="greet.py")
async def test_smallest_plugin_answers_a_request(source, site, register_models):
    register_models(ScriptedModel("scripted", ["Good day, ", "pelican"]))
    datasette = site({"default_model": "scripted"}, greet=source)
    response = await datasette.client.get("/-/greet")
    assert (response.status_code, response.text) == (200, "Good day, pelican")


@shows(source="greet.py", command="serve greet.py")
def test_smallest_plugin_is_served_as_shown(source, command, terminal):
    Path("plugins", "greet.py").write_text(source, "utf-8")
    output = terminal(shlex.split(command)[1:])
    assert yaml.safe_load(output)["prompt"] == "Greet a pelican in one sentence"


def test_readme_has_at_most_250_lines():
    assert len(README.splitlines()) <= 250


def test_table_leads_to_every_subject():
    rows = [
        f"| [{each.title}](datasette_llm/docs/{each.subject}.md) "
        f"| `/-/llm/docs/{each.subject}` | {each.summary} |"
        for each in documents()
    ]
    table = README.partition("| subject | in Datasette | what it explains |\n| --- | --- | --- |\n")
    assert table[2].splitlines() == rows


@shows(picture="picture")
def test_picture_names_what_exists(picture):
    hooks = re.findall(r"llm_\w+", picture)
    assert hooks
    assert all(hasattr(hookspecs, hook) for hook in hooks)
    assert max(map(len, picture.splitlines())) <= 100


@shows(text="small datasette.yaml", keys="small keys")
async def test_small_configuration_with_its_keys(
    text, keys, make_datasette, register_models, monkeypatch
):
    """The purpose has a model with its own key and options, and Ana has the console."""
    sonnet = claude("claude-sonnet-4.5")
    others = map(ScriptedModel, ("gemini-2.5-flash", "gemini-2.5-pro"))
    register_models(sonnet, claude("claude-haiku-4.5"), *others)
    for line in keys.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, f"{value}{name}")
    datasette = make_datasette(ours(text))
    datasette.config.update({"permissions": yaml.safe_load(text)["permissions"]})
    await datasette.invoke_startup()
    listed = [model.model_id for model in await LLM(datasette).models()]
    assert listed == ["claude-haiku-4.5", "gemini-2.5-flash"]
    await (await LLM(datasette).model(purpose="sql")).prompt("x")
    assert sonnet.calls[0].key == "sk-ant-...DATASETTE_SECRETS_SQL_TEAM_KEY"
    assert sonnet.calls[0].request.options.temperature == 0
    statuses = [
        (await datasette.client.get("/-/llm", actor=actor)).status_code
        for actor in (None, {"id": "ana"})
    ]
    assert statuses == [403, 200]

"""The examples and tables of `testing.md`."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

import pytest
import yaml

from datasette_llm import (
    LLM,
)
from datasette_llm.testing import ScriptedModel

from .examples import (
    DOCS,
    PYPROJECT,
    ROOT,
    run,
    shows,
)


@shows(source="test_greet.py", plugin_source="greet.py")
@pytest.mark.parametrize("subject", ["a pelican", "a gull"])
async def test_example_notices_a_broken_plugin(
    subject, source, plugin_source, site, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plugin_file = tmp_path / "plugins" / "greet.py"
    plugin_file.write_text(plugin_source.replace("a pelican", subject), "utf-8")
    [example] = [value for name, value in (await run(source)).items() if name.startswith("test_")]
    assert example.pytestmark == [pytest.mark.asyncio.mark]
    if subject == "a pelican":
        await example()
    else:
        with pytest.raises(AssertionError):
            await example()


@shows(source="scripts")
async def test_scripts_are_played_one_for_each_prompt(source, make_datasette, register_models):
    names = await run(source)
    scripted, go_on = names["model"], names["go_on"]
    register_models(scripted)
    model = await LLM(make_datasette()).model("scripted")
    looking = await model.prompt("How many?")
    assert await looking.text() == "Let me look."
    assert [call.name for call in await looking.tool_calls()] == ["count_rows"]
    counting = asyncio.create_task(model.prompt("And now?"))
    assert (await scripted.received(2)).outcome == "running"
    go_on.set()
    assert await (await counting).text() == "There are two."
    assert (await (await counting).usage()).input == 20
    for _ in range(2):  # the last script is used again
        broken = await model.prompt("Tell me more")
        with pytest.raises(RuntimeError, match="the provider broke"):
            await broken.text()
    assert [call.outcome for call in scripted.calls] == ["complete"] * 2 + ["failed"] * 2


async def test_scripted_model_replaces_installed_one(make_datasette, register_models):
    models = LLM(make_datasette())
    await models.models()  # llm has loaded its plugins, its own with gpt-4o-mini among them
    scripted = ScriptedModel("gpt-4o-mini")
    register_models(scripted)
    assert (await models.model("gpt-4o-mini"))._model is scripted  # noqa: SLF001  # the first release's name


@shows(commands="uv")
def test_uv_finds_the_dev_group(commands, terminal):
    assert commands.splitlines() == ["uv sync", "uv run pytest", "uv run datasette plugins"]
    assert PYPROJECT["dependency-groups"]["dev"] == ["datasette-llm[test]"]
    names = [plugin["name"] for plugin in yaml.safe_load(terminal(["plugins"]))]
    assert "datasette-llm" in names


@shows(commands="faults")
def test_system_tests_run_by_the_names_shown(commands):
    faults, *modules = commands.splitlines()
    assert (ROOT / faults.split(" pytest ")[1]).exists()
    for line in modules:
        assert find_spec(f"{line.split(' -m ')[1]}.__main__") is not None


@shows(command="benchmarks")
def test_benchmarks_run_by_the_name_shown(command):
    _, module = command.strip().split(" -m ")
    assert find_spec(f"{module}.__main__") is not None
    assert "<!-- benchmark -->" in DOCS["benchmarks"]

"""A site whose plugins are examples, and a terminal for the commands shown."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from click.testing import CliRunner
from datasette.cli import cli
from datasette.plugins import pm

from datasette_llm import (
    LLM,
)
from datasette_llm.testing import ScriptedModel


@pytest.fixture
def anthropic_key(monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_ANTHROPIC_API_KEY", "sk-of-the-site")


@pytest.fixture
def site(make_datasette, tmp_path):
    """A function that makes a Datasette whose plugins folder holds some of the examples."""
    before = pm.get_plugins()
    folder = tmp_path / "plugins"
    folder.mkdir()

    def make(config: object = None, **examples: str):
        for name, source in examples.items():
            (folder / f"{name}.py").write_text(source, "utf-8")
        return make_datasette(config, plugins_dir=str(folder))

    yield make
    for added in pm.get_plugins() - before:
        pm.unregister(added)


@pytest.fixture
def terminal(site, tmp_path, monkeypatch):
    """A function that runs a command line of datasette's in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(words: list[str], typed: str | None = None) -> str:
        runner = CliRunner()
        result = runner.invoke(cli, words, typed, prog_name="datasette", terminal_width=80)
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


@pytest.fixture
def scripted_model(make_datasette, register_models):
    """A function that makes a scripted model, and gets it through the facade."""

    async def get(*scripts: Any):
        scripted = ScriptedModel("scripted", *scripts)
        register_models(scripted)
        datasette = make_datasette()
        return datasette, scripted, await LLM(datasette).model("scripted")

    return get


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A file with the table that the examples ask about."""
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect("zoo.db")
    connection.executescript("create table animals (name, weight, keeper)")
    connection.execute("insert into animals values ('Dumbo', -5, 'Timothy')")
    connection.commit()
    connection.close()

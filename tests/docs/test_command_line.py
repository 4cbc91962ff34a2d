"""The examples and tables of `command-line.md`."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
import yaml
from click.testing import CliRunner
from datasette.cli import cli

from datasette_llm.cli import log as log_cli
from datasette_llm.log.queries import RUNNING, Filter, calls
from datasette_llm.testing import ScriptedModel

from ..cli.test_log import Record
from ..support.consultant import answer as advice_answer
from .examples import (
    DOCS,
    ZOO_FLAG,
    claude,
    commands,
    ours,
    shows,
    table_rows,
)


@shows(commands="command line", config="datasette.yaml")
def test_prompt_commands_prompt_as_a_plugin(
    commands, config, terminal, register_models, anthropic_key
):
    scripted = claude("claude-haiku-4.5", ["A pet."])
    register_models(scripted)
    Path("datasette.yaml").write_text(config, "utf-8")
    by_purpose, by_model, piped = commands.splitlines()
    assert terminal(shlex.split(by_purpose)[1:]) == "A pet.\n"
    assert terminal(shlex.split(by_model)[1:]) == "A pet.\n"
    options = scripted.calls[1].request.options
    assert options.temperature == 1
    assert list(scripted.calls[1].request.schema["properties"]) == ["name", "age"]
    echo, prompt = map(shlex.split, piped.split(" | "))
    answer = yaml.safe_load(terminal(prompt[1:], typed=echo[1] + "\n"))
    assert answer["prompt"].strip() == "A pelican walks into a bar"
    assert answer["system"] == "Finish the joke"


@shows(commands="what-if command", config="datasette.yaml")
def test_what_if_compares_models(commands, config, terminal, register_models):
    register_models(claude("claude-haiku-4.5", ["A pet."]))
    Path("datasette.yaml").write_text(config, "utf-8")
    assert terminal(shlex.split(commands)[1:]) == "0 calls\n"


@shows(options="command line options")
def test_prompt_options_are_those_of_the_help(options, terminal):
    assert terminal(["llm", "prompt", "--help"]).partition("Options:\n")[2] == options


@shows(commands="models and explain", config="datasette.yaml", permission="manage permission")
async def test_models_and_explain_give_the_pages_json(
    commands, config, permission, make_datasette, register_models, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    register_models(claude("claude-haiku-4.5"), claude("claude-opus-4.5"))
    (tmp_path / "datasette.yaml").write_text(config, "utf-8")
    datasette = make_datasette(ours(config))
    datasette.config.update(yaml.safe_load(permission))
    await datasette.invoke_startup()
    for line, page in zip(commands.splitlines(), ("models", "explain"), strict=True):
        words = shlex.split(line)[1:]
        result = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--json"])
        assert result.exit_code == 0, result.output
        printed = json.loads(result.stdout)
        asked = {"q": "claude", "availability": "no-key"} if page == "models" else {}
        asked |= {"model": "claude-haiku-4.5", "purpose": "sql"} if page == "explain" else {}
        asked |= {"actor": '{"id": "ana"}'} if page == "explain" else {}
        path = f"/-/llm/{page}.json?{urlencode(asked)}"
        assert (await datasette.client.get(path)).status_code == 403
        shown = (await datasette.client.get(path, actor={"id": "ana"})).json()
        for row in shown.get("models", ()):
            del row["figures"], row["fold"]  # of the page only
        assert shown | printed == shown
    assert (await datasette.client.get("/-/llm/keys", actor={"id": "ana"})).status_code == 200


@shows(commands="assign commands", output="assign commands output", config="datasette.yaml")
def test_assign_commands_print_what_is_shown(
    commands, output, config, terminal, register_models, anthropic_key
):
    ids = ("claude-haiku-4.5", "claude-sonnet-4.5", "claude-opus-4.5")
    register_models(*map(claude, ids), *map(ScriptedModel, ("gemini-2.5-flash", "gemini-2.5-pro")))
    Path("datasette.yaml").write_text(config, "utf-8")
    printed = [terminal(shlex.split(line)[1:]) for line in commands.splitlines()]
    assert "".join(printed) == output


@shows(commands="test commands", config="datasette.yaml")
def test_commands_test_a_model_and_a_purpose(
    commands, config, terminal, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", ["pong"]), claude("claude-sonnet-4.5", ["pong"]))
    Path("datasette.yaml").write_text(config, "utf-8")
    by_model, by_purpose = (shlex.split(line)[1:] for line in commands.splitlines())
    assert terminal(by_model).startswith("claude-haiku-4.5 (Anthropic): ok in ")
    assert "claude-sonnet-4.5" in CliRunner().invoke(cli, by_purpose).stdout


@shows(commands="analyze commands", config="datasette.yaml")
def test_commands_preview_and_analyze(commands, config, zoo, register_models, anthropic_key):
    model = claude("claude-haiku-4.5", [json.dumps(advice_answer(ZOO_FLAG))])
    register_models(model)
    Path("datasette.yaml").write_text(config, "utf-8")
    found, first, second = (shlex.split(line)[1:] for line in commands.splitlines())
    assert CliRunner().invoke(cli, found).exit_code == 0
    assert "Dumbo" in CliRunner().invoke(cli, first).stdout
    assert model.calls == []
    assert "counted: 1 of 1 rows" in CliRunner().invoke(cli, second).stdout


@pytest.fixture
def record(tmp_path, monkeypatch):
    """An internal.db in the current folder with the calls of the example."""
    monkeypatch.chdir(tmp_path)
    record = Record(tmp_path / "internal.db")
    haiku = {"model_id": "claude-haiku-4.5", "purpose": "pets", "actor_id": "ana"}
    used = {"input_tokens": 1204, "output_tokens": 311, "cost_nanodollars": 2_759_000}
    record.add(0, duration_ms=2103.4, **haiku, **used)
    refusal = {"blocked_by": "budget.py", "error_message": "Your tokens are used up"}
    record.add(1, "blocked", duration_ms=0.0, **haiku, **refusal)
    failure = {"error_type": "ModelError", "error_message": "overloaded"}
    record.add(60, "error", model_id="gemini-2.5-flash", duration_ms=812.0, **failure)
    record.begin(62, **haiku)
    yield record
    record.connection.close()


@shows(commands="log", output="log output")
def test_log_commands_print_what_is_shown(commands, output, record, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    plain, failed, as_json, followed = (shlex.split(line)[1:] for line in commands.splitlines())
    assert terminal(plain) == output
    assert [line.split()[2] for line in terminal(failed).splitlines()[1:]] == ["error"]
    rows = json.loads(terminal(as_json))
    assert [row["outcome"] for row in rows] == ["running", "blocked", "ok"]

    def sleep(seconds: float) -> None:
        if not calls(record.connection, Filter(outcome=RUNNING), limit=1):
            raise KeyboardInterrupt
        record.end(62)

    monkeypatch.setattr(log_cli, "time", SimpleNamespace(sleep=sleep))
    assert [line.split()[2] for line in terminal(followed).splitlines()[1:]] == ["ok"]


@shows(options="log options")
def test_log_options_are_those_of_the_help(options, terminal):
    assert terminal(["llm", "log", "--help"]).partition("Options:\n")[2] == options


def test_commands_table_is_that_of_the_code():
    rows = table_rows(DOCS["command-line"].partition("\n\n`-c`")[0])
    shown = [(re.search(r"`([\w-]+)`", name)[1], about) for name, about in rows]
    assert shown == [(name, command.help.splitlines()[0]) for name, command in commands()]

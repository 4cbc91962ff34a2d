"""The README is run: every example, and every table, tree and help text that the code also has.

An example is a code block under an HTML comment `<!-- example: NAME -->`. A test takes the
examples that it runs with `@shows(parameter="NAME")`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import itertools
import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import tomllib
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import click
import llm
import pytest
import yaml
from click.testing import CliRunner
from cryptography.fernet import Fernet
from datasette import Request, hookimpl
from datasette.app import Datasette
from datasette.cli import cli
from datasette.database import Database
from datasette.plugins import pm

import datasette_llm
from datasette_llm import (
    LLM,
    ConfigError,
    ConversationBusyError,
    Decision,
    Group,
    ModelNotAllowedError,
    PromptResult,
    errors,
)
from datasette_llm.access.config_warnings import warnings
from datasette_llm.access.keys import provider_secret
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.cli import log as log_cli
from datasette_llm.config.parse import parse_settings
from datasette_llm.config.references import CallSettings
from datasette_llm.config.settings import settings_table
from datasette_llm.console import probe
from datasette_llm.console.advice import payloads as consultant_pages
from datasette_llm.consultant.advice import claims as consultant_checks
from datasette_llm.consultant.advice import types as prompting
from datasette_llm.hooks import specs as hookspecs
from datasette_llm.log.queries import RUNNING, Filter, calls
from datasette_llm.log.schema import OUTCOMES
from datasette_llm.providers.failures import LABELS
from datasette_llm.providers.threads import LOOK_AHEAD
from datasette_llm.testing import ScriptedCall, ScriptedModel

from ..cli.test_demo import running
from ..cli.test_log import Record
from ..support.consultant import answer as advice_answer
from ..support.consultant import flag
from ..support.openai_server import OpenAIServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOUND = re.findall(r"^<!-- example: (.+?) -->\n```(\w+)\n(.*?)^```$", README, re.M | re.S)
EXAMPLES = {name: text for name, _, text in FOUND}
ZOO_FLAG = flag("select name from animals where weight < 0")
COMMANDS = [line for _, kind, text in FOUND if kind == "bash" for line in text.splitlines()]
SHOWN: set[str] = set()


def shows(**examples: str) -> pytest.MarkDecorator:
    """The test runs these examples, which it gets as arguments."""
    SHOWN.update(examples.values())
    texts = tuple(EXAMPLES[name] for name in examples.values())
    values = [texts if len(texts) > 1 else texts[0]]
    return pytest.mark.parametrize(",".join(examples), values, ids=[next(iter(examples.values()))])


def between(start: str, end: str) -> str:
    return README.partition(start)[2].partition(end)[0]


async def run(source: str, **names: Any) -> dict[str, Any]:
    """Run an example that awaits outside of a function, and give back its names."""
    names.setdefault("LLM", LLM)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # Not with this file's own annotations, which pydantic could not resolve there.
    code = compile(source, "README.md", "exec", flags=flags, dont_inherit=True)
    pending = eval(code, names)
    if inspect.isawaitable(pending):
        await pending
    return names


def request_by(actor: dict[str, Any] | None, path: str = "/") -> Request:
    request = Request.fake(path)
    request.scope["actor"] = actor
    return request


async def fill_database(datasette: Datasette, path: Path, *statements: str) -> None:
    """Give a Datasette a database, which is its first one, and run some SQL in it."""
    datasette.remove_database("_memory")
    database = datasette.add_database(Database(datasette, str(path), is_mutable=True), "data")
    for statement in statements:
        await database.execute_write(statement)


def ours(text: str) -> Any:
    """What an example of datasette.yaml configures for us."""
    return yaml.safe_load(text)["plugins"]["datasette-llm"]


def claude(model_id: str, *scripts: Any) -> ScriptedModel:
    return ScriptedModel(model_id, *scripts, needs_key="anthropic")


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


# The page as a whole


def test_every_code_block_has_a_name_and_a_test_that_shows_it():
    assert len(re.findall(r"^```\w+$", README, re.M)) == len(FOUND) == len(EXAMPLES)
    assert EXAMPLES.keys() == SHOWN


def test_every_exported_name_is_in_the_readme():
    missing = [name for name in datasette_llm.__all__ if f"`{name}`" not in README]
    # These are read in the tree of errors.
    assert [name for name in missing if not hasattr(errors, name)] == []
    assert [name for name in missing if name not in EXAMPLES["errors"]] == []


def test_every_link_within_the_page_leads_to_a_heading():
    headings = re.findall(r"^#+ (.+)$", README, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= anchors


def _command_and_words(line: str) -> tuple[click.Command, list[str]]:
    words, command = shlex.split(line)[1:], cli
    while isinstance(command, click.Group):
        known = bool(words) and words[0] in command.commands
        command = command.commands[words.pop(0) if known else "serve"]
    return command, words


@pytest.mark.parametrize(
    "line",
    [part for line in COMMANDS for part in re.split(r" && | \| ", line) if "datasette " in part],
)
def test_every_datasette_command_shown_takes_the_options_shown(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plugins").mkdir()
    Path("datasette.yaml").touch()
    Path("zoo.db").touch()
    command, words = _command_and_words(re.sub(r"^\S*(uv run |/)(?=datasette )", "", line))
    context = command.make_context("datasette", words)
    assert context.params


# Try it, install, develop


@shows(command="try", output="try output")
async def test_the_first_command_prompts_a_model_and_serves_a_demo(command, output, llm_folder):
    venv, install, demo = command.strip().split(" && ")
    assert venv == "python3 -m venv .venv"
    assert install == ".venv/bin/pip install -q . llm-echo"
    program, *words = shlex.split(demo)
    assert program == ".venv/bin/datasette"
    varying = r"(?<=datasette-llm-demo-)\w+|(?<=127\.0\.0\.1:)\d+|(?<=token=)\w+"
    async with running(llm_folder, *words) as served:
        assert re.sub(varying, "*", served.output) == re.sub(varying, "*", output)


@shows(command="tests", gate="gate")
def test_the_second_command_is_the_one_that_the_gate_runs(command, gate):
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
def test_the_install_commands_are_datasettes(commands):
    packages = [package for line in commands.splitlines() for package in shlex.split(line)[2:]]
    assert PYPROJECT["project"]["name"] in packages
    assert {line.split()[1] for line in commands.splitlines()} == {"install"}
    assert "install" in cli.commands


@shows(commands="uv")
def test_uv_finds_what_it_needs_in_the_dev_group(commands, terminal):
    assert commands.splitlines() == ["uv sync", "uv run pytest", "uv run datasette plugins"]
    assert PYPROJECT["dependency-groups"]["dev"] == ["datasette-llm[test]"]
    names = [plugin["name"] for plugin in yaml.safe_load(terminal(["plugins"]))]
    assert "datasette-llm" in names


@shows(command="benchmarks")
def test_the_benchmarks_can_be_run_by_the_name_shown(command):
    _, module = command.strip().split(" -m ")
    assert find_spec(f"{module}.__main__") is not None
    assert "<!-- benchmark -->" in README


@shows(commands="faults")
def test_the_fault_suite_and_the_soak_can_be_run_by_the_names_shown(commands):
    faults, soak = commands.splitlines()
    assert (ROOT / faults.split(" pytest ")[1]).exists()
    assert find_spec(f"{soak.split(' -m ')[1]}.__main__") is not None


# The smallest plugin, and what it calls


@shows(source="greet.py")
async def test_the_smallest_plugin_answers_a_request(source, site, register_models):
    register_models(ScriptedModel("scripted", ["Good day, ", "pelican"]))
    datasette = site({"default_model": "scripted"}, greet=source)
    response = await datasette.client.get("/-/greet")
    assert (response.status_code, response.text) == (200, "Good day, pelican")


@shows(source="greet.py", command="serve greet.py")
def test_the_smallest_plugin_is_served_by_the_command_shown(source, command, terminal):
    Path("plugins", "greet.py").write_text(source, "utf-8")
    output = terminal(shlex.split(command)[1:])
    assert yaml.safe_load(output)["prompt"] == "Greet a pelican in one sentence"


@shows(source="prompt")
async def test_a_prompt_takes_what_llms_does(source, make_datasette, register_models):
    scripted = ScriptedModel("claude-haiku-4.5", ['{"name": ', '"Ray"}', llm.Usage(input=9)])
    register_models(scripted)
    names = await run(source, datasette=make_datasette(), request=request_by({"id": "ana"}))
    assert names["pet"] == {"name": "Ray"}
    assert names["usage"].input == 9
    assert (names["model"].purpose, names["model"].actor) == ("pets", {"id": "ana"})
    request = scripted.calls[0].request
    assert request.options.temperature == 0.5
    assert request.system == "You breed unusual animals."
    assert request.schema["properties"] == {"name": {"type": "string"}}


@shows(source="models", config="datasette.yaml")
async def test_the_list_has_the_models_of_the_purpose_in_order(
    source, config, make_datasette, register_models, anthropic_key
):
    ids = ("gemini-2.5-pro", "gemini-2.5-flash", "claude-opus-4.5", "other", "claude-haiku-4.5")
    register_models(*map(ScriptedModel, ids))
    datasette = make_datasette(ours(config))
    names = await run(source, datasette=datasette, request=request_by(None))
    assert names["choices"] == ["claude-haiku-4.5", "gemini-2.5-pro"]
    assert await (await names["models"][1].prompt("x")).text() == "Hello"


# Configuration and keys


@shows(text="datasette.yaml")
async def test_the_configuration_does_what_its_comments_say(
    text, make_datasette, register_models, monkeypatch, anthropic_key
):
    config = ours(text)
    sonnet = claude("claude-sonnet-4.5")
    register_models(
        sonnet,
        *map(claude, ("claude-haiku-4.5", "claude-opus-4.5")),
        *map(ScriptedModel, ("gemini-2.5-flash", "gemini-2.5-pro", "other")),
    )
    monkeypatch.setenv("DATASETTE_SECRETS_SQL_TEAM_KEY", "sk-of-the-sql-team")
    datasette = make_datasette(config)
    models = LLM(datasette)

    async def listed(purpose: str | None) -> list[str]:
        return [model.model_id for model in await models.models(purpose=purpose)]

    assert await listed(None) == ["claude-haiku-4.5", "gemini-2.5-flash"]
    assert await listed("pets") == ["claude-haiku-4.5", "gemini-2.5-pro"]
    assert await listed("sql") == ["claude-sonnet-4.5", "claude-haiku-4.5", "gemini-2.5-flash"]
    with pytest.raises(ModelNotAllowedError):
        await models.model("claude-opus-4.5", purpose="sql")
    await (await models.model(purpose="sql")).prompt("x")
    assert sonnet.calls[0].key == "sk-of-the-sql-team"
    assert sonnet.calls[0].request.options.temperature == 0
    view = await snapshot_of(datasette)
    assert warnings(view.settings, view.catalog) == []


@shows(config="endpoints.yaml", litellm="litellm.yaml", vllm="vllm")
async def test_the_endpoints_are_asked_as_the_page_says(
    config, litellm, vllm, make_datasette, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", "sk-vllm")
    monkeypatch.setenv("DATASETTE_SECRETS_LITELLM_KEY", "sk-litellm")
    async with OpenAIServer() as server:
        address = server.url.removesuffix("/v1")
        local = re.sub(r"http://[\w.-]+:\d+(?=/v1)", address, config)
        datasette = make_datasette(ours(local))
        models = LLM(datasette)
        for model_id, purpose in [(None, None), (None, "sql"), ("team", "stories")]:
            await (await models.model(model_id, purpose)).prompt("x")
        with pytest.raises(ModelNotAllowedError):
            await models.model("qwen", "stories")
    asked = [(request.body["model"], request.key) for request in server.requests]
    assert asked[1:] == [("Qwen/Qwen3-8B", "sk-vllm"), ("team", "sk-litellm")]
    assert asked[0][0] == "llama3.2"
    assert not asked[0][1].startswith("sk-")
    view = await snapshot_of(datasette)
    assert warnings(view.settings, view.catalog) == []
    assert {each["model_name"] for each in yaml.safe_load(litellm)["model_list"]} == {"team"}
    addresses = [each["api_base"] for each in ours(config)["endpoints"]]
    served = [each["litellm_params"]["api_base"] for each in yaml.safe_load(litellm)["model_list"]]
    assert served[0] == addresses[0]
    assert shlex.split(vllm)[2] == ours(config)["endpoints"][0]["model_name"]


@shows(config="resilience.yaml")
def test_the_settings_of_requests_are_those_that_the_page_explains(config):
    settings = parse_settings(ours(config))
    sql, stories = settings.purposes["sql"], settings.purposes["stories"]
    assert (settings.timeout, settings.idle_timeout) == (120, 30)
    assert settings.endpoints[0].max_concurrency == 8
    assert sql.models is not None
    assert (sql.models[1].idle_timeout, sql.models[1].retries) == (90, 4)
    assert sql.fallbacks is not None
    assert [each.model for each in sql.fallbacks] == ["qwen", "claude-opus-4.5"]
    assert sql.fallbacks[1].plain_options() == {"max_tokens": 2000}
    assert (stories.timeout, stories.retries, stories.max_concurrency) == (600, 0, 2)
    section = between("## Timeouts, retries, fallbacks and limits", "\n## ")
    explained = re.findall(r"\*\*`(\w+)`\*\*", section)
    assert sorted(explained) == sorted([*CallSettings.model_fields, "threads"])


def test_the_table_of_settings_is_the_generated_one():
    def cell(default: str) -> str:
        return default if default in ("not set", "required") else f"`{default}`"

    rows = [
        f"| `{path}` | {kind} | {cell(default)} | {meaning} |"
        for path, kind, default, meaning in settings_table()
    ]
    table = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    shown = re.search(r"<!-- settings -->\n\n(.*)\n\n<!-- /settings -->", README, re.S)
    assert shown is not None
    assert shown[1].splitlines() == table


@shows(config="bad datasette.yaml", output="bad datasette.yaml output")
async def test_a_bad_configuration_stops_datasette_with_the_message_shown(
    config, output, make_datasette
):
    with pytest.raises(ConfigError) as caught:
        await make_datasette(ours(config)).invoke_startup()
    assert str(caught.value) + "\n" == output


def test_every_example_of_a_configuration_is_one_of_datasettes():
    configs = {name: yaml.safe_load(text) for name, kind, text in FOUND if kind == "yaml"}
    good = [config for name, config in configs.items() if not name.startswith("bad ")]
    assert good
    for config in good:
        assert config.keys() <= {"plugins", "permissions", "databases"}
        parse_settings(config.get("plugins", {}).get("datasette-llm"))


@shows(command="key in the environment")
async def test_a_key_exported_as_shown_is_used(
    command, make_datasette, register_models, tmp_path, monkeypatch
):
    (tmp_path / "anthropic.key").write_text("sk-from-the-file\n")
    name = f"DATASETTE_SECRETS_{provider_secret('anthropic')}"
    script = f'{command}\nprintf %s "${name}"'
    arguments = ["bash", "-euc", script]
    key = await asyncio.to_thread(
        subprocess.check_output, arguments, cwd=tmp_path, text=True, timeout=10
    )
    monkeypatch.setenv(name, key)
    scripted = claude("claude-haiku-4.5")
    register_models(scripted)
    await (await LLM(make_datasette()).model("claude-haiku-4.5")).prompt("x")
    assert scripted.calls[0].key == "sk-from-the-file"


@shows(config="secrets.yaml")
async def test_the_page_of_secrets_opens_for_those_who_may(
    config, make_datasette, register_models, monkeypatch
):
    monkeypatch.setenv("SECRETS_ENCRYPTION_KEY", Fernet.generate_key().decode())
    register_models(claude("claude-haiku-4.5"))
    settings = yaml.safe_load(config)
    our_config = {"default_model": {"model": "x", "key": "SQL_TEAM_KEY"}}
    datasette = make_datasette(our_config, plugins=settings["plugins"])
    datasette.config["permissions"] = settings["permissions"]
    page = await datasette.client.get("/-/secrets", actor={"id": "root"})
    assert page.status_code == 200
    assert "ANTHROPIC_API_KEY" in page.text
    assert "SQL_TEAM_KEY" in page.text
    form = await datasette.client.get("/-/secrets/ANTHROPIC_API_KEY", actor={"id": "root"})
    assert form.status_code == 200
    assert (await datasette.client.get("/-/secrets")).status_code == 403


# Models without an async version


@shows(source="llm_parrot.py", usage="parrot", config="threads.yaml")
async def test_a_model_without_an_async_version_is_used_as_shown(
    source, usage, config, make_datasette, capsys
):
    plugin = ModuleType("llm_parrot")
    exec(source, plugin.__dict__)
    llm.plugins.pm.register(plugin)
    try:
        datasette = make_datasette(ours(config))
        await run(usage, datasette=datasette)
        default = await LLM(datasette).model()
    finally:
        llm.plugins.pm.unregister(plugin)

    assert capsys.readouterr().out == "Pieces! \nof! \neight! \n"
    assert (default.model_id, ours(config)["threads"]) == ("parrot", 1)
    section = between("## Models without an async version", "\n## ")
    assert f"`threads`, otherwise {parse_settings({}).threads}," in section
    assert f"waits while {LOOK_AHEAD} of them" in section


# Purposes


@shows(source="purposes.py", listing="get_purposes")
async def test_registered_purposes_are_listed(source, listing, site, capsys):
    await run(listing, datasette=site(None, purposes=source))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["sql - Writes queries from questions", "pets - Invents pets"]


# Streaming


async def _streamed(datasette, path: str, on_chunk) -> int:
    """Request a page, and hand on each chunk of its body as soon as the view writes it."""
    status = 0

    async def send(message):
        nonlocal status
        status = message.get("status", status)
        if message.get("body"):
            on_chunk(message["body"].decode())

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {**Request.fake(path).scope, "headers": [(b"host", b"localhost")]}
    await datasette.app()(scope, receive, send)
    return status


@shows(source="story.py")
async def test_the_view_streams_each_chunk_as_it_arrives(source, site, register_models):
    next_chunk = asyncio.Event()
    register_models(ScriptedModel("scripted", ["Once ", next_chunk, "upon ", "a time"]))
    chunks = []

    def on_chunk(chunk: str) -> None:
        chunks.append(chunk)
        next_chunk.set()  # the model says no more before its first chunk has left the server

    datasette = site({"default_model": "scripted"}, story=source)
    assert await _streamed(datasette, "/-/story", on_chunk) == 200
    assert chunks == ["Once ", "upon ", "a time"]


@shows(source="story.py")
@pytest.mark.parametrize(
    ("model_id", "status", "message"),
    [
        ("nobody-knows-it", 404, "Unknown model: 'nobody-knows-it'"),
        ("blocked", 403, "it is blocked"),
        ("without-key", 502, "No key for model 'without-key'"),
        ("refusing", 502, "the key was refused"),
    ],
)
async def test_the_view_answers_an_early_failure_with_a_status(
    model_id, status, message, source, site, register_models
):
    register_models(
        ScriptedModel("blocked"),
        claude("without-key"),
        ScriptedModel("refusing", [llm.ModelError("the key was refused")]),
    )
    datasette = site({"blocked_models": ["blocked"]}, story=source)
    response = await datasette.client.get(f"/-/story?model={model_id}")
    assert response.status_code == status
    assert message in response.text


# Groups, conversations and chains


ROWS = [{"name": name} for name in ("Ada", "Ben", "Cleo")]


@shows(source="group")
async def test_the_responses_of_the_group_are_complete_after_it(
    source, make_datasette, register_models
):
    gate = asyncio.Event()
    scripted = ScriptedModel("scripted", *[[gate, f"{n} ", "pets"] for n in range(3)])
    register_models(scripted)
    datasette = make_datasette({"default_model": "scripted"})
    running = asyncio.create_task(
        run(source, datasette=datasette, request=request_by(None), rows=ROWS)
    )
    await scripted.received(3)  # all at once: none of them has answered yet
    gate.set()
    names = await running
    assert names["pets"] == ["0 pets", "1 pets", "2 pets"]
    assert [call.prompt for call in scripted.calls] == [f"A pet for {row['name']}" for row in ROWS]


@shows(source="group error")
async def test_the_failures_of_the_group_are_told_with_their_prompts(
    source, make_datasette, register_models, capsys
):
    go_on = asyncio.Event()
    broken = ["A ", go_on, RuntimeError("broke")]
    scripted = ScriptedModel("scripted", broken, ["A cat"], broken)
    register_models(scripted)
    datasette = make_datasette({"default_model": "scripted"})
    running = asyncio.create_task(run(source, datasette=datasette, rows=ROWS))
    await scripted.received(3)
    go_on.set()
    await running
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A pet for Ada -> broke", "A pet for Cleo -> broke"]


@pytest.fixture
def scripted_model(make_datasette, register_models):
    """A function that makes a scripted model, and gets it through the facade."""

    async def get(*scripts: Any):
        scripted = ScriptedModel("scripted", *scripts)
        register_models(scripted)
        datasette = make_datasette()
        return datasette, scripted, await LLM(datasette).model("scripted")

    return get


@shows(source="browser gone")
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_view_that_listens_for_its_browser_stops_the_model(source, scripted_model, leaves):
    gate, gone, written = asyncio.Event(), asyncio.Event(), []
    _, scripted, model = await scripted_model(["Once ", gate, "upon a time"])

    class Request:
        async def receive(self):
            await gone.wait()
            return {"type": "http.disconnect"}

    class Writer:
        async def write(self, chunk):
            written.append(chunk)
            (gone if leaves else gate).set()

    response = await model.prompt("Tell me a story")
    names = await run(source, request=Request(), response=response)
    await names["write_while_wanted"](Writer())
    await scripted.calls[0].ended.wait()
    assert scripted.calls[0].outcome == ("cancelled" if leaves else "complete")
    assert written == (["Once "] if leaves else ["Once ", "upon a time"])


@shows(source="conversation")
async def test_a_conversation_remembers_its_turns(source, scripted_model):
    _, scripted, model = await scripted_model(["A pelican"], ["Large"])
    names = await run(source, model=model)
    assert (names["bird"], names["size"]) == ("A pelican", "Large")
    roles = [message.role for message in scripted.calls[1].request.messages]
    assert roles == ["user", "assistant", "user"]


@shows(source="conversation")
async def test_a_conversation_is_busy_while_a_turn_streams(source, scripted_model):
    _, scripted, model = await scripted_model(["A ", asyncio.Event()])
    impatient = source.replace("bird = await first.text()\n", "")
    assert impatient != source
    with pytest.raises(ConversationBusyError):
        await run(impatient, model=model)
    assert len(scripted.calls) == 1


@shows(source="reply")
async def test_a_reply_has_the_exchange_as_its_history(source, scripted_model):
    _, scripted, model = await scripted_model(["Grey, with a long bill"], ["Large, grey"])
    names = await run(source, model=model)
    assert names["summary"] == "Large, grey"
    roles = [message.role for message in scripted.calls[1].request.messages]
    assert roles == ["user", "assistant", "user"]


@shows(source="chain")
async def test_a_chain_runs_the_tools_that_the_model_calls(
    source, scripted_model, tmp_path, capsys
):
    counting = llm.ToolCall(name="count_rows", arguments={"table": "pelicans"})
    datasette, scripted, model = await scripted_model(["Let me look.", counting], ["There are 2."])
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table pelicans (name text)",
        "insert into pelicans values ('Pat'), ('Pia')",
    )
    await run(source, datasette=datasette, model=model)
    assert capsys.readouterr().out == "Let me look. There are 2."
    assert [result.output for result in scripted.calls[1].request.tool_results] == ["2"]


@shows(source="pause")
async def test_a_paused_chain_goes_on_with_the_answer(source, scripted_model):
    asking = llm.ToolCall(name="ask", arguments={"question": "For how many?"}, tool_call_id="1")
    _, scripted, model = await scripted_model(["One moment.", asking], ["Booked."])
    names = await run(source, model=model)
    assert (names["question"], names["booked"]) == ("For how many?", "Booked.")
    assert [r.output for r in scripted.calls[1].request.tool_results] == ["For two, at eight"]


# Structured output


async def _structured_model(make_datasette, register_models, *answers: str, **kwargs: Any):
    scripted = ScriptedModel("claude-haiku-4.5", *[[answer] for answer in answers], **kwargs)
    register_models(scripted)
    return await LLM(make_datasette()).model("claude-haiku-4.5"), scripted


@shows(source="structured")
@pytest.mark.parametrize("supports_schema", [True, False])
async def test_the_object_comes_back_validated(
    source, make_datasette, register_models, capsys, supports_schema
):
    pet = '{"name": "Marigold", "kind": "bird", "age": 4, "owner": null}'
    model, _ = await _structured_model(
        make_datasette, register_models, pet, supports_schema=supports_schema
    )
    names = await run(source, model=model)
    assert capsys.readouterr().out == "Marigold, a bird of 4\n"
    assert await names["response"].text() == pet
    assert names["pet"].owner is None


@shows(definition="structured", source="structured error", output="structured error output")
@pytest.mark.parametrize("cut_off", [True, False])
async def test_what_cannot_be_repaired_is_told(
    definition, source, output, make_datasette, register_models, capsys, cut_off
):
    pet = '{"name": "Marigold", "kind": "bird", "age": 4}'
    cut = '{"name": "Marigold", "kind": "bi'
    model, scripted = await _structured_model(
        make_datasette, register_models, pet, cut, cut if cut_off else pet
    )
    names = await run(definition, model=model)
    capsys.readouterr()
    await run(source, model=model, Pet=names["Pet"])
    printed = capsys.readouterr().out
    assert len(scripted.calls) == 3
    assert (printed == output) == cut_off
    assert cut_off or printed.endswith(" 2\n")


# Hooks


def test_the_hooks_section_names_exactly_the_hooks_with_their_arguments():
    section = between("\n## Hooks\n", "\n## ")
    hooks = [
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in vars(hookspecs).items()
        if hasattr(function, "datasette_spec")
    ]
    assert hooks
    assert re.findall(r"^### `(.+)`$", section, re.M) == hooks


def test_the_table_of_the_prompt_result_names_all_that_it_has():
    section = between("### `llm_prompt_context", "\n### ")
    cells = " ".join(re.findall(r"^\| (`.+?) \| ", section, re.M))
    shown = re.findall(r"`(?:await )?(\w+)", cells)
    result = PromptResult(None, None, None, False)
    public = [name for name in dir(result) if not name.startswith("_") and name != "add"]
    assert sorted(shown) == sorted(public)


@pytest.mark.parametrize(
    ("text", "documented"),
    [
        (between("The `Group` has", "what the block\nended with"), Group),
        (between("`model.calls` has", "`await model.received"), ScriptedCall),
        (between("A `Decision` has", "In a condition"), Decision),
    ],
    ids=["Group", "ScriptedCall", "Decision"],
)
def test_the_attributes_named_are_there(text, documented):
    named = re.findall(r"`(\w+)`", text)
    assert len(named) >= 4
    attributes = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2]
    for name in named:
        assert hasattr(documented, name) or f"    {name}: " in attributes, name


@shows(source="budget.py")
async def test_the_budget_hook_counts_tokens_and_blocks_who_has_spent_them(
    source, site, register_models
):
    scripted = ScriptedModel("scripted", ["a", llm.Usage(input=30_000, output=20_000)])
    register_models(scripted)
    datasette = site(None, budget=source)
    await datasette.invoke_startup()
    model = await LLM(datasette).model("scripted", actor={"id": "ana"})
    assert await (await model.prompt("x")).text() == "a"
    rows = await datasette.get_internal_database().execute("select user, tokens from spent")
    assert [tuple(row) for row in rows] == [("ana", 50_000)]
    with pytest.raises(Exception, match="Your tokens are used up"):
        await model.prompt("y")
    assert len(scripted.calls) == 1
    others = await LLM(datasette).model("scripted")
    assert await (await others.prompt("z")).text() == "a"


@shows(source="budget.py", view="greet.py")
async def test_a_view_whose_actor_has_spent_its_budget_is_forbidden(
    source, view, site, register_models
):
    register_models(ScriptedModel("scripted", ["a", llm.Usage(input=50_000)]))
    datasette = site({"default_model": "scripted"}, budget=source, greet=view)
    statuses = [(await datasette.client.get("/-/greet")).status_code for _ in range(2)]
    assert statuses == [200, 403]


@shows(source="batches.py")
async def test_the_group_exit_hook_tells_how_the_group_ended(source, site, register_models, caplog):
    caplog.set_level(logging.INFO, "batches")
    register_models(ScriptedModel("scripted"))
    datasette = site({"default_model": "scripted"}, batches=source)
    async with LLM(datasette).group(purpose="pets") as model:
        await model.prompt("x")
        await model.prompt("y")
    with pytest.raises(ZeroDivisionError):
        async with LLM(datasette).group(purpose="sql"):
            raise ZeroDivisionError
    messages = [record.message for record in caplog.records if record.name == "batches"]
    assert messages == ["pets: 2 responses, done", "sql: 0 responses, failed"]


@shows(source="filter.py")
async def test_the_filter_hook_is_enforced(source, site, register_models):
    register_models(*map(ScriptedModel, ("claude-haiku-4.5", "gemini-2.5-flash", "secret")))
    models = LLM(
        site({"models": ["secret", "gemini-2.5-flash", "claude-haiku-4.5"]}, filter=source)
    )
    for_nobody = [model.model_id for model in await models.models()]
    assert for_nobody == ["gemini-2.5-flash", "claude-haiku-4.5"]
    staff = {"id": "ana", "role": "staff"}
    for_staff = [model.model_id for model in await models.models(actor=staff)]
    assert for_staff == ["secret", "gemini-2.5-flash", "claude-haiku-4.5"]
    assert (await models.model("secret", actor=staff)).model_id == "secret"
    with pytest.raises(ModelNotAllowedError, match=r"Plugin 'filter\.py' does not allow"):
        await models.model("secret", actor={"id": "ben"})


@shows(source="favourite.py")
async def test_the_default_hook_knows_the_favourites(source, site, register_models, tmp_path):
    register_models(ScriptedModel("a"), ScriptedModel("b"))
    datasette = site({"default_model": "a"}, favourite=source)
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table favourites (user text, model_id text)",
        "insert into favourites values ('ana', 'b')",
    )
    actors = ({"id": "ana"}, {"id": "ben"}, None)
    ids = [(await LLM(datasette).model(actor=actor)).model_id for actor in actors]
    assert ids == ["b", "a", "a"]


# Errors, explain, command line, testing


@shows(tree="errors")
def test_the_tree_of_errors_is_that_of_the_module(tree):
    assert errors.__doc__ is not None
    lines = itertools.dropwhile(lambda line: line != "    LLMError", errors.__doc__.splitlines())
    module_tree = [line.removeprefix("    ") for line in itertools.takewhile(bool, lines)]
    assert tree.splitlines() == module_tree


@shows(tree="errors")
def test_the_tree_of_errors_is_that_of_the_classes(tree):
    drawn = {}
    above = None
    for line in tree.splitlines():
        name = re.search(r"\w+", line)[0]
        drawn[name] = above if line.startswith("│") else "LLMError"
        above = above if line.startswith("│") else name
    drawn["LLMError"] = None
    classes = [getattr(datasette_llm, name) for name in datasette_llm.__all__]
    real = {
        each.__name__: None if each is errors.LLMError else each.__bases__[0].__name__
        for each in classes
        if isinstance(each, type) and issubclass(each, errors.LLMError)
    }
    assert drawn == real


@shows(source="explain", output="explain output", config="datasette.yaml")
async def test_explain_gives_the_reasons_shown(
    source, output, config, make_datasette, register_models, capsys
):
    register_models(*map(ScriptedModel, ("gemini-2.5-flash", "claude-haiku-4.5")))
    await run(source, datasette=make_datasette(ours(config)), request=request_by(None))
    assert capsys.readouterr().out == output


@shows(commands="command line", config="datasette.yaml")
def test_the_command_lines_shown_prompt_as_a_plugin_would(
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


@shows(commands="models and explain", config="datasette.yaml", permission="manage permission")
async def test_the_models_and_decisions_shown_are_those_of_the_pages(
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
        assert shown | printed == shown
    assert (await datasette.client.get("/-/llm/keys", actor={"id": "ana"})).status_code == 200


@shows(options="command line options")
def test_the_options_shown_are_those_that_the_help_lists(options, terminal):
    assert terminal(["llm", "prompt", "--help"]).partition("Options:\n")[2] == options


# The console


@shows(permission="manage permission", posted="assign json", answer="assign json output")
async def test_the_post_shown_assigns_for_whom_the_permission_shown_lets_in(
    permission, posted, answer, make_datasette, register_models
):
    register_models(ScriptedModel("claude-haiku-4.5"))
    datasette = make_datasette({"purposes": {"pets": {}}})
    datasette.config.update(yaml.safe_load(permission))
    await datasette.invoke_startup()
    headers = {"content-type": "application/json"}
    for actor, status in ((None, 403), ({"id": "ana"}, 200)):
        response = await datasette.client.post(
            "/-/llm/assign", content=posted, headers=headers, actor=actor
        )
        assert response.status_code == status
    assert response.json() == json.loads(answer)
    assert (await LLM(datasette).model(purpose="pets")).model_id == "claude-haiku-4.5"
    text = (await datasette.client.get("/", actor={"id": "ana"})).text
    assert "LLM models" in text


@shows(commands="assign commands", output="assign commands output", config="datasette.yaml")
def test_the_commands_that_assign_print_what_is_shown(
    commands, output, config, terminal, register_models, anthropic_key
):
    ids = ("claude-haiku-4.5", "claude-sonnet-4.5", "claude-opus-4.5")
    register_models(*map(claude, ids), *map(ScriptedModel, ("gemini-2.5-flash", "gemini-2.5-pro")))
    Path("datasette.yaml").write_text(config, "utf-8")
    printed = [terminal(shlex.split(line)[1:]) for line in commands.splitlines()]
    assert "".join(printed) == output


# Testing models


@shows(commands="test commands", config="datasette.yaml")
def test_the_commands_shown_test_a_model_and_a_purpose(
    commands, config, terminal, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", ["pong"]), claude("claude-sonnet-4.5", ["pong"]))
    Path("datasette.yaml").write_text(config, "utf-8")
    by_model, by_purpose = (shlex.split(line)[1:] for line in commands.splitlines())
    assert terminal(by_model).startswith("claude-haiku-4.5 (Anthropic): ok in ")
    assert "claude-sonnet-4.5" in CliRunner().invoke(cli, by_purpose).stdout


@shows(sent="test json", output="test json output", config="datasette.yaml")
async def test_the_post_shown_gives_the_answer_shown(
    sent, output, config, make_datasette, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", [llm.ModelError("Too many requests")]))
    datasette = make_datasette(ours(config))
    datasette.config["permissions"] = {"manage-llm": True}
    await datasette.invoke_startup()
    answer = (await datasette.client.post("/-/llm/test", json=json.loads(sent))).json()
    shown = json.loads(output)
    changing = ("latency_ms", "call_id")
    assert all(type(answer[name]) is type(shown[name]) for name in changing)
    assert answer | {name: shown[name] for name in changing} == shown


def test_the_table_of_kinds_has_all_of_them():
    section = between("\n### Testing models\n", "\n## ")
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(LABELS)
    assert f"At most {probe.MAX_MODELS} are" in section
    assert f"Each model has {probe.LIMIT_S:g} seconds" in section


# Advice about tables


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A file with the table that the README asks about."""
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect("zoo.db")
    connection.executescript("create table animals (name, weight, keeper)")
    connection.execute("insert into animals values ('Dumbo', -5, 'Timothy')")
    connection.commit()
    connection.close()


@shows(permission="analyze permission", sent="analyze json", config="datasette.yaml")
async def test_the_post_shown_gets_advice_with_the_permission_shown(
    permission, sent, config, zoo, make_datasette, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", [json.dumps(advice_answer(ZOO_FLAG))]))
    datasette = make_datasette(ours(config), files=["zoo.db"])
    datasette.config |= yaml.safe_load(permission)
    await datasette.invoke_startup()
    address = "/zoo/animals/-/llm-analyze.json"
    statuses = {}
    for actor in ("ana", "cid"):
        response = await datasette.client.post(address, json=json.loads(sent), actor={"id": actor})
        statuses[actor] = response.status_code
        if actor == "ana":
            found = response.json()["consultation"]
    assert statuses == {"ana": 201, "cid": 403}
    assert (found["outcome"], found["exclude"]) == ("ok", ["keeper"])
    assert [check["status"] for check in found["checks"]] == ["supported"]
    assert "Timothy" not in found["user_prompt"]


@shows(commands="analyze commands", config="datasette.yaml")
def test_the_commands_shown_preview_and_analyze(
    commands, config, zoo, register_models, anthropic_key
):
    model = claude("claude-haiku-4.5", [json.dumps(advice_answer(ZOO_FLAG))])
    register_models(model)
    Path("datasette.yaml").write_text(config, "utf-8")
    first, second = (shlex.split(line)[1:] for line in commands.splitlines())
    assert "Dumbo" in CliRunner().invoke(cli, first).stdout
    assert model.calls == []
    assert "| Dumbo" in CliRunner().invoke(cli, second).stdout


def test_the_bounds_of_the_consultant_are_those_of_the_code():
    section = between("\n## Advice about tables\n", "\n## ")
    assert f"`limit` is {consultant_pages.DEFAULT_LIMIT} by default" in section
    assert f"and {consultant_pages.MAX_LIMIT} at most" in section
    assert f"claims after the {consultant_checks.MAX_CLAIMS}th" in section
    assert f"every {prompting.BYTES_PER_TOKEN} bytes" in section
    assert f"{prompting.ANSWER_TOKENS:,} tokens of answer" in section


# The record


def test_the_table_of_outcomes_has_all_of_them():
    section = between("\n## The record\n", "\n## ")
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.M)) == OUTCOMES
    assert f"`{RUNNING}`" in section


@shows(config="record.yaml")
async def test_the_record_is_as_its_configuration_says(
    config, make_datasette, register_models, tmp_path
):
    ids = ("our-own-model", "another-model")
    register_models(*[ScriptedModel(i, ["Hm.", llm.Usage(input=1000, output=100)]) for i in ids])
    datasette = make_datasette(ours(config), internal=str(tmp_path / "internal.db"))
    await datasette.start_background_tasks()
    names = [task.name for task in datasette._background_tasks.tasks()]
    for model_id, purpose in zip(ids, ("sql", "pets"), strict=True):
        model = await LLM(datasette).model(model_id, purpose=purpose)
        await (await model.prompt("Which pet?")).text()
    await datasette.invoke_shutdown()

    with contextlib.closing(sqlite3.connect(tmp_path / "internal.db")) as connection:
        another, own = calls(connection, Filter(), limit=10)
        sql = "select call_id, part, content from llm_call_content order by part"
        contents = connection.execute(sql).fetchall()
    assert "datasette-llm retention" in names
    assert ours(config)["log"]["required"] is True
    assert own["cost_nanodollars"] == 1000 * 500 + 100 * 2000
    assert another["cost_nanodollars"] is None
    assert [(i, part) for i, part, _ in contents] == [
        (another["id"], "request"),
        (another["id"], "response"),
    ]
    assert "Which pet?" in contents[0][2]
    assert "Hm." in contents[1][2]


@pytest.fixture
def record(tmp_path, monkeypatch):
    """An internal.db in the current folder with the calls that the README shows."""
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
def test_the_commands_shown_print_the_record(commands, output, record, terminal, monkeypatch):
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


@shows(permission="log permission", address="log json")
async def test_the_permission_shown_opens_the_addresses_shown(
    permission, address, make_datasette, register_models
):
    register_models(ScriptedModel("scripted"), ScriptedModel("broken", [llm.ModelError("no")]))
    datasette = make_datasette({})
    datasette.config.update(yaml.safe_load(permission))
    await datasette.invoke_startup()
    for name in ("scripted", "broken"):
        model = await LLM(datasette).model(name, purpose="pets")
        with contextlib.suppress(llm.ModelError):
            await (await model.prompt("x")).text()
    nobody = await datasette.client.get(address.strip())
    assert nobody.status_code == 403
    ana = await datasette.client.get(address.strip(), actor={"id": "ana"})
    [row] = ana.json()["rows"]
    assert (row["model_id"], row["outcome"]) == ("broken", "error")
    for other in ("", ".json", ".csv", f"/{row['id']}", f"/{row['id']}.json"):
        found = await datasette.client.get(f"/-/llm/log{other}", actor={"id": "ana"})
        assert found.status_code == 200


@shows(options="log options")
def test_the_options_of_the_log_shown_are_those_that_the_help_lists(options, terminal):
    assert terminal(["llm", "log", "--help"]).partition("Options:\n")[2] == options


@shows(source="test_greet.py", plugin_source="greet.py")
@pytest.mark.parametrize("subject", ["a pelican", "a gull"])
async def test_the_example_of_a_test_passes_and_notices_a_broken_plugin(
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
async def test_the_scripts_shown_are_played_one_a_prompt(source, make_datasette, register_models):
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


async def test_a_scripted_model_takes_the_place_of_an_installed_one_with_its_id(
    make_datasette, register_models
):
    models = LLM(make_datasette())
    await models.models()  # llm has loaded its plugins, its own with gpt-4o-mini among them
    scripted = ScriptedModel("gpt-4o-mini")
    register_models(scripted)
    assert (await models.model("gpt-4o-mini"))._model is scripted


# The calls of the first README, on which plugins in the wild were built


SEED_CONFIG = {
    "default_model": "gpt-4o-mini",
    "purposes": {
        "enrichments": {"model": "gpt-4o-mini"},
        "sql-assistant": {"model": "gpt-4o"},
        "chat": {"model": "claude-3-5-sonnet"},
    },
    "models": ["gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet"],
    "blocked_models": ["o1-preview"],
    "require_keys": True,
}


@pytest.fixture
def seed_site(make_datasette, register_models):
    """A Datasette with the first README's configuration and models; and the models."""
    models = {
        model_id: ScriptedModel(
            model_id, ["Par", "is", llm.Usage(input=7, output=2)], needs_key="openai"
        )
        for model_id in ("gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet", "o1-preview")
    }
    register_models(*models.values())
    for model_id, model in models.items():
        # Or else a prompt would leave for the provider of the installed model with this id.
        assert llm.get_async_model(model_id) is model
    return make_datasette(SEED_CONFIG), models


@pytest.fixture
def openai_key(monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_OPENAI_API_KEY", "sk-openai")


async def test_the_first_readmes_basic_usage_works(seed_site, openai_key):
    datasette, scripted = seed_site
    facade = LLM(datasette)
    for model in (await facade.model(), await facade.model("gpt-4o-mini")):
        response = await model.prompt("What is the capital of France?")
        assert await response.text() == "Paris"
    assert [call.key for call in scripted["gpt-4o-mini"].calls] == ["sk-openai"] * 2


async def test_the_first_readmes_purposes_choose_the_model(seed_site):
    facade = LLM(seed_site[0])
    purposes = ("sql-assistant", "enrichments", "chat", "unheard-of")
    chosen = [(await facade.model(purpose=purpose)).model_id for purpose in purposes]
    assert chosen == ["gpt-4o", "gpt-4o-mini", "claude-3-5-sonnet", "gpt-4o-mini"]
    explicit = await facade.model("gpt-4o", purpose="sql-assistant")
    assert (explicit.model_id, explicit.purpose) == ("gpt-4o", "sql-assistant")


async def test_the_first_readmes_streaming_works_before_and_after_text(seed_site, openai_key):
    model = await LLM(seed_site[0]).model("gpt-4o-mini")
    response = await model.prompt("Tell me a story")
    assert await response.text() == "Paris"
    assert [chunk async for chunk in response] == ["Par", "is"]
    fresh = await model.prompt("Tell me a story")
    assert [chunk async for chunk in fresh] == ["Par", "is"]


async def test_the_first_readmes_group_enriches_rows(seed_site, openai_key):
    datasette, scripted = seed_site
    results = []
    async with LLM(datasette).group(purpose="enrichments") as model:
        for content in ("one", "two"):
            response = await model.prompt(f"Summarize: {content}")
            results.append(await response.text())
    assert results == ["Paris", "Paris"]
    prompts = [call.prompt for call in scripted["gpt-4o-mini"].calls]
    assert prompts == ["Summarize: one", "Summarize: two"]


async def test_the_first_readmes_lists_hold_what_is_allowed_and_has_a_key(seed_site, openai_key):
    facade = LLM(seed_site[0])
    everything = [model.model_id for model in await facade.models()]
    assert everything == ["gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet"]
    by_actor = await facade.models(actor=request_by({"id": "ana"}).actor)
    assert [model.model_id for model in by_actor] == everything
    by_purpose = await facade.models(purpose="enrichments")
    assert [model.model_id for model in by_purpose] == everything


async def test_the_first_readmes_lists_are_empty_without_a_key(seed_site):
    assert await LLM(seed_site[0]).models() == []


async def test_the_first_readmes_context_hook_counts_usage(seed_site, openai_key, plugin):
    told = []

    class Plugin:
        @hookimpl
        def llm_prompt_context(self, datasette, model_id, prompt, purpose):
            @asynccontextmanager
            async def wrapper(result):
                told.append(f"prompt {prompt!r} to {model_id} for {purpose}")
                yield

                async def on_complete(response):
                    usage = await response.usage()
                    told.append((usage.input, usage.output))

                if result.response:
                    await result.response.on_done(on_complete)

            return wrapper

    plugin(Plugin())
    model = await LLM(seed_site[0]).model(purpose="chat")
    await (await model.prompt("Hi")).text()
    assert told == ["prompt 'Hi' to claude-3-5-sonnet for chat", (7, 2)]


async def test_the_first_readmes_group_exit_hook_may_return_a_coroutine(
    seed_site, openai_key, plugin
):
    told = []

    class Plugin:
        @hookimpl
        def llm_group_exit(self, datasette, group):
            async def cleanup():
                told.append((group.purpose, len(group._responses)))

            return cleanup()

    plugin(Plugin())
    async with LLM(seed_site[0]).group(purpose="enrichments") as model:
        await model.prompt("a")
        await model.prompt("b")
        assert told == []
    assert told == [("enrichments", 2)]


async def test_the_first_readmes_filter_hook_asks_the_database(
    seed_site, openai_key, plugin, tmp_path
):
    class Plugin:
        @hookimpl
        async def llm_filter_models(self, datasette, models, actor, purpose):
            if not actor:
                return [model for model in models if model.model_id == "gpt-4o-mini"]
            rows = await datasette.get_database().execute(
                "select model_id from user_models where user_id = ?", [actor["id"]]
            )
            allowed = {row["model_id"] for row in rows.rows}
            return [model for model in models if model.model_id in allowed]

    plugin(Plugin())
    datasette, _ = seed_site
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table user_models (user_id text, model_id text)",
        "insert into user_models values ('ana', 'gpt-4o'), ('ana', 'o1-preview')",
    )
    facade = LLM(datasette)
    listed = {
        name: [model.model_id for model in await facade.models(actor=actor)]
        for name, actor in {"nobody": None, "ana": {"id": "ana"}, "ben": {"id": "ben"}}.items()
    }
    assert listed == {"nobody": ["gpt-4o-mini"], "ana": ["gpt-4o"], "ben": []}
    with pytest.raises(ModelNotAllowedError):
        await facade.model("gpt-4o")
    assert (await facade.model("gpt-4o", actor={"id": "ana"})).model_id == "gpt-4o"


async def test_the_first_readmes_default_hook_asks_the_database(seed_site, plugin, tmp_path):
    class Plugin:
        @hookimpl
        async def llm_default_model(self, datasette, purpose, actor):
            if actor:
                rows = await datasette.get_database().execute(
                    "select preferred_model from user_prefs where user_id = ?", [actor["id"]]
                )
                row = rows.first()
                if row:
                    return row["preferred_model"]
            return None

    plugin(Plugin())
    datasette, _ = seed_site
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table user_prefs (user_id text, preferred_model text)",
        "insert into user_prefs values ('ana', 'gpt-4o')",
    )
    facade = LLM(datasette)
    actors = ({"id": "ana"}, {"id": "ben"}, None)
    chosen = [(await facade.model(actor=actor)).model_id for actor in actors]
    assert chosen == ["gpt-4o", "gpt-4o-mini", "gpt-4o-mini"]

"""`datasette llm prompt`: the facade from a terminal."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import llm
import pytest
import yaml
from cryptography.fernet import Fernet
from datasette import hookimpl
from datasette.cli import cli
from datasette.plugins import pm

from datasette_llm.testing import ScriptedModel

BOUND_S = 30
KEY = "sk-" + "0123456789abcdef"
Run = Callable[..., click.testing.Result]


@pytest.fixture
def run() -> Run:
    """A function that runs `datasette llm prompt` with some arguments."""

    def run(*arguments: str, **kwargs: Any) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli, ["llm", "prompt", *arguments], **kwargs)

    return run


@pytest.fixture
def pelican(register_models: Callable[..., None]) -> ScriptedModel:
    """A model that says Hello."""
    model = ScriptedModel("pelican")
    register_models(model)
    return model


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a datasette.yaml with our configuration, and gives its path."""

    def write(config: object, **plugins: Any) -> str:
        path = tmp_path / "datasette.yaml"
        path.write_text(yaml.safe_dump({"plugins": {"datasette-llm": config, **plugins}}))
        return str(path)

    return write


def error_of(result: click.testing.Result) -> str:
    """The error message of a run that failed as it should: one line, on standard error."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "a traceback from the depths"
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    return result.stderr.removeprefix("Error: ").rstrip("\n")


# What goes in


def test_the_text_is_the_argument(run: Run, pelican: ScriptedModel) -> None:
    result = run("Say hello", "-m", "pelican", input="not read")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert [call.prompt for call in pelican.calls] == ["Say hello"]


@pytest.mark.parametrize(
    "text", ["Say hello\n", "", "x" * 5_000_000], ids=["text", "empty", "5 MB"]
)
def test_prompt_from_standard_input(run: Run, pelican: ScriptedModel, text: str) -> None:
    result = run("-m", "pelican", input=text)

    assert (result.exit_code, result.stdout) == (0, "Hello\n")
    assert [call.prompt for call in pelican.calls] == [text]


def test_an_empty_argument_is_an_empty_prompt(run: Run, pelican: ScriptedModel) -> None:
    assert run("", "-m", "pelican", input="not read").exit_code == 0
    assert pelican.calls[0].prompt == ""


def test_missing_prompt_is_a_usage_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("datasette_llm.cli.main.sys", terminal)

    result = run("-m", "pelican")

    assert result.exit_code == 2
    assert "Give the prompt as an argument or on standard input" in result.stderr


def test_system_prompt_and_options_reach_model(run: Run, pelican: ScriptedModel) -> None:
    options = ["-o", "temperature", "0.5", "--option", "max_tokens", "7"]
    result = run("hi", "-m", "pelican", "-s", "Be brief", *options)

    assert result.exit_code == 0, result.output
    request = pelican.calls[0].request
    assert request.system == "Be brief"
    assert (request.options.temperature, request.options.max_tokens) == (0.5, 7)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize("form", ["json", "json in a file", "short form", "short form in a file"])
def test_a_schema_is_given_in_any_of_its_forms(
    run: Run, pelican: ScriptedModel, tmp_path: Path, form: str
) -> None:
    text = "\n" + json.dumps(SCHEMA) if form.startswith("json") else "name, age int"
    if form.endswith("in a file"):
        (tmp_path / "schema").write_text(text)
        text = str(tmp_path / "schema")

    result = run("hi", "-m", "pelican", "--schema", text)

    assert result.exit_code == 0, result.output
    assert pelican.calls[0].request.schema == SCHEMA


def test_long_short_form_schema_is_not_a_file(run: Run, pelican: ScriptedModel) -> None:
    names = [f"field_{number}" for number in range(50)]

    result = run("hi", "-m", "pelican", "--schema", ", ".join(names))

    assert result.exit_code == 0, result.output
    assert list(pelican.calls[0].request.schema["properties"]) == names


@pytest.mark.parametrize("schema", ["{", '{"a": }', "name unheardof"])
def test_a_schema_that_cannot_be_read_is_told(
    run: Run, pelican: ScriptedModel, schema: str
) -> None:
    assert error_of(run("hi", "-m", "pelican", "--schema", schema)).startswith(
        "--schema cannot be read: "
    )
    assert pelican.calls == []


# Configuration


def test_the_configuration_and_the_purpose_apply(
    run: Run, pelican: ScriptedModel, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETTE_SECRETS_CHAT_KEY", "the chat's")
    monkeypatch.setattr(pelican, "needs_key", "bird")
    reference = {"model": "pelican", "key": "CHAT_KEY", "options": {"temperature": 1}}
    config = write_config({"default_model": "echo", "purposes": {"chat": {"model": reference}}})

    assert '"prompt": "hi"' in run("hi", "-c", config).stdout
    assert run("hi", "-p", "chat", "-c", config).stdout == "Hello\n"

    assert pelican.calls[0].key == "the chat's"
    assert pelican.calls[0].request.options.temperature == 1


def test_the_configuration_may_be_json(run: Run, pelican: ScriptedModel, tmp_path: Path) -> None:
    path = tmp_path / "datasette.json"
    path.write_text(json.dumps({"plugins": {"datasette-llm": {"default_model": "pelican"}}}))

    assert run("hi", "--config", str(path)).stdout == "Hello\n"


async def test_secrets_of_internal_database_are_used(
    pelican: ScriptedModel,
    write_config,
    make_datasette,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encryption_key = Fernet.generate_key().decode()
    secrets = {"encryption-key": encryption_key}
    internal = str(tmp_path / "internal.db")
    site = make_datasette(plugins={"datasette-secrets": secrets}, internal=internal)
    await site.invoke_startup()
    await site.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, ?)",
        ["BIRD_API_KEY", Fernet(encryption_key.encode()).encrypt(KEY.encode()), "default"],
    )
    site.close()
    monkeypatch.setattr(pelican, "needs_key", "bird")
    config = write_config({"default_model": "pelican"}, **{"datasette-secrets": secrets})

    result = await to_thread(["llm", "prompt", "hi", "-c", config, "--internal", internal])

    assert result.stdout == "Hello\n", result.output
    assert pelican.calls[0].key == KEY


async def to_thread(arguments: list[str]) -> click.testing.Result:
    """Run a command beside the event loop of the test, since it makes one of its own."""
    return await asyncio.to_thread(click.testing.CliRunner().invoke, cli, arguments)


def test_without_any_configuration_echo_answers(run: Run) -> None:
    result = run("Is anybody there?")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["prompt"] == "Is anybody there?"


def test_plugin_default_comes_before_echo(run: Run, pelican, plugin) -> None:
    class Default:
        @hookimpl
        def llm_default_model(self) -> str:
            return "pelican"

    plugin(Default())

    assert run("hi").stdout == "Hello\n"


def test_no_default_and_no_echo_says_what_to_do(run: Run, write_config) -> None:
    message = error_of(run("hi", "-c", write_config({"blocked_models": ["echo"]})))

    assert message.startswith(
        "There is no default model. Name one with -m, set default_model in the configuration, or "
        "install llm-echo to try without a key ("
    )


# Errors


def test_an_unknown_model_is_told_in_one_line(run: Run) -> None:
    assert error_of(run("hi", "-m", "heron")).startswith("Unknown model: 'heron'. Install ")


def test_disallowed_model_is_a_one_line_error(run: Run, pelican, write_config) -> None:
    config = write_config({"blocked_models": ["pelican"]})

    assert error_of(run("hi", "-m", "pelican", "-c", config)) == (
        "Model 'pelican' is not allowed: it is blocked. "
        "Remove it from plugins.datasette-llm.blocked_models"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-o", "beak", "large"], ["option beak: "]),
        (["-o", "temperature", "hot"], ["option temperature: "]),
        (["-o", "beak", "1", "-o", "temperature", "9"], ["option beak: ", "option temperature: "]),
    ],
)
def test_a_bad_option_is_told_in_one_line(
    run: Run, pelican: ScriptedModel, options: list[str], told: list[str]
) -> None:
    message = error_of(run("hi", "-m", "pelican", *options))

    assert all(each in message for each in told)
    assert "pydantic" not in message
    assert pelican.calls == []


def test_bad_configuration_reports_all_problems(run: Run, write_config) -> None:
    result = run("hi", "-c", write_config({"modles": ["a"], "require_keys": "yes"}))

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(
        "Error: datasette-llm cannot start: 2 problems in its configuration\n"
    )
    assert "\n  plugins.datasette-llm.modles: unknown setting" in result.stderr
    assert "\n  plugins.datasette-llm.require_keys: expected true or false" in result.stderr
    assert result.stderr.count("\n") == 3


@pytest.mark.parametrize(
    "content",
    ["{not: [yaml", "- a\n- list", "just text", "settings: {nonsense: 1}", b"\xff\xfe\x00"],
)
def test_non_configuration_file_is_named(run: Run, tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "datasette.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    assert str(path) in error_of(run("hi", "-c", str(path)))


def test_missing_config_file_is_a_usage_error(run: Run) -> None:
    result = run("hi", "-c", "nowhere.yaml")

    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


def test_a_missing_key_is_told_in_one_line(
    run: Run, pelican: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pelican, "needs_key", "bird")

    assert error_of(run("hi", "-m", "pelican")).startswith("No key for model 'pelican'. Set one")


@pytest.mark.parametrize("before", [[], ["One "]], ids=["at once", "mid-stream"])
def test_provider_error_is_one_line_without_key(
    run: Run, register_models, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", KEY)
    error = llm.ModelError(f"401 Unauthorized:\n  bad key {KEY}\n\n  see the console")
    register_models(ScriptedModel("failing", [*before, error], needs_key="bird"))

    result = run("hi", "-m", "failing")

    assert result.stdout == "".join(before)
    assert KEY not in result.output
    assert error_of(result) == "401 Unauthorized: bad key [key removed] see the console"


def test_error_without_message_shows_its_type(run: Run, register_models) -> None:
    register_models(ScriptedModel("failing", [TimeoutError()]))

    assert error_of(run("hi", "-m", "failing")) == "TimeoutError"


def test_what_a_hook_raises_is_told_in_one_line(run: Run, pelican: ScriptedModel, plugin) -> None:
    class Budget:
        @hookimpl
        def llm_prompt_context(self) -> None:
            raise PermissionError("The budget is used up")

    plugin(Budget())

    assert error_of(run("hi", "-m", "pelican")) == "The budget is used up"
    assert pelican.calls == []


# What comes out


def test_help_has_example_on_its_own_line(run: Run) -> None:
    result = run("--help")

    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert (
        "datasette llm prompt 'Three names for a pelican' -m gpt-4o-mini -o temperature 1" in lines
    )
    for option in ("--model", "--purpose", "--system", "--option", "--schema", "--config"):
        assert option in result.stdout


def test_datasette_lists_the_command() -> None:
    assert "Prompt the language models" in click.testing.CliRunner().invoke(cli, ["--help"]).stdout


@pytest.mark.parametrize(
    ("chunks", "output"),
    [(["Hello"], "Hello\n"), (["Hello\n"], "Hello\n"), (["a", "b\n\n"], "ab\n\n"), ([], "\n")],
)
def test_the_output_ends_with_a_line_end(
    run: Run, register_models, chunks: list[str], output: str
) -> None:
    register_models(ScriptedModel("pelican", chunks))

    assert run("hi", "-m", "pelican").stdout == output


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[list[str]], "subprocess.Popen[bytes]"]]:
    """A function that starts a Python process, which is over at the end of the test."""
    started = []
    # With this variable every write is flushed, so that a test of flushing could not fail.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

    def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=tmp_path,
                env=environment,
            )
        )
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_python_dash_m_datasette_runs_it_too(process) -> None:
    child = process(["-m", "datasette", "llm", "prompt", "-s", "Be brief"])

    stdout, stderr = child.communicate(b"Is anybody there?", timeout=BOUND_S)

    assert (child.returncode, stderr) == (0, b"")
    assert json.loads(stdout)["prompt"] == "Is anybody there?"
    assert json.loads(stdout)["system"] == "Be brief"


# A model that goes on when it is told so on standard input.
WAITING_MODEL = """
import asyncio
import sys

from datasette.cli import cli
from datasette_llm.testing import ScriptedModel, registered


class WaitingModel(ScriptedModel):
    async def execute(self, *args, **kwargs):
        for number in range(3):
            yield f"chunk {number} "
            await asyncio.to_thread(sys.stdin.readline)


with registered(WaitingModel("waiting")):
    cli()
"""


@pytest.fixture
def waiting(process, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A prompt to a model that yields each chunk when a line is written to it."""
    (tmp_path / "program.py").write_text(WAITING_MODEL)
    return process(["program.py", "llm", "prompt", "hi", "-m", "waiting"])


def test_the_output_is_streamed_chunk_by_chunk(waiting: "subprocess.Popen[bytes]") -> None:
    for number in range(3):
        chunk = f"chunk {number} ".encode()
        assert waiting.stdout.read(len(chunk)) == chunk
        waiting.stdin.write(b"go on\n")

    stdout, stderr = waiting.communicate(timeout=BOUND_S)
    assert (waiting.returncode, stdout, stderr) == (0, b"\n", b"")


def test_closed_pipe_ends_without_traceback(
    waiting: "subprocess.Popen[bytes]",
) -> None:
    assert waiting.stdout.read(8) == b"chunk 0 "

    waiting.stdout.close()
    waiting.stdin.write(b"go on\ngo on\ngo on\n")

    assert waiting.stderr.read() == b""
    assert waiting.wait(BOUND_S) == 1


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "plugins:\n"])
def test_an_empty_configuration_works(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "datasette.yaml").write_text(content)
    assert run("hi", "-c", str(tmp_path / "datasette.yaml")).exit_code == 0


@pytest.mark.parametrize("content", ["settings: [a]", "plugins: [datasette-llm]", "databases: []"])
def test_a_section_of_the_wrong_shape_is_told(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "datasette.yaml").write_text(content)
    result = run("hi", "-c", str(tmp_path / "datasette.yaml"))
    assert f"{content.split(':')[0]} is not a mapping" in error_of(result)


def test_a_schema_file_that_is_missing_is_told(run: Run) -> None:
    assert "cannot be read: missing.json" in error_of(run("hi", "--schema", "missing.json"))


def test_plugins_of_the_site_apply(run: Run, tmp_path: Path) -> None:
    (tmp_path / "filter.py").write_text(
        "from datasette import hookimpl\n\n\n"
        "@hookimpl\ndef llm_filter_models(models):\n    return []\n"
    )
    try:
        result = run("hi", "-m", "echo", "--plugins-dir", str(tmp_path))
    finally:
        pm.unregister(name="filter.py")
    assert "does not allow model 'echo'" in error_of(result)


def test_plugin_that_fails_to_load_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_anywhere\n")
    message = error_of(run("hi", "--plugins-dir", str(tmp_path)))
    assert "cannot be loaded: ModuleNotFoundError" in message

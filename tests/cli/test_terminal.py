"""Nothing that a stranger says controls the terminal."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from datasette.cli import cli

import datasette_llm.cli
from datasette_llm.cli import terminal
from datasette_llm.testing import ScriptedModel

ESCAPE = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b31m\u202eevil\x7f"
# Newline, tab and what is printed otherwise.
CONTROLS = re.compile("[^\\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def llm(*arguments, **more):
    result = CliRunner().invoke(cli, ["llm", *arguments], **more)
    assert not CONTROLS.search(result.output), result.output
    return result


def test_s6_only_one_module_prints():
    others = set(Path(datasette_llm.cli.__file__).parent.glob("*.py")) - {Path(terminal.__file__)}
    for path in others:
        assert not re.search(r"click\.s?echo|\bprint\(|sys\.std(out|err)", path.read_text()), path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nbc"),
        ("\x1b[1m\x9b\x00\x7f", "\ufffd[1m\ufffd\ufffd\ufffd"),
        ("a\u202eb\u2066c\u200fd", "abcd"),
        ("\ud83d", "\ufffd"),
        ("\U0001f469\u200d\U0001f680 \u3000\xa0é", "\U0001f469\u200d\U0001f680 \u3000\xa0é"),
    ],
)
def test_s6_controls_are_replaced(text, shown, capsys):
    terminal.echo(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_s6_streamed_answer_has_no_escape(register_models):
    """Not even one that comes in pieces."""
    register_models(ScriptedModel("evil", [*ESCAPE, "\nend"]))
    shown = llm("prompt", "Hi", "-m", "evil").stdout
    assert shown == "\ufffd]52;c;cm0gLXJmIH4=\ufffd\ufffd[2J\ufffd31mevil\ufffd\nend\n"


@pytest.mark.parametrize("command", [["prompt", "Hi", "-m", "bad"], ["test", "bad"]])
def test_s6_error_of_a_provider_has_no_escape(register_models, command):
    register_models(ScriptedModel("bad", [RuntimeError(f"No {ESCAPE}")]))
    result = llm(*command)
    assert result.exit_code == 1
    assert "evil" in result.output


def test_s6_json_escapes_all_controls(register_models):
    register_models(ScriptedModel(f"id {ESCAPE}", ["x"]))
    (row,) = [
        row
        for row in json.loads(llm("models", "--json").stdout)["models"]
        if row["model_id"].startswith("id ")
    ]
    assert row["model_id"] == f"id {ESCAPE}"


def test_s6_names_have_no_escape(register_models, tmp_path):
    register_models(ScriptedModel(f"id {ESCAPE}", ["x"]))
    config = tmp_path / "datasette.json"
    ours = {"purposes": {f"for {ESCAPE}": {"models": [f"none {ESCAPE}"]}}}
    config.write_text(json.dumps({"plugins": {"datasette-llm": ours}}))
    given = ["-c", str(config)]
    for command in ("models", "purposes", "explain", "prompt"):
        arguments = [f"id {ESCAPE}"] if command in ("explain", "prompt") else []
        assert (
            "evil"
            in llm(
                command,
                *arguments,
                *given,
                "-p" if arguments else "-c",
                f"for {ESCAPE}" if arguments else str(config),
            ).output
        )


def test_s6_log_messages_have_no_escape(capsys):
    @click.group(cls=terminal.Commands)
    def group():
        pass

    @group.command("warn")
    def warn():
        record = logging.makeLogRecord({"msg": ESCAPE, "levelno": logging.WARNING})
        logging.lastResort.handle(record)

    group.main(["warn"], standalone_mode=False)
    shown = capsys.readouterr().err
    assert "evil" in shown
    assert not CONTROLS.search(shown)

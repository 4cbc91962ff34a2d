"""`datasette llm analyze`, as a person types it."""

from __future__ import annotations

import json
import sqlite3

import pytest
from click.testing import CliRunner
from datasette.cli import cli

from ..support.consultant import GOOD_FLAG, SCHEMA, answer, flag, says


@pytest.fixture
def analyze(tmp_path, register_models):
    """A function that runs the command on the tests' tables; it gives click's result."""
    config = tmp_path / "datasette.json"
    config.write_text(json.dumps({"plugins": {"datasette-llm": {"default_model": "scripted"}}}))
    path = tmp_path / "data.db"
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    connection.close()
    internal = str(tmp_path / "internal.db")

    def run(*arguments, status=0, database=str(path)):
        given = ["llm", "analyze", database, *arguments, "-c", str(config), "--internal", internal]
        result = CliRunner().invoke(cli, given)
        assert result.exit_code == status, result.output
        return result

    run.model = says(answer(GOOD_FLAG, flag("select ssn from secrets", column="ghost")))
    run.internal = internal
    run.config = config
    register_models(run.model, says("No.", model_id="rude"))
    return run


def test_a_preview_shows_what_would_be_sent_and_sends_nothing(analyze):
    shown = analyze("pets", "--preview", "-q", "Why?", "--exclude", "owner").stdout
    assert "Cleo" in shown
    assert "Why?" in shown
    assert "tokens: about" in shown
    assert analyze.model.calls == []
    payload = json.loads(analyze("pets", "--preview", "--json").stdout)
    assert payload["user_prompt"].startswith("<profile>")


def test_advice_is_told_with_its_checks_and_kept(analyze):
    told = analyze("pets").stdout
    assert "Look at the negative weight" in told
    assert "facets:" in told
    assert "supported\n" in told
    assert "| 4 | -1.0" in told
    assert "rejected: risk flag outliers: no such column: ghost" in told
    connection = sqlite3.connect(analyze.internal)
    rows = connection.execute("select outcome, actor_id from llm_consultations").fetchall()
    connection.close()
    assert rows == [("ok", None)]


def test_json_is_the_consultation(analyze):
    found = json.loads(analyze("light", "--json").stdout)["consultation"]
    assert (found["table"], found["outcome"]) == ("light", "ok")


def test_no_advice_is_a_failure(analyze):
    told = analyze("pets", "-m", "rude", status=1).stdout
    assert "No." in told
    assert "malformed_response" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["ghost"], "no table or view ghost"), (["pets", "--exclude", "ghost"], "no column 'ghost'")],
)
def test_what_is_not_there_is_told(analyze, arguments, told):
    assert told in analyze(*arguments, status=1).output
    assert analyze.model.calls == []


def test_a_preview_names_the_fallbacks_that_would_get_the_same(analyze):
    assert "when that fails" not in analyze("pets", "--preview").stdout
    ours = {"default_model": "scripted", "fallbacks": ["rude", "nobody"]}
    analyze.config.write_text(json.dumps({"plugins": {"datasette-llm": ours}}))
    assert "when that fails: rude\n" in analyze("pets", "--preview").stdout

"""`datasette llm analyze`, as typed in a terminal."""

from __future__ import annotations

import json
import sqlite3

import pytest
from click.testing import CliRunner
from datasette.cli import cli

from ..support.consultant import GOOD_FLAG, SCHEMA, answer, answering, flag, rows_where


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

    run.model = answering(answer(GOOD_FLAG, flag(rows_where("ssn"), column="ghost")))
    run.internal = internal
    run.config = config
    register_models(run.model, answering("No.", model_id="rude"))
    return run


def test_preview_shows_prompts_and_sends_nothing(analyze):
    shown = analyze("pets", "--preview", "-q", "Why?", "--exclude", "owner").stdout
    assert "Cleo" in shown
    assert "Why?" in shown
    assert "tokens: about" in shown
    assert analyze.model.calls == []
    payload = json.loads(analyze("pets", "--preview", "--json").stdout)
    assert payload["user_prompt"].startswith("<profile>")


def test_advice_is_printed_and_stored(analyze):
    output = analyze("pets").stdout
    assert "Look at the negative weight" in output
    assert "facets:" in output
    assert "    confirmed: 1 of 4 rows, 25 % (rows where `weight` < 0), as said\n" in output
    assert "    not checkable: Not counted\n    (There is no column `ssn`)\n" in output
    assert "rejected: risk flag outliers: no such column: ghost" in output
    connection = sqlite3.connect(analyze.internal)
    rows = connection.execute("select outcome, actor_id from llm_consultations").fetchall()
    connection.close()
    assert rows == [("ok", None)]


def test_json_is_the_consultation(analyze):
    found = json.loads(analyze("light", "--json").stdout)["consultation"]
    assert (found["table"], found["outcome"]) == ("light", "ok")


def test_no_advice_is_a_failure(analyze):
    result = analyze("pets", "-m", "rude", status=1)
    assert "problem: impossible_values" in result.stdout
    (line,) = [each for each in result.stdout.splitlines() if each.startswith("error: ")]
    assert "answer of model 'rude' does not fit the schema: There is no JSON" in line
    assert "risk" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["ghost"], "no table or view ghost"), (["pets", "--exclude", "ghost"], "no column 'ghost'")],
)
def test_missing_table_or_column_is_an_error(analyze, arguments, message):
    assert message in analyze(*arguments, status=1).output
    assert analyze.model.calls == []


def test_preview_names_the_fallbacks(analyze):
    assert "when that fails" not in analyze("pets", "--preview").stdout
    ours = {"default_model": "scripted", "fallbacks": ["rude", "nobody"]}
    analyze.config.write_text(json.dumps({"plugins": {"datasette-llm": ours}}))
    assert "when that fails: rude\n" in analyze("pets", "--preview").stdout


def test_a2_findings_need_no_model(analyze):
    analyze.config.write_text("{}")
    output = analyze("pets", "--no-model").stdout
    assert "problem: impossible_values: `weight` has values" in output
    assert "1 of 4 rows (25 %)" in output
    found = json.loads(analyze("pets", "--no-model", "--json").stdout)["consultation"]
    assert found["findings"][0]["evidence"]["kind"] == "rows"
    assert (found["outcome"], found["model_id"], found["advice"]) == ("ok", None, None)
    connection = sqlite3.connect(analyze.internal)
    rows = connection.execute("select outcome, call_id, findings from llm_consultations").fetchall()
    connection.close()
    assert [(outcome, call) for outcome, call, _ in rows] == [("ok", None)] * 2
    assert json.loads(rows[0][2]) == found["findings"]
    assert analyze.model.calls == []


def test_a2_no_model_refuses_what_is_sent(analyze):
    for more in (["-m", "rude"], ["-q", "Why?"], ["--preview"]):
        assert "--no-model sends nothing" in analyze("pets", "--no-model", *more, status=2).output

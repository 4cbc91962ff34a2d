"""`datasette llm eval`: confirmation, exit status, JSON, resume."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel

Invoke = Callable[..., Result]
DEFINITION = {
    "name": "Two models",
    "candidates": ["a", "b"],
    "cases": {"jsonl": "cases.jsonl"},
    "checks": ["not-empty", "equals"],
    "thresholds": {"min_pass": 0.9, "max_failures": 0},
}


@pytest.fixture
def models(register_models: Any) -> tuple[ScriptedModel, ScriptedModel]:
    made = ScriptedModel("a", ["yes"]), ScriptedModel("b", ["yes"])
    register_models(*made)
    return made


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Any) -> Invoke:
    """Runs `datasette llm eval …` in a folder with an evaluation of two cases."""
    monkeypatch.chdir(tmp_path)
    Path("evaluation.yaml").write_text(yaml.safe_dump(DEFINITION))
    lines = [{"prompt": "x", "expected": "yes"}, {"prompt": "y", "expected": "Yes"}]
    Path("cases.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(*words: str, typed: str | None = None) -> Result:
        words = ("llm", "eval", *words, "--internal", "internal.db")
        return CliRunner().invoke(cli, words, typed, prog_name="datasette")

    return run


def test_v6_nothing_is_sent_without_yes(invoke: Invoke, models: Any) -> None:
    """Where no one can be asked; --dry-run prints the estimate only."""
    refused = invoke("run", "evaluation.yaml")
    assert refused.exit_code == 2
    assert "4 requests would be sent: give --yes to confirm" in refused.stderr
    dry = invoke("run", "evaluation.yaml", "--dry-run")
    assert (dry.exit_code, dry.stdout.splitlines()[0]) == (0, "2 cases, 4 requests")
    assert "price unknown" in dry.stdout
    estimated = json.loads(invoke("run", "evaluation.yaml", "--dry-run", "--json").stdout)
    assert estimated["estimate"]["unpriced"] == ["a", "b"]
    assert not models[0].calls
    assert invoke("list").stdout == "There are no evaluations\n"


def test_v6_result_says_how_many_answers_are_kept(invoke: Invoke, models: Any) -> None:
    Path("kept.yaml").write_text(yaml.safe_dump({**DEFINITION, "response_cache": True}))
    Path("datasette.json").write_text(json.dumps({"plugins": {"datasette-llm": {"cache": True}}}))
    ran = [invoke("run", "kept.yaml", "--yes", "-c", "datasette.json").stdout for _ in range(2)]
    assert "a: 2 answers, 0 failed" in ran[0]
    assert "a: 2 answers, 2 kept, 0 failed" in ran[1]
    assert [len(each.calls) for each in models] == [2, 2]


def test_v6_run_show_and_list(invoke: Invoke, models: Any) -> None:
    done = invoke("run", "evaluation.yaml", "--yes")
    assert done.exit_code == 0, done.output
    assert "a: 2 answers, 0 failed, 2 passed, cost unknown" in done.stdout
    (listed,) = json.loads(invoke("list", "--json").stdout)["evaluations"]
    assert (listed["name"], listed["answered"]) == ("Two models", 4)
    assert listed["id"] in invoke("list").stdout
    shown = json.loads(invoke("show", listed["id"], "--json").stdout)
    assert [each["passed"] for each in shown["candidates"]] == [2, 2]
    assert shown["missed"] == []
    again = invoke("run", "--resume", listed["id"], "--yes")
    assert again.exit_code == 0
    assert len(models[0].calls) == 2
    missing = invoke("show", "nonsense")
    assert (missing.exit_code, missing.stderr) == (1, "Error: There is no evaluation nonsense\n")


@pytest.mark.parametrize(
    ("thresholds", "status", "problem"),
    [
        ({}, 0, ""),
        ({"min_pass": 0.5}, 0, ""),
        ({"min_pass": 0.6}, 1, "missed: b: 50.0% of the answers pass, and min_pass is 60.0%"),
        ({"max_failures": 0}, 1, "missed: b: 1 requests failed, and max_failures is 0"),
        ({"max_cost_ratio": 2}, 1, "missed: b: the cost is unknown"),
    ],
)
def test_v6_missed_threshold_fails(
    invoke: Invoke, models: Any, thresholds: Any, status: int, problem: str
) -> None:
    models[1].scripts = ([ValueError("no")], ["yes"])
    Path("evaluation.yaml").write_text(yaml.safe_dump(DEFINITION | {"thresholds": thresholds}))
    done = invoke("run", "evaluation.yaml", "--yes", "--json")
    assert done.exit_code == status, done.output
    missed = json.loads(done.stdout)["missed"]
    assert [f"missed: {each}".startswith(problem) for each in missed] == [True] * status
    listed = json.loads(invoke("list", "--json").stdout)["evaluations"]
    shown = invoke("show", listed[0]["id"])
    assert shown.exit_code == status
    assert problem in shown.stderr


def test_v6_dry_run_of_a_resume(invoke: Invoke, models: Any) -> None:
    """It says what is left, and sends nothing."""
    invoke("run", "evaluation.yaml", "--yes")
    (found,) = json.loads(invoke("list", "--json").stdout)["evaluations"]
    sent = len(models[0].calls)
    words = ("run", "--resume", found["id"], "--dry-run")
    assert invoke(*words).stdout.startswith("0 cases, 0 requests\n")
    estimated = json.loads(invoke(*words, "--json").stdout)["estimate"]
    assert (estimated["requests"], estimated["candidates"]) == (0, [])
    assert len(models[0].calls) == sent


def test_v6_recorded_calls_of_a_purpose(invoke: Invoke, models: Any) -> None:
    """With --purpose, --model and --limit, without a file."""

    config = {"plugins": {"datasette-llm": {"log": {"content": True}, "purposes": {"p": {}}}}}
    Path("datasette.json").write_text(json.dumps(config))

    async def record() -> None:
        datasette = Datasette(memory=True, internal="internal.db", config=config)
        await datasette.invoke_startup()
        model = await LLM(datasette).model("a", purpose="p")
        for number in range(5):
            await (await model.prompt(f"q {number}")).text()
        await datasette.invoke_shutdown()

    asyncio.run(record())
    words = ("run", "-p", "p", "-m", "b", "--limit", "3", "--yes", "--json", "-c", "datasette.json")
    done = json.loads(invoke(*words).stdout)
    assert done["evaluation"]["case_count"] == 3
    recorded, b = done["candidates"]
    assert (recorded["answers"], b["answers"]) == (3, 3)
    assert "worse in 0 of 3" in b["sentence"]


def test_v6_rows_of_a_file(invoke: Invoke, models: Any) -> None:
    connection = sqlite3.connect("zoo.db")
    connection.executescript("create table pets (name); insert into pets values ('Rex'), ('Tom')")
    connection.close()
    table = {"database": "zoo.db", "table": "pets", "template": "Describe {{ name }}"}
    raw = DEFINITION | {"cases": {"table": table}, "checks": []}
    Path("evaluation.yaml").write_text(yaml.safe_dump(raw))
    done = invoke("run", "evaluation.yaml", "-m", "b", "--limit", "1", "--yes")
    assert done.exit_code == 0, done.output
    assert [call.prompt for call in models[1].calls] == ["Describe Rex"]
    assert not models[0].calls


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "has to hold a mapping"),
        ("a: [", "cannot be read"),
        ("candidates: [a]", "cases: is needed"),
        ("candidates: [a]\ncases: {jsonl: none.jsonl}", "none.jsonl cannot be read"),
        ("candidates: [a]\ncases: {jsonl: evaluation.yaml}", "line 1: no JSON"),
        ("candidates: [x]\ncases: {jsonl: cases.jsonl}", "Candidate x: Unknown model: 'x'"),
        ("candidates: [a]\ncases: {calls: {limit: 0}}", "cases.calls.limit"),
    ],
)
def test_v6_bad_file_is_refused(invoke: Invoke, text: str, problem: str) -> None:
    Path("evaluation.yaml").write_text(text)
    refused = invoke("run", "evaluation.yaml", "--yes")
    assert refused.exit_code == 1
    assert problem in refused.stderr


@pytest.mark.parametrize(
    "words", [(), ("evaluation.yaml", "-p", "p"), ("evaluation.yaml", "--resume", "x")]
)
def test_v6_one_source_is_named(invoke: Invoke, words: tuple[str, ...]) -> None:
    refused = invoke("run", *words)
    assert refused.exit_code == 2
    assert "Give a FILE, --purpose, or --resume" in refused.stderr


def test_v6_limit_holds_for_lines(invoke: Invoke, models: Any) -> None:
    """And is refused where it would change nothing."""
    dry = invoke("run", "evaluation.yaml", "--limit", "1", "--dry-run")
    assert dry.stdout.splitlines()[0] == "1 cases, 2 requests"
    for words in (("--limit", "1"), ("-m", "a")):
        refused = invoke("run", "--resume", "x", *words)
        assert refused.exit_code == 2
        assert "leave out --model and --limit" in refused.stderr

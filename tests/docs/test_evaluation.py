"""The examples and the table of `evaluation.md`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from datasette_llm.evaluation.checks import CHECKS
from datasette_llm.evaluation.definition import (
    CallCases,
    Definition,
    LineCases,
    QueryCases,
    TableCases,
)
from datasette_llm.testing import ScriptedModel

from .examples import between, run, shows, table_rows


@shows(cases="cases.jsonl", definition="evaluation.yaml", commands="run an evaluation")
def test_v6_example_runs_on_echo(cases, definition, commands, terminal):
    Path("cases.jsonl").write_text(cases)
    Path("evaluation.yaml").write_text(definition)
    dry, done, listed = (terminal(line.split()[1:]) for line in commands.splitlines())
    assert dry.startswith("2 cases, 2 requests")
    assert "echo: 2 answers, 0 failed, 2 passed" in done
    assert "Birds: 2 requests" in listed
    raw = yaml.safe_load(definition)
    raw["cases"] = {"jsonl": {"text": cases}}
    assert len(Definition.of(raw).asked) == 2


@shows(source="evaluate")
async def test_v7_example_iterates(source, make_datasette, register_models):
    register_models(ScriptedModel("small", ["x" * 200]), ScriptedModel("large", ["A bird"]))
    passed = (await run(source))["passed"]
    assert await passed(make_datasette(), None) == {"small": 0, "large": 2}


def test_checks_table_is_that_of_the_code():
    rows = table_rows(between("evaluation", "<!-- checks -->", "<!-- end"))
    assert rows == [[f"`{name}`", kind.description] for name, kind in CHECKS.items()]


def test_sources_table_is_that_of_the_code():
    rows = table_rows(between("evaluation", "## Cases", "In a `template`"))
    kinds = {"calls": CallCases, "table": TableCases, "query": QueryCases, "jsonl": LineCases}
    shown = {
        re.findall(r"`(\w+)`", name)[0]: set(re.findall(r"`(\w+)`", settings))
        for name, _, settings in rows
    }
    assert shown == {name: set(kinds[name].model_fields) for name in kinds}

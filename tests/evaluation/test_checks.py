"""Checks by code, without Datasette."""

from __future__ import annotations

from typing import Any

import pytest

from datasette_llm.consultant.advice.consultation import PURPOSE
from datasette_llm.evaluation.cases import Answer, Case
from datasette_llm.evaluation.checks import CHECKS, Check, CheckError, checks_of, failed_checks
from datasette_llm.evaluation.sources import TABLE_PURPOSE
from datasette_llm.events import FinishReason, Outcome
from datasette_llm.structured.validation import Shape

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def recorded(text: str) -> Case:
    return Case("p", baseline=Answer(text=text))


@pytest.mark.parametrize(
    ("check", "case", "answer", "passes"),
    [
        ("not-empty", Case("p"), Answer(text="x"), True),
        ("not-empty", Case("p"), Answer(text=" \n"), False),
        ("finished", Case("p"), Answer(finish_reason=FinishReason.STOP), True),
        ("finished", Case("p"), Answer(), True),
        ("finished", Case("p"), Answer(finish_reason=FinishReason.LENGTH), False),
        ("finished", Case("p"), Answer(finish_reason=FinishReason.REFUSAL), False),
        ("json", Case("p"), Answer(text="[1]"), True),
        ("json", Case("p"), Answer(text="[1"), False),
        ("json", Case("p"), Answer(text="[" * 100_000), False),
        ("equals", Case("p", expected="Red  fox"), Answer(text="red fox\n"), True),
        ("equals", Case("p", expected="red"), Answer(text="red fox"), False),
        ("equals", Case("p"), Answer(text="anything"), True),
        ("contains", Case("p", expected="fox"), Answer(text="A Fox."), True),
        ("contains", Case("p", expected="dog"), Answer(text="A fox."), False),
        ("matches", Case("p", expected="a * fox?"), Answer(text="A red fox."), True),
        ("matches", Case("p", expected="a * fox"), Answer(text="A red fox."), False),
        ("matches", Case("p", expected="*a" * 30 + "b"), Answer(text="a" * 5_000), False),
        ("matches", Case("p", expected="[a] *"), Answer(text="[A] fox"), True),
        ("matches", Case("p", expected="[a] *"), Answer(text="a fox"), False),
        ("same", recorded("Yes. "), Answer(text="yes."), True),
        ("same", recorded("Yes."), Answer(text="no"), False),
        ("same", Case("p"), Answer(text="no"), True),
        ({"min_chars": 2}, Case("p"), Answer(text="x"), False),
        ({"max_chars": 2}, Case("p"), Answer(text="xx"), True),
        ({"max_chars": 2}, Case("p"), Answer(text="xxx"), False),
        ({"max_latency_ms": 10}, Case("p"), Answer(latency_ms=10.5), False),
        ({"max_latency_ms": 10}, Case("p"), Answer(latency_ms=None), False),
        ({"max_cost_dollars": 0.001}, Case("p"), Answer(cost_nanodollars=1_000_000), True),
        ({"max_cost_dollars": 0.001}, Case("p"), Answer(cost_nanodollars=1_000_001), False),
        ({"max_cost_dollars": 0.001}, Case("p"), Answer(), False),
    ],
)
def test_v4_checks_by_code(check: Any, case: Case, answer: Answer, passes: bool) -> None:
    one = Check.of(check)
    assert failed_checks([one], case, answer) == (() if passes else (one.label,))


@pytest.mark.parametrize(("text", "fits"), [('{"n": 1}', True), ('{"n": "1"}', False), ("", False)])
async def test_v4_answer_fits_the_schema(text: str, fits: bool) -> None:
    case, shape = Case("p", schema=SCHEMA), await Shape.of(SCHEMA)
    assert (failed_checks([Check("schema")], case, Answer(text=text), shape) == ()) is fits


def test_v4_failed_call_fails_one_check() -> None:
    """It is not counted again as empty, too long or too slow."""
    answer = Answer(outcome=Outcome.ERROR)
    assert failed_checks(checks_of(["not-empty", "json"]), Case("p"), answer) == ("answered",)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("jsn", "There is no check 'jsn'; use one of answered, not-empty"),
        (7, "There is no check 7"),
        ("max_chars", "Check max_chars: write it as {max_chars: 500}"),
        ({"json": 1}, "Check json: write it as json"),
        ({"max_chars": -1}, "Check max_chars: -1 is no number from 0 on"),
        ({"max_chars": True}, "is no number"),
        ({"max_chars": float("nan")}, "is no number"),
        ({"max_chars": 1, "json": 2}, "There is no check"),
    ],
)
def test_v4_bad_check_is_refused(written: Any, problem: str) -> None:
    with pytest.raises(CheckError, match="heck") as refused:
        checks_of([written])
    assert problem in str(refused.value)


def test_v4_checks_are_written_as_they_are_read() -> None:
    written: list[Any] = ["json", {"max_chars": 5}, "json"]
    assert [each.written for each in checks_of(written)] == ["json", {"max_chars": 5}]
    assert all(kind.description for kind in CHECKS.values())


def test_calls_about_tables_are_known() -> None:
    """The consultant stands beside; its purpose is known by name."""
    assert TABLE_PURPOSE == PURPOSE

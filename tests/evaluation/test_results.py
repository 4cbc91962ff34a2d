"""Figures, comparisons and lists of a stored evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.evaluation import results, store
from datasette_llm.evaluation.cases import Answer, Candidate, Case, Result
from datasette_llm.evaluation.definition import Definition, Thresholds
from datasette_llm.events import Outcome

Make = Callable[..., Datasette]
FAILED = ("answered",)


async def stored(datasette: Datasette) -> store.Evaluation:
    """Six recorded calls, which two candidates have answered."""
    raw = {"candidates": ["a", "b"], "cases": {"calls": {}}, "checks": ["not-empty", "json"]}

    async def cases() -> Any:
        for number in range(1, 7):
            text = "[1]" if number > 1 else "no JSON"
            answer = Answer(text=text, latency_ms=200.0, cost_nanodollars=100)
            yield Case(f"case {number}", baseline=answer)

    evaluation = await store.create(
        datasette, Definition.of(raw), cases(), Counter({"it has tools": 2}), {"id": "ana"}
    )
    good = Answer(text="[1]", latency_ms=100.0, cost_nanodollars=25)
    longer = Answer(text="[1, 2, 3, 4, 5]", latency_ms=300.0, cost_nanodollars=25)
    error = Answer(outcome=Outcome.ERROR, error_type="E", error_message="no", latency_ms=9.0)
    bad = Answer(text="[", latency_ms=100.0)
    given: Mapping[int, Mapping[int, tuple[Answer, tuple[str, ...]]]] = {
        1: {1: (good, ()), 2: (good, ()), 3: (longer, ()), 4: (error, FAILED), 5: (bad, ("json",))},
        2: {1: (bad, ("json",)), 2: (good, ())},
    }
    for position, answers in given.items():
        model = Candidate("ab"[position - 1])
        found = [
            Result(Case("x"), number, model, position, answer, failed)
            for number, (answer, failed) in answers.items()
        ]
        await store.add_answers(datasette, evaluation.id, found)
    return evaluation


@pytest.fixture
async def datasette(make_datasette: Make) -> Datasette:
    started = make_datasette()
    await started.invoke_startup()
    return started


async def listed(
    datasette: Datasette, of: store.Evaluation, show: Any, candidate: int | None = 1, **more: Any
) -> list[int]:
    arguments = {"check": None, "limit": 50, "offset": 0} | more
    numbers, matching = await results.case_numbers(datasette, of, show, candidate, **arguments)
    assert matching >= len(numbers)
    return numbers


async def test_v5_candidates_side_by_side(datasette: Datasette) -> None:
    """Also while answers are missing."""
    evaluation = await stored(datasette)
    found = await results.summary(datasette, evaluation)
    assert (found.answered, evaluation.request_count) == (7, 12)
    recorded, a, b = found.candidates
    assert (recorded.label, recorded.answers, recorded.passed) == ("recorded", 6, 5)
    assert recorded.comparison is None
    assert (a.answers, a.failures, a.passed, a.unpriced) == (5, 1, 3, 2)
    assert a.failed_checks == {"answered": 1, "json": 1}
    assert (a.median_ms, a.p95_ms, a.cost_nanodollars) == (100.0, 300.0, 75)
    assert a.comparison is not None
    compared = a.comparison
    assert (compared.cases, compared.better, compared.worse) == (5, 1, 2)
    assert (compared.cost_ratio, compared.latency_ratio) == (0.25, 0.5)
    assert a.sentence is not None
    assert a.sentence.startswith("a: 75 % cheaper, 2.0 ")
    assert b.comparison is not None
    assert (b.comparison.cases, b.comparison.better, b.comparison.worse) == (2, 0, 0)


async def test_v5_every_figure_opens_its_cases(datasette: Datasette) -> None:
    """What differs most comes first: worse, better, then by length."""
    evaluation = await stored(datasette)
    assert await listed(datasette, evaluation, "all") == [4, 5, 1, 3, 2]
    assert await listed(datasette, evaluation, "worse") == [4, 5]
    assert await listed(datasette, evaluation, "better") == [1]
    assert await listed(datasette, evaluation, "failed") == [4]
    assert await listed(datasette, evaluation, "not-passed") == [4, 5]
    assert await listed(datasette, evaluation, "not-passed", check="json") == [5]
    assert await listed(datasette, evaluation, "different") == [4, 5, 1, 3]
    assert await listed(datasette, evaluation, "all", None) == [4, 5, 1, 3, 2]
    assert await listed(datasette, evaluation, "all", limit=2, offset=2) == [1, 3]
    assert await listed(datasette, evaluation, "all", 0) == [1, 2, 3, 4, 5, 6]


async def test_v4_people_count_above_the_judge(datasette: Datasette) -> None:
    """And the newest verdict of each; both count above the checks."""
    evaluation = await stored(datasette)

    async def judge(number: int, verdict: str, **by: str) -> None:
        row = {"case_number": number, "candidate": 1, "verdict": verdict}
        await store.add_verdict(datasette, evaluation.id, **row, **by)

    await judge(2, "worse", judge="m")
    assert await listed(datasette, evaluation, "worse") == [4, 5, 2]
    await judge(2, "same", actor_id="ana")
    await judge(2, "better", actor_id="ben")
    await judge(4, "same", judge="m")
    await judge(5, "worse", judge="m")
    await judge(5, "worse", actor_id="ana")
    assert await listed(datasette, evaluation, "worse") == [5]
    assert await listed(datasette, evaluation, "better") == [1, 2]
    found = await results.summary(datasette, evaluation)
    assert found.agreement == (2, 1)
    (case,) = await store.answered_cases(datasette, evaluation.id, [2])
    assert [each.verdict for each in case.verdicts] == ["better", "same", "worse"]


@pytest.mark.parametrize(
    ("wanted", "problems"),
    [
        ({}, []),
        ({"min_pass": 0.6, "max_failures": 1, "max_cost_ratio": 0.25}, []),
        ({"min_pass": 0.61}, ["a: 60.0% of the answers pass", "b: 50.0% of the answers pass"]),
        ({"max_failures": 0}, ["a: 1 requests failed"]),
        ({"max_cost_ratio": 0.2}, ["a: it costs 0.25 times as much", "b: it costs 0.25 times"]),
    ],
)
async def test_v6_thresholds(datasette: Datasette, wanted: Any, problems: list[str]) -> None:
    evaluation = await stored(datasette)
    found = await results.summary(datasette, evaluation)
    missed = results.missed(found, evaluation, Thresholds.model_validate(wanted))
    assert missed[0] == "the evaluation is not complete: 5 answers are missing"
    own = [each for each in missed[1:] if not (each.startswith("b:") and "min_pass is 60" in each)]
    assert len(own) == len(problems)
    for sentence, expected in zip(own, problems, strict=True):
        assert expected in sentence

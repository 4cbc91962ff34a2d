"""The judge: blind, in both orders, confirmed; people count above it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.evaluation import judge, results, run, store
from datasette_llm.evaluation.definition import Definition
from datasette_llm.evaluation.sources import read_cases
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.evaluating import made
from ..support.waiting import soon

Make = Callable[..., Datasette]
RUBRIC = "The longer one"


class Judge(ScriptedModel):
    """Prefers what a function of the question says."""

    def __init__(self, choose: Callable[[dict[str, Any]], str], **more: Any) -> None:
        super().__init__("arbiter", **more)
        self.choose = choose
        self.questions: list[dict[str, Any]] = []

    async def execute(self, prompt: Any, *arguments: Any, **more: Any) -> AsyncIterator[Any]:
        question = json.loads(prompt.prompt.partition("\n\n")[0])
        self.questions.append(question)
        yield json.dumps({"better": self.choose(question), "reason": "It is so."})


def longer(question: dict[str, Any]) -> str:
    first, second = len(question["first"]), len(question["second"])
    return "neither" if first == second else "first" if first > second else "second"


async def judged(
    make_datasette: Make, register_models: Any, arbiter: Judge, **config: Any
) -> tuple[Datasette, store.Evaluation]:
    """A complete evaluation of three cases: `b` is longer, the same, and shorter than `a`."""
    register_models(ScriptedModel("a", ["xx"]), ScriptedModel("b", ["xxx"], ["xx"], ["x"]), arbiter)
    datasette = make_datasette({"purposes": {judge.PURPOSE: {"model": "arbiter"}}} | config)
    await datasette.invoke_startup()
    evaluation = await made(datasette, 3, candidates=("a", "b"), concurrency=1)
    await soon(run.start(datasette, evaluation, None).ended())
    return datasette, evaluation


@pytest.mark.parametrize("supports_schema", [True, False])
async def test_v4_judge_is_blind_and_asked_twice(
    make_datasette: Make, register_models: Any, supports_schema: bool
) -> None:
    arbiter = Judge(longer, supports_schema=supports_schema)
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    before = await judge.estimate(datasette, evaluation, None)
    assert (before.model_id, before.problem, before.requests) == ("arbiter", None, 6)
    assert not arbiter.questions

    running = run.start_judge(datasette, evaluation, {"id": "ana"}, RUBRIC)
    await soon(running.ended())

    assert running.failure is None
    pairs = {(q["prompt"], q["first"], q["second"]) for q in arbiter.questions}
    assert pairs == {
        *(("case 1", "xx", "xxx"), ("case 1", "xxx", "xx"), ("case 2", "xx", "xx")),
        *(("case 3", "xx", "x"), ("case 3", "x", "xx")),
    }
    for question in arbiter.questions:
        assert question.keys() == {"rubric", "prompt", "first", "second"}
        assert question["rubric"] == RUBRIC
    cases = await store.answered_cases(datasette, evaluation.id, [1, 2, 3])
    assert [each.verdicts[0].verdict for each in cases] == ["better", "same", "worse"]
    assert {(each.verdicts[0].judge, each.verdicts[0].rubric) for each in cases} == {
        ("arbiter", RUBRIC)
    }
    (judging,) = await store.judgings(datasette, evaluation.id)
    assert (judging.judge, judging.actor_id, judging.rubric) == ("arbiter", "ana", RUBRIC)
    assert (await judge.estimate(datasette, evaluation, None)).pairs == 0

    verdict = {"case_number": 1, "candidate": 2, "verdict": "worse", "actor_id": "ana"}
    await store.add_verdict(datasette, evaluation.id, **verdict)
    found = await results.summary(datasette, evaluation)
    comparison = found.candidates[1].comparison
    assert comparison is not None
    assert (comparison.better, comparison.worse) == (0, 2)
    assert found.agreement == (1, 0)


async def test_v4_judge_that_contradicts_itself_ties(
    make_datasette: Make, register_models: Any
) -> None:
    """One that always prefers the first has no preference."""
    arbiter = Judge(lambda question: "first")
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    await soon(run.start_judge(datasette, evaluation, None, RUBRIC).ended())
    cases = await store.answered_cases(datasette, evaluation.id, [1, 2, 3])
    assert [each.verdicts[0].verdict for each in cases] == ["same"] * 3


async def test_v4_pair_that_fails_can_be_judged_later(
    make_datasette: Make, register_models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    arbiter = Judge(lambda question: "nonsense" if question["prompt"] == "case 2" else "first")
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    running = run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(running.ended())
    assert (await judge.estimate(datasette, evaluation, None)).pairs == 1
    assert "no verdict about case 2" in caplog.text
    assert "no verdict about 1 of the pairs; case 2: " in (running.failure or "")
    arbiter.choose = longer
    arbiter.questions.clear()
    await soon(run.start_judge(datasette, evaluation, None, RUBRIC).ended())
    assert {question["prompt"] for question in arbiter.questions} == {"case 2"}
    assert (await judge.estimate(datasette, evaluation, None)).pairs == 0


async def test_v4_judge_that_cannot_is_not_asked_on(
    make_datasette: Make, register_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no pair of a group has a verdict, the next groups cost nothing."""
    monkeypatch.setattr(judge, "GROUP_CASES", 1)
    arbiter = Judge(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]  # it fails
    datasette, evaluation = await judged(make_datasette, register_models, arbiter, retries=0)
    running = run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(running.ended())
    assert running.failure is not None
    assert "no verdict about 1 of the pairs" in running.failure
    assert len(arbiter.questions) == 1


async def test_v4_stop_leaves_no_judge_running(make_datasette: Make, register_models: Any) -> None:
    arbiter = Judge(longer)
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    hanging = ScriptedModel("arbiter", [asyncio.Event()])
    arbiter.execute = hanging.execute  # type: ignore[method-assign]  # of this judge alone
    run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(hanging.received())
    assert await soon(run.stop(datasette, evaluation.id))
    await soon(hanging.calls[0].ended.wait())
    assert hanging.calls[0].outcome == "cancelled"
    assert (await judge.estimate(datasette, evaluation, None)).pairs == 3


async def test_v4_each_rubric_stays_on_record(make_datasette: Make, register_models: Any) -> None:
    """A verdict is by the rubric that its judge had, whatever came later."""
    arbiter = Judge(lambda question: "nonsense" if question["prompt"] == "case 2" else "first")
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    await soon(run.start_judge(datasette, evaluation, None, RUBRIC).ended())
    arbiter.choose = longer
    await soon(run.start_judge(datasette, evaluation, None, "Kinder").ended())
    assert [each.rubric for each in await store.judgings(datasette, evaluation.id)] == [
        "Kinder",
        RUBRIC,
    ]
    cases = await store.answered_cases(datasette, evaluation.id, [1, 2])
    assert [each.verdicts[0].rubric for each in cases] == [RUBRIC, "Kinder"]


async def test_v4_estimate_of_the_judge(make_datasette: Make, register_models: Any) -> None:
    """Of the prompts and the answers, twice each, at the price and the speed of the judge."""
    config = {"log": {"prices": {"arbiter": {"input": 1, "output": 10}}}}
    arbiter = Judge(longer)
    datasette, evaluation = await judged(make_datasette, register_models, arbiter, **config)
    first = await judge.estimate(datasette, evaluation, None)
    assert (first.input_tokens, first.output_tokens) == (2 * (18 + 3 * 300), 480)
    assert first.cost_dollars == pytest.approx((1_836 + 10 * 480) / 1e6)
    assert first.seconds is None
    await (
        await (await LLM(datasette).model("arbiter")).prompt('{"first": "", "second": ""}')
    ).text()
    await flushed_rows(datasette)
    assert (await judge.estimate(datasette, evaluation, None)).seconds is not None


async def test_v4_without_a_judge_says_so(make_datasette: Make, register_models: Any) -> None:
    register_models(ScriptedModel("a"), ScriptedModel("b"))
    datasette = make_datasette({"models": ["a", "b"]})
    await datasette.invoke_startup()
    evaluation = await made(datasette, 1, candidates=("a", "b"))
    found = await judge.estimate(datasette, evaluation, None)
    assert found.model_id is None
    assert "there is no default" in (found.problem or "")


async def test_v4_judge_sees_the_conversation(make_datasette: Make, register_models: Any) -> None:
    """Without the earlier messages a prompt may have no meaning."""
    arbiter = Judge(longer)
    register_models(ScriptedModel("a", ["Pinguin"]), ScriptedModel("b", ["der Pinguin"]), arbiter)
    config = {"log": {"content": True}, "purposes": {judge.PURPOSE: {"model": "arbiter"}}}
    datasette = make_datasette(config)
    await datasette.invoke_startup()
    talk = (await LLM(datasette).model("a", "p")).conversation()
    for prompt in ("Name a bird", "In German"):
        await (await talk.prompt(prompt)).text()
    raw = {"purpose": "p", "candidates": ["b"], "cases": {"calls": {"limit": 1}}}
    definition, left_out = Definition.of(raw), Counter[str]()
    cases = read_cases(datasette, definition, left_out)
    evaluation = await store.create(datasette, definition, cases, left_out, None)
    await soon(run.start(datasette, evaluation, None).ended())
    await soon(run.start_judge(datasette, evaluation, None, RUBRIC).ended())
    assert len(arbiter.questions) == 2
    assert "Name a bird" in json.dumps(arbiter.questions[0]["history"])


async def test_v4_removal_ends_the_judge(make_datasette: Make, register_models: Any) -> None:
    """Also one in another process, which says why; and none is begun."""
    began, removed = asyncio.Event(), asyncio.Event()

    class Waiting(Judge):
        async def execute(self, *arguments: Any, **more: Any) -> AsyncIterator[Any]:
            began.set()
            await removed.wait()
            async for each in super().execute(*arguments, **more):
                yield each

    arbiter = Waiting(longer)
    datasette, evaluation = await judged(make_datasette, register_models, arbiter)
    running = run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(began.wait())
    await store.remove(datasette, evaluation.id, None)
    removed.set()
    await soon(running.ended())
    assert running.failure == "EvaluationError: The evaluation was removed"

    arbiter.questions.clear()
    running = run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(running.ended())
    assert running.failure == "EvaluationError: The evaluation was removed"
    assert not arbiter.questions


async def test_v4_no_fallback_judges(make_datasette: Make, register_models: Any) -> None:
    """Its verdict would stand under the name of the judge that is down."""
    other = Judge(longer)
    other.model_id = "other"
    down = Judge(lambda question: 1 / 0)  # type: ignore[arg-type,return-value]  # it raises
    register_models(other)
    datasette, evaluation = await judged(make_datasette, register_models, down, fallbacks=["other"])
    running = run.start_judge(datasette, evaluation, None, RUBRIC)
    await soon(running.ended())
    assert "3 of the pairs" in (running.failure or "")
    assert not other.questions

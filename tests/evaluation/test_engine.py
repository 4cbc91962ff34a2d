"""`datasette_llm.evaluate()`, which is the engine of every evaluation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import llm
import pytest
from datasette import hookimpl
from datasette.app import Datasette

from datasette_llm import LLM, Candidate, Case, evaluate
from datasette_llm.errors import TagError
from datasette_llm.evaluation.checks import CheckError
from datasette_llm.events import Outcome
from datasette_llm.testing import ScriptedModel

from ..support.waiting import soon

Make = Callable[..., Datasette]


async def results(*arguments: Any, **options: Any) -> dict[tuple[int, int], Any]:
    """Results by the numbers of the case and the candidate."""
    found = [each async for each in evaluate(*arguments, **options)]
    assert len({(each.number, each.position) for each in found}) == len(found)
    return {(each.number, each.position): each for each in found}


async def test_v7_iterates_over_typed_results(make_datasette: Make, register_models: Any) -> None:
    """Each case is asked of each candidate with its options, history and schema."""
    a, b = ScriptedModel("a", ["Yes", llm.Usage(input=5, output=2)]), ScriptedModel("b", ["no"])
    register_models(a, b)
    prices = {"a": {"input": 1_000_000, "output": 1_000_000}}
    datasette = make_datasette({"log": {"prices": prices}, "models": ["a", "b"]})
    turns = [("user", "hi"), ("assistant", "hello")]
    history = tuple(
        {"role": role, "parts": [{"type": "text", "text": text}]} for role, text in turns
    )
    cases = [
        Case("one", system="Be brief", history=history, options={"max_tokens": 9, "other": 1}),
        Case("two", expected="yes"),
    ]

    found = await results(
        LLM(datasette), cases, ["a", Candidate("b", {"max_tokens": 3})], checks=["equals"]
    )

    assert sorted(found) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    first = found[1, 1]
    assert (first.case, first.candidate, first.passed) == (cases[0], Candidate("a"), True)
    answer = first.answer
    assert (answer.outcome, answer.text) == (Outcome.OK, "Yes")
    assert (answer.input_tokens, answer.output_tokens) == (5, 2)
    assert (answer.cost_nanodollars, answer.price_source) == (7 * 10**9, "configuration")
    assert found[2, 2].failed_checks == ("equals",)
    sent = {call.prompt: call.request for call in a.calls}
    texts = [(m.role, m.parts[0].text) for m in sent["one"].messages]
    assert texts == [("system", "Be brief"), *turns, ("user", "one")]
    assert sent["one"].options.max_tokens == 9
    assert {call.request.options.max_tokens for call in b.calls} == {3}


async def test_v3_failures_are_results(
    make_datasette: Make, plugin: Any, register_models: Any
) -> None:
    """A provider's, an unknown model, one that is not allowed, and a bad option."""
    register_models(ScriptedModel("a", [ValueError("no")], ["yes"]), ScriptedModel("b"))
    datasette = make_datasette({"models": ["a"]})
    candidates = ["a", "b", "nonsense", Candidate("a", {"temperature": "hot"})]

    found = await results(LLM(datasette), [Case("x"), Case("y")], candidates, concurrency=1)

    outcomes = {key: str(each.answer.outcome) for key, each in found.items()}
    assert sorted(outcomes[number, 1] for number in (1, 2)) == ["error", "ok"]
    assert {outcomes[n, 2] for n in (1, 2)} == {"blocked"}
    assert {outcomes[n, p] for n in (1, 2) for p in (3, 4)} == {"error"}
    assert "temperature" in found[1, 4].answer.error_message
    assert all(each.failed_checks == ("answered",) for key, each in found.items() if key[1] > 1)


async def test_v3_budget_fails_one_case_alone(
    make_datasette: Make, plugin: Any, register_models: Any
) -> None:
    """A plugin that refuses one request; its group hook runs once a candidate and 100 cases."""
    groups: list[Any] = []

    class Budget:
        @hookimpl
        def llm_prompt_context(self, prompt: str, purpose: str, actor: Any) -> Any:
            assert (purpose, actor) == ("p", {"id": "ana"})

            @contextlib.asynccontextmanager
            async def reserve(result: Any) -> Any:
                if prompt == "case 7":
                    raise RuntimeError("over budget")
                yield

            return reserve

        @hookimpl
        def llm_group_exit(self, group: Any) -> None:
            groups.append((group.model_id, len(group.responses)))

    plugin(Budget())
    register_models(ScriptedModel("a", ["yes"]), ScriptedModel("b", ["yes"]))
    cases = (Case(f"case {number}") for number in range(120))

    found = await results(
        LLM(make_datasette()), cases, ["a", "b"], purpose="p", actor={"id": "ana"}
    )

    assert len(found) == 240
    failed = {key: str(r.answer.outcome) for key, r in found.items() if not r.passed}
    assert failed == {(8, 1): "blocked", (8, 2): "blocked"}
    assert sorted(groups) == [("a", 20), ("a", 99), ("b", 20), ("b", 99)]


async def test_v3_concurrency_is_kept(make_datasette: Make, register_models: Any) -> None:
    """As many requests as are set, across groups, and never more."""
    running, most = 0, 0

    class Counting(ScriptedModel):
        async def execute(self, *arguments: Any, **more: Any) -> Any:
            nonlocal running, most
            running, most = running + 1, max(most, running + 1)
            await asyncio.sleep(0)
            running -= 1
            yield "ok"

    register_models(Counting("a"), Counting("b"))
    cases = [Case(str(number)) for number in range(150)]
    assert len(await results(LLM(make_datasette()), cases, ["a", "b"], concurrency=7)) == 300
    assert most == 7


async def test_v3_hanging_candidate_times_out(make_datasette: Make, register_models: Any) -> None:
    hanging = ScriptedModel("hanging", [asyncio.Event()])
    register_models(hanging)
    found = await results(LLM(make_datasette()), [Case("x")], ["hanging"], timeout_s=0.5)
    assert found[1, 1].answer.error_type == "TimeoutError"
    await soon(hanging.calls[0].ended.wait())
    assert hanging.calls[0].outcome == "cancelled"


async def test_v3_leaving_leaves_nothing_running(
    make_datasette: Make, register_models: Any
) -> None:
    model = ScriptedModel("a", ["yes"], [asyncio.Event()])
    register_models(model)
    cases = [Case(str(number)) for number in range(50)]
    async with contextlib.aclosing(evaluate(LLM(make_datasette()), cases, ["a"])) as iterator:
        assert (await anext(iterator)).answer.text == "yes"
        await soon(model.received(3))
    assert {call.outcome for call in model.calls} == {"complete", "cancelled"}
    assert len(model.calls) < 50


async def test_k1_tags_reach_each_request(make_datasette: Make, register_models: Any) -> None:
    register_models(ScriptedModel("a"))
    datasette = make_datasette()
    datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
    await datasette.invoke_startup()
    await results(LLM(datasette), [Case("x"), Case("y")], ["a"], tags={"evaluation": "e1"})
    calls = await LLM(datasette).calls(actor={"id": "ana"}, tag="evaluation:e1")
    assert len(calls) == 2


async def test_group_hook_that_raises_loses_no_answer(
    make_datasette: Make, plugin: Any, register_models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Settling:
        @hookimpl
        def llm_group_exit(self) -> None:
            raise RuntimeError("cannot settle")

    plugin(Settling())
    register_models(ScriptedModel("a"))
    assert len(await results(LLM(make_datasette()), [Case("x"), Case("y")], ["a"])) == 2
    assert "cannot settle" in caplog.text


async def test_keys_are_taken_out_of_answers(
    make_datasette: Make, register_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-" + "0123456789abcdef"
    monkeypatch.setenv("DATASETTE_SECRETS_PELICAN_API_KEY", key)
    register_models(ScriptedModel("a", [f"Your key is {key}"], needs_key="pelican"))
    found = await results(LLM(make_datasette()), [Case("x")], ["a"])
    assert found[1, 1].answer.outcome == "ok"
    assert key not in repr(found)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"concurrency": 0}, ValueError),
        ({"checks": ["nonsense"]}, CheckError),
        ({"tags": {"Bad key": 1}}, TagError),
    ],
)
async def test_bad_arguments_are_refused(
    make_datasette: Make, register_models: Any, arguments: Any, error: type[Exception]
) -> None:
    model = ScriptedModel("a")
    register_models(model)
    with pytest.raises(error):
        await results(LLM(make_datasette()), [Case("x")], ["a"], **arguments)
    assert not model.calls


async def test_v3_fallback_is_no_evidence(make_datasette: Make, register_models: Any) -> None:
    """A candidate that is down has failed, whatever another model would have answered."""
    other = ScriptedModel("b", ["yes"])
    register_models(ScriptedModel("a", [ValueError("down")]), other)
    datasette = make_datasette({"fallbacks": ["b"]})
    found = await results(LLM(datasette), [Case("x")], ["a"])
    assert found[1, 1].answer.error_message == "down"
    assert not other.calls


async def test_v3_kept_answer_is_no_evidence(make_datasette: Make, register_models: Any) -> None:
    """Unless that is wanted: every case is asked."""
    model = ScriptedModel("a", ["yes", llm.Usage(input=4, output=2)])
    register_models(model)
    datasette = make_datasette({"cache": True})
    await datasette.invoke_startup()
    for _ in range(2):
        found = await results(LLM(datasette), [Case("x")], ["a", "a"])
        assert [each.answer.input_tokens for each in found.values()] == [4, 4]
    assert len(model.calls) == 4


async def test_v3_kept_answers_are_used(make_datasette: Make, register_models: Any) -> None:
    """Where that is wanted: with the tokens, the cost and the latency of their requests."""
    pause = asyncio.Event()
    model = ScriptedModel("a", [pause, "yes", llm.Usage(input=4, output=2)])
    register_models(model)
    prices = {"a": {"input": 1_000_000, "output": 1_000_000}}
    datasette = make_datasette({"cache": True, "log": {"prices": prices}})
    await datasette.invoke_startup()
    cases = [Case("x"), Case("y")]

    async def answers() -> list[Any]:
        found = await results(LLM(datasette), cases, ["a"], response_cache=True)
        return [each.answer for _, each in sorted(found.items())]

    asking = asyncio.create_task(answers())
    await model.received(2)
    await asyncio.sleep(0.1)
    pause.set()
    first, again = await asking, await answers()
    assert len(model.calls) == 2
    assert [each.text for each in again] == ["yes", "yes"]
    for name in ("input_tokens", "output_tokens", "cost_nanodollars", "price_source", "latency_ms"):
        assert [getattr(a, name) for a in again] == [getattr(a, name) for a in first]
    assert first[0].latency_ms >= 90
    assert [each.cached_from for each in first] == [None, None]
    assert [each.cached_from for each in again] == [each.call_id for each in first]
    await results(LLM(datasette), cases, ["a"])
    assert len(model.calls) == 4


async def test_v3_equal_cases_share_a_request(make_datasette: Make, register_models: Any) -> None:
    """Also the second one, after a failure: each answer has what it would have taken."""
    pause = asyncio.Event()
    script = [pause, "yes", llm.Usage(input=4, output=2)]
    model = ScriptedModel("a", [httpx2.ConnectError("no")], script)
    register_models(model)
    prices = {"a": {"input": 1_000_000, "output": 1_000_000}}
    datasette = make_datasette({"cache": True, "retries": 1, "log": {"prices": prices}})
    await datasette.invoke_startup()
    cases = [Case("x")] * 3
    asking = asyncio.create_task(results(LLM(datasette), cases, ["a"], response_cache=True))
    await model.received(2)
    await asyncio.sleep(0.1)
    pause.set()
    found = [each.answer for each in (await asking).values()]
    assert [each.input_tokens for each in found] == [4] * 3
    assert [each.cost_nanodollars for each in found] == [6 * 10**9] * 3
    assert all(each.latency_ms >= 90 for each in found)
    assert sorted(each.cached_from is None for each in found) == [False, False, True]
    assert len(model.calls) == 2


async def test_v3_run_again_is_no_better(make_datasette: Make, register_models: Any) -> None:
    """Kept answers are evidence, good or bad: else only the bad ones would be asked again."""
    answers = ['{"x": 1}', "no", " ", "", '{"x": "y"}']
    good = [answers[0]]  # what a request of the second run would get
    register_models(ScriptedModel("a", *([each] if each else [] for each in answers), good))
    datasette = make_datasette({"cache": True})
    await datasette.invoke_startup()
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    cases = [Case(f"case {number}", schema=schema) for number in range(len(answers))]

    async def failed() -> list[Any]:
        found = await results(
            LLM(datasette), cases, ["a"], checks=["schema"], concurrency=1, response_cache=True
        )
        return [found[n, 1].failed_checks for n in range(1, len(answers) + 1)]

    first = await failed()
    assert len([each for each in first if each]) == 4
    assert await failed() == first


async def test_v3_waiting_does_not_time_out(make_datasette: Make, register_models: Any) -> None:
    """Only the request that hangs; the one that its limit held up is asked next."""
    register_models(ScriptedModel("a", [asyncio.Event()], ["yes"]))
    datasette = make_datasette({"models": [{"model": "a", "max_concurrency": 1}]})
    found = await results(LLM(datasette), [Case("x"), Case("y")], ["a"], timeout_s=0.1)
    assert [found[n, 1].answer.outcome for n in (1, 2)] == [Outcome.ERROR, Outcome.OK]
    assert found[1, 1].answer.error_type == "TimeoutError"


async def test_v7_error_of_the_cases_is_raised(make_datasette: Make, register_models: Any) -> None:
    """As the iterator raised it; nothing is left running."""
    model = ScriptedModel("a", [asyncio.Event()])
    register_models(model)

    async def cases() -> AsyncIterator[Case]:
        for number in range(100):
            yield Case(f"{number}")
        await model.received(100)
        raise ValueError("The file ends here")

    with pytest.raises(ValueError, match="ends here"):
        await soon(results(LLM(make_datasette()), cases(), ["a"], concurrency=200))
    assert {call.outcome for call in model.calls} == {"cancelled"}

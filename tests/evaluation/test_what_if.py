"""What recorded calls would have cost: priced as each call is, with every tier and cache."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import llm
import pytest
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.errors import LLMError
from datasette_llm.evaluation import run, store
from datasette_llm.evaluation.definition import Definition
from datasette_llm.evaluation.sources import read_cases
from datasette_llm.evaluation.what_if import what_if
from datasette_llm.log.cost import cost_columns
from datasette_llm.log.priced_tokens import TIERS
from datasette_llm.log.queries import Filter
from datasette_llm.log.usage_upkeep import Upkeep
from datasette_llm.testing import ScriptedModel

from ..support.answered import answered, counted
from ..support.call_log import add, call_row, flushed_rows
from ..support.waiting import soon

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
# With prices for cached tokens, and the first and the last with others for long prompts.
MODELS = ("gemini-2.5-pro", "gpt-4o-mini", "claude-sonnet-4-5")
PRICES = {"log": {"prices": {"local": {"input": 0.5, "cached_input": 0.1, "output": 2}}}}
Start = Callable[..., Awaitable[Datasette]]


@pytest.fixture
def start(make_datasette: Callable[..., Datasette], register_models: Any) -> Start:
    """A function that starts a Datasette with models whose prices are known, and some calls."""

    async def start(*rows: dict[str, Any], config: Any = None) -> Datasette:
        register_models(*map(ScriptedModel, (*MODELS, "local", "priceless")))
        datasette = make_datasette(PRICES | (config or {}))
        await datasette.invoke_startup()
        database = datasette.get_internal_database()
        await database.execute_write_fn(lambda connection: add(connection, *rows))
        return datasette

    return start


def some_calls(seed: int, count: int) -> list[dict[str, Any]]:
    """Around every tier, with and without tokens from a cache, as two providers count them."""
    values = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = max(0, values.choice([1_000, *TIERS]) + values.choice([-1, 0, 1, 5_000]))
        cached = values.choice([0, tokens // 2])
        details = values.choice(
            [
                None,
                json.dumps({"prompt_tokens_details": {"cached_tokens": cached}}),
                json.dumps({"cache_read_input_tokens": 700, "cache_creation_input_tokens": 90}),
                "no JSON",
            ]
        )
        rows.append(
            call_row(
                NOW - values.random() * 20 * DAY,
                model_id=values.choice(["pelican", "gpt-4o-mini"]),
                purpose=values.choice(["chat", "rows"]),
                outcome=(outcome := values.choice(["ok", "ok", "error"])),
                input_tokens=None if outcome == "error" else tokens,
                output_tokens=values.randrange(3_000) if outcome == "ok" else None,
                token_details=details,
                cost_nanodollars=5_000 if outcome == "ok" else None,
            )
        )
    return rows


def by_hand(rows: list[dict[str, Any]], model_id: str) -> int:
    """The sum of what each call would have cost, as calls are priced."""
    priced = [
        cost_columns(
            row
            | {
                "token_details": None if row["token_details"] == "no JSON" else row["token_details"]
            },
            model_id,
            None,
        )
        for row in rows
        if row["input_tokens"] is not None
    ]
    return sum(each["cost_nanodollars"] for each in priced)


@pytest.mark.parametrize("added_up", [False, True])
async def test_v2_costs_are_those_of_each_call(start: Start, added_up: bool) -> None:
    """With and without sums of past periods, to a nano-dollar a call."""
    rows = some_calls(1, 300)
    datasette = await start(*rows)
    if added_up:
        await Upkeep(datasette).update(NOW)
    for log_filter in (Filter(), Filter(purpose="chat"), Filter(purpose="chat", model="pelican")):
        chosen = [
            row
            for row in rows
            if log_filter.purpose in (None, row["purpose"])
            and log_filter.model in (None, row["model_id"])
        ]
        found = await what_if(datasette, log_filter, None)
        assert found["calls"] == len(chosen)
        assert found["calls_without_tokens"] == sum(r["outcome"] == "error" for r in chosen)
        assert found["recorded"]["cost_nanodollars"] == sum(
            row["cost_nanodollars"] or 0 for row in chosen
        )
        costs = {row["model_id"]: row["cost_nanodollars"] for row in found["models"]}
        for model_id in MODELS:
            assert costs[model_id] == pytest.approx(by_hand(chosen, model_id), abs=len(chosen))


async def test_v2_tiers_are_those_of_the_table() -> None:
    """Every number of tokens from which a public price changes divides the sums."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import TieredPrices

    starts = {
        tier.start
        for provider in get_snapshot().providers
        for model in provider.models
        for each in (model.prices if isinstance(model.prices, list) else [model.prices])
        for price in vars(getattr(each, "prices", each)).values()
        if isinstance(price, TieredPrices)
        for tier in price.tiers
    }
    assert starts
    assert starts <= set(TIERS)


async def test_v2_only_allowed_models_unknown_said(start: Start) -> None:
    """In order of cost, those of unknown price last; used ones with their figures."""
    tokens = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}
    details = json.dumps({"prompt_tokens_details": {"cached_tokens": 500_000}})
    datasette = await start(
        call_row(
            NOW,
            model_id="local",
            purpose="chat",
            duration_ms=100.0,
            token_details=details,
            cost_nanodollars=1_150_000_000,
            **tokens,
        ),
        call_row(NOW, model_id="priceless", purpose="other", outcome="error"),
        config={"purposes": {"chat": {"models": ["priceless", "gpt-4o-mini", "local"]}}},
    )
    found = await what_if(datasette, Filter(purpose="chat"), None)
    rows = {row["model_id"]: row for row in found["models"]}
    assert list(rows) == ["gpt-4o-mini", "local", "priceless"]
    assert [row["cost_dollars"] for row in rows.values()] == [0.7125, 2.3, None]
    assert [row["ratio"] for row in rows.values()] == [0.6196, 2.0, None]
    assert rows["gpt-4o-mini"]["used"] is None
    assert rows["local"]["used"]["calls"] == 1
    assert rows["local"]["used"]["median_ms"] == pytest.approx(100, rel=0.04)
    assert rows["priceless"]["used"]["elsewhere"] is True
    assert rows["priceless"]["used"]["failures"] == 1
    assert "differently" in found["caveat"]


async def test_v2_no_ratio_where_a_cost_is_unknown(start: Start) -> None:
    """A part of the cost is no measure of the whole."""
    known = {"input_tokens": 10, "output_tokens": 10}
    datasette = await start(call_row(NOW, cost_nanodollars=5, **known), call_row(NOW, **known))
    found = await what_if(datasette, Filter(), None)
    assert found["recorded"]["calls_without_cost"] == 1
    assert {row["ratio"] for row in found["models"]} == {None}


@pytest.mark.parametrize("log_filter", [Filter(since="soon"), Filter(outcome="nonsense")])
async def test_v2_bad_filters_are_refused(start: Start, log_filter: Filter) -> None:
    datasette = await start()
    with pytest.raises(LLMError, match=r"soon|nonsense"):
        await what_if(datasette, log_filter, None)


def own_tokens(found: Any) -> dict[str, Any]:
    return {row["model_id"]: row["own_tokens"] for row in found["models"]}


async def test_v2_factor_of_each_recorded_model(start: Start) -> None:
    """By evaluations that both answered; of other recorded models the tokens stay."""
    million = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}
    recorded = [call_row(NOW, model_id=of, **million) for of in ("local", "gpt-4o-mini", "odd")]
    datasette = await start(*recorded)
    # Two evaluations of which neither has enough cases by itself.
    for cases in (6, 4):
        await answered(datasette, cases, counted("local", 100), counted("gpt-4o-mini", 150))
    found = own_tokens(await what_if(datasette, Filter(), None))
    factor = {"model_id": "local", "input_tokens": 1.5, "output_tokens": 1.5, "cases": 10}
    # Of `local` half as much again, of itself and of `odd` what was recorded.
    assert found["gpt-4o-mini"] == {
        "cost_nanodollars": 2_625_000_000,
        "cost_dollars": 2.625,
        "calls_without_factor": 1,
        "factors": [factor],
    }
    assert found["local"]["factors"][0] == factor | {
        "model_id": "gpt-4o-mini",
        "input_tokens": 0.6667,
        "output_tokens": 0.6667,
    }
    assert found["priceless"] is None


@pytest.mark.parametrize(
    "call",
    [
        counted("gpt-4o-mini", 150, cached_from="another"),
        counted("gpt-4o-mini", 150, outcome="error"),
        counted("gpt-4o-mini", 150, output_tokens=None),
        counted("local", 150),
    ],
)
async def test_v2_no_factor_from_other_answers(start: Start, call: dict[str, Any]) -> None:
    """A cached one, a failed one, one without tokens, one of the same model."""
    datasette = await start(call_row(NOW, **counted("local", 9)))
    await answered(datasette, 10, counted("local", 100), call)
    assert set(own_tokens(await what_if(datasette, Filter(), None)).values()) == {None}


async def test_v2_no_factor_from_few_cases(start: Start) -> None:
    datasette = await start(call_row(NOW, **counted("local", 9)))
    await answered(datasette, 9, counted("local", 100), counted("gpt-4o-mini", 150))
    assert set(own_tokens(await what_if(datasette, Filter(), None)).values()) == {None}


async def test_v2_factor_of_a_replay(make_datasette: Any, register_models: Any) -> None:
    """Recorded answers are a side, too; all of a prompt counts, also what was cached."""
    details = {"cache_read_input_tokens": 30, "cache_creation_input_tokens": 10}
    register_models(
        ScriptedModel("claude-sonnet-4-5", ["x", llm.Usage(input=60, output=20, details=details)]),
        ScriptedModel("gpt-4o-mini", ["y", llm.Usage(input=80, output=30)]),
    )
    datasette = make_datasette({"log": {"content": True}})
    await datasette.invoke_startup()
    model = await LLM(datasette).model("claude-sonnet-4-5")
    for number in range(10):
        await (await model.prompt(f"case {number}")).text()
    await flushed_rows(datasette)
    definition, left_out = (
        Definition.of({"candidates": ["gpt-4o-mini"], "cases": {"calls": {}}}),
        Counter[str](),
    )
    cases = read_cases(datasette, definition, left_out)
    evaluation = await store.create(datasette, definition, cases, left_out, None)
    await soon(run.start(datasette, evaluation, None).ended())
    await flushed_rows(datasette)
    found = await what_if(datasette, Filter(model="claude-sonnet-4-5"), None)
    assert own_tokens(found)["gpt-4o-mini"]["factors"] == [
        {"model_id": "claude-sonnet-4-5", "input_tokens": 0.8, "output_tokens": 1.5, "cases": 10}
    ]

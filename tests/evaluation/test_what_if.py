"""What recorded calls would have cost: priced as each call is, with every tier and cache."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.errors import LLMError
from datasette_llm.evaluation.what_if import what_if
from datasette_llm.log.cost import cost_columns
from datasette_llm.log.priced_tokens import TIERS
from datasette_llm.log.queries import Filter
from datasette_llm.log.usage_upkeep import Upkeep
from datasette_llm.testing import ScriptedModel

from ..support.call_log import add, call_row

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

"""What a call cost: from configured prices, else from the table of genai-prices."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import genai_prices
import llm
import pytest

from datasette_llm import LLM
from datasette_llm.config.settings import PriceSettings
from datasette_llm.log.cost import UNKNOWN, cost_columns
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel


def row(given=None, made=None, resolved=None, **details):
    return {
        "input_tokens": given,
        "output_tokens": made,
        "resolved_model": resolved,
        "token_details": json.dumps(details) if details else None,
    }


def cost(row, model_id="gpt-4o-mini", price=None, **more):
    columns = cost_columns(row, model_id, price, **more)
    assert columns.keys() == {"cost_nanodollars", "price_source"}
    assert (columns["cost_nanodollars"] is None) == (columns["price_source"] is None)
    return columns["cost_nanodollars"], columns["price_source"]


# genai-prices' table: 0.15 and 0.60 dollars a million tokens, 0.075 for what was cached.
MINI = "genai-prices openai/gpt-4o-mini"
PRICE = PriceSettings(input=1.0, output=2.5)


@pytest.mark.parametrize(
    ("counted", "nanodollars"),
    [
        (row(1000, 100), 210_000),
        (row(1000, 0), 150_000),
        (row(0, 100), 60_000),
        (row(1000, None), 150_000),
        (row(None, 100), 60_000),
        (row(0, 0), 0),
        (row(1000, 100, prompt_tokens_details={"cached_tokens": 400}), 180_000),
        (row(1000, 100, input_tokens_details={"cached_tokens": 400}), 180_000),
        (row(1000, 100, cachedContentTokenCount=400), 180_000),
        (row(1000, 100, prompt_tokens_details={"cached_tokens": 1000}), 135_000),
        (row(1000, 100, prompt_tokens_details={"cached_tokens": 0}), 210_000),
        (row(1000, 100, prompt_tokens_details={}), 210_000),
        (row(1000, 100, other=1), 210_000),
    ],
)
def test_a_known_model_costs_what_the_table_says(counted, nanodollars):
    assert cost(counted) == (nanodollars, MINI)


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": {"cached_tokens": 1001}},
        {"prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens_details": {"cached_tokens": "many"}},
        {"prompt_tokens_details": [400]},
        {"prompt_tokens_details": None},
        {"cache_read_input_tokens": 0.5},
    ],
)
def test_a_cached_part_that_cannot_be_is_no_part(details):
    assert cost(row(1000, 100, **details)) == (210_000, MINI)


# Anthropic counts what was cached beside the input: 3 and 15 dollars a million, 0.30 for what was
# read from the cache, 3.75 for what was written into it.
@pytest.mark.parametrize(
    ("details", "nanodollars"),
    [
        ({}, 4_500_000),
        ({"cache_read_input_tokens": 10_000}, 7_500_000),
        ({"cache_creation_input_tokens": 2_000}, 12_000_000),
        ({"cache_read_input_tokens": 10_000, "cache_creation_input_tokens": 2_000}, 15_000_000),
        ({"cache_read_input_tokens": 0, "cache_creation_input_tokens": None}, 4_500_000),
    ],
)
def test_anthropic_cache_tokens_cost_extra(details, nanodollars):
    """Anthropic counts cached tokens in addition to the input."""
    counted = row(1000, 100, **details)
    source = "genai-prices anthropic/claude-sonnet-4-5"
    assert cost(counted, "anthropic/claude-sonnet-4-5") == (nanodollars, source)


def test_self_hosted_model_needs_exact_name():
    """Models that may be self-hosted have a public price only by the exact name."""
    local = "deepseek-r1:8b"  # of which the table says that it is another name of a public one
    assert cost(row(1000, 100), local)[1] == "genai-prices deepseek/deepseek-reasoner"
    assert cost(row(1000, 100), local, exact=True) == (None, None)
    assert cost(row(1000, 100), local, PRICE, exact=True)[1] == "configuration"
    assert cost(row(1000, 100), exact=True) == (210_000, MINI)


LITELLM = {
    "prompt_tokens_details": {"cached_tokens": 400, "cache_creation_tokens": 100},
    "cache_read_input_tokens": 400,
    "cache_creation_input_tokens": 100,
}


def test_w7_litellm_counts_cached_tokens_once():
    """LiteLLM tells them twice, and has counted them as input."""
    counted = row(1000, 0, **LITELLM)
    assert cost(counted, "anthropic/claude-sonnet-4-5")[0] == 500 * 3_000 + 400 * 300 + 100 * 3_750
    assert cost(counted, price=PRICE)[0] == 1_000_000


def test_configured_price_applies_to_all_input():
    """Cached tokens cost the same with a configured price, unless it has one for them."""
    assert cost(row(1000, 0, cache_read_input_tokens=500), price=PRICE)[0] == 1_500_000


@pytest.mark.parametrize(
    ("details", "nanodollars"),
    [
        ({}, 1_250_000),
        ({"prompt_tokens_details": {"cached_tokens": 400}}, 890_000),
        ({"input_tokens_details": {"cached_tokens": 400}}, 890_000),
        ({"cachedContentTokenCount": 400}, 890_000),
        ({"cache_read_input_tokens": 400}, 1_290_000),
        ({"cache_creation_input_tokens": 400}, 1_650_000),
        (LITELLM, 890_000),
        ({"prompt_tokens_details": {"cached_tokens": 1001}}, 1_250_000),
    ],
)
def test_w7_configured_price_of_cached_input(details, nanodollars):
    price = PriceSettings(input=1.0, output=2.5, cached_input=0.1)
    assert cost(row(1000, 100, **details), price=price) == (nanodollars, "configuration")


def test_w7_cached_input_may_be_free():
    price = PriceSettings(input=1.0, output=2.5, cached_input=0)
    assert cost(row(1000, 0, cachedContentTokenCount=400), price=price)[0] == 600_000


def test_a_table_that_breaks_costs_nobody_a_row(monkeypatch):
    def breaks(*args, **kwargs):
        raise AttributeError("a price of another shape")

    monkeypatch.setattr(genai_prices, "calc_price", breaks)
    assert cost(row(1000, 100)) == (None, None)


def test_no_network_is_asked_for_a_price(monkeypatch):
    asked = []
    # Not the class of sockets, of which the event loops of other threads need a pair.
    for place, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(place, name, lambda *args, **kwargs: asked.append(args))
    assert cost(row(1000, 100)) == (210_000, MINI)
    assert cost(row(1000, 100), "a-name-that-nobody-has") == (None, None)
    assert not asked


def test_price_table_is_loaded_lazily():
    code = "import sys, datasette_llm.log.recorder; print('genai_prices' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout == "False\n"


async def test_price_lookup_runs_in_a_thread(costs_of, monkeypatch):
    threads = set()
    real = genai_prices.calc_price

    def noting(*args, **kwargs):
        threads.add(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(genai_prices, "calc_price", noting)
    await costs_of("gpt-4o-mini", llm.Usage(1000, 100))
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("details", ["[1, 2]", "7", "null", '"text"'])
def test_unknown_token_details_are_ignored(details):
    assert cost(row(1000, 100) | {"token_details": details}) == (210_000, MINI)


@pytest.mark.parametrize(
    "model_id", ["gpt-4o-mini", "openai/gpt-4o-mini", "gpt-4o-mini-2024-07-18"]
)
def test_llms_ids_find_their_price(model_id):
    assert cost(row(1000, 100), model_id) == (210_000, MINI)


def test_provider_prefix_selects_the_price():
    nanodollars, source = cost(row(1000, 100), "anthropic/claude-sonnet-4-5")
    assert (nanodollars, source) == (4_500_000, "genai-prices anthropic/claude-sonnet-4-5")


def test_cost_is_of_the_model_that_answered():
    assert cost(row(1000, 100, "gpt-4o"), "my-own-name") == (
        3_500_000,
        "genai-prices openai/gpt-4o",
    )


def test_unknown_resolved_model_falls_back():
    """If the model that answered has no price, the requested one is looked up."""
    assert cost(row(1000, 100, "a-name-that-nobody-has")) == (210_000, MINI)


@pytest.mark.parametrize("model_id", ["a-name-that-nobody-has", "nobody/has-this", "/", "a/", ""])
@pytest.mark.parametrize("resolved", [None, "nor-has-anybody-this"])
def test_unknown_price_is_none_not_zero(model_id, resolved):
    assert cost(row(1000, 100, resolved), model_id) == (None, None)


@pytest.mark.parametrize("price", [None, PRICE])
def test_cost_without_tokens_is_none_not_zero(price):
    assert cost_columns(row(), "gpt-4o-mini", price) == UNKNOWN


def test_a_configured_price_goes_before_the_table():
    assert cost(row(1000, 100), price=PRICE) == (1_250_000, "configuration")
    assert cost(row(1000, 100), "a-name-that-nobody-has", PRICE) == (1_250_000, "configuration")
    assert cost(row(None, 100), price=PRICE) == (250_000, "configuration")


@pytest.mark.parametrize(
    ("counted", "price", "expected"),
    [
        (row(1000, 100), None, (42, "gateway")),
        (row(1000, 100, "gpt-4o"), None, (42, "gateway")),
        (row(), None, (42, "gateway")),
        (row(1000, 100), PRICE, (1_250_000, "configuration")),
        (row(), PRICE, (42, "gateway")),  # tokens are what a price is for
    ],
)
def test_k3_gateway_goes_between_price_and_table(counted, price, expected):
    assert cost(counted | {"gateway_cost_nanodollars": 42}, price=price) == expected
    assert cost(counted | {"gateway_cost_nanodollars": None}, price=price)[1] != "gateway"


def test_k3_gateways_cost_of_zero_is_zero():
    assert cost(row(1000, 100) | {"gateway_cost_nanodollars": 0}) == (0, "gateway")


def test_configured_price_of_zero_is_zero():
    free = PriceSettings(input=0.0, output=0.0)
    assert cost(row(1000, 100), price=free) == (0, "configuration")


def test_cost_is_exact_to_the_nanodollar():
    price = PriceSettings(input=0.1, output=0.2)
    assert cost(row(3, 0), price=price) == (300, "configuration")
    assert cost(row(10**9, 10**9), price=price) == (300 * 10**9, "configuration")


def test_a_cost_that_sqlite_cannot_hold_is_none():
    dear = PriceSettings(input=1e300, output=0.0)
    assert cost(row(1000, 100), price=dear) == (None, None)
    assert cost(row(10**16, 0)) == (None, None)


@pytest.fixture
def costs_of(make_datasette, register_models, tmp_path):
    """A function that prompts a model once, and gives the cost columns of its row."""

    async def costs_of(model_id, usage, prices=None):
        register_models(ScriptedModel(model_id, ["a", *([usage] if usage else [])]))
        internal = tmp_path / "internal.db"
        datasette = make_datasette({"log": {"prices": prices or {}}}, internal=str(internal))
        await datasette.invoke_startup()
        await (await (await LLM(datasette).model(model_id)).prompt("x")).text()
        await Recorder.of(datasette).writer.flush()
        (found,) = await datasette.get_internal_database().execute(
            "select cost_nanodollars, price_source from llm_calls"
        )
        return tuple(found)

    return costs_of


async def test_the_row_of_a_known_model_has_its_cost(costs_of):
    assert await costs_of("gpt-4o-mini", llm.Usage(1000, 100)) == (210_000, MINI)


async def test_the_row_of_an_unknown_model_has_none(costs_of):
    assert await costs_of("pelican", llm.Usage(1000, 100)) == (None, None)


async def test_row_without_tokens_has_no_cost(costs_of):
    prices = {"pelican": {"input": 1, "output": 2.5}}
    assert await costs_of("pelican", None, prices) == (None, None)


async def test_row_has_configured_price(costs_of):
    prices = {"pelican": {"input": 1, "output": 2.5}, "heron": {"input": 9, "output": 9}}
    assert await costs_of("pelican", llm.Usage(1000, 100), prices) == (1_250_000, "configuration")


async def test_row_has_cost_of_cached_tokens(costs_of):
    usage = llm.Usage(1000, 100, {"prompt_tokens_details": {"cached_tokens": 400}})
    assert await costs_of("gpt-4o-mini", usage) == (180_000, MINI)

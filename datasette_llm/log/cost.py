"""The cost of a call in whole nano-dollars: by configured prices, a gateway or genai-prices.

The table is part of the package, so no network is used. An unknown cost is None, not zero.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..sanitize import count

if TYPE_CHECKING:
    from ..config.settings import PriceSettings

NANODOLLARS = 1_000_000_000
MAX_NANODOLLARS = 10**15  # a million dollars; more for one call is a mistake
UNKNOWN: dict[str, Any] = {"cost_nanodollars": None, "price_source": None}


class Cost(NamedTuple):
    """What requests cost.

    Attributes:
        dollars: the sum.
        source: where the prices are from: `configuration` or a line of genai-prices; of several
            requests each source once.
        unpriced: how many of the requests with tokens have an unknown price, so that `dollars`
            is without them.
    """

    dollars: float
    source: str
    unpriced: int = 0


def cost_columns(
    row: Mapping[str, Any], model_id: str, price: PriceSettings | None, *, exact: bool = False
) -> dict[str, Any]:
    """The cost columns of a finished call. The first use is slow: call it in a thread.

    Args:
        row: the second part of its row, with the tokens.
        model_id: the requested model.
        price: the configured price, or None.
        exact: whether only an exact model name has a public price, as for models that may be
            self-hosted.

    Returns:
        `cost_nanodollars` and `price_source`, both None if tokens or price are unknown.
    """
    uncounted = row["input_tokens"] is None and row["output_tokens"] is None
    if price is not None and not uncounted:
        return _columns(_configured_price(price, usage_of(row)), "configuration")
    of_gateway = row.get("gateway_cost_nanodollars")
    if of_gateway is not None:
        return {"cost_nanodollars": of_gateway, "price_source": "gateway"}
    if uncounted:
        return UNKNOWN
    usage = usage_of(row)
    for name in dict.fromkeys([row["resolved_model"], model_id]):
        found = _public_price(name, usage, exact=exact) if name else None
        if found is not None:
            return _columns(*found)
    return UNKNOWN


def saved_columns(
    row: Mapping[str, Any], model_id: str, price: PriceSettings | None, *, exact: bool = False
) -> dict[str, Any]:
    """The cost columns of a call whose answer another one has paid for.

    Args:
        row: the second part of the row, with the tokens of that call.
        model_id: as for `cost_columns`.
        price: as for `cost_columns`.
        exact: as for `cost_columns`.

    Returns:
        No cost, and `saved_nanodollars`: what it would have cost; None where that is unknown.
    """
    cost = cost_columns(row, model_id, price, exact=exact)["cost_nanodollars"]
    return {"cost_nanodollars": 0, "price_source": "cache", "saved_nanodollars": cost}


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What is known about a model without asking it.

    Attributes:
        input_dollars: the price of a million tokens of prompts; None where unknown.
        output_dollars: the same for answers.
        context_window: the most tokens of a prompt and its answer; None where unknown.
        source: where the price is from; None without a price.
    """

    input_dollars: float | None = None
    output_dollars: float | None = None
    context_window: int | None = None
    source: str | None = None


def model_price(model_id: str, price: PriceSettings | None, *, exact: bool) -> ModelPrice:
    """The price and context window of a model. The first use is slow: call it in a thread.

    Args:
        model_id: the model.
        price: its configured price, or None.
        exact: as for `cost_columns`.
    """
    public = _public_model(model_id, exact=exact)
    if price is None:
        return public
    return replace(
        public,
        input_dollars=float(price.input),
        output_dollars=float(price.output),
        source="configuration",
    )


@lru_cache(maxsize=5_000)
def _public_model(name: str, *, exact: bool) -> ModelPrice:
    import genai_prices  # noqa: PLC0415  # as below

    try:
        reference, provider = _reference(name)
        # Of few tokens, as some prices rise with the length of the prompt.
        usage = genai_prices.Usage(input_tokens=1_000, output_tokens=1_000)
        found = genai_prices.calc_price(usage, reference, provider_id=provider)
        if exact and found.model.id != reference:
            return ModelPrice()
        return ModelPrice(
            float(found.input_price * 1_000),
            float(found.output_price * 1_000),
            found.model.context_window,
            f"genai-prices {found.provider.id}/{found.model.id}",
        )
    except Exception:  # third-party table, as below
        return ModelPrice()


class Rates(NamedTuple):
    """What tokens and calls cost, in dollars each, for prompts of some length.

    Attributes:
        prompt: a token of a prompt that was not cached.
        cache_read: a token that comes from the provider's cache.
        cache_write: a token that is put into it.
        output: a token of an answer, reasoning included.
        call: a call, whatever its tokens.
        source: where they are from, as for `Cost`.
    """

    prompt: Decimal
    cache_read: Decimal
    cache_write: Decimal
    output: Decimal
    call: Decimal
    source: str


def rates(
    model_id: str, price: PriceSettings | None, tier: int, day: datetime.date, *, exact: bool
) -> Rates | None:
    """Today's prices of a model. The first use is slow: call it in a thread.

    Args:
        model_id: the model.
        price: its configured price, or None.
        tier: the most tokens that the prompts are longer than, of `priced_tokens.TIERS`.
        day: today; some public prices change on a day.
        exact: as for `cost_columns`.

    Returns:
        The prices; None where they are unknown.
    """
    if price is None:
        return _public_rates(model_id, tier, day, exact=exact)
    prompt, output = (Decimal(str(each)) / 1_000_000 for each in (price.input, price.output))
    cached = prompt if price.cached_input is None else Decimal(str(price.cached_input)) / 1_000_000
    return Rates(prompt, cached, prompt, output, Decimal(0), "configuration")


@lru_cache(maxsize=10_000)
def _public_rates(name: str, tier: int, day: datetime.date, *, exact: bool) -> Rates | None:
    """From prices of whole requests, so that the table's own rules apply."""
    tokens = tier + 1
    given: dict[str, int] = {"input_tokens": tokens, "output_tokens": 0}
    kinds: tuple[dict[str, int], ...] = (
        {"input_tokens": 0},
        {},
        {"cache_read_tokens": tokens},
        {"cache_write_tokens": tokens},
        {"output_tokens": tokens},
    )
    found = [_public_price(name, given | kind, exact=exact) for kind in kinds]
    if not all(found):
        return None
    (call, source), *rest = (each for each in found if each)
    prompt, read, written, both = ((dollars - call) / tokens for dollars, _ in rest)
    return Rates(prompt, read, written, both - prompt, call, source)


def _configured_price(price: PriceSettings, usage: Mapping[str, int]) -> Decimal:
    cached = usage.get("cache_read_tokens", 0)
    cached_input = price.input if price.cached_input is None else price.cached_input
    dollars = Decimal(str(price.input)) * (usage["input_tokens"] - cached)
    dollars += Decimal(str(cached_input)) * cached
    dollars += Decimal(str(price.output)) * usage["output_tokens"]
    return dollars / 1_000_000


def _columns(dollars: Decimal, source: str) -> dict[str, Any]:
    nanodollars = round(dollars * NANODOLLARS)
    if nanodollars > MAX_NANODOLLARS:
        return UNKNOWN
    return {"cost_nanodollars": nanodollars, "price_source": source}


def _public_price(name: str, usage: dict[str, int], *, exact: bool) -> tuple[Decimal, str] | None:
    # Here, since it takes 100 ms to import.
    import genai_prices  # noqa: PLC0415

    try:
        reference, provider = _reference(name)
        price = genai_prices.calc_price(
            genai_prices.Usage(**usage), reference, provider_id=provider
        )
        if exact and price.model.id != reference:
            return None
        return price.total_price, f"genai-prices {price.provider.id}/{price.model.id}"
    except Exception:  # third-party table; an error in it must not prevent the row's end
        return None


@lru_cache(maxsize=1_000)  # bounded, as the names come from providers
def _reference(name: str) -> tuple[str, str | None]:
    """Split an id of llm, such as `anthropic/claude-x`, into genai-prices' model and provider."""
    import genai_prices.data_snapshot  # noqa: PLC0415  # as above

    providers = {provider.id for provider in genai_prices.data_snapshot.get_snapshot().providers}
    provider, _, rest = name.partition("/")
    return (rest, provider) if rest and provider in providers else (name, None)


def usage_of(row: Mapping[str, Any]) -> dict[str, int]:
    """The tokens as genai-prices expects them: all of the input, and its cached part.

    Args:
        row: the second part of a row; of its tokens None counts as zero.

    Returns:
        `input_tokens` and `output_tokens`; where there are any, `cache_read_tokens` and
        `cache_write_tokens`.

    OpenAI and Gemini count tokens from a cache as input, Anthropic counts them separately, and
    LiteLLM has Anthropic's names beside OpenAI's and counts as OpenAI does. llm's plugins pass
    these names on as details.
    """
    known = _details(row)
    openai = _mapping(known.get("prompt_tokens_details") or known.get("input_tokens_details"))
    given = row["input_tokens"] or 0
    read = count(openai.get("cached_tokens") or known.get("cachedContentTokenCount")) or 0
    written = count(known.get("cache_creation_input_tokens")) or 0
    if not openai:
        beside = count(known.get("cache_read_input_tokens")) or 0
        given, read = given + beside + written, (read if read <= given else 0) + beside
    if read + written > given:
        read = written = 0
    usage = {"input_tokens": given, "output_tokens": row["output_tokens"] or 0}
    cached = {"cache_read_tokens": read, "cache_write_tokens": written}
    return usage | {name: tokens for name, tokens in cached.items() if tokens}


def reasoning_tokens(row: Mapping[str, Any]) -> int | None:
    """How many of the output's tokens the model thought with, by the names of several providers.

    Args:
        row: as for `usage_of`.
    """
    known = _details(row)
    openai = _mapping(known.get("completion_tokens_details") or known.get("output_tokens_details"))
    return count(openai.get("reasoning_tokens") or known.get("thoughtsTokenCount"))


def _details(row: Mapping[str, Any]) -> dict[str, Any]:
    details = row["token_details"]
    return _mapping(json.loads(details) if details else None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

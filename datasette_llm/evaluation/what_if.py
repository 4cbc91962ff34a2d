"""What recorded calls would have cost with other models, from their tokens and today's prices."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ..facade import LLM
from ..log import queries
from ..log.cost import NANODOLLARS, Rates, rates
from ..log.queries import EPOCH, Filter, moment
from ..log.totals import Sums, dollars, merged
from ..log.usage import Question, Reader
from ..log.usage_schema import DAY, floor
from .token_factors import MIN_CASES, Factor, Factors, token_factors

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.snapshot import ModelRoute

    Actor = Mapping[str, Any] | None

# The days that count, unless the filter names a time.
DEFAULT_DAYS = 30
# For calls of which no sums are kept, such as those with a tag; then the newest count.
LIMIT_MS = 400.0
CAVEAT = (
    "Each cost is of the recorded tokens at today's prices, with the same tokens cached. Models "
    "count tokens differently, often by 10 to 30 %, and answer at different lengths, so a close "
    "result decides nothing. Where evaluations have asked a model and the recorded one the same, "
    f"in {MIN_CASES} cases or more, the cost with the model's own tokens is beside it."
)

_SAME = Factor(1, 1, 0)
# The sums of some calls by price tier.
Tiers = Mapping[int, Sums]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The calls of a filter, and what is known of models besides.

    Attributes:
        by_model: their sums, by model.
        tiers: the sums of those that have tokens, by price tier, by model.
        factors: by how much others count other tokens than these models.
        elsewhere: the sums of all calls of the time, whatever the filter, by model.
        since: the start of the time.
        complete_since: from when on all calls are counted, where there was no time for more.
    """

    by_model: Mapping[str, Sums]
    tiers: Mapping[str, Tiers]
    factors: Factors
    elsewhere: Mapping[str, Sums]
    since: datetime.datetime
    complete_since: datetime.datetime | None


async def what_if(datasette: Datasette, log_filter: Filter, actor: Actor) -> Row:
    """What the calls of a filter would have cost with each model that policy allows their purpose.

    Args:
        datasette: the Datasette instance.
        log_filter: which calls; without a time those of the last `DEFAULT_DAYS` days. Its purpose
            is that of the models, too, if it is one.
        actor: who would use the models.

    Returns:
        `calls`, of which `calls_without_tokens` are left out; their tokens; `recorded`, what they
        did cost; `models`, the cheapest first and those of unknown price last, each with its
        `cost_dollars`, its `ratio` to the recorded cost, where that is known of all calls,
        `own_tokens`, the cost with the tokens that it would count, where evaluations say, and
        `used`, its figures where it was used, for these calls or others; the `caveat`.

    Raises:
        BadFilterError: the filter is invalid.
        LLMError: the models are unknown, as the configuration or a plugin fails.
        sqlite3.Error: the internal database cannot be read.
    """
    log_filter.where()
    now = datetime.datetime.now(datetime.UTC)
    purpose = log_filter.purpose if isinstance(log_filter.purpose, str) else None
    models = await LLM(datasette).models(actor, purpose or None)
    recorded = await datasette.get_internal_database().execute_fn(
        lambda connection: _recorded(connection, log_filter, now)
    )
    routes = {model.model_id: model.route.target for model in models}
    rows = await asyncio.to_thread(_rows, routes, recorded, now.date())
    return _payload(log_filter, recorded, rows)


def _recorded(
    connection: sqlite3.Connection, log_filter: Filter, now: datetime.datetime
) -> Recorded:
    begin, end = _time(log_filter, now)
    if not queries.has_tables(connection):
        return Recorded({}, {}, {}, {}, begin, None)
    reader = Reader(connection, now, LIMIT_MS)
    calls = Question(
        replace(log_filter, since=None, until=None),
        by=("model", "tier"),
        latency=True,
        tokens=True,
    )
    by_both = reader.sums(calls, begin, end)
    complete_since = reader.cut
    elsewhere = reader.sums(Question(by=("model",), latency=True), begin, end)
    tiers: dict[str, dict[int, Sums]] = {}
    for (model_id, tier), sums in by_both.items():
        if tier is not None:
            tiers.setdefault(model_id, {})[tier] = sums
    return Recorded(
        _by_model(by_both),
        tiers,
        token_factors(connection, tiers),
        {model_id: sums for (model_id,), sums in elsewhere.items()},
        begin,
        complete_since,
    )


def _time(
    log_filter: Filter, now: datetime.datetime
) -> tuple[datetime.datetime, datetime.datetime | None]:
    since, until = log_filter.since, log_filter.until
    begin = moment("since", since) if since else EPOCH
    if not since and not until:
        begin = floor("day", now) - (DEFAULT_DAYS - 1) * DAY
    return begin, moment("until", until) if until else None


def _by_model(found: Mapping[tuple[Any, ...], Sums]) -> dict[str, Sums]:
    every = dict.fromkeys(model_id for model_id, _ in found)
    return {
        model_id: merged(sums for (of, _), sums in found.items() if of == model_id)
        for model_id in every
    }


def _rows(routes: Mapping[str, ModelRoute], recorded: Recorded, day: datetime.date) -> list[Row]:
    """The models, the cheapest first, those of unknown price last."""
    rows = [_row(model_id, route, recorded, day) for model_id, route in routes.items()]
    return sorted(rows, key=lambda row: (row["cost_nanodollars"] is None, row["cost_nanodollars"]))


def _row(model_id: str, route: ModelRoute, recorded: Recorded, day: datetime.date) -> Row:
    def of_tier(tier: int) -> Rates | None:
        return rates(model_id, route.price, tier, day, exact=route.exact_price)

    base = of_tier(0)
    known = {tier: of_tier(tier) for tiers in recorded.tiers.values() for tier in tiers}
    nanodollars = base and _cost(known, [(_SAME, tiers) for tiers in recorded.tiers.values()])
    return {
        "model_id": model_id,
        "cost_nanodollars": nanodollars,
        "cost_dollars": dollars(nanodollars),
        "own_tokens": _own_tokens(model_id, known, recorded),
        "price_source": base and base.source,
        "input_dollars": base and float(base.prompt * 1_000_000),
        "output_dollars": base and float(base.output * 1_000_000),
        "used": _used(model_id, recorded),
    }


def _own_tokens(
    model_id: str, prices: Mapping[int, Rates | None], recorded: Recorded
) -> Row | None:
    """The cost with the tokens that the model would count; None without a factor."""
    factors = {of: recorded.factors.get((of, model_id)) for of in recorded.tiers}
    known = {of: factor for of, factor in factors.items() if factor is not None}
    if not known:
        return None
    own = known | ({model_id: _SAME} if model_id in recorded.tiers else {})
    every = [(own.get(of, _SAME), tiers) for of, tiers in recorded.tiers.items()]
    nanodollars = _cost(prices, every)
    return {
        "cost_nanodollars": nanodollars,
        "cost_dollars": dollars(nanodollars),
        "calls_without_factor": sum(
            sums.counted or 0
            for of, tiers in recorded.tiers.items()
            if of not in own
            for sums in tiers.values()
        ),
        "factors": [factor.payload(of) for of, factor in known.items()],
    }


def _cost(prices: Mapping[int, Rates | None], every: Sequence[tuple[Factor, Tiers]]) -> int | None:
    """Nano-dollars; None where a price is unknown.

    Args:
        prices: by price tier.
        every: the sums of some calls, each with the factor for its tokens.
    """
    total = Decimal(0)
    for factor, tiers in every:
        for tier, sums in tiers.items():
            rates_of_tier = prices[tier]
            if rates_of_tier is None:
                return None
            total += _priced(rates_of_tier, factor, sums)
    return round(total * NANODOLLARS)


def _priced(prices: Rates, factor: Factor, sums: Sums) -> Decimal:
    read, written = sums.cache_read_tokens or 0, sums.cache_write_tokens or 0
    prompt = prices.prompt * ((sums.prompt_tokens or 0) - read - written)
    prompt += prices.cache_read * read + prices.cache_write * written
    output = prices.output * (sums.output_tokens or 0)
    total = Decimal(factor.input_tokens) * prompt + Decimal(factor.output_tokens) * output
    return total + prices.call * (sums.counted or 0)


def _used(model_id: str, recorded: Recorded) -> Row | None:
    """Its figures for these calls, else for others of the time; None where it was not used."""
    own = recorded.by_model.get(model_id)
    sums = own or recorded.elsewhere.get(model_id)
    if sums is None:
        return None
    names = ("calls", "failures", "cost_dollars", "calls_without_cost", "median_ms", "p95_ms")
    summary = sums.summary()
    return {"elsewhere": own is None} | {name: summary[name] for name in names}


def _payload(log_filter: Filter, recorded: Recorded, rows: Sequence[Row]) -> Row:
    every = merged(recorded.by_model.values())
    tiers = [each for tiers in recorded.tiers.values() for each in tiers.items()]
    tokens, summary = merged(sums for _, sums in tiers), every.summary()
    named = log_filter.since or log_filter.until
    known, cost = summary["calls_without_cost"] == 0, summary["cost_nanodollars"]
    for row in rows:
        comparable = known and cost and row["cost_nanodollars"] is not None
        row["ratio"] = round(row["cost_nanodollars"] / cost, 4) if comparable else None
    return {
        "ok": True,
        "filter": log_filter.given(),
        "since": recorded.since.isoformat(),
        "default_days": None if named else DEFAULT_DAYS,
        "complete_since": recorded.complete_since and recorded.complete_since.isoformat(),
        "calls": every.calls,
        "calls_without_tokens": every.calls - (tokens.counted or 0),
        "input_tokens": tokens.prompt_tokens or 0,
        "cache_read_tokens": tokens.cache_read_tokens or 0,
        "cache_write_tokens": tokens.cache_write_tokens or 0,
        "output_tokens": tokens.output_tokens or 0,
        "long_calls": sum(sums.counted or 0 for tier, sums in tiers if tier),
        "recorded": {
            name: summary[name]
            for name in ("cost_nanodollars", "cost_dollars", "calls_without_cost", "failures")
        }
        | {name: summary[name] for name in ("median_ms", "p95_ms")},
        "models": list(rows),
        "caveat": CAVEAT,
    }

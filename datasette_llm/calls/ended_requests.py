"""The requests of a call or of a group that have ended, and their sums."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..access.snapshot import ModelRoute
from ..events import RequestFinished
from ..log.cost import Cost, cost_columns
from ..log.rows import finished_row
from ..log.totals import dollars

# How it ended, the model that was asked, and its settings, with the configured price. No class of
# its own, as every request makes one.
EndedRequest = tuple[RequestFinished, str, ModelRoute]


class EndedRequests(list[EndedRequest]):
    """Requests that were sent and have ended, in the order of their ends."""

    __slots__ = ()

    @property
    def input_tokens(self) -> int | None:
        """The sum of the known numbers; None without any."""
        return _sum(finished.input_tokens for finished, _, _ in self)

    @property
    def output_tokens(self) -> int | None:
        """The sum of the known numbers; None without any."""
        return _sum(finished.output_tokens for finished, _, _ in self)

    async def cost(self) -> Cost | None:
        """What they cost; None where no price is known."""
        # In a thread, as the table of prices is slow to load.
        return await asyncio.to_thread(_cost, tuple(self)) if self else None


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _cost(requests: tuple[EndedRequest, ...]) -> Cost | None:
    columns = [
        cost_columns(finished_row(finished), model_id, target.price, exact=target.exact_price)
        for finished, model_id, target in requests
    ]
    priced = [each for each in columns if each["cost_nanodollars"] is not None]
    total = dollars(sum(each["cost_nanodollars"] for each in priced))
    if not priced or total is None:
        return None
    unpriced = sum(
        finished.input_tokens is not None or finished.output_tokens is not None
        for finished, _, _ in requests
    ) - len(priced)
    return Cost(total, ", ".join(dict.fromkeys(each["price_source"] for each in priced)), unpriced)

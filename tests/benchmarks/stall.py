"""How long the event loop stands still while an llm plugin lists its models.

A program of its own, because the first listing in a process also imports llm's plugins;
with "started", Datasette has done that before, as it does when it starts to serve:

    python -m tests.benchmarks.stall {raw,ours,started} SECONDS

prints the longest time, in seconds, between two steps of a task that sleeps for 1 ms.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import llm
import llm.plugins
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel, registered

TICK_S = 0.001


class SlowPlugin:
    """Needs its time, like a plugin that asks its provider which models there are."""

    __name__ = "slow"

    def __init__(self, listing_s: float) -> None:
        self.listing_s = listing_s

    @llm.hookimpl
    def register_models(self, register: Callable[..., None]) -> None:
        time.sleep(self.listing_s)


async def longest_gap(work: Callable[[], object]) -> float:
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(10 * TICK_S)
    outcome = work()
    if asyncio.iscoroutine(outcome):
        await outcome
    await asyncio.sleep(10 * TICK_S)
    ticker.cancel()
    return max(gaps)


async def main(side: str, listing_s: float) -> None:
    datasette = Datasette(memory=True)
    if side == "started":
        await datasette.invoke_startup()
    llm.plugins.pm.register(SlowPlugin(listing_s))
    with registered(ScriptedModel()):
        if side == "raw":
            gap = await longest_gap(lambda: llm.get_async_model("scripted"))
        else:
            gap = await longest_gap(lambda: LLM(datasette).model("scripted"))
    await datasette.invoke_shutdown()
    print(gap)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

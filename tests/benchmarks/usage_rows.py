"""The rows about the Usage page of two million calls, requested over HTTP.

The sums of past periods are made once, as in the background of a site; a page is cold when
Datasette has just started with them.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import median

from datasette.app import Datasette

from datasette_llm.log.usage_upkeep import Upkeep

from .filling import fill
from .log_pages_rows import serving
from .measuring import Pair, Row
from .rows import row

ACTOR = {"id": "ana"}
USAGE = "/-/llm/usage"
OTHERS = {
    "by actor and model, ms": "?by=actor&and=model",
    "12 months by actor, ms": "?period=12-months&by=actor",
    "7 days by hour and purpose, ms": "?period=7d&by=hour&and=purpose",
    "7 days by a tag, from the calls, ms": "?period=7d&by=tag&tag_key=job",
}
GROUPED = (
    "select model_id, outcome, count(*), sum(input_tokens), sum(output_tokens), "
    "sum(cost_nanodollars) from llm_calls group by 1, 2"
)


@row("usage-warm")
async def warm(name: str, quick: bool) -> Row:
    internal, seconds = await _summed(quick)
    async with serving(internal) as datasette:
        grouped = [await _grouped(datasette) for _ in range(3)]
        times = await _times(datasette, f"{USAGE}?period=all", quick)
        beside = {"made in the background, once, s": seconds}
        beside["30 days, ms"] = median(await _times(datasette, USAGE, quick)) * 1e3
        for what, query in OTHERS.items():
            beside[what] = median(await _times(datasette, USAGE + query, quick)) * 1e3
    work = f"usage of {_calls(quick):,} calls, all of them, by model, with its chart"
    pair = Pair((median(grouped),) * len(times), tuple(times))
    raw_is = "one query that groups the calls, without latencies, chart and time before"
    return Row(name, work, pair, "median", 300, "ms", raw_is=raw_is, beside=beside)


@row("usage-cold")
async def cold(name: str, quick: bool) -> Row:
    internal, _ = await _summed(quick)
    firsts, again = [], []
    for _ in range(3):
        async with serving(internal) as datasette:
            firsts.append(await _seconds(datasette, f"{USAGE}?period=all"))
            again.append(await _seconds(datasette, f"{USAGE}?period=all"))
    pair = Pair(tuple(again), tuple(firsts))
    work = "the same, as the first request after the start"
    return Row(name, work, pair, "median", 1_000, "ms", raw_is="the second request")


def _calls(quick: bool) -> int:
    return 20_000 if quick else 2_000_000


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the program ends, as both rows read what is in it."""
    return tempfile.TemporaryDirectory()


async def _summed(quick: bool) -> tuple[Path, float]:
    """A log with the sums of its past periods, and how long those took; 0 where it was there."""
    internal = Path(_folder().name) / "internal.db"
    if not internal.exists():
        fill(internal, _calls(quick))
    begun = time.perf_counter()
    async with serving(internal) as datasette:
        await Upkeep(datasette).update(datetime.datetime.now(datetime.UTC))
    return internal, time.perf_counter() - begun


async def _grouped(datasette: Datasette) -> float:
    begun = time.perf_counter()
    await datasette.get_internal_database().execute_fn(
        lambda connection: connection.execute(GROUPED).fetchall()
    )
    return time.perf_counter() - begun


async def _times(datasette: Datasette, address: str, quick: bool) -> list[float]:
    await _seconds(datasette, address)
    return [await _seconds(datasette, address) for _ in range(3 if quick else 15)]


async def _seconds(datasette: Datasette, address: str) -> float:
    begun = time.perf_counter()
    response = await datasette.client.get(address, actor=ACTOR)
    if response.status_code != 200:
        raise RuntimeError(f"{address}: HTTP {response.status_code}")
    return time.perf_counter() - begun

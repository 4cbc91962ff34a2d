"""The rows about a log of a million calls: the time of its pages, and the memory of an export.

Each page is requested over HTTP, with the permission to see it, from a started Datasette.
"""

from __future__ import annotations

import asyncio
import datetime
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

from datasette.app import Datasette

from datasette_llm.log.queries import first_id
from datasette_llm.log.usage_upkeep import Upkeep

from .filling import DAYS, JOB_CALLS, fill
from .measuring import Pair, Row, Sample, measured
from .rows import row

ACTOR = {"id": "ana"}
LOG = "/-/llm/log"
# Datasette's own page of the same table, which it serves too.
TABLE = "/internal/llm_calls"
DAY = datetime.timedelta(days=1)
TABLE_PAGE = "Datasette's own page of the same rows in the same order"


@row("log-first-page")
async def first_page(name: str, quick: bool) -> Row:
    async with serving(record(quick)) as datasette:
        pair = await _pages(datasette, _address(TABLE, _sort_desc="id", _size=50), LOG, quick)
    work = f"first page of {_calls(quick):,} calls, with totals"
    return Row(name, work, pair, "median", 100, "ms", raw_is=TABLE_PAGE)


@row("log-filtered")
async def filtered_page(name: str, quick: bool) -> Row:
    """By the most frequent model; beside it, by rare values that are rarer still together."""
    table = _address(TABLE, model_id="model-0", _sort_desc="id", _size=50)
    frequent = _address(LOG, model="model-0")
    rare = _address(LOG, model="model-rare", actor="actor-3", outcome="error")
    async with serving(record(quick)) as datasette:
        pair = await _pages(datasette, table, frequent, quick)
        rare_s = await median_of(lambda: seconds_of(datasette, rare), quick)
    beside = {"three filters that few calls meet, ms": rare_s * 1e3}
    work = "the same, of the model that 40% of the calls have"
    return Row(name, work, pair, "median", 100, "ms", raw_is=TABLE_PAGE, beside=beside)


@row("log-tagged")
async def tagged_page(name: str, quick: bool) -> Row:
    """By the tag that a third of the calls have; beside it, by one job, and by one row of it."""
    table = _address(TABLE, purpose="rows", _sort_desc="id", _size=50)
    frequent = _address(LOG, tag="source.plugin:datasette-enrichments-llm")
    job = (_calls(quick) - 1) // JOB_CALLS
    job_page = _address(LOG, tag=f"job:{job}", since=(_now() - DAYS * DAY).date())
    row_page = f"{job_page}&tag=row%3A{_calls(quick) - 1}"
    async with serving(record(quick)) as datasette:
        pair = await _pages(datasette, table, frequent, quick)
        job_s = await median_of(lambda: seconds_of(datasette, job_page), quick)
        row_s = await median_of(lambda: seconds_of(datasette, row_page), quick)
    beside = {
        "one job in the whole year, ms": job_s * 1e3,
        "one row of it, ms": row_s * 1e3,
    }
    work = "the same, with a tag that 35% of the calls have"
    return Row(name, work, pair, "median", 150, "ms", raw_is=TABLE_PAGE, beside=beside)


@row("log-explored")
async def explored_page(name: str, quick: bool) -> Row:
    """In the order of cost; beside it, each of the other orders, ranges and filters by itself."""
    table = _address(TABLE, _sort_desc="cost_nanodollars", _size=50)
    others: dict[str, dict[str, object]] = {
        "by duration, ms": {"sort": "-duration"},
        "by tokens, ms": {"sort": "-tokens"},
        "two models, ms": {"model": ["model-0", "model-1"]},
        "a cost that half of the calls have, ms": {"min_cost": "0.001"},
        "a duration that few calls have, ms": {"min_duration": "30"},
        "a time to the first chunk that all calls have, ms": {"min_first_chunk": "0.3"},
        "a finish reason, ms": {"finish_reason": "length"},
        "an actor, ms": {"actor": "actor-3"},
        "a conversation, ms": {"conversation": f"{_calls(quick) // 60:026}"},
    }
    async with serving(record(quick)) as datasette:
        pair = await _pages(datasette, table, _address(LOG, sort="-cost"), quick)
        beside = {}
        for label, arguments in others.items():
            page = _address(LOG, **arguments)
            beside[label] = 1e3 * await median_of(partial(seconds_of, datasette, page), quick)
    work = "the same, in the order of cost"
    return Row(name, work, pair, "median", 150, "ms", raw_is=TABLE_PAGE, beside=beside)


@row("log-middle")
async def middle_page(name: str, quick: bool) -> Row:
    middle = first_id(_now() - DAYS / 2 * DAY)
    sql = "select * from llm_calls order by id desc limit 50 offset ?"
    async with serving(record(quick)) as datasette:

        async def by_offset() -> float:
            begun = time.perf_counter()
            await datasette.get_internal_database().execute_fn(
                lambda connection: connection.execute(sql, [_calls(quick) // 2]).fetchall()
            )
            return time.perf_counter() - begun

        page = _address(LOG, next=middle)
        pair = await measured(by_offset, lambda: seconds_of(datasette, page), rounds(quick))
    raw_is = "the same rows by OFFSET, in SQLite alone"
    return Row(name, "a page in the middle", pair, "median", 100, "ms", raw_is=raw_is)


@row("log-csv")
async def csv(name: str, quick: bool) -> Row:
    command = (sys.executable, "-m", "tests.benchmarks.export", str(record(quick)))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 600)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError("The program that exports the call log failed; see above")
    early, late, rows, seconds = map(float, output.split())
    return Row(
        name,
        f"most memory of a process while {_calls(quick):,} calls go out as CSV",
        Pair((early,), (late,)),
        "ratio",
        1.05,
        "KB",
        raw_is="the same when a tenth of them has gone out",
        beside={"calls a second": rows / seconds},
    )


def _calls(quick: bool) -> int:
    return 20_000 if quick else 1_000_000


def rounds(quick: bool) -> int:
    return 3 if quick else 15


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the program ends, as all the rows read what is in it."""
    return tempfile.TemporaryDirectory()


@cache
def record(quick: bool) -> Path:
    """A log of a million calls, or a fiftieth of that."""
    path = Path(_folder().name) / "internal.db"
    fill(path, _calls(quick))
    return path


@asynccontextmanager
async def serving(internal: Path) -> AsyncIterator[Datasette]:
    """A started Datasette with this call log, whose past periods are added up."""
    config = {"permissions": {"view-llm-log": ACTOR, "manage-llm": ACTOR}}
    datasette = Datasette([str(internal)], internal=str(internal), config=config)
    await datasette.invoke_startup()
    await Upkeep(datasette).update(datetime.datetime.now(datetime.UTC))
    try:
        yield datasette
    finally:
        await datasette.invoke_shutdown()


def _address(path: str, **arguments: object) -> str:
    return f"{path}?{urlencode(arguments, doseq=True)}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def _pages(datasette: Datasette, raw: str, ours: str, quick: bool) -> Pair:
    for address in (raw, ours):
        await seconds_of(datasette, address)  # not counted: the first one compiles templates
    return await measured(
        lambda: seconds_of(datasette, raw), lambda: seconds_of(datasette, ours), rounds(quick)
    )


async def seconds_of(datasette: Datasette, address: str) -> float:
    """The time of a page."""
    begun = time.perf_counter()
    response = await datasette.client.get(address, actor=ACTOR)
    seconds = time.perf_counter() - begun
    if response.status_code != 200:
        raise RuntimeError(f"{address}: HTTP {response.status_code}")
    return seconds


async def median_of(sample: Sample, quick: bool) -> float:
    return median([await sample() for _ in range(rounds(quick))])

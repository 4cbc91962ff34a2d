"""The rows about the response cache: what it costs where it is off, at a miss and at a hit."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.calls.attempt import Attempt
from datasette_llm.calls.model import WrappedAsyncModel
from datasette_llm.log import cache_store
from datasette_llm.redaction import redact
from datasette_llm.telemetry.spans import RequestSpan

from .bursts import burst
from .log_rows import AT_ONCE, on_disk, prompted, written
from .measuring import Row, measured, timed
from .rows import known, row, running, scripted

LONG = "A pelican. " * 900  # about 10 KB
TEXT = LONG[:1_000]
HITS_A_SECOND = 3_000
ENTRIES = 500


@row("cache-off")
async def cache_off(name: str, quick: bool) -> Row:
    async with running() as datasette:
        with known(40, scripted()):
            model = await LLM(datasette).model("scripted")
            ours = timed(lambda: prompted(model), 100)

            async def raw() -> float:
                with (
                    patch.object(Attempt, "run", _run_without_cache),
                    patch.object(Attempt, "_send", _send_without_cache),
                ):
                    return await ours()

            pair = await measured(raw, ours, 20 if quick else 150)
    work = "a prompt without `cache`"
    raw_is = "the same with the cache taken out of the code of an attempt"
    return Row(name, work, pair, "ratio", 1.02, "ms", raw_is=raw_is)


async def _run_without_cache(attempt: Attempt, end: float | None) -> None:
    attempt._end = end
    attempt.call.result.begin(attempt.id)
    try:
        if attempt.route.target.call_policy.limits:
            await attempt._acquire_permit()
        if attempt.call.result.tags:
            await attempt._learn_key()
        if attempt.route.recorder is None:
            await attempt._send()
        else:
            await attempt._commit_row()
            await attempt._send_recorded()
    except Exception as error:
        raise redact(error, attempt.call.used_keys) from None
    finally:
        if attempt.permit is not None:
            attempt.permit.end()


async def _send_without_cache(attempt: Attempt) -> Any:
    attempt.span = RequestSpan.begin(attempt.route.target, lambda: attempt.started, attempt._after)
    attempt._began = time.monotonic()
    state = attempt.response.stream_state
    assert state is not None
    state.on_done = None
    try:
        await attempt.response.fill(attempt._request())
        misfit = await attempt._misfit()
    except BaseException as error:
        attempt._conclude(error, error)
        raise
    return attempt._conclude(misfit)


@row("cache-miss")
async def cache_miss(name: str, quick: bool) -> Row:
    numbers = itertools.count()
    async with on_disk() as bare, on_disk(cache=True) as cached:
        with known(40, scripted("scripted", [LONG])):
            side = {each: await LLM(each).model("scripted") for each in (bare, cached)}

            async def sample(datasette: Datasette) -> float:
                """The median of calls that begin when nothing of the one before is left to do."""
                seconds = []
                for _ in range(20):
                    text = f"{next(numbers)} {LONG}"
                    begun = time.perf_counter()
                    await (await side[datasette].prompt(text)).text()
                    seconds.append(time.perf_counter() - begun)
                    await written(datasette)
                return median(seconds)

            rounds = 4 if quick else 40
            pair = await measured(lambda: sample(bare), lambda: sample(cached), rounds)
    work = "added to a lone call with the log by a miss, 10 KB in and out"
    return Row(name, work, pair, "added", 300, "µs", raw_is="the same without a cache")


@row("cache-hit")
async def cache_hit(name: str, quick: bool) -> Row:
    async with _kept() as (datasette, model):
        pair = await measured(
            lambda: _hit_s(datasette, model, False),
            lambda: _hit_s(datasette, model, True),
            2 if quick else 10,
        )
    work = "a lone hit, 1 KB in and out, from disk, with the log, one after another"
    return Row(name, work, pair, "median", 0.5, "ms", raw_is="the model asked, and the log")


@row("cache-hits")
async def cache_hits(name: str, quick: bool) -> Row:
    count = ENTRIES if quick else 4 * ENTRIES
    async with _kept() as (datasette, model):

        async def seconds_a_hit(mode: bool) -> float:
            numbers = itertools.count()

            async def ask() -> None:
                text = _text(next(numbers) % ENTRIES)
                await (await model.prompt(text, response_cache=mode)).text()

            return 1 / (await burst(ask, count, AT_ONCE, datasette)).calls_a_second

        pair = await measured(
            lambda: seconds_a_hit(False), lambda: seconds_a_hit(True), 3 if quick else 15
        )
    work = f"a hit, 1 KB in and out, {AT_ONCE} at once, from disk, with the log"
    line = Row(name, work, pair, "median", 1e3 / HITS_A_SECOND, "ms", raw_is="the model asked")
    line.beside["hits a second"] = 1e3 / line.ours
    return line


@row("cache-many")
async def cache_many(name: str, quick: bool) -> Row:
    entries = 20_000 if quick else 1_000_000
    async with _kept() as few, _kept(entries) as many:
        pair = await measured(
            lambda: _hit_s(*few, True), lambda: _hit_s(*many, True), 4 if quick else 20
        )
    work = f"a lone hit among {entries:,} answers"
    return Row(name, work, pair, "ratio", 1.2, "ms", raw_is=f"among {ENTRIES}")


@asynccontextmanager
async def _kept(entries: int = 0) -> AsyncIterator[tuple[Datasette, WrappedAsyncModel]]:
    """A model and so many answers that are kept on disk, of which some can be asked for."""
    with tempfile.TemporaryDirectory() as folder:
        internal = Path(folder) / "internal.db"
        if entries:
            _fill(internal, entries)
        async with on_disk(internal=internal, cache={"max_mb": 100_000}) as datasette:
            with known(40, scripted("scripted", [TEXT])):
                model = await LLM(datasette).model("scripted")
                for number in range(ENTRIES):
                    await (await model.prompt(_text(number))).text()
                await written(datasette)
                yield datasette, model


def _text(number: int) -> str:
    return f"{number} {TEXT}"


async def _hit_s(datasette: Datasette, model: WrappedAsyncModel, mode: bool) -> float:
    """The median time of asking for each of the answers, the log written meanwhile."""
    seconds = []
    for number in range(ENTRIES):
        text = _text(number)
        begun = time.perf_counter()
        await (await model.prompt(text, response_cache=mode)).text()
        seconds.append(time.perf_counter() - begun)
    await written(datasette)
    return median(seconds)


def _fill(path: Path, entries: int) -> None:
    """Keep answers to requests of which no one knows."""
    setting, at = "plugins.datasette-llm.cache", cache_store.now_ms()
    answer = b'[[["A pelican.", 0]], {}, null]' + b" " * 300
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("begin")
        cache_store.Guard().write(lambda _: None, connection)  # makes the tables
        triggers = connection.execute(
            "select name, sql from sqlite_master where type = 'trigger' and tbl_name = 'llm_cache'"
        ).fetchall()
        for each, _ in triggers:
            connection.execute(f"drop trigger {each}")
        rest = (setting, "", "scripted", "01", at, at, len(answer), b"", answer)
        connection.executemany(
            "insert into llm_cache values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((os.urandom(32), *rest) for _ in range(entries)),
        )
        connection.execute(
            "insert into llm_cache_sizes values (?, '', ?, ?)",
            (setting, entries, entries * len(answer)),
        )
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute("commit")

"""The rows about the call log: the cost of every call being on disk before its request.

The reference is a log that commits each part of each row by itself, through the same
connection of Datasette's: one commit when a call starts and one when it has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from datasette.app import Datasette
from opentelemetry.sdk.trace import TracerProvider

from datasette_llm import LLM, tagged
from datasette_llm.calls.attempt import Attempt
from datasette_llm.calls.model import WrappedAsyncModel
from datasette_llm.events import RequestStarted
from datasette_llm.log.recorder import Recorder
from datasette_llm.log.rows import started_row
from datasette_llm.redaction import redact
from datasette_llm.telemetry import spans
from datasette_llm.telemetry.spans import RequestSpan

from .measuring import Pair, Row, measured, timed
from .rows import known, row, running, scripted

AT_ONCE = 64
CALLS_A_SECOND = 2_000
REFERENCE = "the same calls, off our record, with a commit for each of the two parts of a row"


@row("log-throughput")
async def log_throughput(name: str, quick: bool) -> Row:
    calls = AT_ONCE * (4 if quick else 32)
    async with on_disk() as ours, on_disk(log=False) as bare:
        with known(40, scripted()):
            recorded = await LLM(ours).model("scripted")
            unrecorded = await LLM(bare).model("scripted")
            reference = CommitPerRow(bare)
            await reference.create()
            pair = await measured(
                lambda: _seconds_a_call(lambda: reference.around(unrecorded), calls),
                lambda: _seconds_a_call(lambda: prompted(recorded), calls, ours),
                2 if quick else 9,
            )
            off_s = await _seconds_a_call(lambda: prompted(unrecorded), calls)
        unfinished = await _unfinished(ours)
    line = Row(
        name,
        f"a call, {AT_ONCE} at once, the log on disk",
        pair,
        "median",
        1e3 / CALLS_A_SECOND,
        "ms",
        raw_is=REFERENCE,
        holds=unfinished == 0,
    )
    line.beside.update(
        {
            "calls a second, ours": 1e3 / line.ours,
            "calls a second, a commit for each part": 1e3 / line.raw,
            "calls a second, ours without a log": 1 / off_s,
            "rows without an end": unfinished,
        }
    )
    return line


@row("log-lone")
async def log_lone(name: str, quick: bool) -> Row:
    times = 20 if quick else 100
    async with on_disk() as ours, on_disk(log=False) as bare:
        with known(40, scripted()):
            recorded = await LLM(ours).model("scripted")
            unrecorded = await LLM(bare).model("scripted")
            reference = CommitPerRow(bare)
            await reference.create()
            pair = await measured(
                lambda: _median_seconds(lambda: prompted(unrecorded), times),
                lambda: _median_seconds(lambda: prompted(recorded), times, ours),
                3 if quick else 11,
            )
            reference_s = await _median_seconds(lambda: reference.around(unrecorded), times)
            back_to_back_s = await _seconds_a_call(lambda: prompted(recorded), times, at_once=1)
    return Row(
        name,
        "added to a lone call by the log on disk",
        pair,
        "added",
        5,
        "ms",
        raw_is="ours without a log",
        beside={
            "a commit for each part, ms": reference_s * 1e3,
            "ours, one call right after the other, ms": back_to_back_s * 1e3,
        },
    )


@row("log-off")
async def log_off(name: str, quick: bool) -> Row:
    pair = await _without(make_without_record, quick)
    work = "model(id) + prompt + text with `log: false`"
    raw_is = "the same with the record taken out of the code"
    return Row(name, work, pair, "ratio", 1.05, "ms", raw_is=raw_is)


@row("tracing-off")
async def tracing_off(name: str, quick: bool) -> Row:
    pair = await _without(_make_without_span, quick)
    work = "the same with a span without an exporter"
    raw_is = "the same with the span taken out of the code"
    return Row(name, work, pair, "ratio", 1.15, "ms", raw_is=raw_is)


@row("tracing-on")
async def tracing_on(name: str, quick: bool) -> Row:
    """Without an exporter, whose work is a matter of its own."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer(spans.SCOPE)
    async with running() as datasette:
        with known(40, scripted()):

            async def asked() -> None:
                await prompted(await LLM(datasette).model("scripted"))

            async def traced() -> float:
                with (
                    patch.object(spans, "tracer", tracer),
                    patch.object(spans, "is_traced", lambda: True),
                    tagged(job=12, row=5),
                ):
                    return await timed(asked, 100)()

            pair = await measured(timed(asked, 100), traced, 10 if quick else 100)
    work = "added to a prompt by two tags and a span"
    return Row(name, work, pair, "added", 40, "µs", raw_is="the same without them")


async def _without(make: Callable[[Attempt, float | None], Awaitable[None]], quick: bool) -> Pair:
    """A prompt with `log: false`, beside the same where an attempt is made in another way."""
    async with running() as datasette:
        with known(40, scripted()):

            async def asked() -> None:
                await prompted(await LLM(datasette).model("scripted"))

            async def raw() -> float:
                with patch.object(Attempt, "run", make):
                    return await timed(asked, 100)()

            return await measured(raw, timed(asked, 100), 10 if quick else 100)


async def make_without_record(attempt: Attempt, end: float | None) -> None:
    """An attempt with its span and redacted errors, and nothing else."""
    try:
        attempt.span = RequestSpan.begin(attempt.route.target, lambda: attempt.started)
        await attempt.response.fill(attempt._request())
        attempt._conclude(None)
    except Exception as error:
        raise redact(error, attempt.call.used_keys) from None


async def _make_without_span(attempt: Attempt, end: float | None) -> None:
    try:
        await attempt.response.fill(attempt._request())
        attempt._conclude(None)
    except Exception as error:
        raise redact(error, attempt.call.used_keys) from None


class CommitPerRow:
    """A naive call log."""

    def __init__(self, datasette: Datasette) -> None:
        self._database = datasette.get_internal_database()
        self._ids = itertools.count()

    async def create(self) -> None:
        columns = ", ".join(started_row("", RequestStarted("", "", None, None, None)))
        await self._database.execute_write(
            f"create table reference_calls ({columns}, finished_at, outcome, primary key (id))"
        )

    async def around(self, model: WrappedAsyncModel) -> None:
        request = RequestStarted(f"{next(self._ids):026d}", model.model_id, None, None, None)
        values = started_row("session", request)
        places = ", ".join(f":{name}" for name in values)
        await self._database.execute_write(
            f"insert into reference_calls ({', '.join(values)}) values ({places})", values
        )
        await prompted(model)
        await self._database.execute_write(
            "update reference_calls set finished_at = 'now', outcome = 'ok' where id = ?",
            [values["id"]],
        )


async def prompted(model: WrappedAsyncModel) -> None:
    await (await model.prompt("x")).text()


async def _seconds_a_call(
    call: Callable[[], Awaitable[None]],
    count: int,
    recorded: Datasette | None = None,
    at_once: int = AT_ONCE,
) -> float:
    """The time of so many calls, the writing of their last row included, for each of them."""
    numbers = iter(range(count))

    async def some() -> None:
        for _ in numbers:
            await call()

    await call()
    begun = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(at_once)])
    if recorded is not None:
        await written(recorded)
    return (time.perf_counter() - begun) / count


async def _median_seconds(
    call: Callable[[], Awaitable[None]], count: int, recorded: Datasette | None = None
) -> float:
    """The median time of calls that each begin when nothing of the one before is left to do."""
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - begun)
        if recorded is not None:
            await written(recorded)
    return sorted(seconds)[count // 2]


async def written(datasette: Datasette) -> None:
    await Recorder.of(datasette).writer.flush()


async def _unfinished(datasette: Datasette) -> int:
    await written(datasette)
    found = await datasette.get_internal_database().execute(
        "select count(*) from llm_calls where outcome is null or outcome <> 'ok'"
    )
    count: int = found.single_value()
    return count


@asynccontextmanager
async def on_disk(
    log: bool = True,
    internal: Path | None = None,
    cache: object = False,
    config: dict[str, Any] | None = None,
) -> AsyncIterator[Datasette]:
    """A started Datasette, with its internal database in this file if given."""
    config = {"plugins": {"datasette-llm": {"log": log, "cache": cache}}} | (config or {})
    with tempfile.TemporaryDirectory() as folder:
        path = str(internal or Path(folder) / "internal.db")
        datasette = Datasette(memory=True, internal=path, config=config)
        await datasette.invoke_startup()
        try:
            yield datasette
        finally:
            await datasette.invoke_shutdown()

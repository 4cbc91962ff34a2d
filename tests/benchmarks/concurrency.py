"""What a call costs while others are made, with the call log and without, beside llm alone.

The model gives way to the event loop before it answers, as one that is asked over the network
does; llm would else answer call after call. So many calls at once share the time of one thread:
each of them takes as long as all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from statistics import median
from unittest.mock import patch

from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.calls import call as calls
from datasette_llm.calls.attempt import Attempt
from datasette_llm.calls.call import Call
from datasette_llm.calls.response import PromptResponse

from .bursts import Burst, burst, hooked, percentile
from .log_rows import make_without_record, on_disk, prompted
from .measuring import Grid, Row, measured, sampled, timed
from .rows import known, row, running, scripted
from .stall import longest_gap

# Makes so many calls, so many at once.
Side = Callable[[int, int], Awaitable[Burst]]

CONCURRENCIES = (1, 16, 64, 256, 1_024)
AT_ONCE = 64
RAW = "llm alone"
CALLS_A_SECOND = 4_000
HEAD = ("at once", "side", "p50, ms", "p99, ms", "calls a second", "added to a call, µs")
PURPOSE = "busy"
ACTOR = {"id": "ana", "name": "Ana"}
# Settings that never end, repeat or hold up a call here.
EVERYTHING = {
    "default_model": {"model": "scripted", "max_concurrency": 50_000, "idle_timeout": 60},
    "purposes": {
        PURPOSE: {
            "timeout": 600,
            "retries": 3,
            "max_concurrency": 50_000,
            "fallbacks": ["filler-1"],
        }
    },
}


@row("concurrency")
async def concurrency(name: str, quick: bool) -> Grid:
    lines: list[tuple[str | float, ...]] = []
    async with _sides() as sides:
        for at_once in CONCURRENCIES:
            count = max(at_once, 32) if quick else max(2 * at_once, 512)
            works = {what: partial(side, count, at_once) for what, side in sides.items()}
            samples = await sampled(works, 2 if quick else 5)
            lines += [_line(at_once, what, samples) for what in sides]
    notes = (
        "added to a call: the median less that of llm alone, divided by the calls at once, which "
        "share the time; the median of the rounds",
        "everything but the log: a hook, a group, an actor, a purpose with all of its settings",
        "a temporary file is what Datasette makes without --internal",
    )
    return Grid(name, "a prompt and its text, while others are made", HEAD, tuple(lines), notes)


def _line(at_once: int, what: str, samples: dict[str, list[Burst]]) -> tuple[str | float, ...]:
    raw, ours = samples[RAW], samples[what]
    seconds = [second for each in ours for second in each.seconds]
    added_s = median(b.p50_s - a.p50_s for a, b in zip(raw, ours, strict=True)) / at_once
    return (
        *(at_once, what, percentile(seconds, 50) * 1e3, percentile(seconds, 99) * 1e3),
        *(
            round(median(each.calls_a_second for each in ours)),
            added_s * 1e6 if ours != raw else "",
        ),
    )


@asynccontextmanager
async def _sides() -> AsyncIterator[dict[str, Side]]:
    async with AsyncExitStack() as stack:
        raw = scripted("scripted", [0, "Hello"])
        stack.enter_context(known(40, raw))
        off = await stack.enter_async_context(running())
        busy = await stack.enter_async_context(running({"plugins": {"datasette-llm": EVERYTHING}}))
        temporary = await stack.enter_async_context(running(log=True))
        disk = await stack.enter_async_context(on_disk())
        yield {
            RAW: partial(burst, lambda: raw.prompt("x").text()),
            "log: false": await _prompting(off),
            "everything but the log": partial(with_everything, busy),
            "log in a temporary file": await _prompting(temporary, recorded=True),
            "log on disk": await _prompting(disk, recorded=True),
        }


async def _prompting(datasette: Datasette, recorded: bool = False) -> Side:
    model = await LLM(datasette).model("scripted")
    return partial(burst, lambda: prompted(model), recorded=datasette if recorded else None)


async def with_everything(datasette: Datasette, count: int, at_once: int) -> Burst:
    """Calls of which each has a hook, a group, an actor, and a purpose with all its settings."""
    with hooked(1):
        async with LLM(datasette).group("scripted", PURPOSE, ACTOR) as model:
            return await burst(lambda: prompted(model), count, at_once)


@row("burst-stall")
async def burst_stall(name: str, quick: bool) -> Row:
    count = 2_000 if quick else 10_000
    async with _sides() as sides:

        async def stall_s(side: Side) -> float:
            return await longest_gap(lambda: side(count, count))

        raw, ours = sides[RAW], sides["log in a temporary file"]
        pair = await measured(partial(stall_s, raw), partial(stall_s, ours), 1 if quick else 5)
    work = f"longest stall of {count:,} prompts at once, with the log"
    return Row(name, work, pair, "ratio", 2, "ms")


@row("burst-added")
async def burst_added(name: str, quick: bool) -> Row:
    """What is added to each of many calls at once, beside what is added to each of a few."""
    async with _sides() as sides:
        raw, ours = sides[RAW], sides["log in a temporary file"]

        async def added_s(at_once: int) -> float:
            count = max(at_once, 512)
            before, after = await raw(count, at_once), await ours(count, at_once)
            return (after.p50_s - before.p50_s) / at_once

        few, many = partial(added_s, AT_ONCE), partial(added_s, CONCURRENCIES[-1])
        pair = await measured(few, many, 3 if quick else 15)
    work = f"added to a call with the log, {CONCURRENCIES[-1]:,} at once"
    return Row(name, work, pair, "ratio", 1.5, "µs", raw_is=f"the same, {AT_ONCE} at once")


@row("everything-alone")
async def everything_alone(name: str, quick: bool) -> Row:
    async def p50_s(side: Side) -> float:
        return (await side(100, 1)).p50_s

    async with _sides() as sides:
        raw, ours = sides[RAW], sides["everything but the log"]
        rounds = 10 if quick else 100
        pair = await measured(partial(p50_s, raw), partial(p50_s, ours), rounds)
    work = "added to a lone call by everything but the log"
    return Row(name, work, pair, "added", 150, "µs")


@row("everything-at-once")
async def everything_at_once(name: str, quick: bool) -> Row:
    calls = AT_ONCE * (4 if quick else 32)

    async def seconds_a_call(side: Side) -> float:
        return 1 / (await side(calls, AT_ONCE)).calls_a_second

    async with _sides() as sides:
        raw, ours = sides[RAW], sides["everything but the log"]
        rounds = 3 if quick else 25
        pair = await measured(partial(seconds_a_call, raw), partial(seconds_a_call, ours), rounds)
    work = f"a call, {AT_ONCE} at once, everything but the log"
    line = Row(name, work, pair, "median", 1e3 / CALLS_A_SECOND, "ms")
    line.beside["calls a second, ours"] = 1e3 / line.ours
    line.beside["calls a second, llm alone"] = 1e3 / line.raw
    return line


@row("no-settings")
async def no_settings(name: str, quick: bool) -> Row:
    """A prompt without settings, beside the same with nothing that would repeat or limit it."""
    async with running() as datasette:
        with known(40, scripted()):
            model = await LLM(datasette).model("scripted")
            ours = timed(lambda: prompted(model), 100)

            async def raw() -> float:
                with patch.object(calls, "answer", _answer_once):
                    return await ours()

            pair = await measured(raw, ours, 10 if quick else 150)
    work = "a prompt without settings"
    raw_is = "the same with attempts and limits taken out of the code"
    return Row(name, work, pair, "ratio", 1.05, "ms", raw_is=raw_is)


async def _answer_once(call: Call, response: PromptResponse) -> None:
    await make_without_record(Attempt(call, response, call.model), None)

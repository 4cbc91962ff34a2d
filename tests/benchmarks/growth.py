"""What a call costs as a site grows: more models, more hooks, larger groups, a longer log."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median

from datasette.app import Datasette

from datasette_llm import LLM

from .bursts import burst, hooked
from .filling import fill
from .log_rows import on_disk, prompted
from .measuring import Grid, Sample, sampled, timed
from .rows import known, row, running, scripted

HEAD = ("what grows", "how many", "a call, µs", "against the fewest")
MODELS = (40, 400, 2_000)
HOOKS = (0, 1, 4, 16)
GROUPED = (1, 100, 1_000)
LOGGED = (0, 100_000, 1_000_000)
QUICK_LOGGED = (0, 1_000, 10_000)
AT_ONCE = 64

# The seconds of a call for each size.
Samples = Mapping[int, list[float]]


@row("growth")
async def growth(name: str, quick: bool) -> Grid:
    grown: dict[str, Callable[[bool], Awaitable[Samples]]] = {
        "models known: model(id), prompt and text": _by_models,
        "hooks: prompt and text": _by_hooks,
        "prompts in a group, entered and left": _by_grouped,
        f"calls in the log on disk, {AT_ONCE} at once": _by_logged,
    }
    lines: list[tuple[str | float, ...]] = []
    for what, measure in grown.items():
        samples = await measure(quick)
        fewest = next(iter(samples.values()))
        for size, seconds in samples.items():
            ratio = median(more / less for more, less in zip(seconds, fewest, strict=True))
            lines.append((what, size, median(seconds) * 1e6, f"{ratio:.2f} x"))
    return Grid(name, "a call, as a site grows", HEAD, tuple(lines))


async def _by_models(quick: bool) -> Samples:
    async with running() as datasette:

        async def at(count: int) -> float:
            async def call() -> None:
                await prompted(await LLM(datasette).model("scripted"))

            with known(count, scripted()):
                return await timed(call, 20 if quick else 200)()

        return await _sampled(MODELS, at, 2 if quick else 15)


async def _by_hooks(quick: bool) -> Samples:
    async with running() as datasette:
        with known(40, scripted()):
            model = await LLM(datasette).model("scripted")

            async def at(count: int) -> float:
                with hooked(count):
                    return await timed(lambda: prompted(model), 20 if quick else 200)()

            return await _sampled(HOOKS, at, 3 if quick else 50)


async def _by_grouped(quick: bool) -> Samples:
    async with running() as datasette:
        with known(40, scripted()):

            async def at(count: int) -> float:
                async def group() -> None:
                    async with LLM(datasette).group("scripted") as model:
                        for _ in range(count):
                            await prompted(model)

                # As many prompts for each size, so that all of them are measured as well.
                return await timed(group, max(GROUPED) // count)() / count

            return await _sampled(GROUPED, at, 2 if quick else 15)


async def _by_logged(quick: bool) -> Samples:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(known(40, scripted()))
        calls = {}
        for rows in QUICK_LOGGED if quick else LOGGED:
            internal = folder / f"{rows}.db"
            fill(internal, rows)
            datasette = await stack.enter_async_context(on_disk(internal=internal))
            model = await LLM(datasette).model("scripted")
            calls[rows] = partial(_logged, partial(prompted, model), datasette, quick)
        return await _sampled(tuple(calls), lambda rows: calls[rows](), 2 if quick else 15)


async def _logged(call: Callable[[], Awaitable[None]], datasette: Datasette, quick: bool) -> float:
    count = AT_ONCE * (4 if quick else 32)
    return 1 / (await burst(call, count, AT_ONCE, datasette)).calls_a_second


async def _sampled(
    sizes: tuple[int, ...], at: Callable[[int], Awaitable[float]], rounds: int
) -> Samples:
    sides: dict[int, Sample] = {size: partial(at, size) for size in sizes}
    return await sampled(sides, rounds)

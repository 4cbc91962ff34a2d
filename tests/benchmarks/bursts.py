"""Bursts of concurrent calls: the time of each, and of all."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from statistics import quantiles

from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_llm import PromptResult

from .log_rows import written
from .measuring import Work


@dataclass(frozen=True, slots=True)
class Burst:
    """Some calls, one right after the other in each of some places.

    Attributes:
        seconds: how long each took, from before the prompt to its whole text.
        elapsed_s: how long all of them took together.
    """

    seconds: tuple[float, ...]
    elapsed_s: float

    @property
    def p50_s(self) -> float:
        return percentile(self.seconds, 50)

    @property
    def calls_a_second(self) -> float:
        return len(self.seconds) / self.elapsed_s


def percentile(values: tuple[float, ...] | list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


async def burst(call: Work, count: int, at_once: int, recorded: Datasette | None = None) -> Burst:
    """Make some calls; the time of all of them includes that their last row is written."""
    numbers = iter(range(count))
    seconds: list[float] = []

    async def some() -> None:
        for _ in numbers:
            begun = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - begun)

    await call()  # not timed: what a first call alone costs is not the work
    gc.collect()
    begun = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(at_once)])
    if recorded is not None:
        await written(recorded)
    return Burst(tuple(seconds), time.perf_counter() - begun)


class Accountant:
    """A plugin of a kind that many sites have: it adds up what was used."""

    def __init__(self) -> None:
        self.tokens = 0

    @hookimpl
    def llm_prompt_context(
        self, datasette: Datasette, model_id: str, prompt: str | None, purpose: str | None
    ) -> Callable[[PromptResult], AbstractAsyncContextManager[None]]:
        return self._around

    @asynccontextmanager
    async def _around(self, result: PromptResult) -> AsyncIterator[None]:
        yield
        if result.response is not None:
            self.tokens += (await result.response.usage()).output or 0


@contextmanager
def hooked(hooks: int) -> Iterator[None]:
    """Register this many plugins with a context for every prompt."""
    plugins = [Accountant() for _ in range(hooks)]
    for plugin in plugins:
        pm.register(plugin)
    try:
        yield
    finally:
        for plugin in plugins:
            pm.unregister(plugin)

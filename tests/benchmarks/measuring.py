"""Two ways to do the same work, sampled in turn, and what follows from the samples."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeVar

Work = Callable[[], Awaitable[object]]
# Does the work and gives its own figure: seconds, or bytes.
Sample = Callable[[], Awaitable[float]]

_Side = TypeVar("_Side")
_T = TypeVar("_T")

Unit = Literal["s", "ms", "µs", "KB"]
Compared = Literal["ratio", "added", "median", "longest"]
PER_UNIT: dict[Unit, float] = {"s": 1, "ms": 1e-3, "µs": 1e-6, "KB": 1024}


@dataclass(frozen=True, slots=True)
class Pair:
    """The samples of some rounds; the n-th of either side were taken one after the other."""

    raw: tuple[float, ...]
    ours: tuple[float, ...]

    def figure(self, compared: Compared) -> float:
        rounds = zip(self.raw, self.ours, strict=True)
        match compared:
            case "ratio":
                return median(ours / raw for raw, ours in rounds)
            case "added":
                return median(ours - raw for raw, ours in rounds)
            case "median":
                return median(self.ours)
            case "longest":
                return max(self.ours)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        name: what `--only` takes.
        work: what is measured.
        pair: the samples, in seconds or bytes.
        compared: how the pair becomes the figure that the bar is for.
        bar: the most that the figure may be: in the unit, except for a ratio.
        unit: how to show the samples.
        raw_is: what the raw column is, where it is not the same work by llm alone.
        holds: whether the row's other promise (no write) was kept.
        beside: other figures worth seeing, by what they are.
    """

    name: str
    work: str
    pair: Pair
    compared: Compared
    bar: float
    unit: Unit
    raw_is: str = ""
    holds: bool = True
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def raw(self) -> float:
        return median(self.pair.raw) / PER_UNIT[self.unit]

    @property
    def ours(self) -> float:
        return median(self.pair.ours) / PER_UNIT[self.unit]

    @property
    def figure(self) -> float:
        figure = self.pair.figure(self.compared)
        return figure if self.compared == "ratio" else figure / PER_UNIT[self.unit]

    @property
    def within(self) -> bool:
        return self.holds and self.figure <= self.bar


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of its own, for figures that are to be seen side by side; it has no bar.

    Attributes:
        name: what `--only` takes.
        work: what is measured.
        head: what each column is, its unit included.
        lines: the figures.
        notes: what to know of them.
    """

    name: str
    work: str
    head: tuple[str, ...]
    lines: tuple[tuple[str | float, ...], ...]
    notes: tuple[str, ...] = ()


async def measured(raw: Sample, ours: Sample, rounds: int) -> Pair:
    """Sample both sides in turn: raw, ours, raw, ours."""
    pairs = [(await raw(), await ours()) for _ in range(rounds)]
    return Pair(tuple(raw for raw, _ in pairs), tuple(ours for _, ours in pairs))


async def sampled(
    sides: Mapping[_Side, Callable[[], Awaitable[_T]]], rounds: int
) -> dict[_Side, list[_T]]:
    """Sample several sides in turn, and give the samples of each."""
    samples: dict[_Side, list[_T]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, sample in sides.items():
            samples[side].append(await sample())
    return samples


def timed(work: Work, times: int = 1) -> Sample:
    """A sample that does the work some times, and gives the seconds for each."""

    async def sample() -> float:
        await work()  # not timed: what a first call alone costs is not the work
        gc.collect()
        begun = time.perf_counter()
        for _ in range(times):
            await work()
        return (time.perf_counter() - begun) / times

    return sample

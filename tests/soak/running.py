"""One soak: a Datasette with its call log on disk, a provider, and many concurrent calls."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasette.app import Datasette
from datasette.plugins import pm

from datasette_llm import LLM, instance
from datasette_llm.calls import response as responses
from datasette_llm.calls import retry
from datasette_llm.calls.call import RunningCalls
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import registered

from ..support.plugins import Accountant
from .account import Counts, Left, Line, lines
from .kinds import CONFIG, HOLDER, Kind, World, drawn
from .wire import Connections, Wire

ROOT = Path(__file__).parents[2]
# After this many calls memory no longer grows. A shorter soak has a shorter warm-up.
WARM_UP = 4_000


@dataclass
class Soak:
    """The calls so far, and their expected counts."""

    world: World
    accountant: Accountant
    expected: Counts = field(default_factory=Counts)
    made: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    _names: Iterator[int] = field(default_factory=lambda: iter(range(1, sys.maxsize)))

    async def run(self, kinds: Iterator[Kind], at_once: int) -> None:
        """Make calls concurrently, while one call holds the place of a limit."""
        held = await self.world.prompt("holder half", "held")
        holder = asyncio.create_task(held.text())
        await asyncio.gather(*[self._some(kinds) for _ in range(at_once)])
        holder.cancel()
        await asyncio.wait([holder])
        self._count(HOLDER)

    async def left(self) -> Left:
        """The resources in use, once no call is running."""
        datasette = self.world.models.datasette
        await Recorder.of(datasette).writer.flush()
        await self.world.connections.close()
        for _ in range(3):
            await asyncio.sleep(0.05)  # for what the event loop closes by itself
            gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        return Left(
            memory_kb=_memory_kb(),
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            descriptors=len(os.listdir("/proc/self/fd")),
            calls=len(instance.of(datasette, RunningCalls)),
            reservations=self.accountant.open,
        )

    async def seen(self, internal: Path) -> Counts:
        """The counts of the provider, the call log and the accountant."""
        requests = await self.world.connections.count()
        outcomes, unsent = await asyncio.to_thread(_recorded, internal)
        accountant = self.accountant
        return Counts(requests, outcomes, unsent, accountant.settled, accountant.released)

    async def _some(self, kinds: Iterator[Kind]) -> None:
        for kind in kinds:
            try:
                await kind.run(self.world, f"n{next(self._names)}")
            except Exception as error:
                self.surprises[f"{kind.name!r}: {type(error).__name__}: {error}"] += 1
            self._count(kind)

    def _count(self, kind: Kind) -> None:
        self.made[kind.name] += 1
        self.expected.add(kind.counts)


@dataclass(frozen=True)
class Outcome:
    """The result of a soak."""

    lines: list[Line]
    made: Counter[str]
    seconds: float
    requests: int


async def soak(folder: Path, calls: int, at_once: int, seed: int) -> Outcome:
    """Make the calls, and compare the counts of all sides.

    Args:
        folder: for the internal database.
        calls: the number of calls after the warm-up.
        at_once: the number of concurrent calls.
        seed: of the random choice of calls.
    """
    # Waits take a hundredth of their usual time.
    retry.WAIT_INITIAL_S, retry.WAIT_JITTER_S = 0.005, 0.0025
    responses.RESUME_S = 0.005
    logging.getLogger("datasette_llm").setLevel(logging.ERROR)  # it logs each retry
    internal = folder / "internal.db"
    async with provider() as port:
        connections = Connections(port)
        with registered(Wire("wire", connections), Wire("spare", connections)):
            datasette = Datasette(
                memory=True, internal=str(internal), config={"plugins": {"datasette-llm": CONFIG}}
            )
            await datasette.invoke_startup()
            accountant = Accountant()
            pm.register(accountant)
            done = Soak(World(LLM(datasette), connections), accountant)
            await done.run(drawn(min(calls, WARM_UP), seed - 1), at_once)
            before, requests = await done.left(), done.expected.requests
            began = time.monotonic()
            await done.run(drawn(calls, seed), at_once)
            seconds = time.monotonic() - began
            after = await done.left()
            found = lines(done.expected, await done.seen(internal), before, after, done.surprises)
            await connections.close()
            pm.unregister(accountant)
            await datasette.invoke_shutdown()
            datasette.close()
    return Outcome(found, done.made, seconds, done.expected.requests - requests)


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[int]:
    """The provider's process, and its port; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.provider"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


def _recorded(internal: Path) -> tuple[Counter[str], int]:
    with contextlib.closing(sqlite3.connect(internal)) as connection:
        outcomes = connection.execute(
            "select coalesce(outcome, 'unfinished'), count(*) from llm_calls group by 1"
        )
        unsent = connection.execute(
            "select count(*) from llm_calls where duration_ms = 0 and outcome = 'cancelled'"
        )
        return Counter(dict(outcomes)), unsent.fetchone()[0]


def _memory_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024

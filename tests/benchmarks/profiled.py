"""What a profile of a table costs the process that makes it.

A program of its own, so that nothing else has raised the most memory that it needed:

    python -m tests.benchmarks.profiled DATABASE TIME_LIMIT_MS

prints the seconds, the longest time between two steps of a task that sleeps for 1 ms, the bytes
by which the most memory grew, how many rows were read, how many columns are grouped by all rows,
and the longest time between two of those steps while nothing at all was done, which is the
machine's own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from datasette.app import Datasette

from datasette_llm.config.parse import parse_settings
from datasette_llm.consultant.profile.profile import make_profile

from .export import peak
from .stall import longest_gap


async def profiled(
    datasette: Datasette, path: Path, time_limit_ms: int, values: str = "top"
) -> dict[str, Any]:
    consultant = {"time_limit_ms": time_limit_ms, "values": values}
    settings = parse_settings({"consultant": consultant}).consultant
    return await make_profile(datasette, path.stem, "t", settings=settings)


async def main(path: Path, time_limit_ms: int) -> None:
    datasette = Datasette([str(path)])
    await datasette.invoke_startup()
    seconds, rows, exact = 0.0, 0, 0

    async def work() -> None:
        nonlocal seconds, rows, exact
        begun = time.perf_counter()
        profile = await profiled(datasette, path, time_limit_ms)
        seconds = time.perf_counter() - begun
        rows = min(column["rows"] for column in profile["columns"])
        exact = sum(column["grouped"]["exact"] for column in profile["columns"])

    before = peak()
    gap = await longest_gap(work)
    idle = await longest_gap(lambda: asyncio.sleep(seconds))
    print(seconds, gap, peak() - before, rows, exact, idle)
    await datasette.invoke_shutdown()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

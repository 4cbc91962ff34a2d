"""The peak memory of a process while it streams the call log as CSV.

A program of its own, so that nothing else has raised the most that it needed:

    python -m tests.benchmarks.export INTERNAL_DB

prints the most by the time that a tenth of the rows were sent and by the end, in bytes, then the
rows and the seconds. The answer is taken from Datasette as a server takes it, and discarded.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from pathlib import Path
from typing import Any

from datasette.app import Datasette

from .log_pages_rows import ACTOR, serving


class Reader:
    """A server's side of one request, for a browser that keeps nothing."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.seen = 0
        self.peak_early = 0
        self.status = 0

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.seen += message.get("body", b"").count(b"\n")
        if not self.peak_early and self.seen > self.rows / 10:
            self.peak_early = peak()


def peak() -> int:
    """The peak memory of the process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


async def export(datasette: Datasette) -> tuple[Reader, float]:
    rows = await datasette.get_internal_database().execute("select count(*) from llm_calls")
    reader = Reader(rows.single_value())
    cookie = f"ds_actor={datasette.client.actor_cookie(ACTOR)}"
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http"},
        **{"path": "/-/llm/log.csv", "raw_path": b"/-/llm/log.csv", "query_string": b""},
        "headers": [(b"host", b"localhost"), (b"cookie", cookie.encode())],
    }
    begun = time.perf_counter()
    await datasette.app()(scope, reader.receive, reader.send)
    return reader, time.perf_counter() - begun


async def main(internal: Path) -> None:
    async with serving(internal) as datasette:
        reader, seconds = await export(datasette)
    # One line is the names of the columns.
    if reader.status != 200 or reader.seen != reader.rows + 1:
        raise RuntimeError(f"HTTP {reader.status} with {reader.seen} lines")
    print(reader.peak_early, peak(), reader.rows, seconds)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

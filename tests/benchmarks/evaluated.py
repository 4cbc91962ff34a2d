"""The peak memory of a process while it runs an evaluation.

A program of its own, so that nothing else has raised the most that it needed:

    python -m tests.benchmarks.evaluated FEW MANY

runs an evaluation of MANY cases with a scripted model, with the call log and the internal database
on disk. It prints the most by the time that FEW were answered and by the end, in bytes, and the
seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator

from datasette.app import Datasette

from datasette_llm.evaluation import run, store
from datasette_llm.evaluation.cases import Case
from datasette_llm.evaluation.definition import Definition

from .export import peak
from .log_rows import on_disk
from .rows import known, scripted

TEXT = "of a harbour and its ships, " * 40


async def cases(count: int) -> AsyncIterator[Case]:
    for number in range(1, count + 1):
        yield Case(f"case {number} {TEXT}")


async def main(few: int, many: int) -> None:
    definition = Definition.of(
        {"candidates": ["scripted"], "cases": {"jsonl": {"text": ""}}, "concurrency": 64}
    )
    with known(40, scripted("scripted", [TEXT])):
        async with on_disk() as datasette:
            evaluation = await store.create(datasette, definition, cases(many), Counter(), None)
            begun = time.perf_counter()
            running = run.start(datasette, evaluation, None)
            early = 0
            ended = asyncio.ensure_future(running.ended())
            while not ended.done():
                await asyncio.wait([ended], timeout=0.02)
                if not early and running.answered >= few:
                    early = peak()
            seconds = time.perf_counter() - begun
            await check(datasette, evaluation)
    print(early, peak(), seconds)


async def check(datasette: Datasette, evaluation: store.Evaluation) -> None:
    counts = await store.answer_counts(datasette, [evaluation.id])
    if counts[evaluation.id] != evaluation.request_count:
        raise RuntimeError(f"{counts[evaluation.id]} answers")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))

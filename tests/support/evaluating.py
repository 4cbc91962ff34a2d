"""An evaluation in a process of its own that can be killed in its middle.

    python -m tests.support.evaluating INTERNAL.db CASES ANSWERED

makes and starts an evaluation whose model answers that many cases, and hangs on the others.
It prints the evaluation's id.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from datasette.app import Datasette

from datasette_llm.evaluation import run, store
from datasette_llm.evaluation.definition import Definition
from datasette_llm.evaluation.sources import read_cases
from datasette_llm.evaluation.store import Evaluation
from datasette_llm.testing import ScriptedModel, registered


async def made(
    datasette: Datasette, cases: int, *, candidates: Any = ("a",), **settings: Any
) -> Evaluation:
    """An evaluation of so many lines of JSON, which has not started."""
    lines = "\n".join(json.dumps({"prompt": f"case {n}"}) for n in range(1, cases + 1))
    raw = {"candidates": list(candidates), "cases": {"jsonl": {"text": lines}}} | settings
    definition, left_out = Definition.of(raw), Counter[str]()
    read = read_cases(datasette, definition, left_out)
    return await store.create(datasette, definition, read, left_out, {"id": "ana"})


async def main(internal: str, cases: int, answered: int) -> None:
    scripts: list[list[Any]] = [["yes"] for _ in range(answered)]
    with registered(ScriptedModel("a", *scripts, [asyncio.Event()])):
        datasette = Datasette(memory=True, internal=internal)
        await datasette.invoke_startup()
        evaluation = await made(datasette, cases, concurrency=3)
        print(evaluation.id, flush=True)
        await run.start(datasette, evaluation, None).ended()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

"""The rows about evaluations: the result page and the memory of 20,000 cases, and What if."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median

from datasette.app import Datasette

from datasette_llm.evaluation import store
from datasette_llm.evaluation.cases import Answer, Case, Result
from datasette_llm.evaluation.definition import Definition
from datasette_llm.evaluation.token_factors import MAX_ANSWERS, MAX_CASES

from .log_pages_rows import median_of, record, rounds, seconds_of, serving
from .measuring import Pair, Row, measured
from .rows import row

CANDIDATES = ("gpt-4o-mini", "claude-haiku-4-5")
BATCH = 500
# Of a prompt, and of an answer.
TEXT_CHARS = 1_000
FILLER = "of a harbour and its ships, " * TEXT_CHARS
GROUPED = (
    "select model_id, outcome, count(*), sum(input_tokens), sum(output_tokens), "
    "sum(cost_nanodollars) from llm_calls group by 1, 2"
)


@row("evaluation-result")
async def result(name: str, quick: bool) -> Row:
    many = 2_000 if quick else 20_000
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder) / "internal.db") as datasette:
            few, large = [await filled(datasette, count) for count in (1_000, many)]
            pages = [f"/-/llm/evaluations/{each.id}" for each in (few, large)]
            for page in pages:
                await seconds_of(datasette, page)  # not counted: it compiles templates
            pair = await measured(
                lambda: seconds_of(datasette, pages[0]),
                lambda: seconds_of(datasette, pages[1]),
                rounds(quick),
            )
            beside = {}
            for what, query in (
                ("the worse cases of a candidate, ms", "?show=worse&candidate=2"),
                ("its last page, ms", f"?page={many // 50}"),
                ("a case, ms", f"/{many}"),
            ):
                address = pages[1] + query
                seconds = await median_of(lambda page=address: seconds_of(datasette, page), quick)
                beside[what] = seconds * 1e3
    work = f"result of an evaluation of {many:,} recorded calls and two candidates"
    raw_is = "the result of 1,000 cases"
    return Row(name, work, pair, "median", 300, "ms", raw_is=raw_is, beside=beside)


@row("evaluation-memory")
async def memory(name: str, quick: bool) -> Row:
    few, many = (200, 2_000) if quick else (1_000, 20_000)
    command = (sys.executable, "-m", "tests.benchmarks.evaluated", str(few), str(many))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 600)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError("The program that runs an evaluation failed; see above")
    early, late, seconds = map(float, output.split())
    return Row(
        name,
        f"most memory of a process that runs an evaluation of {many:,} cases",
        Pair((early,), (late,)),
        "ratio",
        1.1,
        "KB",
        raw_is=f"the same when {few:,} of them have been answered",
        beside={"answers a second": many / seconds},
    )


@row("what-if")
async def what_if(name: str, quick: bool) -> Row:
    page = "/-/llm/what-if?since=2000-01-01"
    async with serving(record(quick)) as datasette:
        await _asked_the_same(datasette)
        for address in (page, "/-/llm/what-if"):
            await seconds_of(datasette, address)  # not counted: it compiles templates
        pair = await measured(
            lambda: _grouped(datasette), lambda: seconds_of(datasette, page), rounds(quick)
        )
        others = {
            "of the last 30 days, ms": "/-/llm/what-if",
            "of a tag, as far as the time goes, ms": f"{page}&tag=job:1",
        }
        beside = {
            what: 1e3 * median([await seconds_of(datasette, address) for _ in range(3)])
            for what, address in others.items()
        }
    work = f"what if, of {20_000 if quick else 1_000_000:,} calls, with factors from evaluations"
    raw_is = "one query that groups the calls by model"
    return Row(name, work, pair, "median", 500, "ms", raw_is=raw_is, beside=beside)


async def _asked_the_same(datasette: Datasette) -> None:
    """As many evaluations of calls of the log as factors are taken from, and one more."""
    if await store.evaluations(datasette, None, 1):
        return
    sql = "select id from llm_calls where outcome = 'ok' order by id desc limit ?"
    found = await datasette.get_internal_database().execute(sql, [2 * MAX_ANSWERS])
    call_ids = [call_id for (call_id,) in found.rows]
    for _ in range(MAX_ANSWERS // (3 * MAX_CASES) + 2):
        await filled(datasette, MAX_CASES, call_ids)


async def _grouped(datasette: Datasette) -> float:
    begun = time.perf_counter()
    await datasette.get_internal_database().execute_fn(
        lambda connection: connection.execute(GROUPED).fetchall()
    )
    return time.perf_counter() - begun


async def filled(
    datasette: Datasette, cases: int, call_ids: Sequence[str] = ()
) -> store.Evaluation:
    """A complete evaluation of so many recorded calls, each with three answers."""
    raw = {"candidates": CANDIDATES, "cases": {"calls": {"limit": cases}}}
    definition = Definition.of(raw)
    recorded = _cases(cases, call_ids)
    evaluation = await store.create(datasette, definition, recorded, Counter(), {"id": "ana"})
    for start in range(1, cases + 1, BATCH):
        results = [
            _result(definition, number, position, call_ids)
            for number in range(start, min(start + BATCH, cases + 1))
            for position in (1, 2)
        ]
        await store.add_answers(datasette, evaluation.id, results)
    return evaluation


async def _cases(count: int, call_ids: Sequence[str]) -> AsyncIterator[Case]:
    for number in range(1, count + 1):
        baseline = _answer(number, 0, call_ids)
        yield Case(_text(f"case {number}"), name=f"{number:026d}", baseline=baseline)


def _result(definition: Definition, number: int, position: int, call_ids: Sequence[str]) -> Result:
    failed = ("finished",) if number % (20 * position) == 0 else ()
    candidate = definition.asked[position - 1]
    answer = _answer(number, position, call_ids)
    return Result(Case("x"), number, candidate, position, answer, failed)


def _answer(number: int, position: int, call_ids: Sequence[str]) -> Answer:
    shown = number if number % 3 else number * position
    place = 3 * number + position
    return Answer(
        text=_text(f"answer {shown}"),
        latency_ms=300.0 + number % 97 + 100 * position,
        input_tokens=250,
        output_tokens=240 + position,
        cost_nanodollars=150_000 * (position + 1),
        price_source="genai-prices",
        call_id=call_ids[place % len(call_ids)] if call_ids else f"{place:026d}",
    )


def _text(start: str) -> str:
    return f"{start} {FILLER}"[:TEXT_CHARS]

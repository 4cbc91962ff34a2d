"""Runs of stored evaluations: stop, resume, crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.evaluation import results, run, store
from datasette_llm.evaluation.definition import EvaluationError
from datasette_llm.evaluation.store import Evaluation
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.evaluating import made
from ..support.waiting import soon, until

Make = Callable[..., Datasette]
ROOT = Path(__file__).parents[2]


async def answers(datasette: Datasette) -> list[tuple[int, int, str]]:
    sql = "select case_number, candidate, text from llm_evaluation_answers order by 1, 2"
    return [tuple(row) for row in (await datasette.get_internal_database().execute(sql)).rows]


async def test_v3_stop_and_resume_ask_nothing_twice(
    make_datasette: Make, register_models: Any
) -> None:
    """What has come is stored, what runs is stopped, and the rest is asked later."""
    model = ScriptedModel("a", ["one"], ["two"], [asyncio.Event()])
    register_models(model)
    datasette = make_datasette()
    await datasette.invoke_startup()
    evaluation = await made(datasette, 250, concurrency=3)
    assert not model.calls

    running = run.start(datasette, evaluation, {"id": "ana"})
    with pytest.raises(EvaluationError, match="running already"):
        run.start(datasette, evaluation, None)
    await soon(model.received(5))
    assert await run.stop(datasette, evaluation.id)

    assert (running.answered, running.failure) == (2, None)
    assert len(await answers(datasette)) == 2
    outcomes = [call.outcome for call in model.calls]
    assert outcomes.count("complete") == 2
    assert set(outcomes) == {"complete", "cancelled"}
    assert not await run.stop(datasette, evaluation.id)

    asked = {call.prompt for call in model.calls if call.outcome == "complete"}
    model.calls.clear()
    model.scripts = (["later"],)
    await soon(run.start(datasette, evaluation, {"id": "ana"}).ended())
    assert {call.prompt for call in model.calls} == {f"case {n}" for n in range(1, 251)} - asked
    assert [number for number, *_ in await answers(datasette)] == list(range(1, 251))
    found = await results.summary(datasette, evaluation)
    assert (found.answered, found.candidates[0].passed) == (250, 250)
    rows = await flushed_rows(datasette)
    assert {row["tags"] for row in rows} == {f'{{"evaluation": "{evaluation.id}"}}'}
    assert {row["actor_id"] for row in rows} == {"ana"}


async def test_v3_restart_keeps_what_has_come(
    tmp_path: Path, make_datasette: Make, register_models: Any
) -> None:
    """The shutdown of Datasette is no failure of the cases that were being asked."""
    model = ScriptedModel("a", ["one"], [asyncio.Event()])
    register_models(model)
    internal = tmp_path / "internal.db"
    datasette = make_datasette(internal=str(internal))
    await datasette.invoke_startup()
    evaluation = await made(datasette, 5, concurrency=2)
    run.start(datasette, evaluation, None)
    await soon(model.received(3))
    await soon(datasette.invoke_shutdown())
    assert model.calls[-1].outcome == "cancelled"
    with contextlib.closing(sqlite3.connect(internal)) as connection:
        found = connection.execute("select text from llm_evaluation_answers").fetchall()
    assert found == [("one",)]


async def test_v3_one_process_at_a_time(
    tmp_path: Path, make_datasette: Make, register_models: Any
) -> None:
    """A resume elsewhere asks nothing, and says why; it can when the first one has ended."""
    model = ScriptedModel("a", [asyncio.Event()], ["yes"])
    register_models(model)
    internal = str(tmp_path / "internal.db")
    first, second = make_datasette(internal=internal), make_datasette(internal=internal)
    for each in (first, second):
        await each.invoke_startup()
    evaluation = await made(first, 2, concurrency=1)
    running = run.start(first, evaluation, None)
    await soon(model.received())
    for _ in range(2):  # the refusal takes no lock away
        elsewhere = run.start(second, evaluation, None)
        await soon(elsewhere.ended())
        assert "another process" in (elsewhere.failure or "")
    assert len(model.calls) == 1
    await soon(running.stop())
    await soon(run.start(second, evaluation, None).ended())
    assert [text for *_, text in await answers(second)] == ["yes", "yes"]
    assert not [name for name in os.listdir(tmp_path) if evaluation.id in name]
    for each in (first, second):
        await each.invoke_shutdown()


async def test_v3_killed_process_loses_no_answer(
    tmp_path: Path, make_datasette: Make, register_models: Any
) -> None:
    """After SIGKILL what was received is stored, and a resume gives every case one answer."""
    internal = tmp_path / "internal.db"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.evaluating", str(internal), "30", "12"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        evaluation_id = (await soon(process.stdout.readline())).decode().strip()

        def stored() -> bool:
            with contextlib.closing(sqlite3.connect(internal)) as connection:
                sql = "select count(*) from llm_evaluation_answers"
                return bool(connection.execute(sql).fetchone()[0] == 12)

        await until(stored)  # with no further answer to come
    finally:
        process.kill()
        await process.wait()

    model = ScriptedModel("a", ["later"])
    register_models(model)
    datasette = make_datasette(internal=str(internal))
    await datasette.invoke_startup()
    evaluation = await store.evaluation(datasette, evaluation_id)
    assert evaluation is not None
    await soon(run.start(datasette, evaluation, None).ended())
    found = await answers(datasette)
    assert [(number, candidate) for number, candidate, _ in found] == [
        (number, 1) for number in range(1, 31)
    ]
    assert [text for *_, text in found].count("yes") == 12
    assert len(model.calls) == 18
    await datasette.invoke_shutdown()


async def test_v3_failure_of_the_database_ends_the_run(
    make_datasette: Make, register_models: Any
) -> None:
    """A removed evaluation takes no more answers; the run ends with the reason."""
    gate = asyncio.Event()
    model = ScriptedModel("a", [gate, "late"])
    register_models(model)
    datasette = make_datasette()
    await datasette.invoke_startup()
    evaluation: Evaluation = await made(datasette, 3)
    running = run.start(datasette, evaluation, None)
    await soon(model.received(3))
    await store.remove(datasette, evaluation.id, None)
    gate.set()
    await soon(running.ended())
    assert "the evaluation was removed" in (running.failure or "")
    assert await answers(datasette) == []

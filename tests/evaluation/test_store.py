"""Stored evaluations: append-only, removals on record, retention."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database

from datasette_llm.evaluation import run, schema, store
from datasette_llm.evaluation.cases import Answer, Candidate, Case, Result
from datasette_llm.evaluation.definition import EvaluationError
from datasette_llm.log import evaluation_removal, retention
from datasette_llm.log.queries import id_at
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.evaluating import made
from ..support.waiting import BOUND_S, soon

Make = Callable[..., Datasette]


@pytest.fixture
async def datasette(make_datasette: Make, register_models: Any) -> Datasette:
    register_models(ScriptedModel("a", ["yes"]))
    started = make_datasette()
    await started.invoke_startup()
    return started


async def complete(datasette: Datasette) -> store.Evaluation:
    evaluation = await made(datasette, 3)
    await soon(run.start(datasette, evaluation, None).ended())
    verdict = {"case_number": 1, "candidate": 1, "verdict": "same", "actor_id": "ana"}
    await store.add_verdict(datasette, evaluation.id, **verdict)
    await store.add_judging(datasette, evaluation.id, "arbiter", "ana", "The longer one")
    return evaluation


async def counts(datasette: Datasette) -> list[int]:
    database = datasette.get_internal_database()
    sizes = [await database.execute(f"select count(*) from {table}") for table in schema.TABLES]
    return [size.single_value() for size in sizes]


@pytest.mark.parametrize(
    "sql",
    [
        *(f"delete from {table}" for table in schema.TABLES[:5]),
        "update llm_evaluations set name = 'x'",
        "update llm_evaluation_cases set name = 'x'",
        "update llm_evaluation_answers set text = 'x'",
        "update llm_evaluation_verdicts set verdict = 'better'",
        "update llm_evaluation_judgings set rubric = 'x'",
        *(f"insert or replace into {table} select * from {table}" for table in schema.TABLES[:5]),
    ],
)
async def test_v5_tables_are_append_only(datasette: Datasette, sql: str) -> None:
    await complete(datasette)
    before = await counts(datasette)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await datasette.get_internal_database().execute_write(sql)
    assert await counts(datasette) == before == [1, 3, 3, 1, 1, 0]


async def test_v5_removal_is_on_record(datasette: Datasette) -> None:
    """It takes all that belongs to the evaluation, and nothing else."""
    first, second = await complete(datasette), await complete(datasette)
    await store.remove(datasette, first.id, {"id": "ben"})
    assert await store.evaluation(datasette, first.id) is None
    assert await counts(datasette) == [1, 6, 6, 2, 2, 1]
    await evaluation_removal.sweep(datasette)
    assert await counts(datasette) == [1, 3, 3, 1, 1, 1]
    sql = "select evaluation_id, actor_id, keep_days from llm_evaluation_removals"
    found = await datasette.get_internal_database().execute(sql)
    assert tuple(found.rows[0]) == (first.id, "ben", None)
    assert await store.evaluation(datasette, second.id) == second
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await datasette.get_internal_database().execute_write("delete from llm_evaluation_removals")


async def test_v5_retention_removes_old_ones(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is left of one whose making was interrupted."""
    monkeypatch.setattr("datasette_llm.evaluation.store.new_id", lambda: id_at(1_000))
    await complete(datasette)
    monkeypatch.setattr("datasette_llm.evaluation.store.new_id", lambda: id_at(2_000))

    async def interrupted() -> Any:
        for number in range(store.BATCH_CASES):
            yield Case(f"case {number}")
        raise OSError("the file is gone")

    definition = (await store.evaluations(datasette, None, 1))[0][0].definition
    with pytest.raises(OSError, match="gone"):
        await store.create(datasette, definition, interrupted(), {}, None)
    monkeypatch.undo()
    new = await complete(datasette)
    assert await counts(datasette) == [2, 6 + store.BATCH_CASES, 6, 2, 2, 0]

    await retention.remove(datasette, retention.first_kept_id(30), 30)
    assert await counts(datasette) == [1, 6 + store.BATCH_CASES, 6, 2, 2, 2]
    await evaluation_removal.sweep(datasette)

    assert await counts(datasette) == [1, 3, 3, 1, 1, 2]
    assert [each.id for each, _ in await store.evaluations(datasette, None, 9)] == [new.id]
    sql = "select actor_id, keep_days from llm_evaluation_removals"
    found = await datasette.get_internal_database().execute(sql)
    assert set(map(tuple, found.rows)) == {(None, 30)}


async def test_v5_removal_holds_the_writer_briefly(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row a transaction where that takes long, so that a call is recorded between two."""
    monkeypatch.setattr(evaluation_removal, "SLICE_S", 0)
    monkeypatch.setattr(evaluation_removal, "PAUSE_S", 0)
    removed = await complete(datasette)
    await store.remove(datasette, removed.id, None)
    database = datasette.get_internal_database()
    seen: list[list[int]] = []
    write = database.execute_write_fn

    async def watched(work: Any) -> Any:
        more = await write(work)
        seen.append(await counts(datasette))
        return more

    monkeypatch.setattr(database, "execute_write_fn", watched)
    await evaluation_removal.sweep(datasette)
    assert [row[1:5] for row in seen] == [
        *([3, 3, 0, 1], [3, 3, 0, 0], [3, 2, 0, 0], [3, 1, 0, 0], [3, 0, 0, 0]),
        *([2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    ]


async def swept(datasette: Datasette, *, removals: int) -> None:
    """Wait until nothing is left but the record of the removals."""
    async with asyncio.timeout(BOUND_S):
        while await counts(datasette) != [0, 0, 0, 0, 0, removals]:  # noqa: ASYNC110  # no event is set
            await asyncio.sleep(0.01)


async def test_v5_removal_goes_on_after_a_restart(
    make_datasette: Make, register_models: Any, tmp_path: Path
) -> None:
    """What a process has left that ended meanwhile, the next one removes, and then its own."""
    register_models(ScriptedModel("a", ["yes"]))
    internal = str(tmp_path / "internal.db")
    first = make_datasette(internal=internal)
    await first.invoke_startup()
    await store.remove(first, (await complete(first)).id, None)
    assert (await counts(first))[1:] == [3, 3, 1, 1, 1]
    first.close()
    second = make_datasette(internal=internal)
    await second.start_background_tasks()
    await swept(second, removals=1)
    await store.remove(second, (await complete(second)).id, None)
    await swept(second, removals=2)
    await second.invoke_shutdown()


async def test_v5_older_tables_are_brought_up_to_date(
    make_datasette: Make, register_models: Any, tmp_path: Path
) -> None:
    """An evaluation of the first version is shown, and its verdicts have no rubric."""
    register_models(ScriptedModel("a", ["yes"]))
    internal = tmp_path / "internal.db"
    first = make_datasette(internal=str(internal))
    await first.invoke_startup()
    definition = json.dumps({"candidates": ["a"], "cases": {"jsonl": {}}})
    values = ("x", "now", "Old", definition, "{}", 1, 1)
    with contextlib.closing(sqlite3.connect(internal)) as connection, connection:
        schema.migrations.apply(Database(connection), stop_before="m002_judgings")
        connection.execute(
            "insert into llm_evaluations (id, created_at, name, definition, left_out, case_count, "
            "candidate_count) values (?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        connection.execute(
            """insert into llm_evaluation_cases values ('x', 1, '', '{"prompt": ""}')"""
        )
        connection.execute(
            "insert into llm_evaluation_verdicts "
            "(evaluation_id, case_number, candidate, judged_at, "
            "judge, verdict) values ('x', 1, 1, 'now', 'arbiter', 'same')"
        )
    second = make_datasette(internal=str(internal))
    await second.invoke_startup()
    (case,) = await store.answered_cases(second, "x", [1])
    assert (case.verdicts[0].judge, case.verdicts[0].rubric) == ("arbiter", None)
    await store.remove(second, "x", None)
    await evaluation_removal.sweep(second)
    assert await counts(second) == [0, 0, 0, 0, 0, 1]


async def test_evaluation_without_cases_is_refused(datasette: Datasette) -> None:
    with pytest.raises(EvaluationError, match="There are no cases"):
        await made(datasette, 0)
    assert (await counts(datasette))[:2] == [0, 0]


async def test_hostile_text_is_stored(datasette: Datasette) -> None:
    """Lone surrogates, control characters and NUL."""
    evaluation = await made(datasette, 1)
    text = "\ud800 \x00 \u202e <b>"
    result = Result(Case("x"), 1, Candidate("a"), 1, Answer(text=text, error_message=text))
    await store.add_answers(datasette, evaluation.id, [result])
    (found,) = await store.answered_cases(datasette, evaluation.id, [1])
    assert found.answers[1][0].text == text.replace("\ud800", "\ufffd")


def answer(number: int, text: str = "yes") -> Result:
    return Result(Case("x"), number, Candidate("a"), 1, Answer(text=text))


async def texts(datasette: Datasette) -> list[str]:
    sql = "select text from llm_evaluation_answers order by case_number"
    return [text for (text,) in await datasette.get_internal_database().execute(sql)]


async def test_answers_share_the_logs_transactions(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction waits for the disk; yet they are stored when the call returns."""
    evaluation = await made(datasette, 2)
    writer = Recorder.of(datasette).writer
    await writer.flush()
    database, transactions = datasette.get_internal_database(), []

    async def counted(work: Any) -> Any:
        transactions.append(work)
        return await write(work)

    async def called() -> None:
        await asyncio.sleep(0)
        await writer.commit(lambda connection: None)

    write = database.execute_write_fn
    monkeypatch.setattr(database, "execute_write_fn", counted)
    await asyncio.gather(
        store.add_answers(datasette, evaluation.id, [answer(1)]),
        store.add_answers(datasette, evaluation.id, [answer(2)]),
        called(),
    )
    assert len(transactions) == 1
    assert await texts(datasette) == ["yes", "yes"]


@pytest.mark.parametrize("failing", [True, False])
async def test_answers_do_not_need_the_log(make_datasette: Make, failing: bool) -> None:
    """It may be off, or not take rows now; what it takes later changes nothing."""
    datasette = make_datasette({"log": failing})
    await datasette.invoke_startup()
    evaluation = await made(datasette, 1)
    writer = Recorder.of(datasette).writer
    if failing:
        writer.failure = "disk full"
    await store.add_answers(datasette, evaluation.id, [answer(1)])
    assert await texts(datasette) == ["yes"]
    writer.failure = None
    await writer.flush()
    assert await texts(datasette) == ["yes"]
    assert writer.used == failing


async def test_an_answer_that_is_there_stays(datasette: Datasette) -> None:
    evaluation = await made(datasette, 2)
    await store.add_answers(datasette, evaluation.id, [answer(1)])
    await store.add_answers(datasette, evaluation.id, [answer(1, "other"), answer(2, "no")])
    assert await texts(datasette) == ["yes", "no"]


async def test_no_verdict_about_what_is_removed(datasette: Datasette) -> None:
    """A judge of another process ends, and no note of it is left."""
    evaluation = await complete(datasette)
    await store.remove(datasette, evaluation.id, None)
    verdict = {"case_number": 1, "candidate": 1, "verdict": "same", "note": "left"}
    with pytest.raises(EvaluationError, match="was removed"):
        await store.add_verdict(datasette, evaluation.id, **verdict)
    assert (await counts(datasette))[3] == 1  # as before

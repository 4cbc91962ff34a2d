"""Evaluations whose answers are those of calls with known numbers of tokens."""

from __future__ import annotations

import datetime
from typing import Any

from datasette.app import Datasette

from datasette_llm.evaluation import store
from datasette_llm.evaluation.cases import Answer, Candidate, Case, Result
from datasette_llm.events import Outcome

from .call_log import add, call_row
from .evaluating import made

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


async def answered(datasette: Datasette, cases: int, *calls: dict[str, Any]) -> None:
    """An evaluation whose every case these calls have answered, one a candidate."""
    candidates = [f"model-{n}" for n, _ in enumerate(calls)]
    evaluation = await made(datasette, cases, candidates=candidates)
    results = []
    for number in range(1, cases + 1):
        rows = [call_row(LONG_AGO, **call) for call in calls]
        await datasette.get_internal_database().execute_write_fn(lambda c, rows=rows: add(c, *rows))
        results += [
            Result(Case("x"), number, Candidate("x"), position, answer)
            for position, row in enumerate(rows, 1)
            for answer in [Answer(Outcome(row["outcome"]), call_id=row["id"])]
        ]
    await store.add_answers(datasette, evaluation.id, results)


def counted(model_id: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"model_id": model_id, "input_tokens": tokens, "output_tokens": 2 * tokens} | more

"""The stored evaluations: append-only, but for the removal of a whole one, which is on record.

An evaluation's row is written after its cases, so that what a crash leaves of one that was being
made has no row. Its answers are written as they come; an evaluation without some of them was
stopped, and can go on. The recorded answer of a case is that of candidate 0.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.utils.sqlite import sqlite3

from .. import instance
from ..events import FinishReason, Outcome
from ..log.evaluation_removal import Sweeper
from ..log.recorder import Recorder
from ..log.rows import OVERHEAD_BYTES
from ..sanitize import new_id, now, storable
from .cases import BASELINE, Answer, Case, Result
from .checks import Check, failed_checks, normalised
from .definition import Definition, EvaluationError
from .schema import has_tables, migrate

if TYPE_CHECKING:
    from datasette.app import Datasette

_T = TypeVar("_T")

# In one transaction.
BATCH_CASES = 200
# Whose length stands for that of all.
SAMPLE_CASES = 100

_ANSWER_COLUMNS = (
    "evaluation_id",
    "case_number",
    "candidate",
    "answered_at",
    "outcome",
    "text",
    "digest",
    "chars",
    "finish_reason",
    "error_type",
    "error_message",
    "latency_ms",
    "input_tokens",
    "output_tokens",
    "cost_nanodollars",
    "price_source",
    "call_id",
    "failed_checks",
    "cached_from",
)
# One that is there already stays as it is, so that a write can be repeated.
_INSERT_ANSWER = (
    f"insert into llm_evaluation_answers ({', '.join(_ANSWER_COLUMNS)}) "
    f"select {', '.join(f':{name}' for name in _ANSWER_COLUMNS)} "
    "where not exists (select 1 from llm_evaluation_answers where evaluation_id = :evaluation_id "
    "and case_number = :case_number and candidate = :candidate)"
)
_ANSWER_FIELDS = tuple(Answer.__slots__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A stored evaluation.

    Attributes:
        id: a ULID in lower case.
        created_at: when it was made, in UTC.
        name: what it is called.
        purpose: what its requests are for, or None.
        actor_id: who made it, or None.
        definition: what it is made of.
        left_out: how many cases were left out, by reason.
        case_count: how many cases it has.
    """

    id: str
    created_at: str
    name: str
    purpose: str | None
    actor_id: str | None
    definition: Definition
    left_out: Mapping[str, int]
    case_count: int

    @property
    def request_count(self) -> int:
        """How many answers it has when it is complete."""
        return self.case_count * len(self.definition.candidates)

    @property
    def reference(self) -> int:
        """The number of what candidates are compared with: the baseline, or the first of them."""
        return BASELINE if self.definition.cases.calls is not None else 1

    @property
    def compared(self) -> list[int]:
        """The numbers of the candidates that are compared with it."""
        return [n for n in range(1, len(self.definition.candidates) + 1) if n != self.reference]

    def label(self, position: int) -> str:
        """The name of a candidate by its number."""
        return "recorded" if position == BASELINE else self.definition.asked[position - 1].label


# Writing


async def create(
    datasette: Datasette,
    definition: Definition,
    cases: AsyncIterable[Case],
    left_out: Mapping[str, int],
    actor: Mapping[str, Any] | None,
    *,
    evaluation_id: str | None = None,
) -> Evaluation:
    """Store an evaluation with its cases.

    Args:
        datasette: the Datasette instance.
        definition: what it is made of.
        cases: its cases, read to their end.
        left_out: how many cases were left out, by reason, once they are read.
        actor: who makes it.
        evaluation_id: its id, a new one if None.

    Raises:
        EvaluationError: there are no cases.
        sqlite3.IntegrityError: there is one with the id.
        sqlite3.Error: it cannot be written.
        NewerDatabaseError: a newer version of datasette-llm has migrated the tables.
    """
    await _write(datasette, migrate)
    evaluation_id = evaluation_id or new_id()
    count, batch = 0, list[Case]()
    async for case in cases:
        batch.append(case)
        if len(batch) == BATCH_CASES:
            await _write(datasette, partial(_add_cases, definition, evaluation_id, count, batch))
            count, batch = count + len(batch), []
    if not count and not batch:
        raise EvaluationError(no_cases(left_out))
    row = {
        "id": evaluation_id,
        "created_at": now(),
        "name": definition.label,
        "purpose": definition.purpose,
        "actor_id": (actor or {}).get("id"),
        "definition": _json(definition.stored()),
        "left_out": _json(dict(left_out)),
        "case_count": count + len(batch),
        "candidate_count": len(definition.candidates),
    }

    def last(connection: sqlite3.Connection) -> None:
        _add_cases(definition, evaluation_id, count, batch, connection)
        places = ", ".join(f":{name}" for name in row)
        sql = f"insert into llm_evaluations ({', '.join(row)}) values ({places})"
        connection.execute(sql, storable(row))

    await _write(datasette, last)
    return _evaluation(row)


def no_cases(left_out: Mapping[str, int]) -> str:
    """Why an evaluation without cases cannot be made."""
    reasons = ", ".join(f"{count:,} because {reason}" for reason, count in left_out.items())
    return f"There are no cases; left out: {reasons}" if reasons else "There are no cases"


async def add_answers(datasette: Datasette, evaluation_id: str, results: Sequence[Result]) -> None:
    """Store answers, also if the caller is cancelled meanwhile.

    Where there is a call log, in a transaction with its rows, since each one waits for the disk.

    Raises:
        sqlite3.Error: they cannot be written, or the evaluation was removed.
    """
    refused: list[sqlite3.IntegrityError] = []

    def insert(connection: sqlite3.Connection) -> None:
        rows = [
            _answer_row(evaluation_id, each.number, each.position, each.answer, each.failed_checks)
            for each in results
        ]
        try:
            connection.executemany(_INSERT_ANSWER, rows)
        except sqlite3.IntegrityError as error:  # of the evaluation, so of each row
            refused.append(error)

    writer = Recorder.of(datasette).writer
    weight = sum(OVERHEAD_BYTES + sys.getsizeof(each.answer.text) for each in results)
    if not (writer.used and await _finished(writer.commit(insert, weight))):
        await _write(datasette, insert)
    if refused:
        raise refused[0]


async def add_verdict(datasette: Datasette, evaluation_id: str, **columns: Any) -> None:
    """Store a verdict of a person or of the judge.

    Args:
        datasette: the Datasette instance.
        evaluation_id: the evaluation.
        **columns: `case_number`, `candidate`, `verdict`; `actor_id` of a person, `judge` with the
            model of the judge and its `judging_id`; `note`.

    Raises:
        EvaluationError: the evaluation was removed.
        sqlite3.Error: it cannot be written.
    """
    row = columns | {"evaluation_id": evaluation_id, "judged_at": now()}
    await _add(datasette, "llm_evaluation_verdicts", row)


async def add_judging(
    datasette: Datasette, evaluation_id: str, judge: str, actor_id: str | None, rubric: str
) -> int:
    """Store by which rubric a judge compares.

    Args:
        datasette: the Datasette instance.
        evaluation_id: the evaluation.
        judge: the model of the judge.
        actor_id: who asked it, or None.
        rubric: what makes an answer better.

    Returns:
        The id, for the verdicts of the judge.

    Raises:
        EvaluationError: the evaluation was removed.
        sqlite3.Error: it cannot be written.
    """
    row: dict[str, Any] = {"evaluation_id": evaluation_id, "started_at": now(), "judge": judge}
    row |= {"actor_id": actor_id, "rubric": rubric}
    return await _add(datasette, "llm_evaluation_judgings", row)


async def _add(datasette: Datasette, table: str, row: Mapping[str, Any]) -> int:
    """Store a row of an evaluation, unless that was removed; its id."""
    places = ", ".join(f":{name}" for name in row)
    sql = f"""
        insert into {table} ({", ".join(row)}) select {places}
        where exists (select 1 from llm_evaluations where id = :evaluation_id)
    """

    def work(connection: sqlite3.Connection) -> int | None:
        added = connection.execute(sql, storable(dict(row)))
        return added.lastrowid if added.rowcount else None

    row_id: int | None = await _write(datasette, work)
    if row_id is None:
        raise EvaluationError("The evaluation was removed")
    return row_id


async def remove(datasette: Datasette, evaluation_id: str, actor: Mapping[str, Any] | None) -> None:
    """Remove an evaluation, which is on record; its cases and answers go in the background."""
    row = {"id": evaluation_id, "at": now(), "actor_id": (actor or {}).get("id")}

    def work(connection: sqlite3.Connection) -> None:
        # Deleted text would stay readable in the file.
        connection.execute("pragma secure_delete = on")
        connection.execute(
            "insert into llm_evaluation_removals (removed_at, evaluation_id, actor_id) "
            "values (:at, :id, :actor_id)",
            storable(row),
        )

    await _write(datasette, work)
    instance.of(datasette, Sweeper).wake()


async def _write(datasette: Datasette, work: Callable[[sqlite3.Connection], object]) -> Any:
    """What a function writes, also if the caller is cancelled meanwhile."""
    return await _finished(datasette.get_internal_database().execute_write_fn(work))


async def _finished(writing: Coroutine[Any, Any, _T]) -> _T:
    """What a write gives, which a cancellation waits for."""
    task = asyncio.create_task(writing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _add_cases(
    definition: Definition,
    evaluation_id: str,
    before: int,
    cases: Sequence[Case],
    connection: sqlite3.Connection,
) -> None:
    numbered = list(enumerate(cases, before + 1))
    connection.executemany(
        "insert into llm_evaluation_cases (evaluation_id, number, name, content) "
        "values (:evaluation_id, :number, :name, :content)",
        [
            storable(
                {
                    "evaluation_id": evaluation_id,
                    "number": number,
                    "name": case.name,
                    "content": _json(_content(case)),
                }
            )
            for number, case in numbered
        ],
    )
    # The baseline is the same as itself, and its schema was that of the call.
    checks = [each for each in definition.check_list if each != Check("schema")]
    connection.executemany(
        _INSERT_ANSWER,
        [
            _answer_row(
                evaluation_id,
                number,
                BASELINE,
                case.baseline,
                failed_checks(checks, case, case.baseline),
            )
            for number, case in numbered
            if case.baseline is not None
        ],
    )


def _answer_row(
    evaluation_id: str, number: int, position: int, answer: Answer, failed: Sequence[str]
) -> dict[str, Any]:
    text = normalised(answer.text)
    return storable(
        {name: getattr(answer, name) for name in _ANSWER_FIELDS}
        | {
            "outcome": str(answer.outcome),
            "finish_reason": answer.finish_reason and str(answer.finish_reason),
            "evaluation_id": evaluation_id,
            "case_number": number,
            "candidate": position,
            "answered_at": now(),
            "digest": _digest(text),
            "chars": len(text),
            "failed_checks": _json(list(failed)),
        }
    )


def _digest(text: str) -> int:
    raw = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(raw, "big", signed=True)


def _content(case: Case) -> dict[str, Any]:
    content = {
        "prompt": case.prompt,
        "system": case.system,
        "history": list(map(dict, case.history)),
        "options": dict(case.options),
        "schema": None if case.schema is None else dict(case.schema),
        "expected": case.expected,
    }
    return {name: value for name, value in content.items() if value not in (None, [], {})}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# Reading


async def read(datasette: Datasette, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
    """What a function reads from the tables.

    Args:
        datasette: the Datasette instance.
        work: takes a connection; called in a thread.
        otherwise: what there is before the first evaluation.
    """

    def if_there(connection: sqlite3.Connection) -> _T:
        return work(connection) if has_tables(connection) else otherwise

    found: _T = await datasette.get_internal_database().execute_fn(if_there)
    return found


async def evaluation(datasette: Datasette, evaluation_id: str) -> Evaluation | None:
    """An evaluation, or None if there is none with this id."""
    found = await _evaluations(datasette, "where id = :id", {"id": evaluation_id})
    return found[0] if found else None


async def was_made(datasette: Datasette, evaluation_id: str) -> bool:
    """Whether there is an evaluation with this id, or was one."""
    sql = """
        select 1 from llm_evaluations where id = :id
        union all select 1 from llm_evaluation_removals where evaluation_id = :id
    """
    return await read(
        datasette, lambda c: c.execute(sql, {"id": evaluation_id}).fetchone() is not None, False
    )


async def evaluations(
    datasette: Datasette, before: str | None, limit: int
) -> list[tuple[Evaluation, int]]:
    """A page of the evaluations, newest first, each with the number of its answers.

    Args:
        datasette: the Datasette instance.
        before: the id of the last one of the page before; None for the first page.
        limit: the maximum number.
    """
    where = "where id < coalesce(:before, '~') order by id desc limit :limit"
    found = await _evaluations(datasette, where, {"before": before, "limit": limit})
    counts = await answer_counts(datasette, [each.id for each in found])
    return [(each, counts.get(each.id, 0)) for each in found]


async def answer_counts(datasette: Datasette, ids: Sequence[str]) -> dict[str, int]:
    """How many answers of candidates evaluations have, by id."""
    sql = """
        select evaluation_id, count(*) from llm_evaluation_answers
        where evaluation_id in (select value from json_each(?)) and candidate > 0
        group by evaluation_id
    """
    return await read(datasette, lambda c: dict(c.execute(sql, [_json(list(ids))]).fetchall()), {})


async def unanswered(
    datasette: Datasette, of: Evaluation, after: int, limit: int
) -> tuple[list[tuple[int, Case]], set[tuple[int, int]]]:
    """The next cases, and which of them a candidate has answered.

    Args:
        datasette: the Datasette instance.
        of: the evaluation.
        after: the number of the last case that is known.
        limit: the maximum number of cases.

    Returns:
        The cases with their numbers, and pairs of a case's and a candidate's number.
    """

    def work(
        connection: sqlite3.Connection,
    ) -> tuple[list[tuple[int, Case]], set[tuple[int, int]]]:
        values = {"id": of.id, "after": after, "last": after + limit}
        between = "evaluation_id = :id and {0} > :after and {0} <= :last"
        rows = connection.execute(
            "select number, name, content from llm_evaluation_cases "
            f"where {between.format('number')} order by number",
            values,
        ).fetchall()
        answered = connection.execute(
            "select case_number, candidate from llm_evaluation_answers where evaluation_id = :id "
            "and candidate in (1, 2, 3, 4) and case_number > :after and case_number <= :last",
            values,
        )
        recorded = _answers(
            connection, f"{between.format('case_number')} and candidate = 0", values
        )
        baselines = {number: answer for number, _, answer, _ in recorded}
        cases = [
            (number, replace(_case(name, content), baseline=baselines.get(number)))
            for number, name, content in rows
        ]
        return cases, set(map(tuple, answered))

    return await read(datasette, work, ([], set()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person or the judge says about a candidate's answer, beside the reference's.

    Attributes:
        candidate: the number of the candidate.
        judge: the model of the judge; None for a person's.
        actor_id: the person, or None.
        verdict: `better`, `same` or `worse`.
        note: what was noted, or None.
        judged_at: when, in UTC.
        rubric: by which the judge compared; None for a person's, and where it is not on record.
    """

    candidate: int
    judge: str | None
    actor_id: str | None
    verdict: str
    note: str | None
    judged_at: str
    rubric: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A case with its answers.

    Attributes:
        number: its number.
        case: the case.
        answers: by the number of the candidate, each with the checks that it did not pass.
        verdicts: the newest first.
    """

    number: int
    case: Case
    answers: Mapping[int, tuple[Answer, tuple[str, ...]]]
    verdicts: Sequence[Verdict]


async def answered_cases(
    datasette: Datasette, evaluation_id: str, numbers: Sequence[int]
) -> list[Answered]:
    """Cases with their answers and verdicts, in the order of the numbers."""

    def work(connection: sqlite3.Connection) -> list[Answered]:
        values = {"id": evaluation_id, "numbers": _json(list(numbers))}
        among = "evaluation_id = :id and {} in (select value from json_each(:numbers))"
        cases = {
            number: _case(name, content)
            for number, name, content in connection.execute(
                "select number, name, content from llm_evaluation_cases "
                f"where {among.format('number')}",
                values,
            )
        }
        answers: dict[int, dict[int, tuple[Answer, tuple[str, ...]]]] = {n: {} for n in cases}
        for number, position, answer, failed in _answers(
            connection, f"{among.format('case_number')} and candidate in (0, 1, 2, 3, 4)", values
        ):
            answers[number][position] = (answer, failed)
        verdicts: dict[int, list[Verdict]] = {n: [] for n in cases}
        for number, *columns in connection.execute(
            "select case_number, candidate, v.judge, v.actor_id, verdict, note, judged_at, rubric "
            "from llm_evaluation_verdicts as v "
            "left join llm_evaluation_judgings as j on j.id = v.judging_id "
            f"where v.{among.format('case_number')} order by v.id desc",
            values,
        ):
            verdicts[number].append(Verdict(*columns))
        return [Answered(n, cases[n], answers[n], verdicts[n]) for n in numbers if n in cases]

    return await read(datasette, work, [])


@dataclass(frozen=True, slots=True)
class Judging:
    """That a judge was asked.

    Attributes:
        started_at: when, in UTC.
        judge: its model.
        actor_id: who asked it, or None.
        rubric: what made an answer better.
    """

    started_at: str
    judge: str
    actor_id: str | None
    rubric: str


async def judgings(datasette: Datasette, evaluation_id: str) -> list[Judging]:
    """When judges were asked about an evaluation, the newest first."""
    sql = """
        select started_at, judge, actor_id, rubric from llm_evaluation_judgings
        where evaluation_id = ? order by id desc
    """
    return await read(
        datasette, lambda c: [Judging(*r) for r in c.execute(sql, [evaluation_id])], []
    )


async def mean_chars(datasette: Datasette, of: Evaluation) -> float:
    """How many characters a case sends, about."""
    numbers = list(range(1, of.case_count + 1, max(1, of.case_count // SAMPLE_CASES)))
    sql = """
        select avg(length(content)) from llm_evaluation_cases
        where evaluation_id = ? and number in (select value from json_each(?))
    """
    values = (of.id, _json(numbers))
    return await read(datasette, lambda c: c.execute(sql, values).fetchone()[0] or 0.0, 0.0)


async def _evaluations(
    datasette: Datasette, where: str, values: Mapping[str, Any]
) -> list[Evaluation]:
    columns = (
        *("id", "created_at", "name", "purpose", "actor_id", "definition", "left_out"),
        "case_count",
    )
    sql = f"select {', '.join(columns)} from llm_evaluations {where}"

    def work(connection: sqlite3.Connection) -> list[Evaluation]:
        rows = connection.execute(sql, values)
        return [_evaluation(dict(zip(columns, row, strict=True))) for row in rows]

    return await read(datasette, work, [])


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        row["id"],
        row["created_at"],
        row["name"],
        row["purpose"],
        row["actor_id"],
        Definition.of(json.loads(row["definition"])),
        json.loads(row["left_out"]),
        row["case_count"],
    )


def _case(name: str, content: str) -> Case:
    known = json.loads(content)
    known["history"] = tuple(known.get("history", ()))
    return Case(name=name, **known)


def _answers(
    connection: sqlite3.Connection, where: str, values: Mapping[str, Any]
) -> list[tuple[int, int, Answer, tuple[str, ...]]]:
    """Answers, each with the numbers of its case and its candidate, and the failed checks."""
    columns = ("case_number", "candidate", "failed_checks", *_ANSWER_FIELDS)
    sql = f"select {', '.join(columns)} from llm_evaluation_answers where {where}"
    return [
        (
            number,
            position,
            _answer(dict(zip(_ANSWER_FIELDS, fields, strict=True))),
            tuple(json.loads(failed)),
        )
        for number, position, failed, *fields in connection.execute(sql, values)
    ]


def _answer(row: dict[str, Any]) -> Answer:
    reason = row["finish_reason"]
    return Answer(
        **row
        | {
            "outcome": Outcome(row["outcome"]),
            "finish_reason": FinishReason(reason) if reason else None,
        }
    )

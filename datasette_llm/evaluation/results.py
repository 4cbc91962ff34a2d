"""What came of an evaluation: figures of each candidate, comparisons, and its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from datasette.utils.sqlite import sqlite3

from . import store
from .definition import Thresholds
from .figures import Comparison, percentile, ratio, sentence
from .store import Evaluation

if TYPE_CHECKING:
    from datasette.app import Datasette

# Which cases of a candidate a list shows.
Show = Literal[
    "all",
    "worse",
    "better",
    "failed",
    "passed",
    "not-passed",
    "different",
    "slowest",
    "costliest",
]
SHOWS: tuple[Show, ...] = get_args(Show)

# An answer of a candidate beside the reference's to the same case, with the newest verdicts.
_PAIRS = """
    from llm_evaluation_answers as a indexed by llm_evaluation_answers_figures
    left join llm_evaluation_answers as r indexed by llm_evaluation_answers_figures
        on r.evaluation_id = a.evaluation_id and r.candidate = :reference
        and r.case_number = a.case_number
    left join people on people.case_number = a.case_number and people.candidate = a.candidate
    left join judges on judges.case_number = a.case_number and judges.candidate = a.candidate
    where a.evaluation_id = :id
"""
_VERDICTS = """
    with people as materialized (
        select case_number, candidate, verdict, max(id) from llm_evaluation_verdicts
        where evaluation_id = :id and judge is null group by case_number, candidate
    ), judges as materialized (
        select case_number, candidate, verdict, max(id) from llm_evaluation_verdicts
        where evaluation_id = :id and judge is not null group by case_number, candidate
    )
"""
# People's verdicts count above the judge's, and that above the checks.
_VERDICT = """coalesce(people.verdict, judges.verdict, case
    when r.failed_checks = '[]' and a.failed_checks <> '[]' then 'worse'
    when r.failed_checks <> '[]' and a.failed_checks = '[]' then 'better' else 'same' end)"""
# How much an answer differs: worse ones first, then better ones, then those of another length.
_DIFFERENCE = f"""case {_VERDICT} when 'worse' then 4 when 'better' then 3 else 0 end
    + (a.digest is not r.digest)
    + coalesce(abs(a.chars - r.chars) * 0.9 / max(a.chars, r.chars, 1), 0)"""
_CONDITIONS: Mapping[str, str] = {
    "all": "1",
    "worse": f"{_VERDICT} = 'worse'",
    "better": f"{_VERDICT} = 'better'",
    "failed": "a.outcome <> 'ok'",
    "passed": "a.failed_checks = '[]'",
    "not-passed": "a.failed_checks <> '[]'",
    "different": "a.digest is not r.digest",
    "slowest": "a.outcome = 'ok' and a.latency_ms is not null",
    "costliest": "a.cost_nanodollars is not null",
}
# Of the others, what differs most comes first.
_ORDERS: Mapping[str, str] = {"slowest": "a.latency_ms", "costliest": "a.cost_nanodollars"}
_SUMS = """
    select candidate, count(*), sum(outcome <> 'ok'), sum(failed_checks = '[]'),
        sum(cost_nanodollars), count(cost_nanodollars), sum(input_tokens), sum(output_tokens)
    from llm_evaluation_answers indexed by llm_evaluation_answers_figures
    where evaluation_id = :id group by candidate
"""
_FAILED_CHECKS = """
    select candidate, value, count(*)
    from llm_evaluation_answers indexed by llm_evaluation_answers_figures,
        json_each(failed_checks)
    where evaluation_id = :id and failed_checks <> '[]' group by candidate, value
"""
_KEPT = """
    select candidate, count(*) from llm_evaluation_answers indexed by llm_evaluation_answers_kept
    where evaluation_id = :id and cached_from is not null group by candidate
"""
_LATENCIES = """
    select candidate, latency_ms
    from llm_evaluation_answers indexed by llm_evaluation_answers_figures
    where evaluation_id = :id and outcome = 'ok' and latency_ms is not null
"""
_COMPARED = f"""{_VERDICTS}
    select a.candidate, count(*), sum({_VERDICT} = 'better'), sum({_VERDICT} = 'worse'),
        sum(case when r.cost_nanodollars is not null then a.cost_nanodollars end),
        sum(case when a.cost_nanodollars is not null then r.cost_nanodollars end)
    {_PAIRS} and a.candidate > 0 and a.candidate <> :reference and r.case_number is not null
    group by a.candidate
"""
_AGREED = f"""{_VERDICTS}
    select count(*), coalesce(sum(people.verdict = judges.verdict), 0) from people
    join judges on people.case_number = judges.case_number
        and people.candidate = judges.candidate
"""


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """What came of a candidate, or of the recorded calls.

    Attributes:
        position: its number; 0 for the recorded calls.
        label: its name.
        answers: how many answers there are, failures included.
        failures: how many requests failed.
        kept: how many answers another call has paid for.
        passed: how many answers passed every check.
        failed_checks: how many answers did not pass, by check.
        cost_nanodollars: the sum; None where none is known.
        unpriced: how many answers have an unknown cost.
        input_tokens: the sum of what providers reported, or None.
        output_tokens: likewise.
        median_ms: of the answers' latencies, or None.
        p95_ms: their 95th percentile, or None.
        comparison: beside the reference; None for the reference itself, and the recorded calls.
        sentence: the same in words, or None.
    """

    position: int
    label: str
    answers: int = 0
    failures: int = 0
    kept: int = 0
    passed: int = 0
    failed_checks: Mapping[str, int] = field(default_factory=dict)
    cost_nanodollars: int | None = None
    unpriced: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    comparison: Comparison | None = None
    sentence: str | None = None

    def payload(self) -> dict[str, Any]:
        """It as JSON."""
        compared = self.comparison
        names = ("position", "label", "answers", "failures", "kept", "passed", "unpriced")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        return plain | {
            "failed_checks": dict(self.failed_checks),
            "cost_dollars": self.cost_nanodollars and self.cost_nanodollars / 1e9,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "comparison": None if compared is None else _compared_payload(compared),
            "sentence": self.sentence,
        }


class Agreement(NamedTuple):
    """How often people and the judge agree, over the answers that both have judged."""

    judged: int
    agreed: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of an evaluation.

    Attributes:
        answered: how many answers candidates have given.
        candidates: the recorded calls first, where there are any.
        agreement: of people and the judge.
    """

    answered: int
    candidates: tuple[CandidateResult, ...]
    agreement: Agreement


async def summary(datasette: Datasette, evaluation: Evaluation) -> Summary:
    """The figures of an evaluation, also while it runs."""

    def work(connection: sqlite3.Connection) -> Summary:
        values = {"id": evaluation.id, "reference": evaluation.reference}
        found = _candidates(connection, evaluation, values)
        answered = sum(each.answers for each in found if each.position)
        return Summary(answered, found, Agreement(*connection.execute(_AGREED, values).fetchone()))

    return await store.read(datasette, work, Summary(0, (), Agreement(0, 0)))


async def case_numbers(
    datasette: Datasette,
    evaluation: Evaluation,
    show: Show,
    candidate: int | None,
    check: str | None,
    limit: int,
    offset: int,
) -> tuple[list[int], int]:
    """The numbers of cases, and how many there are.

    What differs most comes first; of the slowest and the costliest these do.

    Args:
        datasette: the Datasette instance.
        evaluation: the evaluation.
        show: which cases.
        candidate: the number of the candidate whose answer has to be so; None for any.
        check: the label of a check that the answer does not pass, or None.
        limit: the maximum number.
        offset: how many to skip.
    """
    condition = _CONDITIONS[show]
    if candidate is not None:
        condition += " and a.candidate = :candidate"
    else:
        condition += " and a.candidate > 0"
    if check is not None:
        condition += " and :check in (select value from json_each(a.failed_checks))"
    sql = f"""{_VERDICTS}
        select a.case_number, count(*) over () {_PAIRS} and {condition}
        group by a.case_number order by max({_ORDERS.get(show, _DIFFERENCE)}) desc, a.case_number
        limit :limit offset :offset
    """
    values = {
        "id": evaluation.id,
        "reference": evaluation.reference,
        "candidate": candidate,
        "check": check,
        "limit": limit,
        "offset": offset,
    }

    def work(connection: sqlite3.Connection) -> tuple[list[int], int]:
        rows = connection.execute(sql, values).fetchall()
        return [number for number, _ in rows], rows[0][1] if rows else 0

    return await store.read(datasette, work, ([], 0))


def missed(found: Summary, evaluation: Evaluation, wanted: Thresholds) -> list[str]:
    """The thresholds that candidates do not reach, a sentence each.

    Args:
        found: what came of the evaluation.
        evaluation: the evaluation.
        wanted: the thresholds.
    """
    problems = []
    if found.answered < evaluation.request_count:
        left = evaluation.request_count - found.answered
        problems.append(f"the evaluation is not complete: {left:,} answers are missing")
    for each in found.candidates:
        if each.position:
            problems += [f"{each.label}: {problem}" for problem in _missed_by(each, wanted)]
    return problems


def _missed_by(found: CandidateResult, wanted: Thresholds) -> list[str]:
    problems = []
    share = found.passed / found.answers if found.answers else 0.0
    if wanted.min_pass is not None and share < wanted.min_pass:
        problems.append(f"{share:.1%} of the answers pass, and min_pass is {wanted.min_pass:.1%}")
    if wanted.max_failures is not None and found.failures > wanted.max_failures:
        problems.append(
            f"{found.failures:,} requests failed, and max_failures is {wanted.max_failures:,}"
        )
    if wanted.max_cost_ratio is not None and found.comparison is not None:
        cost = found.comparison.cost_ratio
        if cost is None:
            problems.append("the cost is unknown, so that max_cost_ratio is not reached")
        elif cost > wanted.max_cost_ratio:
            problems.append(
                f"it costs {cost:.3g} times as much, and max_cost_ratio is {wanted.max_cost_ratio}"
            )
    return problems


def _candidates(
    connection: sqlite3.Connection, evaluation: Evaluation, values: Mapping[str, Any]
) -> tuple[CandidateResult, ...]:
    sums = {row[0]: row[1:] for row in connection.execute(_SUMS, values)}
    failed: dict[int, dict[str, int]] = {}
    for position, name, count in connection.execute(_FAILED_CHECKS, values):
        failed.setdefault(position, {})[name] = count
    kept: dict[int, int] = dict(connection.execute(_KEPT, values))
    latencies: dict[int, list[float]] = {}
    for position, latency_ms in connection.execute(_LATENCIES, values):
        latencies.setdefault(position, []).append(latency_ms)
    for each in latencies.values():
        each.sort()
    compared = {row[0]: row[1:] for row in connection.execute(_COMPARED, values)}
    first = 0 if evaluation.definition.cases.calls is not None else 1
    return tuple(
        _candidate(
            evaluation,
            position,
            sums.get(position, (0, 0, 0, None, 0, None, None)),
            kept.get(position, 0),
            failed.get(position, {}),
            latencies,
            compared.get(position),
        )
        for position in range(first, len(evaluation.definition.candidates) + 1)
    )


def _candidate(
    evaluation: Evaluation,
    position: int,
    sums: tuple[Any, ...],
    kept: int,
    failed: Mapping[str, int],
    latencies: Mapping[int, list[float]],
    compared: tuple[Any, ...] | None,
) -> CandidateResult:
    answers, failures, passed, cost, priced, input_tokens, output_tokens = sums
    own, label = latencies.get(position, []), evaluation.label(position)
    median_ms = percentile(own, 50)
    comparison = None
    if compared is not None:
        cases, better, worse, own_cost, other_cost = compared
        other_ms = percentile(latencies.get(evaluation.reference, []), 50)
        comparison = Comparison(
            cases, better, worse, ratio(own_cost, other_cost), ratio(median_ms, other_ms)
        )
    return CandidateResult(
        position,
        label,
        answers,
        failures,
        kept,
        passed,
        failed,
        cost,
        answers - priced,
        input_tokens,
        output_tokens,
        median_ms,
        percentile(own, 95),
        comparison,
        None if comparison is None else sentence(label, comparison),
    )


def _compared_payload(found: Comparison) -> dict[str, Any]:
    return {
        "cases": found.cases,
        "better": found.better,
        "better_interval": list(found.better_interval),
        "worse": found.worse,
        "worse_interval": list(found.worse_interval),
        "cost_ratio": found.cost_ratio,
        "latency_ratio": found.latency_ratio,
    }

"""What an evaluation would ask and cost, before any request is sent."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pydantic
from datasette.utils.sqlite import sqlite3

from ..access.snapshot import find_model, snapshot_of
from ..facade import LLM
from ..log.cost import model_price
from ..log.queries import has_tables
from .cases import BASELINE, Candidate
from .definition import Definition, EvaluationError
from .engine import Actor
from .sources import read_cases
from .store import Evaluation, mean_chars, no_cases, read

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.snapshot import ModelRoute

# Of most languages and tokenizers, about.
CHARS_A_TOKEN = 4
# Of an answer, where nothing is known.
OUTPUT_TOKENS = 300
_RECENT = """
    select output_tokens, duration_ms from llm_calls
    where model_id = ? and outcome = 'ok' and cached_from is null order by id desc limit 100
"""
_ANSWERED = """
    select candidate, count(*), avg(case when outcome = 'ok' then output_tokens end)
    from llm_evaluation_answers indexed by llm_evaluation_answers_figures
    where evaluation_id = ? group by candidate
"""


@dataclass(frozen=True, slots=True)
class CandidateEstimate:
    """What a candidate would be asked, about.

    Attributes:
        label: its name.
        input_tokens: of all prompts.
        output_tokens: of all answers.
        cost_dollars: None where no price is known.
        latency_ms: of one answer; None where the model has not been used.
    """

    label: str
    input_tokens: int
    output_tokens: int
    cost_dollars: float | None
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an evaluation would ask.

    Attributes:
        cases: how many cases there are.
        left_out: how many were left out, by reason.
        requests: how many requests would be sent.
        candidates: for each candidate.
        seconds: how long it would take; None where that is not known of every candidate.
    """

    cases: int
    left_out: dict[str, int]
    requests: int
    candidates: tuple[CandidateEstimate, ...]
    seconds: float | None

    @property
    def cost_dollars(self) -> float:
        """The sum of the known costs."""
        return sum(each.cost_dollars or 0 for each in self.candidates)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """The candidates whose price is unknown."""
        return tuple(each.label for each in self.candidates if each.cost_dollars is None)

    def payload(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "cases": self.cases,
            "left_out": self.left_out,
            "requests": self.requests,
            "cost_dollars": self.cost_dollars,
            "unpriced": list(self.unpriced),
            "seconds": self.seconds,
            "candidates": [
                {
                    "label": each.label,
                    "input_tokens": each.input_tokens,
                    "output_tokens": each.output_tokens,
                    "cost_dollars": each.cost_dollars,
                    "latency_ms": each.latency_ms,
                }
                for each in self.candidates
            ],
        }


async def estimate(datasette: Datasette, definition: Definition, actor: Actor) -> Estimate:
    """Read the cases, and estimate what they would cost; nothing is sent or stored.

    Args:
        datasette: the Datasette instance.
        definition: the evaluation; the caller has checked that the actor may read its cases.
        actor: who would ask.

    Raises:
        EvaluationError: it cannot run: there are no cases, a candidate is not allowed, or its
            options are not those of its model.
    """
    await check_all(datasette, definition, definition.asked, actor)
    left_out, cases, chars, outputs = Counter[str](), 0, 0, list[int]()
    async for case in read_cases(datasette, definition, left_out):
        cases, chars = cases + 1, chars + case.chars
        if case.baseline is not None and case.baseline.output_tokens is not None:
            outputs.append(case.baseline.output_tokens)
    if not cases:
        raise EvaluationError(no_cases(left_out))
    answer_tokens = statistics.fmean(outputs) if outputs else None
    candidates = [
        (await _of_candidate(datasette, definition, each, cases, chars, answer_tokens), cases)
        for each in definition.asked
    ]
    return _estimate(definition, cases, dict(left_out), candidates)


async def estimate_left(datasette: Datasette, evaluation: Evaluation, actor: Actor) -> Estimate:
    """What the rest of an evaluation would cost that was stopped; nothing is sent.

    Args:
        datasette: the Datasette instance.
        evaluation: the evaluation.
        actor: who would ask.

    Raises:
        EvaluationError: a candidate can no longer be asked.
    """
    definition = evaluation.definition
    nothing: dict[int, tuple[int, float | None]] = {}
    answered = await read(datasette, lambda c: _answered(c, evaluation.id), nothing)
    left = {
        position: evaluation.case_count - answered.get(position, (0, None))[0]
        for position in range(1, len(definition.asked) + 1)
    }
    asked = {n: each for n, each in enumerate(definition.asked, 1) if left[n]}
    await check_all(datasette, definition, asked.values(), actor)
    chars = await mean_chars(datasette, evaluation)
    candidates = []
    for position, candidate in asked.items():
        count = left[position]
        known = [answered[n][1] for n in (position, BASELINE) if n in answered]
        tokens = next((each for each in known if each is not None), None)
        found = await _of_candidate(
            datasette, definition, candidate, count, round(count * chars), tokens
        )
        candidates.append((found, count))
    return _estimate(definition, max(left.values()), {}, candidates)


def _answered(
    connection: sqlite3.Connection, evaluation_id: str
) -> dict[int, tuple[int, float | None]]:
    """How many answers each candidate has given, and the mean of their tokens."""
    rows = connection.execute(_ANSWERED, [evaluation_id])
    return {position: (count, tokens) for position, count, tokens in rows}


def _estimate(
    definition: Definition,
    cases: int,
    left_out: dict[str, int],
    candidates: Sequence[tuple[CandidateEstimate, int]],
) -> Estimate:
    """The sum for candidates, each with how many requests it gets."""
    known = [each.latency_ms * count for each, count in candidates if each.latency_ms is not None]
    seconds = sum(known) / definition.concurrency / 1000
    return Estimate(
        cases,
        left_out,
        sum(count for _, count in candidates),
        tuple(each for each, _ in candidates),
        round(seconds, 1) if len(known) == len(candidates) else None,
    )


async def check_all(
    datasette: Datasette, definition: Definition, candidates: Iterable[Candidate], actor: Actor
) -> None:
    """Refuse candidates that cannot be asked, as `check`."""
    for candidate in candidates:
        await check(datasette, candidate, definition.purpose, actor)


async def check(
    datasette: Datasette, candidate: Candidate, purpose: str | None, actor: Actor
) -> None:
    """Refuse a candidate that cannot be asked.

    Raises:
        EvaluationError: it is not allowed for the purpose and actor, or an option is invalid.
    """
    decision = await LLM(datasette).explain(candidate.model_id, purpose, actor)
    if not decision.available:
        raise EvaluationError(f"Candidate {candidate.model_id}: {decision.reason}")
    _, entry = await find_model(datasette, candidate.model_id)
    try:
        entry.model.Options(**candidate.options)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        text = "; ".join(f"option {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
        raise EvaluationError(f"Candidate {candidate.model_id}: {text}") from None


async def _of_candidate(
    datasette: Datasette,
    definition: Definition,
    candidate: Candidate,
    cases: int,
    chars: int,
    answer_tokens: float | None,
) -> CandidateEstimate:
    snapshot = await snapshot_of(datasette)
    route = snapshot.for_purpose(definition.purpose).route(
        snapshot.catalog.canonical(candidate.model_id)
    )
    tokens, latency_ms = await recent(datasette, route.model.model_id)
    output = round(cases * (answer_tokens or tokens or OUTPUT_TOKENS))
    # Each prompt has a few tokens more than its text.
    prompt = chars // CHARS_A_TOKEN + 10 * cases
    cost = await dollars(route, prompt, output)
    return CandidateEstimate(candidate.label, prompt, output, cost, latency_ms)


async def dollars(route: ModelRoute, prompt: int, output: int) -> float | None:
    """What tokens cost with a model; None where its price is unknown.

    Args:
        route: to the model.
        prompt: how many tokens of prompts.
        output: how many tokens of answers.
    """
    model_id = route.model.model_id
    price = await asyncio.to_thread(model_price, model_id, route.price, exact=route.exact_price)
    if price.input_dollars is None or price.output_dollars is None:
        return None
    return (prompt * price.input_dollars + output * price.output_dollars) / 1_000_000


async def recent(datasette: Datasette, model_id: str) -> tuple[float | None, float | None]:
    """The usual tokens of an answer of a model, and its median latency, as far as it is known."""

    def work(connection: sqlite3.Connection) -> list[tuple[int | None, float | None]]:
        if not has_tables(connection):
            return []
        return list(connection.execute(_RECENT, [model_id]))

    rows = await datasette.get_internal_database().execute_fn(work)
    tokens = [row[0] for row in rows if row[0] is not None]
    latencies = [row[1] for row in rows if row[1] is not None]
    return (
        statistics.fmean(tokens) if tokens else None,
        statistics.median(latencies) if latencies else None,
    )

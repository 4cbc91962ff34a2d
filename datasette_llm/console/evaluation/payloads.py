"""What the pages of evaluations show, as in their JSON."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ... import instance
from ...errors import LLMError
from ...evaluation import judge, results, store
from ...evaluation.cases import Answer
from ...evaluation.estimate import estimate_left
from ...evaluation.results import Show, Summary
from ...evaluation.run import Runs
from ...evaluation.store import Answered, Evaluation
from ...sanitize import brief

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...web import Payload

PAGE_CASES = 50
# Of a text in a list.
EXCERPT_CHARS = 200
# More words take too long to compare.
MAX_DIFF_WORDS = 3_000

_ANSWER_NAMES = (
    *("text", "error_type", "error_message", "latency_ms", "input_tokens", "output_tokens"),
    *("price_source", "call_id"),
)


def row_payload(datasette: Datasette, evaluation: Evaluation, answered: int) -> dict[str, Any]:
    """An evaluation in the list, without any of its content."""
    names = ("id", "created_at", "name", "purpose", "actor_id", "case_count", "request_count")
    return {name: getattr(evaluation, name) for name in names} | {
        "source": evaluation.definition.cases.kind,
        "candidates": [each.label for each in evaluation.definition.asked],
        "answered": answered,
        "state": state(datasette, evaluation, answered),
    }


def state(datasette: Datasette, evaluation: Evaluation, answered: int) -> str:
    """Whether it is `complete`, `running` or `judging` here, or `stopped` before its end."""
    running = instance.of(datasette, Runs).running.get(evaluation.id)
    if running is not None:
        return "judging" if running.is_judge else "running"
    return "complete" if answered >= evaluation.request_count else "stopped"


async def result_payload(
    datasette: Datasette,
    evaluation: Evaluation,
    actor: Any,
    show: Show,
    candidate: int | None,
    check: str | None,
    page: int,
) -> Payload:
    """What came of an evaluation, and a page of its cases.

    Args:
        datasette: the Datasette instance.
        evaluation: the evaluation.
        actor: who looks at it, and would ask the judge.
        show: which cases are listed.
        candidate: whose answers have to be so; None for any candidate.
        check: the label of a check that they do not pass, or None.
        page: the number of the page, from 1.
    """
    found = await results.summary(datasette, evaluation)
    numbers, matching = await results.case_numbers(
        datasette, evaluation, show, candidate, check, PAGE_CASES, (page - 1) * PAGE_CASES
    )
    cases = await store.answered_cases(datasette, evaluation.id, numbers)
    return {
        "ok": True,
        "evaluation": row_payload(datasette, evaluation, found.answered)
        | {
            "definition": evaluation.definition.stored(),
            "left_out": dict(evaluation.left_out),
            "reference": evaluation.label(evaluation.reference),
        },
        "failure": instance.of(datasette, Runs).failures.get(evaluation.id),
        "candidates": [each.payload() for each in found.candidates],
        "missed": _missed(found, evaluation),
        "agreement": found.agreement._asdict(),
        "judging": await _judging(datasette, evaluation, actor),
        "judgings": list(map(asdict, await store.judgings(datasette, evaluation.id))),
        "left": await _left(datasette, evaluation, actor, found.answered),
        "show": show,
        "candidate": candidate,
        "check": check,
        "page": page,
        "pages": -(-matching // PAGE_CASES),
        "matching": matching,
        "cases": [_excerpt(evaluation, each) for each in cases],
    }


async def _judging(datasette: Datasette, evaluation: Evaluation, actor: Any) -> dict[str, Any]:
    found = await judge.estimate(datasette, evaluation, actor)
    return {
        "model_id": found.model_id,
        "problem": found.problem,
        "pairs": found.pairs,
        "requests": found.requests,
        "input_tokens": found.input_tokens,
        "output_tokens": found.output_tokens,
        "cost_dollars": found.cost_dollars,
        "seconds": found.seconds,
    }


async def _left(
    datasette: Datasette, evaluation: Evaluation, actor: Any, answered: int
) -> dict[str, Any] | None:
    """What a resume would ask, or why it cannot; None for one that was not stopped."""
    if state(datasette, evaluation, answered) != "stopped":
        return None
    try:
        found = await estimate_left(datasette, evaluation, actor)
    except LLMError as error:
        return {"problem": brief(error)}
    return {"problem": None, **found.payload()}


def _missed(found: Summary, evaluation: Evaluation) -> list[str]:
    wanted = evaluation.definition.thresholds
    return results.missed(found, evaluation, wanted) if wanted.model_fields_set else []


def _excerpt(evaluation: Evaluation, found: Answered) -> dict[str, Any]:
    """A case in the list."""
    return {
        "number": found.number,
        "name": found.case.name,
        "prompt": _cut(found.case.prompt),
        "answers": [
            {
                "position": position,
                "label": evaluation.label(position),
                "outcome": str(answer.outcome),
                "text": _cut(answer.text or answer.error_message or ""),
                "latency_ms": answer.latency_ms,
                "cost_dollars": _cost_dollars(answer),
                "failed_checks": list(failed),
                "verdict": newest_verdict(found, position),
            }
            for position, (answer, failed) in sorted(found.answers.items())
        ],
    }


def _cost_dollars(answer: Answer) -> float | None:
    return None if answer.cost_nanodollars is None else answer.cost_nanodollars / 1e9


def newest_verdict(found: Answered, position: int) -> str | None:
    """What counts: the newest verdict of a person, else the judge's; None without any."""
    own = [each for each in found.verdicts if each.candidate == position]
    people = [each for each in own if each.judge is None]
    return next((each.verdict for each in (*people, *own)), None)


async def case_payload(datasette: Datasette, evaluation: Evaluation, number: int) -> Payload | None:
    """A case with every answer, and how their words differ; None if there is none."""
    found = await store.answered_cases(datasette, evaluation.id, [number])
    if not found:
        return None
    (case,) = found
    return {
        "ok": True,
        "evaluation": {
            name: getattr(evaluation, name) for name in ("id", "name", "purpose", "case_count")
        },
        "number": number,
        "name": case.case.name,
        "prompt": case.case.prompt,
        "system": case.case.system,
        "history": list(map(dict, case.case.history)),
        "schema": case.case.schema,
        "expected": case.case.expected,
        "reference": evaluation.reference,
        "answers": [
            answer_payload(evaluation, case, position) for position in sorted(case.answers)
        ],
        "verdicts": [
            {
                "candidate": evaluation.label(each.candidate),
                "judge": each.judge,
                "actor_id": each.actor_id,
                "verdict": each.verdict,
                "note": each.note,
                "judged_at": each.judged_at,
                "rubric": each.rubric,
            }
            for each in case.verdicts
        ],
    }


def answer_payload(evaluation: Evaluation, found: Answered, position: int) -> dict[str, Any]:
    """An answer to a case."""
    answer, failed = found.answers[position]
    own = (each for each in found.verdicts if each.candidate == position)
    judged = next((each for each in own if each.judge is not None), None)
    return {
        "position": position,
        "label": evaluation.label(position),
        "outcome": str(answer.outcome),
        "finish_reason": answer.finish_reason and str(answer.finish_reason),
        **{name: getattr(answer, name) for name in _ANSWER_NAMES},
        "cost_dollars": _cost_dollars(answer),
        "failed_checks": list(failed),
        "verdict": newest_verdict(found, position),
        "judge_verdict": judged and judged.verdict,
        "judge": judged and judged.judge,
        "rubric": judged and judged.rubric,
        "cached_from": answer.cached_from,
    }


def differences(
    answers: Sequence[Mapping[str, Any]], reference: int
) -> list[tuple[str, list[tuple[str, str]] | None]]:
    """How the words of answers differ from those of the reference; call it in a thread.

    Args:
        answers: the answers of a case, as in its payload.
        reference: the number of the one that they are compared with.

    Returns:
        For each other answer that did not fail its label, and its parts with `same`, `ins` or
        `del`; None in place of the parts where there are too many words.
    """
    texts = {each["position"]: each["text"].split() for each in answers}
    return [
        (each["label"], _parts(texts[reference], texts[each["position"]]))
        for each in answers
        if each["position"] != reference and reference in texts and each["outcome"] == "ok"
    ]


def _parts(before: list[str], after: list[str]) -> list[tuple[str, str]] | None:
    if max(len(before), len(after)) > MAX_DIFF_WORDS:
        return None
    parts: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if kind == "equal":
            parts.append(("same", " ".join(before[a:b])))
            continue
        parts += [
            (how, " ".join(words))
            for how, words in (("del", before[a:b]), ("ins", after[c:d]))
            if words
        ]
    return parts


def exported(evaluation: Evaluation, cases: Iterable[Answered]) -> list[dict[str, Any]]:
    """A row for each answer, for CSV, JSON and lines of JSON."""
    return [
        {
            "case": each.number,
            "name": each.case.name,
            "system": each.case.system,
            "prompt": each.case.prompt,
            "expected": each.case.expected,
            "candidate": evaluation.label(position),
        }
        | {
            name: value
            for name, value in answer_payload(evaluation, each, position).items()
            if name not in ("position", "label")
        }
        for each in cases
        for position in sorted(each.answers)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARS else f"{text[: EXCERPT_CHARS - 1]}…"

"""Verdicts on a model's claims: what was said beside what we counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, TypedDict

from ..evidence import (
    Aggregate,
    ClaimEvidence,
    Evidence,
    Top,
    columns_of,
    in_words,
)
from .dataset import Claim, Unreadable, plain
from .objections import Counted, Figures, counts_rows, is_rounded, numbers_of, objections
from .wording import numbers_in

Status = Literal["confirmed", "contradicted", "counted", "opinion", "not_checkable"]

MAX_LABEL_CHARS = 80
MAX_UNHELD = 10


class Check(TypedDict):
    """The verdict on a claim, as it is stored and shown.

    Attributes:
        status: `confirmed`: the evidence has the figure that was said; `contradicted`: it has
            another; `counted`: nothing was expected, or the sentence says more than was counted;
            `opinion`: there is nothing to count; `not_checkable`: see `reason`.
        sentence: what was counted, beside what was said, in plain English.
        reason: why it is not confirmed, where `sentence` does not say it.
        expected: the figure that the evidence expects.
        counted: the figure that we counted.
        of: the number of rows of the table, where rows were counted.
        share: `counted / of`.
        result: the rows of a `top`, as pairs of label and figure.
        unheld_numbers: the numbers in the claim's sentence that the evidence does not hold.
        sql: what was counted, as a query that Datasette can run too; None where it cannot.
        duration_ms: of counting, in milliseconds.
    """

    status: Status
    sentence: str
    reason: str | None
    expected: float | None
    counted: float | None
    of: int | None
    share: float | None
    result: list[list[Any]] | None
    unheld_numbers: list[str]
    sql: str | None
    duration_ms: float


def unchecked(reason: str) -> Check:
    """The verdict on a claim of which nothing may be said but why."""
    return _check("not_checkable", "Not counted", None, reason=reason)


def uncounted(claim: Claim, reason: str, duration_ms: float = 0.0) -> Check:
    """The verdict on a claim that cannot be checked.

    Args:
        claim: the claim.
        reason: why, as a sentence without a full stop.
        duration_ms: of trying.
    """
    return _check(
        "not_checkable", "Not counted", claim.evidence, reason=reason, duration_ms=duration_ms
    )


def opinion(claim: Claim) -> Check:
    """The verdict on a claim that has nothing to count; its numbers are pointed out."""
    unheld = [each.text for each in numbers_in(plain(claim.sentence), ())]
    reason = "Its numbers were not counted" if unheld else None
    sentence = "There is nothing to count"
    return _check("opinion", sentence, claim.evidence, reason=reason, unheld_numbers=unheld)


def verdict(
    claim: Claim,
    evidence: Evidence,
    counted: Counted,
    columns: Collection[str],
    sampled: Collection[str] = (),
    table: str = "",
) -> Check:
    """The verdict on a claim whose evidence was counted.

    It is confirmed where that is what the evidence expects, and nothing in the sentence says
    otherwise.

    Args:
        claim: the claim.
        evidence: its evidence.
        counted: what we counted.
        columns: the names of the table's columns.
        sampled: the columns of which the model saw figures of a sample.
        table: the name of the table.
    """
    if counted.figure is None and not counted.result:
        return uncounted(claim, f"There is no {in_words(evidence)}", counted.duration_ms)
    figures = Figures(evidence, counted)
    numbers = numbers_of(claim, evidence, columns)
    unheld = [each.text for each in numbers if not figures.hold(each)]
    reasons = [*_unheld(unheld), *objections(claim, evidence, figures, columns, table)]
    status = _status(_agrees(evidence, counted), reasons)
    if status == "contradicted":
        is_sampled = any(name in sampled for name in columns_of(evidence))
        reasons = ["the figures that the model saw are of a sample"] if is_sampled else []
    is_of_rows = figures.rows is not None
    return _check(
        status,
        _sentence(status, evidence, counted),
        evidence,
        reason=_capitalized("; ".join(reasons)) or None,
        counted=_finite(figures.figure),
        of=counted.of if is_of_rows else None,
        share=figures.percent / 100 if is_of_rows and figures.percent is not None else None,
        result=[[_label(value), _finite(figure)] for value, figure in counted.result] or None,
        unheld_numbers=unheld,
        sql=counted.sql,
        duration_ms=counted.duration_ms,
    )


def percent(share: float) -> str:
    """A share for people, which is only 0 % or 100 % where it is exactly that."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share > 0.999:
        return "over 99.9 %"
    return "below 0.1 %" if share < 0.001 else f"{100 * share:.3g} %"


def _check(
    status: Status,
    sentence: str,
    evidence: ClaimEvidence | Unreadable | None,
    *,
    reason: str | None = None,
    counted: float | None = None,
    of: int | None = None,
    share: float | None = None,
    result: list[list[Any]] | None = None,
    unheld_numbers: Sequence[str] = (),
    sql: str | None = None,
    duration_ms: float = 0.0,
) -> Check:
    expected = getattr(evidence, "expected", None)
    return Check(
        status=status,
        sentence=plain(sentence),
        reason=None if reason is None else plain(reason),
        expected=expected if isinstance(expected, int | float) else None,
        counted=counted,
        of=of,
        share=share,
        result=result,
        unheld_numbers=[plain(each) for each in unheld_numbers[:MAX_UNHELD]],
        sql=sql,
        duration_ms=duration_ms,
    )


def _finite(figure: float | None) -> float | None:
    # JSON has no infinity.
    return None if figure is None or not math.isfinite(figure) else figure


def _status(agrees: bool | None, reasons: Sequence[str]) -> Status:
    if agrees is None or (agrees and reasons):
        return "counted"
    return "confirmed" if agrees else "contradicted"


def _unheld(unheld: Sequence[str]) -> Iterator[str]:
    if unheld:
        yield f"the sentence says {', '.join(unheld[:MAX_UNHELD])}, which is not what was counted"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _agrees(evidence: Evidence, counted: Counted) -> bool | None:
    """Whether what was counted is what the evidence expects; None where it expects nothing."""
    expected = evidence.expected
    if expected is None:
        return None
    if isinstance(evidence, Top):
        # All of those that share the first place come first.
        first = [value for value, figure in counted.result if figure == counted.result[0][1]]
        return expected in first
    if isinstance(expected, str) or isinstance(counted.figure, str):
        return expected == counted.figure
    exact = not isinstance(evidence, Aggregate) or evidence.function in ("count", "distinct")
    if exact:
        return expected == counted.figure
    return is_rounded(expected, _step(expected), counted.figure)


def _step(number: float) -> float:
    exponent = Decimal(repr(number)).as_tuple().exponent
    return 10.0**exponent if isinstance(exponent, int) else 0.0


def _sentence(status: Status, evidence: Evidence, counted: Counted) -> str:
    expected = evidence.expected
    said = "" if expected is None else _label(expected)
    found = _found(evidence, counted)
    if status == "contradicted":
        return f"Said {said}; counted {found}"
    return f"{found}, as said" if status == "confirmed" else found


def _found(evidence: Evidence, counted: Counted) -> str:
    words = in_words(evidence)
    if isinstance(evidence, Top):
        shown = ", ".join(f"{_label(value)} ({_label(figure)})" for value, figure in counted.result)
        return f"{words}: {shown}"
    figure = "" if counted.figure is None else _label(counted.figure)
    if isinstance(evidence, Aggregate) and evidence.function == "share":
        return f"{figure} %, the {words}"
    if isinstance(evidence, Aggregate) and not counts_rows(evidence):
        return f"{figure}, the {words}"
    rows = counted.figure if isinstance(counted.figure, int | float) else 0
    of = f" of {counted.of:,} rows, {percent(rows / counted.of)}" if counted.of else " rows"
    return f"{figure}{of} ({words})"


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else f"{value:.6g}"
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else plain(str(value))
    return text if len(text) <= MAX_LABEL_CHARS else f"{text[:MAX_LABEL_CHARS]}…"

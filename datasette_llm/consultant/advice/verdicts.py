"""Verdicts on a model's claims: what was said beside what we counted."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Status = Literal["confirmed", "contradicted", "counted", "opinion", "not_checkable"]


class Check(TypedDict):
    """The verdict on a claim, as it is stored and shown.

    Attributes:
        status: `confirmed`: the evidence has the figure that was said; `contradicted`: it has
            another; `counted`: the evidence holds nothing that was said; `opinion`: there is
            nothing to count; `not_checkable`: see `reason`.
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

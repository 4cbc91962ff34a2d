"""What evidence counts, in words."""

from __future__ import annotations

from .kinds import (
    Aggregate,
    AnyOf,
    ClaimEvidence,
    Condition,
    Duplicates,
    Opinion,
    Orphans,
    Pattern,
    Rows,
    Scalar,
    Top,
)

# Of the conditions of one piece of evidence.
MAX_SHOWN = 6


def in_words(evidence: ClaimEvidence) -> str:
    """What is counted, as a part of a sentence; it has no text but names and values."""
    match evidence:
        case Rows():
            return f"rows where {_where(evidence.any_of)}"
        case Aggregate():
            return _aggregate(evidence)
        case Top():
            figure = "rows" if evidence.column is None else f"{evidence.function} of "
            of = "" if evidence.column is None else _name(evidence.column)
            where = _condition_after(evidence.any_of)
            return f"{_name(evidence.group_by)} with the {evidence.order} {figure}{of}{where}"
        case Duplicates(ignoring_case=True):
            return f"rows that write {_name(evidence.columns[0])} in another case than most"
        case Duplicates():
            return f"rows that repeat {', '.join(map(_name, evidence.columns[:MAX_SHOWN]))}"
        case Orphans():
            other = f"{_name(evidence.other_table)}.{_name(evidence.other_column)}"
            return f"rows whose {_name(evidence.column)} is not in {other}"
        case Pattern():
            usual = ", ".join(map(_value, evidence.usual[:MAX_SHOWN]))
            return f"rows whose {_name(evidence.column)} has another {evidence.of} than {usual}"
        case Opinion():
            return "nothing"


def _aggregate(evidence: Aggregate) -> str:
    where = _condition_after(evidence.any_of)
    if evidence.function == "share":
        filled = "" if evidence.column is None else f"have {_name(evidence.column)}"
        parts = filter(None, (filled, where.removeprefix(" ")))
        return f"share of rows that {' '.join(parts)}".replace("that where", "where")
    if evidence.column is None:
        return f"count of rows{where}"
    return f"{evidence.function} of {_name(evidence.column)}{where}"


def _condition_after(any_of: AnyOf) -> str:
    return f" where {_where(any_of)}" if any_of else ""


def _where(any_of: AnyOf) -> str:
    shown = [" and ".join(map(_condition, each[:MAX_SHOWN])) for each in any_of[:MAX_SHOWN]]
    more = ["…"] if len(any_of) > MAX_SHOWN else []
    return " or ".join([*shown, *more])


def _condition(condition: Condition) -> str:
    start = f"{_name(condition.column)} {condition.op}"
    if condition.other_column is not None:
        return f"{start} {_name(condition.other_column)}"
    if condition.value is None:
        return start
    if isinstance(condition.value, tuple):
        return f"{start} ({', '.join(map(_value, condition.value[:MAX_SHOWN]))})"
    if condition.op in ("parses as", "does not parse as", "type is"):
        return f"{start} {condition.value}"
    return f"{start} {_value(condition.value)}"


def _name(name: str) -> str:
    return f"`{name}`"


def _value(value: Scalar) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    is_exact = isinstance(value, int) and abs(value) < 10**18
    return f"{value:,}" if is_exact else f"{value:,.6g}"

"""The advice about a table: what a model may say, and what is left of it once it was checked.

A model's answer is text from a stranger. What it says about columns is held against the real
ones here; what it claims about the data is held against the data in `checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from ...sanitize import well_formed

RiskKind = Literal[
    "missing_values",
    "duplicates",
    "outliers",
    "inconsistent_values",
    "wrong_type",
    "broken_reference",
    "personal_data",
    "outdated_values",
    "other",
]
# An answer that could not be read gets this; a model cannot give it to itself.
MALFORMED = "malformed_response"
KINDS: tuple[str, ...] = (*get_args(RiskKind), MALFORMED)

MAX_TEXT_CHARS = 10_000
# What turns the direction of the text around it, so that a text reads as what it is not.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ColumnDescription(_Closed):
    """What one column holds."""

    column: str
    """The exact name of a column."""
    description: str
    """One sentence."""
    unit: str | None
    """The unit of its numbers, such as "km/h"; null where it has none."""


class SuggestedConfig(_Closed):
    """How Datasette should show the table."""

    facets: list[str]
    """Columns with few different values, by which people will filter."""
    sort: str | None
    """The column to sort by, ascending; null for none, or where sort_desc is set."""
    sort_desc: str | None
    """The column to sort by, descending; null for none, or where sort is set."""
    label_column: str | None
    """The column whose text names a row for a person; null for none."""
    columns: list[ColumnDescription]
    """Descriptions of columns that need one."""
    full_text_columns: list[str]
    """Columns with text that people will search."""
    hidden_columns: list[str]
    """Columns that people will rarely want to see."""


class RiskFlag(_Closed):
    """A claim about what is wrong with the data."""

    kind: RiskKind
    """What kind of problem it is."""
    column: str | None
    """The exact name of the column concerned; null for the table as a whole."""
    claim: str
    """The problem, in one sentence."""
    evidence_sql: str
    """One SQLite SELECT that returns rows if, and only if, the claim is true."""


class DatasetAdvice(_Closed):
    """Advice about one table."""

    suggested_action: str
    """What to do first, in one sentence."""
    suggested_config: SuggestedConfig
    reasoning_summary: str
    """Why, in a short paragraph."""
    risk_flags: list[RiskFlag]


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What advice is held against.

    Attributes:
        columns: the names of all columns.
        primary_keys: those of the primary key.
        sortable: those that Datasette lets people sort by.
        is_view: whether it is a view.
    """

    columns: tuple[str, ...]
    primary_keys: tuple[str, ...] = ()
    sortable: frozenset[str] | None = None
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim to be checked by its query.

    Attributes:
        sql: the query; nothing else is known of it yet.
        refused: why it is not to be run at all, or None.
    """

    sql: str
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """An answer after the checks that need no data.

    Attributes:
        advice: what is left of it, as JSON.
        rejected: a sentence for each thing that was dropped.
        claims: the claims whose queries are to be run, in the order of the advice's flags.
    """

    advice: dict[str, Any]
    rejected: tuple[str, ...]
    claims: tuple[Claim, ...]


def review(answer: DatasetAdvice, facts: TableFacts) -> Review:
    """Hold an answer against the table's columns.

    Args:
        answer: what the model said.
        facts: what the table is.

    Returns:
        The advice without what names an unknown column; such a flag stays, with the column
        null, and its claim is refused.
    """
    config, rejected = reviewed_config(answer.suggested_config, facts)
    flags, claims = [], []
    for flag in answer.risk_flags:
        known = flag.column is None or flag.column in facts.columns
        told = None if known else f"It names a column that does not exist: {flag.column}"
        if told is not None:
            rejected.append(f"risk flag {flag.kind}: no such column: {flag.column}")
        claims.append(Claim(flag.evidence_sql, plain(told) if told else None))
        flags.append(flag.model_dump() | ({} if known else {"column": None}))
    advice = {
        "suggested_action": answer.suggested_action,
        "suggested_config": config.model_dump(),
        "reasoning_summary": answer.reasoning_summary,
        "risk_flags": flags,
    }
    return Review(_plain_texts(advice), tuple(map(plain, rejected)), tuple(claims))


def unreadable(text: str, problems: Sequence[str]) -> dict[str, Any]:
    """The advice that stands for an answer that could not be read.

    Args:
        text: the answer.
        problems: what is wrong with it.
    """
    claim = "The model's answer could not be read: " + ("; ".join(problems) or "it is empty")
    empty = SuggestedConfig(
        facets=[],
        sort=None,
        sort_desc=None,
        label_column=None,
        columns=[],
        full_text_columns=[],
        hidden_columns=[],
    )
    flag = {"kind": MALFORMED, "column": None, "claim": claim, "evidence_sql": ""}
    advice = {
        "suggested_action": "",
        "suggested_config": empty.model_dump(),
        "reasoning_summary": text,
        "risk_flags": [flag],
    }
    plain_advice: dict[str, Any] = _plain_texts(advice)
    return plain_advice


def reviewed_config(
    config: SuggestedConfig, facts: TableFacts
) -> tuple[SuggestedConfig, list[str]]:
    """What Datasette can use of a suggested configuration.

    Returns:
        The configuration, and a sentence for each thing that was dropped.
    """
    rejected: list[str] = []

    def kept(place: str, names: Iterable[str | None], reason: Callable[[str], str | None]) -> Any:
        good = []
        for name in dict.fromkeys(names):
            if name is None or name == "":
                continue
            problem = "no such column" if name not in facts.columns else reason(name)
            if problem is None:
                good.append(name)
            else:
                rejected.append(f"{place}: {problem}: {name}")
        return good

    def one(place: str, name: str | None, reason: Callable[[str], str | None]) -> str | None:
        return next(iter(kept(place, [name], reason)), None)

    sort = one("sort", config.sort, lambda name: _unsortable(name, facts))
    sort_desc = one("sort_desc", config.sort_desc, lambda name: _unsortable(name, facts))
    if sort is not None and sort_desc is not None:
        rejected.append(f"sort_desc: only one of sort and sort_desc can be set: {sort_desc}")
        sort_desc = None
    described = kept("columns", [each.column for each in config.columns], _fine)
    first = {each.column: each for each in reversed(config.columns)}
    return SuggestedConfig(
        facets=kept("facets", config.facets, _fine),
        sort=sort,
        sort_desc=sort_desc,
        label_column=one("label_column", config.label_column, lambda _: _no_view(facts)),
        columns=[first[name] for name in described],
        full_text_columns=kept(
            "full_text_columns", config.full_text_columns, lambda _: _no_view(facts)
        ),
        hidden_columns=kept(
            "hidden_columns", config.hidden_columns, lambda name: _unhideable(name, facts)
        ),
    ), rejected


def plain(text: str) -> str:
    """A stranger's text without control characters, of bounded length."""
    kept = (c for c in well_formed(text) if c == "\n" or (c >= " " and c not in _TURNING))
    # One more than is kept: a long text would hold up the event loop.
    clean = "".join(islice((c for c in kept if not "\x7f" <= c <= "\x9f"), MAX_TEXT_CHARS + 1))
    return clean if len(clean) <= MAX_TEXT_CHARS else f"{clean[:MAX_TEXT_CHARS]}…"


def _plain_texts(value: Any) -> Any:
    """The texts of an advice as `plain`, but for the names of columns, which are the table's."""
    names = ("column", "facets", "sort", "sort_desc", "label_column", "full_text_columns")
    if isinstance(value, dict):
        kept = (*names, "hidden_columns")
        return {k: v if k in kept else _plain_texts(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_texts(each) for each in value]
    return plain(value) if isinstance(value, str) else value


def _fine(name: str) -> str | None:
    return None


def _unsortable(name: str, facts: TableFacts) -> str | None:
    sortable = facts.sortable is None or name in facts.sortable
    return None if sortable else "sortable_columns does not have it"


def _no_view(facts: TableFacts) -> str | None:
    return "a view cannot have one" if facts.is_view else None


def _unhideable(name: str, facts: TableFacts) -> str | None:
    return "a column of the primary key is always shown" if name in facts.primary_keys else None

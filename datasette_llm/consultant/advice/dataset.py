"""Advice about a table: the schema of a model's answer, and its check against the columns.

A model's answer is untrusted. Its columns are checked against the table, and its claims come with
evidence, which is data that we count: no text of a model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from ...sanitize import well_formed, without_controls
from ..evidence import ClaimEvidence, columns_of

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
    "answer",
]
# The flag of an answer that cannot be parsed; not in the schema, so that no model can set it.
MALFORMED = "malformed_response"

MAX_TEXT_CHARS = 10_000
# Of one answer; what is beyond is dropped.
MAX_CLAIMS = 30
MAX_REJECTED = 50
MAX_PROBLEM_CHARS = 300

NOT_CHECKED = "queries that a model wrote are not run, so read the data before you believe it"
# The keys of a check of earlier versions, which programs may expect.
_EMPTY_RESULT = {"columns": [], "rows": [], "more": False, "tables": [], "duration_ms": 0.0}

# The fields that hold names of columns, or are shown as they are counted.
_EXACT = (
    "evidence",
    "column",
    "facets",
    "sort",
    "sort_desc",
    "label_column",
    "full_text_columns",
    "hidden_columns",
)


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


class Unreadable(BaseModel):
    """Stands for evidence that does not fit its schema, so that the rest of the answer is kept."""

    model_config = ConfigDict(frozen=True)

    problem: str


def _or_unreadable(value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # The first part is pydantic's name of the union, the second the kind.
        where = ".".join(map(str, first["loc"][2:]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        return Unreadable(problem=problem[:MAX_PROBLEM_CHARS])


class RiskFlag(_Closed):
    """A claim about the data, which a program will count."""

    kind: RiskKind
    """What kind of problem it is; `answer` for a part of the answer to the question."""
    column: str | None
    """The exact name of the column concerned; null for the table as a whole."""
    claim: str
    """One sentence."""
    evidence: Annotated[
        ClaimEvidence | SkipJsonSchema[Unreadable], WrapValidator(_or_unreadable)
    ] = Field(default_factory=lambda: Unreadable(problem="there is none"))


class DatasetAdvice(_Closed):
    """Advice about one table."""

    suggested_action: str
    """What to do first, in one sentence."""
    suggested_config: SuggestedConfig
    reasoning_summary: str
    """Why, in a short paragraph."""
    risk_flags: list[RiskFlag]
    _beyond: int = PrivateAttr(default=0)

    @model_validator(mode="wrap")
    @classmethod
    def _bounded(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        # Before each is read, which takes long for thousands of claims.
        flags = data.get("risk_flags") if isinstance(data, dict) else None
        beyond = len(flags) - MAX_CLAIMS if isinstance(flags, list) else 0
        if flags is None or beyond <= 0:
            return read(data)
        made = read({**data, "risk_flags": flags[:MAX_CLAIMS]})
        made._beyond = beyond  # noqa: SLF001  # it is of this class
        return made

    @property
    def beyond(self) -> int:
        """The number of claims after the first `MAX_CLAIMS`, which are not read."""
        return self._beyond


@dataclass(frozen=True, slots=True)
class TableFacts:
    """The facts that advice is checked against.

    Attributes:
        columns: the names of all columns.
        primary_keys: those of the primary key.
        sortable: those that Datasette can sort by; None for all.
        is_view: whether it is a view.
    """

    columns: tuple[str, ...]
    primary_keys: tuple[str, ...] = ()
    sortable: frozenset[str] | None = None
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of an answer, to be checked.

    Attributes:
        kind: as in its risk flag.
        column: the column that it is about; None for the table, or an unknown one.
        sentence: what it says.
        evidence: what to count.
    """

    kind: str
    column: str | None
    sentence: str
    evidence: ClaimEvidence | Unreadable


@dataclass(frozen=True, slots=True)
class Review:
    """An answer after the checks that need no data.

    Attributes:
        advice: the accepted part of it, as JSON.
        rejected: a sentence for each thing that was dropped.
        claims: those of the advice, in order.
    """

    advice: dict[str, Any]
    rejected: tuple[str, ...]
    claims: tuple[Claim, ...] = ()


def review(answer: DatasetAdvice, facts: TableFacts) -> Review:
    """Check an answer against the table's columns.

    Args:
        answer: the model's answer.
        facts: the facts about the table.

    Returns:
        The advice without unknown columns. A risk flag that names one is kept, with the column
        null. Of flags the first `MAX_CLAIMS` are kept.
    """
    config, rejected = reviewed_config(answer.suggested_config, facts)
    claims = [_claim(flag, facts, rejected) for flag in answer.risk_flags]
    if answer.beyond:
        more = f"risk_flags: {answer.beyond:,} more than the {MAX_CLAIMS} that are kept"
        rejected.insert(0, more)
    advice = {
        "suggested_action": answer.suggested_action,
        "suggested_config": config.model_dump(),
        "reasoning_summary": answer.reasoning_summary,
        "risk_flags": [_flag(claim) for claim in claims],
    }
    return Review(
        _plain_texts(advice),
        tuple(map(plain, [*dict.fromkeys(rejected)][:MAX_REJECTED])),
        tuple(claims),
    )


def earlier_checks(advice: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What is shown beside each claim of an earlier version, whose evidence was a query.

    Whatever is stored: the first versions ran the queries.

    Returns:
        None for advice with evidence that was counted.
    """
    claims = [flag for flag in advice.get("risk_flags", ()) if flag["kind"] != MALFORMED]
    if not any("evidence_sql" in claim for claim in claims):
        return None
    return [{"status": "unchecked", "reason": NOT_CHECKED} | _EMPTY_RESULT for _ in claims]


def _claim(flag: RiskFlag, facts: TableFacts, rejected: list[str]) -> Claim:
    known = flag.column is None or flag.column in facts.columns
    evidence = flag.evidence
    named = [] if isinstance(evidence, Unreadable) else columns_of(evidence)
    unknown = [name for name in named if name not in facts.columns]
    for name in dict.fromkeys([*(() if known else (flag.column,)), *unknown]):
        rejected.append(f"risk flag {flag.kind}: no such column: {name}")
    return Claim(flag.kind, flag.column if known else None, flag.claim, evidence)


def _flag(claim: Claim) -> dict[str, Any]:
    """A claim as JSON; its evidence is null where it could not be read."""
    evidence = claim.evidence
    counted = None if isinstance(evidence, Unreadable) else evidence.model_dump(mode="json")
    return {
        "kind": claim.kind,
        "column": claim.column,
        "claim": claim.sentence,
        "evidence": counted,
    }


def unreadable(text: str, problems: Sequence[str]) -> dict[str, Any]:
    """The advice that stands for an answer that cannot be parsed.

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
    flag = {"kind": MALFORMED, "column": None, "claim": claim, "evidence": None}
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
    """Check a suggested configuration.

    Returns:
        What Datasette can use of it, and a sentence for each thing that was dropped.
    """
    rejected: list[str] = []

    def accept(place: str, names: Iterable[str | None], reason: Callable[[str], str | None]) -> Any:
        accepted = []
        for name in dict.fromkeys(names):
            if name is None or name == "":
                continue
            problem = "no such column" if name not in facts.columns else reason(name)
            if problem is None:
                accepted.append(name)
            else:
                rejected.append(f"{place}: {problem}: {name}")
        return accepted

    def accept_one(place: str, name: str | None, reason: Callable[[str], str | None]) -> str | None:
        return next(iter(accept(place, [name], reason)), None)

    sort = accept_one("sort", config.sort, lambda name: _sort_problem(name, facts))
    sort_desc = accept_one("sort_desc", config.sort_desc, lambda name: _sort_problem(name, facts))
    if sort is not None and sort_desc is not None:
        rejected.append(f"sort_desc: only one of sort and sort_desc can be set: {sort_desc}")
        sort_desc = None
    described = accept("columns", [each.column for each in config.columns], _no_problem)
    first = {each.column: each for each in reversed(config.columns)}
    return SuggestedConfig(
        facets=accept("facets", config.facets, _no_problem),
        sort=sort,
        sort_desc=sort_desc,
        label_column=accept_one("label_column", config.label_column, lambda _: _table_only(facts)),
        columns=[first[name] for name in described],
        full_text_columns=accept(
            "full_text_columns", config.full_text_columns, lambda _: _table_only(facts)
        ),
        hidden_columns=accept(
            "hidden_columns", config.hidden_columns, lambda name: _hiding_problem(name, facts)
        ),
    ), rejected


def plain(text: str) -> str:
    """An untrusted text without control characters, of bounded length."""
    # Only as much as is needed: a long text would block the event loop.
    clean = without_controls(well_formed(text[: 2 * MAX_TEXT_CHARS]))
    return clean if len(clean) <= MAX_TEXT_CHARS else f"{clean[:MAX_TEXT_CHARS]}…"


def _plain_texts(value: Any) -> Any:
    """The advice with its texts as `plain`, except what has to be exact."""
    if isinstance(value, dict):
        return {k: v if k in _EXACT else _plain_texts(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_texts(each) for each in value]
    return plain(value) if isinstance(value, str) else value


def _no_problem(name: str) -> str | None:
    return None


def _sort_problem(name: str, facts: TableFacts) -> str | None:
    sortable = facts.sortable is None or name in facts.sortable
    return None if sortable else "sortable_columns does not have it"


def _table_only(facts: TableFacts) -> str | None:
    return "a view cannot have one" if facts.is_view else None


def _hiding_problem(name: str, facts: TableFacts) -> str | None:
    return "a column of the primary key is always shown" if name in facts.primary_keys else None

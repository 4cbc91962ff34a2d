"""What an evaluation is made of, as a file, a form or a program defines it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from datasette.resources import DatabaseResource, TableResource
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import ErrorDetails

from ..config.values import Section, listed, refusal
from ..errors import LLMError
from ..permissions import VIEW_LOG
from .cases import MAX_CANDIDATES, Candidate
from .checks import DEFAULT_CHECKS, Check
from .engine import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S, MAX_CONCURRENCY

if TYPE_CHECKING:
    from datasette.app import Datasette

DEFAULT_CASES = 50
MAX_CASES = 20_000
MAX_NAME_CHARS = 200
MAX_TEMPLATE_CHARS = 100_000

_Text = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
_Limit = Annotated[int, Field(ge=1, le=MAX_CASES)]
_Template = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARS)]


class EvaluationError(LLMError):
    """An evaluation cannot be made or run as it is defined; the message says why."""


class CallCases(Section):
    """Cases from recorded calls with content, whose answers are the baseline."""

    limit: _Limit = DEFAULT_CASES
    """How many."""
    seed: int | None = None
    """For random ones, the same again for the same number; otherwise the newest."""
    model: _Text | None = None
    """Only calls of this model."""
    actor: _Text | None = None
    """Only calls by this actor."""
    since: _Text | None = None
    """Only calls from this time on."""
    until: _Text | None = None
    """Only calls before this time."""
    tag: _Text | None = None
    """Only calls with this tag, such as `job:12`."""


class _RowCases(Section):
    database: _Text
    """The name of the database; in a file for the command line, that of a SQLite file."""
    template: _Template
    """The prompt, in which `{{ column }}` is the value of a column."""
    system: _Template | None = None
    """The system prompt."""
    expected: _Text | None = None
    """The column with the expected answer."""
    limit: _Limit = DEFAULT_CASES
    """How many rows, the first ones."""


class TableCases(_RowCases):
    """Cases from the rows of a table or view."""

    table: _Text
    """Its name."""


class QueryCases(_RowCases):
    """Cases from the rows of a query."""

    sql: _Template
    """The query."""


class LineCases(Section):
    """Cases from lines of JSON, each with `prompt`, and maybe `system`, `expected`, `schema`."""

    text: str = ""
    """The lines; they are not kept, as the cases are."""
    file: _Text | None = None
    """The name of a file with the lines; for the command line only."""
    limit: _Limit | None = None
    """How many, the first ones; all if it is not set."""


class Source(Section):
    """Where cases are from: one of these."""

    calls: CallCases | None = None
    table: TableCases | None = None
    query: QueryCases | None = None
    jsonl: LineCases | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> Source:
        if len(self.model_fields_set) != 1:
            raise refusal("one of calls, table, query or jsonl", f"{len(self.model_fields_set)}")
        return self

    @property
    def kind(self) -> str:
        """The name of the one that is set."""
        return next(iter(self.model_fields_set))

    async def may_be_read(self, datasette: Datasette, actor: Any) -> bool:
        """Whether an actor may see what the cases are made of."""
        if self.calls is not None:
            return bool(await datasette.allowed(action=VIEW_LOG, actor=actor))
        rows = self.table or self.query
        if rows is not None and rows.database not in datasette.databases:
            return False  # a file of the command line, about which no permission says anything
        if self.table is not None:
            table = TableResource(self.table.database, self.table.table)
            return bool(await datasette.allowed(action="view-table", resource=table, actor=actor))
        if self.query is not None:
            database = DatabaseResource(self.query.database)
            return bool(
                await datasette.allowed(action="execute-sql", resource=database, actor=actor)
            )
        return True

    @property
    def missing(self) -> str:
        """What an actor lacks who may not read it."""
        names = {"calls": VIEW_LOG, "table": "view-table", "query": "execute-sql"}
        return names.get(self.kind, "")


class CandidateReference(Section):
    """A model, with options."""

    model: _Text
    options: Mapping[str, Any] = Field(default={}, validate_default=True)


class Thresholds(Section):
    """What every candidate has to reach; an unknown figure does not."""

    max_cost_ratio: float | None = Field(default=None, ge=0)
    """Its cost by that of the baseline, or of the first candidate."""
    min_pass: float | None = Field(default=None, ge=0, le=1)
    """The share of answers that pass every check."""
    max_failures: int | None = Field(default=None, ge=0)
    """How many requests may fail."""


def _reference(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


def _checks(values: tuple[object, ...]) -> tuple[object, ...]:
    for each in values:
        try:
            Check.of(each)
        except ValueError as error:
            raise refusal("a check", str(error)) from None
    return values


_References = Annotated[
    tuple[Annotated[CandidateReference, BeforeValidator(_reference)], ...],
    BeforeValidator(listed),
    Field(min_length=1, max_length=MAX_CANDIDATES),
]
_Checks = Annotated[tuple[Any, ...], BeforeValidator(listed), AfterValidator(_checks)]


class Definition(Section):
    """An evaluation, before it runs."""

    name: _Text | None = None
    """What to call it."""
    purpose: _Text | None = None
    """What the requests are for; of recorded calls only those for it are cases."""
    candidates: _References
    """The models to compare, up to four: ids, or `{model, options}`."""
    cases: Source
    """Where the cases are from."""
    checks: _Checks = tuple(each.written for each in DEFAULT_CHECKS)
    """What each answer is checked for."""
    concurrency: int = Field(default=DEFAULT_CONCURRENCY, ge=1, le=MAX_CONCURRENCY)
    """How many requests run at once."""
    timeout: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=86_400)
    """How long an answer may take, in seconds."""
    response_cache: bool = False
    """Whether answers that the response cache keeps are used."""
    thresholds: Thresholds = Field(default={}, validate_default=True)
    """What decides about the exit status of `datasette llm eval`."""

    @classmethod
    def of(cls, raw: object) -> Definition:
        """The definition that a file, a form or a program gives.

        Args:
            raw: plain data.

        Raises:
            EvaluationError: it is invalid; the message names every problem.
        """
        try:
            return cls.model_validate(raw)
        except pydantic.ValidationError as error:
            problems = error.errors(include_url=False)
            lines = "; ".join(f"{_path(each['loc'])}: {_problem(each)}" for each in problems)
        raise EvaluationError(lines)  # outside `except`: the context holds what was refused

    @property
    def label(self) -> str:
        """Its name, or what it compares."""
        return self.name or " or ".join(each.label for each in self.asked)

    @property
    def asked(self) -> tuple[Candidate, ...]:
        """The candidates."""
        return tuple(Candidate(each.model, dict(each.options)) for each in self.candidates)

    @property
    def check_list(self) -> tuple[Check, ...]:
        """The checks."""
        return tuple(dict.fromkeys(map(Check.of, self.checks)))

    def stored(self) -> dict[str, Any]:
        """It as plain data, without the lines of JSON, which become cases."""
        plain = self.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        if self.cases.jsonl is not None:
            plain["cases"]["jsonl"].pop("text", None)
        return plain


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown ({error['input']})"  # a hint, which the section has put there
    return "is needed" if error["type"] == "missing" else error["msg"]


def _path(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return re.sub(r"^\.", "", text) or "evaluation"

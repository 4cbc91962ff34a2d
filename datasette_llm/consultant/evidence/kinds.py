"""The kinds of evidence. Their docstrings are part of what a model gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

Op = Literal[
    "=",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "like",
    "not like",
    "contains",
    "is null",
    "is not null",
    "is empty",
    "is missing",
    "has edge spaces",
    "length =",
    "length <",
    "length >",
    "type is",
    "mask is",
    "parses as",
    "does not parse as",
]
Form = Literal["number", "date", "time", "json", "missing"]
SqlType = Literal["null", "integer", "real", "text", "blob"]
Function = Literal["count", "distinct", "min", "max", "mean", "sum"]
Scalar = str | int | float

# In fewer words than with `anyOf`, since the schema is part of every prompt.
_Count = Annotated[int | None, WithJsonSchema({"type": ["integer", "null"]})]
_Column = Annotated[str | None, WithJsonSchema({"type": ["string", "null"]})]
_Value = Annotated[Scalar | None, WithJsonSchema({"type": ["string", "number", "null"]})]
_Listed = Annotated[Scalar, WithJsonSchema({"type": ["string", "number"]})]

# What is counted of one claim, so that its query stays short and ends.
MAX_CONDITIONS = 50
MAX_NAMES = 50
MAX_VALUES = 100
MAX_VALUE_CHARS = 200
MAX_TOP = 20
MAX_NUMBER = 10**300

_WITHOUT_VALUE = ("is null", "is not null", "is empty", "is missing", "has edge spaces")
_OF_TEXT = ("like", "not like", "contains", "mask is")
# Both hold for every row that has a value of the type.
_COMPLEMENTS = (
    {"=", "!="},
    {"<", ">="},
    {">", "<="},
    {"<=", ">="},
    {"is null", "is not null"},
    {"like", "not like"},
    {"parses as", "does not parse as"},
)


def _without_defaults(schema: dict[str, Any]) -> None:
    # A model has to give all of them.
    for each in schema["properties"].values():
        each.pop("default", None)


class _Closed(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra=_without_defaults,
    )


class Condition(_Closed):
    """A condition on a cell; numbers are compared with numbers only, and texts with texts."""

    column: str
    op: Op
    value: _Value | tuple[_Listed, ...] = None
    """A list for `in`; for `parses as` number, date, time, json or missing; null where none."""
    other_column: _Column = None
    """To compare with instead of the value."""


AnyOf = tuple[tuple[Condition, ...], ...]


class Rows(_Closed):
    """How many rows meet all conditions of one of the lists."""

    kind: Literal["rows"] = "rows"
    any_of: AnyOf
    expected: _Count = None


class Aggregate(_Closed):
    """A figure of a column's numbers; of its texts for count, distinct and an expected text."""

    kind: Literal["aggregate"] = "aggregate"
    function: Literal[Function, "median", "share"]
    """`share` is the percentage, 0 to 100, of all rows that meet `any_of`."""
    column: _Column
    """Null for count and share of rows."""
    any_of: AnyOf = ()
    """As in Rows; empty for all rows."""
    expected: _Value = None


class Top(_Closed):
    """Which values of a column come first."""

    kind: Literal["top"] = "top"
    group_by: str
    function: Function
    column: _Column
    """Null to count rows."""
    any_of: AnyOf = ()
    order: Literal["largest", "smallest"] = "largest"
    limit: int = 5
    expected: _Value = None
    """The value of group_by that comes first."""


class Duplicates(_Closed):
    """How many rows repeat an earlier one in these columns."""

    kind: Literal["duplicates"] = "duplicates"
    columns: tuple[str, ...]
    ignoring_case: bool = False
    """Of one column: how many rows write a text in another case than most."""
    expected: _Count = None


class Orphans(_Closed):
    """How many rows have a value that is not in a column of another table."""

    kind: Literal["orphans"] = "orphans"
    column: str
    other_table: str
    other_column: str
    expected: _Count = None


class Pattern(_Closed):
    """How many texts look unlike the usual ones."""

    kind: Literal["pattern"] = "pattern"
    column: str
    of: Literal["mask", "shape", "date format"]
    """A mask has 9 for a digit, a and A for letters; in a shape each run of them is one."""
    usual: tuple[str, ...]
    expected: _Count = None


class Opinion(_Closed):
    """Nothing that can be counted."""

    kind: Literal["opinion"] = "opinion"


Evidence = Annotated[
    Rows | Aggregate | Top | Duplicates | Orphans | Pattern, Field(discriminator="kind")
]
ClaimEvidence = Annotated[
    Rows | Aggregate | Top | Duplicates | Orphans | Pattern | Opinion, Field(discriminator="kind")
]


def conditions_of(evidence: ClaimEvidence) -> Iterator[Condition]:
    """All conditions, in order."""
    if isinstance(evidence, Rows | Aggregate | Top):
        for conditions in evidence.any_of:
            yield from conditions


def columns_of(evidence: ClaimEvidence) -> list[str]:
    """The names of the asked table's columns that it is about, each once."""
    names: list[str | None] = []
    match evidence:
        case Aggregate() | Orphans() | Pattern():
            names = [evidence.column]
        case Top():
            names = [evidence.group_by, evidence.column]
        case Duplicates():
            names = [*evidence.columns]
    for condition in conditions_of(evidence):
        names += [condition.column, condition.other_column]
    return [name for name in dict.fromkeys(names) if name is not None]


def problem_of(evidence: ClaimEvidence) -> str | None:
    """Why it counts nothing that proves anything, as the end of a sentence; or None."""
    conditions = list(conditions_of(evidence))
    if len(conditions) > MAX_CONDITIONS or len(columns_of(evidence)) > MAX_NAMES:
        return f"it has more than {MAX_CONDITIONS} conditions or columns"
    if any(map(_is_long, _values(evidence))):
        return f"it has a value of more than {MAX_VALUE_CHARS} characters"
    if any(map(_is_large, (*_values(evidence), getattr(evidence, "expected", None)))):
        return "it has a number that is too large"
    problem = next(filter(None, map(_problem_of_condition, conditions)), None)
    return problem or _problem_of_alternatives(evidence) or _problem_of_kind(evidence)


def _problem_of_kind(evidence: ClaimEvidence) -> str | None:
    match evidence:
        case Aggregate(column=None, function=function) if function not in ("count", "share"):
            return f"the {function} of no column cannot be counted"
        case Aggregate(function="share", any_of=(), column=None):
            return "the share of all rows is always 100 %"
        case Top(column=None, function=function) if function != "count":
            return f"the {function} of no column cannot be counted"
        case Top(limit=limit) if not 1 <= limit <= MAX_TOP:
            return f"its limit has to be from 1 to {MAX_TOP}"
        case Duplicates(columns=()):
            return "it names no columns"
        case Duplicates(columns=(_, _, *_), ignoring_case=True):
            return "case is ignored in one column only"
        case Pattern(usual=usual) if not 0 < len(usual) <= MAX_VALUES:
            return f"it has to name from 1 to {MAX_VALUES} usual patterns"
    return None


def _problem_of_alternatives(evidence: ClaimEvidence) -> str | None:
    any_of = getattr(evidence, "any_of", None)
    if any_of is None or (not any_of and not isinstance(evidence, Rows)):
        return None
    if not any_of or not all(any_of):
        return "it has no condition"
    single = [each[0] for each in any_of if len(each) == 1]
    for at, one in enumerate(single):
        for other in single[:at]:
            operands = {(each.column, each.value, each.other_column) for each in (one, other)}
            if len(operands) == 1 and {one.op, other.op} in _COMPLEMENTS:
                return f"`{one.column}` {other.op} or {one.op} the same always holds"
    return None


def _problem_of_condition(condition: Condition) -> str | None:
    op, value, name = condition.op, condition.value, condition.column
    if condition.other_column is not None:
        if op not in ("=", "!=", "<", "<=", ">", ">="):
            return f"`{op}` cannot compare `{name}` with another column"
        same = condition.other_column == name
        return f"it compares `{name}` with itself" if same else None
    if op in _WITHOUT_VALUE:
        return None
    if value is None:
        return f"`{name}` {op} lacks a value"
    if isinstance(value, tuple) != (op == "in"):
        return f"`{name}` {op} has {'a list' if op != 'in' else 'no list'} as its value"
    if isinstance(value, tuple):
        fits = 0 < len(value) <= MAX_VALUES
        return None if fits else f"`{name}` in needs from 1 to {MAX_VALUES} values"
    return _problem_of_value(name, op, value)


def _problem_of_value(name: str, op: Op, value: Scalar) -> str | None:
    if op in ("parses as", "does not parse as") and value not in get_args(Form):
        return f"`{name}` {op} takes {', '.join(get_args(Form))}"
    if op == "type is" and value not in get_args(SqlType):
        return f"`{name}` type is takes {', '.join(get_args(SqlType))}"
    if op in _OF_TEXT and not isinstance(value, str):
        return f"`{name}` {op} takes a text"
    if op.startswith("length") and isinstance(value, str):
        return f"`{name}` {op} takes a number"
    return None


def _values(evidence: ClaimEvidence) -> Iterator[Scalar]:
    for condition in conditions_of(evidence):
        value = condition.value
        yield from value if isinstance(value, tuple) else () if value is None else (value,)
    if isinstance(evidence, Pattern):
        yield from evidence.usual


def _is_large(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) > MAX_NUMBER


def _is_long(value: Scalar) -> bool:
    return isinstance(value, str) and len(value) > MAX_VALUE_CHARS

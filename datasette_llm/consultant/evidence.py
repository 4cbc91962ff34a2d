"""Evidence: what to count in a table to see whether a claim about it is true, as data.

We write the SQL from it, with quoted names; no text of anyone else is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from . import text_forms
from .profile.table import column_ref, quote_identifier, table_source

if TYPE_CHECKING:
    from sqlite3 import Connection

Op = Literal[
    "=",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "is null",
    "is empty",
    "is missing",
    "type is",
    "mask is",
    "contains",
    "parses as",
    "does not parse as",
    "has edge spaces",
]
Sql = tuple[str, list[Any]]

_FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "llm_mask": text_forms.mask,
    "llm_shape": lambda text: text_forms.shape(text_forms.mask(text)),
    "llm_date_format": text_forms.date_format,
    "llm_is_missing": text_forms.is_missing,
    "llm_is_number": text_forms.is_number,
    "llm_is_time": text_forms.is_time,
    "llm_fold": text_forms.fold,
}
_PATTERNS = {"mask": "llm_mask", "shape": "llm_shape", "date format": "llm_date_format"}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Condition(_Closed):
    """A condition on one column of a row."""

    column: str
    """The exact name of a column."""
    op: Op
    """How to compare; numbers are compared with numbers only, and texts with texts."""
    value: str | int | float | None = None
    """What to compare with; for `parses as` number, date, time, json or missing."""
    other_column: str | None = None
    """A column to compare with instead of the value."""


class Rows(_Closed):
    """How many rows meet a condition."""

    kind: Literal["rows"] = "rows"
    any_of: tuple[tuple[Condition, ...], ...]
    """The condition is met if all conditions of one of these lists are."""
    expected: int | None
    """The number of rows."""


class Aggregate(_Closed):
    """A figure of a column."""

    kind: Literal["aggregate"] = "aggregate"
    function: Literal["count", "distinct", "min", "max", "mean", "sum"]
    column: str
    expected: float | None
    """The figure."""


class Duplicates(_Closed):
    """How many rows repeat others."""

    kind: Literal["duplicates"] = "duplicates"
    columns: tuple[str, ...]
    """The columns that are equal."""
    ignoring_case: bool = False
    """Count the rows that write their text in another case than most rows with that text."""
    expected: int | None
    """The number of rows, without the first of each group."""


class Orphans(_Closed):
    """How many rows refer to no row of another table."""

    kind: Literal["orphans"] = "orphans"
    column: str
    other_table: str
    other_column: str
    expected: int | None
    """The number of rows whose value is not in the other column."""


class Pattern(_Closed):
    """How many texts of a column look unlike the others."""

    kind: Literal["pattern"] = "pattern"
    column: str
    of: Literal["mask", "shape", "date format"]
    """A mask has 9 for a digit, a and A for letters; in a shape each run of them is one."""
    usual: tuple[str, ...]
    """How most texts look."""
    expected: int | None
    """The number of rows with another text, or for dates with a date in another format."""


Evidence = Annotated[Rows | Aggregate | Duplicates | Orphans | Pattern, Field(discriminator="kind")]


def prepare(connection: Connection) -> None:
    """Define the functions that the SQL of evidence uses.

    Args:
        connection: one of ours, used for nothing else.
    """
    encoding = connection.execute("pragma encoding").fetchone()[0]
    for name, function in _FUNCTIONS.items():
        connection.create_function(name, 1, _on_bytes(function, encoding), deterministic=True)


def evidence_sql(evidence: Evidence, table: str) -> Sql:
    """The SQL that counts, and its parameters; the result is one number.

    Args:
        evidence: what to count.
        table: the table or view, as in the schema.
    """
    match evidence:
        case Rows():
            where, params = _where(evidence.any_of)
            return f"select count(*) from {table_source(table)} where {where}", params
        case Aggregate():
            return _aggregate_sql(evidence, table), []
        case Duplicates():
            return _duplicates_sql(evidence, table), []
        case Orphans():
            return _orphans_sql(evidence, table), []
        case Pattern():
            return _pattern_sql(evidence, table)


def count(connection: Connection, evidence: Evidence, table: str) -> Any:
    """The number that evidence counts, in all rows of a table.

    Args:
        connection: a prepared one, with limits.
        evidence: what to count.
        table: the table or view.

    Raises:
        sqlite3.Error: it cannot be counted.
    """
    return connection.execute(*evidence_sql(evidence, table)).fetchone()[0]


def _on_bytes(function: Callable[[str], Any], encoding: str) -> Callable[[bytes], Any]:
    # Of texts as bytes, since sqlite3 refuses those that are not well-formed.
    return lambda value: function(value.decode(encoding, "replace"))


def _where(any_of: tuple[tuple[Condition, ...], ...]) -> Sql:
    params: list[Any] = []
    alternatives = []
    for conditions in any_of:
        parts = []
        for condition in conditions:
            sql, values = _condition(condition)
            parts.append(sql)
            params += values
        alternatives.append(f"({' and '.join(parts)})")
    return " or ".join(alternatives) or "0", params


def _condition(condition: Condition) -> Sql:
    cell, value = column_ref(condition.column), condition.value
    is_text = f"typeof({cell}) = 'text'"
    match condition.op:
        case "is null":
            return f"{cell} is null", []
        case "is empty":
            return f"({is_text} and {cell} = '')", []
        case "is missing":
            return f"({cell} is null or {is_text} and {_call('llm_is_missing', cell)})", []
        case "type is":
            return f"typeof({cell}) = ?", [value]
        case "mask is":
            return f"({is_text} and {_call('llm_mask', cell)} = ?)", [value]
        case "contains":
            return f"({is_text} and instr({cell}, ?) > 0)", [value]
        case "has edge spaces":
            return f"({is_text} and {cell} <> trim({cell}, ?))", [text_forms.EDGE_SPACES]
        case "parses as":
            return f"({is_text} and {_parses(cell, value)})", []
        case "does not parse as":
            return f"({is_text} and not {_parses(cell, value)})", []
        case operator:
            return _comparison(cell, operator, condition)


def _comparison(cell: str, operator: str, condition: Condition) -> Sql:
    if condition.other_column is not None:
        return f"+{cell} {operator} +{column_ref(condition.other_column)} collate binary", []
    kinds = "('text')" if isinstance(condition.value, str) else "('integer', 'real')"
    # The plus removes the column's affinity, which could turn the value into a text.
    return f"(typeof({cell}) in {kinds} and +{cell} {operator} ? collate binary)", [condition.value]


def _parses(cell: str, form: Any) -> str:
    if form == "json":
        return f"json_valid({cell})"
    if form == "date":
        return f"{_call('llm_date_format', cell)} is not null"
    return _call(
        {"time": "llm_is_time", "missing": "llm_is_missing"}.get(form, "llm_is_number"), cell
    )


def _call(function: str, cell: str) -> str:
    return f"{function}(cast({cell} as blob))"


def _aggregate_sql(evidence: Aggregate, table: str) -> str:
    cell = column_ref(evidence.column)
    numbers = f"case when typeof({cell}) in ('integer', 'real') then +{cell} end"
    figure = {
        "count": f"count({cell})",
        "distinct": f"count(distinct {cell} collate binary)",
        "min": f"min({numbers})",
        "max": f"max({numbers})",
        "mean": f"avg({numbers})",
        "sum": f"total({numbers})",
    }[evidence.function]
    return f"select {figure} from {table_source(table)}"


def _duplicates_sql(evidence: Duplicates, table: str) -> str:
    source = table_source(table)
    if evidence.ignoring_case:
        cell = column_ref(evidence.columns[0])
        spelled = (
            f"select {_call('llm_fold', cell)} as f, count(*) as n from {source} "
            f"where typeof({cell}) = 'text' "
            f"group by trim({cell}, {_literal(text_forms.EDGE_SPACES)}) collate binary"
        )
        return (
            "select coalesce(sum(rows - most), 0) from "
            f"(select sum(n) as rows, max(n) as most from ({spelled}) group by f)"
        )
    cells = [column_ref(name) for name in evidence.columns]
    where = f"where {cells[0]} is not null " if len(cells) == 1 else ""
    grouped = ", ".join(f"{cell} collate binary" for cell in cells)
    groups = f"select count(*) as n from {source} {where}group by {grouped} having n > 1"
    return f"select coalesce(sum(n - 1), 0) from ({groups})"


def _literal(text: str) -> str:
    codes = ", ".join(str(ord(char)) for char in text)
    return f"char({codes})"


def _orphans_sql(evidence: Orphans, table: str) -> str:
    cell, other = column_ref(evidence.column), quote_identifier(evidence.other_column)
    keys = f"select o.{other} from main.{quote_identifier(evidence.other_table)} as o"
    return (
        f"select count(*) from {table_source(table)} where {cell} is not null "
        f"and {cell} not in ({keys} where o.{other} is not null)"
    )


def _pattern_sql(evidence: Pattern, table: str) -> Sql:
    cell = column_ref(evidence.column)
    pattern = _call(_PATTERNS[evidence.of], cell)
    sql = (
        f"select count(*) from {table_source(table)} where typeof({cell}) = 'text' "
        f"and not {_call('llm_is_missing', cell)} "
        f"and {pattern} not in (select value from json_each(?))"
    )
    return sql, [json.dumps(evidence.usual)]

"""The SQL that counts evidence, with quoted names and bound values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...sanitize import well_formed
from .. import text_forms
from ..profile.table import column_ref, quote_identifier, table_source
from .kinds import (
    Aggregate,
    AnyOf,
    Condition,
    Duplicates,
    Evidence,
    Orphans,
    Pattern,
    Rows,
    Scalar,
    Top,
)

if TYPE_CHECKING:
    from sqlite3 import Connection

Sql = tuple[str, list[Any]]

_FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "llm_mask": text_forms.mask,
    "llm_shape": lambda text: text_forms.shape(text_forms.mask(text)),
    "llm_date_format": text_forms.date_format,
    "llm_is_missing": text_forms.is_missing,
    "llm_is_number": text_forms.is_number,
    "llm_is_time": text_forms.is_time,
    "llm_fold": text_forms.fold,
    # SQLite's own ends at the first NUL.
    "llm_length": len,
}
_PATTERNS = {"mask": "llm_mask", "shape": "llm_shape", "date format": "llm_date_format"}
_NUMBERS = "('integer', 'real')"
_MAX_INTEGER = 2**63 - 1
# A quoted name, or what stands for a bound value.
_NAME_OR_VALUE = re.compile(r'"(?:[^"]|"")*"|\?')


def prepare(connection: Connection) -> None:
    """Define the functions that the SQL of evidence uses.

    Args:
        connection: one of ours, used for nothing else.
    """
    encoding = connection.execute("pragma encoding").fetchone()[0]
    for name, function in _FUNCTIONS.items():
        connection.create_function(name, 1, _on_bytes(function, encoding), deterministic=True)


def evidence_sql(evidence: Evidence, table: str) -> Sql:
    """The SQL that counts, and its parameters.

    Its result is one number; of a `Top` rows of a value and a figure.

    Args:
        evidence: what to count.
        table: the table or view, as in the schema.
    """
    match evidence:
        case Rows():
            where, params = _where(evidence.any_of)
            return f"select count(*) from {table_source(table)} where {where}", params
        case Aggregate():
            return _aggregate_sql(evidence, table)
        case Top():
            return _top_sql(evidence, table)
        case Duplicates():
            return _duplicates_sql(evidence, table), []
        case Orphans():
            return _orphans_sql(evidence, table), []
        case Pattern():
            return _pattern_sql(evidence, table)


def shown_sql(evidence: Evidence, table: str) -> str | None:
    """The SQL with its values as literals, for a person to run.

    Args:
        evidence: what is counted.
        table: the table or view.

    Returns:
        None where it uses functions of ours, or SQL has no literal for a value.
    """
    sql, params = evidence_sql(evidence, table)
    if "llm_" in _NAME_OR_VALUE.sub("", sql) or any("\0" in str(each) for each in params):
        return None
    values = iter(params)
    return _NAME_OR_VALUE.sub(lambda m: _literal(next(values)) if m[0] == "?" else m[0], sql)


def count(connection: Connection, evidence: Evidence, table: str) -> Any:
    """The number that evidence counts, in all rows of a table.

    Args:
        connection: a prepared one, with limits.
        evidence: what to count, but no `Top`.
        table: the table or view.

    Raises:
        sqlite3.Error: it cannot be counted.
    """
    return connection.execute(*evidence_sql(evidence, table)).fetchone()[0]


def top(connection: Connection, evidence: Top, table: str) -> list[tuple[Any, Any]]:
    """The values that come first, each with its figure.

    Args:
        connection: as for `count`.
        evidence: what to rank.
        table: the table or view.

    Raises:
        sqlite3.Error: it cannot be ranked.
    """
    return connection.execute(*evidence_sql(evidence, table)).fetchall()


def _on_bytes(function: Callable[[str], Any], encoding: str) -> Callable[[bytes], Any]:
    # Of texts as bytes, since sqlite3 refuses those that are not well-formed.
    return lambda value: function(value.decode(encoding, "replace"))


def _where(any_of: AnyOf) -> Sql:
    params: list[Any] = []
    alternatives = []
    for conditions in any_of:
        parts = []
        for condition in conditions:
            sql, values = _condition(condition)
            parts.append(sql)
            params += values
        alternatives.append(f"({' and '.join(parts) or '1'})")
    return " or ".join(alternatives) or "0", [_bound(each) for each in params]


def _condition(condition: Condition) -> Sql:
    cell, value = column_ref(condition.column), condition.value
    is_text = f"typeof({cell}) = 'text'"
    match condition.op:
        case "is null" | "is not null":
            return f"{cell} {condition.op}", []
        case "is empty":
            return f"({is_text} and {cell} = '' collate binary)", []
        case "is missing":
            return f"({cell} is null or {is_text} and {_call('llm_is_missing', cell)})", []
        case "type is":
            return f"typeof({cell}) = ?", [value]
        case "mask is":
            return f"({is_text} and {_call('llm_mask', cell)} = ?)", [value]
        case "contains":
            return f"({is_text} and instr({cell}, ?) > 0)", [value]
        case "like" | "not like":
            return f"({is_text} and {cell} {condition.op} ?)", [value]
        case "has edge spaces":
            spaces = text_forms.EDGE_SPACES
            return f"({is_text} and {cell} <> trim({cell}, ?) collate binary)", [spaces]
        case "length =" | "length <" | "length >":
            operator = condition.op.removeprefix("length ")
            return f"({is_text} and {_call('llm_length', cell)} {operator} ?)", [value]
        case "parses as":
            return f"({is_text} and {_parses(cell, value)})", []
        case "does not parse as":
            return f"({is_text} and not {_parses(cell, value)})", []
        case "in":
            return _is_in(cell, value)
        case operator:
            return _comparison(cell, operator, condition)


def _comparison(cell: str, operator: str, condition: Condition) -> Sql:
    if condition.other_column is not None:
        return f"+{cell} {operator} +{column_ref(condition.other_column)} collate binary", []
    kinds = "('text')" if isinstance(condition.value, str) else _NUMBERS
    # The plus removes the column's affinity, which could turn the value into a text.
    return f"(typeof({cell}) in {kinds} and +{cell} {operator} ? collate binary)", [condition.value]


def _is_in(cell: str, value: Any) -> Sql:
    listed = value if isinstance(value, tuple) else (value,)
    texts = [each for each in listed if isinstance(each, str)]
    numbers = [each for each in listed if isinstance(each, int | float)]
    parts = [
        f"typeof({cell}) in {kinds} and +{cell} collate binary in ({', '.join('?' * len(each))})"
        for kinds, each in (("('text')", texts), (_NUMBERS, numbers))
        if each
    ]
    return f"({' or '.join(parts) or '0'})", [*texts, *numbers]


def _bound(value: Any) -> Any:
    """A value that SQLite takes; an integer that is too large for it is compared as a real."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, int) and not -_MAX_INTEGER <= value <= _MAX_INTEGER:
        return float(value)
    return value


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


def _aggregate_sql(evidence: Aggregate, table: str) -> Sql:
    source, function = table_source(table), evidence.function
    cell = None if evidence.column is None else column_ref(evidence.column)
    where, params = _where(evidence.any_of) if evidence.any_of else ("1", [])
    if function == "share":
        filled = "" if cell is None else f" and {cell} is not null"
        share = f"100.0 * count(case when ({where}){filled} then 1 end) / count(*)"
        return f"select {share} from {source}", params
    if function == "median":
        return _median_sql(f"from {source} where typeof({cell}) in {_NUMBERS}", cell, where), params
    figure = _figure(function, cell, of_texts=isinstance(evidence.expected, str))
    condition = f" where {where}" if evidence.any_of else ""
    return f"select {figure} from {source}{condition}", params


def _figure(function: str, cell: str | None, *, of_texts: bool = False) -> str:
    if cell is None:
        return "count(*)"
    kinds = "('text')" if of_texts else _NUMBERS
    values = f"case when typeof({cell}) in {kinds} then +{cell} end"
    return {
        "count": f"count({cell})",
        "distinct": f"count(distinct {cell} collate binary)",
        "min": f"min({values})",
        "max": f"max({values})",
        "mean": f"avg({values})",
        "sum": f"total({values})",
    }[function]


def _median_sql(rows: str, cell: str | None, where: str) -> str:
    return (
        f"with v(n) as (select +{cell} {rows} and ({where})) select avg(n) from (select n from v "
        "order by n limit 2 - (select count(*) from v) % 2 "
        "offset (select max(0, (count(*) - 1) / 2) from v))"
    )


def _top_sql(evidence: Top, table: str) -> Sql:
    group = column_ref(evidence.group_by)
    cell = None if evidence.column is None else column_ref(evidence.column)
    where, params = _where(evidence.any_of) if evidence.any_of else ("1", [])
    direction = "desc" if evidence.order == "largest" else "asc"
    return (
        f"select {group}, {_figure(evidence.function, cell)} as figure "
        f"from {table_source(table)} where {group} is not null and ({where}) "
        f"group by {group} collate binary having figure is not null "
        f"order by figure {direction}, {group} collate binary limit {evidence.limit}"
    ), params


def _duplicates_sql(evidence: Duplicates, table: str) -> str:
    source = table_source(table)
    if evidence.ignoring_case:
        cell = column_ref(evidence.columns[0])
        spelled = (
            f"select {_call('llm_fold', cell)} as f, count(*) as n from {source} "
            f"where typeof({cell}) = 'text' "
            f"group by trim({cell}, {_characters(text_forms.EDGE_SPACES)}) collate binary"
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


def _literal(value: Scalar) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).replace("inf", "9e999")


def _characters(text: str) -> str:
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

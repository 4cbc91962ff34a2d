"""Where evidence can be seen in Datasette: the filters of a table's page, or its page for SQL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from ...consultant.evidence import Evidence, shown_sql

# Evidence and profiles are as stored, also by earlier versions.
Condition = Mapping[str, Any]
Columns = Mapping[str, Mapping[str, Any]]

_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)
_COMPARISONS = {"!=": "not", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_NUMBERS, _TEXTS = {"null", "integer", "real"}, {"null", "text"}
# Texts of the first form are compared as numbers by Datasette's filters.
_NUMERIC = re.compile(r"\s*[+-]?(\d|\.\d|inf|nan)", re.IGNORECASE)
_GLOB = re.compile(r"([*?\[])")


def table_query(evidence: Mapping[str, Any] | None, profile: Mapping[str, Any]) -> str | None:
    """The query string of the table's page that has the rows of the evidence, and no others.

    Args:
        evidence: as in a finding or a claim; or None.
        profile: of the table, which tells how SQLite compares the values of a column.

    Returns:
        None where no filters say the same.
    """
    if not evidence or evidence.get("kind") != "rows":
        return None
    columns = {each["name"]: each for each in profile.get("columns", ())}
    alternatives = evidence["any_of"]
    if len(alternatives) == 1:
        filters = [_filter(condition, columns) for condition in alternatives[0]]
    else:
        filters = [_one_of(alternatives, columns)]
    known = [each for each in filters if each is not None]
    if not known or len(known) < len(filters):
        return None
    return urlencode([(f"{name}__{lookup}", value) for name, lookup, value in known])


def sql_of(evidence: Mapping[str, Any] | None, table: str) -> str | None:
    """The SQL that counts the evidence of a finding; None where Datasette cannot run it.

    Args:
        evidence: as in a finding, by any version; or None.
        table: the table or view.
    """
    try:
        return shown_sql(_EVIDENCE.validate_python(evidence), table)
    except ValidationError:
        return None


def _filter(condition: Condition, columns: Columns) -> tuple[str, str, str] | None:
    column = columns.get(condition["column"])
    if column is None or condition.get("other_column") is not None:
        return None
    name, op, value = column["name"], condition["op"], condition.get("value")
    if op == "is null":
        return name, "isnull", "1"
    if op == "is not null":
        return name, "notnull", "1"
    if op == "is empty":
        return name, "exact", ""
    if op in ("=", "in"):
        values = value if isinstance(value, list | tuple) else [value]
        same = all(_same_when_equal(each, column) for each in values)
        return (name, "in", json.dumps(list(values))) if same else None
    if op in _COMPARISONS:
        return (name, _COMPARISONS[op], str(value)) if _same_order(value, column) else None
    if op in ("like", "not like") and _only(column, _TEXTS):
        return name, "like" if op == "like" else "notlike", str(value)
    if op == "contains" and _only(column, _TEXTS):
        quoted = _GLOB.sub(r"[\1]", str(value))
        return name, "glob", f"*{quoted}*"
    return None


def _one_of(alternatives: Sequence[Sequence[Condition]], columns: Columns) -> Any:
    """The filter for one of several values of a column, or for null or an empty text."""
    conditions = [each[0] for each in alternatives if len(each) == 1]
    names = {each["column"] for each in conditions}
    if len(conditions) < len(alternatives) or len(names) != 1:
        return None
    (name,) = names
    if {_emptiness(each) for each in conditions} == {"null", "empty"}:
        return (name, "isblank", "1") if name in columns else None
    if any(each["op"] != "=" or each.get("other_column") is not None for each in conditions):
        return None
    values = [each.get("value") for each in conditions]
    return _filter({"column": name, "op": "in", "value": values}, columns)


def _emptiness(condition: Condition) -> str | None:
    if condition["op"] == "is null":
        return "null"
    empty = condition["op"] == "is empty" or (condition["op"], condition.get("value")) == ("=", "")
    return "empty" if empty else None


def _same_when_equal(value: Any, column: Mapping[str, Any]) -> bool:
    """Whether Datasette finds equal what we do, which is of the same type."""
    if isinstance(value, str):
        return not (_affinity(column) == "numeric" and _NUMERIC.match(value))
    return _is_number(value) and _affinity(column) != "text"


def _same_order(value: Any, column: Mapping[str, Any]) -> bool:
    """Whether Datasette's comparison finds what ours does, with values of the same type only."""
    if isinstance(value, str):
        return _only(column, _TEXTS) and not _NUMERIC.match(value)
    numeric = _is_number(value) and _affinity(column) == "numeric"
    return numeric and _only(column, _NUMBERS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _only(column: Mapping[str, Any], types: set[str]) -> bool:
    """Whether a column has values of some types only, in all rows."""
    # Of earlier versions it is not known.
    return bool(column.get("exact")) and set(column.get("observed_types", ())) <= types


def _affinity(column: Mapping[str, Any]) -> str:
    """How SQLite converts a value that it compares with the column: its rules, in their order."""
    declared = (column.get("declared_type") or "").upper()
    if "INT" in declared:
        return "numeric"
    if any(each in declared for each in ("CHAR", "CLOB", "TEXT")):
        return "text"
    return "none" if not declared or "BLOB" in declared else "numeric"

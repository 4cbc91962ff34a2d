"""The statistics of one column, of a whole table or a sample: one query, and its result.

The values are grouped first, which is the expensive part; everything else comes from the groups.
Values are compared byte by byte, whatever collation the column has. No blob leaves SQLite, and no
more of a text than is displayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .table import column_ref, table_source

MAX_DISPLAY_CHARS = 80
TRUNCATION_MARK = "…"
TOP_VALUES = 10
# SQLite orders values: NULL, numbers, texts, blobs. The unary plus removes the column's affinity,
# by which a number could be compared as text, or the reverse.
_NUMBERS, _TEXTS, _BLOBS = "+v < ''", "+v >= '' and +v < x''", "+v >= x''"


@dataclass(frozen=True, slots=True)
class ValueGroups:
    """SQL for the values of a column, grouped.

    Attributes:
        sql: a query for v, the value, and n, its number of rows.
        length: an expression for the length of a text in characters, of a blob in bytes.
        reals: an expression for how many rows of a group of equal numbers are REAL.
    """

    sql: str
    length: str
    reals: str


def table_groups(table: str, column: str, untyped: bool) -> ValueGroups:
    """The grouped values of a column of a table or view.

    Args:
        table: its name.
        column: its name.
        untyped: whether equal integers and reals can both occur in it.
    """
    value = column_ref(column)
    counted = f", count(*) filter (where typeof({value}) = 'real') as r" if untyped else ""
    sql = f"select {value} collate binary as v, count(*) as n{counted} from {table_source(table)}"
    reals = "r" if untyped else "case typeof(v) when 'real' then n else 0 end"
    return ValueGroups(f"{sql} group by 1", "length(v)", reals)


def stats_sql(groups: ValueGroups, *, values: bool) -> str:
    """The query for the statistics of a column; `parse_stats` takes its result.

    Args:
        groups: the values of the column.
        values: whether to include values: the extremes, the mean and the frequent ones.
    """
    length = f"min({groups.length}), max({groups.length}), total({groups.length} * n)"
    low, high, mean = ("min(v)", "max(v)", "total(v * n)") if values else ("null",) * 3
    texts = [
        f"substr({end}, 1, {MAX_DISPLAY_CHARS + 1})" if values else "null" for end in (low, high)
    ]
    parts = [
        f"select 'null', 0, total(n), 0, {_nulls(6)} from g where v is null",
        f"select 'numbers', count(*), total(n), total({groups.reals}), {low}, {high}, "
        f"{_nulls(3)}, {mean} from g where {_NUMBERS}",
        f"select 'text', count(*), total(n), 0, {', '.join(texts)}, {length}, null "
        f"from g where {_TEXTS}",
        f"select 'blob', count(*), total(n), 0, {_nulls(2)}, {length}, null from g where {_BLOBS}",
    ]
    if values:
        parts.append(_top_sql())
    return f"with g as ({groups.sql}) {' union all '.join(parts)}"


def parse_stats(result: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The statistics of a column, from the result of `stats_sql`.

    Returns:
        The part of the column's profile that comes from its values.
    """
    kinds = {row[0]: _Kind(*row[1:]) for row in result if row[0] != "top" and row[2]}
    rows = int(sum(kind.rows for kind in kinds.values()))
    numbers, text, blob = (kinds.get(name) for name in ("numbers", "text", "blob"))
    ordered = [kind for kind in (numbers, text) if kind]
    return {
        "rows": rows,
        "observed_types": _observed_types(kinds),
        "null_fraction": _rounded(_rows(kinds, "null") / rows) if rows else None,
        "distinct": sum(kind.distinct for kind in kinds.values()),
        "min": display_value(ordered[0].min) if ordered else None,
        "max": display_value(ordered[-1].max) if ordered else None,
        "mean": _mean(numbers.total, numbers.rows, numbers.min, numbers.max) if numbers else None,
        "length": _length(text),
        "blob_size": _length(blob),
        "top_values": [
            {"value": display_value(row[1]), "count": row[2]} for row in result if row[0] == "top"
        ],
    }


def display_value(value: Any) -> Any:
    """A value of a cell as JSON has it: long texts truncated, infinity as text.

    Args:
        value: None, a number or a text; a longer text may be cut after one character more than
            `MAX_DISPLAY_CHARS`.
    """
    if isinstance(value, str) and len(value) > MAX_DISPLAY_CHARS:
        return value[:MAX_DISPLAY_CHARS] + TRUNCATION_MARK
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class _Kind(NamedTuple):
    """A row of `stats_sql`: the values of one kind."""

    distinct: int
    rows: float
    reals: float
    min: Any
    max: Any
    min_length: int | None
    max_length: int | None
    total_length: float | None
    total: float | None


def _nulls(count: int) -> str:
    return ", ".join(["null"] * count)


def _top_sql() -> str:
    # A value of a single row is not frequent, and may identify a person.
    frequent = (
        f"select v, n from g where n > 1 and ({_NUMBERS} or ({_TEXTS})) "
        f"order by n desc, +v limit {TOP_VALUES}"
    )
    value = f"case typeof(v) when 'text' then substr(v, 1, {MAX_DISPLAY_CHARS + 1}) else v end"
    return f"select 'top', {value}, n, 0, {_nulls(6)} from ({frequent})"


def _rows(kinds: Mapping[str, _Kind], name: str) -> int:
    return int(kinds[name].rows) if name in kinds else 0


def _observed_types(kinds: Mapping[str, _Kind]) -> dict[str, int]:
    reals = int(kinds["numbers"].reals) if "numbers" in kinds else 0
    counts = {
        "null": _rows(kinds, "null"),
        "integer": _rows(kinds, "numbers") - reals,
        "real": reals,
        "text": _rows(kinds, "text"),
        "blob": _rows(kinds, "blob"),
    }
    return {name: count for name, count in counts.items() if count}


def _length(kind: _Kind | None) -> dict[str, Any] | None:
    if kind is None:
        return None
    low, high = kind.min_length, kind.max_length
    return {"min": low, "max": high, "mean": _mean(kind.total_length, kind.rows, low, high)}


def _mean(total: float | None, count: float, low: Any, high: Any) -> Any:
    # A sum may overflow where the mean does not.
    if total is None or (math.isinf(total) and math.isfinite(low) and math.isfinite(high)):
        return None
    return display_value(min(max(_rounded(total / count), low), high))


def _rounded(number: float) -> float:
    # The digits beyond depend on the order in which the numbers were added up.
    return float(f"{number:.12g}") if math.isfinite(number) else number

"""The figures of one column, of a whole table or of a sample alike: one query, and its answer.

The values are grouped first, which is the dear part, and everything else comes from the groups.
Values are compared byte by byte, whatever collation the column has. No blob leaves SQLite, and
no more of a text than is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .table import cell, source

SHOWN_CHARS = 80
CUT_MARK = "…"


def shown(value: Any) -> Any:
    """A value of a cell as JSON has it: a long text cut, with a mark, and infinity as text.

    Args:
        value: None, a number or a text; of a long one no more than the first of its characters
            that are not shown needs to be there.
    """
    if isinstance(value, str) and len(value) > SHOWN_CHARS:
        return value[:SHOWN_CHARS] + CUT_MARK
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


TOP_VALUES = 10
# Values are ordered: NULL, numbers, texts, blobs. The sign of plus keeps SQLite from taking a
# number for a text, or the reverse, because of what the column was declared as.
_NUMBERS, _TEXTS, _BLOBS = "+v < ''", "+v >= '' and +v < x''", "+v >= x''"


@dataclass(frozen=True, slots=True)
class Groups:
    """Where the values of a column are, grouped.

    Attributes:
        sql: selects v, the value, and n, how many rows have it.
        length: of a text in characters, and of a blob in bytes.
        reals: how many of the rows of a group of equal numbers are no integers.
    """

    sql: str
    length: str
    reals: str


def groups_of_table(table: str, column: str, untyped: bool) -> Groups:
    """The values of a column of a table or view.

    Args:
        table: its name.
        column: its name.
        untyped: whether an integer and a real number that are equal can both be in it.
    """
    value = cell(column)
    counted = f", count(*) filter (where typeof({value}) = 'real') as r" if untyped else ""
    sql = f"select {value} collate binary as v, count(*) as n{counted} from {source(table)}"
    reals = "r" if untyped else "case typeof(v) when 'real' then n else 0 end"
    return Groups(f"{sql} group by 1", "length(v)", reals)


def figures_sql(groups: Groups, *, values: bool) -> str:
    """A query for the figures of a column.

    Args:
        groups: the values of the column.
        values: whether to ask for values: the extremes, the mean and the frequent ones.
    """
    length = f"min({groups.length}), max({groups.length}), total({groups.length} * n)"
    low, high, mean = ("min(v)", "max(v)", "total(v * n)") if values else ("null",) * 3
    texts = [
        f"substr({value}, 1, {SHOWN_CHARS + 1})" if values else "null" for value in (low, high)
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


def _nulls(count: int) -> str:
    return ", ".join(["null"] * count)


def _top_sql() -> str:
    # A value that is in one row only is not frequent; it may be what identifies somebody.
    frequent = (
        f"select v, n from g where n > 1 and ({_NUMBERS} or ({_TEXTS})) "
        f"order by n desc, +v limit {TOP_VALUES}"
    )
    shown = f"case typeof(v) when 'text' then substr(v, 1, {SHOWN_CHARS + 1}) else v end"
    return f"select 'top', {shown}, n, 0, {_nulls(6)} from ({frequent})"


def read_figures(answer: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The figures of a column, from the answer to the query for them.

    Returns:
        What the profile says of the column's values, as far as it is not how they were got.
    """
    kinds = {row[0]: row[1:] for row in answer if row[0] != "top" and row[2]}
    rows = int(sum(figures[1] for figures in kinds.values()))
    numbers, text, blob = (kinds.get(kind) for kind in ("numbers", "text", "blob"))
    ordered = [figures for figures in (numbers, text) if figures]
    return {
        "rows": rows,
        "observed_types": _types(kinds),
        "null_fraction": _rounded(_count(kinds, "null") / rows) if rows else None,
        "distinct": sum(figures[0] for figures in kinds.values()),
        "min": shown(ordered[0][3]) if ordered else None,
        "max": shown(ordered[-1][4]) if ordered else None,
        "mean": _mean(numbers[8], numbers[1], numbers[3:5]) if numbers else None,
        "length": _length(text),
        "blob_size": _length(blob),
        "top_values": [
            {"value": shown(row[1]), "count": row[2]} for row in answer if row[0] == "top"
        ],
    }


def _count(kinds: dict[str, Sequence[Any]], kind: str) -> int:
    return int(kinds[kind][1]) if kind in kinds else 0


def _types(kinds: dict[str, Sequence[Any]]) -> dict[str, int]:
    reals = int(kinds["numbers"][2]) if "numbers" in kinds else 0
    counts = {
        "null": _count(kinds, "null"),
        "integer": _count(kinds, "numbers") - reals,
        "real": reals,
        "text": _count(kinds, "text"),
        "blob": _count(kinds, "blob"),
    }
    return {kind: count for kind, count in counts.items() if count}


def _length(figures: Sequence[Any] | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {
        "min": figures[5],
        "max": figures[6],
        "mean": _mean(figures[7], figures[1], figures[5:7]),
    }


def _mean(total: float | None, count: float, ends: Sequence[float]) -> Any:
    # A sum may be beyond all numbers where the mean is not.
    if total is None or (math.isinf(total) and all(map(math.isfinite, ends))):
        return None
    low, high = ends
    return shown(min(max(_rounded(total / count), low), high))


def _rounded(number: float) -> float:
    # What is beyond depends on the order in which numbers were added up.
    return float(f"{number:.12g}") if math.isfinite(number) else number

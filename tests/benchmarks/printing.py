"""The table, and the same as JSON."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from .measuring import Row

HEAD = ("work", "raw", "ours", "compared", "bar", "within bar")


def machine() -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in ("datasette-llm", "llm", "datasette")},
    }


def as_json(rows: list[Row], quick: bool) -> dict[str, Any]:
    return {"machine": machine(), "quick": quick, "rows": [_row_as_json(row) for row in rows]}


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "work": row.work,
        "unit": row.unit,
        "raw": row.raw,
        "raw_is": row.raw_is or "llm alone",
        "ours": row.ours,
        "compared": row.compared,
        "figure": row.figure,
        "bar": row.bar,
        "within": row.within,
        "beside": row.beside,
        "rounds": {"raw": row.pair.raw, "ours": row.pair.ours},
    }


def table(rows: list[Row]) -> str:
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    return "\n".join([facts, "", *text, "", *_notes(rows)])


def _cells(row: Row) -> tuple[str, ...]:
    raw, ours, unit = f"{row.raw:.3g}", f"{row.ours:.3g}", row.unit
    bar = f"{row.bar:g}"
    figure = f"{row.figure:.3g}"
    match row.compared:
        case "ratio":
            figure, bar = f"{figure} x", f"{bar} x"
        case "added":
            figure, bar = f"+ {figure} {unit}", f"+ {bar} {unit}"
        case _:
            figure, bar = f"{figure} {unit}", f"{bar} {unit}"
    within = "yes" if row.within else "NO"
    return (row.work, f"{raw} {unit}", f"{ours} {unit}", figure, f"≤ {bar}", within)


def _notes(rows: list[Row]) -> list[str]:
    notes = [f"{row.name}: raw is {row.raw_is}" for row in rows if row.raw_is]
    for row in rows:
        notes += [f"{row.name}: {what}: {value:.3g}" for what, value in row.beside.items()]
    return notes

"""The tables, and the same as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .measuring import Grid, Row

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


def as_json(results: Sequence[Row | Grid], quick: bool) -> dict[str, Any]:
    return {
        "machine": machine(),
        "quick": quick,
        "rows": [_row_as_json(each) for each in results if isinstance(each, Row)],
        "grids": [_grid_as_json(each) for each in results if isinstance(each, Grid)],
    }


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


def _grid_as_json(grid: Grid) -> dict[str, Any]:
    lines = [dict(zip(grid.head, line, strict=True)) for line in grid.lines]
    return {"name": grid.name, "work": grid.work, "lines": lines, "notes": grid.notes}


def report(results: Sequence[Row | Grid]) -> str:
    rows = [each for each in results if isinstance(each, Row)]
    grids = [each for each in results if isinstance(each, Grid)]
    text = [", ".join(f"{name} {value}" for name, value in machine().items())]
    if rows:
        text += ["", *_table([HEAD, *map(_cells, rows)]), "", *_notes(rows)]
    for grid in grids:
        lines = [tuple(map(_shown, line)) for line in grid.lines]
        text += ["", f"{grid.name}: {grid.work}", "", *_table([grid.head, *lines])]
        text += ["", *grid.notes] if grid.notes else []
    return "\n".join(text)


def _table(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in ruled]


def _shown(value: str | float) -> str:
    """Text as it is, and a number with three digits that mean something."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}"


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

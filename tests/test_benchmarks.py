"""The benchmark is a program; here it only has to run. No figure is compared to anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    "first-chunk",
    "model",
    "many-models",
    "prompt",
    "models",
    "stall",
    "group",
    "memory",
]


@pytest.mark.timeout(120)
def test_the_benchmark_gives_positive_figures_for_every_row(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    program = [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", str(file)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert [row["name"] for row in rows] == ROWS
    figures = {row["name"]: (row["raw"], row["ours"], row["figure"]) for row in rows}
    assert {name for name, values in figures.items() if min(values) <= 0} == set()
    assert all(row["work"] in done.stdout for row in rows)

"""The benchmark is a program; here it only has to run. No figure is compared to anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "tests.benchmarks"]
ROWS = [
    "first-chunk",
    "model",
    "many-models",
    "prompt",
    "models",
    "stall",
    "group",
    "memory",
    "console-models",
    "console-purposes",
    "log-first-page",
    "log-filtered",
    "log-middle",
    "log-totals",
    "log-csv",
    "log-throughput",
    "log-lone",
    "log-off",
    "tracing-off",
    "profile",
    "profile-budget",
]


# The others take longer; the continuous integration runs them all.
SOME = ["model", "prompt", "log-lone"]


def test_the_benchmark_has_a_row_for_each_bar() -> None:
    done = subprocess.run(
        [*PROGRAM, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    # argparse breaks its lines at hyphens too.
    assert f"oneof{','.join(ROWS)}--quick" in "".join(done.stdout.split())


def test_the_benchmark_gives_positive_figures(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    only = [f"--only={name}" for name in SOME]
    program = [*PROGRAM, "--quick", "--json", str(file), *only]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert [row["name"] for row in rows] == SOME
    figures = {row["name"]: (row["raw"], row["ours"], row["figure"]) for row in rows}
    assert {name for name, values in figures.items() if min(values) <= 0} == set()
    assert all(row["work"] in done.stdout for row in rows)

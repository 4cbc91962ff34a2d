"""The benchmark is a program; here it only has to run. No number is compared to anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..benchmarks.measuring import Grid
from ..benchmarks.printing import as_json, report

ROOT = Path(__file__).parents[2]
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
    "log-throughput",
    "log-lone",
    "log-off",
    "tracing-off",
    "tracing-on",
    "cache-off",
    "cache-miss",
    "cache-hit",
    "cache-hits",
    "cache-many",
    "concurrency",
    "burst-stall",
    "burst-added",
    "everything-alone",
    "everything-at-once",
    "no-settings",
    "console-models",
    "console-purposes",
    "evaluation-throughput",
    "playground-first-chunk",
    "log-first-page",
    "log-filtered",
    "log-tagged",
    "log-explored",
    "log-middle",
    "log-csv",
    "evaluation-result",
    "evaluation-memory",
    "what-if",
    "growth",
    "profile",
    "profile-no-values",
    "profile-budget",
    "findings",
    "usage-warm",
    "usage-cold",
    "http-lone",
    "http-at-once",
    "tls-lone",
    "tls-at-once",
]


# The others take longer; the continuous integration runs them all.
SOME = ["model", "prompt", "log-lone", "everything-alone", "no-settings"]


def test_benchmark_has_a_row_for_each_bar() -> None:
    done = subprocess.run(
        [*PROGRAM, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    # argparse breaks its lines at hyphens too.
    assert f"oneof{','.join(ROWS)}--quick" in "".join(done.stdout.split())


def test_benchmark_gives_positive_figures(tmp_path: Path) -> None:
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


def test_grids_are_printed_as_tables() -> None:
    lines = ((1, "llm alone", 12_345.6, ""), (1_024, "ours", 0.01234, -5.0))
    grid = Grid("some", "some calls", ("at once", "side", "calls", "added"), lines, ("A note.",))
    assert report([grid]).splitlines()[2:] == [
        "some: some calls",
        "",
        "at once  side       calls   added",
        "-------  ---------  ------  -----",
        "1        llm alone  12,346",
        "1,024    ours       0.0123  -5",
        "",
        "A note.",
    ]
    assert as_json([grid], quick=True)["rows"] == []
    assert as_json([grid], quick=True)["grids"] == [
        {
            "name": "some",
            "work": "some calls",
            "lines": [
                {"at once": 1, "side": "llm alone", "calls": 12_345.6, "added": ""},
                {"at once": 1_024, "side": "ours", "calls": 0.01234, "added": -5.0},
            ],
            "notes": ("A note.",),
        }
    ]

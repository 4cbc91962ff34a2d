"""The soak is a program; here a short one runs, and its arithmetic is tested."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ..soak.account import Counts, Left, lines, table

ROOT = Path(__file__).parents[2]

COUNTS = Counts(10, Counter(ok=7, error=2, cancelled=2), unsent=1, settled=7, released=2)
LEFT = Left(memory_kb=100_000, tasks=1, threads=4, descriptors=12, calls=0, reservations=0)


def failing(expected=COUNTS, seen=COUNTS, after=LEFT, surprises=None):
    found = lines(expected, seen, LEFT, after, surprises or {})
    return [line.what for line in found if not line.holds]


def test_equal_counts_hold():
    assert failing() == []
    assert "NO" not in table(lines(COUNTS, COUNTS, LEFT, LEFT, {}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"requests": 11}, "requests received by the provider"),
        ({"outcomes": Counter(ok=6, error=2, cancelled=2)}, "rows of the call log"),
        ({"outcomes": Counter(ok=7, error=1, cancelled=3)}, "rows that are error"),
        ({"outcomes": COUNTS.outcomes + Counter(unfinished=1)}, "rows that are unfinished"),
        ({"unsent": 0}, "rows of calls cancelled in the queue"),
        ({"settled": 6}, "reservations settled"),
        ({"released": 3}, "reservations released"),
    ],
)
def test_differing_counts_are_reported(change, what):
    assert what in failing(seen=replace(COUNTS, **change))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tasks": 2}, "tasks"),
        ({"threads": 5}, "threads"),
        ({"descriptors": 13}, "descriptors"),
        ({"calls": 1}, "calls left"),
        ({"reservations": 1}, "reservations left"),
        ({"memory_kb": 105_001}, "memory"),
    ],
)
def test_leftovers_are_reported(change, what):
    assert failing(after=replace(LEFT, **change)) == [what]
    assert "NO" in table(lines(COUNTS, COUNTS, LEFT, replace(LEFT, **change), {}))


def test_memory_may_grow_by_5_percent():
    assert failing(after=replace(LEFT, memory_kb=104_900)) == []


def test_surprises_are_reported():
    assert failing(surprises={"'read': KeyError: 1": 1}) == ["calls with 'read': KeyError: 1"]


def test_counts_add_up():
    total = Counts()
    total.add(COUNTS)
    total.add(COUNTS)
    assert total == Counts(20, Counter(ok=14, error=4, cancelled=4), 2, 14, 4)
    assert total.rows == 22


@pytest.mark.skipif(sys.platform != "linux", reason="the soak looks into /proc")
def test_short_soak_comes_out_even():
    program = [sys.executable, "-m", "tests.soak", "--calls=150", "--at-once=50"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert "requests received by the provider" in done.stdout, done.stderr
    # With so few calls memory still grows, by code that runs for the first time.
    uneven = [line for line in done.stdout.splitlines() if line.endswith("  NO")]
    assert [line for line in uneven if not line.startswith("memory")] == []

"""What was to happen, what everybody has counted of it, and whether that is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# Memory may grow by so much: what is left is garbage that the allocator has not given back.
MEMORY_GROWTH = 0.05


@dataclass
class Counts:
    """What was counted, by one side or another.

    Attributes:
        requests: those that the provider has had.
        outcomes: rows of the record, by their outcomes; "unfinished" has none.
        unsent: rows of calls that were cancelled before their request was made.
        settled: reservations of money that were spent.
        released: those that were given back.
    """

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    settled: int = 0
    released: int = 0

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.outcomes += other.outcomes
        self.unsent += other.unsent
        self.settled += other.settled
        self.released += other.released

    @property
    def rows(self) -> int:
        return self.outcomes.total()


@dataclass(frozen=True)
class Left:
    """What there is at a moment when nothing is under way."""

    memory_kb: int
    tasks: int
    threads: int
    descriptors: int
    calls: int
    reservations: int


@dataclass(frozen=True)
class Line:
    """One equality: what should be, what is, and whether that will do."""

    what: str
    expected: str
    seen: str
    holds: bool


def lines(
    expected: Counts, seen: Counts, before: Left, after: Left, surprises: Mapping[str, int]
) -> list[Line]:
    """Every equality that a soak has to keep.

    Args:
        expected: what follows from the calls that were made.
        seen: what the provider, the record and the accountant have counted.
        before: what there was after the warm-up.
        after: what there was at the end.
        surprises: calls that ended otherwise than they should, by what happened.
    """
    found = [
        _equal("requests that the provider has had", expected.requests, seen.requests),
        _equal("rows of the record", expected.rows, seen.rows),
        _equal("rows whose request was made", expected.requests, seen.rows - seen.unsent),
        _equal("rows of calls cancelled in the queue", expected.unsent, seen.unsent),
    ]
    for outcome in sorted(expected.outcomes.keys() | seen.outcomes.keys()):
        counts = expected.outcomes[outcome], seen.outcomes[outcome]
        found.append(_equal(f"rows that are {outcome}", *counts))
    found += [
        _equal("reservations settled", expected.settled, seen.settled),
        _equal("reservations released", expected.released, seen.released),
        _equal("reservations left", 0, after.reservations),
        _equal("calls left", 0, after.calls),
        _equal("tasks", before.tasks, after.tasks),
        _equal("threads", before.threads, after.threads),
        _equal("descriptors", before.descriptors, after.descriptors),
        _memory(before.memory_kb, after.memory_kb),
    ]
    found += [_equal(f"calls with {what}", 0, number) for what, number in surprises.items()]
    return found


def table(found: list[Line]) -> str:
    """The equalities as a table."""
    cells = [("", "expected", "counted", "equal")]
    cells += [
        (line.what, line.expected, line.seen, "yes" if line.holds else "NO") for line in found
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def _equal(what: str, expected: int, seen: int) -> Line:
    return Line(what, f"{expected:,}", f"{seen:,}", expected == seen)


def _memory(before_kb: int, after_kb: int) -> Line:
    growth = after_kb / before_kb - 1
    seen = f"{after_kb / 1024:,.1f} MB ({growth:+.1%})"
    return Line("memory", f"{before_kb / 1024:,.1f} MB", seen, growth <= MEMORY_GROWTH)

"""Expected counts, the counts of each side, and whether they are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# Memory may grow by this share: garbage that the allocator has not returned.
MEMORY_GROWTH = 0.05


@dataclass
class Counts:
    """Counts of one side.

    Attributes:
        requests: received by the provider.
        outcomes: rows of the call log by outcome; "unfinished" for none.
        unsent: rows of calls that were cancelled before their request.
        settled: reservations of money that were spent.
        released: reservations that were returned.
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
    """The resources in use while no call is running."""

    memory_kb: int
    tasks: int
    threads: int
    descriptors: int
    calls: int
    reservations: int


@dataclass(frozen=True)
class Line:
    """One comparison: expected and seen, and whether it holds."""

    what: str
    expected: str
    seen: str
    holds: bool


def lines(
    expected: Counts, seen: Counts, before: Left, after: Left, surprises: Mapping[str, int]
) -> list[Line]:
    """All comparisons of a soak.

    Args:
        expected: what follows from the calls.
        seen: the counts of the provider, the call log and the accountant.
        before: resources after the warm-up.
        after: resources at the end.
        surprises: calls that ended in an unexpected way, by description.
    """
    found = [
        _equal("requests received by the provider", expected.requests, seen.requests),
        _equal("rows of the call log", expected.rows, seen.rows),
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
    """The comparisons as a table."""
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

"""Make thousands of calls at once, with faults among them, and compare what everybody counted.

    python -m tests.soak [--quick] [--calls N] [--at-once N] [--seed S]

Exits with 1 if anything that has to be equal is not. Linux only, for /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from ..benchmarks.__main__ import stand_alone

CALLS, QUICK_CALLS, AT_ONCE = 20_000, 2_000, 200


def main() -> int:
    arguments = _parser().parse_args()
    calls = arguments.calls or (QUICK_CALLS if arguments.quick else CALLS)
    with tempfile.TemporaryDirectory() as folder:
        stand_alone(folder)
        # These import llm and Datasette, which read their environment as they are imported.
        from .account import table
        from .running import soak

        done = asyncio.run(soak(Path(folder), calls, arguments.at_once, arguments.seed))
    print(table(done.lines), end="\n\n")
    print(", ".join(f"{number:,} {kind}" for kind, number in done.made.most_common()))
    print(
        f"{calls:,} calls after the warm-up, {arguments.at_once} at once, seed {arguments.seed}: "
        f"{done.seconds:.1f} s, {calls / done.seconds:,.0f} calls and "
        f"{done.requests / done.seconds:,.0f} requests a second"
    )
    return 0 if all(line.holds for line in done.lines) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CALLS:,} calls only")
    parser.add_argument("--calls", type=int, metavar="N", help=f"{CALLS:,} unless given")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N")
    parser.add_argument("--seed", type=int, default=6, metavar="S", help="of the choice of calls")
    return parser


if __name__ == "__main__":
    sys.exit(main())

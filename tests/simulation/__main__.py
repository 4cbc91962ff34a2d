"""Long runs: `python -m tests.simulation --scenarios 20000 --seed 7`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from . import SCENARIOS, Scenario, Simulation, run


def main(arguments: list[str] | None = None) -> int:
    """Run many scenarios; the smallest that breaks a promise is printed, with its steps.

    Returns:
        1 if one did, otherwise 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--as-found", action="store_true", help="do not look for a smaller scenario"
    )
    chosen = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # scenarios break the call log on purpose
    os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="simulation-")
    simulation, count, began = Simulation(), 0, time.monotonic()

    @seed(chosen.seed)
    @settings(
        max_examples=chosen.scenarios,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate] if chosen.as_found else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(SCENARIOS)
    def all_scenarios(scenario: Scenario) -> None:
        nonlocal count
        count += 1
        steps, broken = run(simulation, scenario)
        if broken:
            raise AssertionError("\n".join([repr(scenario), "", *steps, "", *broken]))

    try:
        all_scenarios()
    except AssertionError as error:
        print(error)
        return 1
    finally:
        simulation.close()
        print(f"{count} scenarios, seed {chosen.seed}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Promises H1 to H8, C1 to C8, G1 to G5, L1 and L2, in simulated scenarios.

Each scenario runs on a real Datasette, by `tests.simulation`; for long runs:
`python -m tests.simulation --scenarios 20000 --seed 7`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from ..simulation import SCENARIOS, Scenario, Simulation, run
from ..simulation.rare import RARE
from ..simulation.scenarios import Interaction, Reader, Script

SCENARIO_COUNT = int(os.environ.get("SIMULATION_SCENARIOS", "600"))


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    """One Datasette for all scenarios of a test."""
    logging.disable(logging.CRITICAL)  # scenarios break the call log on purpose
    simulation = Simulation()
    yield simulation
    simulation.close()
    logging.disable(logging.NOTSET)


def assert_promises_kept(simulation: Simulation, scenario: Scenario) -> None:
    steps, broken = run(simulation, scenario)
    assert not broken, "\n".join([*steps, "", *broken])


@pytest.mark.timeout(600)  # one that fails is made small, which takes long
@settings(max_examples=SCENARIO_COUNT, suppress_health_check=list(HealthCheck))
@given(scenario=SCENARIOS)
def test_promises_in_generated_scenarios(simulation: Simulation, scenario: Scenario) -> None:
    assert_promises_kept(simulation, scenario)


@pytest.mark.parametrize("scenario", RARE.values(), ids=RARE)
def test_promises_in_rare_scenarios(simulation: Simulation, scenario: Scenario) -> None:
    assert_promises_kept(simulation, scenario)


def test_scenarios_are_deterministic(simulation: Simulation) -> None:
    script = Script(("chunk", "pause", "chunk"))
    interaction = Interaction("prompt", (script,), (Reader("text"), Reader("for", slow=True)))
    scenario = Scenario(
        (interaction, interaction), choices=bytes(range(64, 104)), cancels=1, slow_commits=True
    )
    first, *others = [run(simulation, scenario) for _ in range(3)]
    assert others == [first, first]
    assert len(first[0]) > 5

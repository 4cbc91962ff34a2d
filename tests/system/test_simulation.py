"""The life of a call: H1 to H8, C1 to C8, G1 to G5, L1 and L2, whatever happens in whichever order.

Each story is played on a real Datasette by `tests.simulation`, which also tells long ones:
`python -m tests.simulation --stories 20000 --seed 7`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from ..simulation import STORIES, Story, Theatre, tell
from ..simulation.rare import RARE
from ..simulation.scenarios import Life, Reader, Script

SCENARIO_COUNT = int(os.environ.get("SIMULATION_SCENARIOS", "600"))


@pytest.fixture
def theatre() -> Iterator[Theatre]:
    """One Datasette for all stories of a test."""
    logging.disable(logging.CRITICAL)  # stories break the record on purpose
    theatre = Theatre()
    yield theatre
    theatre.close()
    logging.disable(logging.NOTSET)


def assert_kept(theatre: Theatre, story: Story) -> None:
    told, broken = tell(theatre, story)
    assert not broken, "\n".join([*told, "", *broken])


@pytest.mark.timeout(600)  # one that fails is made small, which takes its time
@settings(max_examples=SCENARIO_COUNT, suppress_health_check=list(HealthCheck))
@given(story=STORIES)
def test_every_promise_is_kept_in_every_story(theatre: Theatre, story: Story) -> None:
    assert_kept(theatre, story)


@pytest.mark.parametrize("story", RARE.values(), ids=RARE)
def test_every_promise_is_kept_where_chance_seldom_leads(theatre: Theatre, story: Story) -> None:
    assert_kept(theatre, story)


def test_a_story_is_the_same_each_time(theatre: Theatre) -> None:
    script = Script(("chunk", "pause", "chunk"))
    life = Life("prompt", (script,), (Reader("text"), Reader("for", slow=True)))
    story = Story((life, life), choices=bytes(range(64, 104)), cancels=1, slow_commits=True)
    first, *others = [tell(theatre, story) for _ in range(3)]
    assert others == [first, first]
    assert len(first[0]) > 5

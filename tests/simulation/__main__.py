"""Long runs: `python -m tests.simulation --stories 20000 --seed 7`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from . import STORIES, Story, Theatre, tell


def main(arguments: list[str] | None = None) -> int:
    """Tell many stories; the smallest that breaks a promise is printed, with what happened.

    Returns:
        1 if one did, otherwise 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--stories", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-found", action="store_true", help="do not look for a smaller story")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # stories break the record on purpose
    os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="simulation-")
    theatre, count, began = Theatre(), 0, time.monotonic()

    @seed(chosen.seed)
    @settings(
        max_examples=chosen.stories,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate] if chosen.as_found else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(STORIES)
    def all_stories(story: Story) -> None:
        nonlocal count
        count += 1
        told, broken = tell(theatre, story)
        if broken:
            raise AssertionError("\n".join([repr(story), "", *told, "", *broken]))

    try:
        all_stories()
    except AssertionError as error:
        print(error)
        return 1
    finally:
        theatre.close()
        print(f"{count} stories, seed {chosen.seed}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

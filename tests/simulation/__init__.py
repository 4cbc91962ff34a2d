"""Whole stories of calls, told by hypothesis, played on a real Datasette, and judged.

`stories` says what may happen, `clock` in which order it does, `provider`, `players` and `roles`
are the provider, the plugins, the callers and the readers, `scene`, `facts` and `watch` write
down what is seen, and `checks`, `checks_of_a_story` and `checks_of_attempts` hold each promise
against it.
"""

from .checks_of_a_scenario import problems_of
from .harness import Theatre
from .scenarios import STORIES, Story

__all__ = ["STORIES", "Story", "Theatre", "tell"]


def tell(theatre: Theatre, story: Story) -> tuple[list[str], list[str]]:
    """Play a story.

    Returns:
        What happened, and the promises that were broken.
    """
    stage = theatre.stage()
    try:
        scene, director = stage.play(story)
        broken = list(problems_of(stage, scene, director))
    except BaseException:
        theatre.close()
        raise
    if broken:
        theatre.close()
    return director.told, broken

"""The actions for Datasette's permissions; denied by default, as those of Datasette's plugins."""

from __future__ import annotations

from datasette.permissions import Action
from datasette.resources import TableResource

MANAGE = "manage-llm"
VIEW_LOG = "view-llm-log"
ANALYZE = "analyze-table"


def actions() -> list[Action]:
    """The actions, for Datasette's `register_actions`."""
    return [
        Action(name=MANAGE, description="Manage the language models of plugins"),
        # view-table is checked separately instead of with `also_requires`, since Datasette merges
        # the parameters of both actions, and leaves out the permissions of derived tables there.
        Action(
            name=ANALYZE,
            description="Send a profile of a table to a language model, and read the advice",
            resource_class=TableResource,
        ),
        Action(name=VIEW_LOG, description="View the log of calls to language models"),
    ]

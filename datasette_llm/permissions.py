"""The permissions: who manages models, who reads the call log, who has a table analyzed.

Like those of Datasette's own plugins they are denied to everyone by default.
"""

from __future__ import annotations

from datasette.permissions import Action
from datasette.resources import TableResource

MANAGE = "manage-llm"
VIEW_LOG = "view-llm-log"
ANALYZE = "analyze-table"


def actions() -> list[Action]:
    """The permissions, for Datasette's `register_actions`."""
    return [
        Action(name=MANAGE, description="Manage the language models of plugins"),
        # view-table is asked for beside it, since Datasette merges the parameters of an action
        # and of what it requires, and leaves out the permissions of derived tables there.
        Action(
            name=ANALYZE,
            description="Send a profile of a table to a language model, and read the advice",
            resource_class=TableResource,
        ),
        Action(name=VIEW_LOG, description="View the log of calls to language models"),
    ]

"""Permissions on tables: the one place of the consultant that asks Datasette for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette.resources import TableResource

from ..permissions import ANALYZE

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.permissions import Resource

    Actor = Mapping[str, Any] | None

REQUIRED_ACTIONS = ("view-table", ANALYZE)


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of an actor.

    Attributes:
        datasette: the Datasette instance.
        actor: Datasette's actor dictionary, or None.
        unrestricted: allows everything: on the command line, whose user can read the files anyway.
    """

    datasette: Datasette
    actor: Actor
    unrestricted: bool = False
    _viewable: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False)

    async def may(self, action: str, resource: Resource) -> bool:
        """True if an action is allowed."""
        if self.unrestricted:
            return True
        allowed: bool = await self.datasette.allowed(
            action=action, resource=resource, actor=self.actor
        )
        return allowed

    async def may_view(self, database: str, table: str) -> bool:
        """True if a table or view may be viewed; cached."""
        key = (database, table)
        if key not in self._viewable:
            self._viewable[key] = await self.may("view-table", TableResource(database, table))
        return self._viewable[key]

    async def may_analyze(self, database: str, table: str) -> bool:
        """True if a table may be viewed and analyzed."""
        if not await self.may_view(database, table):
            return False
        return await self.may(ANALYZE, TableResource(database, table))


async def analyzable_tables(datasette: Datasette, actor: Actor) -> str:
    """The existing tables that an actor may view and analyze, as a JSON list of pairs."""
    await datasette.refresh_schemas()
    internal = datasette.get_internal_database()
    sets = []
    for action in REQUIRED_ACTIONS:
        sql, params = await datasette.allowed_resources_sql(action=action, actor=actor)
        found = await internal.execute(f"select parent, child from ({sql})", params)
        sets.append({(parent, child) for parent, child in found.rows})
    return json.dumps(sorted(set.intersection(*sets)))


async def may_analyze_any(datasette: Datasette, actor: Actor) -> bool:
    """True if there is a table that the actor may analyze; cheap where there is none."""
    sql, params = await datasette.allowed_resources_sql(action=ANALYZE, actor=actor)
    internal = datasette.get_internal_database()
    found = await internal.execute(f"select 1 from ({sql}) limit 1", params)
    return bool(found.rows)

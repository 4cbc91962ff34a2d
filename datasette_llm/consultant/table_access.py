"""Permissions on tables: the one place of the consultant that asks Datasette for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasette.resources import TableResource

from ..permissions import ANALYZE

if TYPE_CHECKING:
    from datasette.app import Datasette

    Actor = Mapping[str, Any] | None

# Of the other tables of a database this many are named.
MAX_TABLES = 50
REQUIRED_ACTIONS = ("view-table", ANALYZE)


async def may_view(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """True if an actor may view a table or view."""
    resource = TableResource(database, table)
    allowed: bool = await datasette.allowed(action="view-table", resource=resource, actor=actor)
    return allowed


async def may_analyze(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """True if an actor may view and analyze a table or view."""
    if not await may_view(datasette, actor, database, table):
        return False
    resource = TableResource(database, table)
    allowed: bool = await datasette.allowed(action=ANALYZE, resource=resource, actor=actor)
    return allowed


async def viewable_tables(datasette: Datasette, actor: Actor, database: str) -> tuple[str, ...]:
    """The first tables and views of a database that an actor may view, without hidden ones."""
    if database not in datasette.databases:
        return ()
    await datasette.refresh_schemas()
    hidden = set(await datasette.get_database(database).hidden_table_names())
    page = await datasette.allowed_resources(
        "view-table", actor, parent=database, limit=MAX_TABLES + len(hidden)
    )
    names = sorted(each.child for each in page.resources if each.child not in hidden)
    return tuple(names[:MAX_TABLES])


async def analyzable_tables(datasette: Datasette, actor: Actor) -> str:
    """The existing tables that an actor may view and analyze, as a JSON list of pairs."""
    await datasette.refresh_schemas()
    sets = [await _allowed_tables(datasette, actor, action) for action in REQUIRED_ACTIONS]
    return json.dumps(sorted(set.intersection(*sets)))


async def all_viewable_tables(datasette: Datasette, actor: Actor, database: str) -> set[str]:
    """The names of the existing tables of a database that an actor may view."""
    await datasette.refresh_schemas()
    found = await _allowed_tables(datasette, actor, "view-table")
    return {table for parent, table in found if parent == database}


async def may_analyze_any(datasette: Datasette, actor: Actor) -> bool:
    """True if there is a table that the actor may analyze; cheap where there is none."""
    sql, params = await datasette.allowed_resources_sql(action=ANALYZE, actor=actor)
    internal = datasette.get_internal_database()
    found = await internal.execute(f"select 1 from ({sql}) limit 1", params)
    return bool(found.rows)


async def _allowed_tables(datasette: Datasette, actor: Actor, action: str) -> set[tuple[str, str]]:
    sql, params = await datasette.allowed_resources_sql(action=action, actor=actor)
    internal = datasette.get_internal_database()
    found = await internal.execute(f"select parent, child from ({sql})", params)
    return {(parent, child) for parent, child in found.rows}

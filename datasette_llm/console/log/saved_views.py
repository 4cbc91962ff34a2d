"""Saved views of the call log: lists that an actor has named, in Datasette's internal database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database, Migrations

from ...migrations import migrate
from ...sanitize import new_id, now, well_formed
from ...web import ArgumentError
from .list_request import LogListRequest

if TYPE_CHECKING:
    from datasette.app import Datasette

Row = dict[str, Any]
Actor = Mapping[str, Any] | None

MAX_NAME_CHARS = 80
MAX_QUERY_CHARS = 8_000
MAX_VIEWS = 50

migrations = Migrations("datasette_llm_views")


@migrations()
def m001_views(db: Database) -> None:
    db.execute(
        """
        create table llm_log_views (
            id text primary key,
            actor_id text not null,
            name text not null,
            query text not null,
            saved_at text not null,
            unique (actor_id, name)
        ) without rowid
        """
    )


async def saved_views(datasette: Datasette, actor: Actor) -> list[Row]:
    """The views of an actor, by name; each has `id`, `name` and `query`. None without an id."""
    owner = owner_of(actor)

    def work(connection: sqlite3.Connection) -> list[Row]:
        if owner is None or not _has_table(connection):
            return []
        sql = "select id, name, query from llm_log_views where actor_id = ? order by name, id"
        names = ("id", "name", "query")
        return [dict(zip(names, row, strict=True)) for row in connection.execute(sql, (owner,))]

    found: list[Row] = await datasette.get_internal_database().execute_fn(work)
    return found


async def save(datasette: Datasette, actor: Actor, name: str, query: str) -> str:
    """Save a list under a name; a view of that name is replaced.

    Args:
        datasette: the Datasette instance.
        actor: whose view it is.
        name: its name.
        query: the query string of the list's address.

    Returns:
        The query string, without what belongs to one page.

    Raises:
        ArgumentError: the name is empty or too long, there are too many, or the actor has no id.
        BadFilterError: the list is invalid.
        sqlite3.Error: it cannot be written.
    """
    owner, name = _required(actor), well_formed(" ".join(name.split()))
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise ArgumentError(f"name: give the view a name of at most {MAX_NAME_CHARS} characters")
    asked = LogListRequest.of(parse_qs(query.removeprefix("?")))
    query = urlencode(asked.arguments(), doseq=True, errors="replace")
    if len(query) > MAX_QUERY_CHARS:
        raise ArgumentError(f"query: at most {MAX_QUERY_CHARS} characters can be saved")

    def work(connection: sqlite3.Connection) -> None:
        migrate(connection, migrations, "llm_log_views")
        sql = "select count(*) from llm_log_views where actor_id = ? and name != ?"
        if connection.execute(sql, (owner, name)).fetchone()[0] >= MAX_VIEWS:
            raise ArgumentError(f"You have {MAX_VIEWS} views; delete one first")
        connection.execute(
            "insert or replace into llm_log_views (id, actor_id, name, query, saved_at) "
            "values (?, ?, ?, ?, ?)",
            (new_id(), owner, name, query, now()),
        )

    await datasette.get_internal_database().execute_write_fn(work)
    return query


async def delete(datasette: Datasette, actor: Actor, view_id: str) -> None:
    """Delete a view of an actor; nothing happens if they have no such view.

    Raises:
        ArgumentError: the actor has no id.
        sqlite3.Error: it cannot be written.
    """
    owner = _required(actor)

    def work(connection: sqlite3.Connection) -> None:
        if _has_table(connection):
            sql = "delete from llm_log_views where actor_id = ? and id = ?"
            connection.execute(sql, (owner, well_formed(view_id)))

    await datasette.get_internal_database().execute_write_fn(work)


def owner_of(actor: Actor) -> str | None:
    """The id of an actor, as it is stored; None without one."""
    actor_id = (actor or {}).get("id")
    return None if actor_id in (None, "") else well_formed(str(actor_id))


def _required(actor: Actor) -> str:
    owner = owner_of(actor)
    if owner is None:
        raise ArgumentError("Views are saved for an actor with an id; log in first")
    return owner


def _has_table(connection: sqlite3.Connection) -> bool:
    sql = "select 1 from sqlite_master where type = 'table' and name = 'llm_log_views'"
    return connection.execute(sql).fetchone() is not None

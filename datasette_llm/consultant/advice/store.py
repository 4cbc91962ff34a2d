"""The stored consultations: one insert each, read by actors who may analyze their table."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database, Migrations

from ...errors import NewerDatabaseError
from ...log.schema import OUTCOMES
from ...migrations import append_only
from ...migrations import migrate as run_migrations
from ...sanitize import storable

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

COLUMNS = (
    "id",
    "created_at",
    "type",
    "database_name",
    "table_name",
    "actor_id",
    "question",
    "exclude",
    "profile",
    "system_prompt",
    "user_prompt",
    "model_id",
    "raw_answer",
    "advice",
    "rejected",
    "checks",
    "outcome",
    "error_type",
    "error_message",
    "latency_ms",
    "call_id",
    "findings",
    "findings_note",
    "suggested_config",
)
JSON_COLUMNS = (
    "exclude",
    "profile",
    "advice",
    "rejected",
    "checks",
    "findings",
    "suggested_config",
)
_REQUIRED_JSON = {"exclude", "rejected", "checks"}
# Of the columns that every version has.
_JSON_TYPES: Mapping[str, type] = {"profile": dict, "advice": dict} | dict.fromkeys(
    _REQUIRED_JSON, list
)
_LONG_COLUMNS = (*JSON_COLUMNS, "findings_note", "system_prompt", "user_prompt", "raw_answer")
LIST_COLUMNS = tuple(name for name in COLUMNS if name not in _LONG_COLUMNS)
_INSERT = (
    f"insert into llm_consultations ({', '.join(COLUMNS)}) "
    f"values ({', '.join(f':{name}' for name in COLUMNS)})"
)
_IN_TABLES = (
    "(database_name, table_name) in "
    "(select json_extract(value, '$[0]'), json_extract(value, '$[1]') from json_each(:tables))"
)
# Earlier versions have no columns from here on.
_FINDINGS = COLUMNS.index("findings")
# A row that no version has written; everything else in these columns is of their types.
_ODD = (
    f"('blob' in ({', '.join(f'typeof({name})' for name in COLUMNS[:_FINDINGS])}) "
    "or typeof(latency_ms) = 'text')"
)
MAX_WARNINGS = 100

Row = dict[str, Any]

migrations = Migrations("datasette_llm_consultant")


@migrations()
def m001_consultations(db: Database) -> None:
    outcomes = ", ".join(f"'{outcome}'" for outcome in OUTCOMES)
    for statement in (
        f"""
        create table llm_consultations (
            id text primary key,
            created_at text not null,
            type text not null,
            database_name text not null,
            table_name text not null,
            actor_id text,
            question text,
            exclude text not null,
            profile text,
            system_prompt text,
            user_prompt text,
            model_id text,
            raw_answer text,
            advice text,
            rejected text not null,
            checks text not null,
            outcome text not null check (outcome in ({outcomes})),
            error_type text,
            error_message text,
            latency_ms real,
            call_id text
        ) without rowid
        """,
        """
        create index llm_consultations_table
        on llm_consultations (database_name, table_name, id)
        """,
    ):
        db.execute(statement)
    append_only(db, "llm_consultations")


@migrations()
def m002_retention(db: Database) -> None:
    """Retention removes them with the calls of their age."""
    db.execute("drop trigger llm_consultations_delete")
    db.execute(
        """
        create trigger llm_consultations_delete before delete on llm_consultations
        when old.id >= coalesce(
            (select below_id from llm_log_removals order by id desc limit 1), ''
        )
        begin select raise(abort, 'llm_consultations is append-only: only retention removes'); end
        """
    )


@migrations()
def m003_calls(db: Database) -> None:
    db.execute("create index llm_consultations_call on llm_consultations (call_id)")


@migrations()
def m004_findings(db: Database) -> None:
    db.execute("alter table llm_consultations add column findings text")
    db.execute("alter table llm_consultations add column findings_note text")
    db.execute("alter table llm_consultations add column suggested_config text")


def migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations of the table, as `migrations.migrate`."""
    run_migrations(connection, migrations, "llm_consultations")


async def update(datasette: Datasette) -> None:
    """Bring the table up to date, if there is one, for retention and the pages."""
    database = datasette.get_internal_database()
    try:
        if await database.execute_fn(_has_table):
            await database.execute_write_fn(migrate)
            await database.execute_fn(_warn_of_odd_rows)
    except (sqlite3.Error, NewerDatabaseError) as error:
        logger.error("The consultations cannot be brought up to date: %s", error)


async def write(datasette: Datasette, row: Mapping[str, Any]) -> None:
    """Write a consultation, also if the caller is cancelled meanwhile.

    Args:
        datasette: the Datasette instance.
        row: a value for each of `COLUMNS`; those of `JSON_COLUMNS` not serialized.

    Raises:
        sqlite3.Error: it cannot be written.
        NewerDatabaseError: a newer version of datasette-llm has migrated the table.
    """
    texts = {name: _json(row[name]) for name in JSON_COLUMNS}
    values = storable(dict(row) | texts)

    def insert(connection: sqlite3.Connection) -> None:
        migrate(connection)
        connection.execute(_INSERT, values)

    writing = asyncio.ensure_future(datasette.get_internal_database().execute_write_fn(insert))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


async def read_one(datasette: Datasette, consultation_id: str, tables: str) -> Row | None:
    """Read a consultation, if it is about one of some tables; else None.

    Args:
        datasette: the Datasette instance.
        consultation_id: its id.
        tables: as from `table_access.analyzable_tables`.
    """
    where = f"id = :id and {_IN_TABLES}"
    rows = await _read(datasette, COLUMNS, where, {"id": consultation_id, "tables": tables})
    return _parsed(rows[0]) if rows else None


def _parsed(row: Row) -> Row | None:
    """A row with its JSON as values; None, with a warning, for one that no version has written."""
    try:
        texts = {name: row[name] for name in JSON_COLUMNS if row[name] is not None}
        values = {name: json.loads(text) for name, text in texts.items()}
    except (ValueError, TypeError, RecursionError):
        values = {}
    kinds = {name: type(values[name]) for name in _JSON_TYPES.keys() & values.keys()}
    if dict(_JSON_TYPES) | kinds != _JSON_TYPES or _REQUIRED_JSON - values.keys():
        _warn(row["id"])
        return None
    return row | values


def _warn(consultation_id: object) -> None:
    logger.warning("The row %.80r of llm_consultations is ignored: it is odd", consultation_id)


async def read_page(datasette: Datasette, tables: str, before: str | None, limit: int) -> list[Row]:
    """Read a page of the consultations about some tables, newest first.

    Args:
        datasette: the Datasette instance.
        tables: as from `table_access.analyzable_tables`.
        before: the id of the last row of the previous page; None for the first page.
        limit: the maximum number of rows.
    """
    values: dict[str, Any] = {"tables": tables, "limit": limit}
    where = _IN_TABLES
    if before is not None:
        where += " and id < :before"
        values["before"] = before
    return await _read(datasette, LIST_COLUMNS, f"{where} order by id desc limit :limit", values)


async def has_findings(datasette: Datasette, row: Mapping[str, Any]) -> bool:
    """True if the last findings of a table without a model, for the same actor, are these.

    Args:
        datasette: the Datasette instance.
        row: as for `write`.
    """
    where = """id = (
        select max(id) from llm_consultations where database_name = :database_name
        and table_name = :table_name and actor_id is :actor_id and exclude = :exclude
        and user_prompt is null and outcome = 'ok'
    ) and findings = :findings"""
    texts = {name: _json(row[name]) for name in ("exclude", "findings")}
    names = ("database_name", "table_name", "actor_id")
    values = storable({name: row[name] for name in names} | texts)
    try:
        return bool(await _read(datasette, ("id",), where, values))
    except sqlite3.OperationalError:  # the table is of an earlier version, without findings
        return False


async def consultations_of_call(datasette: Datasette, call_id: str) -> list[Row]:
    """The consultations that a call in the call log was made for.

    Args:
        datasette: the Datasette instance.
        call_id: of any call of a consultation, which has the group of the last one.

    Returns:
        Their `id`, `database_name` and `table_name`; none as long as no consultation is stored.
    """
    where = """call_id in (
        select id from llm_calls where id = :id or group_id is not null
        and group_id = (select group_id from llm_calls where id = :id)
    )"""
    columns = ("id", "database_name", "table_name")
    return await _read(datasette, columns, where, {"id": call_id})


async def _read(
    datasette: Datasette, columns: tuple[str, ...], where: str, values: Mapping[str, Any]
) -> list[Row]:
    def read(connection: sqlite3.Connection) -> list[Row]:
        if not _has_table(connection):
            return []  # before the first consultation
        # An earlier version's table has no findings until the next consultation is stored.
        known = {row[1] for row in connection.execute("pragma table_info(llm_consultations)")}
        selected = ", ".join(name if name in known else "null" for name in columns)
        sql = f"select {selected} from llm_consultations where not {_ODD} and {where}"
        rows = connection.execute(sql, values)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    found: list[Row] = await datasette.get_internal_database().execute_fn(read)
    return found


def _warn_of_odd_rows(connection: sqlite3.Connection) -> None:
    sql = f"select id from llm_consultations where {_ODD} limit {MAX_WARNINGS}"
    for (each,) in connection.execute(sql):
        _warn(each)


def _has_table(connection: sqlite3.Connection) -> bool:
    exists = "select 1 from sqlite_master where type = 'table' and name = 'llm_consultations'"
    return connection.execute(exists).fetchone() is not None

"""What SQLite's schema says about a table or view."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datasette.utils import detect_fts, get_outbound_foreign_keys
from datasette.utils.sqlite import sqlite3

from ...errors import TableNotFoundError

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette


@dataclass(frozen=True, slots=True)
class ColumnMetadata:
    """The metadata of a table.

    Attributes:
        description: of the table; None where there is none.
        columns: their descriptions, by name.
        units: of columns, by name.
        column_types: the names of Datasette's column types, by the name of the column.
    """

    description: str | None
    columns: Mapping[str, str]
    units: Mapping[str, str]
    column_types: Mapping[str, str]


async def read_known(datasette: Datasette, database: str, table: str) -> ColumnMetadata:
    """Read what Datasette knows of a table or view."""
    of_table = await datasette.get_resource_metadata(database, table)
    of_columns = await _column_metadata(datasette, database, table)
    types = await datasette.get_column_types(database, table)
    units = _units(of_table.get("units")) | of_columns.get("units", {}) | of_columns.get("unit", {})
    return ColumnMetadata(
        of_table.get("description"),
        of_columns.get("description", {}),
        units,
        {column: kind.name for column, kind in types.items()},
    )


async def _column_metadata(
    datasette: Datasette, database: str, table: str
) -> dict[str, dict[str, str]]:
    # Datasette's own method asks for one column, and a table may have hundreds.
    found: dict[str, dict[str, str]] = {}
    sql = """
        select key, column_name, value from metadata_columns
        where database_name = ? and resource_name = ?
    """
    for row in await datasette.get_internal_database().execute(sql, [database, table]):
        found.setdefault(row["key"], {})[row["column_name"]] = row["value"]
    return found


def _units(stored: object) -> dict[str, str]:
    # The table's `units` are a mapping, which Datasette stores as JSON text.
    try:
        units: Any = json.loads(stored) if isinstance(stored, str) else {}
    except ValueError:
        return {}
    return {str(name): str(unit) for name, unit in units.items()} if isinstance(units, dict) else {}


def left_out(
    database: str, table: str, columns: Collection[str], names: Collection[str]
) -> list[str]:
    """Those of a table's columns that are not to be read.

    Args:
        database: the name of the table's database.
        table: the name of the table.
        columns: the names of its columns, in their order.
        names: `column`, `table.column` or `database.table.column`; as in SQL, in small or capital
            letters.
    """
    unwanted = {name.casefold() for name in names}

    def ways(column: str) -> set[str]:
        return {
            each.casefold()
            for each in (column, f"{table}.{column}", f"{database}.{table}.{column}")
        }

    return [column for column in columns if ways(column) & unwanted]


# Of a virtual table, which a select of all columns does not show either.
_HIDDEN = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it was declared.

    Attributes:
        untyped: it takes values as they are given, so that 1 and 1.0 can stand side by side.
        foreign_key: the table and the column that it refers to; the latter None for its key.
    """

    name: str
    declared_type: str
    primary_key: bool
    foreign_key: tuple[str, str | None] | None
    full_text_search: bool
    untyped: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as it was declared.

    Attributes:
        rowid: what its rowid is called here; None where it has none that could be relied on.
    """

    name: str
    kind: Literal["table", "view"]
    columns: tuple[Column, ...]
    rowid: str | None


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def source(table: str) -> str:
    """A table or view to select from, as `t`; never a part of the query that has its name."""
    return f"main.{quoted(table)} as t"


def cell(column: str) -> str:
    """A column of what `source` names.

    By itself, a quoted name that no column has any more would be a text.
    """
    return f"t.{quoted(column)}"


def read_table(connection: Connection, name: str) -> Table:
    """Read the schema of a table or view.

    Raises:
        TableNotFoundError: there is none of this name.
    """
    sql = "select type, sql from sqlite_master where name = ? and type in ('table', 'view')"
    found = connection.execute(sql, [name]).fetchone()
    if found is None:
        raise TableNotFoundError(name)
    kind, definition = found
    virtual = (definition or "").lstrip().upper().startswith("CREATE VIRTUAL")
    ordinary = kind == "table" and not virtual
    columns = _columns(connection, name, typed=ordinary)
    rowid = _rowid(connection, name, {column.name for column in columns}) if ordinary else None
    return Table(name, kind, columns, rowid)


def _columns(connection: Connection, table: str, *, typed: bool) -> tuple[Column, ...]:
    keys = {
        key["column"].casefold(): (key["other_table"], key["other_column"])
        for key in get_outbound_foreign_keys(connection, table)
    }
    searched = _searched(connection, table)
    return tuple(
        Column(
            name,
            declared or "",
            bool(key),
            keys.get(name.casefold()),
            name in searched,
            untyped=not typed or _takes_anything(declared or ""),
        )
        for name, declared, key, hidden in _declared(connection, table)
        if hidden != _HIDDEN
    )


def _takes_anything(declared: str) -> bool:
    # A strict table converts nothing in a column of the type ANY.
    kind = declared.upper()
    return kind in ("", "ANY") or ("BLOB" in kind and "INT" not in kind)


def _declared(connection: Connection, table: str) -> list[tuple[str, str, int, int]]:
    rows = connection.execute(f"pragma table_xinfo({quoted(table)})").fetchall()
    return [(name, declared, key, hidden) for _, name, declared, _, _, key, hidden in rows]


def _searched(connection: Connection, table: str) -> set[str]:
    index = detect_fts(connection, table)
    if index is None:
        return set()
    return {name for name, _, _, hidden in _declared(connection, index) if hidden != _HIDDEN}


def _rowid(connection: Connection, table: str, taken: Collection[str]) -> str | None:
    names = {name.casefold() for name in taken}
    rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in names), None)
    if rowid is None:
        return None
    try:
        connection.execute(f"select {rowid} from {source(table)} limit 0")
    except sqlite3.OperationalError:  # it is a table WITHOUT ROWID
        return None
    return rowid

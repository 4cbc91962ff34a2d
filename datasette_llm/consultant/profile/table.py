"""What SQLite's schema and Datasette's metadata say about a table or view."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datasette.utils import detect_fts, get_outbound_foreign_keys
from datasette.utils.sqlite import sqlite3

from ...errors import TableNotFoundError

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette

# In pragma table_xinfo: a column of a virtual table that `select *` leaves out too.
_HIDDEN = 1
# In the same: a generated column, virtual or stored.
_GENERATED = (2, 3)
_CHECK = re.compile(r"\bcheck\s*\(", re.IGNORECASE)
# A comment, a quoted text or name, a parenthesis.
_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]|[()]""", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as declared.

    Attributes:
        foreign_key: the referenced table and column; the column is None for the primary key.
        not_null: whether the schema forbids null.
        unique: whether the schema forbids the same value twice.
        indexed: whether it is the first column of an index, or the rowid.
        generated: whether it is computed from other columns.
    """

    name: str
    declared_type: str
    primary_key: bool
    foreign_key: tuple[str, str | None] | None
    full_text_search: bool
    not_null: bool = False
    unique: bool = False
    indexed: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as declared.

    Attributes:
        rowid: the name of its rowid; None where it has none that can be used.
        checks: the conditions of its CHECK constraints.
        collated: whether a column may have a collation of its own.
    """

    name: str
    kind: Literal["table", "view"]
    columns: tuple[Column, ...]
    rowid: str | None
    checks: tuple[str, ...] = ()
    collated: bool = True


@dataclass(frozen=True, slots=True)
class ColumnMetadata:
    """What Datasette's metadata says about a table and its columns.

    Attributes:
        description: of the table, or None.
        columns: descriptions, by column name.
        units: by column name.
        column_types: names of Datasette's column types, by column name.
    """

    description: str | None
    columns: Mapping[str, str]
    units: Mapping[str, str]
    column_types: Mapping[str, str]


def quote_identifier(name: str) -> str:
    """A name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def table_source(table: str) -> str:
    """A table or view to select from, as `t`; `main.` keeps it apart from a CTE of that name."""
    return f"main.{quote_identifier(table)} as t"


def column_ref(column: str) -> str:
    """A column of `table_source`.

    Without the `t.`, SQLite would take the quoted name of a dropped column for a string.
    """
    return f"t.{quote_identifier(column)}"


def columns_left_out(
    database: str, table: str, columns: Collection[str], exclude: Collection[str]
) -> list[str]:
    """The columns of a table that must not be read.

    Args:
        database: the name of the database.
        table: the name of the table.
        columns: the names of its columns, in order.
        exclude: `column`, `table.column` or `database.table.column`; case-insensitive, as in SQL.
    """
    excluded = {name.casefold() for name in exclude}

    def names(column: str) -> set[str]:
        qualified = (column, f"{table}.{column}", f"{database}.{table}.{column}")
        return {name.casefold() for name in qualified}

    return [column for column in columns if names(column) & excluded]


def may_hold_excluded(
    connection: Connection, database: str, name: str, exclude: Collection[str]
) -> bool:
    """Whether a view or a full-text index may have values of an excluded column of other tables.

    SQLite does not say from which column a value comes, so the definitions are searched for the
    names of such tables and columns: rather one too many.

    Args:
        connection: to its database.
        database: the name of the database.
        name: the name of the table, view, virtual table or part of one.
        exclude: as for `columns_left_out`.
    """
    if not exclude:
        return False
    sql = "select name, type, coalesce(sql, '') from sqlite_master where type in ('table', 'view')"
    schema = [(table, kind, text.lstrip()) for table, kind, text in connection.execute(sql)]
    virtual = [table for table, _, text in schema if text[:14].upper() == "CREATE VIRTUAL"]
    made_of_others, suspicious = {}, set()
    for table, kind, text in schema:
        if kind == "view" or table in virtual or any(table.startswith(f"{v}_") for v in virtual):
            made_of_others[table] = _unquoted(text)
        else:
            columns = [each.name for each in _declared(connection, table)]
            if found := columns_left_out(database, table, columns, exclude):
                suspicious |= {_unquoted(table), *map(_unquoted, found)}
    while name in made_of_others:
        found = [t for t, text in made_of_others.items() if any(s in text for s in suspicious)]
        if name in found or not found:
            return name in found
        for table in found:
            del made_of_others[table]
            suspicious.add(_unquoted(table))
    return False


def _unquoted(sql: str) -> str:
    return re.sub(r"""["'`\[\]]""", "", sql).casefold()


def read_table(connection: Connection, name: str) -> Table:
    """Read the schema of a table or view.

    Raises:
        TableNotFoundError: there is no such table or view.
    """
    sql = "select type, sql from sqlite_master where name = ? and type in ('table', 'view')"
    found = connection.execute(sql, [name]).fetchone()
    if found is None:
        raise TableNotFoundError(name)
    kind, definition = found
    definition = definition or ""
    virtual = definition.lstrip().upper().startswith("CREATE VIRTUAL")
    ordinary = kind == "table" and not virtual
    declared = _declared(connection, name)
    rowid = _rowid(connection, name, {each.name for each in declared}) if ordinary else None
    columns = _columns(connection, name, declared, has_rowid=rowid is not None)
    checks = checks_of(definition) if ordinary else ()
    collated = not ordinary or "collate" in definition.casefold()
    return Table(name, kind, columns, rowid, checks, collated)


def checks_of(definition: str) -> tuple[str, ...]:
    """The conditions of the CHECK constraints in a CREATE TABLE statement."""
    checks, opened, start = [], 0, 0
    constraints = {match.end() - 1 for match in _CHECK.finditer(definition)}
    for token in _TOKEN.finditer(definition):
        if token[0] == "(":
            if opened or token.start() in constraints:
                opened, start = opened + 1, start if opened else token.end()
        elif token[0] == ")" and opened:
            opened -= 1
            if not opened:
                checks.append(definition[start : token.start()].strip())
    return tuple(checks)


async def read_metadata(datasette: Datasette, database: str, table: str) -> ColumnMetadata:
    """Read Datasette's metadata of a table or view."""
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


class _Declared(NamedTuple):
    """A row of pragma table_xinfo, without the number of the column."""

    name: str
    type: str
    not_null: int
    default: str | None
    key: int
    hidden: int


def _columns(
    connection: Connection, table: str, declared: Sequence[_Declared], *, has_rowid: bool
) -> tuple[Column, ...]:
    keys = {
        key["column"].casefold(): (key["other_table"], key["other_column"])
        for key in get_outbound_foreign_keys(connection, table)
    }
    searchable = _searchable_columns(connection, table)
    unique, indexed = _indexed(connection, table)
    primary = [each for each in declared if each.key]
    if has_rowid and len(primary) == 1 and (primary[0].type or "").upper() == "INTEGER":
        unique.add(primary[0].name)
        indexed.add(primary[0].name)
    return tuple(
        Column(
            each.name,
            each.type or "",
            bool(each.key),
            keys.get(each.name.casefold()),
            each.name in searchable,
            bool(each.not_null),
            each.name in unique,
            each.name in indexed,
            each.hidden in _GENERATED,
        )
        for each in declared
        if each.hidden != _HIDDEN
    )


def _indexed(connection: Connection, table: str) -> tuple[set[str], set[str]]:
    """The columns whose values are unique, and those that an index begins with."""
    unique, indexed = set[str](), set[str]()
    indexes = connection.execute(f"pragma index_list({quote_identifier(table)})").fetchall()
    for _, index, is_unique, _, partial in indexes:
        columns = connection.execute(f"pragma index_info({quote_identifier(index)})").fetchall()
        if partial or columns[0][2] is None:  # of some rows, of an expression
            continue
        indexed.add(columns[0][2])
        if is_unique and len(columns) == 1:
            unique.add(columns[0][2])
    return unique, indexed


def _declared(connection: Connection, table: str) -> list[_Declared]:
    rows = connection.execute(f"pragma table_xinfo({quote_identifier(table)})").fetchall()
    return [_Declared(*row[1:]) for row in rows]


def _searchable_columns(connection: Connection, table: str) -> set[str]:
    index = detect_fts(connection, table)
    if index is None:
        return set()
    return {each.name for each in _declared(connection, index) if each.hidden != _HIDDEN}


def _rowid(connection: Connection, table: str, taken: Collection[str]) -> str | None:
    names = {name.casefold() for name in taken}
    rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in names), None)
    if rowid is None:
        return None
    try:
        connection.execute(f"select {rowid} from {table_source(table)} limit 0")
    except sqlite3.OperationalError:  # it is a table WITHOUT ROWID
        return None
    return rowid


async def _column_metadata(
    datasette: Datasette, database: str, table: str
) -> dict[str, dict[str, str]]:
    # Datasette's own method reads one column at a time, and a table may have hundreds.
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

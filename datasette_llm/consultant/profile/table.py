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
from .lineage import columns_read

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette

# In pragma table_xinfo: a column of a virtual table that `select *` leaves out too.
_HIDDEN = 1
# In the same: a generated column, virtual or stored.
_STORED = 3
_GENERATED = (2, _STORED)
_VIRTUAL = re.compile(
    r"\s*create\s+virtual\s+table\b.*?\busing\s+[\"'`\[]?(?P<module>\w+)(?P<arguments>.*)",
    re.IGNORECASE | re.DOTALL,
)
# Of a full-text table: the table or view whose rows it indexes, and a column of its own copy.
_CONTENT = re.compile(r"""\bcontent\s*=\s*["'`\[]?(?P<table>[^"'`\],)]*)""", re.IGNORECASE)
_CONTENT_COLUMN = re.compile(r"c(\d+)")
# The tables that a full-text table is stored in: its name and one of these.
_PARTS = ("content", "data", "idx", "docsize", "config", "segments", "segdir", "stat")
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


def columns_holding_excluded(
    connection: Connection, database: str, name: str, exclude: Collection[str]
) -> list[str]:
    """The columns of a table, view or index that must not be read, whatever their names.

    A column of a view is one if SQLite reads an excluded column for it; so is one of a full-text
    table or of its parts that such a column is copied to. Where it cannot be decided it is.

    Args:
        connection: to its database.
        database: the name of the database.
        name: the name of the table, view, virtual table or part of one.
        exclude: as for `columns_left_out`.
    """
    found = _Excluded(connection, database, exclude).columns_of(name) if exclude else set()
    return [each.name for each in _declared(connection, name) if each.name in found]


def may_hold_excluded(
    connection: Connection, database: str, name: str, exclude: Collection[str]
) -> bool:
    """Whether a table may hold excluded values in a column that is not excluded by its name.

    Args:
        connection: to its database.
        database: the name of the database.
        name: the name of the table, view, virtual table or part of one.
        exclude: as for `columns_left_out`.
    """
    found = columns_holding_excluded(connection, database, name, exclude)
    return len(columns_left_out(database, name, found, exclude)) < len(found)


class _Excluded:
    """The columns of a database's tables that hold excluded values."""

    def __init__(self, connection: Connection, database: str, exclude: Collection[str]) -> None:
        self._connection, self._database, self._exclude = connection, database, exclude
        sql = "select name, type, sql from sqlite_master where type in ('table', 'view')"
        schema = connection.execute(sql).fetchall()
        self._views = {name for name, kind, _ in schema if kind == "view"}
        self._virtual = {
            name: made for name, _, sql in schema if (made := _VIRTUAL.match(sql or ""))
        }
        self._parts = {f"{name}_{part}": name for name in self._virtual for part in _PARTS}
        others = self._views | {*self._virtual, *self._parts}
        self._ordinary = [name for name, _, _ in schema if name not in others]
        self._found: dict[str, set[str]] = {}

    def columns_of(self, name: str) -> set[str]:
        """The columns of a table or view that hold such values."""
        if name not in self._found:
            try:
                declared = _declared(self._connection, name)
            except sqlite3.Error:  # a view or a module that is broken, which nothing can read
                declared = []
            self._found[name] = {each.name for each in declared}  # while it is not decided
            self._found[name] = self._holding(name, declared)
        return self._found[name]

    def _holding(self, name: str, declared: Sequence[_Declared]) -> set[str]:
        columns = [each.name for each in declared]
        found = set(columns_left_out(self._database, name, columns, self._exclude))
        if name in self._virtual:
            return found | self._of_virtual(self._virtual[name], columns)
        if name in self._parts and name not in self._views:
            return found | self._of_part(self._parts[name], name, columns)
        others = [
            each.name for each in declared if name in self._views or each.hidden in _GENERATED
        ]
        if name not in self._views and found:
            # What SQLite has stored of a generated column does not tell what it is made of.
            found |= {each.name for each in declared if each.hidden == _STORED}
        others = [each for each in others if each not in found]
        if others and self._reads_excluded(name, others, found):
            found |= {each for each in others if self._reads_excluded(name, [each], found)}
        return found

    def _reads_excluded(self, name: str, columns: Sequence[str], found: Collection[str]) -> bool:
        selected = ", ".join(map(column_ref, columns))
        try:
            reads = columns_read(self._connection, f"select {selected} from {table_source(name)}")
        except sqlite3.Error:  # reading it will say why
            return False
        if not reads.decided and any(map(self.columns_of, self._virtual)):
            return True
        return any(
            column in (found if table == name else self.columns_of(table))
            for table, column in reads.columns
        )

    def _of_virtual(self, made: re.Match[str], columns: Sequence[str]) -> set[str]:
        """Those that are copies of excluded ones, by name; all of what is made of such a table."""
        arguments = made["arguments"]
        content = _CONTENT.search(arguments)
        if made["module"].casefold().startswith("fts") and "vocab" not in made["module"].casefold():
            source = content["table"].strip().casefold() if content else ""
            named = [each for each in (*self._ordinary, *self._views) if each.casefold() == source]
            sources = named or self._ordinary
            names = {each.casefold() for table in sources for each in self.columns_of(table)}
            return {each for each in columns if each.casefold() in names}
        mentioned = _unquoted(arguments)
        others = [each for each in self._virtual if _unquoted(each) in mentioned]
        return set(columns) if any(map(self.columns_of, others)) else set()

    def _of_part(self, owner: str, name: str, columns: Sequence[str]) -> set[str]:
        """Those of a part of a full-text table; its index has the words of all columns."""
        hidden = self.columns_of(owner)
        if not hidden or name != f"{owner}_content":
            return set(columns) if hidden else set()
        of_owner = [each.name for each in _declared(self._connection, owner)]
        numbers = {each: _CONTENT_COLUMN.match(each) for each in columns}
        return {
            each
            for each, number in numbers.items()
            if number and of_owner[int(number[1])] in hidden
        }


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

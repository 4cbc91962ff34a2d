"""Which columns of which tables a query reads, by the program that SQLite makes of it.

SQLite's authorizer is not asked about every table and column. The program opens each table and
index by its root page, and reads columns by their place in the stored row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite3 import Connection

# In pragma table_xinfo: a generated column that is not stored.
_VIRTUAL = 2
_MAIN = 0
# Instructions that find a row by what the table or index is ordered by.
_SEEKS = frozenset(
    (
        *("SeekGE", "SeekGT", "SeekLE", "SeekLT", "SeekRowid", "NotExists", "Found", "NotFound"),
        *("NoConflict", "IfNoHope", "IdxGE", "IdxGT", "IdxLE", "IdxLT"),
    )
)


@dataclass(frozen=True, slots=True)
class Reads:
    """What a query reads.

    Attributes:
        columns: pairs of a table and a column; rather one too many.
        decided: whether these are all; it may read others through a virtual table.
    """

    columns: frozenset[tuple[str, str]]
    decided: bool


@dataclass(frozen=True, slots=True)
class _Stored:
    """A table or index as it is stored.

    Attributes:
        table: the name of the table.
        columns: the names in the order of the stored row.
        by_rowid: whether it is ordered by rowid, and not by its columns.
        key: the column that is the rowid, if there is one.
        whole: whether any use of it counts as reading all columns.
    """

    table: str
    columns: tuple[str, ...]
    by_rowid: bool = False
    key: str | None = None
    whole: bool = False


def columns_read(connection: Connection, query: str) -> Reads:
    """The columns that a query may read.

    Args:
        connection: to its database.
        query: a SELECT, which is not run.

    Raises:
        sqlite3.Error: it cannot be prepared.
    """
    program = [row[1:5] for row in connection.execute(f"explain {query}")]
    opened: dict[int, list[_Stored]] = {}
    found, decided = set[tuple[str, str]](), True
    for opcode, cursor, page, database in program:
        if opcode == "VOpen" or (opcode == "OpenRead" and database != _MAIN):
            decided = False
        elif opcode == "OpenRead":
            opened.setdefault(cursor, []).extend(_stored_at(connection, page))
    for opcode, cursor, place, _ in program:
        for each in opened.get(cursor, ()):
            found |= {(each.table, column) for column in _read_by(opcode, place, each)}
    return Reads(frozenset(found), decided)


def _read_by(opcode: str, place: int, stored: _Stored) -> tuple[str, ...]:
    """The columns that an instruction on a table or index reads."""
    if stored.whole or opcode == "RowData" or (opcode in _SEEKS and not stored.by_rowid):
        return stored.columns
    if opcode == "Column":
        return stored.columns[place : place + 1]
    if stored.key is not None and (opcode == "Rowid" or opcode in _SEEKS):
        return (stored.key,)
    return ()


def _stored_at(connection: Connection, page: int) -> list[_Stored]:
    """The table or index with this root page; none for SQLite's own schema."""
    sql = "select type, name, tbl_name from sqlite_master where rootpage = ?"
    return [
        _index(connection, name, table) if kind == "index" else _table(connection, table)
        for kind, name, table in connection.execute(sql, [page]).fetchall()
    ]


def _index(connection: Connection, name: str, table: str) -> _Stored:
    sql = "select cid, name from pragma_index_xinfo(?) order by seqno"
    columns = connection.execute(sql, [name]).fetchall()
    sql = "select 1 from pragma_index_list(?) where name = ? and partial"
    # Of an expression or a condition SQLite does not tell the columns.
    if connection.execute(sql, [table, name]).fetchone() or any(cid == -2 for cid, _ in columns):
        return _Stored(table, _declared(connection, table), whole=True)
    return _Stored(table, tuple(column for cid, column in columns if cid >= 0))


def _table(connection: Connection, table: str) -> _Stored:
    sql = """
        select name from pragma_index_list(?) where origin = 'pk'
            and name not in (select name from sqlite_master where type = 'index')
    """
    if key := connection.execute(sql, [table]).fetchone():  # it is the table, WITHOUT ROWID
        sql = "select name from pragma_index_xinfo(?) order by seqno"
        return _Stored(table, tuple(row[0] for row in connection.execute(sql, key)))
    sql = "select name from pragma_table_xinfo(?) where pk and upper(type) = 'INTEGER'"
    keys = connection.execute(sql, [table]).fetchall()
    key = keys[0][0] if len(keys) == 1 else None
    return _Stored(table, _declared(connection, table, stored=True), by_rowid=True, key=key)


def _declared(connection: Connection, table: str, *, stored: bool = False) -> tuple[str, ...]:
    sql = "select name, hidden from pragma_table_xinfo(?) order by cid"
    rows = connection.execute(sql, [table]).fetchall()
    return tuple(name for name, hidden in rows if not (stored and hidden == _VIRTUAL))

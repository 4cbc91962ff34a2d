"""What Datasette knows of a table's columns beside their values: descriptions, units, types."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasette.app import Datasette


@dataclass(frozen=True, slots=True)
class Known:
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


async def read_known(datasette: Datasette, database: str, table: str) -> Known:
    """Read what Datasette knows of a table or view."""
    of_table = await datasette.get_resource_metadata(database, table)
    of_columns = await _column_metadata(datasette, database, table)
    types = await datasette.get_column_types(database, table)
    units = _units(of_table.get("units")) | of_columns.get("units", {}) | of_columns.get("unit", {})
    return Known(
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

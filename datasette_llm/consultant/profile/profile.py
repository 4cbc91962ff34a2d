"""The profile of a table: its schema, metadata and column statistics, as JSON for a model."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import instance
from ...errors import TableNotFoundError
from .column_stats import display_value
from .measure import Measurement, measure
from .sampling import Sample
from .table import Column, ColumnMetadata, read_metadata
from .time_budget import Clock

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...config.settings import ConsultantSettings

SAMPLE_ROWS = 5
_FOREVER_S = 1e9


async def make_profile(
    datasette: Datasette,
    database: str,
    table: str,
    *,
    exclude: Collection[str] = (),
    settings: ConsultantSettings,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Profile a table or view, within a time limit.

    The caller checks permissions. Datasette has none for columns, so that all columns are read but
    those that are excluded by name.

    Args:
        datasette: the Datasette instance.
        database: the name of the database.
        table: the name of the table or view.
        exclude: columns to leave out besides those of the configuration, in the same forms; names
            that match no column are ignored.
        settings: which values may be included, the time limit and the columns to leave out.
        clock: gives the time in seconds.

    Returns:
        JSON data; the same for the same table, unless the time limit was reached. `rows.count` is
        None where it is unknown, `sample` is None where no sample was used. A column's `rows` is
        the number of rows behind its statistics, and `exact` says whether these are all rows.

    Raises:
        TableNotFoundError: there is no such database, table or view.
        ProfileError: SQLite cannot read it.
    """
    if database not in datasette.databases:
        raise TableNotFoundError(f"{database}/{table}")
    metadata = await read_metadata(datasette, database, table)
    work = partial(
        measure,
        database=database,
        name=table,
        exclude=(*settings.exclude, *exclude),
        settings=settings,
    )
    measured = await _in_read_thread(datasette, database, work, clock)
    return _profile(database, measured, metadata)


class _OneAtATime(asyncio.Lock):
    """The lock that a profile is made under."""


async def _in_read_thread(
    datasette: Datasette, database: str, work: Callable[..., Measurement], clock: Clock
) -> Measurement:
    """Run the work in a read thread, and stop it when the caller is cancelled."""
    cancelled = False
    calls = itertools.count()

    def stoppable_clock() -> float:
        # The first call sets the start of the time limit.
        return clock() + (_FOREVER_S if next(calls) and cancelled else 0.0)

    try:
        # One at a time, so that profiles leave Datasette's other reading threads to its pages.
        async with instance.of(datasette, _OneAtATime):
            measured: Measurement = await datasette.get_database(database).execute_fn(
                lambda connection: work(connection, clock=stoppable_clock)
            )
    finally:
        cancelled = True
    return measured


def _profile(database: str, measured: Measurement, metadata: ColumnMetadata) -> dict[str, Any]:
    sample, columns = measured.sample, measured.columns
    with_rows = measured.values == "sample"
    sampled = with_rows or len(measured.exact) < len(columns)
    profile = {
        "database": database,
        "table": measured.table.name,
        "kind": measured.table.kind,
        "description": metadata.description,
        "rows": {"count": sample.table_rows, "exact": measured.count is not None},
        "sample": {"rows": sample.rows, "of": sample.table_rows} if sampled else None,
        "columns": [_column(column, measured, metadata) for column in columns],
        "left_out": list(measured.left_out),
        "values": measured.values,
    }
    return profile | ({"sample_rows": _sample_rows(sample)} if with_rows else {})


def _column(column: Column, measured: Measurement, metadata: ColumnMetadata) -> dict[str, Any]:
    stats = dict(measured.stats[column.name])
    exact = column.name in measured.exact
    rows, distinct = stats.pop("rows"), stats.pop("distinct")
    return {
        "name": column.name,
        "declared_type": column.declared_type,
        "observed_types": stats.pop("observed_types"),
        "primary_key": column.primary_key,
        "foreign_key": _foreign_key(column),
        "full_text_search": column.full_text_search,
        "description": metadata.columns.get(column.name),
        "unit": metadata.units.get(column.name),
        "column_type": metadata.column_types.get(column.name),
        "null_fraction": stats.pop("null_fraction"),
        "distinct": {"count": distinct, "exact": exact},
        **stats,
        "exact": exact,
        "rows": rows,
    }


def _foreign_key(column: Column) -> dict[str, str | None] | None:
    if column.foreign_key is None:
        return None
    table, other = column.foreign_key
    return {"table": table, "column": other}


def _sample_rows(sample: Sample) -> list[dict[str, Any]]:
    """A few whole rows, spread over the sample."""
    count = min(SAMPLE_ROWS, sample.rows)
    indexes = [sample.rows * number // count for number in range(count)]
    columns = {name: list(sample.cells(name)) for name in sample.names}
    return [{name: _display(*cells[index]) for name, cells in columns.items()} for index in indexes]


def _display(value: Any, length: int | None) -> Any:
    return {"blob_size": length} if isinstance(value, bytes) else display_value(value)

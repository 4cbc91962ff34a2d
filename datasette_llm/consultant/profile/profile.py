"""The profile of a table: what a person would look at first, as data that a model can be given."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import TableNotFoundError
from .column_stats import shown
from .measure import Measured, measure
from .sampling import Sample
from .table import Column, ColumnMetadata, read_known
from .time_budget import Clock

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...config.settings import ConsultantSettings

SAMPLE_ROWS = 5
_FOREVER = 1e9


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

    Who may see the table is the caller's to decide. Datasette shows every column of a table to
    whoever may view the table, so that there are no columns to leave out but those named.

    Args:
        datasette: the site.
        database: the name of the database.
        table: the name of the table or view.
        exclude: columns to leave out beside those that the configuration names, in the same
            forms. A name that no column has leaves nothing out.
        settings: which values may be in it, the time limit and the columns to leave out.
        clock: tells the time, in seconds.

    Returns:
        What can be written as JSON; the same for the same data, as far as the time was enough.
        `rows.count` is None where nothing tells, `sample` where nothing is of a sample. Of a
        column, `rows` is how many rows its figures are of, and `exact` that these are all.

    Raises:
        TableNotFoundError: there is no such database, table or view.
        ProfileError: SQLite cannot read it.
    """
    if database not in datasette.databases:
        raise TableNotFoundError(f"{database}/{table}")
    known = await read_known(datasette, database, table)
    work = partial(
        measure,
        database=database,
        name=table,
        unwanted=(*settings.exclude, *exclude),
        settings=settings,
    )
    measured = await _until_gone(datasette, database, work, clock)
    return _profile(database, measured, known, settings.values == "sample")


async def _until_gone(
    datasette: Datasette, database: str, work: Callable[..., Measured], clock: Clock
) -> Measured:
    """Do the work in a reading thread, and stop it when nobody waits for it any more."""
    gone = False
    looks = itertools.count()

    def told() -> float:
        # Not at the first look, from which the time counts.
        return clock() + (_FOREVER if next(looks) and gone else 0.0)

    try:
        measured: Measured = await datasette.get_database(database).execute_fn(
            lambda connection: work(connection, clock=told)
        )
    finally:
        gone = True
    return measured


def _profile(
    database: str, measured: Measured, known: ColumnMetadata, with_rows: bool
) -> dict[str, Any]:
    sample, columns = measured.sample, measured.columns
    sampled = with_rows or len(measured.exact) < len(columns)
    profile = {
        "database": database,
        "table": measured.table.name,
        "kind": measured.table.kind,
        "description": known.description,
        "rows": {"count": sample.table_rows, "exact": measured.count is not None},
        "sample": {"rows": sample.rows, "of": sample.table_rows} if sampled else None,
        "columns": [_column(column, measured, known) for column in columns],
        "left_out": list(measured.left_out),
    }
    return profile | ({"sample_rows": _sample_rows(sample)} if with_rows else {})


def _column(column: Column, measured: Measured, known: ColumnMetadata) -> dict[str, Any]:
    figures = dict(measured.figures[column.name])
    exact = column.name in measured.exact
    rows, distinct = figures.pop("rows"), figures.pop("distinct")
    return {
        "name": column.name,
        "declared_type": column.declared_type,
        "observed_types": figures.pop("observed_types"),
        "primary_key": column.primary_key,
        "foreign_key": _foreign_key(column),
        "full_text_search": column.full_text_search,
        "description": known.columns.get(column.name),
        "unit": known.units.get(column.name),
        "column_type": known.column_types.get(column.name),
        "null_fraction": figures.pop("null_fraction"),
        "distinct": {"count": distinct, "exact": exact},
        **figures,
        "exact": exact,
        "rows": rows,
    }


def _foreign_key(column: Column) -> dict[str, str | None] | None:
    if column.foreign_key is None:
        return None
    table, other = column.foreign_key
    return {"table": table, "column": other}


def _sample_rows(sample: Sample) -> list[dict[str, Any]]:
    """A few whole rows, from all over the sample."""
    count = min(SAMPLE_ROWS, sample.rows)
    numbers = [sample.rows * place // count for place in range(count)]
    columns = {name: list(sample.cells(name)) for name in sample.names}
    return [{name: _shown(*cells[number]) for name, cells in columns.items()} for number in numbers]


def _shown(value: Any, length: int | None) -> Any:
    return {"blob_size": length} if isinstance(value, bytes) else shown(value)

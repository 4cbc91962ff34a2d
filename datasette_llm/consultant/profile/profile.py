"""The profile of a table: its schema, metadata and column statistics, as JSON for a model."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import instance
from ...errors import TableNotFoundError
from ..connections import own_connections
from .groups import Groups, display_value
from .measure import ColumnStats, Measurement, measure
from .scan import Figures, decoded
from .table import Column, ColumnMetadata, read_metadata
from .time_budget import Clock

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...config.settings import ConsultantSettings

# Profiles at once, and the connections of each. They are not those of Datasette's pages.
PROFILES = 2
CONNECTIONS = 2
WAITING = "Waiting for other profiles to end"
GEE = "GEE (guaranteed-error estimator)"
UNIQUE = "a unique column has as many as values"
_FOREVER_S = 1e9


async def make_profile(
    datasette: Datasette,
    database: str,
    table: str,
    *,
    exclude: Collection[str] = (),
    settings: ConsultantSettings,
    other_tables: Sequence[str] = (),
    clock: Clock = time.perf_counter,
    on_wait: Callable[[str], None] = lambda word: None,
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
        other_tables: the names of other tables that the reader may view.
        clock: gives the time in seconds.
        on_wait: called with a sentence where too many profiles are being made.

    Returns:
        JSON data; the same for the same table, unless the time limit was reached. `rows.count` is
        None where it is unknown. A column's `rows` is the number of rows behind its nulls, types,
        extremes, mean, deviation and lengths, and `exact` says whether these are all rows;
        `grouped` says the same of its distinct and frequent values and its quartiles. A `distinct`
        that is not exact is between `at_least` and `at_most`, which is None where it is unknown.

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
    running = instance.of(datasette, _Running)
    if running.locked():
        on_wait(WAITING)
    async with running:
        measured = await _in_own_thread(datasette, database, work, clock)
    return as_json(database, measured, metadata, other_tables)


class _Running(asyncio.Semaphore):
    """The profiles that are being made."""

    def __init__(self) -> None:
        super().__init__(PROFILES)


async def _in_own_thread(
    datasette: Datasette, database: str, work: Callable[..., Measurement], clock: Clock
) -> Measurement:
    """Run the work in a thread of its own, and stop it when the caller is cancelled."""
    cancelled = False
    calls = itertools.count()

    def stoppable_clock() -> float:
        # The first call sets the start of the time limit.
        return clock() + (_FOREVER_S if next(calls) and cancelled else 0.0)

    def run(connections: int) -> Measurement:
        with own_connections(datasette.get_database(database), connections) as opened:
            return work(opened, clock=stoppable_clock)

    if datasette.executor is None:  # it is set to use no threads
        return run(1)
    thread = ThreadPoolExecutor(1, thread_name_prefix="llm-profile")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, run, CONNECTIONS)
    finally:
        cancelled = True
        thread.shutdown(wait=False)


def as_json(
    database: str, measured: Measurement, metadata: ColumnMetadata, other_tables: Sequence[str]
) -> dict[str, Any]:
    """The profile that `make_profile` returns, from what was measured."""
    table, shows_values = measured.table, measured.values != "none"
    profile = {
        "database": database,
        "table": table.name,
        "kind": table.kind,
        "description": metadata.description,
        "rows": {"count": measured.count, "exact": measured.exact},
        "sample": None if measured.exact else {"rows": measured.seen, "of": measured.count},
        "columns": [_column(column, measured, metadata) for column in measured.columns],
        "checks": _checks(measured) if shows_values else [],
        "other_tables": [name for name in other_tables if name != table.name],
        "left_out": list(measured.left_out),
        "values": measured.values,
    }
    return profile | ({"sample_rows": measured.sample_rows} if measured.values == "sample" else {})


def _checks(measured: Measurement) -> list[str]:
    """The table's conditions, but those that may be about a column that is left out."""
    hidden = [name.casefold() for name in measured.left_out]
    return [
        check for check in measured.table.checks if not any(n in check.casefold() for n in hidden)
    ]


def _column(column: Column, measured: Measurement, metadata: ColumnMetadata) -> dict[str, Any]:
    stats = measured.stats[column.name]
    figures, groups = stats.figures, stats.groups
    made = {
        "name": column.name,
        "declared_type": column.declared_type,
        "observed_types": _observed_types(figures),
        "primary_key": column.primary_key,
        "foreign_key": _foreign_key(column),
        "full_text_search": column.full_text_search,
        "not_null": column.not_null,
        "unique": column.unique,
        "indexed": column.indexed,
        "generated": column.generated,
        "description": metadata.columns.get(column.name),
        "unit": metadata.units.get(column.name),
        "column_type": metadata.column_types.get(column.name),
        "null_fraction": _fraction(figures.rows - figures.filled, figures.rows),
        "empty_texts": figures.empty,
        "distinct": _distinct(column, measured),
        **_values(stats),
        "length": _length(figures),
        "blob_size": _blob_size(figures),
        "exact": stats.exact,
        "rows": figures.rows,
        "grouped": {"rows": groups.rows, "exact": stats.groups_exact} if groups else None,
        "error": stats.error,
    }
    return made if measured.values != "none" else made | _HIDDEN_VALUES


def _values(stats: ColumnStats) -> dict[str, Any]:
    figures, groups = stats.figures, stats.groups
    first, last = (
        end if end is None else decoded(end, stats.encoding)
        for end in (figures.first, figures.last)
    )
    numeric = {
        "count": figures.numeric,
        "min": display_value(figures.numeric_low),
        "max": display_value(figures.numeric_high),
    }
    return {
        # As SQLite orders values: numbers before texts.
        "min": display_value(first if figures.low is None else figures.low),
        "max": display_value(figures.high if last is None else last),
        "mean": display_value(stats.mean),
        "deviation": stats.deviation,
        "quartiles": [display_value(each) for each in (groups and groups.quartiles) or ()] or None,
        "numeric_texts": numeric if figures.numeric else None,
        "top_values": [
            {"value": display_value(value), "count": count}
            for value, count in (groups.top if groups else ())
        ],
        "masks": _masks(groups, stats.masks_exact) if groups else None,
    }


_HIDDEN_VALUES: dict[str, Any] = {
    **dict.fromkeys(["min", "max", "mean", "deviation", "quartiles", "numeric_texts", "masks"]),
    "top_values": [],
}


def _masks(groups: Groups, exact: bool) -> dict[str, Any] | None:
    masks = groups.masks
    if masks is None or not masks.texts:
        return None
    counts = [{"mask": mask, "count": count} for mask, count in masks.counts]
    return {"counts": counts, "dates": masks.dates, "texts": masks.texts, "exact": exact}


def _distinct(column: Column, measured: Measurement) -> dict[str, Any]:
    """The number of different values, or the bracket that it is in, and how it was estimated."""
    stats = measured.stats[column.name]
    figures, groups = stats.figures, stats.groups
    if stats.groups_exact and groups:
        return {"count": groups.distinct, "exact": True}
    values = _expected_values(figures, measured)
    if column.unique:
        if stats.exact:
            return {"count": figures.filled, "exact": True}
        return _bracket(values, figures.filled, values, UNIQUE)
    if groups is None or not groups.filled or groups.single is None:
        return _bracket(None, min(figures.filled, 1), values, GEE)
    # Each value that the sample has once stands for up to this many that it has not.
    times = max(values / groups.filled, 1.0) if values is not None else None
    if times is None:
        return _bracket(None, groups.distinct, None, GEE)
    others = groups.distinct - groups.single
    most = round(others + times * groups.single)
    if figures.integers == figures.filled and figures.low is not None and stats.exact:
        most = min(most, int(figures.high or 0) - int(figures.low) + 1)
    estimate = min(round(others + math.sqrt(times) * groups.single), most)
    return _bracket(max(estimate, groups.distinct), groups.distinct, most, GEE)


def _bracket(
    count: int | None, at_least: int, at_most: int | None, estimator: str
) -> dict[str, Any]:
    bracket = {"at_least": at_least, "at_most": at_most, "estimator": estimator}
    return {"count": count, "exact": False} | bracket


def _expected_values(figures: Figures, measured: Measurement) -> int | None:
    """How many values of a column are not null, in the whole table; None where it is unknown."""
    if measured.count is None or not figures.rows:
        return None
    return round(measured.count * figures.filled / figures.rows)


def _observed_types(figures: Figures) -> dict[str, int]:
    counts = {
        "null": figures.rows - figures.filled,
        "integer": figures.integers,
        "real": figures.reals,
        "text": figures.texts,
        "blob": figures.blobs,
    }
    return {name: count for name, count in counts.items() if count}


def _length(figures: Figures) -> dict[str, Any] | None:
    if not figures.texts:
        return None
    mean = _fraction(figures.characters, figures.texts)
    return {"min": figures.shortest, "max": figures.longest, "mean": mean}


def _blob_size(figures: Figures) -> dict[str, Any] | None:
    if not figures.blobs:
        return None
    mean = _fraction(figures.bytes, figures.blobs)
    return {"min": figures.smallest, "max": figures.largest, "mean": mean}


def _fraction(part: float, whole: int) -> float | None:
    return float(f"{part / whole:.12g}") if whole else None


def _foreign_key(column: Column) -> dict[str, str | None] | None:
    if column.foreign_key is None:
        return None
    table, other = column.foreign_key
    return {"table": table, "column": other}

"""The statistics of a table's columns: of all rows as far as the time allows, else of a sample.

Columns are measured one by one, the cheap ones first; those that the time limit leaves out have
statistics of the sample. All of it runs in one of Datasette's read threads, and nearly all of that
in SQLite, so that the event loop is not blocked. No transaction spans the whole, since it would
keep writers waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ...errors import ProfileError, TableNotFoundError
from .column_stats import parse_stats, stats_sql, table_groups
from .sampling import Sample, sample_results, take_sample
from .table import Column, Table, columns_left_out, may_hold_excluded, read_table, table_source
from .time_budget import (
    FEW_INSTRUCTIONS_PER_CHECK,
    INSTRUCTIONS_PER_CHECK,
    Clock,
    OutOfTimeError,
    TimeBudget,
)

if TYPE_CHECKING:
    from sqlite3 import Connection

    from ...config.settings import ConsultantSettings

# Shares of the time limit at which each part must have ended; the rest is for everything else.
COUNT_SHARE = 0.3
SAMPLE_SHARE = 0.6
STATS_SHARE = 0.95
# Sorting a column takes at least this many times as long as counting the rows.
SORT_COST_FACTOR = 2
# The size up to which a column is sorted, which writes it to a temporary file.
MAX_SORTED_BYTES = 256 * 1024 * 1024
# Of values as large as this fewer are sorted: SQLite may compare each to its end, and merges them
# without calling the progress handler.
LARGE_BYTES = 100_000
MAX_SORTED_LARGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of measuring a table.

    Attributes:
        table: the table or view.
        columns: the columns that were read.
        left_out: the names of the others.
        count: the number of rows; None where counting them took too long.
        sample: some of its rows.
        stats: the statistics by column name.
        exact: the names of the columns whose statistics are of all rows.
        values: as the setting; "none" where the values may be those of an excluded column.
    """

    table: Table
    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    count: int | None
    sample: Sample
    stats: dict[str, dict[str, Any]]
    exact: frozenset[str]
    values: str


def measure(
    connection: Connection,
    *,
    database: str,
    name: str,
    exclude: Collection[str],
    settings: ConsultantSettings,
    clock: Clock,
) -> Measurement:
    """Measure a table or view, within a time limit that begins now.

    Args:
        connection: to its database.
        database: the name of the database.
        name: the name of the table or view.
        exclude: the columns to leave out, in the forms of the configuration.
        settings: which values may be read, and the time limit.
        clock: gives the time in seconds.

    Raises:
        TableNotFoundError: there is no such table or view.
        ProfileError: SQLite cannot read it.
    """
    budget = TimeBudget(connection, settings.time_limit_ms / 1_000, clock)
    try:
        table = read_table(connection, name)
        excluded = columns_left_out(database, name, [each.name for each in table.columns], exclude)
        columns = tuple(each for each in table.columns if each.name not in excluded)
        count, count_s = _count(connection, table, budget)
        names = [column.name for column in columns]
        sample = take_sample(connection, table, names, count, budget, (COUNT_SHARE, SAMPLE_SHARE))
        hidden = may_hold_excluded(connection, database, name, settings.exclude)
        shown = "none" if hidden else settings.values
        values = shown != "none"
        results = sample_results(sample, values=values)
        exact = {}
        if count is not None:
            affordable = _affordable(columns, sample, count)
            large = sample.row_size >= LARGE_BYTES
            step = FEW_INSTRUCTIONS_PER_CHECK if large else INSTRUCTIONS_PER_CHECK
            exact = _exact(connection, table, affordable, values, budget, count_s, step)
    except sqlite3.Error as error:
        raise _profile_error(connection, name, error) from error
    stats = {each: parse_stats(result) for each, result in (results | exact).items()}
    left_out, exactly = tuple(excluded), frozenset(exact)
    return Measurement(table, columns, left_out, count, sample, stats, exactly, shown)


def _profile_error(connection: Connection, name: str, error: sqlite3.Error) -> ProfileError:
    try:
        read_table(connection, name)
    except TableNotFoundError as dropped:  # between one query and the next
        return dropped
    except sqlite3.Error:
        pass
    return ProfileError(f"{name!r} cannot be read: {error}")


def _count(connection: Connection, table: Table, budget: TimeBudget) -> tuple[int | None, float]:
    """The number of rows, and the seconds that counting took."""
    before = budget.spent
    try:
        with budget.until(COUNT_SHARE):
            sql = f"select count(1) from {table_source(table.name)}"
            return connection.execute(sql).fetchone()[0], budget.spent - before
    except OutOfTimeError:
        return None, budget.spent - before


def _affordable(columns: Sequence[Column], sample: Sample, count: int) -> list[Column]:
    """The columns small enough to be sorted, those expected to take the least time first."""

    def bytes_of(column: Column) -> float:
        return sample.mean_size(column.name) * count

    def max_bytes(column: Column) -> int:
        large = sample.mean_size(column.name) >= LARGE_BYTES
        return MAX_SORTED_LARGE_BYTES if large else MAX_SORTED_BYTES

    def cost(column: Column) -> tuple[int, float]:
        return len({value for value, _ in sample.cells(column.name)}), bytes_of(column)

    return sorted((each for each in columns if bytes_of(each) <= max_bytes(each)), key=cost)


def _exact(
    connection: Connection,
    table: Table,
    columns: Sequence[Column],
    values: bool,
    budget: TimeBudget,
    count_s: float,
    instructions: int,
) -> dict[str, list[Sequence[Any]]]:
    """The query results over all rows, for as many columns as there is time for."""
    results: dict[str, list[Sequence[Any]]] = {}
    for column in columns:
        if budget.left < SORT_COST_FACTOR * count_s:
            break
        sql = stats_sql(table_groups(table.name, column.name, column.untyped), values=values)
        try:
            with budget.until(STATS_SHARE, instructions=instructions):
                results[column.name] = connection.execute(sql).fetchall()
        except OutOfTimeError:
            break
    return results

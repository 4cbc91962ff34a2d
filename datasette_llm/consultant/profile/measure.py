"""The figures of a table's columns: of all rows as far as the time allows, else of a sample.

Column by column, the cheap ones first. A column that does not get its turn is told of from the
sample. All of it runs in one of Datasette's reading threads, and nearly all of that in SQLite, so
that the event loop is not held up. It makes no transaction: one as long as this may be would keep
whoever writes to the database waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ...errors import ProfileError, TableNotFoundError
from .column_stats import figures_sql, groups_of_table, read_figures
from .sampling import Sample, sample_answers, take_sample
from .table import Column, Table, left_out, read_table, source
from .time_budget import FEW_INSTRUCTIONS, INSTRUCTIONS, Budget, Clock, OutOfTimeError

if TYPE_CHECKING:
    from sqlite3 import Connection

    from ...config.settings import ConsultantSettings

# Of the time limit, when each part must have ended; what then is left is for all the rest.
COUNTED = 0.3
SAMPLED = 0.6
MEASURED = 0.95
# Sorting a column takes at least so many times as long as counting the rows.
DEARER_THAN_COUNTING = 2
# What a column may hold and still be sorted, which writes it to a temporary file.
MOST_SORTED_BYTES = 256 * 1024 * 1024
# Of such values fewer are sorted, since SQLite may compare each to its end, and merges them without
# a look at the clock.
LARGE_BYTES = 100_000
MOST_SORTED_LARGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What is to be said of a table.

    Attributes:
        table: the table or view.
        columns: those of its columns that were read.
        left_out: the names of the others.
        count: how many rows it has; None where counting them took too long.
        sample: some of its rows.
        figures: of the columns, by name.
        exact: the names of the columns whose figures are of all rows.
    """

    table: Table
    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    count: int | None
    sample: Sample
    figures: dict[str, dict[str, Any]]
    exact: frozenset[str]


def measure(
    connection: Connection,
    *,
    database: str,
    name: str,
    unwanted: Collection[str],
    settings: ConsultantSettings,
    clock: Clock,
) -> Measured:
    """Measure a table or view, within the time limit that begins now.

    Args:
        connection: to its database.
        database: the name of the database.
        name: the name of the table or view.
        unwanted: the columns to leave out, in the forms of the configuration.
        settings: which values may be asked for, and the time limit.
        clock: tells the time, in seconds.

    Raises:
        TableNotFoundError: there is no such table or view.
        ProfileError: SQLite cannot read it.
    """
    budget = Budget(connection, settings.time_limit_ms / 1_000, clock)
    try:
        table = read_table(connection, name)
        unread = left_out(database, name, [each.name for each in table.columns], unwanted)
        columns = tuple(each for each in table.columns if each.name not in unread)
        count, count_s = _count(connection, table, budget)
        names = [column.name for column in columns]
        sample = take_sample(connection, table, names, count, budget, (COUNTED, SAMPLED))
        values = settings.values != "none"
        answers = sample_answers(sample, values=values)
        exact = {}
        if count is not None:
            affordable = _affordable(columns, sample, count)
            step = INSTRUCTIONS if sample.row_size < LARGE_BYTES else FEW_INSTRUCTIONS
            exact = _exact(connection, table, affordable, values, budget, count_s, step)
    except sqlite3.Error as error:
        raise _refusal(connection, name, error) from error
    figures = {each: read_figures(answer) for each, answer in (answers | exact).items()}
    return Measured(table, columns, tuple(unread), count, sample, figures, frozenset(exact))


def _refusal(connection: Connection, name: str, error: sqlite3.Error) -> ProfileError:
    try:
        read_table(connection, name)
    except TableNotFoundError as gone:  # it was dropped between one query and the next
        return gone
    except sqlite3.Error:
        pass
    return ProfileError(f"{name!r} cannot be read: {error}")


def _count(connection: Connection, table: Table, budget: Budget) -> tuple[int | None, float]:
    """How many rows there are, and the seconds that it took to count them."""
    before = budget.spent
    try:
        with budget.until(COUNTED):
            sql = f"select count(1) from {source(table.name)}"
            return connection.execute(sql).fetchone()[0], budget.spent - before
    except OutOfTimeError:
        return None, budget.spent - before


def _affordable(columns: Sequence[Column], sample: Sample, count: int) -> list[Column]:
    """The columns that may be sorted, those first that seem to take the least time."""

    def bytes_of(column: Column) -> float:
        return sample.mean_size(column.name) * count

    def most(column: Column) -> int:
        large = sample.mean_size(column.name) >= LARGE_BYTES
        return MOST_SORTED_LARGE_BYTES if large else MOST_SORTED_BYTES

    def cost(column: Column) -> tuple[int, float]:
        return len({value for value, _ in sample.cells(column.name)}), bytes_of(column)

    return sorted((each for each in columns if bytes_of(each) <= most(each)), key=cost)


def _exact(
    connection: Connection,
    table: Table,
    columns: Sequence[Column],
    values: bool,
    budget: Budget,
    count_s: float,
    instructions: int,
) -> dict[str, list[Sequence[Any]]]:
    """The answers about all rows, for as many of the columns as there is time for."""
    answers: dict[str, list[Sequence[Any]]] = {}
    for column in columns:
        if budget.left < DEARER_THAN_COUNTING * count_s:
            break
        sql = figures_sql(groups_of_table(table.name, column.name, column.untyped), values=values)
        try:
            with budget.until(MEASURED, instructions=instructions):
                answers[column.name] = connection.execute(sql).fetchall()
        except OutOfTimeError:
            break
    return answers

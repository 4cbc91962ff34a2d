"""`datasette llm log`: the call log in a terminal, read from its file without Datasette.

A running site writes to the same file, so each read is short, one page of rows: SQLite blocks
writers meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database

from ..log.queries import (
    CLOSED,
    FAILURE_KINDS,
    FINISH_REASONS,
    RUNNING,
    BadFilterError,
    Filter,
    Values,
    all_calls,
    calls_since,
)
from ..log.queries import several as several_of
from ..log.schema import OUTCOMES, migrations
from ..sanitize import well_formed
from .log_table import Table
from .terminal import echo, echo_json

DEFAULT_ROWS = 50
POLL_S = 1.0
# A row is written when its request leaves, which may be long after it got its id: hooks run first.
# So the newest calls are read again, to find rows that were inserted between them.
OVERLAP_ROWS = 1_000
# The number of rows from which the widths of columns are computed.
SAMPLE_ROWS = 200

# SQLite's error for a file that needs recovery, which a read-only connection cannot do.
HALF_WRITTEN = "SQLITE_READONLY_ROLLBACK"
ADVICE = {
    HALF_WRITTEN: "its writer was killed during a write; start Datasette with it once",
    "SQLITE_CANTOPEN": (
        "SQLite may not read it, or needs a writable folder; copy it to another folder, together "
        "with the files whose names begin with its name"
    ),
}

Row = dict[str, Any]
Command = Callable[..., None]
BOUNDED = {
    "cost": "that cost at {} so many dollars",
    "tokens": "with at {} so many tokens, in and out",
    "duration": "that took at {} so many seconds",
    "first_chunk": "whose first chunk took at {} so many seconds",
}


def _bounds(command: Command) -> Command:
    """Add the options for the bounds of numbers."""
    for name, text in reversed(list(BOUNDED.items())):
        for bound, most in (("max", "most"), ("min", "least")):
            option = f"--{bound}-{name.replace('_', '-')}"
            about = f"Only calls {text.format(most)}"
            command = click.option(option, metavar="NUMBER", help=about)(command)
    return command


@click.command("log")
@click.option(
    "--internal",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Datasette's internal database, which has the call log",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help=f"How many calls to show, {DEFAULT_ROWS} without this; 0 for all",
)
@click.option("-m", "--model", multiple=True, help="Only calls of the model with this id")
@click.option("-p", "--purpose", multiple=True, help="Only calls for this purpose")
@click.option("--actor", multiple=True, help="Only calls for the actor with this id")
@click.option(
    "--outcome",
    multiple=True,
    help=f"Only calls with this outcome: {', '.join(OUTCOMES)} or {RUNNING}",
)
@click.option(
    "--finish-reason",
    multiple=True,
    help=f"Only calls whose answer ended so: {', '.join(FINISH_REASONS)}",
)
@click.option(
    "--failure-kind",
    multiple=True,
    help=f"Only calls with a failure of this kind: {', '.join(FAILURE_KINDS)}",
)
@click.option("--group", multiple=True, help="Only calls of the group with this id")
@click.option("--chain", multiple=True, help="Only calls of the chain with this id")
@click.option("--conversation", multiple=True, help="Only calls of the conversation with this id")
@click.option("--prompt", multiple=True, help="Only the attempts at the response with this id")
@click.option(
    "--tag",
    multiple=True,
    metavar="KEY:VALUE",
    help="Only calls with this tag, such as job:12; several times for several tags",
)
@click.option("--since", metavar="TIME", help="Only calls from this date or time on, in UTC")
@click.option("--until", metavar="TIME", help="Only calls before this date or time")
@_bounds
@click.option("--json", "as_json", is_flag=True, help="All columns, as a JSON array")
@click.option(
    "--follow",
    is_flag=True,
    help="Show calls as they begin or end, until interrupted; with --json one object a line",
)
def log_command(
    internal: Path,
    count: int | None,
    as_json: bool,
    follow: bool,
    **filters: Values,
) -> None:
    """Show the call log, the newest first

    The site may be running. An empty filter, such as --actor '', selects calls without one. Of a
    filter that is given several times, calls have one value; of --tag, all. Times are written like
    2026-01-31 or 2026-01-31T12:00.

    With --follow the oldest come first, and -n is the number of earlier calls to show. A call
    that is written after a thousand later ones is not shown.

    \b
    Example:
        datasette llm log --internal internal.db --outcome error --since 2026-01-31
    """
    # An argument that is not UTF-8, as the call log would have it.
    given: dict[str, Any] = {name: _well_formed(value) for name, value in filters.items()}
    log_filter = Filter(**given)
    try:
        log_filter.where()  # an invalid filter is reported first
        with contextlib.closing(_opened(internal)) as connection:
            if follow:
                _follow(internal, connection, log_filter, count, as_json)
            else:
                rows = _first(DEFAULT_ROWS if count is None else count, connection, log_filter)
                _show(rows, as_json)
    except BadFilterError as error:
        raise click.ClickException(f"{error}") from None
    except sqlite3.Error as error:
        advice = ADVICE.get(error.sqlite_errorname)
        message = f"{error} ({advice})" if advice else f"{error}"
        raise click.ClickException(f"{internal} cannot be read: {message}") from None


def _well_formed(value: Values) -> Values:
    if value is None or isinstance(value, str):
        return value and well_formed(value)
    return tuple(map(well_formed, value))


# Reading


def _opened(file: Path) -> sqlite3.Connection:
    """A read-only connection to a file with a call log of this version.

    Raises:
        click.ClickException: it is no such file.
        sqlite3.Error: it cannot be read.
    """
    if not os.path.exists(file):  # pathlib's raises for a name that is too long
        raise click.ClickException(f"There is no file {file}")
    if os.path.isdir(file):
        raise click.ClickException(f"{file} is a folder; give the file that has the call log")
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        _check_version(file, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(file: Path, connection: sqlite3.Connection) -> None:
    db: Any = Database(connection)
    applied = {migration.name for migration in migrations.applied(db)}
    if not applied:
        raise click.ClickException(
            f"{file} has no LLM call log; give the file that Datasette has as --internal"
        )
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if applied - known:
        raise click.ClickException(
            f"{file} was written by a newer datasette-llm; upgrade this one to read it"
        )
    if migrations.pending(db):
        raise click.ClickException(
            f"{file} was written by an older datasette-llm; start Datasette with it once"
        )


def _first(count: int, connection: sqlite3.Connection, log_filter: Filter) -> Iterator[Row]:
    """The newest calls, newest first; all if the count is 0."""
    return islice(all_calls(connection, log_filter), min(count, sys.maxsize) or None)


class _Watch:
    """Finds the calls that have begun or ended since the last look."""

    def __init__(self, connection: sqlite3.Connection, log_filter: Filter) -> None:
        self._connection = connection
        self._filter = log_filter
        # Without what is known at the end: a running call may still end as the filter says.
        any_end: dict[str, Any] = dict.fromkeys(CLOSED)
        self._any_end = replace(log_filter, **any_end)
        self._seen: dict[str, str] = {}
        self.note(all_calls(connection, replace(self._any_end, outcome=RUNNING)))
        self.note(islice(all_calls(connection, self._any_end), OVERLAP_ROWS))

    def note(self, rows: Iterable[Row]) -> list[Row]:
        """Mark rows as seen, and return those that are new or have changed."""
        fresh = [row for row in rows if self._seen.get(row["id"]) != row["outcome"]]
        self._seen |= {row["id"]: row["outcome"] for row in fresh}
        return fresh

    def look(self) -> list[Row]:
        """The calls that have begun or ended, oldest first."""
        ids = sorted(self._seen)
        overlap_from = ids[-OVERLAP_ROWS] if len(ids) >= OVERLAP_ROWS else ""
        before = {key: value for key, value in self._seen.items() if key <= overlap_from}
        fresh = self.note(calls_since(self._connection, self._any_end, before))
        self._seen = {
            key: value
            for key, value in self._seen.items()
            if key >= overlap_from or value == RUNNING
        }
        return [row for row in fresh if self._ended_as_wanted(row)]

    def _ended_as_wanted(self, row: Row) -> bool:
        return all(
            row[name] in values
            for name in CLOSED
            if (values := several_of(getattr(self._filter, name)))
        )


# Showing


def _show(rows: Iterator[Row], as_json: bool) -> None:
    if as_json:
        opening = "["
        for row in rows:
            echo(f"{opening}\n{json.dumps(row)}", nl=False)
            opening = ","
        echo("[]" if opening == "[" else "\n]")
        return
    sample = list(islice(rows, SAMPLE_ROWS))
    table = Table(sample)
    echo(table.head)
    for row in chain(sample, rows):
        echo(table.line(row))


def _follow(
    file: Path, connection: sqlite3.Connection, log_filter: Filter, count: int | None, as_json: bool
) -> None:
    followed = _identity(file)
    watch = _Watch(connection, log_filter)
    past = [] if count is None else list(_first(count, connection, log_filter))
    watch.note(past)
    table = Table(past, at_least={"model": 20, "purpose": 10, "actor": 10})
    if not as_json:
        echo(table.head)
    rows = past[::-1]
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        while True:
            for row in rows:
                echo_json(row) if as_json else echo(table.line(row))
            time.sleep(POLL_S)
            rows = _look(watch)
            if _identity(file) != followed:
                raise click.ClickException(f"{file} was removed or replaced; begin again")


def _identity(file: Path) -> tuple[int, int] | None:
    """The identity of a file, to notice its replacement; None if there is no file."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _look(watch: _Watch) -> list[Row]:
    try:
        return watch.look()
    except sqlite3.OperationalError as error:
        locked = str(error).startswith("database is locked")
        if not locked and error.sqlite_errorname != HALF_WRITTEN:
            raise
        # A long write, or a site that crashed during a write and has to start again: retry at the
        # next look.
        return []

"""`datasette llm log`: the record in a terminal, read from its file without a Datasette.

A running site writes to the same file. So nothing is read for longer than it takes to fetch a
page of rows: SQLite would let nobody write meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database

from ..log.queries import RUNNING, BadFilterError, Filter, all_calls, calls_since
from ..log.schema import OUTCOMES, migrations
from .log_table import Table

DEFAULT_ROWS = 50
POLL_S = 1.0
# A call is written when it leaves, which may be long after it got its id: hooks come first. So
# the newest calls are looked at again, for those that have come between them.
OVERLAP_ROWS = 1_000
# How many rows tell how wide the columns have to be.
SAMPLE_ROWS = 200

# What SQLite says of a file that it may not mend, because we only read.
HALF_WRITTEN = "SQLITE_READONLY_ROLLBACK"
ADVICE = {
    HALF_WRITTEN: "its writer was ended in the middle of a write; start Datasette with it once",
    "SQLITE_CANTOPEN": (
        "SQLite may not read it, or needs a folder that it can write to; copy it to another "
        "folder, with the files beside it whose names begin with its own"
    ),
}

Row = dict[str, Any]


@click.command("log")
@click.option(
    "--internal",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Datasette's internal database, which has the record",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help=f"How many calls to show, {DEFAULT_ROWS} without this; 0 for all",
)
@click.option("-m", "--model", help="Only calls of this model, by its id")
@click.option("-p", "--purpose", help="Only calls for this purpose")
@click.option("--actor", help="Only calls for the actor with this id")
@click.option("--outcome", help=f"Only calls that ended so: {', '.join(OUTCOMES)}; or {RUNNING}")
@click.option("--group", help="Only calls of the group with this id")
@click.option("--since", metavar="TIME", help="Only calls from this date or time on, in UTC")
@click.option("--until", metavar="TIME", help="Only calls before this date or time")
@click.option("--json", "as_json", is_flag=True, help="All that is recorded, as a JSON array")
@click.option(
    "--follow",
    is_flag=True,
    help="Show what begins or ends from now on, until interrupted; with --json an object a line",
)
def log_command(
    internal: Path, count: int | None, as_json: bool, follow: bool, **filters: str | None
) -> None:
    """Show the calls on record, the newest first

    The site may be running. An empty text as a filter, such as --actor '', stands for calls
    that have none. Times are written like 2026-01-31 or 2026-01-31T12:00.

    With --follow the oldest come first, and -n says how many to show that are there already. A
    call that is written later than a thousand others which began after it is not shown.

    \b
    Example:
        datasette llm log --internal internal.db --outcome error --since 2026-01-31
    """
    wanted = Filter(**filters)
    try:
        wanted.where()  # a bad filter is told before anything else
        with contextlib.closing(_opened(internal)) as connection:
            if follow:
                _follow(internal, connection, wanted, count, as_json)
            else:
                _show(_first(DEFAULT_ROWS if count is None else count, connection, wanted), as_json)
    except BadFilterError as error:
        raise click.ClickException(f"{error}") from None
    except sqlite3.Error as error:
        advice = ADVICE.get(error.sqlite_errorname)
        told = f"{error} ({advice})" if advice else f"{error}"
        raise click.ClickException(f"{internal} cannot be read: {told}") from None


# Reading


def _opened(file: Path) -> sqlite3.Connection:
    """A connection that can only read, to a file with a record that we understand.

    Raises:
        click.ClickException: it is none.
        sqlite3.Error: it cannot be read.
    """
    if not os.path.exists(file):  # pathlib's raises for a name that is too long
        raise click.ClickException(f"There is no file {file}")
    if os.path.isdir(file):
        raise click.ClickException(f"{file} is a folder; give the file that has the record")
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
            f"{file} has no record of LLM calls; give the file that Datasette has as --internal"
        )
    if applied - {migration.name for migration in migrations._migrations}:
        raise click.ClickException(
            f"{file} was written by a newer datasette-llm; upgrade this one to read it"
        )
    if migrations.pending(db):
        raise click.ClickException(
            f"{file} was written by an older datasette-llm; start Datasette with it once"
        )


def _first(count: int, connection: sqlite3.Connection, wanted: Filter) -> Iterator[Row]:
    """The newest calls, newest first; all of them where the count is 0."""
    return islice(all_calls(connection, wanted), min(count, sys.maxsize) or None)


class _Watch:
    """Tells what has begun or ended since the last look."""

    def __init__(self, connection: sqlite3.Connection, wanted: Filter) -> None:
        self._connection = connection
        self._wanted = wanted
        # Whatever its outcome: a call that has begun may yet come to the one that is wanted.
        self._anyhow = replace(wanted, outcome=None)
        self._seen: dict[str, str] = {}
        self.note(all_calls(connection, replace(wanted, outcome=RUNNING)))
        self.note(islice(all_calls(connection, self._anyhow), OVERLAP_ROWS))

    def note(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows for seen, and give back those that were not seen like this before."""
        fresh = [row for row in rows if self._seen.get(row["id"]) != row["outcome"]]
        self._seen |= {row["id"]: row["outcome"] for row in fresh}
        return fresh

    def look(self) -> list[Row]:
        """The calls that are new or have ended, oldest first."""
        ids = sorted(self._seen)
        looked_up_to = ids[-OVERLAP_ROWS] if len(ids) >= OVERLAP_ROWS else ""
        before = {key: value for key, value in self._seen.items() if key <= looked_up_to}
        fresh = self.note(calls_since(self._connection, self._anyhow, before))
        self._seen = {
            key: value
            for key, value in self._seen.items()
            if key >= looked_up_to or value == RUNNING
        }
        return [row for row in fresh if self._wanted.outcome in (None, row["outcome"])]


# Showing


def _show(rows: Iterator[Row], as_json: bool) -> None:
    if as_json:
        opening = "["
        for row in rows:
            click.echo(f"{opening}\n{json.dumps(row)}", nl=False)
            opening = ","
        click.echo("[]" if opening == "[" else "\n]")
        return
    sample = list(islice(rows, SAMPLE_ROWS))
    table = Table(sample)
    click.echo(table.head)
    for row in chain(sample, rows):
        click.echo(table.line(row))


def _follow(
    file: Path, connection: sqlite3.Connection, wanted: Filter, count: int | None, as_json: bool
) -> None:
    followed = _identity(file)
    watch = _Watch(connection, wanted)
    past = [] if count is None else list(_first(count, connection, wanted))
    watch.note(past)
    table = Table(past, at_least={"model": 20, "purpose": 10, "actor": 10})
    if not as_json:
        click.echo(table.head)
    rows = past[::-1]
    with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
        while True:
            for row in rows:
                click.echo(json.dumps(row) if as_json else table.line(row))
            time.sleep(POLL_S)
            rows = _looked(watch)
            if _identity(file) != followed:
                raise click.ClickException(f"{file} was removed or replaced; begin again")


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has taken its name; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _looked(watch: _Watch) -> list[Row]:
    try:
        return watch.look()
    except sqlite3.OperationalError as error:
        locked = str(error).startswith("database is locked")
        if not locked and error.sqlite_errorname != HALF_WRITTEN:
            raise
        # Somebody writes for longer than SQLite waits, or a site that crashed while it wrote has
        # to start again: see the next time.
        return []

"""The sums of past hours, days and months of the call log, in Datasette's internal database.

They are a cache that SQLite itself keeps true. A row of `llm_log_periods` says that the rows of
`llm_log_sums` with its id are the sums of all calls of a period. Any change of a call, by which
process and in which order ever, deletes the rows of the periods that the call is in, by a trigger
in the same transaction. A period without a row is added up from shorter ones, or from its calls.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Literal

from sqlite_utils import Database, Migrations

from .. import migrations as database

if TYPE_CHECKING:
    import sqlite3

TABLES = ("llm_log_periods", "llm_log_sums")
# What calls are grouped by: name and column.
DIMENSIONS = {
    "model": "model_id",
    "purpose": "purpose",
    "actor": "actor_id",
    "outcome": "outcome",
    "failure_kind": "failure_kind",
}
# Besides, groups have one price tier each, see `priced_tokens`.
COLUMNS = {**DIMENSIONS, "tier": "price_tier"}
# The tokens as prices need them, from the calls that have any.
PRICED = ("counted", "prompt_tokens", "cache_read_tokens", "cache_write_tokens")
# What is known of each group.
SUMS = (
    "calls",
    "priced",
    "input_tokens",
    "output_tokens",
    "cost_nanodollars",
    *PRICED,
    "durations",
    "first_chunks",
)
Unit = Literal["month", "day", "hour"]
UNITS: tuple[Unit, ...] = ("month", "day", "hour")

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
_TRIGGERS = {
    f"llm_log_sums_{event}": f"""
        create trigger llm_log_sums_{event} after {event} on llm_calls
        begin delete from llm_log_periods where end_id > {row}.id and start_id <= {row}.id; end
        """
    for event, row in (("insert", "new"), ("update", "new"), ("delete", "old"))
}

migrations = Migrations("datasette_llm_sums")


@migrations()
def m001_sums(db: Database) -> None:
    """Without the triggers, which `migrate` makes, also again where the table of calls was."""
    _drop_former(db)
    for statement in (
        """
        create table llm_log_periods (
            id integer primary key autoincrement,
            unit text not null,
            start_id text not null,
            end_id text not null,
            complete integer not null default 0
        )
        """,
        "create unique index llm_log_periods_end on llm_log_periods (end_id, start_id)",
        # Two groupings: with and without the actors, of which there may be thousands. The long
        # texts stand last, where SQLite need not read them.
        """
        create table llm_log_sums (
            period_id integer not null,
            with_actor integer not null,
            number integer not null,
            model_id text,
            purpose text,
            actor_id text,
            outcome text,
            failure_kind text,
            price_tier integer,
            calls integer not null,
            priced integer not null,
            input_tokens integer,
            output_tokens integer,
            cost_nanodollars integer,
            counted integer,
            prompt_tokens integer,
            cache_read_tokens integer,
            cache_write_tokens integer,
            durations text,
            first_chunks text,
            primary key (period_id, with_actor, number)
        ) without rowid
        """,
    ):
        db.execute(statement)


@migrations()
def m002_durations_of_requests(db: Database) -> None:
    """Sums of before had those of the response cache's answers among the durations."""
    for table in TABLES:
        db.execute(f"delete from {table}")


def _drop_former(db: Database) -> None:
    """Tables and triggers of before had names that are those of the plugin datasette-llm-usage."""
    former = (
        "select name from sqlite_master where type = 'trigger' and tbl_name = 'llm_calls' "
        "and sql like '%delete from llm_usage_periods%'"
    )
    for (name,) in db.execute(former).fetchall():
        db.execute(f"drop trigger {name}")
    if db["llm_usage_periods"].exists():
        db.execute("drop table llm_usage_periods")
        if "period_id" in db["llm_usage"].columns_dict:
            db.execute("drop table llm_usage")
        db.execute(
            "delete from _sqlite_migrations where migration_set = 'datasette_llm_usage' "
            "and name in ('m001_usage', 'm002_priced_tokens')"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables and the triggers up to date, in a write transaction.

    Raises:
        NewerDatabaseError: a newer version of datasette-llm has changed the tables.
    """
    kept = is_kept(connection)
    database.migrate(connection, migrations, *TABLES)
    if kept:
        return
    for table in TABLES:  # changes may have been missed, and a new table numbers periods again
        connection.execute(f"delete from {table}")
    known = _triggers(connection)
    for name, trigger in _TRIGGERS.items():
        if name not in known:
            connection.execute(trigger)


def is_kept(connection: sqlite3.Connection) -> bool:
    """Whether the tables and the triggers exist; without the tables, triggers let no call in."""
    return has_tables(connection) and _triggers(connection) >= _TRIGGERS.keys()


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the tables exist."""
    sql = "select count(*) from sqlite_master where name in (?, ?)"
    return bool(connection.execute(sql, TABLES).fetchone()[0] == len(TABLES))


def _triggers(connection: sqlite3.Connection) -> set[str]:
    sql = "select name from sqlite_master where type = 'trigger' and tbl_name = 'llm_calls'"
    return {name for (name,) in connection.execute(sql)}


def floor(unit: Unit, time: datetime.datetime) -> datetime.datetime:
    """The begin of the month, day or hour of a time."""
    hour = time.replace(minute=0, second=0, microsecond=0)
    if unit == "hour":
        return hour
    return hour.replace(hour=0) if unit == "day" else hour.replace(day=1, hour=0)


def following(unit: Unit, begin: datetime.datetime) -> datetime.datetime:
    """The end of the month, day or hour that begins at a time."""
    if unit == "month":
        return floor("month", begin + 32 * DAY)
    return begin + (DAY if unit == "day" else HOUR)


def ceiling(unit: Unit, time: datetime.datetime) -> datetime.datetime:
    """The end of the month, day or hour that a time is in."""
    return following(unit, floor(unit, time))

"""The tables of the evaluations in Datasette's internal database, by migrations.

They are append-only, but for the removal of a whole evaluation, which is on record.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3
from sqlite_utils import Database, Migrations

from ..errors import NewerDatabaseError
from ..log.schema import OUTCOMES
from ..migrations import append_only
from ..migrations import migrate as run_migrations

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

TABLES = (
    "llm_evaluations",
    "llm_evaluation_cases",
    "llm_evaluation_answers",
    "llm_evaluation_verdicts",
    "llm_evaluation_judgings",
    "llm_evaluation_removals",
)
VERDICTS = ("better", "same", "worse")

migrations = Migrations("datasette_llm_evaluation")


@migrations()
def m001_evaluations(db: Database) -> None:
    outcomes, verdicts = (
        ", ".join(f"'{each}'" for each in names) for names in (OUTCOMES, VERDICTS)
    )
    for statement in (
        """
        create table llm_evaluations (
            id text primary key,
            created_at text not null,
            name text not null,
            purpose text,
            actor_id text,
            definition text not null,
            left_out text not null,
            case_count integer not null,
            candidate_count integer not null
        ) without rowid
        """,
        """
        create table llm_evaluation_cases (
            evaluation_id text not null,
            number integer not null,
            name text not null,
            content text not null,
            primary key (evaluation_id, number)
        ) without rowid
        """,
        f"""
        create table llm_evaluation_answers (
            evaluation_id text not null,
            case_number integer not null,
            candidate integer not null,
            answered_at text not null,
            outcome text not null check (outcome in ({outcomes})),
            text text not null,
            digest integer not null,
            chars integer not null,
            finish_reason text,
            error_type text,
            error_message text,
            latency_ms real,
            input_tokens integer,
            output_tokens integer,
            cost_nanodollars integer,
            price_source text,
            call_id text,
            failed_checks text not null
        )
        """,
        # Covers the figures, so that no text is read for them.
        """
        create unique index llm_evaluation_answers_figures on llm_evaluation_answers (
            evaluation_id, candidate, case_number, outcome, failed_checks, latency_ms,
            cost_nanodollars, input_tokens, output_tokens, digest, chars
        )
        """,
        f"""
        create table llm_evaluation_verdicts (
            id integer primary key,
            evaluation_id text not null,
            case_number integer not null,
            candidate integer not null,
            judged_at text not null,
            judge text,
            actor_id text,
            verdict text not null check (verdict in ({verdicts})),
            note text
        )
        """,
        """
        create index llm_evaluation_verdicts_case
        on llm_evaluation_verdicts (evaluation_id, case_number, candidate)
        """,
        """
        create table llm_evaluation_removals (
            id integer primary key,
            removed_at text not null,
            evaluation_id text not null,
            actor_id text,
            keep_days integer
        )
        """,
    ):
        db.execute(statement)
    _protect(db)


def _protect(db: Database) -> None:
    """Have SQLite refuse every change but an insertion, and a removal that is on record."""
    append_only(db, "llm_evaluations")
    append_only(db, "llm_evaluation_removals")
    db.execute("drop trigger llm_evaluations_delete")
    own_key = {
        "llm_evaluation_cases": "number = new.number",
        "llm_evaluation_answers": "case_number = new.case_number and candidate = new.candidate",
        "llm_evaluation_verdicts": "id = new.id",
    }
    for table, key in own_key.items():
        _protect_part(db, table, key)
    for statement in (
        """
        create trigger llm_evaluations_delete before delete on llm_evaluations
        when not exists (select 1 from llm_evaluation_removals where evaluation_id = old.id)
        begin select raise(abort, 'llm_evaluations is append-only: removals are on record'); end
        """,
        """
        create trigger llm_evaluation_removals_remove after insert on llm_evaluation_removals
        begin
            delete from llm_evaluations where id = new.evaluation_id;
            delete from llm_evaluation_cases where evaluation_id = new.evaluation_id;
            delete from llm_evaluation_answers where evaluation_id = new.evaluation_id;
            delete from llm_evaluation_verdicts where evaluation_id = new.evaluation_id;
        end
        """,
        """
        create trigger llm_evaluation_answers_gone before insert on llm_evaluation_answers
        when new.candidate > 0
            and not exists (select 1 from llm_evaluations where id = new.evaluation_id)
        begin select raise(abort, 'the evaluation was removed'); end
        """,
    ):
        db.execute(statement)


def _protect_part(db: Database, table: str, key: str) -> None:
    """The same for a table whose rows go with their evaluation.

    Args:
        db: a database, in a migration.
        table: its name.
        key: SQL that is true of the row with the key of `new`.
    """
    refuse = f"begin select raise(abort, '{table} is append-only'); end"
    parent = "exists (select 1 from llm_evaluations where id = old.evaluation_id)"
    known = f"exists (select 1 from {table} where evaluation_id = new.evaluation_id and {key})"
    db.execute(f"create trigger {table}_insert before insert on {table} when {known} {refuse}")
    db.execute(f"create trigger {table}_update before update on {table} {refuse}")
    db.execute(f"create trigger {table}_delete before delete on {table} when {parent} {refuse}")


@migrations()
def m002_judgings(db: Database) -> None:
    """By which rubric the judge compared."""
    for statement in (
        """
        create table llm_evaluation_judgings (
            id integer primary key,
            evaluation_id text not null,
            started_at text not null,
            judge text not null,
            actor_id text,
            rubric text not null
        )
        """,
        """
        create index llm_evaluation_judgings_evaluation
        on llm_evaluation_judgings (evaluation_id)
        """,
        "alter table llm_evaluation_verdicts add column judging_id integer",
    ):
        db.execute(statement)
    _protect_part(db, "llm_evaluation_judgings", "id = new.id")


@migrations()
def m003_removal_hides(db: Database) -> None:
    """A removal removes the evaluation's own row; the rest goes in bounded transactions."""
    for statement in (
        "drop trigger llm_evaluation_removals_remove",
        """
        create trigger llm_evaluation_removals_remove after insert on llm_evaluation_removals
        begin delete from llm_evaluations where id = new.evaluation_id; end
        """,
        """
        create index llm_evaluation_removals_evaluation
        on llm_evaluation_removals (evaluation_id)
        """,
    ):
        db.execute(statement)


@migrations()
def m004_kept_answers(db: Database) -> None:
    """Which answers another call has paid for; they are counted by the index."""
    db.execute("alter table llm_evaluation_answers add column cached_from text")
    db.execute("""
        create index llm_evaluation_answers_kept on llm_evaluation_answers
        (evaluation_id, candidate) where cached_from is not null
    """)


def migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations of the tables, as `migrations.migrate`."""
    run_migrations(connection, migrations, *TABLES)


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the tables exist; they are created with the first evaluation."""
    sql = "select 1 from sqlite_master where type = 'table' and name = 'llm_evaluations'"
    return connection.execute(sql).fetchone() is not None


async def update(datasette: Datasette) -> None:
    """Bring the tables up to date, if there are any, for retention and the pages."""
    database = datasette.get_internal_database()
    try:
        if await database.execute_fn(has_tables):
            await database.execute_write_fn(migrate)
    except (sqlite3.Error, NewerDatabaseError) as error:
        logger.error("The evaluations cannot be brought up to date: %s", error)

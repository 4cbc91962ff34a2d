"""The consultant's table: every consultation, written once when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Database, Migrations

from .. import database
from ..log.schema import OUTCOMES

if TYPE_CHECKING:
    import sqlite3

migrations = Migrations("datasette_llm_consultant")

COLUMNS = (
    "id",
    "created_at",
    "type",
    "database_name",
    "table_name",
    "actor_id",
    "question",
    "exclude",
    "profile",
    "system_prompt",
    "user_prompt",
    "model_id",
    "raw_answer",
    "advice",
    "rejected",
    "checks",
    "outcome",
    "error_type",
    "error_message",
    "latency_ms",
    "call_id",
)


@migrations()
def m001_consultations(db: Database) -> None:
    outcomes = ", ".join(f"'{outcome}'" for outcome in OUTCOMES)
    for statement in (
        f"""
        create table llm_consultations (
            id text primary key,
            created_at text not null,
            type text not null,
            database_name text not null,
            table_name text not null,
            actor_id text,
            question text,
            exclude text not null,
            profile text,
            system_prompt text,
            user_prompt text,
            model_id text,
            raw_answer text,
            advice text,
            rejected text not null,
            checks text not null,
            outcome text not null check (outcome in ({outcomes})),
            error_type text,
            error_message text,
            latency_ms real,
            call_id text
        ) without rowid
        """,
        """
        create index llm_consultations_table
        on llm_consultations (database_name, table_name, id)
        """,
    ):
        db.execute(statement)
    database.append_only(db, "llm_consultations")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the table up to date, as `database.migrate`."""
    database.migrate(connection, migrations)

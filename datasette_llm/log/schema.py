"""The tables of the call log, in Datasette's internal database.

`llm_calls` has one row for each request to a provider. Its first part is written when the
request starts and its second when it ends; a hook that fails after that is named in `hook_error`,
once. Triggers refuse every other change. Only retention deletes rows. It first writes into
`llm_log_removals` below which id it deletes; the triggers refuse deletions from the last of those
ids on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Database, Migrations

from .. import migrations as database

if TYPE_CHECKING:
    import sqlite3

# Also in migrations, which must not change: a new outcome needs a new migration.
OUTCOMES = ("ok", "error", "cancelled", "blocked", "lost")

STARTED_COLUMNS = (
    "id",
    "session_id",
    "started_at",
    "model_id",
    "purpose",
    "actor_id",
    "group_id",
    "chain_id",
    "chain_step",
    "conversation_id",
    "streaming",
    "prompt_chars",
    "system_chars",
    "message_count",
    "attachment_count",
    "attempt",
    "prompt_id",
    "waited_ms",
)
FINISHED_COLUMNS = (
    "finished_at",
    "outcome",
    "blocked_by",
    "error_type",
    "error_message",
    "input_tokens",
    "output_tokens",
    "token_details",
    "resolved_model",
    "first_chunk_ms",
    "duration_ms",
    "cost_nanodollars",
    "price_source",
    "finish_reason",
    "failure_kind",
    "hook_error",
)

migrations = Migrations("datasette_llm")


@migrations()
def m001_record(db: Database) -> None:
    started = " or ".join(f"new.{name} is not old.{name}" for name in STARTED_COLUMNS[:-3])
    outcomes = ", ".join(f"'{outcome}'" for outcome in OUTCOMES)
    # The last removal, not the greatest id: after a clock was once years ahead, that would allow
    # everything to be deleted.
    below = "coalesce((select below_id from llm_log_removals order by id desc limit 1), '')"
    for statement in (
        f"""
        create table llm_calls (
            id text primary key,
            session_id text not null,
            started_at text not null,
            model_id text not null,
            purpose text,
            actor_id text,
            group_id text,
            chain_id text,
            chain_step integer,
            conversation_id text,
            streaming integer not null,
            prompt_chars integer not null,
            system_chars integer not null,
            message_count integer not null,
            attachment_count integer not null,
            finished_at text,
            outcome text check (outcome in ({outcomes})),
            blocked_by text,
            error_type text,
            error_message text,
            input_tokens integer,
            output_tokens integer,
            token_details text,
            resolved_model text,
            first_chunk_ms real,
            duration_ms real,
            cost_nanodollars integer,
            price_source text
        ) without rowid
        """,
        """
        create table llm_call_content (
            call_id text not null,
            part text not null check (part in ('request', 'response')),
            content text not null,
            primary key (call_id, part)
        ) without rowid
        """,
        """
        create table llm_log_sessions (
            id text primary key,
            opened_at text not null
        ) without rowid
        """,
        """
        create table llm_log_removals (
            id integer primary key check (id > 0),
            removed_at text not null,
            below_id text not null,
            call_count integer not null,
            keep_days integer not null
        )
        """,
        "create index llm_calls_model on llm_calls (model_id, id)",
        "create index llm_calls_purpose on llm_calls (purpose, id)",
        "create index llm_calls_actor on llm_calls (actor_id, id)",
        "create index llm_calls_outcome on llm_calls (outcome, id)",
        "create index llm_calls_group on llm_calls (group_id, id) where group_id is not null",
        "create index llm_calls_chain on llm_calls (chain_id, id) where chain_id is not null",
        # REPLACE deletes the old row without firing DELETE triggers (SQLite's recursive_triggers
        # is off), so the INSERT is refused.
        """
        create trigger llm_calls_insert before insert on llm_calls
        when exists (select 1 from llm_calls where id = new.id)
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
        """
        create trigger llm_call_content_insert before insert on llm_call_content
        when exists (
            select 1 from llm_call_content where call_id = new.call_id and part = new.part
        )
        begin select raise(abort, 'llm_call_content is append-only'); end
        """,
        f"""
        create trigger llm_calls_update before update on llm_calls
        when old.outcome is not null or new.outcome is null or {started}
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
        f"""
        create trigger llm_calls_delete before delete on llm_calls
        when old.id >= {below}
        begin select raise(abort, 'llm_calls is append-only: only retention removes'); end
        """,
        """
        create trigger llm_call_content_update before update on llm_call_content
        begin select raise(abort, 'llm_call_content is append-only'); end
        """,
        f"""
        create trigger llm_call_content_delete before delete on llm_call_content
        when old.call_id >= {below}
        begin select raise(abort, 'llm_call_content is append-only: only retention removes'); end
        """,
    ):
        db.execute(statement)
    database.append_only(db, "llm_log_removals")


@migrations()
def m002_attempts(db: Database) -> None:
    """A response may take several attempts: number, response and time in the queue of each."""
    changed = " or ".join(f"new.{name} is not old.{name}" for name in STARTED_COLUMNS)
    for statement in (
        "alter table llm_calls add column attempt integer not null default 1",
        "alter table llm_calls add column prompt_id text",
        "alter table llm_calls add column waited_ms real",
        "create index llm_calls_prompt on llm_calls (prompt_id, id) where prompt_id is not null",
        "drop trigger llm_calls_update",
        f"""
        create trigger llm_calls_update before update on llm_calls
        when old.outcome is not null or new.outcome is null or {changed}
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
    ):
        db.execute(statement)


@migrations()
def m003_reasons(db: Database) -> None:
    """Why an answer ended, and what kind of failure it was; the triggers cover all columns."""
    for name in ("finish_reason", "failure_kind"):
        db.execute(f"alter table llm_calls add column {name} text")
        db.execute(f"create index llm_calls_{name} on llm_calls ({name}, id) where {name} not null")


@migrations()
def m004_hook_error(db: Database) -> None:
    """What a hook raised after the request had ended, which is added to a row that is finished."""
    begun = " or ".join(f"new.{name} is not old.{name}" for name in STARTED_COLUMNS)
    ended = " or ".join(f"new.{name} is not old.{name}" for name in FINISHED_COLUMNS[:-1])
    for statement in (
        "alter table llm_calls add column hook_error text",
        "drop trigger llm_calls_update",
        f"""
        create trigger llm_calls_update before update on llm_calls
        when new.outcome is null or {begun}
            or old.outcome is not null and (
                old.hook_error is not null or {ended}
                or coalesce(new.hook_error, '') not like 'llm_prompt_context of plugin %'
            )
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
    ):
        db.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, as `migrations.migrate`."""
    database.migrate(connection, migrations)

"""The tables of the call log, in Datasette's internal database.

`llm_calls` has one row for each request to a provider. Its first part is written when the
request starts and its second when it ends; a hook that fails after that is named in `hook_error`,
once. Its tags are a column, in JSON, and rows of `llm_call_tags`, an index of them that triggers
fill. Triggers refuse every other change. Only retention deletes rows: a row of `llm_log_removals`
says below which id, and the trigger that accepts it deletes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Database, Migrations

from .. import migrations as database

if TYPE_CHECKING:
    import sqlite3

TABLES = (
    "llm_calls",
    "llm_call_content",
    "llm_call_tags",
    "llm_log_sessions",
    "llm_log_removals",
)

# Also in migrations, which must not change: a new outcome needs a new migration.
OUTCOMES = ("ok", "error", "cancelled", "blocked", "lost")

# As the migrations know them; a new column needs a new migration, with a trigger that covers it.
_FIRST_STARTED_COLUMNS = (
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
)
_STARTED_COLUMNS_OF_M002 = (*_FIRST_STARTED_COLUMNS, "attempt", "prompt_id", "waited_ms")
STARTED_COLUMNS = (*_STARTED_COLUMNS_OF_M002, "tags")
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
    "response_id",
    "request_id",
    "gateway_call_id",
    "gateway_model_id",
    "gateway_cost_nanodollars",
)

_HOOK_ERROR = FINISHED_COLUMNS.index("hook_error")  # migrations know the columns before it

# The rows that retention may remove: a running call stays as long as its session.
REMOVABLE = "(outcome is not null or session_id not in (select id from llm_log_sessions))"

TIME_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # of a ULID, whose first ten are its time
_TIME_OF_ID = " + ".join(
    f"(max(instr('{TIME_DIGITS}', substr(id, {place}, 1)), 1) - 1) * {32 ** (10 - place)}"
    for place in range(1, 11)
)


def newest_ms(below: str = "'8'") -> str:
    """When the newest call began, as SQL; migrations, which must not change, have it too.

    Args:
        below: only calls with smaller ids, as SQL; by default all whose id is one of a time.

    Returns:
        An expression for milliseconds since 1970, which is null where there is no call.
    """
    return f"(select {_TIME_OF_ID} from (select max(id) as id from llm_calls where id < {below}))"


migrations = Migrations("datasette_llm")


@migrations()
def m001_record(db: Database) -> None:
    started = " or ".join(f"new.{name} is not old.{name}" for name in _FIRST_STARTED_COLUMNS)
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
    changed = " or ".join(f"new.{name} is not old.{name}" for name in _STARTED_COLUMNS_OF_M002)
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
    begun = " or ".join(f"new.{name} is not old.{name}" for name in _STARTED_COLUMNS_OF_M002)
    ended = " or ".join(f"new.{name} is not old.{name}" for name in FINISHED_COLUMNS[:_HOOK_ERROR])
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


@migrations()
def m005_strict(db: Database) -> None:
    """A removal is checked, and removes by itself; a call is lost only with its session."""
    changed = " or ".join(f"new.{name} is not old.{name}" for name in _STARTED_COLUMNS_OF_M002)
    finished = FINISHED_COLUMNS[:_HOOK_ERROR]
    ended = " or ".join(f"new.{name} is not old.{name}" for name in finished)
    below = "coalesce((select below_id from llm_log_removals order by id desc limit 1), '')"
    clock_ms = "cast(round((julianday('now') - 2440587.5) * 86400000) as integer)"
    digits = " || ".join(
        f"substr('{TIME_DIGITS}', ((ms >> {5 * place}) & 31) + 1, 1)" for place in range(9, -1, -1)
    )
    oldest_kept_ms = (
        f"max(0, min({clock_ms}, coalesce({newest_ms()}, {clock_ms})) - new.keep_days * 86400000)"
    )
    for statement in (
        "drop trigger llm_calls_update",
        f"""
        create trigger llm_calls_update before update on llm_calls
        when new.outcome is null or {changed}
            or old.outcome is null and new.outcome = 'lost'
                and old.session_id in (select id from llm_log_sessions)
            or old.outcome is not null and (
                old.hook_error is not null or {ended}
                or coalesce(new.hook_error, '') not like 'llm_prompt_context of plugin %'
            )
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
        "drop trigger llm_calls_delete",
        f"""
        create trigger llm_calls_delete before delete on llm_calls
        when old.id >= {below} or (
            old.outcome is null and old.session_id in (select id from llm_log_sessions)
        )
        begin select raise(abort, 'llm_calls is append-only: only retention removes'); end
        """,
        "drop trigger llm_call_content_delete",
        f"""
        create trigger llm_call_content_delete before delete on llm_call_content
        when old.call_id >= {below} or exists (select 1 from llm_calls where id = old.call_id)
        begin select raise(abort, 'llm_call_content is append-only: only retention removes'); end
        """,
        f"""
        create trigger llm_log_removals_remove after insert on llm_log_removals
        begin
            select raise(abort, 'llm_log_removals is append-only: no such removal can be made')
            where not coalesce(
                new.id = 1 + coalesce((select max(id) from llm_log_removals where id < new.id), 0)
                and new.removed_at = strftime('%Y-%m-%dT%H:%M:%fZ', new.removed_at)
                and abs(julianday(new.removed_at) - julianday('now')) < 1
                and typeof(new.keep_days) = 'integer' and new.keep_days >= 1
                and substr(new.below_id, 1, 10)
                    <= (select {digits} from (select {oldest_kept_ms} as ms))
                and new.call_count
                    is (select count(*) from llm_calls where id < new.below_id and {REMOVABLE}),
                0
            );
            delete from llm_calls where id < new.below_id and {REMOVABLE};
            delete from llm_call_content where call_id < new.below_id
            and call_id not in (select id from llm_calls where id < new.below_id);
        end
        """,
    ):
        db.execute(statement)


@migrations()
def m006_tags(db: Database) -> None:
    """Tags of a call, and an index of them: a value's text, so that 12 and '12' are the same."""
    tagged = "case when json_valid({0}.tags) then json_type({0}.tags) = 'object' end"
    rows = "select key, cast(value as text), {0}.id from json_each({0}.tags)"
    refuse = "begin select raise(abort, 'llm_call_tags is append-only: it follows llm_calls'); end"
    for statement in (
        "alter table llm_calls add column tags text",
        """
        create table llm_call_tags (
            key text not null,
            value text not null,
            call_id text not null,
            primary key (key, value, call_id)
        ) without rowid
        """,
        """
        create trigger llm_calls_update_tags before update of tags on llm_calls
        when new.tags is not old.tags
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """,
        f"""
        create trigger llm_calls_insert_tags after insert on llm_calls when {tagged.format("new")}
        begin insert into llm_call_tags (key, value, call_id) {rows.format("new")}; end
        """,
        f"""
        create trigger llm_calls_delete_tags after delete on llm_calls when {tagged.format("old")}
        begin delete from llm_call_tags where (key, value, call_id) in ({rows.format("old")}); end
        """,
        f"""
        create trigger llm_call_tags_insert before insert on llm_call_tags
        when (new.key, new.value, new.call_id) not in (
            select tag.key, cast(tag.value as text), call.id
            from llm_calls as call, json_each(call.tags) as tag where call.id = new.call_id
        )
        {refuse}
        """,
        f"create trigger llm_call_tags_update before update on llm_call_tags {refuse}",
        f"""
        create trigger llm_call_tags_delete before delete on llm_call_tags
        when exists (select 1 from llm_calls where id = old.call_id)
        {refuse}
        """,
    ):
        db.execute(statement)


@migrations()
def m007_gateway(db: Database) -> None:
    """What the provider and a gateway call a request; a trigger of its own keeps it."""
    texts = ("response_id", "request_id", "gateway_call_id", "gateway_model_id")
    for name in texts:
        db.execute(f"alter table llm_calls add column {name} text")
    db.execute("alter table llm_calls add column gateway_cost_nanodollars integer")
    columns = (*texts, "gateway_cost_nanodollars")
    changed = " or ".join(f"new.{name} is not old.{name}" for name in columns)
    db.execute(
        f"""
        create trigger llm_calls_update_gateway before update on llm_calls
        when old.outcome is not null and ({changed})
        begin select raise(abort, 'llm_calls is append-only: what is recorded stays'); end
        """
    )


@migrations()
def m008_ranges(db: Database) -> None:
    """Indexes for conversations, and for ranges and orders, which are known when a call ends."""
    for name, column in (
        ("conversation", "conversation_id"),
        ("cost", "cost_nanodollars"),
        ("duration", "duration_ms"),
        ("first_chunk", "first_chunk_ms"),
        ("tokens", "input_tokens + output_tokens"),
    ):
        db.execute(
            f"create index llm_calls_{name} on llm_calls ({column}, id) where {column} is not null"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables up to date, as `migrations.migrate`."""
    database.migrate(connection, migrations, *TABLES)

"""A log of many calls: a year of several models, purposes, actors, groups and chains.

The calls are spread evenly over the days of a year, so that a twelfth of a million of them is
in the last 30 days. Each kind of value has a few that are frequent and some that are rare.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ulid import ULID

from datasette_llm.log.queries import time_of
from datasette_llm.log.schema import migrate

DAYS = 365
YEAR_MS = DAYS * 24 * 60 * 60 * 1000
MODELS = {"model-0": 400, "model-1": 300, "model-2": 200, "model-3": 97, "model-rare": 3}
PURPOSES = {"chat": 30, "rows": 35, "agent": 15, "titles": 15, None: 5}
REASONS = {"stop": 90, "tool_calls": 7, "length": 2, "content_filter": 1}
KINDS = {"rate_limit": 60, "timeout": 25, "network": 14, "bad_answer": 1}
OUTCOMES = {"ok": 930, "error": 40, "cancelled": 16, "blocked": 10, "lost": 4}
ACTORS = 500
COLUMNS = (
    *("id", "session_id", "started_at", "model_id", "purpose", "actor_id", "group_id"),
    *("chain_id", "chain_step", "conversation_id", "streaming", "prompt_chars", "system_chars"),
    *("message_count", "attachment_count", "finished_at", "outcome", "blocked_by"),
    *("error_type", "error_message", "input_tokens", "output_tokens", "token_details"),
    *("resolved_model", "first_chunk_ms", "duration_ms", "cost_nanodollars", "price_source"),
    *("finish_reason", "failure_kind", "tags"),
)
JOB_CALLS = 5_000


def fill(path: Path, calls: int) -> None:
    """Make a log of this many calls."""
    places = ", ".join("?" * len(COLUMNS))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("begin")
        # It is several times faster to make an index, and to watch the table, at the end.
        later = connection.execute(
            "select type, name, sql from sqlite_master "
            "where tbl_name in ('llm_calls', 'llm_call_tags') and type in ('index', 'trigger') "
            "and sql is not null"
        ).fetchall()
        for kind, name, _ in later:
            connection.execute(f"drop {kind} {name}")
        sql = f"insert into llm_calls ({', '.join(COLUMNS)}) values ({places})"
        connection.executemany(sql, _rows(calls))
        connection.execute(
            "insert into llm_call_tags select tag.key, cast(tag.value as text), llm_calls.id "
            "from llm_calls, json_each(tags) as tag order by 1, 2, 3"
        )
        for _, _, create in later:
            connection.execute(create)
        connection.execute("commit")


def _rows(calls: int) -> Iterator[tuple[Any, ...]]:
    values = random.Random(calls)
    models = values.choices(list(MODELS), list(MODELS.values()), k=calls)
    purposes = values.choices(list(PURPOSES), list(PURPOSES.values()), k=calls)
    outcomes = values.choices(list(OUTCOMES), list(OUTCOMES.values()), k=calls)
    begun_ms = time.time_ns() // 1_000_000 - YEAR_MS
    kinds = zip(models, purposes, outcomes, strict=True)
    for number, (model, purpose, outcome) in enumerate(kinds):
        moment = begun_ms + YEAR_MS * (number + 1) // calls
        call_id = str(ULID(moment.to_bytes(6, "big") + values.randbytes(10))).lower()
        at = f"{time_of(call_id):%Y-%m-%dT%H:%M:%S}.{moment % 1000:03}Z"
        actor = f"actor-{int(values.paretovariate(1)) % ACTORS}" if number % 7 else None
        started = (call_id, "session", at, model, purpose, actor, *_ties(number, purpose))
        sizes = (1, 1_200, 300, 3, 0)
        end = _end(values, number, model, outcome)
        yield (*started, *sizes, at, outcome, *end, _tags(number, purpose))


def _ties(number: int, purpose: str | None) -> tuple[Any, ...]:
    """The group, the chain and its step, and the conversation."""
    group = f"{number // 36:026}" if purpose == "rows" else None
    is_chain = purpose == "agent"
    chain, step = (f"{number // 27:026}", number % 4 + 1) if is_chain else (None, None)
    return group, chain, step, f"{number // 30:026}" if purpose == "chat" else None


def _tags(number: int, purpose: str | None) -> str | None:
    """Those of a job and its row, and of the request that caused it."""
    if purpose != "rows":
        return None
    source = {"source.path": "/zoo/animals", "source.plugin": "datasette-enrichments-llm"}
    return json.dumps({**source, "job": number // JOB_CALLS, "row": number})


def _end(values: random.Random, number: int, model: str, outcome: str) -> tuple[Any, ...]:
    duration_ms = round(values.lognormvariate(7, 1), 3)
    if outcome != "ok":
        blocked_by = "configuration (models)" if outcome == "blocked" else None
        message = "The organisation has reached its limit; try again in 20 seconds"
        unknown = (None,) * 5
        kind = _one(values, KINDS) if outcome == "error" else None
        return (blocked_by, "APIError", message, *unknown, duration_ms, None, None, None, kind)
    tokens_in, tokens_out = values.randrange(50, 9_000), values.randrange(1, 1_500)
    details = '{"prompt_tokens_details": {"cached_tokens": 128}}' if number % 2 else None
    # A tenth has no known price.
    known = number % 10
    cost = tokens_in * 150 + tokens_out * 600 if known else None
    ended = (None, None, None, tokens_in, tokens_out, details, f"{model}-2026-01-01", 300.5)
    source = f"genai-prices openai/{model}" if known else None
    return (*ended, duration_ms, cost, source, _one(values, REASONS), None)


def _one(values: random.Random, weights: dict[str, int]) -> str:
    return values.choices(list(weights), list(weights.values()))[0]

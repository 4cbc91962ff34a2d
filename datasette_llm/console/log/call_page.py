"""The template context of the page of one call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...log.queries import tag_text
from ..cache import origin
from ..formatting import dollars, duration, failure, label_of, missing, number, time, waited
from ..navigation import LOG
from .list_page import Row, list_address, row_context, tiles
from .list_request import NULLABLE

if TYPE_CHECKING:
    from datasette.app import Datasette

# More makes a browser slow; the JSON has the whole text.
MAX_SHOWN_CHARS = 100_000


def call_context(datasette: Datasette, payload: Row) -> Row:
    """The context of the call's template."""
    call, group, content = payload["call"], payload["group"], payload["content"] or {}
    return {
        "payload": payload,
        "call": call,
        "list_address": list_address(datasette, {}),
        "json_address": datasette.urls.path(f"{LOG}/{call['id']}.json"),
        "started": time(call["started_at"]),
        "failure": failure(call),
        "facts": _facts(datasette, call, payload["attempts"]),
        "attempts": payload["attempts"] and _attempts_context(datasette, payload),
        "group": group and _group_context(datasette, group, call["id"]),
        "chain": [
            row_context(datasette, row) | {"current": row["id"] == call["id"]}
            for row in payload["chain"]
        ],
        "content": [
            _part(part, content[part]) for part in ("request", "response") if part in content
        ],
    }


def _group_context(datasette: Datasette, group: Row, call_id: str) -> Row:
    # With `since`, because the totals of a list without it cover the last days only.
    arguments = {"group": group["id"], "since": group["since"]}
    return {
        "id": group["id"],
        "address": list_address(datasette, arguments),
        "tiles": tiles(group["totals"]),
        "calls": group["totals"]["calls"],
        "shown": len(group["rows"]),
        "rows": [
            row_context(datasette, row) | {"current": row["id"] == call_id} for row in group["rows"]
        ],
    }


def _attempts_context(datasette: Datasette, payload: Row) -> Row:
    call, attempts = payload["call"], payload["attempts"]
    last = attempts[-1]
    return {
        "number": call["attempt"],
        "count": last["attempt"],
        # Only the last one can have an answer, as no attempt follows an answer.
        "answer": row_context(datasette, last) if last["outcome"] == "ok" else None,
        "rows": [
            row_context(datasette, row)
            | {"current": row["id"] == call["id"], "error": row["error_message"]}
            for row in attempts
        ],
    }


def _facts(datasette: Datasette, call: Row, attempts: Sequence[Row]) -> list[Row]:
    always = [
        ("Started", f"{time(call['started_at'])} UTC", None),
        ("Outcome", call["outcome"], "outcome"),
        ("Finish reason", call["finish_reason"] or "", "finish_reason"),
        ("Model", call["model_id"], "model"),
        ("Purpose", call["purpose"] or "", "purpose"),
        ("Actor", call["actor_id"] or "", "actor"),
        ("Tokens in", number(call["input_tokens"]), None),
        ("Tokens out", number(call["output_tokens"]), None),
        ("Cost", dollars(call["cost_dollars"]), None),
        ("First chunk after", duration(call["first_chunk_ms"]), None),
        ("Took", duration(call["duration_ms"]), None),
    ]
    if call["failure_kind"]:
        always.insert(1, ("Failure", call["failure_kind"], "failure_kind"))
    sometimes = [
        ("Finished", call["finished_at"] and f"{time(call['finished_at'])} UTC"),
        ("Error", call["error_type"]),
        ("Blocked by", call["blocked_by"]),
        ("Failed afterwards", call["hook_error"]),
        ("Answered by", call["resolved_model"]),
        ("Price from", call["price_source"]),
        ("From the response cache", origin(call)),
        ("Gateway's cost", dollars(call["gateway_cost_dollars"]) or None),
        ("Gateway's call", call["gateway_call_id"]),
        ("Gateway's model", call["gateway_model_id"]),
        ("Response id", call["response_id"]),
        ("Request id", call["request_id"]),
        ("Token details", call["token_details"]),
        ("Conversation", call["conversation_id"]),
        ("Step of its chain", call["chain_step"]),
        ("Attempt", f"{call['attempt']} of {attempts[-1]['attempt']}" if attempts else None),
        (
            "Waited for concurrency limit",
            None if call["waited_ms"] is None else waited(call["waited_ms"]) or "no",
        ),
    ]
    sizes = [
        ("Streaming", "yes" if call["streaming"] else "no"),
        ("Prompt", f"{number(call['prompt_chars'])} characters"),
        ("System prompt", f"{number(call['system_chars'])} characters"),
        ("Messages", number(call["message_count"])),
        ("Attachments", number(call["attachment_count"])),
    ]
    shown = [*always, *((k, v, None) for k, v in sometimes if v is not None)]
    shown += [(label, value, None) for label, value in sizes]
    return [
        {
            "label": label,
            "value": label_of(name, value),
            "missing": "none" if name in NULLABLE else missing(call["outcome"]),
            "address": list_address(datasette, {name: value}) if name and value else None,
        }
        for label, value, name in shown
    ] + [_tag(datasette, key, value) for key, value in call["tags"].items()]


def _tag(datasette: Datasette, key: str, value: object) -> Row:
    text = tag_text(key, value)
    return {
        "label": f"Tag {key}",
        "value": text.removeprefix(f"{key}:"),
        "missing": "empty",
        "address": list_address(datasette, {"tag": text}),
    }


def _part(part: str, content: Any) -> Row:
    text = (
        content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    )
    return {
        "title": part.capitalize(),
        "text": text[:MAX_SHOWN_CHARS],
        "left_out": number(max(0, len(text) - MAX_SHOWN_CHARS))
        if len(text) > MAX_SHOWN_CHARS
        else "",
    }

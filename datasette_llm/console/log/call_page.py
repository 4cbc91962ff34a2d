"""The template context of the page of one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...log.queries import RUNNING, tag_text
from ..cache import origin
from ..formatting import dollars, duration, failure, label_of, missing, number, time, waited
from ..navigation import ADVICE, LOG
from .conversation import MAX_TEXT_CHARS, Source, as_text, messages_of, shown
from .conversation_page import conversation_address
from .list_page import Row, list_address, row_context, tiles
from .list_request import NULLABLE

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..running import State
    from .timeline import Kind

# A label, a value, and the filter of the list that it is for.
Fact = tuple[str, str, str | None]

# More makes a browser slow; the JSON has the whole text.
MAX_SHOWN_CHARS = 100_000
MAX_SPANS = 100

SPANS: Mapping[Kind, str] = {
    "queue": "queue for the concurrency limit",
    "first_chunk": "until the first chunk",
    "answer": "answer, until its end",
    "failure": "until it ended, without an answer",
    "running": "running",
    "pause": "pause before the next attempt",
    "tools": "tools, before the next step",
}
_OF_REQUEST = ("queue", "first_chunk", "answer", "failure", "running")
STATES: Mapping[State, str] = {
    "plugins": "plugins have not let it go yet",
    "queued": "waits for a concurrency limit",
    "asked": "waits for the first chunk",
    "answering": "the answer arrives",
    "tools": "tools run",
    "ending": "the answer is there, plugins have not finished",
}


def call_context(datasette: Datasette, payload: Row, *, manages: bool) -> Row:
    """The context of the call's template; slow for much content: call it in a thread.

    Args:
        datasette: the Datasette instance.
        payload: of the call.
        manages: whether the actor may stop it while it runs, and open it in the playground.
    """
    call, group, content = payload["call"], payload["group"], payload["content"] or {}
    address = f"{LOG}/{call['id']}"
    messages = messages_of(content)
    said = shown([Source(call["id"], messages)])
    return {
        "payload": payload,
        "manages": manages,
        "call": call,
        "list_address": list_address(datasette, {}),
        "address": datasette.urls.path(address),
        "json_address": datasette.urls.path(f"{address}.json"),
        "started": time(call["started_at"]),
        "failure": failure(call),
        "running": _running_context(datasette, payload, may_stop=manages),
        "facts": [
            *_facts(datasette, call, _main_facts(call)),
            *_links(datasette, payload),
            *(_tag(datasette, key, value) for key, value in call["tags"].items()),
        ],
        "more_facts": _facts(datasette, call, _more_facts(call, payload["attempts"])),
        "timeline": _timeline_context(payload),
        "attempts": payload["attempts"] and _attempts_context(datasette, payload),
        "group": group and _group_context(datasette, group, call["id"]),
        "chain": [
            row_context(datasette, row) | {"current": row["id"] == call["id"]}
            for row in payload["chain"]
        ],
        "chain_tiles": payload["chain_totals"] and tiles(payload["chain_totals"]),
        "messages": said,
        # What came before the newest question, answered by this call or by an earlier one.
        "earlier": next((n for n in range(len(said) - 1, 0, -1) if said[n].role == "user"), 0),
        "setup": list(_setup(content.get("request"))),
        "content": [
            _part(part, content[part]) for part in ("request", "response") if part in content
        ],
    }


def _running_context(datasette: Datasette, payload: Row, *, may_stop: bool) -> Row | None:
    """What is known of a call that runs; None for one that has ended."""
    call, running = payload["call"], payload["running"]
    if call["outcome"] != RUNNING:
        return None
    stop = datasette.urls.path(f"{LOG}/{call['id']}/stop")
    return {
        "here": running is not None,
        "seconds": int(running["seconds"] if running else payload["timeline"]["total_ms"] / 1000),
        "state": STATES[running["state"]] if running else "",
        "stop": stop if running is not None and may_stop else None,
        "follow": datasette.urls.path(f"{LOG}/follow"),
    }


def _timeline_context(payload: Row) -> Row:
    """The timeline as bars, each with its place and width in percent, and its text."""
    found = payload["timeline"]
    total_ms, several = found["total_ms"], len({each["call_id"] for each in found["spans"]}) > 1
    return {
        "total": duration(total_ms),
        "ended": payload["call"]["outcome"] != RUNNING,
        "more": max(0, len(found["spans"]) - MAX_SPANS),
        "spans": [
            {
                "kind": span["kind"],
                "label": _span_label(span, several=several),
                "duration": duration(span["duration_ms"]),
                "start": duration(span["start_ms"]) or "0 ms",
                "left": _percent(span["start_ms"], total_ms),
                "width": _percent(span["duration_ms"], total_ms),
            }
            for span in found["spans"][:MAX_SPANS]
        ],
    }


def _span_label(span: Row, *, several: bool) -> str:
    label = SPANS[span["kind"]]
    if several and span["kind"] in _OF_REQUEST:
        step = f"step {span['chain_step']}" if span["chain_step"] else ""
        attempt = "repair" if span["is_repair"] else f"attempt {span['attempt']}"
        first_step = step and attempt == "attempt 1"
        label = f"{step if first_step else ', '.join(filter(None, (step, attempt)))}: {label}"
    return label[:1].upper() + label[1:]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}" if whole else "0"


def _setup(request: Any) -> Iterator[tuple[str, str]]:
    """What a request had besides its messages, for people to read."""
    fields = request if isinstance(request, dict) else {}
    tools, options = fields.get("tools"), fields.get("options")
    if isinstance(tools, list) and tools:
        yield "Tools", ", ".join(map(str, tools))
    if isinstance(options, dict) and options:
        yield "Options", ", ".join(f"{name} {value}" for name, value in options.items())
    if fields.get("schema"):
        yield "Schema", as_text(fields["schema"])[:MAX_TEXT_CHARS]


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


def _main_facts(call: Row) -> Iterator[Fact]:
    yield "Started", f"{time(call['started_at'])} UTC", None
    if call["failure_kind"]:
        yield "Failure", call["failure_kind"], "failure_kind"
    yield from (
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
    )


def _more_facts(call: Row, attempts: Sequence[Row]) -> Iterator[Fact]:
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
        ("Attempt", f"{call['attempt']} of {attempts[-1]['attempt']}" if attempts else None),
        (
            "Waited for concurrency limit",
            None if call["waited_ms"] is None else waited(call["waited_ms"]) or "no",
        ),
    ]
    yield from ((label, value, None) for label, value in sometimes if value is not None)
    yield "Streaming", "yes" if call["streaming"] else "no", None
    yield "Prompt", f"{number(call['prompt_chars'])} characters", None
    yield "System prompt", f"{number(call['system_chars'])} characters", None
    yield "Messages", number(call["message_count"]), None
    yield "Attachments", number(call["attachment_count"]), None


def _facts(datasette: Datasette, call: Row, facts: Iterable[Fact]) -> list[Row]:
    return [
        {
            "label": label,
            "value": label_of(name, value),
            "missing": "none" if name in NULLABLE else missing(call["outcome"]),
            "address": list_address(datasette, {name: value}) if name and value else None,
        }
        for label, value, name in facts
    ]


def _links(datasette: Datasette, payload: Row) -> Iterator[Row]:
    """What the call belongs to."""
    call = payload["call"]
    page = datasette.urls.path(f"{LOG}/{call['id']}")
    if call["conversation_id"]:
        address = conversation_address(datasette, call["conversation_id"])
        yield _link("Conversation", call["conversation_id"], address)
    if call["chain_step"]:
        yield _link("Chain", f"step {call['chain_step']}", f"{page}#chain")
    if payload["group"]:
        yield _link("Group", payload["group"]["id"], f"{page}#group")
    for each in payload["consultations"]:
        yield _link("Advice", each, str(datasette.urls.path(f"{ADVICE}/{each}")))


def _link(label: str, value: str, address: str) -> Row:
    return {"label": label, "value": value, "missing": "", "address": address}


def _tag(datasette: Datasette, key: str, value: object) -> Row:
    text = tag_text(key, value)
    return {
        "label": f"Tag {key}",
        "value": text.removeprefix(f"{key}:"),
        "missing": "empty",
        "address": list_address(datasette, {"tag": text}),
    }


def _part(part: str, content: Any) -> Row:
    text = content if isinstance(content, str) else as_text(content)
    return {
        "title": part.capitalize(),
        "text": text[:MAX_SHOWN_CHARS],
        "left_out": number(max(0, len(text) - MAX_SHOWN_CHARS))
        if len(text) > MAX_SHOWN_CHARS
        else "",
    }

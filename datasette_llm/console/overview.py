"""The overview page: whether it is well, and what to do where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from .. import instance
from ..access.config_warnings import StartupCheck, warnings
from ..access.hook_failures import HookFailures
from ..access.keys import KeyStatus, candidates, read_status
from ..access.policy import has_key
from ..access.quoting import quoted
from ..access.snapshot import Snapshot, snapshot_of
from .call_policies import has_limits, queues
from .choices import purpose_names, secret_pages
from .figures import Wellbeing, wellbeing
from .formatting import change, counted, dollars, label_of, number
from .log.payloads import log_status
from .navigation import DOCS, EXPLAIN, KEYS, LOG, MODELS, PURPOSES, TEST, row_address
from .purposes import problem_of

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

Row = dict[str, Any]

# So many names stand in a sentence.
MAX_NAMES = 3
# What to do about failures of a kind, and the page for it.
REMEDIES: Mapping[str | None, tuple[str, str]] = {
    "no_key": ("Set the key", KEYS),
    "key_refused": ("Set a key that the provider accepts", KEYS),
    "unknown_model": ("Choose a model that the provider has", MODELS),
    "rate_limit": ("Set max_concurrency, or raise the quota", f"{DOCS}/models"),
    "network": ("Test the model; check the network and the endpoint", TEST),
    "timeout": ("Test the model; raise timeout, or set fallbacks", TEST),
    "blocked": ("Read which plugin blocked them", LOG),
    "not_allowed": ("Explain the decision", EXPLAIN),
}
_ELSE = ("Read their messages", LOG)


async def overview(datasette: Datasette, request: Request) -> Row:
    """What is wrong and what to do, the calls of these days, and counts of models and purposes."""
    snapshot = await snapshot_of(datasette)
    rules = snapshot.for_purpose(None).rules
    status = await read_status(datasette)
    entries = snapshot.catalog.entries.values()
    permitted = [entry for entry in entries if rules.permits(entry.model_id)]
    purposes, _ = await purpose_names(datasette, snapshot)  # its problem is a hook's failure
    log = await log_status(datasette)
    default = snapshot.for_purpose(None).default()
    found = await _warnings(datasette, snapshot)
    days, unread = await wellbeing(datasette, request.actor)
    lacking = await asyncio.to_thread(_lacking_keys, snapshot, status)
    pages = await secret_pages(datasette, request.actor, [names[0] for names in lacking])
    without = await asyncio.to_thread(_purposes_without_model, snapshot, status, purposes)
    temporary = datasette.get_internal_database().is_temp_disk
    problems = [
        *_failures(datasette, days),
        *_purpose_problems(datasette, without),
        *(
            _problem(datasette, text, "Read about the setting", f"{DOCS}/configuration")
            for text in found
        ),
        *[
            _problem(datasette, await quoted(datasette, each), "Explain a decision", EXPLAIN)
            for each in instance.of(datasette, HookFailures).warnings()
        ],
        *(
            _problem(datasette, text, "Read about the call log", f"{DOCS}/log")
            for text in [*log["warnings"], *([unread] if unread else [])]
        ),
    ]
    hints = [
        *_keyless(datasette, lacking, pages),
        *_log_hints(datasette, days, recording=log["recording"], temporary=temporary),
    ]
    return {
        "ok": True,
        "problems": problems,
        "hints": hints,
        "days": _days(datasette, days) if days else None,
        "running": days.running if days else None,
        "running_href": _calls(datasette, outcome="running"),
        "default_model": default.model_id if default is not None else None,
        "models": {
            "known": len(snapshot.catalog.entries),
            "allowed": len(permitted),
            "allowed_with_key": sum(has_key(entry, rules, status) for entry in permitted),
        },
        "purposes": len(purposes),
        "assignments": {"count": len(snapshot.assigned), "last_until_restart": temporary},
        "limited": has_limits(snapshot.settings),
        "queues": queues(datasette),
        "record": {name: log[name] for name in ("recording", "content_recorded")},
        "warnings": [problem["text"] for problem in problems],
    }


async def _warnings(datasette: Datasette, snapshot: Snapshot) -> list[str]:
    check = instance.of(datasette, StartupCheck)
    if check.failure:
        return [check.failure, *snapshot.catalog.problems]
    # Again, for llm may know more or fewer models than at the start.
    return await asyncio.to_thread(warnings, snapshot.settings, snapshot.catalog)


# What is wrong, each with its next step


def _problem(datasette: Datasette, text: str, step: str, path: str, **query: str) -> Row:
    """What is wrong, what to do about it, and the address where."""
    href = datasette.urls.path(path) + (f"?{urlencode(query)}" if query else "")
    return {"text": text, "step": step, "href": href}


def _failures(datasette: Datasette, days: Wellbeing | None) -> Iterator[Row]:
    if days is None:
        return
    for each in days.failures["kinds"]:
        kind, outcome, since = each["kind"], each["outcome"], days.failures["since"]
        what = label_of("failure_kind", kind).lower() if kind else outcome
        step, path = REMEDIES.get(kind, _ELSE)
        text = f"{counted(each['calls'], 'call')} failed in the last 24 hours: {what}"
        query = {"outcome": outcome, "since": since} | ({"failure_kind": kind} if kind else {})
        calls = _calls(datasette, **query)
        found = _problem(datasette, text, step, path)
        yield found | {"calls": calls, "href": calls if path == LOG else found["href"]}


def _purpose_problems(datasette: Datasette, without: Mapping[str, str]) -> Iterator[Row]:
    if not without:
        return
    names = [name or "(no name)" for name in without]
    text = f"{counted(len(names), 'purpose')} without a model that can be used: {_some(names)}"
    problem = _problem(datasette, text, "Choose another model, or set its key", PURPOSES)
    if len(without) == 1 and names[0] in without:
        problem["href"] = row_address(datasette, PURPOSES, names[0])
        problem["text"] += f". {without[names[0]]}"
    yield problem


def _keyless(
    datasette: Datasette, lacking: Mapping[tuple[str, ...], list[str]], pages: Mapping[str, str]
) -> Iterator[Row]:
    for names, ids in sorted(lacking.items(), key=lambda group: -len(group[1])):
        verb = "lacks" if len(ids) == 1 else "lack"
        text = f"{counted(len(ids), 'model')} {verb} a key: {_some(ids)}"
        hint = _problem(datasette, text, f"Set {' or '.join(names)}", KEYS)
        yield hint | ({"href": pages[names[0]]} if names[0] in pages else {})


def _log_hints(
    datasette: Datasette, days: Wellbeing | None, *, recording: bool, temporary: bool
) -> Iterator[Row]:
    if not recording:
        text = "No call is recorded, as log is false"
        yield _problem(datasette, text, "Set log", f"{DOCS}/log")
    if temporary:
        text = "The call log, and models chosen here, last only until Datasette stops"
        yield _problem(datasette, text, "Start it with --internal internal.db", f"{DOCS}/log")
    unpriced = days.week["calls_without_cost"] if days else 0
    if unpriced:
        text = f"{counted(unpriced, 'call')} of the last 7 days at an unknown price"
        yield _problem(datasette, text, "Set log.prices", f"{DOCS}/log")


def _some(names: list[str]) -> str:
    shown = [name if len(name) <= 100 else f"{name[:99]}…" for name in names[:MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {number(more)} more" if more else "")


def _lacking_keys(snapshot: Snapshot, status: KeyStatus) -> dict[tuple[str, ...], list[str]]:
    """The allowed models without a key, by the secrets that may hold it."""
    rules = snapshot.for_purpose(None).rules
    found: dict[tuple[str, ...], list[str]] = {}
    for entry in snapshot.catalog.entries.values():
        if rules.permits(entry.model_id) and not has_key(entry, rules, status):
            names = tuple(candidates(entry.model, rules.secret_names(entry.model_id)))
            found.setdefault(names, []).append(entry.model_id)
    return found


def _purposes_without_model(
    snapshot: Snapshot, status: KeyStatus, names: list[str]
) -> dict[str, str]:
    """The purposes whose default is missing, refused or without a key, each with the reason."""
    found = {name: problem_of(snapshot, status, name) for name in names}
    return {name: problem for name, problem in found.items() if problem is not None}


# The calls of these days


def _days(datasette: Datasette, days: Wellbeing) -> list[Row]:
    today, week = days.today, days.week
    return [
        _period(datasette, "Today", today, None),
        _period(datasette, "The last 7 days", week, week["before"]),
    ]


def _period(datasette: Datasette, label: str, totals: Row, before: Row | None) -> Row:
    """A period with its figures, each with its change and the address of its calls."""
    since, figures = totals["since"], []
    for name, value_of in FIGURES.items():
        value, earlier = value_of(totals), value_of(before) if before is not None else None
        shown = dollars(value) if name == "Cost" else number(value)
        query = {"since": since} | ({"outcome": "error"} if name == "Failures" else {})
        figures.append(
            {
                "label": name,
                "value": value,
                "shown": shown or "unknown",
                "before": earlier,
                "change": change(value, earlier),
                "href": _calls(datasette, **query),
            }
        )
    return {"label": label, "since": since, "figures": figures, "compared": before is not None}


def _tokens(totals: Row) -> int | None:
    known = [each for each in (totals["input_tokens"], totals["output_tokens"]) if each is not None]
    return sum(known) if known else None


FIGURES: Mapping[str, Callable[[Row], float | None]] = {
    "Calls": lambda totals: totals["calls"],
    "Failures": lambda totals: totals["failures"],
    "Cost": lambda totals: totals["cost_dollars"],
    "Tokens": _tokens,
}


def _calls(datasette: Datasette, **query: str) -> str:
    return f"{datasette.urls.path(LOG)}?{urlencode(query)}"

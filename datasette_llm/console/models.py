"""The page of the models: abilities, availability, price, key, call policy and use of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from datasette import NotFound

from ..access.keys import KeyStatus, candidates, read_status
from ..access.policy import Rules
from ..access.snapshot import PurposeSnapshot, Snapshot, snapshot_of
from ..decision import Step
from ..hooks import dispatch
from ..log.cost import model_price
from ..providers.catalog import Entry
from ..providers.names import provider_of
from ..providers.sync_adapter import ThreadedModel
from ..web import refused
from .call_policies import CallPolicies
from .choices import key_places, place_label, purpose_names, secret_pages
from .figures import FIGURE_SORTS, in_order, labels, recent
from .formatting import counted
from .page import Page

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..providers.registry import AsyncLLM

Row = dict[str, Any]

AVAILABLE = "available"
NO_KEY = "no-key"
REMOVED = "removed"
# Availability by configuration and keys, in the order of the page's menu.
STATES = {
    AVAILABLE: "available",
    NO_KEY: "no key",
    REMOVED: "not allowed",
}
# Where keys come from, in the order of the page's menu.
NOT_NEEDED = "not-needed"
MISSING = "missing"
SOURCES = {
    "secret environment": "secret in the environment",
    "secret": "encrypted secret",
    "keys.json": "llm's keys.json",
    "environment": "the model's own variable",
    "model": "its llm plugin",
    NOT_NEEDED: "none needed",
    MISSING: "missing",
}
ARGUMENTS = ("q", "purpose", "provider", "availability", "key", "sort")
# What the models can be sorted by; with a minus before it, in descending order.
SORTS: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "model": ("name", lambda row: row["model_id"].casefold()),
    "provider": ("provider", lambda row: row["provider"].casefold()),
    "price": ("price", lambda row: row["price"]["input_dollars"]),
    "context": ("context window", lambda row: row["context_window"]),
    **FIGURE_SORTS,
}


async def models(datasette: Datasette, purpose: str | None = None) -> Row:
    """Every model that llm knows, with its availability by configuration and keys.

    Args:
        datasette: the Datasette instance.
        purpose: what the models would be for.

    Returns:
        `models`, in llm's order; `counts` of them by state; `default`, the model of the purpose;
        `filter_hooks`, the plugins that may remove further models for some actors; `plans`, the
        call policies of all models, where a model's own `plans` do not differ.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = await snapshot_of(datasette)
    held = snapshot.for_purpose(purpose)
    default = held.default()
    status = await read_status(datasette)
    call_policies = CallPolicies(datasette, snapshot, status)

    def rows_and_plans() -> tuple[list[Row], list[Row]]:
        rows = [
            _row(entry, held, status, purpose)
            | {"plans": call_policies.of_model(purpose, entry.model_id)}
            for entry in snapshot.catalog.entries.values()
        ]
        return rows, call_policies.of_any_model(purpose)

    # In a thread, since a site may have thousands of models and purposes.
    rows, plans = await asyncio.to_thread(rows_and_plans)
    counts = Counter(row["state"] for row in rows)
    return {
        "ok": True,
        "purpose": purpose,
        "default": {"model_id": default.model_id, "rule": default.rule} if default else None,
        "require_keys": snapshot.settings.require_keys,
        "filter_hooks": dispatch.plugins_with(datasette, "llm_filter_models"),
        "counts": {state: counts[state] for state in STATES},
        "plans": plans,
        "models": rows,
    }


def _row(entry: Entry, held: PurposeSnapshot, status: KeyStatus, purpose: str | None) -> Row:
    rules, default, route = held.rules, held.default(), held.route(entry.model_id)
    price = model_price(entry.model_id, route.price, exact=route.exact_price)
    key = _key(entry, rules, status)
    refusal = next((s for s in rules.steps(entry.model_id, purpose) if not s.passed), None)
    allowed = NO_KEY if key["source"] == MISSING else AVAILABLE
    return {
        "model_id": entry.model_id,
        "aliases": _others(entry.aliases, entry.model_id),
        **_abilities(entry.model),
        "state": allowed if refusal is None else REMOVED,
        "refusal": _refusal(refusal, rules.blocked.get(entry.model_id)) if refusal else None,
        "default": default is not None and entry.model_id == default.model_id,
        "price": {
            "input_dollars": price.input_dollars,
            "output_dollars": price.output_dollars,
            "source": price.source,
        },
        "context_window": price.context_window,
        # These share the concurrency limit `threads`.
        "threaded": isinstance(entry.model, ThreadedModel),
        "key": key,
    }


def _refusal(step: Step, blocked_by: str | None) -> Row:
    setting = blocked_by if step.rule == "blocklist" else None
    return {"rule": step.rule, "detail": step.detail, "setting": setting}


def _key(entry: Entry, rules: Rules, status: KeyStatus) -> Row:
    model = entry.model
    if not model.needs_key:
        return {"source": NOT_NEEDED, "place": None, "secrets": []}
    names = rules.secret_names(entry.model_id)
    place = next(status.places(model, names), None)
    return {
        "source": place.source if place is not None else MISSING,
        "place": place_label(place) if place is not None else None,
        "secrets": candidates(model, names),
    }


def _abilities(model: AsyncLLM) -> Row:
    return {
        "provider": provider_of(model),
        "streams": bool(model.can_stream),
        "schemas": bool(model.supports_schema),
        "tools": bool(model.supports_tools),
        "attachments": sorted(map(str, model.attachment_types or ())),
    }


def _others(names: Iterable[str], model_id: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name != model_id]


def matching(
    rows: Iterable[Row],
    *,
    q: str = "",
    provider: str = "",
    availability: str = "",
    key: str = "",
) -> list[Row]:
    """The models that match a search, in their order.

    Args:
        rows: models, as `models()` returns them.
        q: words that all have to occur in the id, an alias or the provider; case is ignored.
        provider: a provider; empty for any.
        availability: one of `STATES`; empty for any.
        key: one of `SOURCES`; empty for any.
    """
    words = q.casefold().split()
    found = []
    for row in rows:
        text = "\n".join([row["model_id"], *row["aliases"], row["provider"]]).casefold()
        if (
            all(word in text for word in words)
            and provider in ("", row["provider"])
            and availability in ("", row["state"])
            and key in ("", row["key"]["source"])
        ):
            found.append(row)
    return found


async def _payload(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The models that match a search, with the search and its choices."""
    given = {name: (request.args.get(name) or "").strip() for name in ARGUMENTS}
    listed = await models(datasette, given["purpose"] or None)
    purposes, problems = await purpose_names(datasette, await snapshot_of(datasette))
    used = await recent(datasette, request.actor, "model")
    providers = {row["provider"] for row in listed["models"]}
    # A provider without models is kept, so that the form shows the search.
    searched = {given["provider"]} - {""}
    about: dict[str, Any] = {
        "filter": given,
        "choices": {
            "purpose": purposes,
            "provider": sorted({*providers, *searched}, key=str.casefold),
            "availability": STATES,
            "key": SOURCES,
            "sort": labels(SORTS),
        },
        "problems": [*problems, *([used.problem] if used.problem else [])],
        "known": len(listed["models"]),
        "figures_since": used.since,
    }
    for name, known in (("availability", STATES), ("key", SOURCES), ("sort", SORTS)):
        if given[name] and given[name].removeprefix("-" if name == "sort" else "") not in known:
            nothing = listed | about | {"models": [], "folded": []}
            return nothing | refused(f"{name}: expected one of {', '.join(known)}")
    search = {name: given[name] for name in ("q", "provider", "availability", "key")}
    rows = [
        row | {"figures": used.payload(row["model_id"])}
        for row in matching(listed["models"], **search)
    ]
    found, folded = _folded(in_order(rows, given["sort"], SORTS))
    secrets = dict.fromkeys(name for row in found for name in row["key"]["secrets"])
    pages = await secret_pages(datasette, request.actor, secrets)
    return listed | about | {"models": found, "folded": folded, "secret_pages": pages}


async def _inner_payload(datasette: Datasette, request: Request, name: str) -> dict[str, Any]:
    """One model: its availability, price, key, call policies, purposes and figures."""
    snapshot = await snapshot_of(datasette)
    model_id = snapshot.catalog.canonical(name)
    entry = snapshot.catalog.entries.get(model_id)
    used = await recent(datasette, request.actor, "model")
    figures = used.payload(model_id)
    if entry is None and not (figures and figures["calls"]):
        raise NotFound(snapshot.catalog.why_unknown(name))
    names, problems = await purpose_names(datasette, snapshot)
    about: Row = {
        "ok": True,
        "model_id": model_id,
        "known": entry is not None,
        "figures": figures,
        "figures_since": used.since,
        "problems": [*problems, *([used.problem] if used.problem else [])],
    }
    if entry is None:
        return about | {"problems": [*about["problems"], snapshot.catalog.why_unknown(name)]}
    status = await read_status(datasette)
    policies = CallPolicies(datasette, snapshot, status)
    # In a thread, since a site may have thousands of purposes.
    row, purposes, places = await asyncio.to_thread(
        lambda: (
            _row(entry, snapshot.for_purpose(None), status, None),
            _purposes(snapshot, model_id, names),
            _places(entry, snapshot, status),
        )
    )
    secrets = row["key"]["secrets"]
    return about | {
        "model": row,
        "plans": policies.of_model(None, model_id),
        "purposes": purposes,
        "places": places,
        "secret_pages": await secret_pages(datasette, request.actor, secrets),
    }


def _purposes(snapshot: Snapshot, model_id: str, names: Iterable[str]) -> Row:
    """The purposes that have a model as their default, and those that may not use it."""
    default_of, refused_for = [], []
    for name in names:
        held = snapshot.for_purpose(name)
        default = held.default()
        if default is not None and default.model_id == model_id:
            default_of.append(name)
        if not held.permits(model_id):
            refused_for.append(name)
    return {"default_of": default_of, "refused_for": refused_for}


def _places(entry: Entry, snapshot: Snapshot, status: KeyStatus) -> list[Row]:
    if not entry.model.needs_key:
        return []
    names = snapshot.for_purpose(None).rules.secret_names(entry.model_id)
    return key_places(entry.model, names, status)


def _folded(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows, usable ones first, and the reasons by which the others are folded.

    Returns:
        The rows, each with its `fold`, None or the index of a reason; and the reasons, each with
        its `text`, its `count` and the `secrets` that may hold the keys.
    """
    by_reason: dict[str, list[Row]] = {}
    usable = [row | {"fold": None} for row in rows if row["state"] == AVAILABLE]
    for row in rows:
        if row["state"] != AVAILABLE:
            by_reason.setdefault(_reason(row), []).append(row)
    # The most frequent first.
    groups = sorted(by_reason.items(), key=lambda group: -len(group[1]))
    folded = [
        {
            "text": f"{counted(len(group), 'model')} {reason}",
            "count": len(group),
            "secrets": list(dict.fromkeys(name for row in group for name in row["key"]["secrets"])),
        }
        for reason, group in groups
    ]
    others = [row | {"fold": number} for number, (_, group) in enumerate(groups) for row in group]
    return usable + others, folded


def _reason(row: Row) -> str:
    """Why a row is folded, to follow a number of models."""
    refusal = row["refusal"]
    if refusal is None:
        return f"without a key: set {' or '.join(row['key']['secrets'])}"
    if refusal["setting"] is None:
        return "not on the allowlist: add them to the models setting"
    return f"blocked by {refusal['setting']}"


PAGE = Page("models", _payload, inner=_inner_payload)

"""The page of the models: abilities, availability, key and call policy of each model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..access.keys import KeyStatus, candidates, read_status
from ..access.policy import Rules
from ..access.snapshot import snapshot_of
from ..decision import Step
from ..hooks import dispatch
from ..providers.catalog import Entry
from ..providers.names import provider_of
from ..providers.sync_adapter import ThreadedModel
from ..web import refused
from .call_policies import CallPolicies
from .choices import place_label, purpose_names, secret_pages

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
FILTERS = ("q", "purpose", "provider", "availability", "key")


async def models(datasette: Datasette, purpose: str | None = None) -> Row:
    """Every model that llm knows, with its availability by configuration and keys.

    Args:
        datasette: the Datasette instance.
        purpose: what the models would be for.

    Returns:
        `models`, in llm's order; `counts` of them by state; `default`, the model of the purpose;
        `filtered`, whether plugins may remove further models for some actors; `plans`, the call
        policies of all models, where a model's own `plans` do not differ.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = await snapshot_of(datasette)
    rules, default = snapshot.for_purpose(purpose).rules, snapshot.for_purpose(purpose).default()
    status = await read_status(datasette)
    call_policies = CallPolicies(datasette, snapshot, status)

    def rows_and_plans() -> tuple[list[Row], list[Row]]:
        rows = [
            _row(entry, rules, status, purpose, default.model_id if default else None)
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
        "filtered": dispatch.implemented(datasette, "llm_filter_models"),
        "counts": {state: counts[state] for state in STATES},
        "plans": plans,
        "models": rows,
    }


def _row(
    entry: Entry, rules: Rules, status: KeyStatus, purpose: str | None, default: str | None
) -> Row:
    key = _key(entry, rules, status)
    refusal = next((s for s in rules.steps(entry.model_id, purpose) if not s.passed), None)
    allowed = NO_KEY if key["source"] == MISSING else AVAILABLE
    return {
        "model_id": entry.model_id,
        "aliases": _others(entry.aliases, entry.model_id),
        **_abilities(entry.model),
        "state": allowed if refusal is None else REMOVED,
        "refusal": _refusal(refusal) if refusal is not None else None,
        "default": entry.model_id == default,
        # These share the concurrency limit `threads`.
        "threaded": isinstance(entry.model, ThreadedModel),
        "key": key,
    }


def _refusal(step: Step) -> Row:
    return {"rule": step.rule, "detail": step.detail}


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


async def model_page(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The models that match a search, with the search and its choices."""
    given = {name: (request.args.get(name) or "").strip() for name in FILTERS}
    listed = await models(datasette, given["purpose"] or None)
    purposes, problems = await purpose_names(datasette, await snapshot_of(datasette))
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
        },
        "problems": problems,
        "known": len(listed["models"]),
    }
    for name, known in (("availability", STATES), ("key", SOURCES)):
        if given[name] and given[name] not in known:
            nothing = listed | about | {"models": []}
            return nothing | refused(f"{name}: expected one of {', '.join(known)}")
    search = {name: value for name, value in given.items() if name != "purpose"}
    found = matching(listed["models"], **search)
    secrets = dict.fromkeys(name for row in found for name in row["key"]["secrets"])
    pages = await secret_pages(datasette, request.actor, secrets)
    return listed | about | {"models": found, "secret_pages": pages}

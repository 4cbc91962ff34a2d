"""Every model that llm knows: what it can do, whether it is available, and where its key is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import dispatch
from ..catalog import Catalog, Entry
from ..decision import Step
from ..keys import KeyStatus, candidates, read_status
from ..policy import Rules
from ..state import state_of
from .choices import words
from .providers import provider_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..catalog import SyncLLM
    from ..sources import AsyncLLM

Row = dict[str, Any]

AVAILABLE = "available"
NO_KEY = "no-key"
REMOVED = "removed"
SYNC_ONLY = "sync-only"
# What the configuration and the keys make of a model; in the order of the page's menu.
STATES = {
    AVAILABLE: "available",
    NO_KEY: "no key",
    REMOVED: "not allowed",
    SYNC_ONLY: "no async version",
}
# Where keys come from; in the order of the page's menu.
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


async def models(datasette: Datasette, purpose: str | None = None) -> Row:
    """Every model that llm knows, as configuration and keys see it.

    Args:
        datasette: the Datasette instance.
        purpose: what the models would be for.

    Returns:
        `models`, in llm's order with those that have no async version last; `counts` of them
        by state; `default`, the one that the purpose resolves to; `filtered`, whether plugins
        may keep further models from some actors.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    view = await state_of(datasette).view(datasette)
    rules, default = view.rules(purpose), view.default(purpose)
    status = await read_status(datasette)
    rows = [
        _row(entry, rules, status, purpose, default.model_id if default else None)
        for entry in view.catalog.entries.values()
    ]
    rows += _sync_rows(view.catalog)
    counts = Counter(row["state"] for row in rows)
    return {
        "ok": True,
        "purpose": purpose,
        "default": {"model_id": default.model_id, "rule": default.rule} if default else None,
        "require_keys": view.settings.require_keys,
        "filtered": dispatch.implemented(datasette, "llm_filter_models"),
        "counts": {state: counts[state] for state in STATES},
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
        "place": words(place) if place is not None else None,
        "secrets": candidates(model, names),
    }


def _abilities(model: AsyncLLM | SyncLLM) -> Row:
    return {
        "provider": provider_of(model),
        "streams": bool(model.can_stream),
        "schemas": bool(model.supports_schema),
        "tools": bool(model.supports_tools),
        "attachments": sorted(map(str, model.attachment_types or ())),
    }


def _sync_rows(catalog: Catalog) -> Iterator[Row]:
    """The models that plugins of Datasette cannot use, and why."""
    names: dict[str, list[str]] = {}
    for name, model in catalog.sync_only.items():
        names.setdefault(model.model_id, []).append(name)
    for model_id, aliases in names.items():
        if model_id in catalog.names:
            continue  # another plugin provides an async model by this name
        yield {
            "model_id": model_id,
            "aliases": _others(aliases, model_id),
            **_abilities(catalog.sync_only[model_id]),
            "state": SYNC_ONLY,
            "refusal": {"rule": "known", "detail": catalog.why_unknown(model_id)},
            "default": False,
            "key": {"source": None, "place": None, "secrets": []},
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
    """The models of a list that a search finds, in their order.

    Args:
        rows: models, as `models()` gives them.
        q: words that all have to be in the id, an alias or the provider, in any case.
        provider: exactly this provider.
        availability: exactly this of `STATES`.
        key: exactly this of `SOURCES`.
    """
    wanted = q.casefold().split()
    found = []
    for row in rows:
        text = "\n".join([row["model_id"], *row["aliases"], row["provider"]]).casefold()
        if (
            all(word in text for word in wanted)
            and provider in ("", row["provider"])
            and availability in ("", row["state"])
            and key in ("", row["key"]["source"])
        ):
            found.append(row)
    return found

"""The page of the keys: what depends on each secret, and what stops if it is revoked.

Only names are read. Whether two places hold the same key is not known.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datasette.utils.sqlite import sqlite3

from ..access.keys import (
    ENVIRONMENT_PREFIX,
    KeyStatus,
    Place,
    can_store,
    candidates,
    last_uses,
    read_status,
)
from ..access.snapshot import snapshot_of
from ..lifecycle import secrets
from ..sanitize import message_of
from .choices import key_places, place_label, purpose_names, secret_pages
from .figures import newest_calls

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request
    from datasette_secrets import Secret

    from ..access.snapshot import Snapshot
    from ..providers.registry import AsyncLLM

Row = dict[str, Any]
Purposes = tuple[str | None, ...]
Effect = Literal["stops", "goes-on", "no-key", "unaffected"]

# In the order of the page, the most urgent first.
EFFECTS: tuple[Effect, ...] = ("stops", "goes-on", "no-key", "unaffected")


@dataclass(frozen=True, slots=True)
class Impact:
    """What happens to prompts of a model when a secret is revoked.

    Attributes:
        effect: `stops`; `goes-on`, with a key from another place; `no-key`, the API key is
            missing now; `unaffected`, another place comes first.
        now: the place of the key.
        then: its place without the secret.
    """

    effect: Effect
    now: Place | None
    then: Place | None

    def payload(self) -> Row:
        """As in JSON."""
        return {
            "effect": self.effect,
            "now": place_label(self.now) if self.now else None,
            "then": place_label(self.then) if self.then else None,
        }


def impacts(model: AsyncLLM, secret_names: Iterable[str], status: KeyStatus) -> dict[str, Impact]:
    """The impact on a model of revoking each secret that may hold its key.

    Args:
        model: a model with `needs_key`.
        secret_names: secrets that the configuration names for it.
        status: which keys are set.
    """
    secret_names = tuple(secret_names)
    places = list(status.places(model, secret_names))
    now = places[0] if places else None
    found = {}
    for name in candidates(model, secret_names):
        own = [p for p in places if p.name == name and p.source in ("secret environment", "secret")]
        then = next((place for place in places if place not in own), None)
        found[name] = Impact(_effect(now, own, then), now, then)
    return found


def _effect(now: Place | None, own: list[Place], then: Place | None) -> Effect:
    if now is None:
        return "no-key"
    if now not in own:
        return "unaffected"
    return "goes-on" if then is not None else "stops"


async def keys(datasette: Datasette) -> Row:
    """Each secret that may hold a model's key, and what depends on it.

    Hooks are not called, as they decide for one actor.

    Args:
        datasette: the Datasette instance.

    Returns:
        `secrets`, each with `set`, where it is set; `places`, all where its models' keys may
        stand; `last_used`, `at` and `actor_id`, or None; `models`, the allowed models grouped by
        impact, each group with its `purposes` (None for all; in the list, None stands for the
        purposes without settings); `purposes`, those whose default depends on the secret (None
        stands for prompts without a purpose).

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = await snapshot_of(datasette)
    status = await read_status(datasette)
    names, problems = await purpose_names(datasette, snapshot)
    # In a thread, since a site may have thousands of models and purposes.
    by_model = await asyncio.to_thread(_model_groups, snapshot, status)
    by_purpose = await asyncio.to_thread(_purposes, snapshot, status, [None, *names])
    places = await asyncio.to_thread(_places, snapshot, status)
    used, unread = await _last_uses(datasette)
    return {
        "ok": True,
        "secrets": [
            {
                **_facts(secret, status),
                "places": places.get(secret.name, []),
                "last_used": used.get(secret.name),
                "models": by_model.get(secret.name, []),
                "purposes": by_purpose.get(secret.name, []),
            }
            for secret in await secrets(datasette)
        ],
        "can_store": can_store(datasette),
        "problems": [*problems, *unread],
    }


async def _last_uses(datasette: Datasette) -> tuple[dict[str, Row], list[str]]:
    """When each secret was last used and by whom, and why that is not known."""
    try:
        uses = await last_uses(datasette)
    except sqlite3.Error as error:
        return {}, [f"When secrets were last used cannot be read: {message_of(error)}"]
    return {name: {"at": at, "actor_id": actor_id} for name, (at, actor_id) in uses.items()}, []


def _places(snapshot: Snapshot, status: KeyStatus) -> dict[str, list[Row]]:
    """For each secret, every place where the keys of the models that may use it may stand."""
    found: dict[str, dict[str, Row]] = {}
    known: set[tuple[object, ...]] = set()
    for model_id, by_names in _uses(snapshot).items():
        model = snapshot.catalog.entries[model_id].model
        for names in by_names:
            same_key = (model.needs_key, model.key_env_var, bool(model.key), names)
            if same_key in known:
                continue
            known.add(same_key)
            for name in candidates(model, names):
                own = found.setdefault(name, {})
                for each in key_places(model, names, status):
                    own.setdefault(each["label"], each)
    return {name: list(places.values()) for name, places in found.items()}


def _facts(secret: Secret, status: KeyStatus) -> Row:
    return {
        "name": secret.name,
        "description": secret.description,
        "obtain_url": secret.obtain_url,
        "obtain_label": secret.obtain_label,
        "set": {
            "environment": bool(os.environ.get(ENVIRONMENT_PREFIX + secret.name)),
            "table": secret.name in status.secrets,
        },
    }


def _model_groups(snapshot: Snapshot, status: KeyStatus) -> dict[str, list[Row]]:
    """The models that may use each secret, grouped by impact."""
    groups: dict[str, dict[tuple[Impact, Purposes | None], list[str]]] = {}
    # Most models share their provider's key, so the result is the same for many.
    known: dict[tuple[object, ...], dict[str, Impact]] = {}
    for model_id, by_names in _uses(snapshot).items():
        model = snapshot.catalog.entries[model_id].model
        for names, purposes in by_names.items():
            same_key = (model.needs_key, model.key_env_var, bool(model.key), names)
            if same_key not in known:
                known[same_key] = impacts(model, names, status)
            only = None if len(by_names) == 1 else tuple(purposes)
            for name, impact in known[same_key].items():
                groups.setdefault(name, {}).setdefault((impact, only), []).append(model_id)
    return {name: _group_rows(by_impact) for name, by_impact in groups.items()}


def _group_rows(groups: Mapping[tuple[Impact, Purposes | None], list[str]]) -> list[Row]:
    rows = [
        {**impact.payload(), "purposes": None if only is None else list(only), "model_ids": ids}
        for (impact, only), ids in groups.items()
    ]
    return sorted(rows, key=_by_effect)


def _by_effect(row: Row) -> int:
    return EFFECTS.index(row["effect"])


def _uses(snapshot: Snapshot) -> dict[str, dict[tuple[str, ...], list[str | None]]]:
    """For each allowed model that needs a key, its purposes, by their secrets."""
    found: dict[str, dict[tuple[str, ...], list[str | None]]] = {}
    with_keys = [name for name, entry in snapshot.catalog.entries.items() if entry.model.needs_key]
    for purpose in (None, *snapshot.settings.purposes):
        rules = snapshot.for_purpose(purpose).rules
        for model_id in filter(rules.permits, with_keys):
            names = rules.secret_names(model_id)
            found.setdefault(model_id, {}).setdefault(names, []).append(purpose)
    return found


def _purposes(
    snapshot: Snapshot, status: KeyStatus, purposes: Iterable[str | None]
) -> dict[str, list[Row]]:
    """For each secret, the purposes whose default may use it."""
    found: dict[str, list[Row]] = {}
    for purpose in purposes:
        rules, default = (
            snapshot.for_purpose(purpose).rules,
            snapshot.for_purpose(purpose).default(),
        )
        entry = snapshot.catalog.entries.get(default.model_id) if default else None
        if entry is None or not entry.model.needs_key or not rules.permits(entry.model_id):
            continue
        by_secret = impacts(entry.model, rules.secret_names(entry.model_id), status)
        for name, impact in by_secret.items():
            row = {"purpose": purpose, "model_id": entry.model_id, **impact.payload()}
            found.setdefault(name, []).append(row)
    return {name: sorted(rows, key=_by_effect) for name, rows in found.items()}


async def key_page(datasette: Datasette, request: Request) -> Row:
    """Each secret, with a link to set it if the actor may."""
    listed = await keys(datasette)
    names = [secret["name"] for secret in listed["secrets"]]
    depending = {
        model_id
        for secret in listed["secrets"]
        for group in secret["models"]
        if group["effect"] in ("stops", "goes-on")
        for model_id in group["model_ids"]
    }
    newest = await newest_calls(datasette, request.actor, depending)
    for secret in listed["secrets"]:
        secret["newest_call"] = _newest(secret, newest)
    return listed | {"secret_pages": await secret_pages(datasette, request.actor, names)}


def _newest(secret: Row, newest: Mapping[str, Row]) -> Row | None:
    """The newest call of a model that has its key from a secret."""
    calls = [
        {"model_id": model_id, **newest[model_id]}
        for group in secret["models"]
        if group["effect"] in ("stops", "goes-on")
        for model_id in group["model_ids"]
        if model_id in newest
    ]
    return max(calls, key=lambda call: str(call["id"]), default=None)

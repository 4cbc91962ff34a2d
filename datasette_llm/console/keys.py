"""For each secret that holds a key: what depends on it, and what stops if it is revoked.

Only names are looked at. Whether two places hold the same key is not known, and not found out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..access.keys import ENVIRONMENT_PREFIX, KeyStatus, Place, can_store, candidates, read_status
from ..access.snapshot import snapshot_of
from ..lifecycle import secrets
from .choices import purpose_names, secret_pages, words

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request
    from datasette_secrets import Secret

    from ..access.snapshot import Snapshot
    from ..providers.registry import AsyncLLM

Row = dict[str, Any]
Purposes = tuple[str | None, ...]
Effect = Literal["stops", "goes-on", "no-key", "unaffected"]

# In the order of the page: what needs attention comes first.
EFFECTS: tuple[Effect, ...] = ("stops", "goes-on", "no-key", "unaffected")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a model's prompts when a secret is revoked.

    Attributes:
        effect: `stops`; `goes-on`, with a key from another place; `no-key`, there is none now;
            `unaffected`, another place comes first.
        now: where the key comes from.
        then: where it would come from without the secret.
    """

    effect: Effect
    now: Place | None
    then: Place | None

    def told(self) -> Row:
        """As payloads have it."""
        return {
            "effect": self.effect,
            "now": words(self.now) if self.now else None,
            "then": words(self.then) if self.then else None,
        }


def fates(model: AsyncLLM, secret_names: Iterable[str], status: KeyStatus) -> dict[str, Fate]:
    """What becomes of a model for each secret that may hold its key.

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
        found[name] = Fate(_effect(now, own, then), now, then)
    return found


def _effect(now: Place | None, own: list[Place], then: Place | None) -> Effect:
    if now is None:
        return "no-key"
    if now not in own:
        return "unaffected"
    return "goes-on" if then is not None else "stops"


async def keys(datasette: Datasette) -> Row:
    """Each secret that may hold a model's key, and what depends on it.

    What hooks decide is not part of it, since they may decide otherwise for each actor.

    Args:
        datasette: the Datasette instance.

    Returns:
        `secrets`, and for each of them: `set`, where it is set now; `models`, those that the
        configuration allows, in groups that share their fate, with the purposes for which it
        is theirs (None for all of them; in the list None stands for every purpose without
        settings); `purposes`, those whose default depends on it (None stands for a caller
        without a purpose).

    Raises:
        ConfigError: the configuration cannot be used.
    """
    view = await snapshot_of(datasette)
    status = await read_status(datasette)
    names, problems = await purpose_names(datasette, view)
    by_model = _model_groups(view, status)
    by_purpose = _purposes(view, status, [None, *names])
    return {
        "ok": True,
        "secrets": [
            {
                **_facts(secret, status),
                "models": by_model.get(secret.name, []),
                "purposes": by_purpose.get(secret.name, []),
            }
            for secret in await secrets(datasette)
        ],
        "can_store": can_store(datasette),
        "problems": problems,
    }


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


def _model_groups(view: Snapshot, status: KeyStatus) -> dict[str, list[Row]]:
    """For each secret the models that may use it, those of one fate together."""
    groups: dict[str, dict[tuple[Fate, Purposes | None], list[str]]] = {}
    # Most models share their provider's key, so few of them need looking up.
    known: dict[tuple[object, ...], dict[str, Fate]] = {}
    for model_id, by_names in _uses(view).items():
        model = view.catalog.entries[model_id].model
        for names, purposes in by_names.items():
            same_key = (model.needs_key, model.key_env_var, bool(model.key), names)
            if same_key not in known:
                known[same_key] = fates(model, names, status)
            where = None if len(by_names) == 1 else tuple(purposes)
            for name, fate in known[same_key].items():
                groups.setdefault(name, {}).setdefault((fate, where), []).append(model_id)
    return {name: _told(by_fate) for name, by_fate in groups.items()}


def _told(groups: Mapping[tuple[Fate, Purposes | None], list[str]]) -> list[Row]:
    rows = [
        {**fate.told(), "purposes": None if where is None else list(where), "model_ids": ids}
        for (fate, where), ids in groups.items()
    ]
    return sorted(rows, key=_by_effect)


def _by_effect(row: Row) -> int:
    return EFFECTS.index(row["effect"])


def _uses(view: Snapshot) -> dict[str, dict[tuple[str, ...], list[str | None]]]:
    """For each model that needs a key and is allowed: its purposes, by the secrets it has there."""
    found: dict[str, dict[tuple[str, ...], list[str | None]]] = {}
    needy = [name for name, entry in view.catalog.entries.items() if entry.model.needs_key]
    for purpose in (None, *view.settings.purposes):
        rules = view.for_purpose(purpose).rules
        for model_id in filter(rules.permits, needy):
            names = rules.secret_names(model_id)
            found.setdefault(model_id, {}).setdefault(names, []).append(purpose)
    return found


def _purposes(
    view: Snapshot, status: KeyStatus, purposes: Iterable[str | None]
) -> dict[str, list[Row]]:
    """For each secret the purposes whose default may use it."""
    found: dict[str, list[Row]] = {}
    for purpose in purposes:
        rules, default = view.for_purpose(purpose).rules, view.for_purpose(purpose).default()
        entry = view.catalog.entries.get(default.model_id) if default else None
        if entry is None or not entry.model.needs_key or not rules.permits(entry.model_id):
            continue
        by_secret = fates(entry.model, rules.secret_names(entry.model_id), status)
        for name, fate in by_secret.items():
            row = {"purpose": purpose, "model_id": entry.model_id, **fate.told()}
            found.setdefault(name, []).append(row)
    return {name: sorted(rows, key=_by_effect) for name, rows in found.items()}


async def key_page(datasette: Datasette, request: Request) -> Row:
    """Each secret, with the page where whoever looks can set it."""
    listed = await keys(datasette)
    names = [secret["name"] for secret in listed["secrets"]]
    return listed | {"secret_pages": await secret_pages(datasette, request.actor, names)}

"""Choices that several pages offer: known purposes, and links to set secrets."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..access.keys import ENVIRONMENT_PREFIX, KeyStatus, Place, can_store, candidates
from ..access.purposes import Purpose, get_purposes
from ..access.quoting import quoted
from ..consultant.advice import consultation
from ..errors import HookError
from ..evaluation import judge
from ..hooks import dispatch

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.snapshot import Snapshot
    from ..providers.registry import AsyncLLM


async def registered_purposes(datasette: Datasette) -> tuple[dict[str, Purpose], list[str]]:
    """The purposes that plugins registered, then our own.

    Returns:
        The purposes by name, and a list of problems: empty, or one sentence.
    """
    # Not registered by a hook, so that `get_purposes()` returns other plugins' purposes only.
    own = {each.name: each for each in (*consultation.purposes(), *judge.purposes())}
    try:
        registered = {purpose.name: purpose for purpose in await get_purposes(datasette)}
    except HookError as error:
        message = await quoted(datasette, str(error))
        return own, [f"The purposes of plugins are unknown, because a plugin failed: {message}"]
    return registered | {name: own[name] for name in own if name not in registered}, []


async def purpose_names(datasette: Datasette, snapshot: Snapshot) -> tuple[list[str], list[str]]:
    """The purposes that are registered, configured or assigned a model.

    Returns:
        Their names, each once, and a list of problems: empty, or one sentence.
    """
    registered, problems = await registered_purposes(datasette)
    return list(
        dict.fromkeys([*registered, *snapshot.settings.purposes, *snapshot.assigned])
    ), problems


async def refused_by_filters(
    datasette: Datasette, snapshot: Snapshot, purpose: str, model_ids: Iterable[str], actor: Any
) -> dict[str, str]:
    """The models that a plugin does not let an actor use, each with the plugin's name.

    A plugin that fails, or takes too long, refuses none here: its failure is reported elsewhere.

    Args:
        datasette: the Datasette instance.
        snapshot: its configuration and models.
        purpose: what the models would be for.
        model_ids: known models.
        actor: who would use them.
    """
    ids = list(model_ids)
    if not ids or not dispatch.implemented(datasette, "llm_filter_models"):
        return {}
    models = [snapshot.catalog.entries[model_id].model for model_id in ids]
    refused: dict[str, str] = {}
    for plugin, kept in await dispatch.try_filter_models(datasette, models, purpose, actor):
        if not isinstance(kept, Exception):
            refused |= {each: plugin for each in ids if each not in kept and each not in refused}
    return refused


async def secret_pages(datasette: Datasette, actor: Any, names: Iterable[str]) -> dict[str, str]:
    """Links to the pages where an actor can set secrets.

    Args:
        datasette: the Datasette instance.
        actor: the actor who sees the page.
        names: the names of the secrets.

    Returns:
        A URL for each secret that the actor may set in datasette-secrets. A secret that is set
        in the environment has none, as a stored value would not be used.
    """
    if not can_store(datasette):
        return {}
    if not await datasette.allowed(action="manage-secrets", actor=actor):
        return {}
    return {
        name: datasette.urls.path(f"/-/secrets/{quote(name, safe='')}")
        for name in names
        if not os.environ.get(ENVIRONMENT_PREFIX + name)
    }


def place_label(place: Place) -> str:
    """Where a key is set, for display."""
    match place.source:
        case "secret environment":
            return f"environment variable {ENVIRONMENT_PREFIX}{place.name}"
        case "secret":
            return f"encrypted secret {place.name}"
        case "keys.json":
            return f"llm's keys.json, as {place.name}"
        case "environment":
            return f"environment variable {place.name}"
        case "model":
            return "its llm plugin"


def key_places(
    model: AsyncLLM, secret_names: Iterable[str], status: KeyStatus
) -> list[dict[str, Any]]:
    """Every place where the key of a model may stand, in the order in which they are tried.

    Args:
        model: a model with `needs_key`.
        secret_names: secrets that the configuration names for it, in order.
        status: which keys are set.

    Returns:
        Each with its `label`; `secret`, its name where it is one of datasette-secrets, or None;
        `command`, what sets it in a shell, or None; `set`, whether it is; `used`, whether it is
        the first that is.
    """
    secret_names = tuple(secret_names)
    found = set(status.places(model, secret_names))
    first = next(status.places(model, secret_names), None)
    places: list[tuple[Place, str | None]] = []
    for name in candidates(model, secret_names):
        places.append((Place("secret environment", name), _export(ENVIRONMENT_PREFIX + name)))
        places.append((Place("secret", name), None))
    needs_key = str(model.needs_key)
    places.append((Place("keys.json", needs_key), f"llm keys set {shlex.quote(needs_key)}"))
    if model.key_env_var:
        places.append((Place("environment", model.key_env_var), _export(model.key_env_var)))
    if Place("model", needs_key) in found:
        places.append((Place("model", needs_key), None))
    return [
        {
            "label": place_label(place),
            "secret": place.name if place.source == "secret" else None,
            "command": command,
            "set": place in found,
            "used": place == first,
        }
        for place, command in places
    ]


def _export(variable: str) -> str:
    return f"export {variable}=…"

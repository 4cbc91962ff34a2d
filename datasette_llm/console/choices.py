"""What several pages offer: purposes to choose from, and the pages where secrets are set."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..access.keys import ENVIRONMENT_PREFIX, Place, can_store
from ..access.purposes import Purpose, get_purposes
from ..access.quoting import quoted_error
from ..consultant.advice import consultation as consulting

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.snapshot import Snapshot


async def registered_purposes(datasette: Datasette) -> tuple[dict[str, Purpose], list[str]]:
    """The purposes that plugins registered, and after them our own.

    Returns:
        Each by its name, and what went wrong: a sentence, or nothing.
    """
    # Ours are no plugin's, so that `get_purposes()` gives a plugin what plugins registered.
    own = {purpose.name: purpose for purpose in consulting.purposes()}
    try:
        registered = {purpose.name: purpose for purpose in await get_purposes(datasette)}
    except Exception as error:  # a plugin's hook
        why = await quoted_error(datasette, error)
        return own, [f"The purposes that plugins register are unknown, because one failed: {why}"]
    return registered | {name: own[name] for name in own if name not in registered}, []


async def purpose_names(datasette: Datasette, view: Snapshot) -> tuple[list[str], list[str]]:
    """The purposes that plugins registered, the configuration names or a model is assigned to.

    Returns:
        Their names, each once, and what went wrong: a sentence, or nothing.
    """
    registered, problems = await registered_purposes(datasette)
    return list(dict.fromkeys([*registered, *view.settings.purposes, *view.assigned])), problems


async def secret_pages(datasette: Datasette, actor: Any, names: Iterable[str]) -> dict[str, str]:
    """The addresses of the pages where an actor can set some secrets.

    Args:
        datasette: the Datasette instance.
        actor: who looks.
        names: the secrets.

    Returns:
        An address for each secret that datasette-secrets can store and lets the actor set. One
        that is set in the environment has none: a stored one would not be used.
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


def words(place: Place) -> str:
    """Where a key is set, for people."""
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

"""Choices that several pages offer: known purposes, and links to set secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..access.keys import ENVIRONMENT_PREFIX, Place, can_store
from ..access.purposes import Purpose, get_purposes
from ..access.quoting import quoted
from ..consultant.advice import consultation
from ..errors import HookError

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.snapshot import Snapshot


async def registered_purposes(datasette: Datasette) -> tuple[dict[str, Purpose], list[str]]:
    """The purposes that plugins registered, then our own.

    Returns:
        The purposes by name, and a list of problems: empty, or one sentence.
    """
    # Not registered by a hook, so that `get_purposes()` returns other plugins' purposes only.
    own = {purpose.name: purpose for purpose in consultation.purposes()}
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

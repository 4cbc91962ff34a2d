"""What happens when Datasette starts, when it stops, and when it asks for secrets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from .checks import warnings
from .config import secret_names
from .keys import secrets_to_register
from .state import state_of

if TYPE_CHECKING:
    import datasette_secrets
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# A provider plugin that lists its models over a dead network must not keep Datasette down.
CATALOG_WAIT_S = 5.0
SHUTDOWN_S = 10.0


async def start(datasette: Datasette) -> None:
    """Check the configuration, and take the first look at llm's models.

    Raises:
        ConfigError: the configuration cannot be used; Datasette does not start.
    """
    await state_of(datasette).settings(datasette)
    check = asyncio.create_task(_warn(datasette))
    state_of(datasette).startup_check = check
    await asyncio.wait([check], timeout=CATALOG_WAIT_S)


async def stop(datasette: Datasette) -> None:
    """Cancel the calls under way, and wait for their contexts to clean up."""
    calls = [call for call in state_of(datasette).calls if call.runs_here()]
    for call in calls:
        call.cancel("Datasette is shutting down")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_S):
            for call in calls:
                await call.closed.wait()


async def secrets(datasette: Datasette) -> list[datasette_secrets.Secret]:
    """The secrets that models may use, for datasette-secrets to list."""
    view = await state_of(datasette).view(datasette)
    models = [entry.model for entry in view.catalog.entries.values()]
    return secrets_to_register(models, secret_names(view.settings))


async def _warn(datasette: Datasette) -> None:
    state = state_of(datasette)
    view = await state.view(datasette)
    state.warnings = tuple(warnings(view.settings, view.catalog))
    for warning in state.warnings:
        if warning not in view.catalog.problems:  # those are logged where they are found
            logger.warning("%s", warning)

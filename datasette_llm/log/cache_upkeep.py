"""Removes what the response cache is no longer to keep: too old, too much, or of no setting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from datasette.database import DatasetteClosedError
from datasette.utils.sqlite import sqlite3

from . import cache_store
from .cache_store import Bounds

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

INTERVAL_S = 3600.0
# Between two transactions, for calls and other processes.
PAUSE_S = 0.1


async def keep(datasette: Datasette, bounds: Callable[[], Awaitable[Mapping[str, Bounds]]]) -> None:
    """Remove old answers, now and then every hour, as long as Datasette runs.

    Args:
        datasette: the Datasette instance, which supervises this as a background task.
        bounds: of each setting that keeps answers, by its path.
    """
    while True:
        try:
            await remove(datasette, await bounds())
        except DatasetteClosedError:
            return
        except sqlite3.Error as error:
            logger.error("Old answers cannot be removed from the response cache: %s", error)
        await asyncio.sleep(INTERVAL_S)


async def remove(datasette: Datasette, bounds: Mapping[str, Bounds]) -> None:
    """Remove what is too old or too much, in transactions of a bounded size.

    Raises:
        sqlite3.Error: the database cannot be written; earlier removals are committed.
    """
    database = datasette.get_internal_database()
    if not await database.execute_fn(cache_store.has_tables):
        return
    removed = cache_store.MAX_BATCH
    while removed:
        work = partial(cache_store.expire, bounds=bounds)
        removed = await database.execute_write_fn(work)
        await asyncio.sleep(PAUSE_S)

"""What happens when Datasette starts, when it stops, and when it asks for secrets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from . import instance
from .access.assignments import Assignments
from .access.call_policy import cache_policies
from .access.config_warnings import StartupCheck, warnings
from .access.secrets import registered_secrets
from .access.snapshot import SnapshotSource, settings_of, snapshot_of
from .calls.cache import Cache
from .calls.call import RunningCalls
from .errors import NewerDatabaseError
from .log import cache_upkeep, retention, search, usage_upkeep
from .log.cache_store import Bounds
from .log.evaluation_removal import Sweeper
from .log.queries import gives_reasons, has_tables
from .log.recorder import Recorder
from .log.schema import migrate
from .sanitize import message_of
from .tags.source import PluginNames
from .telemetry import spans as telemetry

if TYPE_CHECKING:
    import datasette_secrets
    from datasette.app import Datasette

    from .config.settings import EndpointSettings

logger = logging.getLogger("datasette_llm")

# A provider plugin that lists its models over a dead network must not delay the start for long.
CATALOG_WAIT_S = 5.0
SHUTDOWN_S = 10.0


async def start(datasette: Datasette) -> None:
    """Check the configuration, and build the first catalog of llm's models.

    Raises:
        ConfigError: the configuration cannot be used; Datasette does not start.
        NewerDatabaseError: a newer version of datasette-llm wrote the internal database.
    """
    settings = await settings_of(datasette)
    await asyncio.to_thread(instance.of(datasette, PluginNames).learn, datasette)
    if settings.log is not None:
        await _open_log(datasette)
        await _recall_reasons(datasette, settings.endpoints)
        _start_retention(datasette, settings.log.keep_days)
        datasette.add_background_task(search.keep_indexing, name="datasette-llm search")
    else:
        await _update_log(datasette)
    datasette.add_background_task(usage_upkeep.keep, name="datasette-llm usage")
    sweeper = instance.of(datasette, Sweeper)
    datasette.add_background_task(sweeper.keep, name="datasette-llm removed evaluations")
    if cache_policies(settings) or not datasette.get_internal_database().is_temp_disk:
        datasette.add_background_task(_keep_cache, name="datasette-llm cache")
    await _load_assignments(datasette)
    check = asyncio.create_task(_warn(datasette))
    check.add_done_callback(partial(_checked, instance.of(datasette, StartupCheck)))
    instance.of(datasette, StartupCheck).task = check
    await asyncio.wait([check], timeout=CATALOG_WAIT_S)


async def stop(datasette: Datasette) -> None:
    """Cancel the running calls, and wait for their contexts to clean up."""
    calls = [call for call in instance.of(datasette, RunningCalls) if call.runs_here()]
    for call in calls:
        call.cancel("Datasette is shutting down")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_S):
            for call in calls:
                await call.closed.wait()
    await instance.of(datasette, UnfinishedTasks).cancel()
    await Recorder.of(datasette).close()
    instance.of(datasette, Cache).close()
    await asyncio.to_thread(telemetry.flush)
    await instance.of(datasette, SnapshotSource).catalogs.connections.aclose()


class UnfinishedTasks:
    """Tasks that write something to the internal database at their end, also when cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Have the shutdown wait for the current task, as long as the block runs."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def cancel(self) -> None:
        """Cancel them, and wait until they have written what they have to write."""
        loop = asyncio.get_running_loop()
        own = asyncio.current_task()
        tasks = [each for each in self._tasks if each.get_loop() is loop and each is not own]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SHUTDOWN_S)


async def _open_log(datasette: Datasette) -> None:
    try:
        await Recorder.of(datasette).writer.prepare()
    except sqlite3.Error as error:
        # Do not stop the site: the writer retries.
        logger.error("The LLM call log cannot be opened: %s", error)


async def _recall_reasons(datasette: Datasette, endpoints: Iterable[EndpointSettings]) -> None:
    """Tell the reader of endpoints which models give finish reasons, as the call log knows."""
    database = datasette.get_internal_database()
    connections = instance.of(datasette, SnapshotSource).catalogs.connections
    for each in endpoints:
        try:
            known = await database.execute_fn(partial(gives_reasons, model_id=each.model))
        except sqlite3.Error as error:
            logger.warning("The LLM call log cannot be read: %s", error)
            return
        connections.learned(each.api_base, each.model_name or each.model).gives_reasons = known


async def _update_log(datasette: Datasette) -> None:
    """Nothing is recorded, but what an older version recorded is still shown."""
    database = datasette.get_internal_database()
    try:
        if await database.execute_fn(has_tables):
            await database.execute_write_fn(migrate)
    except (sqlite3.Error, NewerDatabaseError) as error:
        logger.error("The LLM call log cannot be brought up to date: %s", error)


async def _load_assignments(datasette: Datasette) -> None:
    assignments = instance.of(datasette, Assignments)
    await assignments.load(datasette)
    if not datasette.get_internal_database().is_temp_disk:
        datasette.add_background_task(assignments.follow, name="datasette-llm assignments")


def _start_retention(datasette: Datasette, keep_days: int | None) -> None:
    if keep_days is not None:
        writer = Recorder.of(datasette).writer
        work = partial(retention.keep, writer=writer, keep_days=keep_days)
        datasette.add_background_task(work, name="datasette-llm retention")


async def _keep_cache(datasette: Datasette) -> None:
    async def bounds() -> dict[str, Bounds]:
        policies = cache_policies(await settings_of(datasette))
        return {path: Bounds(each.keep_days, each.max_bytes) for path, each in policies.items()}

    await cache_upkeep.keep(datasette, bounds)


async def secrets(datasette: Datasette) -> list[datasette_secrets.Secret]:
    """The secrets that models may use, for datasette-secrets to list."""
    return await registered_secrets(datasette)


async def _warn(datasette: Datasette) -> None:
    snapshot = await snapshot_of(datasette)
    found = warnings(snapshot.settings, snapshot.catalog)
    # The catalog's own are logged where they are found, and may be over with the next catalog.
    new = tuple(warning for warning in found if warning not in snapshot.catalog.problems)
    instance.of(datasette, StartupCheck).warnings = new
    for warning in new:
        logger.warning("%s", warning)


def _checked(check: StartupCheck, task: asyncio.Task[None]) -> None:
    """Tell of a check that failed; the site has started, or may start without it."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        why = f"{type(error).__name__}: {message_of(error)}"
        check.failure = f"The check of the configuration failed: {why}"
        logger.error("%s", check.failure, exc_info=error)

"""The catalog of the models that llm knows, built outside the event loop.

llm creates every model anew for each listing and reads files for it, and some of its plugins
ask their provider over the network. So a thread builds a catalog, which is used until one of
these is true:

* an llm plugin was registered or unregistered, or `LLM_USER_PATH` or the configured endpoints
  have changed: checked in memory at each use; the caller waits for the new catalog;
* a file in llm's folder has changed: checked in a thread, once a second at most; the caller waits
  for the new catalog;
* the catalog is a minute old: a new one is built in the background;
* an id is not in it: a new one is built before the id is reported as unknown, but for all such ids
  together only every two seconds; the callers wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import llm.plugins

from ..config.settings import EndpointSettings
from ..errors import ModelNotFoundError
from .connections import Connections
from .registry import (
    AsyncLLM,
    FileStamps,
    Registered,
    endpoint_models,
    file_stamps,
    load_plugins,
    read_aliases,
    registered_models,
    user_folder,
)
from .sync_adapter import ThreadedModel
from .threads import in_thread_of_its_own

logger = logging.getLogger(__name__)

_loading = threading.Lock()

MAX_AGE_S = 60.0
FILE_CHECK_S = 1.0
# Between two catalogs that are built for unknown ids, which anybody may ask for.
LOOK_AGAIN_S = 2.0
# How long the refusal of an unknown id waits for a plugin that hangs while it lists its models.
LOOK_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that llm knows.

    Attributes:
        model: llm's own async model object; a `ThreadedModel` where llm has only a sync one.
        aliases: other names for it.
    """

    model: AsyncLLM
    aliases: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """The id, which no two entries of a catalog share."""
        return self.model.model_id


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that llm knows, as of one moment.

    Attributes:
        entries: every model by its id, in llm's order.
        names: the model id for every id and alias.
        problems: what went wrong while listing, one sentence each.
        replaced: names of installed models that an endpoint has taken.
    """

    entries: Mapping[str, Entry]
    names: Mapping[str, str]
    problems: tuple[str, ...] = ()
    replaced: frozenset[str] = frozenset()

    def canonical(self, name: str) -> str:
        """The model id for an id or alias; an unknown name is returned as it is."""
        return self.names.get(name, name)

    def canonical_set(self, names: Iterable[str]) -> frozenset[str]:
        """The model ids for some ids and aliases."""
        return frozenset(map(self.canonical, names))

    def get(self, name: str) -> Entry:
        """The model with this id or alias.

        Raises:
            ModelNotFoundError: there is none; the message explains what to do, and says what
                went wrong while listing.
        """
        try:
            return self.entries[self.canonical(name)]
        except KeyError:
            reasons = [self.why_unknown(name), *self.problems]
            raise ModelNotFoundError(". ".join(reasons)) from None

    def why_unknown(self, name: str) -> str:
        """The sentence that explains why a name is not in the catalog."""
        return (
            f"Unknown model: {name!r}. Install the llm plugin that provides it with "
            "'datasette install', or see the known models with 'llm models'"
        )


@dataclass(slots=True)
class CatalogSource:
    """Keeps a Datasette instance's catalog up to date.

    Attributes:
        endpoints: the configured endpoints, whose models come after llm's own.
        connections: those of the models, which are kept over catalogs.
    """

    endpoints: tuple[EndpointSettings, ...] = ()
    connections: Connections = field(default_factory=Connections, repr=False)
    _catalog: Catalog | None = None
    _origin: _Origin | None = None
    _stamps: FileStamps = ()
    _builds: int = 0  # that have begun
    _number: int = 0  # of the build that the catalog comes from
    _taken_at: float = 0.0
    _checked_at: float = 0.0
    _looked_at: float = -math.inf
    _building: asyncio.Task[None] | None = field(default=None, repr=False)
    _looking: asyncio.Task[None] | None = field(default=None, repr=False)

    async def current(self) -> Catalog:
        """The current catalog."""
        if self._catalog is None or self._origin != _Origin.now(self.endpoints):
            # Again if a plugin was registered or unregistered meanwhile.
            while self._catalog is None or self._origin != _Origin.now(self.endpoints):
                await self.refresh()
        else:
            now = time.monotonic()
            if now - self._checked_at > FILE_CHECK_S:
                self._checked_at = now
                # Again if the files changed meanwhile.
                while await asyncio.to_thread(file_stamps) != self._stamps:
                    await self.refresh()
            if now - self._taken_at > MAX_AGE_S:
                self._start_refresh()
        assert self._catalog is not None
        return self._catalog

    async def find(self, name: str) -> tuple[Catalog, Entry]:
        """The catalog, and the model with this id or alias in it.

        Raises:
            ModelNotFoundError: there is no such model, also after llm was asked again.
        """
        builds_before = self._builds
        catalog = await self.current()
        if catalog.canonical(name) in catalog.entries:
            return catalog, catalog.get(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_LIMIT_S):
                while catalog.canonical(name) not in catalog.entries:
                    if self._number > builds_before:
                        break
                    await self._look_again()
                    catalog = await self.current()
        return catalog, catalog.get(name)

    async def refresh(self) -> None:
        """Build a new catalog, or wait for the one that is being built."""
        # Shielded: several callers may wait for it, and one of them be cancelled.
        await asyncio.shield(self._start_refresh())

    async def _look_again(self) -> None:
        """Build a new catalog for unknown ids, when it is time, or wait for the one to come."""
        if not _runs_here(self._looking):
            self._looking = asyncio.create_task(self._refresh_in_time())
        await asyncio.shield(self._looking)

    async def _refresh_in_time(self) -> None:
        await asyncio.sleep(self._looked_at + LOOK_AGAIN_S - time.monotonic())
        try:
            await self.refresh()
        finally:
            self._looked_at = time.monotonic()

    def _start_refresh(self) -> asyncio.Task[None]:
        if not _runs_here(self._building):
            self._building = asyncio.create_task(self._take())
        return self._building

    async def _take(self) -> None:
        self._builds += 1
        number = self._builds
        self._catalog, self._origin, self._stamps = await in_thread_of_its_own(
            partial(_build, self.endpoints, self._catalog or Catalog({}, {}), self.connections)
        )
        self._number = number
        self._taken_at = self._checked_at = time.monotonic()


def _runs_here(task: asyncio.Task[None] | None) -> TypeGuard[asyncio.Task[None]]:
    """Whether a task is running in this event loop."""
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a catalog depends on, apart from files; if it changes, the catalog is rebuilt."""

    # The plugins themselves, not their ids, which Python may reuse.
    plugins: frozenset[Any]
    user_path: str | None
    endpoints: tuple[EndpointSettings, ...]

    @classmethod
    def now(cls, endpoints: tuple[EndpointSettings, ...]) -> _Origin:
        plugins = frozenset(llm.plugins.pm.get_plugins())
        return cls(plugins, os.environ.get("LLM_USER_PATH"), endpoints)


def _build(
    endpoints: tuple[EndpointSettings, ...], before: Catalog, connections: Connections
) -> tuple[Catalog, _Origin, FileStamps]:
    # Locked, since llm sets its "loaded" flag first, so that a second thread would find an
    # empty registry.
    with _loading:
        problems = load_plugins()
    # Both before the models, so that a change in the meantime is noticed.
    stamps, origin = file_stamps(), _Origin.now(endpoints)
    user_folder(problems)
    registered = registered_models(problems, connections)
    registered = [_reused(item, before.entries) for item in registered]
    served = endpoint_models(endpoints, connections, problems)
    catalog = _catalog(registered, served, read_aliases(problems), problems)
    for problem in catalog.problems:
        if problem not in before.problems:
            logger.warning("%s", problem)
    return catalog, origin, stamps


def _reused(item: Registered, before: Mapping[str, Entry]) -> Registered:
    """The model of the previous catalog if it is the same: its weights may be loaded."""
    known = before.get(item.model.model_id)
    if known is None or not isinstance(item.async_model, ThreadedModel):
        return item
    model: Any = known.model if item.async_model.same_as(known.model) else item.async_model
    return Registered(item.model, model, item.aliases)


def _catalog(
    installed: Sequence[Registered],
    endpoints: Sequence[Registered],
    extra_aliases: Mapping[str, list[str]],
    problems: list[str],
) -> Catalog:
    entries: dict[str, Entry] = {}
    names: dict[str, str] = {}
    replaced: set[str] = set()
    for number, item in enumerate([*installed, *endpoints]):
        model_id, aliases = _names(item, extra_aliases)
        assert item.async_model is not None  # both sources ensure it
        if number >= len(installed):
            replaced.update({model_id, *aliases} & names.keys())
        names.update(dict.fromkeys([*aliases, model_id], model_id))
        entries[model_id] = Entry(item.async_model, tuple(aliases))
    for model_id in [name for name in entries if names[name] != name]:
        # As in llm, which resolves this name to the other model too.
        del entries[model_id]
        problems.append(
            f"Model {model_id!r} cannot be used: its id is also an alias of {names[model_id]!r}"
        )
    return Catalog(entries, names, tuple(problems), frozenset(replaced))


def _names(item: Registered, extra_aliases: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The id of a registered model, and its other names."""
    model, async_model = item.model, item.async_model
    model_id = (async_model or model).model_id
    aliases = [*item.aliases, *extra_aliases.get(model_id, ())]
    if model is not None and model.model_id != model_id:
        aliases.append(model.model_id)  # the name that llm itself uses
    return model_id, aliases

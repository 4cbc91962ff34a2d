"""Which models llm knows: a snapshot, taken off the event loop.

llm builds every model anew whenever it is asked, reads files for it, and some of its plugins
ask their provider over the network. So a thread takes a snapshot, which is used until one of
these is true:

* an llm plugin was registered or unregistered, or `LLM_USER_PATH` or the endpoints of the
  configuration were changed: seen at once, in memory, at each use; the user waits for the new
  snapshot;
* a file in llm's folder changed: looked at, in a thread, once a second at most, and always
  before an id is called unknown; the user waits for the new snapshot;
* the snapshot is a minute old: a new one is taken in the background.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import llm
import llm.plugins

from ..config.settings import EndpointSettings
from ..errors import ModelNotFoundError
from .registry import (
    AsyncLLM,
    FileStamps,
    Registered,
    endpoint_models,
    file_stamps,
    read_aliases,
    registered_models,
    without_garbage_collection,
)
from .sync_adapter import ThreadedModel
from .threads import in_thread_of_its_own

logger = logging.getLogger(__name__)

_loading = threading.Lock()

MAX_AGE_S = 60.0
FILE_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that llm knows.

    Attributes:
        model: llm's own async model object; a `ThreadedModel` where llm has none.
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
    """The models that llm knew at one moment.

    Attributes:
        entries: every model by its id, in llm's order.
        names: the model id for every id and alias.
        problems: what went wrong while listing, one sentence each.
        replaced: names of installed models that mean a model of an endpoint instead.
    """

    entries: Mapping[str, Entry]
    names: Mapping[str, str]
    problems: tuple[str, ...] = ()
    replaced: frozenset[str] = frozenset()

    def canonical(self, name: str) -> str:
        """The model id for an id or alias; a name that nobody knows stands for itself."""
        return self.names.get(name, name)

    def canonical_set(self, names: Iterable[str]) -> frozenset[str]:
        """The model ids for some ids and aliases."""
        return frozenset(map(self.canonical, names))

    def get(self, name: str) -> Entry:
        """The model with this id or alias.

        Raises:
            ModelNotFoundError: there is none; the message says why and what to do.
        """
        try:
            return self.entries[self.canonical(name)]
        except KeyError:
            raise ModelNotFoundError(self.why_unknown(name)) from None

    def why_unknown(self, name: str) -> str:
        """The sentence that explains why a name is not in the catalog."""
        return (
            f"Unknown model: {name!r}. Install the llm plugin that provides it with "
            "'datasette install', or see the known models with 'llm models'"
        )


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a snapshot was taken from; another origin calls for another snapshot."""

    # The plugins themselves, not their ids: as long as we hold one, no other has its id.
    plugins: frozenset[Any]
    user_path: str | None
    endpoints: tuple[EndpointSettings, ...]

    @classmethod
    def now(cls, endpoints: tuple[EndpointSettings, ...]) -> _Origin:
        plugins = frozenset(llm.plugins.pm.get_plugins())
        return cls(plugins, os.environ.get("LLM_USER_PATH"), endpoints)


@dataclass(slots=True)
class CatalogSource:
    """Keeps a Datasette instance's snapshot fresh.

    Attributes:
        endpoints: those of the configuration, whose models come after llm's own.
    """

    endpoints: tuple[EndpointSettings, ...] = ()
    _catalog: Catalog | None = None
    _origin: _Origin | None = None
    _stamps: FileStamps = ()
    _taken_at: float = 0.0
    _checked_at: float = 0.0
    _refresh: asyncio.Task[None] | None = field(default=None, repr=False)

    async def current(self, *, check_files: bool = False) -> Catalog:
        """The catalog as of now.

        Args:
            check_files: look at llm's files even if they were looked at a moment ago.
        """
        if self._catalog is None or self._origin != _Origin.now(self.endpoints):
            # Again if a plugin came or went while the snapshot was being taken.
            while self._catalog is None or self._origin != _Origin.now(self.endpoints):
                await self._refreshed()
        else:
            now = time.monotonic()
            if check_files or now - self._checked_at > FILE_CHECK_S:
                self._checked_at = now
                # Again if the files changed while a snapshot was being taken.
                while await asyncio.to_thread(file_stamps) != self._stamps:
                    await self._refreshed()
            if now - self._taken_at > MAX_AGE_S:
                self._start_refresh()
        assert self._catalog is not None
        return self._catalog

    async def find(self, name: str) -> tuple[Catalog, Entry]:
        """The catalog, and the model with this id or alias in it.

        Raises:
            ModelNotFoundError: there is no such model, also after another look at the files.
        """
        catalog = await self.current()
        if catalog.canonical(name) not in catalog.entries:
            catalog = await self.current(check_files=True)
        return catalog, catalog.get(name)

    async def _refreshed(self) -> None:
        # Shielded: one of several waiting users may be cancelled.
        await asyncio.shield(self._start_refresh())

    def _start_refresh(self) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        running = self._refresh
        if running is None or running.done() or running.get_loop() is not loop:
            running = self._refresh = loop.create_task(self._take())
        return running

    async def _take(self) -> None:
        self._catalog, self._origin, self._stamps = await in_thread_of_its_own(
            partial(_snapshot, self.endpoints, self._catalog.entries if self._catalog else {})
        )
        self._taken_at = self._checked_at = time.monotonic()


def _snapshot(
    endpoints: tuple[EndpointSettings, ...], before: Mapping[str, Entry]
) -> tuple[Catalog, _Origin, FileStamps]:
    # llm's own marks itself as loaded before it has loaded anything, so that a second thread
    # would find an empty registry.
    with _loading, without_garbage_collection():
        llm.plugins.load_plugins()
    # Both before the models, so that a change in the meantime is seen as one.
    stamps, origin = file_stamps(), _Origin.now(endpoints)
    problems: list[str] = []
    registered = registered_models(problems)
    registered = [_kept(item, before) for item in registered]
    catalog = _catalog(registered, endpoint_models(endpoints), read_aliases(problems), problems)
    for problem in catalog.problems:
        logger.warning("%s", problem)
    return catalog, origin, stamps


def _kept(item: Registered, before: Mapping[str, Entry]) -> Registered:
    """The model of the snapshot before, where it was registered alike: it may be loaded."""
    known = before.get(item.model.model_id)
    if known is None or not isinstance(item.async_model, ThreadedModel):
        return item
    kept: Any = known.model if item.async_model.same_as(known.model) else item.async_model
    return Registered(item.model, kept, item.aliases)


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
        assert item.async_model is not None  # both sources see to it
        if number >= len(installed):
            replaced.update({model_id, *aliases} & names.keys())
        names.update(dict.fromkeys([*aliases, model_id], model_id))
        entries[model_id] = Entry(item.async_model, tuple(aliases))
    for model_id in [name for name in entries if names[name] != name]:
        # As in llm, which gives the other model for this name too.
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
        aliases.append(model.model_id)  # the name that llm itself goes by
    return model_id, aliases

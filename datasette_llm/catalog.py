"""Which models llm knows: a snapshot, taken off the event loop.

llm builds every model anew whenever it is asked, reads files for it, and some of its plugins
ask their provider over the network. So a thread takes a snapshot, which is used until one of
these is true:

* an llm plugin was registered or unregistered, or `LLM_USER_PATH` was changed: seen at once,
  in memory, at each use; the user waits for the new snapshot;
* a file in llm's folder changed: looked at, in a thread, once a second at most, and always
  before an id is called unknown; the user waits for the new snapshot;
* the snapshot is a minute old: a new one is taken in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llm
import llm.plugins

from .errors import ModelNotFoundError
from .threads import in_thread_of_its_own

logger = logging.getLogger(__name__)

_loading = threading.Lock()

AsyncLLM = llm.AsyncModel | llm.AsyncKeyModel

MAX_AGE_S = 60.0
FILE_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that llm knows.

    Attributes:
        model: llm's own async model object.
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
        entries: every async model by its id, in llm's order.
        names: the model id for every id and alias.
        sync_only: names of models that have no async version.
        problems: what went wrong while listing, one sentence each.
    """

    entries: Mapping[str, Entry]
    names: Mapping[str, str]
    sync_only: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

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
        if name in self.sync_only:
            return f"Model {name!r} has no async version, which Datasette plugins need"
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

    @classmethod
    def now(cls) -> _Origin:
        return cls(frozenset(llm.plugins.pm.get_plugins()), os.environ.get("LLM_USER_PATH"))


FileStamps = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class CatalogSource:
    """Keeps a Datasette instance's snapshot fresh."""

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
        if self._catalog is None or self._origin != _Origin.now():
            # Again if a plugin came or went while the snapshot was being taken.
            while self._catalog is None or self._origin != _Origin.now():
                await self._refreshed()
        else:
            now = time.monotonic()
            if check_files or now - self._checked_at > FILE_CHECK_S:
                self._checked_at = now
                # Again if the files changed while a snapshot was being taken.
                while await asyncio.to_thread(_file_stamps) != self._stamps:
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
        self._catalog, self._origin, self._stamps = await in_thread_of_its_own(_snapshot)
        self._taken_at = self._checked_at = time.monotonic()


def _snapshot() -> tuple[Catalog, _Origin, FileStamps]:
    # llm's own marks itself as loaded before it has loaded anything, so that a second thread
    # would find an empty registry.
    with _loading, _no_garbage_collection():
        llm.plugins.load_plugins()
    # Both before the models, so that a change in the meantime is seen as one.
    stamps, origin = _file_stamps(), _Origin.now()
    problems: list[str] = []
    registered = _registered_models(problems)
    extra_aliases = _read_aliases(problems)
    entries: dict[str, Entry] = {}
    names: dict[str, str] = {}
    sync_only: set[str] = set()
    for item in registered:
        model, async_model = item.model, item.async_model
        model_id = (async_model or model).model_id
        aliases = [*item.aliases, *extra_aliases.get(model_id, ())]
        if model is not None and model.model_id != model_id:
            aliases.append(model.model_id)  # the name that llm itself goes by
        if async_model is None:
            sync_only.update([model_id, *aliases])
            continue
        names.update(dict.fromkeys([*aliases, model_id], model_id))
        entries[model_id] = Entry(async_model, tuple(aliases))
    for model_id in [name for name in entries if names[name] != name]:
        # As in llm, which gives the other model for this name too.
        del entries[model_id]
        problems.append(
            f"Model {model_id!r} cannot be used: its id is also an alias of {names[model_id]!r}"
        )
    for problem in problems:
        logger.warning("%s", problem)
    return Catalog(entries, names, frozenset(sync_only), tuple(problems)), origin, stamps


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Importing llm's plugins brings in so much that a full collection falls due.

    It would hold the interpreter for longer than the event loop may stall.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _registered_models(problems: list[str]) -> list[llm.models.ModelWithAliases]:
    """What llm.get_models_with_aliases() lists, but one plugin that fails spoils only its own."""
    registered: list[llm.models.ModelWithAliases] = []

    def register(model: Any, async_model: Any = None, aliases: Any = None) -> None:
        is_async = isinstance(async_model, AsyncLLM)
        if not hasattr(model, "model_id") or not (is_async or async_model is None):
            raise TypeError(f"it registered {model!r} and {async_model!r}, which are no models")
        names: Any = list(aliases or ())  # a list, as llm itself gives, whatever its type says
        ids = [item.model_id for item in (model, async_model) if item is not None]
        if not all(isinstance(name, str) for name in [*ids, *names]):
            raise TypeError(f"it registered {model!r} with an id or alias that is no text")
        registered.append(llm.models.ModelWithAliases(model, async_model, names))

    arguments = {"register": register, "model_aliases": registered}
    for implementation in reversed(llm.plugins.pm.hook.register_models.get_hookimpls()):
        try:
            implementation.function(*[arguments[name] for name in implementation.argnames])
        except (Exception, SystemExit) as error:
            problems.append(
                f"llm plugin {implementation.plugin_name!r} failed while listing its models: "
                f"{type(error).__name__}: {error}"
            )
    return registered


def _read_aliases(problems: list[str]) -> dict[str, list[str]]:
    """The aliases that a person set with `llm aliases set`, by model id."""
    path = llm.user_dir() / "aliases.json"
    by_model: dict[str, list[str]] = {}
    try:
        if path.exists():
            for alias, model_id in json.loads(path.read_text("utf-8")).items():
                by_model.setdefault(model_id, []).append(alias)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        problems.append(f"llm's aliases.json cannot be read, so its aliases are unknown: {error}")
        return {}
    return by_model


def _file_stamps() -> FileStamps:
    """Names, times and sizes of the files that models may come from."""
    folder: Path = llm.user_dir()
    stamps = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml")]):
        try:
            stat = path.stat()
        except OSError:
            continue
        stamps.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)

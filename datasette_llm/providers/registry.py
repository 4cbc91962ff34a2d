"""The sources of a catalog: llm's plugins and files, and the configured endpoints."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llm
import llm.plugins

from ..config.settings import EndpointSettings
from ..redaction import without_keys
from ..sanitize import message_of
from .connections import Connections
from .openai_clients import take_over
from .sync_adapter import MIRRORED_ATTRIBUTES, SyncLLM, ThreadedModel

AsyncLLM = llm.AsyncModel | llm.AsyncKeyModel
Registered = llm.models.ModelWithAliases
FileStamps = tuple[tuple[str, int, int], ...]

# llm's plugins are those of the process, and so are those that it could not load.
_unloadable: list[str] = []


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn off garbage collection, for importing llm's plugins.

    The import creates so many objects that a full collection would start, which holds the
    interpreter for longer than the event loop may stall.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_plugins() -> list[str]:
    """Load llm's plugins.

    llm stops at the first that cannot be imported, and takes itself for loaded then. The others
    are loaded here.

    Returns:
        One sentence for each plugin that cannot be loaded, now or when llm was loaded.
    """
    with without_garbage_collection():
        try:
            llm.plugins.load_plugins()
        except BaseException as error:  # a plugin's import may raise anything, in this thread
            _unloadable.append(f"An llm plugin cannot be loaded: {_described(error)}")
        # llm loads its own plugins last.
        if not llm.plugins.pm.has_plugin(llm.plugins.DEFAULT_PLUGINS[-1]):
            _unloadable[:] = [*_load_each()] or _unloadable
    return list(_unloadable)


def registered_models(problems: list[str], connections: Connections) -> list[Registered]:
    """The models of llm.get_models_with_aliases(), each with an async model.

    If a plugin fails, only its own models are missing, and `problems` gets a sentence.
    """
    registered: list[Registered] = []

    def register(model: Any, async_model: Any = None, aliases: Any = None) -> None:
        used = model if async_model is None else async_model
        if async_model is None and isinstance(model, SyncLLM):
            async_model = ThreadedModel(model)
        if not hasattr(model, "model_id") or not isinstance(async_model, AsyncLLM):
            raise TypeError(f"it registered {model!r} and {async_model!r}, which are no models")
        names: Any = list(aliases or ())  # a list, as in llm itself; its type says otherwise
        ids = [model.model_id, async_model.model_id]
        if not all(isinstance(name, str) for name in [*ids, *names]):
            raise TypeError(f"it registered {model!r} with an id or alias that is no text")
        for name in MIRRORED_ATTRIBUTES:
            getattr(async_model, name)  # a property that raises would break every listing
        take_over(used, connections)
        both: Any = async_model  # llm's own type omits models with keys
        registered.append(Registered(model, both, names))

    arguments = {"register": register, "model_aliases": registered}
    for implementation in reversed(llm.plugins.pm.hook.register_models.get_hookimpls()):
        try:
            _refuse_unrun(
                implementation.function(*[arguments[name] for name in implementation.argnames])
            )
        except BaseException as error:  # also a panic of a library in Rust
            problems.append(
                f"llm plugin {implementation.plugin_name!r} failed while listing its models: "
                f"{_described(error)}"
            )
    return registered


def endpoint_models(
    endpoints: Sequence[EndpointSettings], connections: Connections, problems: list[str]
) -> list[Registered]:
    """The models of the endpoints; `problems` gets a sentence for each that cannot be used."""
    if not endpoints:
        return []
    # Here, in the thread of the catalog: it imports openai, which takes a second.
    from .openai_compatible import models_of  # noqa: PLC0415

    return models_of(endpoints, connections, problems)


def read_aliases(problems: list[str]) -> dict[str, list[str]]:
    """The aliases that were set with `llm aliases set`, by model id."""
    by_model: dict[str, list[str]] = {}
    folder = user_folder()
    if folder is None:
        return by_model
    path = folder / "aliases.json"
    try:
        if path.exists():
            for alias, model_id in json.loads(path.read_text("utf-8")).items():
                by_model.setdefault(model_id, []).append(alias)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        problems.append(f"llm's aliases.json cannot be read, so its aliases are unknown: {error}")
        return {}
    return by_model


def file_stamps() -> FileStamps:
    """Names, times and sizes of the files that models may come from."""
    folder = user_folder()
    if folder is None:
        return ()
    stamps = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml")]):
        try:
            stat = path.stat()
        except OSError:
            continue
        stamps.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)


def user_folder(problems: list[str] | None = None) -> Path | None:
    """llm's own folder; None if there is none and it cannot be made.

    Args:
        problems: gets a sentence then.
    """
    try:
        folder: Path = llm.user_dir()
    except OSError as error:
        if problems is not None:
            problems.append(
                f"llm's folder cannot be made, so its keys, aliases and extra models are unknown: "
                f"{_described(error)}. Set LLM_USER_PATH to a folder that can be written"
            )
        return None
    return folder


def _refuse_unrun(answer: object) -> None:
    """Refuse what an async function or a generator returns, which nothing runs."""
    if inspect.iscoroutine(answer) or inspect.isgenerator(answer):
        answer.close()
        raise TypeError("its register_models is async or has a yield, and llm does not run it")


def _load_each() -> Iterator[str]:
    """Load every plugin that is not loaded yet; one sentence for each that cannot be."""
    for name in _entry_points():
        try:
            llm.plugins.pm.load_setuptools_entrypoints("llm", name)
        except BaseException as error:
            yield f"llm plugin {name!r} cannot be loaded: {_described(error)}"
    for module in llm.plugins.DEFAULT_PLUGINS:
        try:
            if not llm.plugins.pm.has_plugin(module):
                llm.plugins.pm.register(importlib.import_module(module), module)
        except BaseException as error:
            yield f"llm plugin {module!r} cannot be loaded: {_described(error)}"


def _entry_points() -> list[str]:
    """The names of the installed plugins that llm would load."""
    chosen = llm.plugins.LLM_LOAD_PLUGINS
    if chosen is None and hasattr(sys, "_called_from_test"):
        return []
    packages = None if chosen is None else {_canonical(each) for each in chosen.split(",")}
    return [
        point.name
        for point in importlib.metadata.entry_points(group="llm")
        if packages is None or (point.dist and _canonical(point.dist.name) in packages)
    ]


def _canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name.strip()).lower()


def _described(error: BaseException) -> str:
    """The type and message of a plugin's error, without any key that it may have read."""
    keys = [value for name, value in os.environ.items() if "KEY" in name or "TOKEN" in name]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        keys += map(str, llm.load_keys().values())
    return without_keys(f"{type(error).__name__}: {message_of(error)}", keys)

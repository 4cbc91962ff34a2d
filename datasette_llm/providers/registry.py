"""The sources of a catalog: llm's plugins and files, and the configured endpoints."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llm
import llm.plugins

from ..config.settings import EndpointSettings
from .connections import Connections
from .openai_clients import take_over
from .sync_adapter import SyncLLM, ThreadedModel

AsyncLLM = llm.AsyncModel | llm.AsyncKeyModel
Registered = llm.models.ModelWithAliases
FileStamps = tuple[tuple[str, int, int], ...]


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
        take_over(used, connections)
        both: Any = async_model  # llm's own type omits models with keys
        registered.append(Registered(model, both, names))

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


def file_stamps() -> FileStamps:
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

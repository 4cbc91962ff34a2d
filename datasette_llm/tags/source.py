"""What caused a call, as tags of our own: the path of a request, and a plugin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .. import instance
from .values import MAX_VALUE_CHARS, NO_TAGS, Tags, current

if TYPE_CHECKING:
    from datasette.app import Datasette

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

PATH = "source.path"
PLUGIN = "source.plugin"


def with_path(app: ASGIApp) -> ASGIApp:
    """An ASGI application in whose requests every call has the path as a tag."""

    async def tagged_app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        before = current.get()
        current.set({**before, PATH: scope["path"][:MAX_VALUE_CHARS]})
        try:
            await app(scope, receive, send)
        finally:
            # Not by a token, which one that its event loop left behind could not use.
            current.set(before)

    return tagged_app


def call_tags(datasette: Datasette, module: str | None, *layers: Tags) -> Tags:
    """The tags of a call that begins now.

    Args:
        datasette: the Datasette instance.
        module: the name of the Python module that asked for the model, or None.
        layers: what was given for it, the more specific later.

    Returns:
        The tags of the blocks of code that it begins in, and then the layers', of which the
        last one wins. If a request has caused it, its plugin is a tag, too.
    """
    tags = {k: v for layer in (current.get(), *layers) for k, v in layer.items()}
    if not tags:
        return NO_TAGS
    if PATH not in tags or module is None:
        return tags
    plugin = instance.of(datasette, PluginNames).of(module)
    return tags if plugin is None else {**tags, PLUGIN: plugin[:MAX_VALUE_CHARS]}


class PluginNames:
    """The plugins that Python modules belong to."""

    def __init__(self) -> None:
        self._by_package: dict[str, str] = {}

    def learn(self, datasette: Datasette) -> None:
        """Look up all plugins; it reads files, so run it in a thread.

        Args:
            datasette: the Datasette instance.
        """
        distributions = {id(plugin): each for plugin, each in datasette.pm.list_plugin_distinfo()}
        for _, plugin in datasette.pm.list_name_plugin():
            name: str = getattr(plugin, "__name__", "")
            found = distributions.get(id(plugin))
            shown = name if found is None else found.name or found.project_name
            if name:
                self._by_package.setdefault(_package(name), shown)

    def of(self, module: str) -> str | None:
        """The name of a plugin as Datasette shows it at `/-/plugins`; None outside of plugins.

        Args:
            module: the name of a Python module.
        """
        return self._by_package.get(_package(module))


def _package(module: str) -> str:
    return module.partition(".")[0]

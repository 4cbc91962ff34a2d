"""The OpenAI clients that llm creates, one for each request.

They are given kept connections where that can be done. The others are closed after their
request, which llm leaves to the garbage collector. The retries of all of them are turned off.
"""

from __future__ import annotations

import inspect
import os
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connections import Connections

_MODULE = "llm.default_plugins.openai_models"
_OPENAI = "https://api.openai.com/v1"

# The clients of the running request; None outside of one.
_made: ContextVar[list[Any] | None] = ContextVar("datasette_llm_clients", default=None)


class Clients:
    """Closes the clients created inside it: `async with` in a task, `with` in a thread."""

    __slots__ = ("_clients",)

    def __enter__(self) -> None:
        self._clients: list[Any] = []
        # Not reset on exit: the next request of the task or thread sets its own list.
        _made.set(self._clients)

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            if not inspect.iscoroutinefunction(client.close):
                with suppress(Exception):  # it must not hide the provider's error
                    client.close()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            if inspect.iscoroutinefunction(client.close):
                with suppress(Exception):  # as above
                    await client.close()


def take_over(model: Any, connections: Connections) -> None:
    """Take over the clients of a model that is one of llm's OpenAI models, or a subclass.

    Called in the thread of the catalog, since it reads files.

    Args:
        model: any model.
        connections: where its requests take their connections from.
    """
    kinds = {kind.__module__ for kind in type(model).__mro__}
    if _MODULE not in kinds or "get_client" in vars(model):
        return
    # Here, since they import openai, which takes a second; llm has imported it for this model.
    from .openai_compatible import serve_chats  # noqa: PLC0415

    model.get_client = partial(_client, model, model.get_client, connections)
    serve_chats(model, connections)


def _client(
    model: Any, get_client: Any, connections: Connections, key: str | None, *, async_: bool = False
) -> Any:
    """The client for a request; with kept connections if llm's own code would make it."""
    own = type(model).get_client.__module__ == _MODULE
    unusual = model.api_type or model.api_version or model.api_engine
    if async_ and own and not unusual and not os.environ.get("LLM_OPENAI_SHOW_RESPONSES"):
        return _pooled_client(model, connections, key)
    client = get_client(key, async_=async_)
    # Its retries would multiply ours, and each attempt has its own row in the call log.
    client.max_retries = 0
    clients = _made.get()
    if clients is not None:
        clients.append(client)
    return client


def _pooled_client(model: Any, connections: Connections, key: str | None) -> Any:
    """What llm's `get_client()` makes, with kept connections."""
    from llm.default_plugins.openai_models import AsyncResponses  # noqa: PLC0415  # as above

    from .connections import Server  # noqa: PLC0415  # as above
    from .openai_compatible import client_for  # noqa: PLC0415  # as above

    address = model.api_base or os.environ.get("OPENAI_BASE_URL") or _OPENAI
    # A key that is there is used as it is: llm would look for a stored one of this name.
    own_key = (key or model.get_key(None)) if model.needs_key else "DUMMY_KEY"
    client = client_for(connections, Server(address), key=own_key, headers=model.headers)
    if isinstance(model, AsyncResponses):
        from .responses_api import watch  # noqa: PLC0415  # as above
        from .server_errors import Place  # noqa: PLC0415  # as above

        watch(client, Place.of(client.base_url, is_endpoint=bool(model.api_base)))
    return client

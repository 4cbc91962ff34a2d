"""The OpenAI clients that llm creates, one for each request.

llm leaves closing them to the garbage collector, and lets them retry by themselves. Here they
are closed after the request, and their retries are turned off.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

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


def take_over(client: Any) -> Any:
    """Turn off a client's retries, and have it closed at the end of its request.

    Its retries would multiply ours, and each attempt has its own row in the call log.

    Args:
        client: a client of the `openai` package.

    Returns:
        The same client.
    """
    client.max_retries = 0
    clients = _made.get()
    if clients is not None:
        clients.append(client)
    return client

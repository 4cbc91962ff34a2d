"""The clients that llm makes for its OpenAI models: one for each request.

llm leaves them, with their connections, to the garbage collector, and has them try again by
themselves. Both is done here instead.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

# Those that were made for the request under way; None outside of one.
_made: ContextVar[list[Any] | None] = ContextVar("datasette_llm_clients", default=None)


class Clients:
    """Closes what is made inside of it: `async with` in a task, `with` in a thread."""

    __slots__ = ("_clients",)

    def __enter__(self) -> None:
        self._clients: list[Any] = []
        # Not reset later: the next request of the task or thread has a list of its own.
        _made.set(self._clients)

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            if not inspect.iscoroutinefunction(client.close):
                with suppress(Exception):  # it must not hide what the provider raised
                    client.close()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            if inspect.iscoroutinefunction(client.close):
                with suppress(Exception):  # as above
                    await client.close()


def taken_over(client: Any) -> Any:
    """A client that llm has made, whose retries and whose end are our business.

    What it retries would be multiplied by what we do, and each attempt has a row of its own.

    Args:
        client: a client of the `openai` package.
    """
    client.max_retries = 0
    clients = _made.get()
    if clients is not None:
        clients.append(client)
    return client

"""Work that ends when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from datasette import Response

from ..web import client_disconnected

if TYPE_CHECKING:
    from datasette.utils.asgi import Request

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client went away, so that the response is of no use."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run the work as long as the client is connected; cancel it when the client goes away.

    Raises:
        ClientGoneError: the client went away.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(client_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        disconnected = not task.done()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if disconnected:
        raise ClientGoneError
    return task.result()


def client_gone() -> Response:
    """The response that goes nowhere."""
    return Response.text("", status=499)  # nginx's status for it in access logs

"""Work that ends when the client goes away, and its progress, line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from datasette import Response
from datasette.utils.asgi import AsgiStream

from ..web import client_disconnected

if TYPE_CHECKING:
    from datasette.utils.asgi import AsgiWriter, Request

    from ..web import Payload

    Emit = Callable[[Payload], None]

T = TypeVar("T")

NDJSON = "application/x-ndjson"


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


def streams(request: Request) -> bool:
    """Whether a client reads the progress line by line."""
    return NDJSON in request.headers.get("accept", "")


def only_line(payload: Payload, status: int = 200) -> Response:
    """The response where there is nothing to wait for."""
    return Response(_line(payload), status=status, content_type=NDJSON)


def json_lines(
    request: Request, work: Callable[[Emit], Coroutine[Any, Any, Payload]]
) -> AsgiStream:
    """Lines of JSON: what the work emits, each at once, and at its end what it returns.

    Args:
        request: the request; when its client goes away, the work is cancelled.
        work: gets the function that emits a line.
    """

    async def stream(writer: AsgiWriter) -> None:
        lines: asyncio.Queue[Payload | None] = asyncio.Queue()
        task = asyncio.create_task(while_connected(request, work(lines.put_nowait)))
        task.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                await writer.write(_line(line))
            await writer.write(_line(await task))
        except ClientGoneError:
            return
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    return AsgiStream(stream, content_type=NDJSON)


def _line(payload: Payload) -> str:
    return json.dumps(payload) + "\n"

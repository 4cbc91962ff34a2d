"""The progress of work, line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.asgi import AsgiStream

from ..web import NDJSON
from .connected import ClientGoneError, while_connected

if TYPE_CHECKING:
    from datasette.utils.asgi import AsgiWriter, Request

    from ..web import Payload

    Emit = Callable[[Payload], None]


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

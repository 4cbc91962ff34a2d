"""HTTP helpers: the body of a POST, payloads as JSON, a disconnected client.

A payload is the data of a page and of its JSON version. One with `"ok": False` has `error` and
`status`, as Datasette's own JSON errors have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasette import Response
from datasette.utils.asgi import AsgiStream

if TYPE_CHECKING:
    from datasette.utils.asgi import AsgiWriter, Request

Payload = dict[str, Any]
Write = Callable[[str], Awaitable[None]]

NDJSON = "application/x-ndjson"
READ_METHODS = ("GET", "HEAD")
# How many rows a page of a list has.
DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_ID = re.compile("[0-9a-z]{26}")
# Earlier names of the fields and arguments that have one name on all pages; they keep working.
EARLIER_NAMES = {"model": "model_id"}


def refused(message: str, status: int = 400, **payload: object) -> Payload:
    """The payload of a request that cannot be answered.

    Args:
        message: the problem, and what to do.
        status: the HTTP status.
        **payload: data that the page needs in spite of it, for example for its form.
    """
    return {"ok": False, "error": message, "status": status, **payload}


def as_json(payload: Payload) -> Response:
    """A payload as JSON."""
    return Response.json(payload, status=status_of(payload))


def status_of(payload: Payload) -> int:
    """The HTTP status of a payload."""
    return 200 if payload["ok"] else int(payload.get("status", 400))


def html_page(html: str, status: int = 200) -> Response:
    """A page, which no other site may show in a frame: a click in it may change something."""
    html = html.encode(errors="replace").decode()  # a name may have a lone surrogate
    headers = {"Content-Security-Policy": "frame-ancestors 'self'"}
    return Response.html(html, status=status, headers=headers)


def streamed_page(stream: Callable[[Write], Awaitable[None]]) -> AsgiStream:
    """A page that is sent as it is written, like those of `html_page`.

    Args:
        stream: writes it, with the function that it gets.
    """
    page = html_page("")

    async def write(writer: AsgiWriter) -> None:
        async def text(part: str) -> None:
            await writer.write(part.encode(errors="replace").decode())

        await stream(text)

    return AsgiStream(write, headers=page.headers, content_type=page.content_type)


def method_not_allowed(allowed: Sequence[str] = READ_METHODS) -> Response:
    """The response to a method that a route does not support."""
    allow = ", ".join(allowed)
    return Response.error(f"Only {allow}", 405, headers={"Allow": allow})


def wants_html(request: Request) -> bool:
    """Whether a POST comes from a browser that shows the response, rather than from a program."""
    sent = request.headers.get("content-type", "")
    return "json" not in sent and "text/html" in request.headers.get("accept", "")


def streams(request: Request) -> bool:
    """Whether a client reads the progress line by line."""
    return NDJSON in request.headers.get("accept", "")


async def posted(request: Request) -> Mapping[str, str]:
    """The fields of a POST, from a form or from JSON, without empty ones.

    In JSON a field may also be true, which becomes `"true"`, or false, which is left out.

    Raises:
        PostError: the body is invalid.
    """
    is_json = "json" in request.headers.get("content-type", "")
    fields: Any
    try:
        if is_json:
            fields = json.loads(await request.post_body() or b"{}")
        else:
            fields = await request.post_vars()
    except (ValueError, RecursionError) as error:
        raise PostError(f"The body is no {'JSON' if is_json else 'form'}: {error}") from None
    if not isinstance(fields, dict):
        raise PostError('The body has to be a JSON object, such as {"model_id": "…"}')
    wrong = [name for name, value in fields.items() if not isinstance(value, str | bool | None)]
    if wrong:
        raise PostError(f"{', '.join(wrong)}: expected text")
    given = {name: "true" if value is True else value for name, value in fields.items() if value}
    for name, earlier in EARLIER_NAMES.items():
        if value := given.pop(earlier, None):
            given.setdefault(name, value)
    return given


def argument(request: Request, name: str) -> str:
    """An argument of an address by its name, or by an earlier one; empty where it is not given."""
    value = request.args.get(name) or request.args.get(EARLIER_NAMES.get(name, name)) or ""
    return str(value).strip()


class PostError(Exception):
    """The body of a POST is invalid; the message explains why."""


def page_limit(text: str | None) -> int:
    """The argument `limit` of a list: how many rows a page has.

    Raises:
        ArgumentError: it is no whole number, or too large.
    """
    if text is None:
        return DEFAULT_LIMIT
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= number <= MAX_LIMIT:
        raise ArgumentError(f"limit: {text!r} is no whole number from 1 to {MAX_LIMIT}")
    return number


def page_cursor(text: str | None, name: str = "next") -> str | None:
    """A cursor of a list: by default `next`, the id of the last row of the previous page, or None.

    Args:
        text: the argument.
        name: its name.

    Raises:
        ArgumentError: it is no id.
    """
    if text is not None and not _ID.fullmatch(text):
        raise ArgumentError(f"{name}: {text!r} is not a cursor from a page of this list")
    return text


class ArgumentError(Exception):
    """An argument of a list is invalid; the message names it."""


async def client_disconnected(request: Request) -> None:
    """Wait until the client has disconnected, by listening for ASGI's message."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Inspect third-party exceptions: cause chain, HTTP status, headers.

Providers' clients, none of which are imported here, differ in where they put these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

_MAX_ERRORS = 30


def causes(error: BaseException, *, suppressed: bool = False) -> Iterator[BaseException]:
    """An exception and its causes, the outermost first, each once.

    Args:
        error: the outermost.
        suppressed: whether to follow contexts that `from None` suppressed too.
    """
    todo, seen = [error], set[int]()
    while todo and len(seen) < _MAX_ERRORS:
        each = todo.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        follow = suppressed or not each.__suppress_context__
        cause = each.__cause__ or (each.__context__ if follow else None)
        todo += [cause] if cause is not None else []
        todo += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an exception or of its causes, or None.

    Args:
        error: the exception.
    """
    return next((status for each in causes(error) if (status := own_status(each))), None)


def own_status(error: BaseException) -> int | None:
    """The HTTP status of an exception itself, or None."""
    return next((status for place in places_of(error) if (status := _status(place))), None)


def header_of(error: BaseException, name: str, *, of: Literal["request", "response"]) -> str | None:
    """A header of the failed request or of its response, or None.

    Args:
        error: the exception.
        name: the header, in lower case.
        of: which of the two.
    """
    for each in causes(error):
        response = part_of(each, "response")
        if of == "request":
            holders = [part_of(each, "request"), part_of(response, "request")]
        else:
            holders = [response, each, part_of(response, "ResponseMetadata")]
        for holder in holders:
            for headers in (part_of(holder, "headers"), part_of(holder, "HTTPHeaders")):
                value = part_of(headers, name)
                if isinstance(value, str):
                    return value
    return None


def places_of(error: BaseException) -> list[Any]:
    """The objects of an exception that may have a status or a code."""
    body, response = part_of(error, "body"), part_of(error, "response")
    places = [error, body, part_of(body, "error"), response, part_of(response, "Error")]
    return [place for place in places if place is not None]


def part_of(thing: Any, name: str) -> Any:
    """An attribute or an entry of a third-party object; None also if reading it raises."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:
        return None


def _status(place: object) -> int | None:
    metadata = part_of(place, "ResponseMetadata")
    for value in (
        *(part_of(place, name) for name in ("status_code", "code", "status", "http_status")),
        part_of(metadata, "HTTPStatusCode"),
    ):
        if isinstance(value, str) and re.fullmatch("[1-5][0-9]{2}", value):
            return int(value)
        if isinstance(value, int) and 100 <= value < 600:
            return int(value)
    return None

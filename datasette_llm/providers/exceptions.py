"""What a stranger's exception carries: others behind it, an HTTP status, headers.

The clients of providers, none of which we import, differ in where they put these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

_MAX_ERRORS = 30


def causes(error: BaseException, *, also_set_aside: bool = False) -> Iterator[BaseException]:
    """An exception and those behind it, the outermost first, each once.

    Args:
        error: the outermost.
        also_set_aside: whether to follow those that were raised `from None` too.
    """
    todo, seen = [error], set[int]()
    while todo and len(seen) < _MAX_ERRORS:
        each = todo.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        set_aside = each.__suppress_context__ and not also_set_aside
        behind = each.__cause__ or (None if set_aside else each.__context__)
        todo += [behind] if behind is not None else []
        todo += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, or one behind it; None without any.

    Args:
        error: the exception.
    """
    return next((status for each in causes(error) if (status := own_status(each))), None)


def own_status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries itself, or None."""
    return next((status for place in places_of(error) if (status := _status(place))), None)


def header_of(error: BaseException, name: str, *, of: Literal["request", "response"]) -> str | None:
    """A header of the request that failed, or of its answer, where an exception carries them.

    Args:
        error: the exception.
        name: the header, in small letters.
        of: where it stands.
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
    """Where an exception, or the answer that it carries, may say a status or a code."""
    body, response = part_of(error, "body"), part_of(error, "response")
    places = [error, body, part_of(body, "error"), response, part_of(response, "Error")]
    return [place for place in places if place is not None]


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


def part_of(thing: Any, name: str) -> Any:
    """An attribute or an entry of a stranger's object; None also where reading it raises."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:
        return None

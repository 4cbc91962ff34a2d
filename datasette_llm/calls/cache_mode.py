"""The argument `response_cache` of a prompt."""

from __future__ import annotations

from typing import Literal

CacheMode = Literal[True, False, "refresh"]


def response_cache(given: object) -> CacheMode:
    """The argument `response_cache` of a prompt; None stands for True.

    Raises:
        ValueError: it is something else.
    """
    if given is None or given is True:
        return True
    if given is False:
        return False
    if given == "refresh":
        return "refresh"
    raise ValueError('response_cache= is True, False to go past it, or "refresh" to renew')

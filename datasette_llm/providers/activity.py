"""What the client of a request has for its attempt beside llm's events: signs of life, headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import NamedTuple

# How long a server may keep a connection open without an event of its answer: without an idle
# timeout, and with one as many times of it.
QUIET_S = 600.0
QUIET_IDLE_TIMEOUTS = 10


class Activity(NamedTuple):
    """How the running request is timed and noted.

    Attributes:
        alive: called at each sign of life, or None.
        quiet_s: how many seconds keep-alives alone may last.
        headers: gets those of its HTTP response, a refusal included, or None. A list, since a kept
            connection holds on to the context of the request that opened it.
    """

    alive: Callable[[], None] | None = None
    quiet_s: float = QUIET_S
    headers: list[Mapping[str, str]] | None = None

    @classmethod
    def of(
        cls,
        alive: Callable[[], None] | None,
        idle_timeout_s: float | None,
        headers: list[Mapping[str, str]],
    ) -> Activity:
        """How a request with this idle timeout is timed and noted."""
        if idle_timeout_s is None:
            return cls(alive, QUIET_S, headers)
        return cls(alive, QUIET_IDLE_TIMEOUTS * idle_timeout_s, headers)


UNTIMED = Activity()
activity: ContextVar[Activity] = ContextVar("datasette_llm_activity", default=UNTIMED)

"""The time limit of a profile, enforced by SQLite's progress handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from sqlite3 import Connection

# SQLite virtual machine instructions between two checks of the clock: some milliseconds of them.
# Each check takes Python's lock, which the event loop and other threads want too.
MAX_INSTRUCTIONS = 200_000
# The same where each instruction may read megabytes.
MIN_INSTRUCTIONS = 20
_BYTES_PER_CHECK = 20_000_000
# The share of the limit at which SQLite is stopped; the rest is for what is made of the results.
STOP_SHARE = 0.95

Clock = Callable[[], float]


class OutOfTimeError(Exception):
    """Work was stopped, or not started, because the time limit is used up."""


def instructions_for(row_size: float) -> int:
    """How many instructions SQLite may run between two checks, for rows of so many bytes."""
    return min(max(int(_BYTES_PER_CHECK / max(row_size, 1)), MIN_INSTRUCTIONS), MAX_INSTRUCTIONS)


class TimeBudget:
    """A time limit that begins when it is created."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """
        Args:
            seconds: the limit.
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._end = clock() + STOP_SHARE * seconds

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be started."""
        return self._clock() >= self._end

    @contextmanager
    def limit(self, connection: Connection, instructions: int) -> Iterator[None]:
        """Interrupt SQLite in the block when the limit is used up.

        Args:
            connection: the connection to interrupt; no other thread uses it meanwhile.
            instructions: how many SQLite runs between two checks of the clock.

        Raises:
            OutOfTimeError: the block was interrupted, or not entered.
        """
        if self.used_up:
            raise OutOfTimeError
        stopped = False

        def stop() -> bool:
            nonlocal stopped
            stopped = self.used_up
            return stopped

        connection.set_progress_handler(stop, instructions)
        try:
            yield
        except sqlite3.OperationalError as error:
            if stopped:
                raise OutOfTimeError from error
            raise
        finally:
            connection.set_progress_handler(None, 0)

"""The time limit of a search for findings, of which each part may use a share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from sqlite3 import Connection

# SQLite virtual machine instructions between two checks of the clock.
INSTRUCTIONS_PER_CHECK = 10_000

Clock = Callable[[], float]


class LateError(Exception):
    """Work was stopped, or not started, because its share of the time limit is used up."""


class TimeLimit:
    """A time limit that begins when it is created."""

    def __init__(self, connection: Connection, seconds: float, clock: Clock) -> None:
        """
        Args:
            connection: the connection to interrupt; no other thread uses it meanwhile.
            seconds: the limit.
            clock: gives the time in seconds.
        """
        self._connection, self._seconds, self._clock = connection, seconds, clock
        self._started = clock()
        self._end = self._started + seconds

    def check(self) -> None:
        """Check the time between parts of the work that SQLite does not see.

        Raises:
            LateError: the share that was given to `until` is used up.
        """
        if self._clock() >= self._end:
            raise LateError

    @contextmanager
    def until(self, share: float) -> Iterator[None]:
        """Interrupt SQLite in the block when this share of the limit is used up.

        Args:
            share: of the whole limit, from its start; 1 is all of it.

        Raises:
            LateError: the block was interrupted, or not entered.
        """
        self._end = self._started + share * self._seconds
        self.check()
        stopped = False

        def stop() -> bool:
            nonlocal stopped
            stopped = self._clock() >= self._end
            return stopped

        self._connection.set_progress_handler(stop, INSTRUCTIONS_PER_CHECK)
        try:
            yield
        except sqlite3.OperationalError as error:
            if stopped:
                raise LateError from error
            raise
        finally:
            self._connection.set_progress_handler(None, 0)

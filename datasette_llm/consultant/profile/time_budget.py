"""The time limit of a profile, enforced by SQLite's progress handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from sqlite3 import Connection

# SQLite virtual machine instructions between two checks of the clock, as in Datasette.
INSTRUCTIONS_PER_CHECK = 1_000
# The same where each instruction may read megabytes.
FEW_INSTRUCTIONS_PER_CHECK = 20

Clock = Callable[[], float]


class OutOfTimeError(Exception):
    """Work was stopped, or not started, because its share of the time limit is used up."""


class TimeBudget:
    """A time limit that begins when it is created."""

    def __init__(self, connection: Connection, seconds: float, clock: Clock) -> None:
        """
        Args:
            connection: the connection to interrupt; it must not be used elsewhere meanwhile.
            seconds: the limit.
            clock: gives the time in seconds.
        """
        self._connection = connection
        self._seconds = seconds
        self._clock = clock
        self._started = clock()
        self._end = seconds

    @property
    def spent(self) -> float:
        """The seconds since the start."""
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """The seconds that remain; negative after the end."""
        return self._seconds - self.spent

    def check(self) -> None:
        """Check the time between rows, since reading large values takes few instructions.

        Raises:
            OutOfTimeError: the share of the limit given to `until` is used up.
        """
        if self.spent >= self._end:
            raise OutOfTimeError

    @contextmanager
    def until(self, share: float, *, instructions: int = INSTRUCTIONS_PER_CHECK) -> Iterator[None]:
        """Interrupt SQLite in the block when this share of the limit is used up.

        Args:
            share: of the whole limit, from its start; 1 is all of it.
            instructions: how many SQLite runs between two checks of the clock.

        Raises:
            OutOfTimeError: the block was interrupted, or not entered.
        """
        self._end = share * self._seconds
        self.check()
        stopped = False

        def stop() -> bool:
            nonlocal stopped
            stopped = self.spent >= self._end
            return stopped

        self._connection.set_progress_handler(stop, instructions)
        try:
            yield
        except sqlite3.OperationalError as error:
            if stopped:
                raise OutOfTimeError from error
            raise
        finally:
            self._connection.set_progress_handler(None, INSTRUCTIONS_PER_CHECK)

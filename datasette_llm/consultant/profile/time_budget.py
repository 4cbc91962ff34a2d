"""The time that a profile may take, and how SQLite is stopped when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from sqlite3 import Connection

# Of SQLite's virtual machine between two looks at the clock; Datasette looks as often.
INSTRUCTIONS = 1_000
# The same where each may read megabytes.
FEW_INSTRUCTIONS = 20

Clock = Callable[[], float]


class OutOfTimeError(Exception):
    """The work was stopped, or not begun, because its part of the time is over."""


class Budget:
    """A time limit that begins when this is made."""

    def __init__(self, connection: Connection, seconds: float, clock: Clock) -> None:
        """
        Args:
            connection: what is stopped; nobody else may use it meanwhile.
            seconds: the limit.
            clock: tells the time, in seconds.
        """
        self._connection = connection
        self._seconds = seconds
        self._clock = clock
        self._begun = clock()
        self._end = seconds

    @property
    def spent(self) -> float:
        """The seconds since the beginning."""
        return self._clock() - self._begun

    @property
    def left(self) -> float:
        """The seconds until the end, below 0 after it."""
        return self._seconds - self.spent

    def check(self) -> None:
        """Stop where SQLite gives a row, so that one of large values is the last.

        Raises:
            OutOfTimeError: the share of the limit that `until` gave is over.
        """
        if self.spent >= self._end:
            raise OutOfTimeError

    @contextmanager
    def until(self, share: float, *, instructions: int = INSTRUCTIONS) -> Iterator[None]:
        """Stop what SQLite does in the block when this share of the limit is over.

        Args:
            share: of the whole limit, from its beginning; 1 is all of it.
            instructions: how many SQLite does between two looks at the clock.

        Raises:
            OutOfTimeError: the block was stopped, or was not entered.
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
            self._connection.set_progress_handler(None, INSTRUCTIONS)

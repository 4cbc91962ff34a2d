"""Durations as characters, so that SQLite can keep and join the durations of many calls.

A character stands for the durations within 5% of each other: a text of one character a call is
what percentiles need, and texts of several periods are simply joined.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from datasette.utils.sqlite import sqlite3

# The ratio of a duration to the next shorter one that can be told apart.
STEP = 1.05
_LOG_STEP = math.log(STEP)
_FIRST = ord("0")  # a duration below one millisecond
_LAST = _FIRST + 1 + round(math.log(10**10) / _LOG_STEP)  # 115 days
# The SQL function that gives the character of a duration.
FUNCTION = "llm_latency"


def character(milliseconds: Any) -> str | None:
    """The character of a duration; None for a value that is none."""
    if not isinstance(milliseconds, int | float) or not 0 <= milliseconds < math.inf:
        return None
    if milliseconds < 1:
        return chr(_FIRST)
    return chr(min(_LAST, _FIRST + 1 + round(math.log(milliseconds) / _LOG_STEP)))


def register(connection: sqlite3.Connection) -> None:
    """Let SQL on a connection use `FUNCTION`."""
    connection.create_function(FUNCTION, 1, character, deterministic=True)


def percentiles(texts: Iterable[str], *percents: int) -> list[int | None]:
    """The percentiles of durations, in whole milliseconds, at most 2.5% off.

    Args:
        texts: the characters of the durations.
        percents: each from 1 to 100, in ascending order.

    Returns:
        For each the smallest duration that this percentage does not exceed; None without any.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        # Several times faster than counting one character after the other.
        counts.update({each: text.count(each) for each in set(text)})
    ranked = sorted(counts.items())
    return [_percentile(ranked, counts.total() * percent) for percent in percents]


def _percentile(ranked: list[tuple[str, int]], needed: int) -> int | None:
    so_far = 0
    for each, count in ranked:
        so_far += count * 100
        if so_far >= needed:
            return _milliseconds(each)
    return None


def _milliseconds(each: str) -> int:
    place = ord(each) - _FIRST
    return round(STEP ** (place - 1)) if place > 0 else 0

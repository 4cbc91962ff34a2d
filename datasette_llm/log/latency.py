"""Durations as characters, so that SQLite can keep and join the durations of many calls.

A character stands for the durations within 7% of each other. A text has one for each call, or a
number and the character for as many: this is what percentiles need, and texts are simply joined.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from datasette.utils.sqlite import sqlite3

# The ratio of a duration to the next shorter one that makes a difference.
STEP = 1.07
_LOG_STEP = math.log(STEP)
# Latin-1 without digits, from less than a millisecond to half an hour and more.
_CHARACTERS = [chr(code) for code in range(0x20, 0x100) if not chr(code).isdecimal()]
_MILLISECONDS = {
    each: round(STEP ** (place - 1)) if place else 0 for place, each in enumerate(_CHARACTERS)
}
_RUN = re.compile(r"([0-9]+)([^0-9])")
# A shorter run of one character is written as it is.
_MIN_RUN = 3
# The SQL function that gives the character of a duration.
FUNCTION = "llm_latency"


def character(milliseconds: Any) -> str | None:
    """The character of a duration; None for a value that is none."""
    if not isinstance(milliseconds, int | float) or not 0 <= milliseconds < math.inf:
        return None
    place = 0 if milliseconds < 1 else 1 + round(math.log(milliseconds) / _LOG_STEP)
    return _CHARACTERS[min(place, len(_CHARACTERS) - 1)]


def register(connection: sqlite3.Connection) -> None:
    """Let SQL on a connection use `FUNCTION`."""
    connection.create_function(FUNCTION, 1, character, deterministic=True)


def shortened(texts: Iterable[str]) -> str:
    """One text for the same durations."""
    return "".join(
        each * count if count < _MIN_RUN else f"{count}{each}"
        for each, count in sorted(_counts(texts).items())
    )


def percentiles(texts: Iterable[str], *percents: int) -> list[int | None]:
    """The percentiles of durations, in whole milliseconds, at most 3.5% off.

    Args:
        texts: the characters of the durations.
        percents: each from 1 to 100.

    Returns:
        For each the smallest duration that this percentage does not exceed; None without any.
    """
    counts = _counts(texts)
    ranked = sorted(counts.items())
    return [_percentile(ranked, counts.total() * percent) for percent in percents]


def _counts(texts: Iterable[str]) -> Counter[str]:
    text = "".join(texts)
    runs = _RUN.findall(text)
    counts = Counter(_RUN.sub("", text) if runs else text)
    for count, each in runs:
        counts[each] += int(count)
    return counts


def _percentile(ranked: list[tuple[str, int]], needed: int) -> int | None:
    so_far = 0
    for each, count in ranked:
        so_far += count * 100
        if so_far >= needed:
            return _MILLISECONDS[each]
    return None

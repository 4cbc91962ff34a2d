"""What a text looks like: its mask, and whether it reads as a number, a date, a time or nothing.

Used on values in Python, and by SQLite as functions, so that both count the same.
"""

from __future__ import annotations

import datetime
import re
from functools import lru_cache

# Longer texts are prose; their masks tell nothing.
MASK_CHARS = 64
# What str.strip() removes and people see as nothing.
EDGE_SPACES = " \t\n\r\f\v\u00a0\u2007\u202f\u3000\ufeff"
# Texts that stand for no value wherever they are.
MISSING = frozenset(
    (
        *("na", "n/a", "n.a.", "n/a.", "#n/a", "<na>", "nan", "null", "(null)", "nil", "missing"),
        *("-", "--", "---", "?", "??", "???", ".", "not available", "not applicable", "undefined"),
        *("unknown", "unk", "tbd", "(blank)", "#value!", "#ref!", "#div/0!"),
    )
)
# No longer text is looked up, as nearly all are longer and none is found.
MISSING_CHARS = max(map(len, MISSING)) + 4

_MASK = str.maketrans(
    {chr(code): "9" for code in range(ord("0"), ord("9") + 1)}
    | {chr(code): "a" for code in range(ord("a"), ord("z") + 1)}
    | {chr(code): "A" for code in range(ord("A"), ord("Z") + 1)}
)
_RUNS = re.compile(r"([9aA])\1+")

_PLAIN = r"(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?|\.\d+|\d+,\d{1,2}|\d{1,3}(?:\.\d{3})+,\d+"
_UNIT = (
    r"kg|g|mg|lbs?|oz|mm|cm|m|km|in|ft|mi|miles|ml|l|mph|kmh|km/h|kw|kwh|mb|gb|"
    r"h|hrs?|hours?|min|mins|minutes|s|sec|secs|seconds|days?|weeks?|months?|years?|yrs?|seasons?"
)
_NUMBER = re.compile(
    rf"\(?[-+\u2212]?\s?[$€£¥]?\s?[-+\u2212]?(?:{_PLAIN})(?:[eE][-+]?\d{{1,3}})?"
    rf"\s?(?:%|[$€£¥]|°?[cCfF]|{_UNIT})?\)?",
    re.IGNORECASE | re.ASCII,
)
_FEET = re.compile(
    r"\d{1,2}\s?['\u2019\u2032]\s?(?:\d{1,2}(?:\.\d+)?\s?(?:\"|''|\u201d|\u2033)?)?", re.ASCII
)
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?", re.ASCII)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(?P<name>[A-Za-z]{3,9})\.?"
_CLOCK = r"(?P<clock>[ T]\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?P<zone>\s?(?:Z|[+-]\d{2}:?\d{2}))?)?"
_Y, _M, _D = r"(?P<y>\d{4})", r"(?P<m>\d{1,2})", r"(?P<d>\d{1,2})"
_SHORT = r"(?P<s>\d{2})"
# The first that fits names the format; `a` and `b` are a day and a month in an unknown order.
_FORMATS = tuple(
    (name, re.compile(pattern, re.ASCII))
    for name, pattern in (
        ("YYYY-MM-DD", rf"{_Y}-(?P<m>\d{{2}})-(?P<d>\d{{2}}){_CLOCK}"),
        ("YYYY/MM/DD", rf"{_Y}/{_M}/{_D}{_CLOCK}"),
        ("YYYY.MM.DD", rf"{_Y}\.{_M}\.{_D}{_CLOCK}"),
        ("NN/NN/YYYY", rf"(?P<a>\d{{1,2}})/(?P<b>\d{{1,2}})/{_Y}{_CLOCK}"),
        ("NN/NN/YY", rf"(?P<a>\d{{1,2}})/(?P<b>\d{{1,2}})/{_SHORT}{_CLOCK}"),
        ("DD.MM.YYYY", rf"{_D}\.{_M}\.{_Y}{_CLOCK}"),
        ("DD.MM.YY", rf"{_D}\.{_M}\.{_SHORT}{_CLOCK}"),
        ("NN-NN-YYYY", rf"(?P<a>\d{{1,2}})-(?P<b>\d{{1,2}})-{_Y}{_CLOCK}"),
        ("Month D, YYYY", rf"{_MONTH} {_D}(?:st|nd|rd|th)?,? {_Y}"),
        ("D Month YYYY", rf"{_D}(?:st|nd|rd|th)? {_MONTH},? {_Y}"),
        ("D-Mon-YYYY", rf"{_D}-{_MONTH}-{_Y}"),
        ("D-Mon-YY", rf"{_D}-{_MONTH}-{_SHORT}"),
    )
)


def mask(text: str) -> str:
    """A text with 9 for each digit, a and A for each letter; other characters as they are."""
    short = text[:MASK_CHARS]
    masked = short.translate(_MASK)
    if not short.isascii():
        masked = "".join(_masked(char) for char in masked)
    return masked if len(text) <= MASK_CHARS else f"{masked}…"


def shape(masked: str) -> str:
    """A mask with runs of the same class as one character: `AA-9999` is `A-9`."""
    return _RUNS.sub(r"\1", masked)


def is_missing(text: str) -> bool:
    """True if a text stands for no value, such as `N/A`, or is blank."""
    if len(text) > MISSING_CHARS:
        return False
    stripped = text.strip()
    return not stripped or stripped.casefold() in MISSING


def is_number(text: str) -> bool:
    """True if a text is a number: perhaps with separators, currency, unit, or feet and inches."""
    stripped = text.strip(EDGE_SPACES)
    if len(stripped) > 40:
        return False
    return _NUMBER.fullmatch(stripped) is not None or _FEET.fullmatch(stripped) is not None


def is_time(text: str) -> bool:
    """True if a text is a time of day; 24:00 is none."""
    found = _TIME.fullmatch(text.strip(EDGE_SPACES))
    if found is None:
        return False
    hour, minute, second = (int(part or 0) for part in found.groups())
    return hour < 24 and minute < 60 and second < 60


@lru_cache(maxsize=4096)
def date_format(text: str) -> str | None:
    """The format of a date, such as `YYYY-MM-DD`; None for a text that is no date.

    `NN/NN/YYYY` is a day and a month in an order that this text does not tell.
    """
    stripped = text.strip(EDGE_SPACES)
    if not 6 <= len(stripped) <= 40:
        return None
    for name, pattern in _FORMATS:
        if found := pattern.fullmatch(stripped):
            return _named(name, found)
    return None


def fold(text: str) -> str:
    """A text without edge spaces and differences of case."""
    return text.strip(EDGE_SPACES).casefold()


def _masked(char: str) -> str:
    if char in "9aA" or not char.isalnum():
        return char
    if char.isdigit():
        return "9"
    return "A" if char.isupper() else "a"


def _named(name: str, found: re.Match[str]) -> str | None:
    parts = found.groupdict()
    year = int(parts.get("y") or "2000")
    if parts.get("name") is not None:
        month = parts["name"][:3].casefold()
        if month not in _MONTHS:
            return None
        valid, format_name = _is_day(year, _MONTHS.index(month) + 1, int(parts["d"])), name
    elif parts.get("a") is not None:
        valid, format_name = _day_and_month(name, year, int(parts["a"]), int(parts["b"]))
    else:
        valid, format_name = _is_day(year, int(parts["m"]), int(parts["d"])), name
    return format_name + _clock(parts) if valid else None


def _day_and_month(name: str, year: int, a: int, b: int) -> tuple[bool, str]:
    """Whether it is a date, and the format: day first or month first where only one is possible."""
    separator = name[2]
    first = f"NN{separator}NN"
    if a > 12:
        return _is_day(year, b, a), name.replace(first, f"DD{separator}MM")
    if b > 12:
        return _is_day(year, a, b), name.replace(first, f"MM{separator}DD")
    return _is_day(year, a, b), name


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _clock(parts: dict[str, str | None]) -> str:
    clock = parts.get("clock")
    if not clock:
        return ""
    separator = "T" if clock.startswith("T") else " "
    return f"{separator}HH:MM" + (" with zone" if parts.get("zone") else "")

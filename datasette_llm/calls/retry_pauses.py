"""When a failed request may be made again, as the provider says; pure functions over exceptions."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..providers.exceptions import header_of, status_of
from ..providers.failures import kind_of
from .error_details import fields_of, text_of

# A provider that wants a longer pause than this is not waited for.
MAX_PAUSE_S = 60.0

# Header, and what a number without a unit means there, in seconds.
_HEADERS = (("retry-after-ms", 0.001), ("retry-after", 1.0))
# Fields of a body: Google's RetryInfo, others' own, and the header that OpenRouter copies.
_FIELDS = {"retrydelay": 1.0, "retryafter": 1.0, "retryafterms": 0.001, "xratelimitreset": 1.0}
# When a rate limit is reset, and what remains of it; OpenAI's, Cerebras's, the IETF's, Anthropic's.
_RESETS = (
    *(
        (f"x-ratelimit-reset{what}", f"x-ratelimit-remaining{what}")
        for what in ("-requests", "-tokens", "-requests-day", "-tokens-minute", "")
    ),
    ("ratelimit-reset", "ratelimit-remaining"),
    *(
        (f"anthropic-ratelimit-{what}-reset", f"anthropic-ratelimit-{what}-remaining")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = (
    r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*"
    r"(ms|milliseconds?|d|days?|h|hrs?|hours?|m|mins?|minutes?|s|secs?|seconds?)(?![a-z])"
)
_DURATION = re.compile(rf"(?:\s*{_PART})+", re.I)
_ANNOUNCED = re.compile(
    rf"\b(?:retry|try again)[\w ]{{0,20}}? (?:in|after) ((?:\s?{_PART})+)", re.I
)
# Not the comma of "Wed, 21 Oct 2026" nor of "Wednesday, 21-Oct-26".
_COMMA = re.compile(r",(?!\s*[0-9]{1,2}[ -][A-Za-z]{3}[ -][0-9])")
# More than a pause in seconds, or in milliseconds, ever is: the time since 1970.
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


def retry_after_s(error: Exception, now: datetime.datetime) -> float | None:
    """How many seconds the provider asks to wait; None where it does not, or asks for the past.

    Args:
        error: the failure. What counts is, in this order: the header `retry-after-ms` or
            `Retry-After`, a field of the body such as Google's `retryDelay`, the message ("try
            again in 20s"), and after a rate limit the headers that say when it is reset.
        now: the time, with its zone.
    """
    for source in (_by_header, _announced, _by_reset):
        found = [seconds for seconds in source(error, now) if seconds > 0]
        if found:
            return max(found)
    return None


def announces_pause(error: Exception, now: datetime.datetime) -> bool:
    """Whether body or message say when to try again, so that a quota is not used up for long.

    Args:
        error: the failure.
        now: the time, with its zone.
    """
    return any(seconds > 0 for seconds in _announced(error, now))


def _by_header(error: Exception, now: datetime.datetime) -> Iterator[float]:
    for name, unit_s in _HEADERS:
        found = list(_seconds(header_of(error, name, of="response"), now, unit_s))
        if any(seconds > 0 for seconds in found):
            yield from found
            return


def _announced(error: Exception, now: datetime.datetime) -> Iterator[float]:
    for name, value in fields_of(error):
        if name in _FIELDS:
            yield from _seconds(value, now, _FIELDS[name])
    for match in _ANNOUNCED.finditer(text_of(error)):
        yield from _seconds(match[1], now)


def _by_reset(error: Exception, now: datetime.datetime) -> Iterator[float]:
    if status_of(error) != 429 and kind_of(error) != "rate_limit":
        return  # a broken server tells its limits, too
    limits = [
        (seconds, header_of(error, remaining, of="response"))
        for reset, remaining in _RESETS
        for seconds in _seconds(header_of(error, reset, of="response"), now)
    ]
    reached = [seconds for seconds, left in limits if left in (None, "0")]
    # Of limits that are not reached, one that is too small for this request need not refill.
    yield from reached or [seconds for seconds, _ in limits if seconds <= MAX_PAUSE_S]


def _seconds(value: Any, now: datetime.datetime, unit_s: float = 1.0) -> Iterator[float]:
    """The seconds from now that a value means; several where it is a list, none where it is bad."""
    if isinstance(value, Mapping):  # a duration of protobuf as an object
        value = value.get("seconds")
    if value is None or isinstance(value, bool):
        return
    for each in _COMMA.split(str(value)[:200]):
        text = each.strip()
        seconds = _number(text, now, unit_s)
        if seconds is None:
            seconds = _duration(text) if _DURATION.fullmatch(text) else _until(text, now)
        if seconds is not None:
            yield seconds


def _number(text: str, now: datetime.datetime, unit_s: float) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if _EPOCH_S < number < float("inf"):
        return (number / 1000 if number > _EPOCH_MS else number) - now.timestamp()
    return number * unit_s  # of "nan" and "inf" only the last is above nothing


def _duration(text: str) -> float:
    """The seconds of `1.5s`, `6m0s`, `20 ms` or `2 minutes`."""
    parts = re.findall(_PART, text, re.I)
    return sum(float(number) * _UNIT_S[_unit(name.lower())] for number, name in parts)


def _unit(name: str) -> str:
    return "ms" if name.startswith(("ms", "milli")) else name[0]


def _until(text: str, now: datetime.datetime) -> float | None:
    """The seconds until a date, of RFC 9110 or RFC 3339."""
    for read in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            date = read(text)
        except (ValueError, OverflowError):
            continue
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return (date - now).total_seconds()
    return None

"""Which failures are worth another attempt, and when; pure functions over exceptions."""

from __future__ import annotations

import datetime
import email.utils

from ..errors import LLMError, ProviderError, ResponseTimeoutError
from ..providers.exceptions import header_of, status_of
from ..providers.failures import did_not_connect

# RFC 9110 (408, 409), RFC 8470 (425), RFC 6585 (429); 529 is Anthropic's "overloaded".
RETRIED_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
# A provider that wants a longer pause than this is not waited for.
MAX_RETRY_AFTER_S = 60.0


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later.

    Args:
        error: what the request failed with, before its first event.
    """
    if isinstance(error, ResponseTimeoutError):
        return error.setting == "idle_timeout"
    if isinstance(error, LLMError) and not isinstance(error, ProviderError):
        return False
    if header_of(error, "x-should-retry", of="response") == "false":
        return False  # the provider knows better, of a quota that is used up for example
    status = status_of(error)
    if status is not None:
        return status in RETRIED_STATUSES
    if isinstance(error, ProviderError):
        return error.kind in ("network", "timeout")
    return did_not_connect(error)


def retry_after_s(error: Exception, now: datetime.datetime) -> float | None:
    """How many seconds the provider asks to wait; None where it does not, or asks for the past.

    Args:
        error: the failure, whose response may have a header `Retry-After` (RFC 9110, a number
            of seconds or a date) or OpenAI's `retry-after-ms`.
        now: the time, with its zone.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = header_of(error, name, of="response")
        seconds = _seconds(value, unit, now) if value is not None else None
        if seconds is not None and seconds > 0:
            return seconds
    return None


def requests_made(error: Exception) -> int:
    """How often the request was sent for this failure: the clients of some providers retry.

    Args:
        error: the failure. The clients that OpenAI, Anthropic and others generate with Stainless
            count in the header `x-stainless-retry-count`.
    """
    count = header_of(error, "x-stainless-retry-count", of="request") or ""
    return 1 + (int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 0)


def _seconds(value: str, unit: float, now: datetime.datetime) -> float | None:
    try:
        return float(value) / unit  # of "nan" and "inf" only the last is above nothing
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return (date - now).total_seconds()

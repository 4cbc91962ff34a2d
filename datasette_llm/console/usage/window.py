"""The time that the Usage page is about, and the time before it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal, get_args

from ...log.queries import BadFilterError, moment
from ...log.usage_schema import DAY, floor

PeriodName = Literal[
    "today", "yesterday", "7d", "30d", "90d", "month", "last-month", "12-months", "all"
]
PERIODS: tuple[PeriodName, ...] = get_args(PeriodName)
DEFAULT: PeriodName = "30d"
LABELS: dict[PeriodName, str] = {
    "today": "Today",
    "yesterday": "Yesterday",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
    "month": "This month",
    "last-month": "Last month",
    "12-months": "12 months",
    "all": "All",
}
# Before and after, a time has no calls, or none that a page is about.
_FIRST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(9890, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """A time.

    Attributes:
        begin: the start, inclusive.
        end: the end, exclusive; None for now, with the calls of clocks that are ahead.
        before: the start of the time to compare with, which is as long; None without one.
    """

    begin: datetime.datetime
    end: datetime.datetime | None
    before: datetime.datetime | None

    def before_end(self, now: datetime.datetime) -> datetime.datetime | None:
        """The end of the time to compare with."""
        if self.before is None:
            return None
        return min(self.begin, self.before + (self.until(now) - self.begin))

    def until(self, now: datetime.datetime) -> datetime.datetime:
        """The end, now at the latest."""
        return max(self.begin, now if self.end is None else min(self.end, now))


def named(name: PeriodName, now: datetime.datetime, first: datetime.datetime | None) -> Window:
    """A preset.

    Args:
        name: which.
        now: the present.
        first: when the first call of the log began.
    """
    day, month = floor("day", now), floor("month", now)
    last_month = floor("month", month - DAY)
    match name:
        case "today":
            return Window(day, None, day - DAY)
        case "yesterday":
            return Window(day - DAY, day, day - 2 * DAY)
        case "month":
            return Window(month, None, last_month)
        case "last-month":
            return Window(last_month, month, floor("month", last_month - DAY))
        case "12-months":
            begin = _months_before(month, 11)
            return Window(begin, None, _months_before(begin, 12))
        case "all":
            return Window(min(day, floor("day", first)) if first else day, None, None)
    days = int(name.removesuffix("d"))
    begin = day - (days - 1) * DAY
    return Window(begin, None, begin - days * DAY)


def between(since: str | None, until: str | None, now: datetime.datetime) -> Window:
    """The time between two dates.

    Raises:
        BadFilterError: one is no date or time, or the end is not after the start.
    """
    end = min(_LAST, moment("until", until)) if until else None
    begin = min(_LAST, moment("since", since)) if since else None
    if begin is None:
        begin = max(_FIRST, min(end or now, now) - 30 * DAY)
    if since and end is not None and begin >= end:
        raise BadFilterError(f"since is {begin:%Y-%m-%d}, which is not before until, {until}")
    length = min(end or now, now) - begin
    before = begin - length if datetime.timedelta() < length < begin - _FIRST else None
    return Window(begin, end, before)


def written(time: datetime.datetime) -> str:
    """A time as in an address: a date where it is midnight."""
    if floor("day", time) == time:
        return time.date().isoformat()
    return time.replace(tzinfo=None).isoformat(timespec="auto")


def _months_before(month: datetime.datetime, count: int) -> datetime.datetime:
    for _ in range(count):
        month = floor("month", month - DAY)
    return month

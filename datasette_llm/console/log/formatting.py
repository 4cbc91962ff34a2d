"""Numbers, times, costs and reasons as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...log.totals import Measure
from ...providers.failures import LABELS
from .chart import Number

UNKNOWN = "unknown"


def number(value: Number | None) -> str:
    """A whole number with thousands separators; empty for None."""
    return "" if value is None else f"{value:,.0f}"


def dollars(value: Number | None) -> str:
    """A cost with cents, or with three significant digits; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "$0"
    decimals = 2 if value >= 1 else min(9, 2 - math.floor(math.log10(value)))
    whole, _, rest = f"{value:,.{decimals}f}".partition(".")
    return f"${whole}.{rest[:2]}{rest[2:].rstrip('0')}"


def duration(milliseconds: float | None) -> str:
    """A duration in milliseconds, seconds or minutes; empty for None."""
    if milliseconds is None:
        return ""
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s"


def waited(milliseconds: float | None) -> str:
    """How long a request waited for a concurrency limit; empty if it did not."""
    return duration(milliseconds) if milliseconds and milliseconds >= 0.5 else ""


def time(text: str) -> str:
    """A time of the call log, to the second."""
    return text[:19].replace("T", " ")


def amount(measure: Measure, value: Number | None) -> str:
    """A value of the chart; empty for None."""
    return dollars(value) if measure == "cost" else number(value)


def quantity(measure: Measure, value: Number) -> str:
    """A value of the chart with its unit."""
    if measure == "cost":
        return dollars(value)
    return f"{number(value)} {measure.removesuffix('s') if value == 1 else measure}"


def axis(measure: Measure, value: Number) -> str:
    """A value at the axis, in few characters; empty for half a call."""
    if measure == "cost":
        return dollars(value)
    for divisor, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (10_000, None)):
        if value >= divisor:
            return f"{value / divisor:g}{unit}" if unit else f"{value / 1000:g}k"
    return number(value) if value == int(value) else ""


def label_of(name: str | None, value: str) -> str:
    """The value of a column of the call log for people to read."""
    if name != "failure_kind":
        return value
    return next((label for kind, label in LABELS.items() if kind == value), value)


def failure(row: Mapping[str, Any]) -> str:
    """The kind of a call's failure; in a row of an earlier version the name of the exception."""
    return label_of("failure_kind", row["failure_kind"] or row["error_type"] or "")


def reason(row: Mapping[str, Any]) -> str:
    """Why a call failed, or its answer ended early, in a few words; empty if neither."""
    why = row["blocked_by"] or failure(row) or row["finish_reason"]
    return "" if why in (None, "stop", "tool_calls") else str(why)

"""Numbers, durations, costs, times and reasons as text: the one format of all pages.

Templates have this module as `format`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..log.queries import RUNNING, time_of
from ..providers.failures import LABELS

if TYPE_CHECKING:
    from ..decision import Rule
    from ..log.totals import Measure

UNKNOWN = "unknown"
NOTHING_SENT = "nothing was sent"
NOT_YET = "not yet known"
# What a rule answers in a word or two: where it lets the model pass, and where it does not.
ANSWERS: dict[Rule, tuple[str, str]] = {
    "known": ("known", "unknown"),
    "allowlist": ("allowed", "not allowed"),
    "blocklist": ("not blocked", "blocked"),
    "key": ("no key missing", "key missing"),
    "filter": ("allowed", "refused"),
}


def number(value: float | None) -> str:
    """A whole number with thousands separators; empty for None."""
    return "" if value is None else f"{value:,.0f}"


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: `1 model`, `2 models`."""
    return f"{number(value)} {noun if value == 1 else plural or f'{noun}s'}"


def dollars(value: float | None) -> str:
    """A cost with cents, or with three significant digits; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "$0"
    decimals = 2 if value >= 1 else min(9, 2 - math.floor(math.log10(value)))
    whole, _, rest = f"{value:,.{decimals}f}".partition(".")
    return f"${whole}.{rest[:2]}{rest[2:].rstrip('0')}"


def times(value: float) -> str:
    """A factor with three significant digits."""
    return f"{float(f'{value:.3g}'):,g}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"


def price(input_dollars: float | None, output_dollars: float | None) -> str:
    """The prices of a million tokens in and out; empty where unknown."""
    if input_dollars is None or output_dollars is None:
        return ""
    if input_dollars == output_dollars == 0:
        return "free"
    return f"{dollars(input_dollars)} / {dollars(output_dollars)}"


def short(value: float | None) -> str:
    """A large number in few characters, such as a context window; empty for None."""
    if value is None or value < 10_000:
        return number(value)
    return f"{value / 1_000_000:.3g}M" if value >= 999_500 else f"{value / 1_000:.3g}k"


def duration(milliseconds: float | None) -> str:
    """A duration in milliseconds, seconds or minutes; empty for None."""
    if milliseconds is None:
        return ""
    if 0 < milliseconds < 1:
        return "< 1 ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s"


def took(row: Mapping[str, Any]) -> str:
    """How long a call took; of one that runs the seconds until now, which a script counts on."""
    if row["outcome"] != RUNNING:
        return duration(row["duration_ms"])
    elapsed = datetime.datetime.now(datetime.UTC) - time_of(row["id"])
    seconds = max(0, int(elapsed.total_seconds()))
    return Markup('<span data-seconds="{0}">{0} s</span>').format(seconds)


def waited(milliseconds: float | None) -> str:
    """How long a request waited for a concurrency limit; empty if it did not."""
    return duration(milliseconds) if milliseconds and milliseconds >= 0.5 else ""


def percent(ratio: float) -> str:
    """A ratio in percent, with two significant digits below 10 %."""
    value = 100 * ratio
    return f"{value:,.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"


def change(value: float | None, before: float | None) -> str:
    """A value against the one of an earlier period: `+12 %`; empty where that is none or 0."""
    if value is None or not before:
        return ""
    percent = round(100 * (value - before) / before)
    return "as much" if percent == 0 else f"{percent:+,} %".replace("-", "\N{MINUS SIGN}")


def time(text: str) -> str:
    """A time in UTC, to the second, without its zone."""
    return text[:19].replace("T", " ")


def utc(text: str) -> Markup:
    """A time in UTC as `<time>`, beside which the pages' script writes the reader's local time.

    Args:
        text: as the internal database has it, `2026-01-31T12:00:00.000Z`.
    """
    return Markup('<time datetime="{}">{}</time>').format(text, time(text))


def amount(measure: Measure, value: float | None) -> str:
    """A value of the chart; empty for None."""
    return dollars(value) if measure == "cost" else number(value)


def quantity(measure: Measure, value: float) -> str:
    """A value of the chart with its unit."""
    if measure == "cost":
        return dollars(value)
    return f"{number(value)} {measure.removesuffix('s') if value == 1 else measure}"


def axis(measure: Measure, value: float) -> str:
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


def missing(outcome: str | None) -> str:
    """What is written for a figure that a call does not have."""
    return {"blocked": NOTHING_SENT, RUNNING: NOT_YET}.get(outcome or "", UNKNOWN)


def answer(rule: Rule, *, passed: bool) -> str:
    """What a rule of a decision answers, in a word or two."""
    return ANSWERS[rule][0 if passed else 1]


def failure(row: Mapping[str, Any]) -> str:
    """The kind of a call's failure; in a row of an earlier version the name of the exception."""
    return label_of("failure_kind", row["failure_kind"] or row["error_type"] or "")


def reason(row: Mapping[str, Any]) -> str:
    """Why a call failed, or its answer ended early, in a few words; empty if neither."""
    why = row["blocked_by"] or failure(row) or row["finish_reason"]
    return "" if why in (None, "stop", "tool_calls") else str(why)

"""Third-party values in a form that SQLite and JSON can hold, without keys."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

from llm.utils import monotonic_ulid

from .redaction import Keys, shortened

# Of a purpose, an id or an error in a table.
MAX_TEXT_CHARS = 2_000
# A text that is cut before it is searched for keys is cut so many characters later than it will
# end, so that a key across its end is found.
MARGIN_CHARS = 20_000
# More tokens than any request has; the sum of a million calls still fits into 63 bits.
MAX_COUNT = 10**12
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# C0, DEL, C1 and surrogates.
_REPLACED = {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)} - set(map(ord, "\n\t"))
_CONTROLS = dict.fromkeys(_REPLACED, "\ufffd") | dict.fromkeys(map(ord, f"{_BIDIRECTIONAL}\r"), "")

_encode = json.JSONEncoder(ensure_ascii=False).encode
_NO_LENGTHS: Mapping[str, int] = {}


def brief(value: object, key: Keys = None) -> str:
    """A value as text, without a key, of at most `MAX_TEXT_CHARS` characters."""
    return well_formed(shortened(message_of(value), key, MAX_TEXT_CHARS))


def as_json(
    value: object, key: Keys, longest: int | None = None, lengths: Mapping[str, int] = _NO_LENGTHS
) -> str:
    """A value as standard JSON, without a key in any of its texts.

    Args:
        value: anything; for types that JSON does not have, `message_of` is used.
        key: the key or keys, or None.
        longest: the maximal characters of each text; None for no limit.
        lengths: for texts that were cut before, how long they were.
    """
    try:
        return _encode(_Plain(key, longest, lengths).of(value))
    except (ValueError, RecursionError):  # it contains itself, or is nested too deep
        return json.dumps(f"{type(value).__name__} that cannot be written as JSON")


def message_of(value: object) -> str:
    """A value as text, or a placeholder if its `__str__` raises."""
    try:
        return str(value)
    except Exception:  # a third-party __str__
        return f"{type(value).__name__} that cannot be shown"


def one_line(value: object) -> str:
    """A value as text on one line, without control characters: for a log that people read."""
    return "".join(each if each.isprintable() else " " for each in message_of(value))


def count(value: object) -> int | None:
    """A provider's number of tokens; None if it is no plausible number."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_COUNT else None


def well_formed(text: str) -> str:
    """A text that can be encoded: surrogate pairs are joined, lone surrogates replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # For example of a character that came in two chunks.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def without_controls(text: str) -> str:
    """A text in which no character controls a terminal or reorders what is read.

    Newline and tab stay. Carriage returns and bidirectional controls are left out; other controls
    and lone surrogates become U+FFFD.
    """
    return text if text.isprintable() else text.translate(_CONTROLS)


def storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with values that SQLite can hold."""
    return {name: _storable_value(value) for name, value in row.items()}


def new_id() -> str:
    """An id for a row without a response: a ULID in lower case, as llm's."""
    return str(monotonic_ulid()).lower()


def now() -> str:
    """The time in UTC, in the format of the tables."""
    return timestamp(datetime.datetime.now(datetime.UTC))


def timestamp(moment: datetime.datetime) -> str:
    """A time in UTC, as `2026-01-31T12:00:00.000Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _storable_value(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    return well_formed(value if isinstance(value, str) else message_of(value))


class _Plain:
    """Values as JSON has them, with their texts redacted and shortened."""

    def __init__(self, key: Keys, longest: int | None, lengths: Mapping[str, int]) -> None:
        self.key = key
        self.longest = longest
        self.lengths = lengths

    def of(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            # NaN and infinities are not JSON, so they become texts.
            return value if math.isfinite(value) else json.dumps(value)
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        if isinstance(value, dict):
            return {self.name(name): self.of(each) for name, each in value.items() if _names(name)}
        return self.text(message_of(value))

    def name(self, name: Any) -> str:
        return self.text(name if isinstance(name, str) else json.dumps(name))

    def text(self, text: str) -> str:
        length = self.lengths.get(text, len(text)) if self.lengths else len(text)
        longest = length if self.longest is None else self.longest
        kept, more = well_formed(shortened(text, self.key, longest)), length - longest
        return f"{kept}… and {more:,} more characters" if more > 0 else kept


def _names(name: object) -> bool:
    return name is None or isinstance(name, str | int | float)

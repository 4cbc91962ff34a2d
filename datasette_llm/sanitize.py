"""Third-party values in a form that SQLite and JSON can hold, without keys."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from llm.utils import monotonic_ulid

from .redaction import Keys, without_key

# Of a purpose, an id or an error in a table.
MAX_TEXT_CHARS = 2_000
# More tokens than any request has; the sum of a million calls still fits into 63 bits.
MAX_COUNT = 10**12
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# C0, DEL, C1 and surrogates.
_REPLACED = {*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)} - set(map(ord, "\n\t"))
_CONTROLS = dict.fromkeys(_REPLACED, "\ufffd") | dict.fromkeys(map(ord, f"{_BIDIRECTIONAL}\r"), "")


def brief(value: object, key: Keys = None) -> str:
    """A value as text, without a key, of at most `MAX_TEXT_CHARS` characters."""
    return well_formed(without_key(message_of(value), key)[:MAX_TEXT_CHARS])


def as_json(value: object, key: Keys, longest: int | None = None) -> str:
    """A value as standard JSON, without a key in any of its texts.

    Args:
        value: anything; for types that JSON does not have, `message_of` is used.
        key: the key or keys, or None.
        longest: the maximal characters of each text; None for no limit.
    """
    try:
        text = json.dumps(value, default=message_of, skipkeys=True)
        # NaN and infinities are not JSON, so they become texts.
        plain = _plain(json.loads(text, parse_constant=str), key, longest)
        return json.dumps(plain, ensure_ascii=False)
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
    """The time in UTC, as `2026-01-31T12:00:00.000Z`."""
    moment = datetime.datetime.now(datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _storable_value(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    return well_formed(value if isinstance(value, str) else message_of(value))


def _plain(value: Any, key: Keys, longest: int | None) -> Any:
    """A value out of JSON, with its texts redacted and shortened."""
    if isinstance(value, str):
        text = without_key(value, key)
        more = len(text) - longest if longest is not None else 0
        return f"{text[:longest]}… and {more:,} more characters" if more > 0 else text
    if isinstance(value, list):
        return [_plain(item, key, longest) for item in value]
    if isinstance(value, dict):
        return {_plain(k, key, longest): _plain(v, key, longest) for k, v in value.items()}
    return value

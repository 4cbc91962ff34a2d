"""What providers, plugins and callers said, as SQLite and JSON can hold it, and without keys."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm.utils import monotonic_ulid

from .redaction import Keys, without_key

if TYPE_CHECKING:
    from .redaction import Keys


# Of a purpose, an id, an error: no reader wants more of it in a table.
MAX_TEXT_CHARS = 2_000
# More tokens than any request has; a million calls with so many still add up in 63 bits.
MAX_COUNT = 10**12


def brief(value: object, key: Keys = None) -> str:
    """What a value says of itself, without a key, in no more than `MAX_TEXT_CHARS`."""
    return well_formed(without_key(message_of(value), key)[:MAX_TEXT_CHARS])


def as_json(value: object, key: Keys, longest: int | None = None) -> str:
    """A value as JSON that any program reads, without a key in any of its texts.

    Args:
        value: what was said; what JSON does not know says of itself what it is.
        key: the key, or None.
        longest: how many characters of each text are kept; None for all.
    """
    try:
        text = json.dumps(value, default=message_of, skipkeys=True)
        # NaN and its like are names in JavaScript, and nothing in JSON.
        plain = _plain(json.loads(text, parse_constant=str), key, longest)
        return json.dumps(plain, ensure_ascii=False)
    except (ValueError, RecursionError):  # it contains itself, or is endlessly deep
        return json.dumps(f"{type(value).__name__} that cannot be written as JSON")


def message_of(value: object) -> str:
    """What a value says of itself, or that it cannot."""
    try:
        return str(value)
    except Exception:  # a stranger's __str__
        return f"{type(value).__name__} that cannot be shown"


def count(value: object) -> int | None:
    """A provider's number of tokens; None for what is no such number."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_COUNT else None


def well_formed(text: str) -> str:
    """A text that can be encoded: halves of surrogate pairs are joined, or marked as lost."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # As of a character that came in two chunks.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose values SQLite can hold."""
    return {name: _storable_value(value) for name, value in row.items()}


def _storable_value(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    return well_formed(value if isinstance(value, str) else message_of(value))


def _plain(value: Any, key: Keys, longest: int | None) -> Any:
    """A value out of JSON, with its texts cleared and cut."""
    if isinstance(value, str):
        text = without_key(value, key)
        more = len(text) - longest if longest is not None else 0
        return f"{text[:longest]}… and {more:,} more characters" if more > 0 else text
    if isinstance(value, list):
        return [_plain(item, key, longest) for item in value]
    if isinstance(value, dict):
        return {_plain(k, key, longest): _plain(v, key, longest) for k, v in value.items()}
    return value


def new_id() -> str:
    """The id of a row that no response has: a ULID, in small letters as llm's."""
    return str(monotonic_ulid()).lower()


def now() -> str:
    """The time in UTC, as `2026-01-31T12:00:00.000Z`."""
    moment = datetime.datetime.now(datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

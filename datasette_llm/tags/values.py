"""Tags of calls: checked, merged, and set for a block of code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from ..errors import TagError

TagValue = str | int | float
Tags = Mapping[str, TagValue]

NO_TAGS: Tags = MappingProxyType({})
MAX_TAGS = 20
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 200
# Of the keys that datasette-llm sets by itself.
OURS = "source."

_KEY = re.compile(r"[a-z][a-z0-9_.-]*")
_MAX_INTEGER = 2**63 - 1  # of SQLite
# Of the block of code that runs; without any it is `NO_TAGS` itself.
current: ContextVar[Tags] = ContextVar("datasette_llm_tags", default=NO_TAGS)


@contextmanager
def tagged(tags: Tags | None = None, /, **more: TagValue) -> Iterator[None]:
    """Tag every call that begins in the block, also by code that knows nothing of tags.

    Blocks nest, and the inner one wins. A task that starts in the block keeps its tags.

    Args:
        tags: tags, for keys that are no names in Python.
        **more: tags.

    Raises:
        TagError: a tag is invalid, or there are too many.
    """
    token = current.set(limited({**current.get(), **checked(tags), **checked(more)}))
    try:
        yield
    finally:
        current.reset(token)


def checked(tags: object) -> Tags:
    """Tags as a caller gives them, in a mapping of its own.

    Args:
        tags: a mapping, or None.

    Raises:
        TagError: a tag is invalid, or there are too many.
    """
    if tags is None:
        return NO_TAGS
    if not isinstance(tags, Mapping):
        raise TagError(f"tags= takes a mapping such as {{'job': 12}}, not {type(tags).__name__}")
    found = {_checked_key(key): _checked_value(key, value) for key, value in tags.items()}
    return limited(found) if found else NO_TAGS


def limited(tags: Tags) -> Tags:
    """The same tags, where they are not too many for a call.

    Raises:
        TagError: they are.
    """
    if len(tags) > MAX_TAGS and len(keys := given(tags)) > MAX_TAGS:
        raise TagError(
            f"A call takes up to {MAX_TAGS} tags, and these are {len(keys)}: "
            f"{', '.join(sorted(keys))}. Leave some out"
        )
    return tags


def given(tags: Tags) -> Tags:
    """The tags that callers gave, without those that datasette-llm set."""
    return {key: value for key, value in tags.items() if not key.startswith(OURS)}


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or len(key) > MAX_KEY_CHARS or not _KEY.fullmatch(key):
        raise TagError(
            f"Tag {_shown(key)}: a key begins with a lower-case letter and has lower-case letters, "
            f"digits, '_', '.' and '-', {MAX_KEY_CHARS} characters at most, such as 'job'"
        )
    if key.startswith(OURS):
        raise TagError(
            f"Tag {_shown(key)}: keys that begin with {OURS!r} are set by datasette-llm; use "
            "another"
        )
    return str.__str__(key)


def _checked_value(key: object, value: object) -> TagValue:
    """A value as a plain text or number: subclasses may print themselves in other ways."""
    who = f"Tag {_shown(key)}"
    if isinstance(value, str):
        if len(value) > MAX_VALUE_CHARS:
            raise TagError(
                f"{who}: its value has {len(value):,} characters, and {MAX_VALUE_CHARS} is the "
                "most; tag with an id instead"
            )
        return str.__str__(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TagError(
            f"{who}: its value is {type(value).__name__}, which is neither text nor a number; "
            "make it one, or leave the tag out"
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TagError(f"{who}: its value is {value}, which is no finite number")
        return float(value)
    if abs(value) > _MAX_INTEGER:
        raise TagError(f"{who}: its value has more than 64 bits; make it a text")
    return int(value)


def _shown(key: object) -> str:
    text = repr(key) if isinstance(key, str) else type(key).__name__
    return text if len(text) <= MAX_KEY_CHARS + 2 else f"{text[:MAX_KEY_CHARS]}…"

"""Taking a key out of what an exception says, whoever made it say so."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

import llm

REDACTED = "[key removed]"
# What an OSError says is in these, whatever its args are changed to.
_OS_ERROR_TEXTS = ("strerror", "filename", "filename2")
# Below this a "key" is a placeholder such as "x", and removing it would garble every message.
SHORTEST_KEY_CHARS = 6
MAX_LEVELS = 20

# One key or several, as of a call whose fallbacks have keys of their own.
Keys = str | frozenset[str] | None

# What JSON and URLs leave as it is; nearly every key.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.~-]+")


def redact(error: BaseException, key: Keys) -> BaseException:
    """Take a key out of all that an exception says.

    Args:
        error: what a provider raised; changed in place, its causes included.
        key: the key that was used, or the keys, or None.

    Returns:
        The same exception; where it says the key in a way that cannot be changed, an
        `llm.ModelError` in its place.
    """
    ways = spellings(key)
    return _redacted(error, ways, set()) if ways else error


def without_key(text: str, key: Keys) -> str:
    """A text with a key taken out, in whichever way it writes it."""
    return _cleared(text, spellings(key))


def without_keys(text: str, keys: Iterable[str]) -> str:
    """A text with some keys taken out; one may be part of another, so the long ones go first."""
    return without_key(text, frozenset(keys))


def spellings(key: Keys) -> tuple[str, ...]:
    """How a text may write a key: as it is, in JSON, in JSON within JSON, in a URL.

    Empty where there is nothing to look for. A long way to write it comes before one that
    may be part of it.
    """
    if isinstance(key, frozenset):
        if len(key) != 1:
            return _longest_first(way for each in key for way in spellings(each))
        (key,) = key
    if not key or len(key) < SHORTEST_KEY_CHARS:
        return ()
    if _PLAIN_KEY.fullmatch(key):
        return (key,)
    in_json = [json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]]
    deeper = [json.dumps(text)[1:-1] for text in in_json]
    raw = key.encode("utf-8", "surrogatepass")
    in_url = [urllib.parse.quote(raw, safe=""), urllib.parse.quote_plus(raw)]
    lower = [re.sub("%..", lambda code: code[0].lower(), text) for text in in_url]
    return _longest_first((key, *in_json, *deeper, *in_url, *lower))


def _longest_first(ways: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(ways), key=lambda way: (-len(way), way)))


def _redacted(error: BaseException, ways: tuple[str, ...], seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    names = ["args", *vars(error), *(_OS_ERROR_TEXTS if isinstance(error, OSError) else ())]
    for name in names:
        _clean_attribute(error, name, ways)
    for name in ("request", "response"):
        _clean_http(_attribute(error, name), ways)
    suppress = error.__suppress_context__
    for link in ("__cause__", "__context__"):
        linked = getattr(error, link)
        clean = _redacted(linked, ways, seen) if linked is not None else None
        if clean is not linked:
            BaseException.__setattr__(error, link, clean)
            BaseException.__setattr__(error, "__suppress_context__", suppress)
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    replaced = [part for part in parts if _redacted(part, ways, seen) is not part]
    if replaced or _says(error, ways):
        return llm.ModelError(f"{type(error).__name__}: {_cleared(str(error), ways)}")
    return error


def _clean_http(message: Any, ways: tuple[str, ...]) -> None:
    """Take a key out of the request or response that an HTTP client's exception carries.

    Providers' clients are built on httpx, whose requests keep their Authorization header and
    whose responses keep what the server said in `_content` and `_text`, and their request; what
    was sent is also in its `stream`.
    """
    if message is None:
        return
    for name in ("_content", "_text"):
        _clean_attribute(message, name, ways)
    _clean_attribute(_attribute(message, "stream"), "_stream", ways)
    headers = _attribute(message, "headers")
    with contextlib.suppress(Exception):  # a stranger's object, which need not be like httpx's
        for name in [name for name, value in headers.items() if _written_in(str(value), ways)]:
            headers[name] = _without(headers[name], ways)
    url = _attribute(message, "url")
    with contextlib.suppress(Exception):
        if _written_in(str(url), ways):
            message.url = type(url)(_cleared(str(url), ways, "removed"))
    request = _attribute(message, "request")
    if request is not message:
        _clean_http(request, ways)


def _attribute(thing: Any, name: str) -> Any:
    """An attribute of a stranger's object; None also where reading it raises, as httpx may."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _clean_attribute(thing: Any, name: str, ways: tuple[str, ...]) -> None:
    value = _attribute(thing, name)
    clean = _without(value, ways)
    if clean is not value:
        with contextlib.suppress(Exception):  # what cannot be changed is replaced as a whole
            object.__setattr__(thing, name, clean)


def _says(error: BaseException, ways: tuple[str, ...]) -> bool:
    try:
        return _written_in(str(error), ways) or _written_in(repr(error), ways)
    except Exception:  # a stranger's __str__
        return False


def _without(value: Any, ways: tuple[str, ...], levels: int = MAX_LEVELS) -> Any:
    """A value with a key taken out of its texts; the very same object if it was not in it."""
    if not levels:
        return value  # so deep that it may well contain itself
    if isinstance(value, str):
        return _cleared(value, ways)
    if isinstance(value, bytes):
        for raw in (way.encode("utf-8", "surrogatepass") for way in ways):
            value = value.replace(raw, REDACTED.encode()) if raw in value else value
        return value
    if type(value) in (list, tuple):
        clean = [_without(item, ways, levels - 1) for item in value]
        same = all(a is b for a, b in zip(clean, value, strict=True))
        return value if same else type(value)(clean)
    if type(value) is dict:
        pairs = {_without(k, ways): _without(v, ways, levels - 1) for k, v in value.items()}
        same = all(a is b for a, b in zip(pairs.values(), value.values(), strict=True))
        return value if same and pairs.keys() == value.keys() else pairs
    return value


def _written_in(text: str, ways: tuple[str, ...]) -> bool:
    return any(way in text for way in ways)


def _cleared(text: str, ways: tuple[str, ...], instead: str = REDACTED) -> str:
    """A text without any of some; the very same object if it has none."""
    for way in ways:
        if way in text:
            text = text.replace(way, instead)
    return text

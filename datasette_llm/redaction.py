"""Taking a key out of what an exception says, whoever made it say so."""

from __future__ import annotations

import contextlib
from typing import Any

import llm

REDACTED = "[key removed]"
# What an OSError says is in these, whatever its args are changed to.
_OS_ERROR_TEXTS = ("strerror", "filename", "filename2")
# Below this a "key" is a placeholder such as "x", and removing it would garble every message.
SHORTEST_KEY_CHARS = 6
MAX_LEVELS = 20


def redact(error: BaseException, key: str | None) -> BaseException:
    """Take a key out of all that an exception says.

    Args:
        error: what a provider raised; changed in place, its causes included.
        key: the key that was used, or None.

    Returns:
        The same exception; where it says the key in a way that cannot be changed, an
        `llm.ModelError` in its place.
    """
    if not key or len(key) < SHORTEST_KEY_CHARS:
        return error
    return _redacted(error, key, set())


def _redacted(error: BaseException, key: str, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    names = ["args", *vars(error), *(_OS_ERROR_TEXTS if isinstance(error, OSError) else ())]
    for name in names:
        _clean_attribute(error, name, key)
    for name in ("request", "response"):
        _clean_http(_attribute(error, name), key)
    suppress = error.__suppress_context__
    for link in ("__cause__", "__context__"):
        linked = getattr(error, link)
        clean = _redacted(linked, key, seen) if linked is not None else None
        if clean is not linked:
            BaseException.__setattr__(error, link, clean)
            BaseException.__setattr__(error, "__suppress_context__", suppress)
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    replaced = [part for part in parts if _redacted(part, key, seen) is not part]
    if replaced or _says(error, key):
        return llm.ModelError(f"{type(error).__name__}: {str(error).replace(key, REDACTED)}")
    return error


def _clean_http(message: Any, key: str) -> None:
    """Take a key out of the request or response that an HTTP client's exception carries.

    Providers' clients are built on httpx, whose requests keep their Authorization header and
    whose responses keep what the server said in `_content` and `_text`, and their request.
    """
    if message is None:
        return
    for name in ("_content", "_text"):
        _clean_attribute(message, name, key)
    headers = _attribute(message, "headers")
    with contextlib.suppress(Exception):  # a stranger's object, which need not be like httpx's
        for name in [name for name, value in headers.items() if key in str(value)]:
            headers[name] = _without(headers[name], key)
    url = _attribute(message, "url")
    with contextlib.suppress(Exception):
        if key in str(url):
            message.url = type(url)(str(url).replace(key, "removed"))
    request = _attribute(message, "request")
    if request is not message:
        _clean_http(request, key)


def _attribute(thing: Any, name: str) -> Any:
    """An attribute of a stranger's object; None also where reading it raises, as httpx may."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _clean_attribute(thing: Any, name: str, key: str) -> None:
    value = _attribute(thing, name)
    clean = _without(value, key)
    if clean is not value:
        with contextlib.suppress(Exception):  # what cannot be changed is replaced as a whole
            object.__setattr__(thing, name, clean)


def _says(error: BaseException, key: str) -> bool:
    try:
        return key in str(error) or key in repr(error)
    except Exception:  # a stranger's __str__
        return False


def _without(value: Any, key: str, levels: int = MAX_LEVELS) -> Any:
    """A value with a key taken out of its texts; the very same object if it was not in it."""
    if not levels:
        return value  # so deep that it may well contain itself
    if isinstance(value, str):
        return value.replace(key, REDACTED) if key in value else value
    if isinstance(value, bytes):
        raw = key.encode()
        return value.replace(raw, REDACTED.encode()) if raw in value else value
    if type(value) in (list, tuple):
        clean = [_without(item, key, levels - 1) for item in value]
        same = all(a is b for a, b in zip(clean, value, strict=True))
        return value if same else type(value)(clean)
    if type(value) is dict:
        pairs = {_without(k, key): _without(v, key, levels - 1) for k, v in value.items()}
        same = all(a is b for a, b in zip(pairs.values(), value.values(), strict=True))
        return value if same and pairs.keys() == value.keys() else pairs
    return value

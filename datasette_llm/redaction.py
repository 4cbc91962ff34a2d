"""Remove API keys from texts and exceptions."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

import llm

REDACTED = "[key removed]"
# A shorter "key" is a placeholder such as "x"; removing it would garble every message.
SHORTEST_KEY_CHARS = 6
MAX_LEVELS = 20

# One key or several, since fallbacks have their own.
Keys = str | frozenset[str] | None

# What a text may be cut within: so many different characters are no key yet.
_CUT_WORD = re.compile(r"[\w.~+/=-]*\Z", re.ASCII)
_PLAIN_CHARS = 8
# Characters that JSON and URLs do not escape; nearly every key has only these.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.~-]+")


def redact(error: BaseException, key: Keys) -> BaseException:
    """Remove a key from an exception: its message, attributes, HTTP messages and causes.

    Args:
        error: a provider's exception; changed in place, its causes included.
        key: the key or keys that were used, or None.

    Returns:
        The same exception; or an `llm.ModelError` in its place, if it still shows the key.
    """
    forms = spellings(key)
    return _redacted(error, forms, set()) if forms else error


def cut(text: str, size: int) -> str:
    """The beginning of a text, without half a key at its end, which would not be known for one.

    Args:
        text: may hold a key that is to be removed later.
        size: how many characters are left at most.
    """
    if len(text) <= size:
        return text
    start = text[: size - 1]
    found = _CUT_WORD.search(start)
    word = found[0] if found else ""
    return (start.removesuffix(word).rstrip() if len(set(word)) > _PLAIN_CHARS else start) + "…"


def without_key(text: str, key: Keys) -> str:
    """A text with a key removed, in all spellings."""
    return _cleared(text, spellings(key))


def without_keys(text: str, keys: Iterable[str]) -> str:
    """A text with several keys removed, the longest first, since one may contain another."""
    return without_key(text, frozenset(keys))


def spellings(key: Keys) -> tuple[str, ...]:
    """The spellings of a key: as it is, in JSON, in JSON within JSON, in a URL.

    The longest first, since one may contain another; empty if there is nothing to look for.
    """
    if isinstance(key, frozenset):
        if len(key) != 1:
            return _longest_first(form for each in key for form in spellings(each))
        (key,) = key
    key = key.strip() if key else ""  # a key is sent without white space around it
    if len(key) < SHORTEST_KEY_CHARS:
        return ()
    if _PLAIN_KEY.fullmatch(key):
        return (key,)
    in_json = [json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]]
    deeper = [json.dumps(text)[1:-1] for text in in_json]
    raw = key.encode("utf-8", "surrogatepass")
    in_url = [urllib.parse.quote(raw, safe=""), urllib.parse.quote_plus(raw)]
    lower = [re.sub("%..", lambda code: code[0].lower(), text) for text in in_url]
    return _longest_first((key, *in_json, *deeper, *in_url, *lower))


def _longest_first(forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(forms), key=lambda form: (-len(form), form)))


def _redacted(error: BaseException, forms: tuple[str, ...], seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    for name in ("request", "response"):
        _clean_http(_attribute(error, name), forms)
    suppress = error.__suppress_context__
    for link in ("__cause__", "__context__"):
        linked = getattr(error, link)
        clean = _redacted(linked, forms, seen) if linked is not None else None
        if clean is not linked:
            BaseException.__setattr__(error, link, clean)
            BaseException.__setattr__(error, "__suppress_context__", suppress)
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    replaced = [part for part in parts if _redacted(part, forms, seen) is not part]
    for name in _attributes(error):  # last, when the exceptions among them are clean
        _clean_attribute(error, name, forms)
    if replaced or _shows(error, forms):
        return llm.ModelError(f"{type(error).__name__}: {_cleared(str(error), forms)}")
    return error


def _attributes(error: BaseException) -> set[str]:
    """The names of what an exception holds, also outside of its `__dict__`.

    For example the `object` of a UnicodeEncodeError, which is the whole text, and the `strerror`
    of an OSError, which its message is made from.
    """
    fields = {
        name
        for kind in type(error).__mro__
        for name, item in vars(kind).items()
        if isinstance(item, MemberDescriptorType | GetSetDescriptorType)
    }
    return {"args", *vars(error), *(name for name in fields if not name.startswith("__"))}


def _clean_http(message: Any, forms: tuple[str, ...]) -> None:
    """Remove a key from the request or response of an HTTP client's exception.

    Providers' clients are built on httpx. Its requests have the Authorization header and the
    body in `stream`; its responses have the body in `_content` and `_text`, and their request.
    """
    if message is None:
        return
    for name in ("_content", "_text"):
        _clean_attribute(message, name, forms)
    _clean_attribute(_attribute(message, "stream"), "_stream", forms)
    headers = _attribute(message, "headers")
    with contextlib.suppress(Exception):  # a third-party object, which may differ from httpx's
        for name in [name for name, value in headers.items() if _written_in(str(value), forms)]:
            headers[name] = _without(headers[name], forms)
    url = _attribute(message, "url")
    with contextlib.suppress(Exception):
        if _written_in(str(url), forms):
            message.url = type(url)(_cleared(str(url), forms, "removed"))
    request = _attribute(message, "request")
    if request is not message:
        _clean_http(request, forms)


def _attribute(thing: Any, name: str) -> Any:
    """An attribute of a third-party object; None also if reading it raises, as httpx may."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _clean_attribute(thing: Any, name: str, forms: tuple[str, ...]) -> None:
    value = _attribute(thing, name)
    clean = _without(value, forms)
    if clean is not value:
        with contextlib.suppress(Exception):  # the exception is replaced then
            object.__setattr__(thing, name, clean)


def _shows(error: BaseException, forms: tuple[str, ...]) -> bool:
    try:
        return _written_in(str(error), forms) or _written_in(repr(error), forms)
    except Exception:  # a third-party __str__ or __repr__
        return False


def _without(value: Any, forms: tuple[str, ...], levels: int = MAX_LEVELS) -> Any:
    """A value with a key removed from its texts; the same object if it has no key."""
    if not levels:
        return value  # it may contain itself
    if isinstance(value, str):
        return _cleared(value, forms)
    if isinstance(value, bytes | bytearray):
        for raw in (form.encode("utf-8", "surrogatepass") for form in forms):
            value = value.replace(raw, REDACTED.encode()) if raw in value else value
        return value
    if type(value) in (list, tuple, set, frozenset):
        clean = [_without(item, forms, levels - 1) for item in value]
        same = all(a is b for a, b in zip(clean, value, strict=True))
        return value if same else type(value)(clean)
    if type(value) is dict:
        pairs = {_without(k, forms): _without(v, forms, levels - 1) for k, v in value.items()}
        same = all(a is b for a, b in zip(pairs.values(), value.values(), strict=True))
        return value if same and pairs.keys() == value.keys() else pairs
    return _shown_without(value, forms)


def _shown_without(value: Any, forms: tuple[str, ...]) -> Any:
    """A value of any other type; where it shows a key, what it shows without it."""
    try:
        text = repr(value)
    except Exception:  # a third-party __repr__
        return value
    return _cleared(text, forms) if _written_in(text, forms) else value


def _written_in(text: str, forms: tuple[str, ...]) -> bool:
    return any(form in text for form in forms)


def _cleared(text: str, forms: tuple[str, ...], instead: str = REDACTED) -> str:
    """A text with all of these replaced; the same object if it has none."""
    for form in forms:
        if form in text:
            text = text.replace(form, instead)
    return text

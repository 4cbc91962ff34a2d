"""Remove API keys from texts and exceptions.

A text is cut by `shortened`, which cuts no key in half. Before its keys are known it is cut by
`cut`, which puts a mark at the end: half a key next to a mark is removed, too.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

import llm

REDACTED = "[key removed]"
# A shorter "key" is a placeholder such as "x"; removing it would garble every message.
SHORTEST_KEY_CHARS = 6
MAX_LEVELS = 20

# One key or several, since fallbacks have their own.
Keys = str | frozenset[str] | None

# Stands where a text was cut.
MARK = "…"
_MARKS = (MARK, "...")  # the second is of others
# What a text may be cut within: so many different characters are no key yet.
_CUT_WORD = re.compile(r"[\w.~+/=-]*\Z", re.ASCII)
_PLAIN_CHARS = 8


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
    """The beginning of a text, without half a key at its end as far as that can be known.

    Args:
        text: may hold a key that is to be removed later.
        size: how many characters are left at most, the mark included.
    """
    if len(text) <= size:
        return text
    start = text[: size - 1]
    found = _CUT_WORD.search(start)
    word = found[0] if found else ""
    return (start.removesuffix(word).rstrip() if len(set(word)) > _PLAIN_CHARS else start) + MARK


def without_key(text: str, key: Keys) -> str:
    """A text with a key removed, in all spellings."""
    forms = spellings(key)
    return _cleared(text, forms) if forms else text


def shortened(text: str, key: Keys, longest: int) -> str:
    """The beginning of a text with a key removed, also one that begins in it and ends later.

    Args:
        text: the text; no more of it is searched than is kept.
        key: the key or keys, or None.
        longest: the maximal number of characters.
    """
    if len(text) > longest:
        text = text[: _end(text, spellings(key), longest)]
    return without_key(text, key)[:longest]


def without_keys(text: str, keys: Iterable[str]) -> str:
    """A text with several keys removed, the longest first, since one may contain another."""
    return without_key(text, frozenset(keys))


def key_begin(text: str, keys: Iterable[str]) -> str:
    """The longest end of a text that a spelling of a key begins with; empty without any.

    For a text that goes on: with what comes next, it may be a key.
    """
    begins = _begins(frozenset(keys))
    longest = max(map(len, begins), default=0)
    ends = (text[-size:] for size in range(min(longest, len(text)), 0, -1))
    return next((end for end in ends if end in begins), "")


@functools.lru_cache(maxsize=128)
def _begins(keys: frozenset[str]) -> frozenset[str]:
    return frozenset(form[:size] for form in spellings(keys) for size in range(1, len(form)))


@functools.lru_cache(maxsize=128)
def spellings(key: Keys) -> tuple[str, ...]:
    """The spellings of a key: as it is, in hex and base64, and all of these in JSON and URLs.

    The longest first, since one may contain another; empty if there is nothing to look for.
    """
    keys = key if isinstance(key, frozenset) else {key or ""}
    stripped = {each.strip() for each in keys}  # a key is sent without white space around it
    forms = {
        form
        for each in stripped
        if len(each) >= SHORTEST_KEY_CHARS
        for coded in _coded(each)
        for form in _written(coded)
    }
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _coded(key: str) -> Iterator[str]:
    """A key as it is, in hex, and in base64 by where it begins in what is encoded."""
    raw = key.encode("utf-8", "surrogatepass")
    yield from (key, raw.hex(), raw.hex().upper())
    for before in range(3):
        # Of `user:key` for example: the characters that depend on nothing but the key.
        whole = slice(-(before * 8 // -6), (before + len(raw)) * 8 // 6)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + raw).decode()[whole]


def _written(text: str) -> Iterator[str]:
    """A text as it is, in JSON, in JSON within JSON, in a URL."""
    in_json = [json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]]
    yield from (text, *in_json, text.replace("/", "\\/"))
    yield from (json.dumps(each)[1:-1] for each in in_json)
    raw = text.encode("utf-8", "surrogatepass")
    for in_url in (urllib.parse.quote(raw, safe=""), urllib.parse.quote_plus(raw)):
        yield from (in_url, re.sub("%..", lambda code: code[0].lower(), in_url))


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
        for name, value in list(headers.items()):
            if _shown_in(str(value), forms):
                headers[name] = _cleared(str(value), forms)
    url = _attribute(message, "url")
    with contextlib.suppress(Exception):
        if _shown_in(str(url), forms):
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
        return _shown_in(str(error), forms) or _shown_in(repr(error), forms)
    except Exception:  # a third-party __str__ or __repr__
        return False


def _without(value: Any, forms: tuple[str, ...], levels: int = MAX_LEVELS) -> Any:
    """A value with a key removed from its texts; the same object if it has no key."""
    if not levels:
        return value  # it may contain itself
    if isinstance(value, str):
        return _cleared(value, forms)
    if isinstance(value, bytes | bytearray):
        text = value.decode("utf-8", "surrogateescape")
        if (kept := _cleared(text, forms)) is text:
            return value
        return type(value)(kept.encode("utf-8", "surrogateescape"))
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
    return _cleared(text, forms) if _shown_in(text, forms) else value


def _shown_in(text: str, forms: tuple[str, ...]) -> bool:
    return _cleared(text, forms) is not text


def _cleared(text: str, forms: tuple[str, ...], instead: str = REDACTED) -> str:
    """A text with all of these replaced; the same object if it has none."""
    for form in forms:
        if form in text:
            text = text.replace(form, instead)
    for mark in _MARKS:
        if mark in text:
            text = _without_halves(text, mark, forms, instead)
    return text


def _without_halves(text: str, mark: str, forms: tuple[str, ...], instead: str) -> str:
    """A text without first halves before a mark and second halves after one."""
    for form in forms:
        if form[:SHORTEST_KEY_CHARS] in text:
            text = _without_half(text, mark, form, instead)
        if form[-SHORTEST_KEY_CHARS:] in text:
            backwards = text[::-1]
            clean = _without_half(backwards, mark[::-1], form[::-1], instead[::-1])
            text = text if clean is backwards else clean[::-1]
    return text


def _without_half(text: str, mark: str, form: str, instead: str) -> str:
    """A text without first halves of a spelling before a mark; the same object if it has none."""
    head, clean, done = form[:SHORTEST_KEY_CHARS], [], 0
    start = text.find(head)
    while start >= 0:
        end = text.find(mark, start + len(head), start + len(form) + len(mark))
        if end >= 0 and form.startswith(text[start:end]):
            clean += [text[done:start], instead]
            done = start = end
        start = text.find(head, start + 1)
    return "".join([*clean, text[done:]]) if clean else text


def _end(text: str, forms: tuple[str, ...], end: int) -> int:
    """Where to cut a text, so that none of these is cut in half."""
    while across := [start for form in forms if (start := _across(text, form, end)) >= 0]:
        end = min(across)
    return end


def _across(text: str, form: str, end: int) -> int:
    """Where in a text a spelling begins before this end and goes beyond it; -1 for nowhere."""
    return text.find(form, max(0, end - len(form) + 1), end + len(form) - 1)

"""Classify exceptions of any provider's library.

llm's plugins use their providers' clients, none of which are imported here. Exceptions are
classified by HTTP status or error code, by class names, and last by their messages.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import ssl
from collections.abc import Mapping

import llm

from ..errors import (
    FailureKind,
    HookError,
    ModelNotAllowedError,
    NotRecordedError,
    ProviderError,
    ResponseTimeoutError,
    StructuredOutputError,
)
from ..sanitize import message_of
from .exceptions import causes, own_status, part_of, places_of

# How the page and the command show each kind.
LABELS: Mapping[FailureKind, str] = {
    "no_key": "No key",
    "key_refused": "Key refused",
    "unknown_model": "Unknown model",
    "rate_limit": "Rate limit or quota",
    "network": "Network",
    "timeout": "Timeout",
    "bad_answer": "Bad answer",
    "blocked": "Blocked by a plugin",
    "not_allowed": "Not allowed",
    "other": "Other failure",
}

_OWN: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (ModelNotAllowedError, "not_allowed"),
    (llm.UnknownModelError, "unknown_model"),
    (llm.NeedsKeyException, "no_key"),
    (ResponseTimeoutError, "timeout"),
    (NotRecordedError, "blocked"),
    (HookError, "blocked"),
    (StructuredOutputError, "bad_answer"),
)

# From the errors that OpenAI, Anthropic, Google, Azure and AWS document.
_CODES: Mapping[str, FailureKind] = {
    "model_not_found": "unknown_model",
    "deploymentnotfound": "unknown_model",
    "invalid_api_key": "key_refused",
    "api_key_invalid": "key_refused",
    "authentication_error": "key_refused",
    "permission_error": "key_refused",
    "no_db_connection": "key_refused",  # LiteLLM without a database, of any unknown key
    "unauthenticated": "key_refused",
    "permission_denied": "key_refused",
    "unrecognizedclientexception": "key_refused",
    "accessdeniedexception": "key_refused",
    "expiredtokenexception": "key_refused",
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "insufficient_quota": "rate_limit",
    "billing_error": "rate_limit",
    "resource_exhausted": "rate_limit",
    "throttlingexception": "rate_limit",
    "deadline_exceeded": "timeout",
    "timeout_error": "timeout",
}

_STATUSES: Mapping[int, FailureKind] = {
    401: "key_refused",
    402: "rate_limit",
    403: "key_refused",
    408: "timeout",
    429: "rate_limit",
    504: "timeout",
}

# Names of classes, since the clients are built on httpx, httpx2, requests, aiohttp or urllib3.
_TIMEOUTS = {"TimeoutException", "APITimeoutError", "Timeout", "ReadTimeoutError"}
_TIMEOUTS |= {"ConnectTimeoutError", "DeadlineExceeded"}
_BROKEN = {"TransportError", "NetworkError", "ProtocolError", "APIConnectionError", "ProxyError"}
_BROKEN |= {"ClientConnectionError", "ClientPayloadError", "EndpointConnectionError"}
_NETWORK = (ConnectionError, socket.gaierror, socket.herror, ssl.SSLError)
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
_UNREACHABLE |= {errno.EADDRNOTAVAIL}

# What code raises that reads an unexpected answer.
_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, AttributeError, LookupError, TypeError)

_KEY = r"(api[ _-]?key|credentials?|(access|bearer) token)"
_WORDS: Mapping[FailureKind, re.Pattern[str]] = {
    "no_key": re.compile(
        rf"{_KEY}[\w ]{{0,20}} (must be set|required|missing|not set)|\b(no|missing) {_KEY}"
        "|could not resolve authentication|missing key inputs",
        re.I,
    ),
    "key_refused": re.compile(
        rf"(invalid|incorrect|wrong|expired) ([\w-]{{1,20}}[ -])?{_KEY}"
        rf"|{_KEY}[^.]{{0,30}} (not valid|invalid|expired|incorrect)"
        "|unauthori[sz]ed|unauthenticated|authentication ?(failed|error)",
        re.I,
    ),
    "unknown_model": re.compile(
        r"\b(model|deployment)s?\b.{0,120}(not found|not exist|n't exist)"
        r"|(unknown|no such) model|invalid model (name|id)|model_not_found",
        re.I,
    ),
    "rate_limit": re.compile(
        "rate.?limit|too many requests|quota|resource.?exhausted|credit balance"
        "|insufficient (balance|credit|funds)",
        re.I,
    ),
    "timeout": re.compile("timed? ?out|deadline exceeded", re.I),
    "network": re.compile(
        "connection (error|refused|reset|closed)|(failed|unable) to connect"
        "|connection attempts failed|could not connect|name or service not known",
        re.I,
    ),
}
_MODEL_WORD = re.compile(r"\b(model|deployment)", re.I)
_READ_CHARS = 2_000


def kind_of(error: BaseException) -> FailureKind:
    """The kind of failure of an exception that a model's code, or ours, raised.

    Not for exceptions of hooks, which may look like a provider's; the call knows the difference.

    Args:
        error: the exception; its causes count too.
    """
    errors = list(causes(error))
    for rule in (_own, _coded, _by_status, _timed_out, _by_network, _by_words, _unreadable):
        for each in errors:
            kind = rule(each)
            if kind is not None:
                return kind
    return "other"


def did_not_connect(error: BaseException) -> bool:
    """Whether an exception or one of its causes is a network failure or a timeout."""
    return any(_timed_out(each) or _by_network(each) for each in causes(error))


def failure_message(error: BaseException, kind: FailureKind | None) -> str:
    """The message of an exception, for people to read; it may hold a key.

    Args:
        error: the exception.
        kind: its kind, or None. For network failures clients only say "Connection error", so the
            messages of the causes are added.
    """
    text = _sentence(error)
    if kind in ("network", "timeout"):
        # Also those that a client suppressed with "from None", which are often the reason.
        behind = causes(error, suppressed=True)
        # How a timeout stops a request is no reason.
        known = (each for each in behind if not isinstance(each, asyncio.CancelledError))
        reasons = dict.fromkeys(map(_sentence, known))
        reasons.pop(text, None)
        text += f" ({'; '.join(reasons)})" if reasons else ""
    notes = getattr(error, "__notes__", ())
    return "\n".join([text, *(note for note in notes if isinstance(note, str))])


def _sentence(error: BaseException) -> str:
    """Its message; after its type for builtin ones, such as a KeyError with `'choices'`."""
    text = message_of(error).strip()
    name = type(error).__name__
    if not text:
        return name
    return f"{name}: {text}" if type(error).__module__ == "builtins" else text


def _own(error: BaseException) -> FailureKind | None:
    if isinstance(error, ProviderError):
        return error.kind
    return next((kind for own, kind in _OWN if isinstance(error, own)), None)


def _coded(error: BaseException) -> FailureKind | None:
    for place in places_of(error):
        for name in ("code", "type", "status", "reason", "Code"):
            code = part_of(place, name)
            kind = _CODES.get(code.lower()) if isinstance(code, str) else None
            if kind is not None:
                return kind
    return None


def _by_status(error: BaseException) -> FailureKind | None:
    status = own_status(error)
    if status is None:
        return None
    if status in _STATUSES:
        return _STATUSES[status]
    if status == 404:  # it may also be a wrong address
        return "unknown_model" if _MODEL_WORD.search(_text(error)) else "other"
    # An error event in a stream that began with a success.
    failed_later = part_of(part_of(error, "body"), "error") is not None
    if status < 300 and not failed_later:
        return "bad_answer"  # the request succeeded, and reading its answer failed
    return (_by_words(error) if status < 500 else None) or "other"


def _timed_out(error: BaseException) -> FailureKind | None:
    return "timeout" if isinstance(error, TimeoutError) or _named(error, _TIMEOUTS) else None


def _by_network(error: BaseException) -> FailureKind | None:
    # Of the other OSErrors, most are about files.
    unreachable = isinstance(error, OSError) and error.errno in _UNREACHABLE
    known = isinstance(error, _NETWORK) or unreachable or _named(error, _BROKEN)
    return "network" if known else None


def _by_words(error: BaseException) -> FailureKind | None:
    text = _text(error)
    return next((kind for kind, pattern in _WORDS.items() if pattern.search(text)), None)


def _unreadable(error: BaseException) -> FailureKind | None:
    unreadable = isinstance(error, _UNREADABLE) or _named(error, {"DecodingError"})
    return "bad_answer" if unreadable else None


def _named(error: BaseException, names: set[str]) -> bool:
    return any(each.__name__ in names for each in type(error).__mro__)


def _text(error: BaseException) -> str:
    return message_of(error)[:_READ_CHARS]

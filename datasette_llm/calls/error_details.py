"""What a provider says about a failure: codes, fields and texts, wherever its client puts them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..providers.exceptions import causes, part_of
from ..sanitize import message_of

MAX_NODES = 500
MAX_TEXT_CHARS = 4_000
# Gateways send the body of the provider behind them as a text.
_MAX_JSON_CHARS = 20_000

_CODES = ("code", "type", "status", "reason")


def codes_of(error: BaseException) -> frozenset[str]:
    """The codes and types that name a failure, in lower case, letters and digits only.

    Args:
        error: the failure; `RateLimitError` and `rate_limit_error` are both `ratelimiterror`.
    """
    own = [(name, part_of(each, name)) for each in causes(error) for name in _CODES]
    named = [value for name, value in [*own, *fields_of(error)] if name in _CODES]
    return frozenset(_plain(value) for value in named if isinstance(value, str))


def fields_of(error: BaseException) -> Iterator[tuple[str, Any]]:
    """Every field of the bodies of a failure, at any depth; names as in `codes_of()`.

    Args:
        error: the failure.
    """
    todo: list[Any] = list(_bodies(error))
    for _ in range(MAX_NODES):
        if not todo:
            return
        value = _parsed(todo.pop(0))
        if isinstance(value, Mapping):
            yield from ((_plain(str(name)), each) for name, each in value.items())
            todo += value.values()
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            todo += value


def text_of(error: BaseException) -> str:
    """The messages of a failure and its causes, and the texts of its bodies; bounded.

    Args:
        error: the failure.
    """
    texts = [message_of(each) for each in causes(error)]
    texts += [body for body in _bodies(error) if isinstance(body, str)]
    texts += [value for _, value in fields_of(error) if isinstance(value, str)]
    return "\n".join(text[:MAX_TEXT_CHARS] for text in dict.fromkeys(texts))[:MAX_TEXT_CHARS]


def _bodies(error: BaseException) -> Iterator[Any]:
    for each in causes(error):
        response = part_of(each, "response")
        # google-genai has its body in `details`, botocore in `response` itself.
        found = [part_of(each, "body"), part_of(each, "details"), part_of(response, "text")]
        found += [response] if isinstance(response, Mapping) else []
        yield from (body for body in found if isinstance(body, str | Mapping | list | tuple))


def _parsed(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > _MAX_JSON_CHARS or value[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name[:100].lower())

"""The key of the response cache: a digest of everything that a request is made of.

Every attribute of llm's prompt counts, as it is found at run time: one that a later llm adds makes
another digest. What cannot be written down exactly has none, so that its answer is not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import llm
import pydantic

# Of the form that is digested; another form needs another number.
VERSION = 2
# What llm's models know of the server that they ask, besides the class and the id.
_OF_SERVER = ("model_name", "api_base", "api_type", "api_version", "api_engine")
# How the environment variables end in which the clients of providers look for a server, and for
# what it sees beside the request; those of openai's client, which has names of its own, last.
_OF_ENVIRONMENT = (
    *("_BASE_URL", "_API_BASE", "_API_URL", "_API_HOST", "_ENDPOINT", "OLLAMA_HOST"),
    *("OPENAI_API_VERSION", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"),
)


class UncacheableError(Exception):
    """A request of which no exact form can be written down."""


def canonical(
    prompt: llm.Prompt,
    model: Any,
    *,
    stream: bool,
    scope: Mapping[str, str | None],
    turns: Sequence[Any] = (),
) -> str:
    """The canonical form of a request. Reads the files of attachments.

    Args:
        prompt: what is asked.
        model: llm's own model, which is asked.
        stream: whether the answer is wanted piece by piece.
        scope: for whom the answer is kept.
        turns: of its conversation, which some plugins read though `messages=` were given.

    Raises:
        UncacheableError: the prompt has tools, an attachment by its address, or a value without
            an exact form.
    """
    if prompt.tools:
        raise UncacheableError("The prompt has tools")
    form: list[str] = []
    try:
        fields = {name: value for name, value in vars(prompt).items() if name != "model"}
        earlier = [_turn(each) for each in turns]
        asked = [_name(prompt), fields, earlier]
        _write([VERSION, dict(scope), _identity(model), stream, *asked], form.append)
    except UncacheableError:
        raise
    except Exception as error:  # of what a caller gave, or of a file that has gone
        raise UncacheableError(f"{type(error).__name__}: {error}") from error
    return "".join(form)


def digest(form: str) -> bytes:
    """The SHA-256 of a canonical form."""
    return hashlib.sha256(form.encode(errors="surrogatepass")).digest()


def _identity(model: Any) -> list[Any]:
    own = getattr(model, "sync_model", model)
    server: list[Any] = [str(getattr(own, name, None)) for name in _OF_SERVER]
    secret = getattr(own, "credentials", None)
    if secret is None:
        # It is not known which headers are credentials: another one of these is a miss, too.
        server += [str(getattr(own, "headers", None)), server_variables(int(time.monotonic()))]
    else:  # of an endpoint, which takes nothing from the environment
        server.append({name: value for name, value in own.headers.items() if value not in secret})
    return [_name(own), str(own.model_id), *server]


@lru_cache(maxsize=1)
def server_variables(second: int) -> list[tuple[str, str]]:
    """What the environment says of servers, looked at once a second.

    Args:
        second: of the clock.
    """
    found = [name for name in os.environ if name.endswith(_OF_ENVIRONMENT)]
    return [(name, os.environ[name]) for name in sorted(found)]


def _turn(response: Any) -> list[Any]:
    prompt = response.prompt
    asked = [prompt.prompt, prompt.system, prompt.attachments, prompt.tool_results]
    return [*asked, response.text_or_raise(), response.tool_calls_or_raise()]


def _write(value: Any, put: Callable[[str], object]) -> None:
    """Write a value down, so that different values differ.

    Each begins with its type, and ends where its length or its kind says, so that none can look
    like a part of another.
    """
    kind = type(value)
    if kind is str:
        put(f"str {len(value)}:")
        put(value)
    elif value is None or kind in (bool, int, float):
        put(f"{value!r};")
    elif kind in (list, tuple):
        put(f"{kind.__name__} {len(value)}:")
        for each in value:
            _write(each, put)
    elif kind is dict:  # in its order, which models see
        put(f"dict {len(value)}:")
        for name, each in value.items():
            _write(name, put)
            _write(each, put)
    elif kind is bytes:
        put(f"bytes {hashlib.sha256(value).hexdigest()}")
    else:
        put("object ")
        _write([_name(value), *_parts(value)], put)


def _parts(value: Any) -> Sequence[Any]:
    """What tells apart two values of a type that has no form of its own."""
    if isinstance(value, llm.Attachment):
        return _attachment(value)
    if isinstance(value, Enum):  # before texts and numbers, which many are, too
        return value.name, value.value
    if isinstance(value, str):  # llm's fragments
        return str.__str__(value), _ordered(vars(value))
    if isinstance(value, pydantic.BaseModel):
        parts = (_ordered(vars(value)), value.model_extra, value.__pydantic_private__)
        return sorted(value.model_fields_set), *parts
    if dataclasses.is_dataclass(value):
        names = dict.fromkeys([*(f.name for f in dataclasses.fields(value)), *vars(value)])
        return (_ordered({name: getattr(value, name) for name in names}),)
    raise UncacheableError(f"A value of type {_name(value)}")


def _attachment(attachment: llm.Attachment) -> Sequence[Any]:
    """An attachment by its bytes: where they are is no part of what is asked."""
    content = attachment.content
    if not content and attachment.path:
        content = Path(attachment.path).read_bytes()
    asks_server = attachment.url and not (attachment.type or attachment.path)
    if not content or asks_server:  # for its bytes, or for their type
        raise UncacheableError("What is at the address of an attachment may change")
    where = ("content", "path", "_id")
    rest = {name: value for name, value in vars(attachment).items() if name not in where}
    return hashlib.sha256(content).hexdigest(), attachment.resolve_type(), _ordered(rest)


def _ordered(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in sorted(values)}


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"

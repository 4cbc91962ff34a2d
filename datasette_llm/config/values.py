"""Checks of single values, with messages that never show the value.

A value in a wrong place may be a pasted API key, so messages name its kind at most.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

_SHOWN_CHARS = 60
_OPTION_VALUES = 10_000
_OPTION_LEVELS = 20
# Text that is very long, or long with both small letters and digits, looks like a pasted key.
_SECRET_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{,18}|[A-Z_][A-Z0-9_]{19,63}|[A-Za-z_]{20,64}")
# One long word with small letters and digits may be a key that was pasted in the wrong place.
_KEY_LIKE = re.compile(r"(?=.*[a-z])(?=.*[0-9])\S{20,}")
# A name may be long and have numbers; only this part of one looks like a key.
_KEY_WITHIN = re.compile("(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16}")
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


class Section(pydantic.BaseModel):
    """A mapping of the configuration with a fixed set of settings."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    misplaced: ClassVar[Mapping[str, str]] = {}
    """Settings of other sections that people try here, and what to do instead."""

    @classmethod
    def fields_in_order(cls) -> dict[str, FieldInfo]:
        """The settings, the section's own before inherited ones."""
        own = cls.__annotations__
        return dict(sorted(cls.model_fields.items(), key=lambda field: field[0] not in own))

    @pydantic.model_validator(mode="before")
    @classmethod
    def _explain_unknown(cls, value: object) -> object:
        # An unknown setting's value may be a key: replace it by a hint, which pydantic reports.
        if not isinstance(value, Mapping):
            example = f"{{{next(iter(cls.fields_in_order()))}: …}}"
            raise refusal(f"a mapping such as {example}", described(value))
        known = sorted(cls.model_fields)
        names = [name for name in value if isinstance(name, str) and name not in known]
        misplaced = {k: (k, why) for k, why in cls.misplaced.items() if k not in known}
        unknown = {k: misplaced.get(k) or hinted(k, known) for k in names}
        return {k: v for k, v in value.items() if k not in unknown} | dict(unknown.values())

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: object) -> object:
        if value is None:
            raise refusal("a value", "null; leave out a setting that has none")
        return value


def quoted(text: str) -> str:
    """A text in quotes, shortened, on one line; of what looks like a key only the start."""
    shown = 2 if _KEY_WITHIN.search(text[: 2 * _SHOWN_CHARS]) else _SHOWN_CHARS
    cut = text if len(text) <= shown else f"{text[: max(2, shown - 1)]}…"
    quoted = json.dumps(cut, ensure_ascii=False)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in quoted)  # on one line


def described(value: object) -> str:
    """The kind of a value; never the value, which may be a key."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int() | float():
            return "a number"
        case str():
            return "text" if value.strip() else "empty text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return f"a value of type {type(value).__name__}"


def hinted(name: str, known: Sequence[str]) -> tuple[str, str]:
    """The name of an unknown setting as it may be shown, and a hint."""
    name = name.encode(errors="replace").decode()  # lone surrogates stop pydantic
    head, *rest = re.split(r"[:=\s]", name, maxsplit=1)
    if rest:  # YAML reads {model: x, key:sk-1} as a setting "key:sk-1": show no more than "key"
        return f"{head}…", "a name ends with a colon and then a space"
    if _KEY_LIKE.fullmatch(name):
        return f"{name[:2]}…", "a key does not belong here; go to /-/secrets with it"
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return name, f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"


def refusal(expected: str, got: str) -> PydanticCustomError:
    """The error of a value that is not as expected."""
    return PydanticCustomError("refusal", f"expected {expected}, got {got}")


def listed(value: object) -> object:
    """A list as a tuple; a text is refused, and the list to write is shown."""
    if isinstance(value, str) and _KEY_LIKE.fullmatch(value):
        raise refusal("a list", 'text; write it as ["…"]')
    if isinstance(value, str) and value:
        text = quoted(value)
        raise refusal("a list", f"the text {text}; write it as [{text}]")
    return tuple(value) if isinstance(value, list) else value


def secret_name(value: object) -> str:
    """The name of a secret; what looks like a pasted key is refused."""
    if isinstance(value, str) and _SECRET_NAME.fullmatch(value):
        return value
    expected = "expected the name of a secret, such as OPENAI_API_KEY"
    advice = "the key itself goes to /-/secrets or into DATASETTE_SECRETS_<NAME>"
    raise PydanticCustomError("refusal", f"{expected}; {advice}")


def option(value: object) -> object:
    """An option of a model, deeply read-only."""
    return _frozen(value, iter(range(_OPTION_VALUES)), _OPTION_LEVELS)


def thawed(value: Any) -> Any:
    """A frozen option as a fresh copy in ordinary dicts and lists."""
    if isinstance(value, Mapping):
        return {name: thawed(item) for name, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, tuple) else value


def address(value: object) -> str:
    """The address of an OpenAI-compatible server; without a slash at its end."""
    expected = "an address such as http://127.0.0.1:8000/v1"
    if not isinstance(value, str) or not value.strip():
        raise refusal(expected, described(value))
    text = value.strip()
    problem = _address_problem(text)
    if problem is not None:
        raise PydanticCustomError("refusal", f"expected {expected}; {problem}")
    return text.rstrip("/")


def proxy_address(value: object) -> str:
    """The address of an HTTP proxy; it may hold a user and a password, and is never shown."""
    expected = "an address such as http://proxy.example:3128"
    if not isinstance(value, str):
        raise refusal(expected, described(value))
    try:
        parts = urlsplit(value.strip())
        readable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        readable = False
    if not readable or parts.scheme not in ("http", "https"):
        raise PydanticCustomError("refusal", f"expected {expected}")
    return value.strip()


def http_headers(value: Mapping[str, str]) -> Mapping[str, str]:
    """HTTP headers that can be sent, without space around them; their values are never shown."""
    # A file that a value comes from ends with a line end.
    value = {name: text.strip() for name, text in value.items()}
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise PydanticCustomError("refusal", "a name is not one that a header can have")
        if not (text.isascii() and text.isprintable()):
            # In braces, as pydantic would fill in what looks like a place for a value.
            problem = "{name}: expected one line of ASCII text"
            raise PydanticCustomError("refusal", problem, {"name": quoted(name)[1:-1]})
    return MappingProxyType(value)


def _frozen(value: object, spare: Iterator[int], levels: int) -> object:
    if not levels or next(spare, None) is None:
        limits = f"at most {_OPTION_VALUES:,} values on {_OPTION_LEVELS} levels"
        raise refusal(limits, "more, or something that contains itself")
    match value:
        case None | bool() | int() | float() | str() | bytes() | date():
            return value
        case list() | tuple():
            return tuple(_frozen(item, spare, levels - 1) for item in value)
        case set() | frozenset():
            return frozenset(_frozen(item, spare, levels - 1) for item in value)
        case Mapping():
            return MappingProxyType({k: _frozen(v, spare, levels - 1) for k, v in value.items()})
    raise refusal("a value that YAML can hold", described(value))


def _address_problem(text: str) -> str | None:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port cannot be read"
    if parts.scheme not in ("http", "https"):
        return "it begins with http:// or https://"
    if parts.username is not None or parts.password is not None:
        return 'it holds no user and no password; name a secret in "key"'
    if not host or port == 0 or not text.isprintable() or " " in text:
        return "its host or port cannot be read"
    if "?" in text or "#" in text:
        return 'nothing may follow its path; name a secret in "key", put others into "headers"'
    if parts.path.rstrip("/").endswith("/completions"):
        return "leave out /chat/completions, which is added for each request"
    return None

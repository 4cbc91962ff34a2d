"""`datasette.yaml` → frozen, typed settings, or every problem with them at once.

Adding a setting is adding a field; its title and docstring are its row in the README's table.
pydantic reads and checks. Its errors are told in words of our own, which never hold what may be
a pasted API key.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import ErrorDetails, PydanticCustomError

from .errors import ConfigError

_SHOWN_CHARS = 60
_OPTION_VALUES = 10_000
_OPTION_LEVELS = 20
# What is very long, or long with both small letters and digits, looks like a pasted key.
_SECRET_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{,18}|[A-Z_][A-Z0-9_]{19,63}|[A-Za-z_]{20,64}")
# One long word with small letters and digits may be a key that was pasted in the wrong place.
_KEY_LIKE = re.compile(r"(?=.*[a-z])(?=.*[0-9])\S{20,}")


def _quoted(text: str) -> str:
    cut = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
    quoted = json.dumps(cut, ensure_ascii=False)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in quoted)  # on one line


def _described(value: object) -> str:
    # Only its kind: what stands in a wrong place may be a key.
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


def _refusal(expected: str, got: str) -> PydanticCustomError:
    return PydanticCustomError("refusal", f"expected {expected}, got {got}")


def _listed(value: object) -> object:
    if isinstance(value, str) and _KEY_LIKE.fullmatch(value):
        raise _refusal("a list", 'text; write it as ["…"]')
    if isinstance(value, str) and value:
        text = _quoted(value)
        raise _refusal("a list", f"the text {text}; write it as [{text}]")
    return tuple(value) if isinstance(value, list) else value


def _secret_name(value: object) -> str:
    if isinstance(value, str) and _SECRET_NAME.fullmatch(value):
        return value
    expected = "expected the name of a secret, such as OPENAI_API_KEY"
    advice = "the key itself goes to /-/secrets or into DATASETTE_SECRETS_<NAME>"
    raise PydanticCustomError("refusal", f"{expected}; {advice}")


def _reference(value: object) -> object:
    if isinstance(value, Mapping | ModelReference):
        return value
    if isinstance(value, str) and value.strip():
        return {"model": value}
    raise _refusal('a model id, or a mapping with "model"', _described(value))


def _log(value: object) -> object:
    # `log: true` is a log with the defaults; None stands for none.
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


def _option(value: object) -> object:
    return _frozen(value, iter(range(_OPTION_VALUES)), _OPTION_LEVELS)


def _frozen(value: object, spare: Iterator[int], levels: int) -> object:
    if not levels or next(spare, None) is None:
        limits = f"at most {_OPTION_VALUES:,} values on {_OPTION_LEVELS} levels"
        raise _refusal(limits, "more, or something that contains itself")
    match value:
        case None | bool() | int() | float() | str() | bytes() | date():
            return value
        case list() | tuple():
            return tuple(_frozen(item, spare, levels - 1) for item in value)
        case set() | frozenset():
            return frozenset(_frozen(item, spare, levels - 1) for item in value)
        case Mapping():
            return MappingProxyType({k: _frozen(v, spare, levels - 1) for k, v in value.items()})
    raise _refusal("a value that YAML can hold", _described(value))


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _thawed(item) for name, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


_Id = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Ids = Annotated[tuple[_Id, ...], BeforeValidator(_listed)]
_Reference = Annotated["ModelReference", BeforeValidator(_reference)]
_References = Annotated[tuple[_Reference, ...], BeforeValidator(_listed)]
_SecretName = Annotated[str, BeforeValidator(_secret_name)]
_Option = Annotated[Any, AfterValidator(_option)]
_READ_ONLY = AfterValidator(MappingProxyType)
_Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Days = Annotated[int, Field(ge=1)]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _explain_unknown(cls, value: object) -> object:
        # An unknown setting's value may be a key: pydantic finds, and tells, a hint in its place.
        if not isinstance(value, Mapping):
            example = f"{{{next(iter(cls.model_fields))}: …}}"
            raise _refusal(f"a mapping such as {example}", _described(value))
        known = sorted(cls.model_fields)
        unknown = {k: _hint(k, known) for k in value if isinstance(k, str) and k not in known}
        return {k: v for k, v in value.items() if k not in unknown} | dict(unknown.values())

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: object) -> object:
        if value is None:
            raise _refusal("a value", "null; leave out a setting that has none")
        return value


def _hint(name: str, known: Sequence[str]) -> tuple[str, str]:
    name = name.encode(errors="replace").decode()  # lone surrogates stop pydantic
    head, *rest = re.split(r"[:=\s]", name, maxsplit=1)
    if rest:  # YAML reads {model: x, key:sk-1} as a setting "key:sk-1": show no more than "key"
        return f"{head}…", "a name ends with a colon and then a space"
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return name, f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"


class ModelReference(_Section):
    """A model as the configuration names it; its options are read-only all the way down."""

    model: _Id
    key: _SecretName | None = None
    options: Annotated[Mapping[str, _Option], _READ_ONLY] = Field(default={}, validate_default=True)

    def plain_options(self) -> dict[str, Any]:
        """The options as a fresh copy in ordinary dicts and lists, which models and JSON take."""
        return {name: _thawed(value) for name, value in self.options.items()}


class PriceSettings(_Section):
    """What a model costs, in US dollars a million tokens."""

    input: _Dollars
    output: _Dollars


class LogSettings(_Section):
    """What is kept on record, and for how long."""

    content: bool = Field(default=False, title="bool")
    """Record prompts and responses too, not only their sizes."""
    keep_days: _Days | None = Field(default=None, title="days")
    """Remove records that are older; otherwise they stay."""
    required: bool = Field(default=False, title="bool")
    """Make no call that cannot be recorded."""
    prices: Annotated[Mapping[str, PriceSettings], _READ_ONLY] = Field(
        default={}, validate_default=True, title="mapping of ids to prices"
    )
    """`{input, output}` in dollars a million tokens, for models without a public price."""


class PurposeLogSettings(_Section):
    """What one purpose's records hold; None where that is as for all."""

    content: bool | None = Field(default=None, title="bool")
    """As `log.content`, for this purpose."""


class PurposeSettings(_Section):
    """What the configuration says about one purpose; None where a setting is absent."""

    model: _Reference | None = Field(default=None, title="reference")
    """The default for this purpose."""
    models: _References | None = Field(default=None, title="list of references")
    """Added to the allowlist for this purpose."""
    blocked_models: _Ids = Field(default=(), title="list of ids")
    """Removed for this purpose."""
    log: PurposeLogSettings = Field(default={}, validate_default=True)


class Settings(_Section):
    """What stands under `plugins: datasette-llm:`; None where a setting is absent."""

    default_model: _Reference | None = Field(default=None, title="reference")
    """Used when none is named."""
    models: _Ids | None = Field(default=None, title="list of ids")
    """The allowlist; the default model is always part of it."""
    blocked_models: _Ids = Field(default=(), title="list of ids")
    """Removed whatever else allows them."""
    require_keys: bool = Field(default=True, title="bool")
    """List only models whose key is set."""
    log: Annotated[LogSettings | None, BeforeValidator(_log)] = Field(
        default=True, validate_default=True, title="bool or mapping"
    )
    """Whether calls are recorded, and how."""
    purposes: Annotated[Mapping[str, PurposeSettings], _READ_ONLY] = Field(
        default={}, validate_default=True
    )


# By the type of pydantic's error; another, such as a refusal of ours, is told as it stands.
_MESSAGES = {
    "bool_type": "expected true or false, without quotes, got {got}",
    "dict_type": "expected a mapping, got {got}",
    "extra_forbidden": "unknown setting ({input})",
    "invalid_key": "names are text, got {got}; put it in quotes",
    "missing": 'needs "{name}"',
    "string_too_short": "expected text, got {got}",
    "string_type": "expected text, in quotes, got {got}",
    "tuple_type": "expected a list, got {got}",
    "float_type": "expected a number, got {got}",
    "int_type": "expected a whole number, got {got}",
    "greater_than_equal": "{msg}",
}


def parse_settings(raw: object) -> Settings:
    """Reads the plugin's configuration into settings that share nothing mutable with it.

    Args:
        raw: what YAML or JSON gave for `plugins: datasette-llm:`; None when nothing stands there.

    Raises:
        ConfigError: `raw` has problems; the error lists all of them.
    """
    try:
        return Settings.model_validate({} if raw is None else raw)
    except pydantic.ValidationError as refused:
        problems = list(_problems(refused.errors(include_url=False)))
    raise ConfigError(problems)  # out here, so that its context does not have the refused values


def _problems(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    misnamed = {error["loc"][:-1] for error in errors if error["type"] == "extra_forbidden"}
    for error in errors:
        kind, loc, value = error["type"], error["loc"], error["input"]
        if kind == "string_type" and loc[-1] == "[key]":  # a name in a mapping that is no section
            kind, loc = "invalid_key", loc[:-1]
        if kind == "missing" and loc[:-1] in misnamed:
            continue
        place, name = (loc[:-1], loc[-1]) if kind in ("missing", "invalid_key") else (loc, "")
        message = _MESSAGES.get(kind, "{msg}").format(
            got=_described(value), input=value, msg=error["msg"], name=name
        )
        yield f"{path_of(*place)}: {message}"


def path_of(*parts: str | int) -> str:
    """Where a setting stands, as problems and warnings name it.

    Args:
        *parts: names of mappings and numbers of lists, from `datasette-llm` downwards.
    """
    return f"plugins.datasette-llm{''.join(map(_step, parts))}"


def _step(part: str | int) -> str:
    shown = _quoted(part) if isinstance(part, str) else str(part)
    return f".{part}" if re.fullmatch(r'"[\w-]+"', shown) else f"[{shown}]"


def secret_names(settings: Settings) -> tuple[str, ...]:
    """The secrets that model references name, each once, in the order of the configuration."""
    own = (each for p in settings.purposes.values() for each in (p.model, *(p.models or ())))
    references = (settings.default_model, *own)
    return tuple(dict.fromkeys(each.key for each in references if each and each.key))


def settings_table() -> list[tuple[str, str, str, str]]:
    """Every setting for the README: its path, type, default and description."""
    return [
        *_rows(Settings),
        *_rows(LogSettings, "log."),
        *_rows(PurposeSettings, "purposes.<name>."),
        *_rows(PurposeLogSettings, "purposes.<name>.log."),
    ]


def _rows(section: type[_Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        if field.title:
            default = "not set" if field.default is None else json.dumps(field.default)
            yield f"{prefix}{name}", field.title, default, field.description or ""

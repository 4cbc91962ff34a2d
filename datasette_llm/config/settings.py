"""The settings of datasette-llm: frozen, typed, each with what it means.

Adding a setting is adding a field; its title and docstring are its row in the documentation.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticUndefined

from .references import (
    CallSettings,
    FallbackReference,
    Id,
    Ids,
    ModelReference,
    Reference,
    References,
    SecretName,
)
from .values import Section, address, http_headers, listed, quoted, refusal


def _log(value: object) -> object:
    # `log: true` is a log with the defaults; None stands for none.
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


_READ_ONLY = AfterValidator(MappingProxyType)
_Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Days = Annotated[int, Field(ge=1)]
_Milliseconds = Annotated[int, Field(ge=1)]
_Threads = Annotated[int, Field(ge=1, le=1_000)]
_Address = Annotated[str, BeforeValidator(address)]
_Headers = Annotated[Mapping[str, str], AfterValidator(http_headers)]


class PriceSettings(Section):
    """What a model costs, in US dollars a million tokens."""

    input: _Dollars
    output: _Dollars


class LogSettings(Section):
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


class PurposeLogSettings(Section):
    """What one purpose's records hold; None where that is as for all."""

    content: bool | None = Field(default=None, title="bool")
    """As `log.content`, for this purpose."""


class PurposeSettings(CallSettings):
    """What the configuration says about one purpose; None where a setting is absent."""

    model: Reference | None = Field(default=None, title="reference")
    """The default for this purpose."""
    models: References | None = Field(default=None, title="list of references")
    """Added to the allowlist for this purpose."""
    blocked_models: Ids = Field(default=(), title="list of ids")
    """Removed for this purpose."""
    log: PurposeLogSettings = Field(default={}, validate_default=True)


class EndpointSettings(CallSettings):
    """A model of an OpenAI-compatible server."""

    model: Id = Field(title="id")
    """What it is called here."""
    api_base: _Address = Field(title="URL")
    """Where the server is, up to `/v1`."""
    model_name: Id | None = Field(default=None, title="text")
    """What the server calls it; otherwise the same."""
    aliases: Ids = Field(default=(), title="list of ids")
    """Other names for it here."""
    key: SecretName | None = Field(default=None, title="name of a secret")
    """Holds the server's key; without it the server needs none."""
    # Some of them are credentials, so they are kept out of what is printed.
    headers: _Headers = Field(default={}, validate_default=True, repr=False, title="mapping")
    """Sent with each request."""
    can_stream: bool = Field(default=True, title="bool")
    """It answers piece by piece."""
    supports_schema: bool = Field(default=False, title="bool")
    """It takes a JSON schema."""
    supports_tools: bool = Field(default=False, title="bool")
    """It calls tools."""
    vision: bool = Field(default=False, title="bool")
    """It takes images and PDF files."""
    audio: bool = Field(default=False, title="bool")
    """It takes sound."""
    reasoning: bool = Field(default=False, title="bool")
    """It has the option `reasoning_effort`."""


def _endpoints(endpoints: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
    names = Counter(name for each in endpoints for name in {each.model, *each.aliases})
    twice = [quoted(name) for name, count in names.items() if count > 1]
    if twice:
        raise refusal("each id and alias to stand for one model", f"{', '.join(twice)} for several")
    return endpoints


class ConsultantSettings(Section):
    """What a table's profile holds when advice about the table is asked for."""

    values: Literal["none", "top", "sample"] = Field(default="top", title="none, top or sample")
    """Which values of the table a model sees: none; extremes and frequent ones; whole rows too."""
    time_limit_ms: _Milliseconds = Field(default=2_000, title="milliseconds")
    """What a profile may take; what the whole table would need longer for is sampled."""
    exclude: Ids = Field(default=(), title="list of columns")
    """Left out everywhere, of checks too: `column`, `table.column` or `database.table.column`."""


class Settings(CallSettings):
    """What stands under `plugins: datasette-llm:`; None where a setting is absent."""

    default_model: Reference | None = Field(default=None, title="reference")
    """Used when none is named."""
    models: Ids | None = Field(default=None, title="list of ids")
    """The allowlist; the default model is always part of it."""
    blocked_models: Ids = Field(default=(), title="list of ids")
    """Removed whatever else allows them."""
    require_keys: bool = Field(default=True, title="bool")
    """List only models whose key is set."""
    threads: _Threads = Field(default=4, title="number")
    """How many requests to models without an async version may be under way at once."""
    endpoints: Annotated[
        tuple[EndpointSettings, ...], BeforeValidator(listed), AfterValidator(_endpoints)
    ] = Field(default=(), title="list")
    """Models of OpenAI-compatible servers."""
    log: Annotated[LogSettings | None, BeforeValidator(_log)] = Field(
        default=True, validate_default=True, title="bool or mapping"
    )
    """Whether calls are recorded, and how."""
    consultant: ConsultantSettings = Field(default={}, validate_default=True)
    purposes: Annotated[Mapping[str, PurposeSettings], _READ_ONLY] = Field(
        default={}, validate_default=True
    )


def path_of(*parts: str | int) -> str:
    """Where a setting stands, as problems and warnings name it.

    Args:
        *parts: names of mappings and numbers of lists, from `datasette-llm` downwards.
    """
    return f"plugins.datasette-llm{''.join(map(_step, parts))}"


def _step(part: str | int) -> str:
    shown = quoted(part) if isinstance(part, str) else str(part)
    return f".{part}" if re.fullmatch(r'"[\w-]+"', shown) else f"[{shown}]"


def references(settings: Settings) -> Iterator[tuple[tuple[str | int, ...], FallbackReference]]:
    """Every model reference with its path, in configuration order; fallbacks after what has them.

    Args:
        settings: the parsed configuration.
    """
    sections: list[tuple[tuple[str | int, ...], CallSettings | None]] = [
        (("default_model",), settings.default_model),
        ((), settings),
        *((("endpoints", number), each) for number, each in enumerate(settings.endpoints)),
    ]
    for name, purpose in settings.purposes.items():
        place = ("purposes", name)
        listed = enumerate(purpose.models or ())
        sections += [((*place, "model"), purpose.model), (place, purpose)]
        sections += [((*place, "models", number), each) for number, each in listed]
    for path, section in sections:
        if isinstance(section, ModelReference):
            yield path, section
        for number, fallback in enumerate((section.fallbacks if section else None) or ()):
            yield (*path, "fallbacks", number), fallback


def secret_names(settings: Settings) -> tuple[str, ...]:
    """The secrets that references and endpoints name, each once, in configuration order."""
    keys = [reference.key for _, reference in references(settings)]
    keys += [endpoint.key for endpoint in settings.endpoints]
    return tuple(dict.fromkeys(key for key in keys if key))


def settings_table() -> list[tuple[str, str, str, str]]:
    """Every setting for the documentation: its path, type, default and description."""
    return [
        *_rows(Settings),
        *_rows(EndpointSettings, "endpoints[]."),
        *_rows(LogSettings, "log."),
        *_rows(ConsultantSettings, "consultant."),
        *_rows(PurposeSettings, "purposes.<name>."),
        *_rows(PurposeLogSettings, "purposes.<name>.log."),
    ]


def _rows(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.fields_in_order().items():
        # What may stand in several places is told once.
        if field.title and not (prefix and name in CallSettings.model_fields):
            yield f"{prefix}{name}", field.title, _default(field.default), field.description or ""


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    return "not set" if value is None else json.dumps(value)

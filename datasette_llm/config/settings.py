"""The settings of datasette-llm: frozen and typed.

To add a setting, add a field; its title and docstring are its row in the documentation.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError, PydanticUndefined

from .values import (
    Section,
    address,
    described,
    http_headers,
    listed,
    option,
    proxy_address,
    quoted,
    refusal,
    secret_name,
    thawed,
)

# The keys and indexes that lead to a setting, from `datasette-llm` downwards.
Path = tuple[str | int, ...]

# More than these is a mistake, such as milliseconds for seconds.
MAX_SECONDS = 86_400
MAX_RETRIES = 20
MAX_CONCURRENCY = 100_000
MAX_ANSWER_CHARS = 10**12


def _reference(value: object) -> object:
    if isinstance(value, Mapping | ModelReference):
        return value
    if isinstance(value, str) and value.strip():
        return {"model": value}
    raise refusal('a model id, or a mapping with "model"', described(value))


def _seconds(value: object) -> float:
    # Also refuses NaN, infinity, and what is too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal("a number of seconds, without quotes", described(value))
    if not 0 < value <= MAX_SECONDS:
        limits = f"expected seconds, more than 0 and at most {MAX_SECONDS:,}"
        raise PydanticCustomError("refusal", limits)
    return float(value)


Id = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Ids = Annotated[tuple[Id, ...], BeforeValidator(listed)]
SecretName = Annotated[str, BeforeValidator(secret_name)]
_Option = Annotated[Any, AfterValidator(option)]
_Seconds = Annotated[float, BeforeValidator(_seconds)]
_Retries = Annotated[int, Field(ge=0, le=MAX_RETRIES)]
_Concurrency = Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]
_Chars = Annotated[int, Field(ge=1, le=MAX_ANSWER_CHARS)]


def _log(value: object) -> object:
    # `log: true` is a log with the defaults, `log: false` no log.
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


def _cache(value: object) -> object:
    # `cache: true` is a cache with the defaults, `cache: false` one that has no room.
    return {True: {}, False: {"max_mb": 0}}[value] if isinstance(value, bool) else value


_READ_ONLY = AfterValidator(MappingProxyType)
_Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Days = Annotated[int, Field(ge=1)]
_Milliseconds = Annotated[int, Field(ge=1)]
_PromptTokens = Annotated[int, Field(ge=4_000)]
_CacheDays = Annotated[int, Field(ge=1, le=3_650)]
_Megabytes = Annotated[int, Field(ge=0, le=1_000_000)]
_Threads = Annotated[int, Field(ge=1, le=1_000)]
_Address = Annotated[str, BeforeValidator(address)]
_Proxy = Annotated[str, BeforeValidator(proxy_address)]
_Headers = Annotated[Mapping[str, str], AfterValidator(http_headers)]


class AttemptSettings(Section):
    """Settings of each request to a provider; None where a setting is absent."""

    idle_timeout: _Seconds | None = Field(default=None, title="seconds")
    """Time limit for a request without an event, the first event included."""
    retries: _Retries | None = Field(default=None, title="number")
    """How often a request that failed before its first event is made again; otherwise 2."""
    max_concurrency: _Concurrency | None = Field(default=None, title="number")
    """How many requests may run at once; further requests wait in a queue."""
    max_answer_chars: _Chars | None = Field(default=None, title="number")
    """How long an answer may become before it is ended with an error; otherwise 20,000,000."""


class CacheSettings(Section):
    """Which answers are kept for equal prompts, and for how long."""

    keep_days: _CacheDays = Field(default=7, title="days")
    """Older answers are not used, and removed."""
    max_mb: _Megabytes = Field(default=500, title="megabytes")
    """How much may be kept by this setting; the least recently used answers go first."""
    scope: Literal["actor", "purpose"] = Field(default="actor", title="actor or purpose")
    """Whose answers an actor gets: its own only, or those of all actors of the purpose."""


class CallSettings(AttemptSettings):
    """Settings of a prompt with all its attempts; None where a setting is absent."""

    timeout: _Seconds | None = Field(default=None, title="seconds")
    """Time limit of a prompt, waiting and retries included; in a chain, of each step."""
    fallbacks: "FallbackReferences | None" = Field(default=None, title="list of references")
    """Models to try, in order, when a prompt has finally failed before its first event."""
    cache: Annotated[CacheSettings | None, BeforeValidator(_cache)] = Field(
        default=None, title="bool or mapping"
    )
    """Whether answers are kept for equal prompts, and how; otherwise they are not."""


class FallbackReference(AttemptSettings):
    """A model that is asked when another has failed; its options are deeply read-only."""

    misplaced: ClassVar[Mapping[str, str]] = {
        "cache": "not allowed in a fallback, whose answers are not kept",
        "fallbacks": "not allowed in a fallback; add them to the list after it",
        "timeout": "not allowed in a fallback; the requested model's timeout covers all attempts",
    }
    model: Id
    key: SecretName | None = None
    options: Annotated[Mapping[str, _Option], AfterValidator(MappingProxyType)] = Field(
        default={}, validate_default=True
    )

    def plain_options(self) -> dict[str, Any]:
        """The options as a fresh copy in ordinary dicts and lists, which models and JSON take."""
        return {name: thawed(value) for name, value in self.options.items()}


class ModelReference(FallbackReference, CallSettings):
    """A model with its settings, as the configuration refers to it."""


_FallbackReference = Annotated[FallbackReference, BeforeValidator(_reference)]
FallbackReferences = Annotated[tuple[_FallbackReference, ...], BeforeValidator(listed)]
Reference = Annotated[ModelReference, BeforeValidator(_reference)]
References = Annotated[tuple[Reference, ...], BeforeValidator(listed)]

CallSettings.model_rebuild()
ModelReference.model_rebuild()


class PriceSettings(Section):
    """What a model costs, in US dollars a million tokens."""

    input: _Dollars
    output: _Dollars
    cached_input: _Dollars | None = None
    """For tokens read from the provider's cache; if not set, they cost what input does."""


class LogSettings(Section):
    """What the call log records, and for how long."""

    content: bool = Field(default=False, title="bool")
    """Record prompts and responses too, not only their sizes."""
    keep_days: _Days | None = Field(default=None, title="days")
    """Remove older records; if not set, records are kept."""
    required: bool = Field(default=False, title="bool")
    """Refuse calls that cannot be recorded."""
    prices: Annotated[Mapping[str, PriceSettings], _READ_ONLY] = Field(
        default={}, validate_default=True, title="mapping of ids to prices"
    )
    """`{input, output, cached_input}` in dollars a million tokens, before all other prices."""


class PurposeLogSettings(Section):
    """What is recorded for one purpose; None where that is as for all."""

    content: bool | None = Field(default=None, title="bool")
    """As `log.content`, for this purpose."""


class PurposeSettings(CallSettings):
    """The settings of one purpose; None where a setting is absent."""

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
    """Its id in Datasette."""
    api_base: _Address = Field(title="URL")
    """Where the server is, up to `/v1`."""
    model_name: Id | None = Field(default=None, title="text")
    """Its name on the server; by default the id."""
    aliases: Ids = Field(default=(), title="list of ids")
    """Aliases in Datasette."""
    key: SecretName | None = Field(default=None, title="name of a secret")
    """Secret with the server's API key; leave out if the server needs none."""
    # Some of them are credentials, which a repr must not show.
    headers: _Headers = Field(default={}, validate_default=True, repr=False, title="mapping")
    """Sent with each request."""
    # It may hold a password.
    proxy: _Proxy | None = Field(default=None, repr=False, title="URL")
    """An HTTP proxy for its requests; otherwise `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say."""
    ca_file: Id | None = Field(default=None, title="path")
    """Certificates to trust, as PEM; otherwise `SSL_CERT_FILE` or the usual ones."""
    can_stream: bool = Field(default=True, title="bool")
    """Supports streaming."""
    supports_schema: bool = Field(default=False, title="bool")
    """Supports JSON schemas."""
    supports_tools: bool = Field(default=False, title="bool")
    """Supports tools."""
    vision: bool = Field(default=False, title="bool")
    """Accepts images and PDF files."""
    audio: bool = Field(default=False, title="bool")
    """Accepts audio."""
    reasoning: bool = Field(default=False, title="bool")
    """Supports the option `reasoning_effort`."""
    send_user: bool = Field(default=False, title="bool")
    """Send a pseudonym of the actor as `user`, never the id."""
    send_tags: bool = Field(default=False, title="bool")
    """Send the tags of a call as LiteLLM's `metadata.tags`."""


def _endpoints(endpoints: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
    names = Counter(name for each in endpoints for name in {each.model, *each.aliases})
    twice = [quoted(name) for name, count in names.items() if count > 1]
    if twice:
        raise refusal("each id and alias to stand for one model", f"{', '.join(twice)} for several")
    return endpoints


class TelemetrySettings(Section):
    """What spans hold besides numbers and names; without these settings neither."""

    content: bool = Field(default=False, title="bool")
    """Put messages, tool arguments and tool results into spans, without keys and shortened."""
    actor: bool = Field(default=False, title="bool")
    """Put the id of the actor into spans."""


class ConsultantSettings(Section):
    """Settings of table profiles, which requests for advice about a table send."""

    values: Literal["none", "top", "sample"] = Field(default="top", title="none, top or sample")
    """Which values of the table a model sees: none; extremes and frequent ones; whole rows too."""
    time_limit_ms: _Milliseconds = Field(default=2_000, title="milliseconds")
    """Time limit of a profile; columns that would take longer are sampled."""
    max_prompt_tokens: _PromptTokens = Field(default=8_000, title="number")
    """Budget of both prompts and the schema of the answer; the least telling figures are cut."""
    exclude: Ids = Field(default=(), title="list of columns")
    """Excluded from profiles: `column`, `table.column` or `database.table.column`."""


class Settings(CallSettings):
    """All settings under `plugins: datasette-llm:`; None where a setting is absent."""

    default_model: Reference | None = Field(default=None, title="reference")
    """The model if a plugin names none."""
    models: References | None = Field(default=None, title="list of references")
    """The allowlist; the default model is always part of it."""
    blocked_models: Ids = Field(default=(), title="list of ids")
    """Never available, even if on an allowlist."""
    require_keys: bool = Field(default=True, title="bool")
    """List only models whose key is set."""
    threads: _Threads = Field(default=4, title="number")
    """How many requests to models without an async version may run at once."""
    endpoints: Annotated[
        tuple[EndpointSettings, ...], BeforeValidator(listed), AfterValidator(_endpoints)
    ] = Field(default=(), title="list")
    """Models of OpenAI-compatible servers."""
    log: Annotated[LogSettings | None, BeforeValidator(_log)] = Field(
        default=True, validate_default=True, title="bool or mapping"
    )
    """Whether calls are recorded, and how."""
    telemetry: TelemetrySettings = Field(default={}, validate_default=True)
    consultant: ConsultantSettings = Field(default={}, validate_default=True)
    purposes: Annotated[Mapping[str, PurposeSettings], _READ_ONLY] = Field(
        default={}, validate_default=True
    )

    def for_purpose(self, purpose: str | None) -> PurposeSettings | None:
        """The settings of a purpose, or None where it has none of its own."""
        return self.purposes.get(purpose) if purpose is not None else None


def path_of(*parts: str | int) -> str:
    """The path of a setting, as problems and warnings show it.

    Args:
        *parts: keys and indexes, from `datasette-llm` downwards.
    """
    return f"plugins.datasette-llm{''.join(map(_step, parts))}"


def _step(part: str | int) -> str:
    shown = quoted(part) if isinstance(part, str) else str(part)
    return f".{part}" if re.fullmatch(r'"[\w-]+"', shown) else f"[{shown}]"


def settings_table() -> list[tuple[str, str, str, str]]:
    """The rows of the documentation's table: path, type, default and description."""
    return [
        *_rows(Settings),
        *_rows(EndpointSettings, "endpoints[]."),
        *_rows(CacheSettings, "cache."),
        *_rows(LogSettings, "log."),
        *_rows(TelemetrySettings, "telemetry."),
        *_rows(ConsultantSettings, "consultant."),
        *_rows(PurposeSettings, "purposes.<name>."),
        *_rows(PurposeLogSettings, "purposes.<name>.log."),
    ]


def _rows(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.fields_in_order().items():
        # A setting that several sections share has one row.
        if field.title and not (prefix and name in CallSettings.model_fields):
            yield f"{prefix}{name}", field.title, _default(field.default), field.description or ""


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    return "not set" if value is None else json.dumps(value)

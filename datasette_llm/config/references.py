"""Model references, and what can be said of requests for a model, for a purpose and for all."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from .values import Section, described, listed, option, refusal, secret_name, thawed

# More is a mistake in the unit: a day of seconds, as many retries as nobody waits for.
MAX_SECONDS = 86_400
MAX_RETRIES = 20
MAX_CONCURRENCY = 100_000


def _reference(value: object) -> object:
    if isinstance(value, Mapping | ModelReference):
        return value
    if isinstance(value, str) and value.strip():
        return {"model": value}
    raise refusal('a model id, or a mapping with "model"', described(value))


def _seconds(value: object) -> float:
    # One message for all numbers that are none, too: NaN, infinity, one too large for a float.
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


class AttemptSettings(Section):
    """What can be said of each request to a provider; None where a setting is absent."""

    idle_timeout: _Seconds | None = Field(default=None, title="seconds")
    """Ends a request after so long without an event, the first one included."""
    retries: _Retries | None = Field(default=None, title="number")
    """How often a request that failed before its first event is made again; otherwise 2."""
    max_concurrency: _Concurrency | None = Field(default=None, title="number")
    """How many requests may be under way at once; the others wait their turn."""


class CallSettings(AttemptSettings):
    """What can be said of a prompt with all its attempts; None where a setting is absent."""

    timeout: _Seconds | None = Field(default=None, title="seconds")
    """Ends a prompt, waiting and attempts included; of a chain each step."""
    fallbacks: "FallbackReferences | None" = Field(default=None, title="list of references")
    """Asked in order when a prompt has failed for good before its first event."""


class FallbackReference(AttemptSettings):
    """A model that answers when another cannot; its options are read-only all the way down."""

    misplaced: ClassVar[Mapping[str, str]] = {
        "fallbacks": "a fallback has none here; list them after it",
        "timeout": "a fallback has none; that of the model asked for holds for all attempts",
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
    """A model as the configuration names it, with all that can be said of it."""


_FallbackReference = Annotated[FallbackReference, BeforeValidator(_reference)]
FallbackReferences = Annotated[tuple[_FallbackReference, ...], BeforeValidator(listed)]
Reference = Annotated[ModelReference, BeforeValidator(_reference)]
References = Annotated[tuple[Reference, ...], BeforeValidator(listed)]

CallSettings.model_rebuild()
ModelReference.model_rebuild()

"""How a prompt is made: for how long, how often, how many at once, and who else may answer.

Pure functions over settings and catalog. A setting may stand in several places, of which the
most specific one counts: a reference of the purpose, the reference of `default_model`, the
endpoint, the purpose, and then what stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.references import AttemptSettings, CallSettings, FallbackReference, ModelReference
from ..config.settings import EndpointSettings, Settings, path_of
from ..providers.catalog import Catalog
from ..providers.sync_adapter import ThreadedModel

DEFAULT_RETRIES = 2

Path = tuple[str | int, ...]
# What a section of the configuration says, and the path where the section stands.
Level = tuple[Path, AttemptSettings]


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that is asked when the ones before it have failed.

    Attributes:
        model_id: its id, or a name that llm does not know.
        reference: what the configuration says about it in this role.
        setting: the path of the reference.
    """

    model_id: str
    reference: FallbackReference
    setting: str


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """How the prompts of one model for one purpose are made.

    Attributes:
        timeout_s: seconds for a prompt in total, or None.
        idle_timeout_s: seconds that a request may be without an event, or None.
        retries: how often a request that failed before its first event is made again.
        limits: the gates that a request goes through, in that order.
        fallbacks: who is asked when all that has failed, in order.
        settings: for each setting that the configuration has for it, the path where it stands.
    """

    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    retries: int = DEFAULT_RETRIES
    limits: tuple[Limit, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """How the calls of one model for one purpose are recorded.

    Attributes:
        content: whether prompts and responses are recorded too.
        required: whether a call that cannot be recorded is refused.
    """

    content: bool
    required: bool


# Without any setting.
DEFAULT_CALL_POLICY = CallPolicy()


def call_policy_of(
    settings: Settings, catalog: Catalog, purpose: str | None, model_id: str
) -> CallPolicy:
    """The plan for a model that is asked for.

    Args:
        settings: the parsed configuration.
        catalog: what turns aliases into ids.
        purpose: any name; one without settings has what stands for all.
        model_id: a canonical id.
    """
    about_model = _about_model(settings, catalog, purpose, model_id)
    levels = [*about_model, *_about_purpose(settings, purpose), ((), settings)]
    found = {name: _first(levels, name) for name in CallSettings.model_fields}
    return CallPolicy(
        timeout_s=_value(found["timeout"]),
        idle_timeout_s=_value(found["idle_timeout"]),
        retries=_value(found["retries"], DEFAULT_RETRIES),
        limits=_limits(settings, catalog, purpose, model_id, about_model),
        fallbacks=tuple(_fallbacks(settings, catalog, purpose, found["fallbacks"], model_id)),
        settings={name: path_of(*each[0], name) for name, each in found.items() if each},
    )


def fallback_call_policy(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    fallback: Fallback,
    own: CallPolicy,
) -> CallPolicy:
    """How the prompts of a model are made that is asked because others have failed.

    While it stands in, the timeout and the fallbacks of the model that was asked for go on
    counting. Its own are those of the replies to its answer.

    Args:
        settings: the parsed configuration.
        catalog: what turns aliases into ids.
        purpose: the purpose, as for `call_policy_of`.
        fallback: the role in which it is asked.
        own: the policy that it has when it is asked for.
    """
    known = _about_model(settings, catalog, purpose, fallback.model_id)
    about_model = [((), fallback.reference), *known]
    levels = [*about_model, *_about_purpose(settings, purpose), ((), settings)]
    limits = _limits(settings, catalog, purpose, fallback.model_id, about_model)
    return CallPolicy(
        timeout_s=own.timeout_s,
        fallbacks=own.fallbacks,
        idle_timeout_s=_value(_first(levels, "idle_timeout")),
        retries=_value(_first(levels, "retries"), DEFAULT_RETRIES),
        # It is not shown where they come from, and of its own reference there is no path here.
        limits=tuple(replace(limit, setting="") for limit in limits),
    )


def _about_model(
    settings: Settings, catalog: Catalog, purpose: str | None, model_id: str
) -> list[Level]:
    own = settings.purposes.get(purpose) if purpose is not None else None
    references: list[tuple[Path, ModelReference | EndpointSettings]] = []
    if own is not None:
        place = ("purposes", str(purpose))
        references += [((*place, "models", n), each) for n, each in enumerate(own.models or ())]
        references += [((*place, "model"), own.model)] if own.model else []
    if settings.default_model is not None:
        references.append((("default_model",), settings.default_model))
    references += [(("endpoints", n), each) for n, each in enumerate(settings.endpoints)]
    return [level for level in references if catalog.canonical(level[1].model) == model_id]


def _about_purpose(settings: Settings, purpose: str | None) -> list[Level]:
    own = settings.purposes.get(purpose) if purpose is not None else None
    return [(("purposes", str(purpose)), own)] if own is not None else []


def _first(levels: Sequence[Level], name: str) -> tuple[Path, Any] | None:
    """Where a setting stands in the first section that has it, and its value."""
    values = ((path, getattr(section, name, None)) for path, section in levels)
    return next((each for each in values if each[1] is not None), None)


def _value(found: tuple[object, Any] | None, otherwise: Any = None) -> Any:
    return otherwise if found is None else found[1]


def _limits(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    model_id: str,
    about_model: Sequence[Level],
) -> tuple[Limit, ...]:
    """In one order, always: two requests in different orders could wait for each other."""
    of_purpose = _first(_about_purpose(settings, purpose), "max_concurrency")
    of_model = _first(about_model, "max_concurrency")
    if of_purpose is None and of_model is None:
        of_model = _first([((), settings)], "max_concurrency")
    limits = [(("purpose", str(purpose)), of_purpose), (("model", model_id), of_model)]
    found = [
        Limit(gate, each[1], path_of(*each[0], "max_concurrency")) for gate, each in limits if each
    ]
    entry = catalog.entries.get(model_id)
    if entry and isinstance(entry.model, ThreadedModel):
        setting = path_of("threads") if "threads" in settings.model_fields_set else ""
        found.append(Limit(("threads", ""), settings.threads, setting))
    return tuple(found)


def _fallbacks(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    named: tuple[Path, Any] | None,
    model_id: str,
) -> Iterator[Fallback]:
    """The fallbacks that are named somewhere, each followed by its own; no model twice."""
    seen = {model_id}
    left = _numbered(named)
    while left:
        path, reference = left.pop()
        name = catalog.canonical(reference.model)
        if name not in seen:
            seen.add(name)
            yield Fallback(name, reference, path_of(*path))
            left += _numbered(_first(_about_model(settings, catalog, purpose, name), "fallbacks"))


def _numbered(named: tuple[Path, Any] | None) -> list[tuple[Path, FallbackReference]]:
    """Fallbacks with their paths, the last one first."""
    path, fallbacks = named or ((), ())
    return [((*path, "fallbacks", n), each) for n, each in enumerate(fallbacks)][::-1]


# What a gate is for: a model, a purpose, or the threads of an instance; and its name.
LimiterName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests may be under way at once, of those that go through one gate.

    Attributes:
        gate: `("model", id)`, `("purpose", name)` or `("threads", "")`.
        count: at most so many.
        setting: the path of the setting that says so; empty where it is the default.
    """

    gate: LimiterName
    count: int
    setting: str = field(default="", compare=False)

"""The call policy of a model for a purpose: timeouts, retries, concurrency limits, fallbacks.

Pure functions over settings and catalog. A setting may stand in several sections, of which the
most specific one counts: the references of the purpose, the global `models`, `default_model`, the
endpoint, the purpose, and then the global settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.references import references, references_for
from ..config.settings import (
    AttemptSettings,
    CacheSettings,
    CallSettings,
    FallbackReference,
    Path,
    Settings,
    path_of,
)
from ..providers.catalog import Catalog
from ..providers.sync_adapter import ThreadedModel

DEFAULT_RETRIES = 2
DEFAULT_MAX_ANSWER_CHARS = 20_000_000

# The kind of a concurrency limiter ("model", "purpose" or "threads") and whose it is.
LimiterName = tuple[str, str]
# A section of the configuration and its path.
Level = tuple[Path, AttemptSettings]


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests one concurrency limiter lets run at once.

    Attributes:
        limiter: `("model", id)`, `("purpose", name)` or `("threads", "")`.
        count: at most so many.
        setting: the path of the setting that says so; empty where it is the default.
    """

    limiter: LimiterName
    count: int
    setting: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that is asked when the ones before it have failed.

    Attributes:
        model_id: its id, or a name that llm does not know.
        reference: its settings in this role.
        setting: the path of the reference.
    """

    model_id: str
    reference: FallbackReference
    setting: str


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Which answers are kept for equal prompts.

    Attributes:
        keep_days: how long, in days.
        max_bytes: how much all answers kept by the same setting may take.
        of_actor: whether an actor gets its own answers only.
        setting: the path of the setting that says so.
        any_answer: whether a kept answer is used, too, that is blank or does not fit its schema, as
            evaluations do; else it is asked for again.
    """

    keep_days: int
    max_bytes: int
    of_actor: bool
    setting: str
    any_answer: bool = False

    @classmethod
    def of(cls, path: Path, settings: CacheSettings) -> CachePolicy:
        """What a setting says.

        Args:
            path: where its section stands.
            settings: the setting.
        """
        max_bytes = settings.max_mb * 1_000_000
        setting = path_of(*path, "cache")
        return cls(settings.keep_days, max_bytes, settings.scope == "actor", setting)


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """How the prompts of one model for one purpose are made.

    Attributes:
        timeout_s: seconds for a prompt in total, or None.
        idle_timeout_s: seconds that a request may be without an event, or None.
        retries: how often a request that failed before its first event is made again.
        max_answer_chars: how many characters an answer may have: text, reasoning and arguments of
            tools together.
        limits: the concurrency limits of a request, in the order in which it acquires them.
        fallbacks: the models that are asked, in order, when all retries have failed.
        cache: which of its answers are kept; None for none.
        settings: for each setting that the configuration has for it, its path.
    """

    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    retries: int = DEFAULT_RETRIES
    max_answer_chars: int = DEFAULT_MAX_ANSWER_CHARS
    limits: tuple[Limit, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    cache: CachePolicy | None = None
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


def call_policy_of(
    settings: Settings, catalog: Catalog, purpose: str | None, model_id: str
) -> CallPolicy:
    """The call policy of a model that the caller or the configuration chose.

    Args:
        settings: the parsed configuration.
        catalog: resolves aliases.
        purpose: any name; one without settings has the global settings.
        model_id: a canonical id.
    """
    model_levels = _model_levels(settings, catalog, purpose, model_id)
    levels = [*model_levels, *_purpose_levels(settings, purpose), ((), settings)]
    found = {name: _first(levels, name) for name in CallSettings.model_fields}
    return CallPolicy(
        timeout_s=_value(found["timeout"]),
        idle_timeout_s=_value(found["idle_timeout"]),
        retries=_value(found["retries"], DEFAULT_RETRIES),
        max_answer_chars=_value(found["max_answer_chars"], DEFAULT_MAX_ANSWER_CHARS),
        limits=_limits(settings, catalog, purpose, model_id, model_levels),
        fallbacks=tuple(_fallbacks(settings, catalog, purpose, found["fallbacks"], model_id)),
        cache=_cache(found["cache"]),
        settings={name: path_of(*each[0], name) for name, each in found.items() if each},
    )


def fallback_call_policy(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    fallback: Fallback,
    own: CallPolicy,
) -> CallPolicy:
    """The call policy of a model in the role of a fallback.

    During the call the timeout and the fallbacks of the requested model stay in force.
    This policy applies to `reply()` on the fallback's response.

    Args:
        settings: the parsed configuration.
        catalog: resolves aliases.
        purpose: the purpose, as for `call_policy_of`.
        fallback: the role.
        own: the policy that the model has when it is asked for itself.
    """
    own_levels = _model_levels(settings, catalog, purpose, fallback.model_id)
    model_levels = [((), fallback.reference), *own_levels]
    levels = [*model_levels, *_purpose_levels(settings, purpose), ((), settings)]
    limits = _limits(settings, catalog, purpose, fallback.model_id, model_levels)
    return CallPolicy(
        timeout_s=own.timeout_s,
        fallbacks=own.fallbacks,
        cache=own.cache,
        idle_timeout_s=_value(_first(levels, "idle_timeout")),
        retries=_value(_first(levels, "retries"), DEFAULT_RETRIES),
        max_answer_chars=_value(_first(levels, "max_answer_chars"), DEFAULT_MAX_ANSWER_CHARS),
        # Their paths are not shown, and the path of the fallback's own reference is not known here.
        limits=tuple(replace(limit, setting="") for limit in limits),
    )


def cache_policies(settings: Settings) -> Mapping[str, CachePolicy]:
    """All that the configuration says about kept answers, by the paths of the settings.

    Args:
        settings: the parsed configuration.
    """
    sections: list[Level] = [
        ((), settings),
        *((("purposes", name), each) for name, each in settings.purposes.items()),
        *((("endpoints", number), each) for number, each in enumerate(settings.endpoints)),
        *references(settings),
    ]
    found = [_cache(_first([each], "cache")) for each in sections]
    return {each.setting: each for each in found if each is not None}


def _model_levels(
    settings: Settings, catalog: Catalog, purpose: str | None, model_id: str
) -> list[Level]:
    sections = references_for(settings, purpose, catalog.canonical)
    return [(each.path, each.section) for each in sections if each.model_id == model_id]


def _purpose_levels(settings: Settings, purpose: str | None) -> list[Level]:
    own = settings.for_purpose(purpose)
    return [(("purposes", str(purpose)), own)] if own is not None else []


def _first(levels: Sequence[Level], name: str) -> tuple[Path, Any] | None:
    """The first section's path that has a setting, and the setting's value."""
    values = ((path, getattr(section, name, None)) for path, section in levels)
    return next((each for each in values if each[1] is not None), None)


def _value(found: tuple[object, Any] | None, otherwise: Any = None) -> Any:
    return otherwise if found is None else found[1]


def _cache(found: tuple[Path, CacheSettings] | None) -> CachePolicy | None:
    return CachePolicy.of(*found) if found is not None and found[1].max_mb else None


def _limits(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    model_id: str,
    model_levels: Sequence[Level],
) -> tuple[Limit, ...]:
    """Always in the same order: two requests in different orders could deadlock."""
    entry = catalog.entries.get(model_id)
    in_threads = entry is not None and isinstance(entry.model, ThreadedModel)
    of_purpose = _first(_purpose_levels(settings, purpose), "max_concurrency")
    of_model = _first(model_levels, "max_concurrency")
    if of_purpose is None and of_model is None and not in_threads:
        of_model = _first([((), settings)], "max_concurrency")
    limits = [(("purpose", str(purpose)), of_purpose), (("model", model_id), of_model)]
    found = [
        Limit(limiter, each[1], path_of(*each[0], "max_concurrency"))
        for limiter, each in limits
        if each
    ]
    if in_threads:
        if of_model is None:  # plugins are written for llm's command line, which asks one by one
            found.append(Limit(("model", model_id), 1))
        setting = path_of("threads") if "threads" in settings.model_fields_set else ""
        found.append(Limit(("threads", ""), settings.threads, setting))
    return tuple(found)


def _fallbacks(
    settings: Settings,
    catalog: Catalog,
    purpose: str | None,
    first: tuple[Path, Any] | None,
    model_id: str,
) -> Iterator[Fallback]:
    """Some fallbacks, each followed by its own; no model twice."""
    seen = {model_id}
    left = _reversed_fallbacks(first)
    while left:
        path, reference = left.pop()
        name = catalog.canonical(reference.model)
        if name not in seen:
            seen.add(name)
            yield Fallback(name, reference, path_of(*path))
            levels = _model_levels(settings, catalog, purpose, name)
            left += _reversed_fallbacks(_first(levels, "fallbacks"))


def _reversed_fallbacks(
    found: tuple[Path, Any] | None,
) -> list[tuple[Path, FallbackReference]]:
    """Fallbacks with their paths, the last one first, to be used as a stack."""
    path, fallbacks = found or ((), ())
    return [((*path, "fallbacks", number), each) for number, each in enumerate(fallbacks)][::-1]

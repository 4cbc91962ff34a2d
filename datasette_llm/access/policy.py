"""Which models may be used: pure functions over settings, catalog, keys and hook results.

Nothing here awaits or reads; the callers fetch the values to decide over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..config.references import default_reference, references_for
from ..config.settings import ModelReference, Settings, path_of
from ..decision import Step, for_purpose
from ..providers.catalog import Catalog, Entry
from ..sanitize import message_of
from .keys import KeyStatus, candidates, endpoint_secret

# The rule of a default that an administrator chose.
ASSIGNED = "assignment"


@dataclass(frozen=True, slots=True)
class Default:
    """The model that is used where the caller names none.

    Attributes:
        model_id: its id, or a name from the configuration that llm does not know.
        rule: `assignment`, or the path of the setting that names it.
    """

    model_id: str
    rule: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration's rules for one purpose, with aliases resolved to model ids.

    Attributes:
        default: the configured default, or None.
        default_setting: the path of the setting that names it, or None.
        allowed: ids on the allowlist, or None where there is none.
        blocked: blocked ids, each with the setting that blocks it.
        order: ids in the order of the lists: the purpose's, then the global one.
        references: the references for each model id, the most specific first.
    """

    default: str | None
    default_setting: str | None
    allowed: frozenset[str] | None
    blocked: Mapping[str, str]
    order: tuple[str, ...]
    references: Mapping[str, tuple[ModelReference, ...]] = field(repr=False)

    @classmethod
    def of(cls, settings: Settings, catalog: Catalog, purpose: str | None) -> Rules:
        """The rules for a purpose.

        Args:
            settings: the parsed configuration.
            catalog: resolves aliases.
            purpose: any name; one without settings has the global rules.
        """
        default = default_reference(settings, purpose)
        names = _allowlist(settings, purpose)
        allowed = None
        if names is not None:
            allowed = catalog.canonical_set([*names, *([default[1].model] if default else [])])
        return cls(
            default=catalog.canonical(default[1].model) if default else None,
            default_setting=path_of(*default[0]) if default else None,
            allowed=allowed,
            blocked=MappingProxyType(_blocked(settings, catalog, purpose)),
            order=tuple(dict.fromkeys(map(catalog.canonical, names or ()))),
            references=MappingProxyType(_references(settings, catalog, purpose)),
        )

    def options(self, model_id: str) -> dict[str, Any]:
        """The configured options of a model; the more specific reference takes precedence."""
        merged: dict[str, Any] = {}
        references = self.references.get(model_id)
        for reference in reversed(references) if references else ():
            merged |= reference.plain_options()
        return merged

    def secret_names(self, model_id: str) -> tuple[str, ...]:
        """The secrets that the references of a model name, the most specific first."""
        references = self.references.get(model_id)
        if not references:
            return ()
        return tuple(dict.fromkeys(item.key for item in references if item.key))

    def permits(self, model_id: str) -> bool:
        """Whether the configuration lets a known model be used."""
        return model_id not in self.blocked and (self.allowed is None or model_id in self.allowed)

    def steps(self, model_id: str, purpose: str | None) -> list[Step]:
        """The configuration's rules about a known model, up to the first refusal.

        Args:
            model_id: a canonical id.
            purpose: the purpose as the caller named it, for the sentences.
        """
        suffix = for_purpose(purpose)
        steps = []
        if self.allowed is None:
            steps.append(Step("allowlist", True, f"There is no allowlist{suffix}"))
        elif model_id in self.allowed:
            steps.append(Step("allowlist", True, f"Model {model_id!r} is on the allowlist{suffix}"))
        else:
            detail = (
                f"Model {model_id!r} is not allowed{suffix}: it is not on the allowlist. "
                "Add it to the models setting of datasette-llm"
            )
            return [Step("allowlist", False, detail)]
        setting = self.blocked.get(model_id)
        if setting is None:
            steps.append(Step("blocklist", True, f"Model {model_id!r} is not blocked{suffix}"))
        else:
            detail = (
                f"Model {model_id!r} is not allowed{suffix}: it is blocked. "
                f"Remove it from {setting}"
            )
            steps.append(Step("blocklist", False, detail))
        return steps


def default_of(rules: Rules, catalog: Catalog, assigned: str | None) -> Default | None:
    """The default model of a purpose where no hook names one.

    Args:
        rules: the configuration's rules for the purpose.
        catalog: resolves aliases, and has the models that llm knows.
        assigned: the model that an administrator assigned, or None. It counts only while llm
            knows it and the configuration allows it.
    """
    if assigned is not None:
        model_id = catalog.canonical(assigned)
        if model_id in catalog.entries and rules.permits(model_id):
            return Default(model_id, ASSIGNED)
    if rules.default is None or rules.default_setting is None:
        return None
    return Default(rules.default, rules.default_setting)


def has_key(entry: Entry, rules: Rules, status: KeyStatus) -> bool:
    """Whether a model needs no key or has one."""
    model = entry.model
    if not model.needs_key:
        return True
    return status.source(model, rules.secret_names(entry.model_id)) is not None


def with_key(ids: Iterable[str], catalog: Catalog, rules: Rules, status: KeyStatus) -> list[str]:
    """The ids of the models that need no key or have one, in the order they came in."""
    # Most models share their provider's key, so that few lookups are needed.
    known: dict[tuple[object, ...], bool] = {}
    kept = []
    for model_id in ids:
        entry = catalog.entries[model_id]
        model, names = entry.model, rules.secret_names(model_id)
        same_key = (model.needs_key, endpoint_secret(model), model.key_env_var, model.key, names)
        if same_key not in known:
            known[same_key] = has_key(entry, rules, status)
        if known[same_key]:
            kept.append(model_id)
    return kept


def key_step(entry: Entry, rules: Rules, status: KeyStatus, require_keys: bool) -> Step:
    """The step about a model's key."""
    model_id, model = entry.model_id, entry.model
    if not model.needs_key:
        return Step("key", True, f"Model {model_id!r} needs no key")
    source = status.source(model, rules.secret_names(model_id))
    if source is not None:
        return Step("key", True, f"Model {model_id!r} has a key ({source})")
    names = " or ".join(candidates(model, rules.secret_names(model_id)))
    hidden = "it is not listed, and " if require_keys else ""
    detail = f"Model {model_id!r} has no key, so {hidden}a prompt will fail. Set {names}"
    return Step("key", not require_keys, detail)


def filter_steps(
    model_id: str, purpose: str | None, answers: Sequence[tuple[str, frozenset[str] | Exception]]
) -> list[Step]:
    """The filter hooks' steps about a model, one for each plugin with an opinion.

    Args:
        model_id: a canonical id.
        purpose: the purpose as the caller named it.
        answers: for each plugin the ids that it keeps, or the exception that it raised.
    """
    suffix = for_purpose(purpose)
    steps = []
    for plugin, kept in answers:
        if isinstance(kept, Exception):
            why = f"{type(kept).__name__}: {message_of(kept)}"
            detail = f"Plugin {plugin!r} failed, so every use of a model{suffix} fails: {why}"
            steps.append(Step("filter", False, detail, plugin))
            continue
        passed = model_id in kept
        verb = "keeps" if passed else "does not allow"
        who = "" if passed else " for this actor"
        detail = f"Plugin {plugin!r} {verb} model {model_id!r}{suffix}{who}"
        steps.append(Step("filter", passed, detail, plugin))
    return steps


def narrowed(ids: Iterable[str], answers: Sequence[tuple[str, frozenset[str]]]) -> list[str]:
    """The ids that every filter keeps, in the order they came in."""
    return [model_id for model_id in ids if all(model_id in kept for _, kept in answers)]


def listing(rules: Rules, catalog: Catalog, default: str | None) -> list[str]:
    """The ids that the configuration permits, in the order of `LLM.models()`.

    Args:
        rules: the rules of the purpose.
        catalog: the models that llm knows.
        default: the default as resolved for the actor, which comes first.
    """
    first = [default] if default is not None else []
    ordered = dict.fromkeys([*first, *rules.order, *catalog.entries])
    return [name for name in ordered if name in catalog.entries and rules.permits(name)]


def _allowlist(settings: Settings, purpose: str | None) -> list[str] | None:
    """The names on the allowlist, the purpose's first; None where there is no list."""
    own = settings.for_purpose(purpose)
    added = own.models if own is not None else None
    if added is None and settings.models is None:
        return None
    return [reference.model for reference in (*(added or ()), *(settings.models or ()))]


def _blocked(settings: Settings, catalog: Catalog, purpose: str | None) -> dict[str, str]:
    """The blocked ids, each with the setting that blocks it, or with both."""
    lists = [(path_of("blocked_models"), settings.blocked_models)]
    own = settings.for_purpose(purpose)
    if own is not None:
        lists.append((path_of("purposes", str(purpose), "blocked_models"), own.blocked_models))
    blocked: dict[str, str] = {}
    for setting, ids in lists:
        for model_id in catalog.canonical_set(ids):
            before = blocked.get(model_id)
            blocked[model_id] = f"{before} and {setting}" if before else setting
    return blocked


def _references(
    settings: Settings, catalog: Catalog, purpose: str | None
) -> dict[str, tuple[ModelReference, ...]]:
    """The references for each model; an endpoint has options and a key of its own."""
    found: dict[str, list[ModelReference]] = {}
    for _, model_id, section in references_for(settings, purpose, catalog.canonical):
        if isinstance(section, ModelReference):
            found.setdefault(model_id, []).append(section)
    return {model_id: tuple(each) for model_id, each in found.items()}

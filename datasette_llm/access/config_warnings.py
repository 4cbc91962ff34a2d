"""Warnings about a valid configuration, given the models that are installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pydantic

from ..config.fallback_cycles import fallback_cycles
from ..config.references import references
from ..config.settings import Path, Settings, path_of
from ..providers.catalog import Catalog
from .policy import Rules


class StartupCheck:
    """The look for warnings when Datasette starts.

    Attributes:
        warnings: one line each.
        failure: a sentence, if the check itself failed; else None.
        task: looks for them; None before the start.
    """

    def __init__(self) -> None:
        self.warnings: tuple[str, ...] = ()
        self.failure: str | None = None
        self.task: asyncio.Task[None] | None = None


def warnings(settings: Settings, catalog: Catalog) -> list[str]:
    """Warnings for the administrator.

    Args:
        settings: the parsed configuration.
        catalog: the models that llm knows.

    Returns:
        One line each, `path.of.the.setting: what is wrong and what follows from it`; and what
        went wrong while llm listed its models.
    """
    return [
        *catalog.problems,
        *_replaced_models(settings, catalog),
        *_unknown_ids(settings, catalog),
        *_unusable_settings(settings, catalog),
        *_blocked_defaults(settings, catalog),
        *_useless_fallbacks(settings, catalog),
        *_cycles_by_alias(settings, catalog),
    ]


def _names(settings: Settings) -> Iterator[tuple[Path, str]]:
    for path, reference in references(settings):
        yield path, reference.model
    lists: list[tuple[Path, tuple[str, ...]]] = [(("blocked_models",), settings.blocked_models)]
    for name, purpose in settings.purposes.items():
        lists.append((("purposes", name, "blocked_models"), purpose.blocked_models))
    for path, ids in lists:
        for number, model_id in enumerate(ids):
            yield (*path, number), model_id


def _replaced_models(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for number, endpoint in enumerate(settings.endpoints):
        for name in sorted(catalog.replaced.intersection({endpoint.model, *endpoint.aliases})):
            yield (
                f"{path_of('endpoints', number)}: {name!r} is also the name of an installed model, "
                "and now refers to this endpoint"
            )


def _unknown_ids(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, name in _names(settings):
        if catalog.canonical(name) not in catalog.entries:
            yield f"{path_of(*path)}: {catalog.why_unknown(name)}"


def _unusable_settings(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, reference in references(settings):
        entry = catalog.entries.get(catalog.canonical(reference.model))
        if entry is None:
            continue
        if reference.key and not entry.model.needs_key:
            where = path_of(*path, "key")
            yield f"{where}: model {entry.model_id!r} takes no key, so this is not used"
        try:
            entry.model.Options(**reference.plain_options())
        except Exception as error:  # a third-party validator may raise anything
            if not isinstance(error, pydantic.ValidationError):
                yield f"{path_of(*path, 'options')}: model {entry.model_id!r} refuses this: {error}"
                continue
            for problem in error.errors(include_input=False, include_url=False):
                where = path_of(*path, "options", *problem["loc"])
                yield (
                    f"{where}: model {entry.model_id!r} does not take this, so prompts that use "
                    f"it will fail: {problem['msg']}"
                )


def _blocked_defaults(settings: Settings, catalog: Catalog) -> Iterator[str]:
    everywhere = catalog.canonical_set(settings.blocked_models)
    for name in [None, *settings.purposes]:
        rules = Rules.of(settings, catalog, name)
        if rules.default is None or rules.default not in rules.blocked:
            continue
        inherited = name is not None and rules.default_setting == path_of("default_model")
        if inherited and rules.default in everywhere:
            continue  # reported for default_model
        yield (
            f"{rules.default_setting}: model {rules.default!r} is blocked by "
            f"{rules.blocked[rules.default]}, so a prompt that names no model will be refused"
        )


def _useless_fallbacks(settings: Settings, catalog: Catalog) -> Iterator[str]:
    """Fallbacks that a purpose may not use, each once."""
    fallbacks = [(path, each) for path, each in references(settings) if "fallbacks" in path]
    reported = set[Path]()
    for purpose in [None, *settings.purposes] if fallbacks else []:
        rules = Rules.of(settings, catalog, purpose)
        for path, fallback in fallbacks:
            model_id = catalog.canonical(fallback.model)
            elsewhere = path[0] == "purposes" and path[1] != purpose
            if elsewhere or path in reported or model_id not in catalog.entries:
                continue
            if not rules.permits(model_id):
                reported.add(path)
                refusal = next(step for step in rules.steps(model_id, purpose) if not step.passed)
                yield f"{path_of(*path)}: {refusal.detail}; until then this fallback is skipped"


def _cycles_by_alias(settings: Settings, catalog: Catalog) -> Iterator[str]:
    # Those that need no alias are errors, and kept Datasette from starting.
    for path, problem in fallback_cycles(settings, catalog.canonical):
        yield f"{path_of(*path)}: {problem}; until then it is skipped"

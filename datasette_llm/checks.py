"""What is odd about a valid configuration, given the models that are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic

from .catalog import Catalog
from .config import ModelReference, Settings
from .policy import Rules

ROOT = "plugins.datasette-llm"


def warnings(settings: Settings, catalog: Catalog) -> list[str]:
    """Warnings for the administrator.

    Args:
        settings: the parsed configuration.
        catalog: the models that llm knows.

    Returns:
        One line each, `path.of.the.setting: what is odd and what follows from it`; and what
        went wrong while llm listed its models.
    """
    return [
        *catalog.problems,
        *_unknown_ids(settings, catalog),
        *_odd_references(settings, catalog),
        *_blocked_defaults(settings, catalog),
    ]


def _references(settings: Settings) -> Iterator[tuple[str, ModelReference]]:
    if settings.default_model is not None:
        yield f"{ROOT}.default_model", settings.default_model
    for name, purpose in settings.purposes.items():
        path = f"{ROOT}.purposes.{name}"
        if purpose.model is not None:
            yield f"{path}.model", purpose.model
        for number, reference in enumerate(purpose.models or ()):
            yield f"{path}.models[{number}]", reference


def _names(settings: Settings) -> Iterator[tuple[str, str]]:
    for path, reference in _references(settings):
        yield path, reference.model
    lists = [("models", settings.models or ()), ("blocked_models", settings.blocked_models)]
    for name, purpose in settings.purposes.items():
        lists.append((f"purposes.{name}.blocked_models", purpose.blocked_models))
    for setting, ids in lists:
        for number, model_id in enumerate(ids):
            yield f"{ROOT}.{setting}[{number}]", model_id


def _unknown_ids(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, name in _names(settings):
        if catalog.canonical(name) not in catalog.entries:
            yield f"{path}: {catalog.why_unknown(name)}"


def _odd_references(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, reference in _references(settings):
        entry = catalog.entries.get(catalog.canonical(reference.model))
        if entry is None:
            continue
        if reference.key and not entry.model.needs_key:
            yield f"{path}.key: model {entry.model_id!r} takes no key, so this is not used"
        try:
            entry.model.Options(**reference.options)
        except pydantic.ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                where = ".".join(["options", *map(str, problem["loc"])])
                yield (
                    f"{path}.{where}: model {entry.model_id!r} does not take this, so "
                    f"prompts that use it will fail: {problem['msg']}"
                )


def _blocked_defaults(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for name in [None, *settings.purposes]:
        rules = Rules.of(settings, catalog, name)
        if rules.default is None or rules.default not in rules.blocked:
            continue
        own = name is not None and settings.purposes[name].model is not None
        if name is not None and not own and rules.default in _blocked_everywhere(settings, catalog):
            continue  # said already, of default_model
        path = f"{ROOT}.purposes.{name}.model" if own else f"{ROOT}.default_model"
        yield (
            f"{path}: model {rules.default!r} is blocked by {rules.blocked[rules.default]}, so "
            "a prompt that names no model will be refused"
        )


def _blocked_everywhere(settings: Settings, catalog: Catalog) -> frozenset[str]:
    return catalog.canonical_set(settings.blocked_models)

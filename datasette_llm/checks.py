"""What is odd about a valid configuration, given the models that are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic

from .catalog import Catalog
from .config import ModelReference, Settings, path_of
from .policy import Rules

Path = tuple[str | int, ...]


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
        *_replaced_models(settings, catalog),
        *_unknown_ids(settings, catalog),
        *_odd_references(settings, catalog),
        *_blocked_defaults(settings, catalog),
    ]


def _references(settings: Settings) -> Iterator[tuple[Path, ModelReference]]:
    if settings.default_model is not None:
        yield ("default_model",), settings.default_model
    for name, purpose in settings.purposes.items():
        if purpose.model is not None:
            yield ("purposes", name, "model"), purpose.model
        for number, reference in enumerate(purpose.models or ()):
            yield ("purposes", name, "models", number), reference


def _names(settings: Settings) -> Iterator[tuple[Path, str]]:
    for path, reference in _references(settings):
        yield path, reference.model
    lists: list[tuple[Path, tuple[str, ...]]] = [
        (("models",), settings.models or ()),
        (("blocked_models",), settings.blocked_models),
    ]
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
                "and means this endpoint now"
            )


def _unknown_ids(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, name in _names(settings):
        if catalog.canonical(name) not in catalog.entries:
            yield f"{path_of(*path)}: {catalog.why_unknown(name)}"


def _odd_references(settings: Settings, catalog: Catalog) -> Iterator[str]:
    for path, reference in _references(settings):
        entry = catalog.entries.get(catalog.canonical(reference.model))
        if entry is None:
            continue
        if reference.key and not entry.model.needs_key:
            where = path_of(*path, "key")
            yield f"{where}: model {entry.model_id!r} takes no key, so this is not used"
        try:
            entry.model.Options(**reference.plain_options())
        except Exception as error:  # a stranger's validator may raise anything
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
        own = name is not None and settings.purposes[name].model is not None
        if name is not None and not own and rules.default in everywhere:
            continue  # said already, of default_model
        path: Path = ("purposes", str(name), "model") if own else ("default_model",)
        yield (
            f"{path_of(*path)}: model {rules.default!r} is blocked by "
            f"{rules.blocked[rules.default]}, so a prompt that names no model will be refused"
        )

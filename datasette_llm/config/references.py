"""Which model references the configuration has, and which of them count for a purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .settings import (
    CallSettings,
    EndpointSettings,
    FallbackReference,
    ModelReference,
    Path,
    Settings,
)


class ModelSection(NamedTuple):
    """A section of the configuration that is about one model.

    Attributes:
        path: where it stands.
        model_id: the model, its aliases resolved.
        section: a reference or an endpoint.
    """

    path: Path
    model_id: str
    section: ModelReference | EndpointSettings


def references_for(
    settings: Settings, purpose: str | None, canonical: Callable[[str], str] = str
) -> Iterator[ModelSection]:
    """The sections about models that count for a purpose, the most specific first.

    This order is the one precedence of datasette-llm: the purpose's `models`, its `model`, the
    global `models`, `default_model`, the endpoints.

    Args:
        settings: the parsed configuration.
        purpose: any name; one without settings has what counts for all.
        canonical: turns aliases into ids; without it names stay as they are written.
    """
    for path, section in _sections_for(settings, purpose):
        if section is not None:
            yield ModelSection(path, canonical(section.model), section)


def default_reference(
    settings: Settings, purpose: str | None
) -> tuple[Path, ModelReference] | None:
    """The reference that names the default model of a purpose, and its path, or None."""
    own = settings.for_purpose(purpose)
    if own is not None and own.model is not None:
        return ("purposes", str(purpose), "model"), own.model
    if settings.default_model is not None:
        return ("default_model",), settings.default_model
    return None


def references(settings: Settings) -> Iterator[tuple[Path, FallbackReference]]:
    """Every reference with its path, in configuration order; fallbacks after what has them.

    Args:
        settings: the parsed configuration.
    """
    sections: list[tuple[Path, CallSettings | None]] = [
        (("default_model",), settings.default_model),
        ((), settings),
        *((("models", number), each) for number, each in enumerate(settings.models or ())),
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


def _sections_for(
    settings: Settings, purpose: str | None
) -> Iterator[tuple[Path, ModelReference | EndpointSettings | None]]:
    own = settings.for_purpose(purpose)
    if own is not None:
        place = ("purposes", str(purpose))
        for number, reference in enumerate(own.models or ()):
            yield (*place, "models", number), reference
        yield (*place, "model"), own.model
    for number, reference in enumerate(settings.models or ()):
        yield ("models", number), reference
    yield ("default_model",), settings.default_model
    for number, endpoint in enumerate(settings.endpoints):
        yield ("endpoints", number), endpoint

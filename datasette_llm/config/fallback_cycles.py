"""Cycles of fallbacks: a model that falls back to itself, directly or through others.

Only the fallbacks of model references and endpoints can form one. Fallbacks of a purpose, or
those for all, never do: a prompt asks no model twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .references import references_for
from .settings import Path, PurposeSettings, Settings
from .values import quoted

_SHOWN_MODELS = 8
_ADVICE = (
    "a model cannot be its own fallback. "
    "To make models fallbacks of each other, set fallbacks on the purpose"
)


class _Edge(NamedTuple):
    path: Path
    model: str
    fallback: str


_Graph = dict[str, list[_Edge]]
_Cycle = list[_Edge]


def fallback_cycles(
    settings: Settings, canonical: Callable[[str], str] = str
) -> Iterator[tuple[Path, str]]:
    """The cycles in the fallbacks of model references, each once.

    Args:
        settings: valid in all other respects.
        canonical: turns aliases into ids; without it names are compared as they are written.

    Yields:
        The path of the fallback that closes a cycle, and what is wrong with it.
    """
    purposes = [name for name, each in settings.purposes.items() if _has_fallbacks(each)]
    seen = set[frozenset[Path]]()
    for purpose in [None, *purposes]:
        for cycle in _cycles(_graph(settings, purpose, canonical)):
            paths = frozenset(edge.path for edge in cycle)
            if paths not in seen:
                seen.add(paths)
                yield cycle[-1].path, f"{_sentence(cycle)}; {_ADVICE}"


def _has_fallbacks(purpose: PurposeSettings) -> bool:
    """Whether its references have any; otherwise it has the cycles of all purposes."""
    return any(each and each.fallbacks for each in (*(purpose.models or ()), purpose.model))


def _graph(settings: Settings, purpose: str | None, canonical: Callable[[str], str]) -> _Graph:
    graph: _Graph = {}
    for path, model, section in references_for(settings, purpose, canonical):
        # The first list that a model has is the most specific one, and the only one that counts.
        if section.fallbacks is not None and model not in graph:
            graph[model] = [
                _Edge((*path, "fallbacks", number), model, canonical(fallback.model))
                for number, fallback in enumerate(section.fallbacks)
            ]
    return graph


def _cycles(graph: _Graph) -> Iterator[_Cycle]:
    """Depth-first search; a loop, since a long chain would exceed the recursion limit."""
    done: set[str] = set()
    for start in graph:
        chain: list[_Edge] = []
        open_models = {} if start in done else {start: iter(graph[start])}
        while open_models:
            model = next(reversed(open_models))
            edge = next(open_models[model], None)
            if edge is None:
                done.add(model)
                open_models.popitem()
                del chain[-1:]
            elif edge.fallback in open_models:
                yield [*chain[list(open_models).index(edge.fallback) :], edge]
            elif edge.fallback in graph and edge.fallback not in done:
                chain.append(edge)
                open_models[edge.fallback] = iter(graph[edge.fallback])


def _sentence(cycle: _Cycle) -> str:
    names = [quoted(edge.fallback) for edge in cycle]
    if len(names) > _SHOWN_MODELS:
        names = [*names[: _SHOWN_MODELS - 2], "…", names[-1]]
    return f"{quoted(cycle[0].model)} falls back to {', which falls back to '.join(names)}"

"""Fallbacks that lead back to the model which they stand in for.

Only those of a model's own references can: where a purpose or everything has fallbacks, a model
that is asked for is skipped in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .references import ModelReference
from .settings import EndpointSettings, Settings
from .values import quoted

Path = tuple[str | int, ...]
_SHOWN_MODELS = 8
_ADVICE = (
    "a model cannot stand in for itself. "
    "Set fallbacks on the purpose to have models stand in for each other"
)


class _Step(NamedTuple):
    path: Path
    model: str
    fallback: str


_Steps = dict[str, list[_Step]]
_Circle = list[_Step]


def fallback_circles(
    settings: Settings, canonical: Callable[[str], str] = str
) -> Iterator[tuple[Path, str]]:
    """The circles in the fallbacks of model references.

    The references of a purpose count together with `default_model` and the endpoints.

    Args:
        settings: valid in all other respects.
        canonical: turns aliases into ids; without it names are compared as they are written.

    Returns:
        For each circle the path of the fallback that closes it, and what is wrong with it.
    """
    told = set()
    for steps in _purposes(settings, canonical):
        for circle in _circles(steps):
            paths = frozenset(step.path for step in circle)
            if paths not in told:
                told.add(paths)
                yield circle[-1].path, f"{_sentence(circle)}; {_ADVICE}"


def _purposes(settings: Settings, canonical: Callable[[str], str]) -> Iterator[_Steps]:
    everywhere: list[tuple[Path, ModelReference | EndpointSettings | None]] = [
        (("default_model",), settings.default_model),
        *((("endpoints", number), each) for number, each in enumerate(settings.endpoints)),
    ]
    yield _steps(everywhere, canonical)
    for name, purpose in settings.purposes.items():
        listed = enumerate(purpose.models or ())
        own = [(("purposes", name, "models", number), each) for number, each in listed]
        main = (("purposes", name, "model"), purpose.model)
        # One that adds none has no circle of its own.
        if any(each and each.fallbacks for _, each in (*own, main)):
            yield _steps([*own, main, *everywhere], canonical)


def _steps(
    references: Iterable[tuple[Path, ModelReference | EndpointSettings | None]],
    canonical: Callable[[str], str],
) -> _Steps:
    steps: _Steps = {}
    for path, reference in references:
        model = canonical(reference.model) if reference else ""
        # The first that has any is the most specific one.
        if reference and reference.fallbacks is not None and model not in steps:
            steps[model] = [
                _Step((*path, "fallbacks", number), model, canonical(fallback.model))
                for number, fallback in enumerate(reference.fallbacks)
            ]
    return steps


def _circles(steps: _Steps) -> Iterator[_Circle]:
    done: set[str] = set()
    for start in steps:
        # A loop instead of a recursion, which a long way would break off.
        way: list[_Step] = []
        left = {} if start in done else {start: iter(steps[start])}
        while left:
            model = next(reversed(left))
            step = next(left[model], None)
            if step is None:
                done.add(model)
                left.popitem()
                del way[-1:]
            elif step.fallback in left:
                yield [*way[list(left).index(step.fallback) :], step]
            elif step.fallback in steps and step.fallback not in done:
                way.append(step)
                left[step.fallback] = iter(steps[step.fallback])


def _sentence(circle: _Circle) -> str:
    names = [quoted(step.fallback) for step in circle]
    if len(names) > _SHOWN_MODELS:
        names = [*names[: _SHOWN_MODELS - 2], "…", names[-1]]
    return f"{quoted(circle[0].model)} falls back to {', which falls back to '.join(names)}"

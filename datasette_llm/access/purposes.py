"""Purposes: what plugins use models for."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import instance
from ..errors import HookError
from ..hooks import dispatch
from .hook_failures import HookFailures

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

HOOK = "register_llm_purposes"


@dataclass(frozen=True, slots=True)
class Purpose:
    """A use of models that a plugin declares with `register_llm_purposes`.

    Args:
        name: what plugins pass as `purpose=` and administrators write in `datasette.yaml`.
        description: one sentence for the administrator.
    """

    name: str
    description: str | None = None


class Purposes(list[Purpose]):
    """The purposes that plugins registered: a list that can also be awaited.

    As a list it has those of the plugins that answer at once. Awaited, it gives a list that has
    those of asynchronous hooks too. When it is read without them, a warning is logged.
    """

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        # None once they were used: asynchronous ones can be awaited once.
        self._answers: dispatch.Answers | None = None
        self._answers = dispatch.collect(datasette, HOOK)
        ready = {}
        for number, (plugin, answer) in enumerate(self._answers):
            if not inspect.isawaitable(answer):
                ready[number] = plugin, _purposes_of(plugin, answer)
                self._answers[number] = ready[number]  # a generator can be read once
        super().__init__(_merged(ready.values()))

    def __await__(self) -> Generator[Any, None, list[Purpose]]:
        return self._complete().__await__()

    def __iter__(self) -> Iterator[Purpose]:
        self._leave_out()
        return super().__iter__()

    def __len__(self) -> int:
        self._leave_out()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._leave_out()
        return super().__eq__(other)

    def __del__(self) -> None:
        self._leave_out()  # it may have been read by index, slice or `+`

    async def _complete(self) -> list[Purpose]:
        answers, self._answers = self._answers, None
        with _failure_noted(self._datasette):
            if answers is None:
                answers = dispatch.collect(self._datasette, HOOK)
            return _merged(await dispatch.resolve(HOOK, answers))

    def _leave_out(self) -> None:
        answers, self._answers = self._answers, None
        left_out = dispatch.discard(answers or [])
        if left_out:
            logger.warning(
                "get_purposes() was not awaited, so it leaves out the purposes of plugins with an "
                "async register_llm_purposes: %s",
                ", ".join(map(repr, left_out)),
            )


def get_purposes(datasette: Datasette) -> Purposes:
    """The purposes that plugins registered, as a list.

    Args:
        datasette: the Datasette instance.

    Returns:
        One `Purpose` for each name, in the order of the plugins; where two plugins register
        the same name, the first with a description counts. A purpose can be used without
        being registered. Those of asynchronous hooks are left out, which is logged;
        `await get_purposes(datasette)` has them too.

    Raises:
        HookError: a plugin raised something, or returned something other than purposes.
    """
    with _failure_noted(datasette):
        return Purposes(datasette)


@contextlib.contextmanager
def _failure_noted(datasette: Datasette) -> Iterator[None]:
    try:
        yield
    except HookError as error:
        cause = error.__cause__ or error
        instance.of(datasette, HookFailures).note(HOOK, str(error.plugin), cause)
        raise


def _merged(answers: Iterable[tuple[str, Any]]) -> list[Purpose]:
    found: dict[str, Purpose] = {}
    for plugin, answer in answers:
        for purpose in _purposes_of(plugin, answer):
            known = found.get(purpose.name)
            if known is None or (known.description is None and purpose.description):
                found[purpose.name] = purpose
    return list(found.values())


def _purposes_of(plugin: str, answer: Any) -> list[Purpose]:
    try:
        purposes = list(answer) if isinstance(answer, Iterable) else [answer]
    except Exception as error:  # a plugin's generator
        raise dispatch.failed(HOOK, plugin, error) from error
    if not all(map(_is_purpose, purposes)):
        raise HookError(
            f"{HOOK} of plugin {plugin!r} returned {answer!r}; "
            "return a list of datasette_llm.Purpose",
            HOOK,
            plugin,
        )
    return purposes


def _is_purpose(value: object) -> bool:
    return (
        isinstance(value, Purpose)
        and isinstance(value.name, str)
        and isinstance(value.description, str | None)
    )

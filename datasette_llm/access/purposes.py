"""Purposes: what plugins use models for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import HookError
from ..hooks import dispatch

if TYPE_CHECKING:
    from datasette.app import Datasette


@dataclass(frozen=True, slots=True)
class Purpose:
    """A use of models that a plugin declares with `register_llm_purposes`.

    Args:
        name: what plugins pass as `purpose=` and administrators write in `datasette.yaml`.
        description: one sentence for the administrator.
    """

    name: str
    description: str | None = None


async def get_purposes(datasette: Datasette) -> list[Purpose]:
    """The purposes that plugins registered.

    Args:
        datasette: the Datasette instance.

    Returns:
        One `Purpose` for each name, in the order of the plugins; where two plugins register
        the same name, the first with a description counts. A purpose can be used without
        being registered.

    Raises:
        HookError: a plugin returned something other than purposes.
    """
    found: dict[str, Purpose] = {}
    for plugin, result in await dispatch.collect(datasette, "register_llm_purposes"):
        several = isinstance(result, Iterable)
        purposes = list(result) if several else [result]
        if not all(map(_is_purpose, purposes)):
            raise HookError(
                f"register_llm_purposes of plugin {plugin!r} returned {result!r}; "
                "return a list of datasette_llm.Purpose"
            )
        for purpose in purposes:
            known = found.get(purpose.name)
            if known is None or (known.description is None and purpose.description):
                found[purpose.name] = purpose
    return list(found.values())


def _is_purpose(value: object) -> bool:
    return (
        isinstance(value, Purpose)
        and isinstance(value.name, str)
        and isinstance(value.description, str | None)
    )

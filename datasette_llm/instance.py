"""One object of each type for each Datasette instance, freed with the instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from datasette.app import Datasette

_T = TypeVar("_T")

_objects: WeakKeyDictionary[Datasette, dict[type, Any]] = WeakKeyDictionary()


def of(datasette: Datasette, kind: type[_T], make: Callable[[], _T] | None = None) -> _T:
    """The one object of a type that a Datasette instance has.

    It must not refer to the instance, or neither would ever be freed.

    Args:
        datasette: the instance.
        kind: the type.
        make: creates the object at first use; by default the type is called without arguments.
    """
    objects = _objects.get(datasette)
    if objects is None:
        objects = _objects[datasette] = {}
    found: _T | None = objects.get(kind)
    if found is None:
        found = objects[kind] = (make or kind)()
    return found

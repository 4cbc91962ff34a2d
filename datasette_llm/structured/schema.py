"""The caller's schema as JSON, and the references in it."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from ..errors import SchemaError

_ELSEWHERE = ("$dynamicRef", "$recursiveRef")


def plain_schema(schema: type[BaseModel] | Mapping[str, Any]) -> dict[str, Any]:
    """The caller's schema as JSON, in a copy.

    Raises:
        SchemaError: it is not JSON.
        TypeError: it is neither a model nor a dictionary.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        try:
            schema = schema.model_json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise SchemaError("", f"has no JSON schema: {error.message}") from error
    if not isinstance(schema, Mapping):
        raise TypeError(
            "schema has to be a pydantic model class or a JSON schema dictionary, not "
            f"{schema!r}; put another type into a field of a model"
        )
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError("", f"is not JSON: {error}") from None
    return plain


def resolved(root: Mapping[str, Any], reference: Any, path: str) -> Any:
    """The target of a reference within a schema.

    Raises:
        SchemaError: it is outside the schema, or does not exist.
    """
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise SchemaError(
            path, f"refers to {reference!r}; only references such as #/$defs/NAME are followed"
        )
    target: Any = root
    for part in reference.split("/")[1:]:
        name = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            target = target[int(name) if isinstance(target, list) else name]
        except (LookupError, TypeError, ValueError):
            raise SchemaError(path, f"refers to {reference!r}, which is not there") from None
    return target


def refuse_other_references(root: Mapping[str, Any]) -> None:
    """Refuse references to anything outside a schema, anywhere in it.

    Raises:
        SchemaError: there is one.
    """
    for part in _parts(root):
        for keyword in _ELSEWHERE:
            if isinstance(part.get(keyword), str):
                raise SchemaError("", f"uses {keyword}; use $ref")
        if part is not root and isinstance(part.get("$id"), str):
            raise SchemaError("", "has $id below its root, where references would change meaning")
        if isinstance(part.get("$ref"), str):
            resolved(root, part["$ref"], "")


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)

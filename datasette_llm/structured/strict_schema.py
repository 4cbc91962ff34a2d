"""The closed schema that is sent in place of the caller's.

It meets the rules of OpenAI's strict mode, which other providers share: an object at the root,
closed objects with all of their properties required, references only as `#/$defs/NAME` with
nothing beside them, no `oneOf` or `allOf`. Providers differ in which keywords that constrain a
value they support; none are sent, but they are part of the description, and the answer is
validated by them.

Sources: https://platform.openai.com/docs/guides/structured-outputs (supported schemas), and
`openai.lib._pydantic` in OpenAI's Python client. Their limits (5,000 properties, 10 levels, 1,000
values of enumerations) are not checked here, since those of other providers differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..errors import SchemaError
from .schema import plain_schema, resolved

MAX_PARTS = 5_000  # of the closed schema, since resolving references can grow exponentially

_RULES = (
    *("default", "format", "pattern", "minLength", "maxLength", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems"),
    *("prefixItems", "contains", "minContains", "maxContains", "minProperties", "maxProperties"),
    *("dependentRequired", "dependentSchemas", "if", "then", "else", "not"),
    *("allOf", "anyOf", "oneOf"),
)
_KEYWORDS = frozenset(
    {"type", "properties", "required", "items", "enum", "const", "$ref", "description", *_RULES}
)
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def closed_schema(schema: type[BaseModel] | Mapping[str, Any]) -> dict[str, Any]:
    """The schema that is sent for one of the caller's.

    Every object is closed and requires all of its properties, also those that are optional or
    have a default in the caller's schema; null is allowed only where the caller's schema allows
    it. Keywords that not all providers support are added to the description, as JSON.

    Args:
        schema: a pydantic model, or a JSON schema.

    Returns:
        A new dictionary. Targets of references are under `$defs`.

    Raises:
        SchemaError: it cannot be closed: an object without properties, or with arbitrary ones
            (`dict[str, X]`), a value of any type (`Any`), a root that is not an object, a
            reference to outside the schema, several `allOf`. Names the path.
        TypeError: it is neither a model nor a dictionary.
    """
    plain = plain_schema(schema)
    try:
        return _Closing(plain).whole()
    except RecursionError:
        raise SchemaError("", "is nested too deep to be sent") from None


class _Closing:
    """The state of closing one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._names: dict[str, str] = {}  # of the definitions, by the references to them
        self._definitions: dict[str, Any] = {}
        self._inlined: list[str] = []
        self._count = 0

    def whole(self) -> dict[str, Any]:
        start, _ = self._followed(self._root, "")
        closed = self.closed(start, "")
        if closed.get("type") != "object":
            raise SchemaError(
                "",
                "has to be an object at its root, because providers take no other; make what "
                "it is a property of one",
            )
        return closed | ({"$defs": self._definitions} if self._definitions else {})

    def closed(self, schema: Any, path: str) -> dict[str, Any]:
        self._count += 1
        if self._count > MAX_PARTS:
            raise SchemaError("", f"has more than {MAX_PARTS:,} parts with what it refers to")
        if not isinstance(schema, Mapping):
            raise _takes_anything(path)
        part = self._merged(schema, path)
        if "$ref" not in part:
            return self._value(part, path)
        reference = part["$ref"]
        if len(part) == 1 or reference in self._inlined:
            return {"$ref": self._defined(reference, path)}
        # Nothing may stand beside a reference, so its target is inlined.
        target, last = self._followed({"$ref": reference}, path)
        beside = {key: value for key, value in part.items() if key != "$ref"}
        self._inlined += [reference, last]
        try:
            return self.closed({**target, **beside}, path)
        finally:
            del self._inlined[-2:]

    def _merged(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The part without keywords that do not constrain it, and with an `allOf` of one merged."""
        part = {key: value for key, value in schema.items() if key in _KEYWORDS}
        several = part.get("allOf")
        if several is None:
            return part
        if not isinstance(several, list) or len(several) != 1 or "properties" in part:
            raise SchemaError(path, "uses allOf, which cannot be sent; write its parts as one")
        del part["allOf"]
        only = several[0]
        return self._merged({**only, **part} if isinstance(only, Mapping) else {}, path)

    def _followed(self, schema: Any, path: str) -> tuple[Mapping[str, Any], str]:
        """The final target of a chain of references, and the last reference in it."""
        seen: list[str] = []
        while isinstance(schema, Mapping) and "$ref" in schema:
            reference = schema["$ref"]
            if reference in seen:
                raise SchemaError(path, f"refers to {reference!r}, which refers to itself")
            target = resolved(self._root, reference, path)
            seen.append(reference)
            beside = {k: v for k, v in schema.items() if k in _KEYWORDS and k != "$ref"}
            if beside and isinstance(target, Mapping):
                target = {**target, **beside}
            schema = target
        if not isinstance(schema, Mapping):
            raise _takes_anything(path)
        return schema, seen[-1] if seen else ""

    def _defined(self, reference: str, path: str) -> str:
        if reference not in self._names:
            target = resolved(self._root, reference, path)
            self._followed({"$ref": reference}, path)  # raises for a cycle
            last = "root" if reference == "#" else reference.rpartition("/")[2]
            name = re.sub(r"[^A-Za-z0-9_-]", "_", last) or "part"
            while name in self._definitions:
                name += "_"
            self._names[reference] = name
            self._definitions[name] = {}  # reserves its position before those it refers to
            self._definitions[name] = self.closed(target, path)
        return f"#/$defs/{self._names[reference]}"

    def _value(self, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        variants = part.get("anyOf") or part.get("oneOf")
        if "enum" in part or "const" in part:
            closed, used = _enumeration(part, path), {"enum", "const"}
        elif variants and not _describes_itself(part):
            options = [self.closed(variant, path) for variant in variants]
            closed, used = {"anyOf": options}, {"anyOf" if "anyOf" in part else "oneOf"}
        else:
            closed, used = self._typed(part, path), set()
        return closed | _description(part, used)

    def _typed(self, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        kind = part.get("type") or _implied_type(part, path)
        closed: dict[str, Any] = {"type": kind}
        kinds = kind if isinstance(kind, list) else [kind]
        if "object" in kinds:
            closed |= self._properties(part, path)
        if "array" in kinds:
            closed["items"] = self._items(part, path)
        return closed

    def _properties(self, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        properties = part.get("properties") or {}
        if not properties:
            raise SchemaError(
                path,
                "is an object without properties of its own (such as dict[str, X]), which cannot "
                "be closed; name its properties, or make it a list of objects",
            )
        for name in part.get("required", ()):
            if name not in properties:
                raise SchemaError(path, f"requires {name!r}, which is not among its properties")
        closed = {
            name: self.closed(each, f"{path}.{name}" if path else name)
            for name, each in properties.items()
        }
        return {"properties": closed, "required": list(closed), "additionalProperties": False}

    def _items(self, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The items of a list; those of a tuple as alternatives, in any order."""
        each = [*part.get("prefixItems", ()), *([part["items"]] if part.get("items") else [])]
        if not each:
            raise SchemaError(path, "is a list of anything, which cannot be closed; say of what")
        options = [self.closed(item, f"{path}[]") for item in each]
        different = [item for n, item in enumerate(options) if item not in options[:n]]
        return different[0] if len(different) == 1 else {"anyOf": different}


def _describes_itself(part: Mapping[str, Any]) -> bool:
    """Whether alternatives beside this only constrain it further."""
    kinds = part.get("type", "object")
    scalar = not {"object", "array"} & set(kinds if isinstance(kinds, list) else [kinds])
    return scalar or bool(part.keys() & {"properties", "items", "prefixItems"})


def _implied_type(part: Mapping[str, Any], path: str) -> str:
    if "properties" in part:
        return "object"
    if "items" in part or "prefixItems" in part:
        return "array"
    raise _takes_anything(path)


def _enumeration(part: Mapping[str, Any], path: str) -> dict[str, Any]:
    values = [part["const"]] if "const" in part else part["enum"]
    if any(type(value) not in _TYPE_OF for value in values):
        raise SchemaError(path, "is one of some lists or objects; only plain values can be sent")
    types = list(dict.fromkeys(_TYPE_OF[type(value)] for value in values))
    return {"type": part.get("type") or (types if len(types) > 1 else types[0]), "enum": values}


def _description(part: Mapping[str, Any], used: set[str]) -> dict[str, str]:
    rules = {rule: part[rule] for rule in _RULES if part.get(rule) is not None and rule not in used}
    texts = [str(part.get("description", ""))]
    if rules:
        texts.append(f"({json.dumps(rules, ensure_ascii=False)})")
    text = " ".join(filter(None, texts))
    return {"description": text} if text else {}


def _takes_anything(path: str) -> SchemaError:
    return SchemaError(path, "takes a value of any type (such as Any), so say of which type it is")

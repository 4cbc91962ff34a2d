"""Validate an answer by all rules of the caller's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic

from ..errors import SchemaError
from ..redaction import cut
from .json_extraction import UnfitError, fitting, parsed
from .schema import plain_schema, refuse_other_references
from .strict_schema import closed_schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

# Of one problem, whose message may repeat the value.
MAX_PROBLEM_CHARS = 300
# A longer answer is read in a thread in any case, since it would hold up the event loop.
LONG_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A schema, as it is sent and as it validates.

    Attributes:
        sent: the closed schema.
        validated: returns the value for a piece of JSON, given as text and as plain data, or
            raises UnfitError.
        in_thread: whether `validated` may take long, and is thread-safe.
    """

    sent: dict[str, Any]
    validated: Callable[[str, Any], Any]
    in_thread: bool

    @classmethod
    async def of(cls, schema: type[pydantic.BaseModel] | Mapping[str, Any]) -> Shape:
        """The shape of a caller's schema.

        Args:
            schema: a pydantic model, or a JSON schema.

        Raises:
            SchemaError: it cannot be closed, or is not a schema.
            TypeError: it is neither a model nor a dictionary.
        """
        if isinstance(schema, type) and issubclass(schema, pydantic.BaseModel):
            # The caller's own validators may not be thread-safe.
            return cls(closed_schema(schema), partial(_as_model, schema), in_thread=False)
        plain = plain_schema(schema)
        # In a thread, since jsonschema takes a tenth of a second to import and reads files.
        validated = await asyncio.to_thread(_data_validator, plain)
        return cls(closed_schema(plain), validated, in_thread=True)

    async def read(self, answer: str) -> Any:
        """The value in an answer.

        Raises:
            UnfitError: there is none that fits.
        """
        if self.in_thread or len(answer) > LONG_CHARS:
            return await asyncio.to_thread(fitting, answer, self.validated)
        return fitting(answer, self.validated)


class Outline(NamedTuple):
    """What the outermost value of a JSON schema has to be.

    Attributes:
        kinds: the names of its types; empty for any.
        required: the properties that it has to have, as an object.
    """

    kinds: frozenset[str]
    required: frozenset[str]

    @classmethod
    def of(cls, schema: Any) -> Outline:
        """The outline of a schema, whatever is in it."""
        given = schema if isinstance(schema, Mapping) else {}
        kinds, required = given.get("type"), given.get("required")
        return cls(_names([kinds] if isinstance(kinds, str) else kinds), _names(required))

    def fits(self, text: str) -> bool:
        """Whether a text is JSON, and nothing beside it, of this outline; for a thread.

        A whole schema can have patterns that take forever, and is checked where that is wanted.
        """
        try:
            value = parsed(text)
        except (UnfitError, RecursionError):
            return False
        if isinstance(value, dict):
            return self._may_be("object") and self.required <= value.keys()
        if isinstance(value, list):
            return self._may_be("array")
        return not self.kinds or not self.kinds <= {"object", "array"}

    def _may_be(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds


def _names(given: Any) -> frozenset[str]:
    each = given if isinstance(given, list | tuple) else ()
    return frozenset(name for name in each if isinstance(name, str))


def _as_model(model: type[pydantic.BaseModel], text: str, plain: Any) -> pydantic.BaseModel:
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise UnfitError([_sentence(each["loc"], each["msg"]) for each in problems]) from None
    except RecursionError:
        raise _too_deep() from None


def _as_data(
    validator: Validator, best_match: Callable[..., ValidationError | None], text: str, plain: Any
) -> Any:
    try:
        # For alternatives, best_match has the error of the closest one.
        errors = [best_match([each]) or each for each in validator.iter_errors(plain)]
    except RecursionError:
        raise _too_deep() from None
    if errors:
        raise UnfitError([_sentence(each.absolute_path, each.message) for each in errors])
    return plain


def _data_validator(schema: dict[str, Any]) -> Callable[[str, Any], Any]:
    """A validator of a JSON schema that never fetches references from the network."""
    # Here, since these take a tenth of a second to import, and few plugins pass JSON schemas.
    from jsonschema.exceptions import SchemaError as NotASchema  # noqa: PLC0415
    from jsonschema.exceptions import best_match  # noqa: PLC0415
    from jsonschema.validators import Draft202012Validator, validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except NotASchema as error:
        path = _path(error.absolute_path)
        raise SchemaError(
            path, f"is not valid JSON schema: {cut(error.message, MAX_PROBLEM_CHARS)}"
        ) from None
    except RecursionError:
        raise SchemaError("", "is nested too deep to be checked") from None
    refuse_other_references(schema)
    validator = kind(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
    return partial(_as_data, validator, best_match)


def _sentence(path: Iterable[str | int], message: str) -> str:
    where = _path(path)
    text = cut(message, MAX_PROBLEM_CHARS).rstrip(".")
    return f"{where}: {text}." if where else f"{text}."


def _path(parts: Iterable[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _too_deep() -> UnfitError:
    return UnfitError(["The JSON is nested too deep to be checked."])

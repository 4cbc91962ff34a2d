"""Checking an answer by the caller's own schema, with all of its rules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pydantic

from ..errors import SchemaError
from .json_extraction import UnfitError, fitting
from .schema import plain_schema, refuse_other_references
from .strict_schema import closed_schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

# Of a sentence, which may repeat the value that it is about.
MAX_PROBLEM_CHARS = 300


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer has to look like.

    Attributes:
        sent: the schema that is sent.
        validated: makes the value of a piece of JSON, given as text and as plain data.
        in_thread: whether that may take long, and is safe in a thread.
    """

    sent: dict[str, Any]
    validated: Callable[[str, Any], Any]
    in_thread: bool

    @classmethod
    async def of(cls, schema: type[pydantic.BaseModel] | Mapping[str, Any]) -> Shape:
        """The shape that a schema describes.

        Args:
            schema: a pydantic model, or a JSON schema.

        Raises:
            SchemaError: it cannot be closed, or is not a schema.
            TypeError: it is neither a model nor a dictionary.
        """
        if isinstance(schema, type) and issubclass(schema, pydantic.BaseModel):
            # A validator of the caller's may not be made for threads.
            return cls(closed_schema(schema), partial(_as_model, schema), in_thread=False)
        plain = plain_schema(schema)
        # In a thread, since jsonschema takes a tenth of a second to import and reads files.
        validator = await asyncio.to_thread(_validator, plain)
        return cls(closed_schema(plain), partial(_as_data, validator), in_thread=True)

    async def read(self, answer: str) -> Any:
        """The value that an answer holds.

        Raises:
            UnfitError: it holds none.
        """
        if self.in_thread:
            return await asyncio.to_thread(fitting, answer, self.validated)
        return fitting(answer, self.validated)


def _as_model(model: type[pydantic.BaseModel], text: str, plain: Any) -> pydantic.BaseModel:
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise UnfitError([_sentence(each["loc"], each["msg"]) for each in problems]) from None
    except RecursionError:
        raise _too_deep() from None


def _as_data(validator: Validator, text: str, plain: Any) -> Any:
    from jsonschema.exceptions import best_match

    try:
        # Of a choice that nothing fits, best_match tells what is wrong with the nearest.
        errors: list[ValidationError] = [
            best_match([each]) or each for each in validator.iter_errors(plain)
        ]
    except RecursionError:
        raise _too_deep() from None
    if errors:
        raise UnfitError([_sentence(each.absolute_path, each.message) for each in errors])
    return plain


def _validator(schema: dict[str, Any]) -> Validator:
    """What validates by a JSON schema, and never asks the network for a part of it."""
    from jsonschema.exceptions import SchemaError as NotASchema
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except NotASchema as error:
        path = _path(error.absolute_path)
        raise SchemaError(path, f"is not valid JSON schema: {_brief(error.message)}") from None
    except RecursionError:
        raise SchemaError("", "is nested too deep to be checked") from None
    refuse_other_references(schema)
    return kind(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)


def _sentence(path: Iterable[str | int], message: str) -> str:
    where = _path(path)
    text = _brief(message).rstrip(".")
    return f"{where}: {text}." if where else f"{text}."


def _path(parts: Iterable[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _brief(text: str) -> str:
    return text if len(text) <= MAX_PROBLEM_CHARS else text[:MAX_PROBLEM_CHARS] + "…"


def _too_deep() -> UnfitError:
    return UnfitError(["The JSON is nested too deep to be checked."])

"""Find the JSON in an answer, in a fenced block or within prose.

Pieces are found by matching brackets before they are parsed, not by `raw_decode`: a parser that
fails does not tell where the broken object ends, and its parts must not be taken for whole ones.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# Validators are recursive, so deeper JSON could exceed the recursion limit.
MAX_DEPTH = 50
MAX_PIECES = 100
MAX_PROBLEMS = 20

# An object, or a list of objects or lists; not braces in prose, nor links in Markdown.
_START = re.compile(r'\{(?=\s*["}])|\[(?=\s*[\[{])')
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)

_T = TypeVar("_T")


class UnfitError(Exception):
    """An answer does not fit the schema.

    Attributes:
        problems: one sentence each, at most `MAX_PROBLEMS`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - MAX_PROBLEMS
        rest = [f"And {more} more."] if more > 0 else []
        self.problems = (*problems[:MAX_PROBLEMS], *rest)
        super().__init__(" ".join(self.problems))


def fitting(text: str, validated: Callable[[str, Any], _T]) -> _T:
    """The one object in an answer that fits.

    Args:
        text: the whole answer.
        validated: returns the value for a piece of JSON, given as text and as plain data, or
            raises UnfitError.

    Returns:
        The value of the first piece that fits.

    Raises:
        UnfitError: none fits, two different ones do, or the text ends within one.
    """
    fits: list[tuple[Any, _T]] = []
    problems: tuple[str, ...] = ("There is no JSON object in the answer.",)
    longest = -1
    for piece in pieces(text):
        try:
            plain = parsed(piece)
            fits.append((plain, validated(piece, plain)))
        except UnfitError as error:
            if len(piece) > longest:
                problems, longest = error.problems, len(piece)
    if not fits:
        raise UnfitError(problems)
    if any(plain != fits[0][0] for plain, _ in fits):
        raise UnfitError(["There is more than one JSON object that fits; give only one."])
    return fits[0][1]


def pieces(text: str) -> Iterator[str]:
    """The outermost pieces of a text that may be JSON, from a bracket to its closing one.

    Only outermost ones, so that a part of a broken object is not taken for a whole one.

    Raises:
        UnfitError: one is not closed or nested too deep, or there are too many.
    """
    position = count = 0
    while start := _START.search(text, position):
        count += 1
        if count > MAX_PIECES:
            raise UnfitError([f"There are more than {MAX_PIECES} JSON objects; give only one."])
        position = _end(text, start.start())
        yield text[start.start() : position]


def parsed(piece: str) -> Any:
    """Parse JSON strictly, as its specification says.

    Raises:
        UnfitError: it is not JSON, has a duplicate key, NaN, an infinite number, or half of a
            surrogate pair.
    """
    try:
        value = json.loads(
            piece, object_pairs_hook=_object, parse_constant=_refused, parse_float=_number
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UnfitError(["The JSON holds half of a surrogate pair, which is no text."]) from None
    except ValueError as error:
        raise UnfitError([f"The JSON cannot be read: {error}."]) from None
    return value


def _end(text: str, start: int) -> int:
    depth = 0
    for token in _TOKEN.finditer(text, start):
        match token[0]:
            case "{" | "[":
                depth += 1
            case "}" | "]":
                depth -= 1
            case '"':
                break
        if depth > MAX_DEPTH:
            raise UnfitError([f"The JSON is nested more than {MAX_DEPTH} levels deep."])
        if not depth:
            return token.end()
    raise UnfitError(["The answer ends before its JSON does: it was cut off, or is not closed."])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        # Linear, since there may be a hundred thousand keys.
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return made


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number

"""Finding the JSON in an answer, which may stand in a fenced block or among prose."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# Of an answer; what validates it works by recursion, so that a deeper one could break it.
MAX_DEPTH = 50
MAX_PIECES = 100
MAX_PROBLEMS = 20

# Braces in prose and links in Markdown do not begin like this; all JSON does that could fit.
_START = re.compile(r'\{(?=\s*["}])|\[(?=\s*[\[{])')
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)

_T = TypeVar("_T")


class UnfitError(Exception):
    """An answer does not fit.

    Attributes:
        problems: what is wrong with it, one sentence each.
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
        validated: what makes the value of a piece of JSON, given as text and as plain data;
            raises UnfitError.

    Returns:
        What `validated` made of the first piece that fits.

    Raises:
        UnfitError: none fits, or two that differ do, or the text ends within one.
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
    """What may be JSON in a text: each brace or bracket up to the one that closes it.

    None is a part of another, so that a part of a broken object is not taken for a whole one.

    Raises:
        UnfitError: the text ends before one is closed, one is nested too deep, or there are
            too many.
    """
    position = count = 0
    while start := _START.search(text, position):
        count += 1
        if count > MAX_PIECES:
            raise UnfitError([f"There are more than {MAX_PIECES} JSON objects; give only one."])
        position = _end(text, start.start())
        yield text[start.start() : position]


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


def parsed(piece: str) -> Any:
    """JSON as plain data, by the letter of its specification.

    Raises:
        UnfitError: it is not JSON, says a key twice, has a number that is none, or text that
            is not Unicode.
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        # There may be a hundred thousand keys, so that each is looked at once.
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

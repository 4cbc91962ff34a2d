"""Find the JSON in an answer, in a fenced block, within prose, or after reasoning.

Pieces are found by matching brackets before they are parsed, not by `raw_decode`: a parser that
fails does not tell where the broken object ends, and its parts must not be taken for whole ones.
"""

from __future__ import annotations

import contextlib
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

# Reasoning that a server has left in the text: of DeepSeek and Qwen, of Mistral, of Kimi, of Seed,
# of Cohere and OpenThinker, as prompts ask for it; and gpt-oss, whose last channel is the answer.
_TAG = re.compile(
    r"[<\[◁][|\s]*(?P<ends>/|end_(?:of_)?)?\s*(?:start_|begin_of_|seed:)?"
    r"(?:think|thinking|thought|reasoning|reflection|analysis|scratchpad)\b[^<>\[\]◁▷]*[>\]▷]"
    r"|(?P<answers><\|channel\|>final\b[^{}]{0,80}?<\|message\|>)",
    re.IGNORECASE,
)
# An object or a list that begins a line.
_LINE = re.compile(r"^[{\[]", re.MULTILINE)
# What may come after the last object.
_END = " \t\r\n`"

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


class CutOffError(UnfitError):
    """An answer ends within its JSON."""


def fitting(text: str, validated: Callable[[str, Any], _T]) -> _T:
    """The one object in an answer that fits.

    Reasoning is no part of the answer: blocks such as `<think>`, closed or not, and all before a
    closing tag alone. Of prose the object on the last lines counts, if others are within lines.

    Args:
        text: the whole answer.
        validated: returns the value for a piece of JSON, given as text and as plain data, or
            raises UnfitError.

    Returns:
        The value of the first piece that fits.

    Raises:
        UnfitError: none fits, two different ones do, or the text ends within one.
    """
    answer, ends_in_thought = _without_reasoning(text)
    try:
        return _fitting(answer, validated)
    except UnfitError as error:
        failure = error
    others: list[str] = []
    if answer is not text:  # tags within an object are its own
        others += [piece for piece in _closed_pieces(text) if _TAG.search(piece)]
    if ends_in_thought:  # the answer, without the reasoning having been ended
        others += [piece for piece in _closed_pieces(text) if text.rstrip(_END).endswith(piece)]
    if ends_in_thought or isinstance(failure, CutOffError):
        others += _last_lines(text if ends_in_thought else answer)
    for other in others:
        with contextlib.suppress(UnfitError):
            return _fitting(other, validated)
    raise failure


def _without_reasoning(text: str) -> tuple[str, bool]:
    """A text without blocks of reasoning, and whether it ends within one."""
    kept: list[str] = []
    position, inside = 0, False
    for tag in _TAG.finditer(text):
        ends = bool(tag["ends"] or tag["answers"])
        if not ends and not inside:
            kept.append(text[position : tag.start()])
        elif ends and not inside:
            kept.clear()  # the opening tag was in the prompt
        inside = not ends
        position = tag.end()
    if not position:
        return text, False
    # A line break, so that a string does not lose what is a tag in it only.
    return "\n".join([*kept, "" if inside else text[position:]]), inside


def _closed_pieces(text: str) -> Iterator[str]:
    with contextlib.suppress(UnfitError):
        yield from pieces(text)


def _last_lines(text: str) -> Iterator[str]:
    """The object on the last lines, behind prose with brackets that are not closed."""
    position, last = 0, len(text.rstrip(_END))
    with contextlib.suppress(UnfitError):
        while start := _LINE.search(text, position):
            position = _end(text, start.start())
            if position == last:
                yield text[start.start() : position]


def _fitting(text: str, validated: Callable[[str, Any], _T]) -> _T:
    fits: list[tuple[int, Any, _T]] = []
    problems: tuple[str, ...] = ("There is no JSON object in the answer.",)
    longest = -1
    for start, end in _spans(text):
        piece = text[start:end]
        try:
            plain = parsed(piece)
            fits.append((start, plain, validated(piece, plain)))
        except UnfitError as error:
            if len(piece) > longest:
                problems, longest = error.problems, len(piece)
    if not fits:
        raise UnfitError(problems)
    if all(plain == fits[0][1] for _, plain, _ in fits):
        return fits[0][2]
    start, _, last = fits[-1]
    if [at for at, *_ in fits if not at or text[at - 1] == "\n"] == [start]:
        return last
    raise UnfitError(["There is more than one JSON object that fits; give only one."])


def pieces(text: str) -> Iterator[str]:
    """The outermost pieces of a text that may be JSON, from a bracket to its closing one.

    Only outermost ones, so that a part of a broken object is not taken for a whole one.

    Raises:
        UnfitError: one is not closed or nested too deep, or there are too many.
    """
    return (text[start:end] for start, end in _spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    position = count = 0
    while start := _START.search(text, position):
        count += 1
        if count > MAX_PIECES:
            raise UnfitError([f"There are more than {MAX_PIECES} JSON objects; give only one."])
        position = _end(text, start.start())
        yield start.start(), position


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
    raise CutOffError(["The answer ends before its JSON does: it was cut off, or is not closed."])


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

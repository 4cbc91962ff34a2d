"""The words that the sentence of a claim may have: those about what its evidence counts.

A sentence with other word may say more than was counted, in a way that no program reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .. import text_forms
from ..evidence import (
    Aggregate,
    Condition,
    Duplicates,
    Evidence,
    Orphans,
    Pattern,
    Top,
    columns_of,
    conditions_of,
)
from .wording import ROW_WORDS, without_numbers, word_set

NO_WORDS = frozenset[str]()
FUNCTION_WORDS = {
    "average": ("mean",),
    "averages": ("mean",),
    "mean": ("mean",),
    "median": ("median",),
    "maximum": ("max",),
    "max": ("max",),
    "highest": ("max",),
    "largest": ("max",),
    "latest": ("max",),
    "minimum": ("min",),
    "min": ("min",),
    "lowest": ("min",),
    "smallest": ("min",),
    "earliest": ("min",),
    "total": ("sum", "count"),
    "sum": ("sum",),
    "distinct": ("distinct",),
    "different": ("distinct",),
}
MISSING = word_set(
    "missing null nulls blank empty no without lack lacks lacking absent unknown not unfilled none"
)
NOT = word_set("not no neither invalid malformed broken cannot other without except")
BELOW = word_set("below under less lower smaller fewer before short shorter younger negative")
ABOVE = word_set("above over more greater higher larger exceed exceeds after long longer older")
_NUMBERS = word_set("number numbers numeric integer integers decimal float floats real whole")
# A sentence about such a condition has one of these words.
_CONDITION_WORDS = {
    "is null": MISSING,
    "is empty": MISSING,
    "is missing": MISSING,
    "does not parse as": NOT,
    "not like": NOT,
    "!=": NOT,
    "has edge spaces": word_set("space spaces whitespace blank blanks trailing leading edge"),
}
_FORM_WORDS = {
    "text": word_set("text texts string strings"),
    "integer": _NUMBERS,
    "real": _NUMBERS,
    "number": _NUMBERS,
    "blob": word_set("blob blobs binary bytes"),
    "null": MISSING,
    "missing": MISSING | word_set("na placeholder placeholders"),
    "date": word_set("date dates day days"),
    "time": word_set("time times hour hours"),
    "json": word_set("json"),
}
LARGEST = word_set("most highest largest greatest biggest maximum latest heaviest")
SMALLEST = word_set("least fewest lowest smallest minimum earliest cheapest lightest")
REPEATED = word_set("duplicate duplicates duplicated repeat repeats repeated")
UNREPEATED = word_set("unique distinct different")

_PLAIN = ROW_WORDS | word_set(
    "a an the this that these those it its they them their there here i e in of on at to for from "
    "with among and or nor neither either as is are was were be been have has had do does did "
    "column columns field fields table contain contains contained include includes hold holds show "
    "shows appear appears occur occurs exist exists found which who whose what where when "
    "no not none never without cannot free except some all every each always entire entirely "
    "whole complete completely most majority mostly nearly almost usually predominantly few "
    "rarely minority handful share percent percentage per cent pct out than more less fewer least "
    "up about around roughly approximately exactly count number total overall equal equals zero "
    "between"
)
_OF_EVIDENCE: dict[type, frozenset[str]] = {
    Duplicates: REPEATED
    | UNREPEATED
    | word_set("repeating another earlier key case spelling write writes written"),
    Orphans: word_set(
        "lead leads nowhere point points refer refers reference references broken orphan orphans "
        "match matches other unknown missing"
    ),
    Pattern: word_set(
        "mask masks shape shapes pattern patterns format formats look looks like unlike other "
        "another different odd unusual date dates"
    ),
    Aggregate: frozenset(FUNCTION_WORDS) | word_set("go goes reach reaches"),
    Top: LARGEST
    | SMALLEST
    | word_set("average mean median maximum minimum sum pay pays paid common often frequent"),
}
_COMPARISONS = {
    "<": BELOW,
    "<=": BELOW | word_set("most"),
    ">": ABOVE,
    ">=": ABOVE | word_set("least"),
    "length =": word_set("long length characters"),
    "length <": BELOW | word_set("length characters than"),
    "length >": ABOVE | word_set("length characters than"),
    "contains": word_set("containing"),
    "like": word_set("like"),
    "mask is": word_set("mask pattern form like"),
}
_WORD = re.compile(
    r"[^\W_]+|[^\s\w.,;:()\[\]!?'\"`\u2019\u201c\u201d<>=\u2264\u2265%~/&\u2013\u2014_-]"
)
_PARTS = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
# An abbreviation in the name of a column has that many letters, and the word twice as many.
_ABBREVIATION_CHARS = 3


def words_for(condition: Condition) -> frozenset[str]:
    """Words of which a sentence has one if it is about a condition; none for sentence."""
    if condition.op in ("type is", "parses as"):
        return _FORM_WORDS.get(str(condition.value), NO_WORDS)
    return _CONDITION_WORDS.get(condition.op, NO_WORDS)


def form_words(condition: Condition) -> frozenset[str]:
    """Words for what a condition parses a text as; none for another condition."""
    is_form = condition.op in ("type is", "parses as", "does not parse as")
    return _FORM_WORDS.get(str(condition.value), NO_WORDS) if is_form else NO_WORDS


def texts(evidence: Evidence) -> Iterator[str]:
    """The texts that evidence compares with, or expects."""
    for condition in conditions_of(evidence):
        yield from texts_of(condition)
    if isinstance(evidence, Pattern):
        yield from evidence.usual
    if isinstance(evidence.expected, str):
        yield evidence.expected


def texts_of(condition: Condition) -> Iterator[str]:
    """The texts that a condition compares with."""
    value = condition.value
    listed = value if isinstance(value, tuple) else (value,)
    yield from (each for each in listed if isinstance(each, str))


def names(sentence: str, column: str) -> bool:
    """Whether a sentence names a column, as it is or in words."""
    if column in sentence:
        return True
    parts, said = _parts(column), [*map(str.lower, _PARTS.findall(sentence))]
    return bool(parts) and all(any(_is_same(part, word) for word in said) for part in parts)


def unread_words(sentence: str, evidence: Evidence, table: str = "") -> list[str]:
    """The words of a sentence that are not about what is counted, in order.

    Args:
        sentence: of a claim.
        evidence: its evidence.
        table: the name of the table.
    """
    named = [*columns_of(evidence), table]
    if isinstance(evidence, Orphans):
        named += [evidence.other_table, evidence.other_column]
    known = [each.strip("%_ ") for each in texts(evidence)]
    rest = sentence
    for each in sorted(filter(None, {*named, *known}), key=len, reverse=True):
        rest = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", " ", rest, flags=re.IGNORECASE)
    rest = re.sub("n['\u2019]t\\b", " not", without_numbers(rest).lower())
    parts = {part for name in named for part in _parts(name)}
    read = _words_about(evidence)
    words = dict.fromkeys(_WORD.findall(rest))
    return [each for each in words if not (each in read or any(_is_same(p, each) for p in parts))]


def _words_about(evidence: Evidence) -> frozenset[str]:
    words = _PLAIN | _OF_EVIDENCE.get(type(evidence), NO_WORDS)
    for condition in conditions_of(evidence):
        words |= words_for(condition) | form_words(condition)
        words |= _COMPARISONS.get(condition.op, NO_WORDS) | _places(condition)
        if any(map(text_forms.is_missing, texts_of(condition))):
            words |= MISSING | word_set("placeholder placeholders")
    return words


def _places(condition: Condition) -> frozenset[str]:
    pattern = str(condition.value)
    if condition.op != "like" or pattern.startswith("%") == pattern.endswith("%"):
        return NO_WORDS
    is_end = pattern.startswith("%")
    return word_set("end ends ending" if is_end else "start starts begin begins leading")


def _parts(name: str) -> list[str]:
    return [part.lower() for part in _PARTS.findall(name)]


def _is_same(part: str, word: str) -> bool:
    """Whether a word is a part of a name, in the plural, or abbreviated in the name."""
    if part == word or _plural_of(part) >= {word} or _plural_of(word) >= {part}:
        return True
    is_short = _ABBREVIATION_CHARS <= len(part) < len(word) / 2
    return is_short and word.startswith(part)


def _plural_of(word: str) -> set[str]:
    return {f"{word}s", f"{word}es", f"{word.removesuffix('y')}ies"}

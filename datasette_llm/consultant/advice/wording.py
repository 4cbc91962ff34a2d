"""What a claim's sentence says, as far as a program can read it: numbers, and words for some."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_WORDS = {word: number for number, word in enumerate(_UNITS)} | {
    word: 10 * number for number, word in enumerate(_TENS, 2)
}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}
_SCALES = {
    **{"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9},
    **{"k": 1e3, "bn": 1e9},
}
_ANY = "|".join
_WORD = rf"(?:{_ANY(_TENS)})(?:[- ](?:{_ANY(_UNITS[1:10])}))?|{_ANY(_UNITS)}"
_NUMBER = re.compile(
    rf"""(?<!\w)(?:
        (?P<other>  # a date or a time
            \d{{4}}-\d\d-\d\d(?:[T\ ]\d\d:\d\d(?::\d\d)?)?
            |\d{{1,4}}[/.]\d{{1,2}}[/.]\d{{1,4}}|\d{{1,2}}:\d\d
        )
        |(?P<part>(?P<times>an?|{_WORD})[-\ ](?P<of>{_ANY(_PARTS)})s?|half\b)
        |(?P<digits>[-+\u2212]?(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d*\.?\d+(?:e[-+]?\d{{1,2}}(?!\d))?))
        |(?P<word>{_WORD})
        |(?P<vague>(?:hundred|thousand|million|billion|dozen)s?)
    )
    (?P<unit>\s?(?:%|per\ ?cent\b|pct\b)|[-\ ]?(?:hundred|thousand|million|billion|bn)\b|k\b)?
    (?P<rest>\w*)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_QUOTED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|(?<!\w)'([^']+)'(?!\w)|\u201c([^\u201d]+)\u201d")
_LAST_WORDS = re.compile(r"(?:([\w']+)\s+)?([\w']+|[<>=\u2264\u2265~])\W*$")
_WORDS_OF = re.compile(r"[<>=\u2264\u2265]|\w+")
_FIRST_WORD = re.compile(r"\W*(\w+)(?:\W+(\w+))?")


def word_set(text: str) -> frozenset[str]:
    """The words of a text in small letters, without punctuation."""
    return frozenset(_WORDS_OF.findall(text.lower().replace("n't", " not")))


ROW_WORDS = word_set(
    "row rows record records entry entries case cases value values duplicate duplicates cell cells "
    "item items time times"
)
MORE = frozenset(("more than", "over", "above", "exceed", "exceeds", "greater than"))
LESS = frozenset(("less than", "fewer than", "under", "below"))
AT_LEAST = frozenset(("at least",))
AT_MOST = frozenset(("at most", "up to"))
ABOUT = frozenset(("about", "around", "nearly", "almost", "roughly", "approximately", "~"))
# What may stand before a number that is compared with, and not counted.
COMPARED = word_set(
    "is are was were be equal equals to as from between and at value of than or over above under "
    "below least most exceed exceeds before after since until like contain contains with length "
    "has have = < > \u2264 \u2265"
)

_QUANTIFIERS = (
    ("all", re.compile(r"\b(all|every|each|always|entire(?:ly)?|whole|complete(?:ly)?)\b", re.I)),
    ("none", re.compile(r"(^no\b|\bnone\b|\bnever\b|\bthere (?:is|are) no\b)", re.I)),
    (
        "most",
        re.compile(
            r"((?<!\bat )\bmost\b(?! (?:common|frequent|recent|likely|often|severe|\d))|"
            r"\bmajority\b|\bmostly\b|"
            r"\bnearly all\b|\balmost all\b|\busually\b|\bpredominantly\b)",
            re.I,
        ),
    ),
    ("few", re.compile(r"\b(few|rarely|handful|minority|hardly any)\b", re.I)),
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a sentence.

    Attributes:
        text: as written.
        value: None for a date, a time, or a word such as "hundreds".
        step: one of the last digit that is given.
        is_percent: whether it is a percentage.
        before: the one or two words before it, in small letters.
        after: the two words after it, in small letters.
    """

    text: str
    value: float | None
    step: float = 0.0
    is_percent: bool = False
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def numbers_in(sentence: str, known: Collection[str]) -> Iterator[Number]:
    """The numbers in a sentence, in order.

    Args:
        sentence: a claim.
        known: names and values, which are none where they stand as they are.
    """
    text = _QUOTED.sub(lambda m: " ` " if _inner(m) in known else m[0], sentence)
    for found in _NUMBER.finditer(text):
        number = _number(found, text)
        is_pronoun = number.text.lower() == "one" and not (
            {*number.after} & ROW_WORDS or {*number.before} & (MORE | LESS | AT_LEAST | AT_MOST)
        )
        if number.text not in known and not is_pronoun:
            yield number


def without_numbers(sentence: str) -> str:
    """A sentence with a space for each of its numbers."""
    return _NUMBER.sub(" ", sentence)


def _number(found: re.Match[str], text: str) -> Number:
    start, end = found.span()
    before = _LAST_WORDS.search(text[max(0, start - 60) : start].lower())
    after = _FIRST_WORD.match(text[end : end + 60].lower())
    return Number(
        found[0].strip(),
        *_value(found),
        _phrases(before) if before else (),
        tuple(filter(None, after.groups())) if after else (),
    )


def quantifiers_in(sentence: str) -> dict[str, str]:
    """Words such as "all" and "most" in a sentence, by what they mean."""
    found = ((meaning, pattern.search(sentence)) for meaning, pattern in _QUANTIFIERS)
    words = {meaning: match[1] for meaning, match in found if match}
    if "most" in words and words["most"].lower() in ("nearly all", "almost all"):
        words.pop("all", None)
    return words


def names_in(sentence: str, names: Collection[str]) -> tuple[set[str], set[str]]:
    """The names of columns in a sentence: those in quotes, and those that are words in it."""
    quoted = {name for found in _QUOTED.finditer(sentence) if (name := _inner(found)) in names}
    words = {word for word in re.findall(r"\w+", _QUOTED.sub(" ", sentence)) if word in names}
    return quoted, words


def _inner(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()), "")


def _phrases(before: re.Match[str]) -> tuple[str, ...]:
    first, last = before.groups()
    return (last,) if first is None else (last, f"{first} {last}")


def _value(found: re.Match[str]) -> tuple[float | None, float, bool]:
    """The value, the step, and whether it is a percentage."""
    unit = (found["unit"] or "").strip(" -").lower()
    is_percent = unit[:1] in ("%", "p")
    if found["other"] or found["vague"] or found["rest"]:
        # Letters after a number make it another one: "5M", "5th", "5e400".
        return None, 0.0, False
    if found["part"]:
        times = (found["times"] or "one").lower()
        many = 1 if times in ("a", "an") else _number_of(times)
        return 100 * many / _PARTS[(found["of"] or "half").lower()], 1.0, True
    scale = 1.0 if is_percent else _SCALES.get(unit, 1.0)
    if found["word"]:
        return scale * _number_of(found["word"].lower()), 0.0, is_percent
    digits = found["digits"].replace(",", "").replace("\u2212", "-").lower()
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(exponent or 0) - decimals)
    return scale * float(digits), scale * step, is_percent


def _number_of(words: str) -> int:
    return sum(_WORDS[word] for word in re.split("[- ]", words))

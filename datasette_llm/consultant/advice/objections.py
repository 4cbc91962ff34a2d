"""Why a claim whose evidence counts what was expected is not confirmed by it.

The sentence is read in few words, and compared with what the evidence is about. There is no proof
in it, so that rather one claim too few is confirmed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import text_forms
from ..evidence import (
    Aggregate,
    Condition,
    Duplicates,
    Evidence,
    Orphans,
    Pattern,
    Rows,
    Top,
    columns_of,
    conditions_of,
)
from .dataset import Claim, plain
from .vocabulary import (
    ABOVE,
    BELOW,
    FUNCTION_WORDS,
    LARGEST,
    MISSING,
    NO_WORDS,
    REPEATED,
    SMALLEST,
    UNREPEATED,
    form_words,
    names,
    texts,
    texts_of,
    unread_words,
    words_for,
)
from .wording import (
    ABOUT,
    AT_LEAST,
    AT_MOST,
    COMPARED,
    LESS,
    MORE,
    ROW_WORDS,
    Number,
    names_in,
    numbers_in,
    quantifiers_in,
    word_set,
)

# A number is rounded if it differs by half of its last digit, but by no more than this share.
MAX_ROUNDED = 0.1
# What "about" and the like leave open.
MAX_ABOUT = 0.05
# Of the rows, where a sentence says "few".
MAX_FEW_PERCENT = 10
# Of a text that the sentence does not name.
MAX_NAMED_CHARS = 80
# Of the words of a sentence that no program reads.
MAX_UNREAD = 5

_NULLS = ("is null", "is empty", "is missing")
# Without such a word, a sentence with their figure may mean another.
_NAMED_FUNCTIONS = {
    **dict.fromkeys(("mean", "median", "sum"), NO_WORDS),
    "min": frozenset(("at least",)),
    "max": AT_MOST,
    "distinct": NO_WORDS,
}
# A sentence about such a condition has none of these words.
_OPPOSITES = {
    "is not null": word_set("missing null blank empty absent lack lacks without"),
    "parses as": word_set("invalid malformed"),
    "=": word_set("except"),
    "in": word_set("except"),
}
_DENIALS = word_set("not no without free cannot")
_NEGATING = word_set("not no none never neither without cannot free except")
_NEGATED = ("!=", "not like", "does not parse as", "is not null")
_NEGATIONS = re.compile(
    r"\b(?:not|no|none|never|neither|without|cannot|free|except|other than)\b|n't\b", re.I
)
_MISSING_WORDS = word_set(
    "missing null nulls blank empty absent unknown lack lacks lacking unfilled"
)
# A sentence without a number that has one of these says that there are some.
_EXISTENTIAL = word_set("some there has have had contain contains include includes exist exists")
_FAULTS = word_set(
    "broken invalid malformed odd unusual different other another unlike nowhere orphan orphans"
)
_UNUSUAL = _FAULTS | word_set("not unknown missing")
_COMPARING = {
    op: re.compile(pattern, re.IGNORECASE)
    for op, pattern in {
        "<": r"below|under|less than|lower|smaller|fewer|before|short|young|negative|<(?!=)",
        "<=": r"at most|up to|or (less|fewer|lower|below|under)|until|\u2264|<=|between",
        ">": r"above|over|more than|greater|higher|larger|exceed|after|long|old|>(?!=)",
        ">=": r"at least|or (more|above|over|higher)|from|since|\u2265|>=|between",
    }.items()
}
_OF_SPELLING = word_set("case spelling write writes written")
_ZERO_WORDS = word_set("zero negative positive")
_IN_PERCENT = re.compile("percent|pct|share|rate|ratio|%", re.IGNORECASE)
# Words for what is greatest of one kind of figure only.
_MOST_OF_ALL = re.compile(r"\b(the|has|have|had|pays?|paid|does) most\b", re.IGNORECASE)
_RANKED_FIGURES = word_set("pay pays paid latest heaviest earliest cheapest lightest")
_NAMED_TEXTS = ("=", "!=", "in", "like", "not like", "contains", "mask is")


@dataclass(frozen=True, slots=True)
class Counted:
    """What we counted of a claim.

    Attributes:
        figure: the number or, of texts, the text; None for a `Top`, or where there is none.
        of: the number of rows of the table; None where it could not be counted in time.
        result: the rows of a `Top`, as pairs of a value and a figure.
        sql: as in `Check`.
        duration_ms: as in `Check`.
    """

    figure: float | str | None
    of: int | None
    result: Sequence[tuple[Any, Any]] = ()
    sql: str | None = None
    duration_ms: float = 0.0


class Figures:
    """The figures that a number in a claim's sentence may repeat."""

    def __init__(self, evidence: Evidence, counted: Counted) -> None:
        self.rows: float | None = None
        self.figure = counted.figure if isinstance(counted.figure, int | float) else None
        self.of = counted.of
        self.percent: float | None = None
        if not isinstance(evidence, Aggregate | Top) or counts_rows(evidence):
            self.rows = self.figure
            if self.rows is not None and counted.of:
                self.percent = 100 * self.rows / counted.of
        elif isinstance(evidence, Aggregate) and evidence.function == "share":
            self.percent = self.figure
        column = evidence.column if isinstance(evidence, Aggregate) else None
        self._is_of_column = getattr(evidence, "function", "") in _OF_NUMBERS
        self._is_in_percent = self.rows is None and bool(_IN_PERCENT.search(column or ""))
        self.compared = _compared_with(evidence)
        pairs = (each for pair in counted.result for each in pair)
        self.listed = {each for each in pairs if isinstance(each, int | float)}
        if isinstance(evidence, Top):
            self.listed |= {evidence.limit, len(counted.result)}

    def hold(self, number: Number) -> bool:
        """Whether a number is one of them."""
        if number.value is None:
            return False
        if number.is_percent:
            plain_figure = self.figure if self._is_in_percent else None
            return self._is_one_of(number, [self.percent, plain_figure])
        if self.rows is not None and number.step % 1:
            return False  # rows are counted in integers: "5.000" may be written for 5,000
        after_rows = ROW_WORDS & {*number.after}
        if self._is_of_column and _ONLY_ROWS & {*number.after}:
            return False
        if self.compared and not after_rows and _COMPARISONS & {*number.before}:
            return number.value in self.compared
        is_total = bool({"of", "all", "among"} & {*number.before[:1]})
        if is_total and self.of is not None and (self.rows is not None or after_rows):
            return _says(number, self.of)
        if self._is_one_of(number, [self.rows, self.figure, *self.listed]):
            return True
        if after_rows and "of" not in number.before[:1]:
            return False
        return _is_compared(number) and number.value in self.compared

    def _is_one_of(self, number: Number, figures: Collection[float | None]) -> bool:
        return any(each is not None and _says(number, each) for each in figures)


_OF_NUMBERS = ("min", "max", "mean", "median", "sum")
_ONLY_ROWS = word_set("row rows record records entry entries case cases")
# Before a number that a column is compared with, rather than a number of rows.
_COMPARISONS = frozenset(("over", "above", "under", "below", "exceed", "exceeds"))


def _is_compared(number: Number) -> bool:
    return bool(COMPARED & {*number.before})


def _says(number: Number, figure: float) -> bool:
    value = number.value or 0.0
    before = {*number.before}
    if AT_LEAST & before:
        return figure >= value
    if AT_MOST & before:
        return figure <= value
    if MORE & before:
        return figure > value
    if LESS & before:
        return figure < value
    if ABOUT & {*number.before} and abs(value - figure) <= MAX_ABOUT * abs(figure):
        return True
    return is_rounded(value, number.step, figure)


def counts_rows(evidence: Evidence) -> bool:
    """Whether it is an aggregate that counts rows, as most other evidence does."""
    return isinstance(evidence, Aggregate) and evidence.function == "count"


def _compared_with(evidence: Evidence) -> set[float]:
    values: set[float] = set()
    for condition in conditions_of(evidence):
        value = condition.value
        listed = value if isinstance(value, tuple) else (value,)
        values |= {each for each in listed if isinstance(each, int | float)}
    return values


def numbers_of(claim: Claim, evidence: Evidence, columns: Collection[str]) -> list[Number]:
    """The numbers in a claim's sentence, without names of columns and texts of the evidence."""
    known = [*texts(evidence)]
    return [
        *numbers_in(plain(claim.sentence), {*columns, *known, *(each.strip("%") for each in known)})
    ]


def objections(
    claim: Claim, evidence: Evidence, figures: Figures, columns: Collection[str], table: str = ""
) -> Iterator[str]:
    """Why a claim whose evidence is as expected is not confirmed by it, but for numbers.

    Args:
        claim: the claim.
        evidence: its evidence.
        figures: what was counted.
        columns: the names of the table's columns.
        table: the name of the table.
    """
    sentence = plain(claim.sentence)
    numbers = numbers_of(claim, evidence, columns)
    if unread := unread_words(sentence, evidence, table)[:MAX_UNREAD]:
        yield f"the sentence says {', '.join(unread)}, which no program reads"
    yield from _unnamed(claim, sentence, evidence, columns, numbers)
    yield from _of_negations(sentence, evidence, figures, numbers)
    yield from _about_faults(sentence, evidence, figures)
    yield from _about_other_columns(claim, sentence, evidence, columns)
    yield from _about_other_things(claim, sentence, evidence)
    yield from _about_other_conditions(claim, sentence, evidence)
    if figures.rows != 0:
        yield from _about_the_opposite(sentence, evidence)
    if isinstance(evidence, Top):
        yield from _of_ranking(sentence, evidence)
    elif figures.rows is not None or figures.percent is not None:
        yield from _of_quantity(sentence, evidence, figures.percent)
        yield from _of_all_or_none(sentence, evidence, figures, numbers)
        quantities = _EXISTENTIAL | ({"one"} if figures.rows == 1 else NO_WORDS)
        if isinstance(evidence, Duplicates) and figures.rows == 0:
            quantities |= UNREPEATED
        if not (numbers or quantifiers_in(sentence) or quantities & word_set(sentence)):
            yield "the sentence does not say how many"
    else:
        for word in quantifiers_in(sentence).values():
            yield f"the sentence says “{word}”, which is not what was counted"


def _about_other_columns(
    claim: Claim, sentence: str, evidence: Evidence, columns: Collection[str]
) -> Iterator[str]:
    counted = set(columns_of(evidence))
    counted |= {evidence.other_column} if isinstance(evidence, Orphans) else set()
    if claim.column is not None and claim.column not in counted:
        yield f"the evidence is not about `{claim.column}`"
    quoted, words = names_in(sentence, columns)
    other = sorted(quoted - counted)
    if other or (words and not (quoted | words) & counted):
        name = (other or sorted(words))[0]
        yield f"the sentence is about `{name}`, and the evidence is not"


def _unnamed(
    claim: Claim,
    sentence: str,
    evidence: Evidence,
    columns: Collection[str],
    numbers: Sequence[Number],
) -> Iterator[str]:
    """What was counted, and the sentence does not name."""
    for name in _columns_to_name(evidence, columns):
        if name != claim.column and not names(sentence, name):
            yield f"the sentence does not name `{name}`"
    said = {each.value for each in numbers}
    says_zero = bool(_ZERO_WORDS & word_set(sentence))
    for condition in conditions_of(evidence):
        yield from _uncompared(condition, sentence)
    for value in _compared_with(evidence):
        if value not in said and not (value == 0 and says_zero):
            yield f"the sentence does not name {value:,.6g}"
    any_of = getattr(evidence, "any_of", ())
    if any_of and (len(any_of) > 1) != bool({"or", "either"} & word_set(sentence)):
        yield "the sentence does not say “and” or “or” as the conditions do"


def _uncompared(condition: Condition, sentence: str) -> Iterator[str]:
    """The sentence does not compare as a condition does."""
    if not (isinstance(condition.value, int | float) or condition.other_column is not None):
        return
    said = {op for op, pattern in _COMPARING.items() if pattern.search(sentence)}
    wanted = {condition.op} & {*_COMPARING}
    if not (said >= wanted if wanted else condition.op != "=" or not said):
        yield f"the sentence does not say {condition.op}"
    other = condition.other_column
    if other is not None and not _in_order(condition.column, other, sentence.casefold()):
        yield f"the sentence does not compare `{condition.column}` with `{other}`"


def _in_order(first: str, second: str, sentence: str) -> bool:
    return -1 < sentence.find(first.casefold()) < sentence.rfind(second.casefold())


def _columns_to_name(evidence: Evidence, columns: Collection[str]) -> Iterator[str]:
    match evidence:
        case Duplicates(columns=repeated) if len(repeated) < len(columns) - 1:
            yield from repeated
        case Aggregate(column=str(column)) | Orphans(column=column) | Pattern(column=column):
            yield column
        case Top(column=str(column)):
            yield column
    for condition in conditions_of(evidence):
        if condition.op not in _NAMED_TEXTS or not [*texts_of(condition)]:
            yield condition.column
        if condition.other_column is not None:
            yield condition.other_column


def _of_negations(
    sentence: str, evidence: Evidence, figures: Figures, numbers: Sequence[Number]
) -> Iterator[str]:
    negations = len(_NEGATIONS.findall(sentence))
    if negations > 1 and "nor" not in word_set(sentence):
        yield "the sentence denies more than once"
    elif negations and figures.rows == 0 and 0 in {each.value for each in numbers}:
        yield "the sentence denies that there are none"
    is_of_missing = {*_NULLS} & {each.op for each in conditions_of(evidence)}
    if negations and figures.rows != 0 and is_of_missing and _MISSING_WORDS & word_set(sentence):
        yield "the sentence denies that values are missing"


def _about_faults(sentence: str, evidence: Evidence, figures: Figures) -> Iterator[str]:
    """The sentence does not speak of the fault that was counted, as it was counted."""
    words = word_set(sentence)
    match evidence:
        case Duplicates():
            if figures.rows != 0 and (UNREPEATED | {"key"}) & words:
                yield "the sentence denies what was counted"
            if evidence.ignoring_case and not _OF_SPELLING & words:
                yield "the evidence counts how texts are written, and the sentence does not"
        case Orphans() | Pattern():
            all_good = "all" in quantifiers_in(sentence) and _says_all_are_good(sentence, evidence)
            if not words & _UNUSUAL and not all_good:
                yield "the sentence does not say what is wrong"
    if isinstance(evidence, Pattern) and figures.percent is not None and figures.percent > 50:
        yield "what the evidence calls usual is not"


def _about_other_things(claim: Claim, sentence: str, evidence: Evidence) -> Iterator[str]:
    words = word_set(sentence)
    missing = {"missing", "null", "nulls", "blank", "empty"} & words
    if (claim.kind == "missing_values" or missing) and not _is_about_missing(evidence):
        yield "the evidence does not count missing values"
    repeated = REPEATED & words
    if (claim.kind == "duplicates" or repeated) and not _is_about_duplicates(evidence):
        yield "the evidence does not count duplicates"
    if claim.kind == "broken_reference" and not isinstance(evidence, Orphans):
        yield "the evidence does not count broken references"
    if "negative" in words and not _is_about_negatives(evidence):
        yield "the evidence does not count negative numbers"
    said = words & {*FUNCTION_WORDS}
    if isinstance(evidence, Top):
        said -= LARGEST | SMALLEST
    if isinstance(evidence, Aggregate | Top) and said:
        if not all(evidence.function in FUNCTION_WORDS[each] for each in said):
            yield f"the sentence is not about the {evidence.function}"
    elif isinstance(evidence, Top):
        if evidence.function in ("mean", "sum"):
            yield f"the sentence does not speak of the {evidence.function}"
    elif isinstance(evidence, Aggregate) and evidence.function in _NAMED_FUNCTIONS:
        others = _NAMED_FUNCTIONS[evidence.function]
        if not any(re.search(rf"\b{each}\b", sentence, re.IGNORECASE) for each in others):
            yield f"the sentence does not speak of the {evidence.function}"


def _about_other_conditions(claim: Claim, sentence: str, evidence: Evidence) -> Iterator[str]:
    words = word_set(sentence)
    if claim.kind == "missing_values":
        words |= {"missing"}
    for condition in conditions_of(evidence):
        kinds = filter(None, (words_for(condition), form_words(condition)))
        is_good = condition.op in _NULLS and "all" in quantifiers_in(sentence)
        is_good = is_good and _says_all_are_good(sentence, evidence)
        if not is_good and not all(spoken & words for spoken in kinds):
            yield f"the sentence does not say that `{condition.column}` {condition.op}"
        if _opposite_of(condition.op, words) & words:
            yield f"the sentence is about the opposite of `{condition.column}` {condition.op}"
        named = [*texts_of(condition)] if condition.op in _NAMED_TEXTS else []
        unnamed = [each for each in named if not _is_named(each, sentence, words)]
        if unnamed:
            yield f"the sentence does not name {plain(unnamed[0])[:MAX_NAMED_CHARS]}"


def _about_the_opposite(sentence: str, evidence: Evidence) -> Iterator[str]:
    """The sentence denies something, and what was counted is there."""
    if isinstance(evidence, Orphans | Pattern):
        return
    ops = {each.op for each in conditions_of(evidence)}
    if _DENIALS & word_set(sentence) and not ops & {*_NULLS, *_NEGATED}:
        yield "the sentence denies what was counted"


def _opposite_of(op: str, words: frozenset[str]) -> frozenset[str]:
    # "More than 5 are below 3" has words for both.
    for ops, own, opposite in ((("<", "<="), BELOW, ABOVE), ((">", ">="), ABOVE, BELOW)):
        if op in ops:
            return NO_WORDS if own & words else opposite
    return _OPPOSITES.get(op, NO_WORDS)


def _is_named(text: str, sentence: str, words: frozenset[str]) -> bool:
    if text_forms.is_missing(text) and MISSING & words:
        return True
    return text.strip("%_ ").casefold() in sentence.casefold()


def _is_about_missing(evidence: Evidence) -> bool:
    if isinstance(evidence, Duplicates | Orphans | Pattern):
        return False
    return any(map(_finds_missing, conditions_of(evidence))) and not any(
        each.op in ("is not null", "!=", "not like") for each in conditions_of(evidence)
    )


def _finds_missing(condition: Condition) -> bool:
    listed = condition.op in ("=", "in") and condition.other_column is None
    listed = listed and all(map(text_forms.is_missing, texts_of(condition)))
    parsed = condition.op == "parses as" and condition.value == "missing"
    return condition.op in _NULLS or listed or parsed or condition.value == "null"


def _is_about_duplicates(evidence: Evidence) -> bool:
    if isinstance(evidence, Top):
        return evidence.function == "count" and evidence.order == "largest"
    return isinstance(evidence, Duplicates)


def _is_about_negatives(evidence: Evidence) -> bool:
    if isinstance(evidence, Aggregate) and evidence.function == "min":
        return True
    return any(map(_finds_negatives, conditions_of(evidence)))


def _finds_negatives(condition: Condition) -> bool:
    value = condition.value
    if isinstance(value, str):
        return value.startswith("-")
    if not isinstance(value, int | float):
        return False
    return value < 0 if condition.op in ("=", "<=") else condition.op == "<" and value <= 0


def _of_ranking(sentence: str, evidence: Top) -> Iterator[str]:
    words = word_set(sentence)
    if not words & (LARGEST | SMALLEST | {"common", "frequent", "often"}):
        yield "the sentence does not say what comes first"
    if evidence.column is None and _RANKED_FIGURES & words:
        yield "the evidence only counts rows"
    if evidence.function != "count" and _ONLY_ROWS & words:
        yield "the evidence does not count rows"
    for word in quantifiers_in(sentence).values():
        if word.lower() != "most" or not _MOST_OF_ALL.search(sentence):
            yield f"the sentence says “{word}”, which is not what was counted"
    if evidence.group_by in [each.column for each in conditions_of(evidence)]:
        yield f"the evidence chooses among the values of `{evidence.group_by}`"
    opposite = SMALLEST if evidence.order == "largest" else LARGEST
    if opposite & words:
        yield f"the sentence is not about the {evidence.order}"
    expected = evidence.expected
    if expected is not None and str(expected).casefold() not in sentence.casefold():
        yield f"the sentence does not name {plain(str(expected))}"


def _of_quantity(sentence: str, evidence: Evidence, percent: float | None) -> Iterator[str]:
    """Words for a share of the rows, beside the one that was counted."""
    quantifiers = quantifiers_in(sentence)
    is_good = _says_all_are_good(sentence, evidence)
    holds = {
        "all": percent == 100 or (percent == 0 and is_good),
        "none": percent == 0 and (not _counts_faults(evidence) or is_good),
        "most": percent is not None and percent > 50,
        "few": percent is not None and percent <= MAX_FEW_PERCENT,
    }
    for meaning, word in quantifiers.items():
        if not holds[meaning]:
            yield f"the sentence says “{word}”, which is not what was counted"


def _of_all_or_none(
    sentence: str, evidence: Evidence, figures: Figures, numbers: Sequence[Number]
) -> Iterator[str]:
    """What every row meets, or none, only proves a sentence that says so."""
    said = quantifiers_in(sentence)
    counts = {each.value for each in numbers if not each.is_percent and not _is_compared(each)}
    shares = {each.value for each in numbers if each.is_percent}
    words = word_set(sentence)
    total = [each.value for each in numbers if each.before[:1] in (("of",), ("all",))]
    if figures.percent == 100 and figures.of:
        says_all = "all" in said or "constant" in words or 100 in shares
        if not says_all and figures.of not in {*counts, *total}:
            yield "every row meets the condition"
    if figures.percent == 0:
        says_none = "none" in said or "unique" in words or 0 in shares | counts
        denies = "all" in said or bool(_NEGATIONS.search(sentence))
        if not says_none and not (denies and _says_all_are_good(sentence, evidence)):
            yield "no row meets the condition"


def _says_all_are_good(sentence: str, evidence: Evidence) -> bool:
    """Whether a sentence about all rows denies the fault that none of them has."""
    words = word_set(sentence)
    faults = _MISSING_WORDS | REPEATED | _FAULTS
    faults = faults.union(*map(words_for, conditions_of(evidence))) - _NEGATING
    denies = bool(_NEGATIONS.search(sentence))
    return _counts_faults(evidence) and bool(faults & words) == denies


def _counts_faults(evidence: Evidence) -> bool:
    """Whether what is counted is a fault, so that none of it is good of all."""
    faults = (*_NULLS, "has edge spaces", "does not parse as", "not like")
    if isinstance(evidence, Rows | Aggregate):
        return all(each.op in faults for each in conditions_of(evidence))
    return True


def is_rounded(said: float, step: float, counted: float | None) -> bool:
    """Whether a number is what was counted, or that rounded.

    Args:
        said: the number.
        step: one of its last digit.
        counted: what was counted.
    """
    if counted is None or not math.isfinite(counted):
        return said == counted
    near = MAX_ROUNDED * abs(counted)
    return abs(said - counted) <= min(near, step / 2 + 1e-9 * abs(counted))

"""Checks of an answer by code: a closed set, each a name and maybe an argument.

A check is written as its name, such as `json`, or as a mapping of its name to its argument, such
as `{max_chars: 500}`. Whether there is an answer at all is always checked, as `answered`.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import LLMError
from ..events import FinishReason, Outcome
from ..log.cost import NANODOLLARS
from ..structured.json_extraction import UnfitError, fitting
from ..structured.validation import Shape
from .cases import Answer, Case

ANSWERED = "answered"
SCHEMA = "schema"
_COMPLETE = (None, FinishReason.STOP, FinishReason.TOOL_CALLS)


class CheckError(LLMError, ValueError):
    """A check is not one of the known ones, or its argument is invalid."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check of an answer.

    Attributes:
        name: one of `CHECKS`.
        limit: its argument, for those that take one.
    """

    name: str
    limit: float | None = None

    @classmethod
    def of(cls, written: object) -> Check:
        """A check as it is written.

        Args:
            written: a name, a mapping of one name to a number, or a check.

        Raises:
            CheckError: there is no such check, or its argument is invalid.
        """
        if isinstance(written, Check):
            return written
        if isinstance(written, Mapping) and len(written) == 1:
            ((name, limit),) = written.items()
        else:
            name, limit = written, None
        if not isinstance(name, str) or name not in CHECKS:
            raise CheckError(f"There is no check {name!r}; use one of {', '.join(CHECKS)}")
        if CHECKS[name].takes_limit != (limit is not None):
            example = f"{{{name}: 500}}" if CHECKS[name].takes_limit else name
            raise CheckError(f"Check {name}: write it as {example}")
        if limit is not None and not _is_limit(limit):
            raise CheckError(f"Check {name}: {limit!r} is no number from 0 on")
        return cls(name, limit)

    @property
    def written(self) -> str | dict[str, float]:
        """The check as it is written."""
        return self.name if self.limit is None else {self.name: self.limit}

    @property
    def label(self) -> str:
        """The check for people to read."""
        return self.name if self.limit is None else f"{self.name} {self.limit:,.15g}"


class Kind(NamedTuple):
    """What a check looks at.

    Attributes:
        description: what an answer needs to pass, for people to read.
        passes: whether an answer to a case passes; gets the argument, too.
        takes_limit: whether it has a number as argument.
    """

    description: str
    passes: Callable[[Case, Answer, float], bool]
    takes_limit: bool = False


def checks_of(written: Iterable[object]) -> tuple[Check, ...]:
    """Checks as they are written, each once.

    Raises:
        CheckError: one of them is invalid.
    """
    return tuple(dict.fromkeys(map(Check.of, written)))


def failed_checks(
    checks: Iterable[Check], case: Case, answer: Answer, shape: Shape | None = None
) -> tuple[str, ...]:
    """The checks that an answer does not pass; may be slow: call it in a thread.

    Args:
        checks: what to check.
        case: what was asked.
        answer: what came; without an answer only `answered` fails.
        shape: that of the case's schema, where it has one.

    Returns:
        The labels of the checks.
    """
    if answer.outcome is not Outcome.OK:
        return (ANSWERED,)
    return tuple(each.label for each in checks if not _passes(each, case, answer, shape))


def normalised(text: str) -> str:
    """A text without differences in case and white space."""
    return " ".join(text.casefold().split())


def _is_limit(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0  # type: ignore[arg-type,operator]  # a number


def _passes(check: Check, case: Case, answer: Answer, shape: Shape | None) -> bool:
    if check.name == SCHEMA:
        return case.schema is None or (shape is not None and _fits(shape, answer))
    return CHECKS[check.name].passes(case, answer, check.limit or 0)


def _fits(shape: Shape, answer: Answer) -> bool:
    try:
        fitting(answer.text, shape.validated)
    except UnfitError:
        return False
    return True


def _is_json(case: Case, answer: Answer, _: float) -> bool:
    try:
        json.loads(answer.text)
    except (ValueError, RecursionError):
        return False
    return True


def _equals(case: Case, answer: Answer, _: float) -> bool:
    return case.expected is None or normalised(case.expected) == normalised(answer.text)


def _contains(case: Case, answer: Answer, _: float) -> bool:
    return case.expected is None or normalised(case.expected) in normalised(answer.text)


def _matches(case: Case, answer: Answer, _: float) -> bool:
    if case.expected is None:
        return True
    # Wildcards, since a regular expression from a table's row could take for ever.
    pattern = fnmatch.translate(normalised(case.expected).replace("[", "[[]"))
    # Not by `fnmatchcase`, which keeps as many patterns as an evaluation may have cases.
    return re.match(pattern, normalised(answer.text)) is not None


def _is_same(case: Case, answer: Answer, _: float) -> bool:
    return case.baseline is None or normalised(case.baseline.text) == normalised(answer.text)


def _within(value: float | None, limit: float) -> bool:
    """Whether a figure is within a limit; one that is unknown is not known to be."""
    return value is not None and value <= limit


def _costs(case: Case, answer: Answer, limit: float) -> bool:
    return _within(answer.cost_nanodollars, limit * NANODOLLARS)


CHECKS: Mapping[str, Kind] = {
    ANSWERED: Kind("the call succeeded", lambda case, answer, _: True),
    "not-empty": Kind("the answer has text", lambda case, answer, _: bool(answer.text.strip())),
    "finished": Kind(
        "the answer was not cut off, withheld or refused",
        lambda case, answer, _: answer.finish_reason in _COMPLETE,
    ),
    "json": Kind("the whole answer is JSON", _is_json),
    SCHEMA: Kind("the answer fits the schema of the case", lambda case, answer, _: True),
    "equals": Kind("it is the expected text, but for case and white space", _equals),
    "contains": Kind("the expected text is in it, but for case and white space", _contains),
    "matches": Kind("it matches the expected text, in which `*` and `?` are wildcards", _matches),
    "same": Kind("it is the recorded answer, but for case and white space", _is_same),
    "min_chars": Kind(
        "it has at least so many characters",
        lambda case, answer, limit: len(answer.text) >= limit,
        takes_limit=True,
    ),
    "max_chars": Kind(
        "it has at most so many characters",
        lambda case, answer, limit: len(answer.text) <= limit,
        takes_limit=True,
    ),
    "max_latency_ms": Kind(
        "it took at most so many milliseconds",
        lambda case, answer, limit: _within(answer.latency_ms, limit),
        takes_limit=True,
    ),
    "max_cost_dollars": Kind("it cost at most so many dollars", _costs, takes_limit=True),
}
# Those that an evaluation has if none are named.
DEFAULT_CHECKS = (Check(ANSWERED), Check("not-empty"), Check("finished"))

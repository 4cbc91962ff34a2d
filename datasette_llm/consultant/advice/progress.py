"""Events of a running consultation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .verdicts import Check


@dataclass(frozen=True, slots=True)
class Step:
    """The next step begins.

    Attributes:
        sentence: what is being done, without a full stop.
    """

    sentence: str


@dataclass(frozen=True, slots=True)
class AnswerGrows:
    """More of the answer has come; sent a few times a second.

    Attributes:
        chars: of the answer so far.
        tokens_estimate: of the answer so far.
    """

    chars: int
    tokens_estimate: int


@dataclass(frozen=True, slots=True)
class ClaimRead:
    """The answer is complete, and this claim of it will be checked.

    Attributes:
        index: its place in `risk_flags`, and in the consultation's `checks`.
        claim: as in `risk_flags`.
    """

    index: int
    claim: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClaimChecked:
    """The verdict on a claim.

    Attributes:
        index: as of its `ClaimRead`.
        check: as in the consultation's `checks`.
    """

    index: int
    check: Check


Progress = Step | AnswerGrows | ClaimRead | ClaimChecked
OnProgress = Callable[[Progress], None]


def ignored(event: Progress) -> None:
    """Where it is not shown."""

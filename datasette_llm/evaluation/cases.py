"""Cases, candidates, answers and results: the values of an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..events import FinishReason, Outcome

# The number of the recorded answer among the candidates, which count from 1.
BASELINE = 0
MAX_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request of an evaluation, or of the recorded call.

    What is not known is None.

    Attributes:
        outcome: how the call ended.
        text: the answer; empty if there is none.
        finish_reason: why the answer ended.
        error_type: the name of the exception's class.
        error_message: its message, without keys.
        latency_ms: how long the request took, in milliseconds.
        input_tokens: as the provider reported.
        output_tokens: as the provider reported.
        cost_nanodollars: what it cost, failed attempts included.
        price_source: where the price is from.
        call_id: its id in the call log.
        cached_from: the id of the call that has paid for the answer, if that is another one, whose
            tokens, cost and latency these are.
    """

    outcome: Outcome = Outcome.OK
    text: str = ""
    finish_reason: FinishReason | None = None
    error_type: str | None = None
    error_message: str | None = None
    latency_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanodollars: int | None = None
    price_source: str | None = None
    call_id: str | None = None
    cached_from: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt that every candidate answers.

    Attributes:
        prompt: the text.
        system: the system prompt, or None.
        history: earlier messages of the conversation, as llm's `Message.to_dict()` has them.
        options: options that a candidate gets if its model has them; the candidate's own win.
        schema: the JSON schema that the answer has to fit, or None.
        expected: what the checks `equals`, `contains` and `matches` compare with, or None.
        name: where it is from, for people to read, such as the id of a call.
        baseline: the recorded answer, or None.
    """

    prompt: str
    system: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    expected: str | None = None
    name: str = ""
    baseline: Answer | None = None

    @property
    def chars(self) -> int:
        """How many characters are sent, about."""
        history = json.dumps(list(map(dict, self.history))) if self.history else ""
        return len(self.prompt) + len(self.system or "") + len(history)

    @property
    def digest(self) -> bytes:
        """Equal for cases that ask and expect the same."""
        content = (self.prompt, self.system, self.history, self.options, self.schema, self.expected)
        return hashlib.blake2b(repr(content).encode(errors="replace"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that an evaluation asks.

    Attributes:
        model_id: an id or alias.
        options: options for its requests; they win over configured ones and those of a case.
    """

    model_id: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model with its options, for people to read."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.model_id} ({options})" if options else self.model_id


@dataclass(frozen=True, slots=True)
class Result:
    """A candidate's answer to a case.

    Attributes:
        case: the case.
        number: the number of the case, from 1.
        candidate: the candidate.
        position: the number of the candidate, from 1.
        answer: what came of the request.
        failed_checks: the names of the checks that it did not pass.
    """

    case: Case
    number: int
    candidate: Candidate
    position: int
    answer: Answer
    failed_checks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it passed every check."""
        return not self.failed_checks

"""The decision whether a model may be used: each rule, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Rule = Literal["known", "allowlist", "blocklist", "key", "filter"]


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one rule for one model.

    Attributes:
        rule: the rule.
        passed: whether it permits the model.
        detail: the sentence that explains it to an administrator.
        plugin: for a filter, its plugin.
    """

    rule: Rule
    passed: bool
    detail: str
    plugin: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a model is, or is not, available to an actor for a purpose.

    Attributes:
        model_id: the model; the canonical id where llm knows it.
        purpose: the purpose, or None.
        actor: Datasette's actor dictionary, or None.
        steps: the results of the rules, in order, up to the first refusal; a missing key is
            no such refusal, since the model can still be used by name.
    """

    model_id: str
    purpose: str | None
    actor: Mapping[str, Any] | None
    steps: tuple[Step, ...]

    @property
    def available(self) -> bool:
        """Whether `LLM.model()` returns this model. A missing key is an error at the prompt."""
        return all(step.passed for step in self.steps if step.rule != "key")

    @property
    def listed(self) -> bool:
        """Whether `LLM.models()` lists this model."""
        return all(step.passed for step in self.steps)

    @property
    def refusal(self) -> Step | None:
        """The step that refused the model; the one about keys only if there is no other."""
        refusals = [step for step in self.steps if not step.passed]
        return min(refusals, key=lambda step: step.rule == "key", default=None)

    @property
    def reason(self) -> str:
        """One sentence: why the model was refused, or that it is available."""
        if self.refusal is not None:
            return self.refusal.detail
        return f"Model {self.model_id!r} is available{for_purpose(self.purpose)}"

    def __bool__(self) -> bool:
        return self.available


def for_purpose(purpose: str | None) -> str:
    """The end of a sentence about a purpose."""
    return "" if purpose is None else f" for purpose {purpose!r}"

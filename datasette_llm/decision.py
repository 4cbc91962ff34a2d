"""A decision about a model: the rules that were asked, and what each of them answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Rule = Literal["known", "allowlist", "blocklist", "key", "filter"]


@dataclass(frozen=True, slots=True)
class Step:
    """One rule's answer about one model.

    Attributes:
        rule: which rule was asked.
        passed: whether it lets the model through.
        detail: the sentence that explains it to an administrator.
        plugin: for a filter, the plugin that answered.
    """

    rule: Rule
    passed: bool
    detail: str
    plugin: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a model is, or is not, available to an actor for a purpose.

    Attributes:
        model_id: the model that was asked about; the canonical id where llm knows it.
        purpose: the purpose, or None.
        actor: Datasette's actor dictionary, or None.
        steps: every rule that was asked, in order; the rules stop at the first refusal,
            except that a missing key does not keep a model from being used by name.
    """

    model_id: str
    purpose: str | None
    actor: Mapping[str, Any] | None
    steps: tuple[Step, ...]

    @property
    def available(self) -> bool:
        """Whether `LLM.model()` gives this model. A missing key shows only at the prompt."""
        return all(step.passed for step in self.steps if step.rule != "key")

    @property
    def listed(self) -> bool:
        """Whether `LLM.models()` shows this model."""
        return all(step.passed for step in self.steps)

    @property
    def refusal(self) -> Step | None:
        """The rule that decided against it; one about keys only where no other did."""
        refusals = [step for step in self.steps if not step.passed]
        return min(refusals, key=lambda step: step.rule == "key", default=None)

    @property
    def reason(self) -> str:
        """One sentence: the refusal that decided, or that the model is available."""
        if self.refusal is not None:
            return self.refusal.detail
        return f"Model {self.model_id!r} is available{for_purpose(self.purpose)}"

    def __bool__(self) -> bool:
        return self.available


def for_purpose(purpose: str | None) -> str:
    """How a sentence goes on that is about a purpose."""
    return "" if purpose is None else f" for purpose {purpose!r}"

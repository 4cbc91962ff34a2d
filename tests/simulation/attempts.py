"""The attempts at one response, and what the settings of the scenario say about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette_llm import LLMError, ResponseTimeoutError

from .facts import Answer, Request
from .scenarios import Fallback, Policy

if TYPE_CHECKING:
    from .observed_call import Seen

EXACT_S = 1e-6


@dataclass(frozen=True)
class Attempts:
    """The attempts at one response.

    Attributes:
        policy: that of the requested model, which may itself be a fallback.
        requests: those that reached a provider, in order.
        is_first: whether it is the first response of its call.
    """

    seen: Seen
    answer: Answer
    policy: Policy
    requests: list[Request]
    is_first: bool

    @property
    def requested_model(self) -> str:
        return str(self.answer.call.model.model_id)

    @property
    def end(self) -> float | None:
        """When its total timeout is over."""
        limit = self.policy.timeout_s
        return self.answer.began_at + limit if limit else None

    @property
    def disturbed(self) -> bool:
        """True if it was stopped, so that anything may have been cut short."""
        return self.seen.stopped or self.seen.timed_out

    @property
    def has_limits(self) -> bool:
        """True if a configured timeout may end it."""
        return bool(self.policy.timeout_s or self.policy.idle_timeout_s)

    @property
    def out_of_time(self) -> bool:
        error = self.answer.error
        return isinstance(error, ResponseTimeoutError) and error.setting == "timeout"

    def of(self, model: str) -> list[Request]:
        return [request for request in self.requests if request.model == model]

    def retries(self, model: str) -> int:
        own = next((s.retries for s in self.policy.fallbacks if s.name == model), None)
        return self.policy.retries if own is None else own

    def idle(self, request: Request) -> bool:
        """True if a request ended because no event came."""
        limit = self.seen.trace.scenario.policy.idle_timeout_s
        if not limit or request.complete:
            return False
        quiet_s = request.quiet_s[:1]
        if isinstance(request.ended, GeneratorExit):  # its generator was closed
            quiet_s.append(request.ended_at - request.times[-1])
        return max(quiet_s, default=0.0) >= limit - EXACT_S

    def may_pass(self, request: Request) -> bool:
        """True if its failure may be retried with the same model."""
        return self.idle(request) or request.retried

    def is_final(self, request: Request) -> bool:
        """True if no request may follow, whatever the settings say."""
        own = isinstance(request.ended, LLMError)
        own = own and not isinstance(request.ended, ResponseTimeoutError)
        alone = isinstance(request.ended, asyncio.CancelledError) and not self.idle(request)
        done = request.complete or bool(request.events)
        return done or (own and not self.idle(request)) or alone

    def next_fallbacks(self, model: str) -> list[str]:
        """The fallbacks that have to be tried after a model, unless one answers."""
        names = [fallback.name for fallback in self.policy.fallbacks]
        later = names[names.index(model) + 1 :] if model in names else names
        needs = self.seen.run.interaction.kind in ("chain", "structured")
        skipped = {"refused", "raises", *(["plain"] if needs else [])}
        return [name for name in later if name not in skipped]


def attempts_of(seen: Seen) -> Iterator[Attempts]:
    """The attempts at each response of a call."""
    policy = seen.trace.scenario.policy
    if seen.call.model.model_id != "first":
        own: Fallback = next(s for s in policy.fallbacks if s.name == seen.call.model.model_id)
        retries = policy.retries if own.retries is None else own.retries
        policy = Policy(retries=retries, idle_timeout_s=policy.idle_timeout_s)
    for answer in seen.trace.answers:
        if answer.call is seen.call:
            requests = [q for q in seen.requests if q.response is answer.response]
            first = seen.call.result.responses[0] is answer.response
            yield Attempts(seen, answer, policy, requests, first)

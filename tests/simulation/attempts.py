"""The attempts at one response, and what by the settings of the story should come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette_llm import LLMError, ResponseTimeoutError

from .facts import Answer, Request
from .scenarios import Spare, Terms

if TYPE_CHECKING:
    from .observed_call import Seen

EXACT_S = 1e-6


@dataclass(frozen=True)
class Asking:
    """One response with everything that was tried for it.

    Attributes:
        terms: those of the model that was asked for, which may itself be a fallback's.
        requests: those that reached a provider, in their order.
        is_first: whether it is the first response of its call, and so may be asked for again.
    """

    seen: Seen
    answer: Answer
    terms: Terms
    requests: list[Request]
    is_first: bool

    @property
    def asked(self) -> str:
        return str(self.answer.call.model.model_id)

    @property
    def end(self) -> float | None:
        """When its time in total is over."""
        limit = self.terms.timeout_s
        return self.answer.began_at + limit if limit else None

    @property
    def disturbed(self) -> bool:
        """Whether somebody stopped it, so that anything may have been cut short."""
        return self.seen.stopped or self.seen.timed_out

    @property
    def has_limits(self) -> bool:
        """Whether a timeout of the settings may end it."""
        return bool(self.terms.timeout_s or self.terms.idle_timeout_s)

    @property
    def out_of_time(self) -> bool:
        error = self.answer.error
        return isinstance(error, ResponseTimeoutError) and error.setting == "timeout"

    def of(self, model: str) -> list[Request]:
        return [request for request in self.requests if request.model == model]

    def retries(self, model: str) -> int:
        own = next((s.retries for s in self.terms.spares if s.name == model), None)
        return self.terms.retries if own is None else own

    def idle(self, request: Request) -> bool:
        """Whether a request was ended for want of events."""
        limit = self.seen.scene.story.terms.idle_timeout_s
        if not limit or request.complete:
            return False
        quiet_s = request.quiet_s[:1]
        if isinstance(request.ended, GeneratorExit):  # it was not asked for more
            quiet_s.append(request.ended_at - request.times[-1])
        return max(quiet_s, default=0.0) >= limit - EXACT_S

    def may_pass(self, request: Request) -> bool:
        """Whether its failure is one after which the same model is asked again."""
        return self.idle(request) or request.retried

    def is_final(self, request: Request) -> bool:
        """Whether nothing may follow a request, whatever the settings say."""
        own = isinstance(request.ended, LLMError)
        own = own and not isinstance(request.ended, ResponseTimeoutError)
        alone = isinstance(request.ended, asyncio.CancelledError) and not self.idle(request)
        done = request.complete or bool(request.events)
        return done or not self.is_first or (own and not self.idle(request)) or alone

    def next_spares(self, model: str) -> list[str]:
        """The fallbacks that have to be asked after a model, unless one answers."""
        names = [spare.name for spare in self.terms.spares]
        later = names[names.index(model) + 1 :] if model in names else names
        needs = self.seen.run.life.kind in ("chain", "structured")
        skipped = {"refused", "raises", *(["plain"] if needs else [])}
        return [name for name in later if name not in skipped]


def askings_of(seen: Seen) -> Iterator[Asking]:
    """Each response of a call for which something was asked."""
    terms = seen.scene.story.terms
    if seen.call.model.model_id != "player":
        own: Spare = next(s for s in terms.spares if s.name == seen.call.model.model_id)
        retries = terms.retries if own.retries is None else own.retries
        terms = Terms(retries=retries, idle_timeout_s=terms.idle_timeout_s)
    for answer in seen.scene.answers:
        if answer.call is seen.call:
            requests = [q for q in seen.requests if q.response is answer.response]
            first = seen.call.result.responses[0] is answer.response
            yield Asking(seen, answer, terms, requests, first)

"""Previews of consultations: of the table, a person sends exactly what the preview showed.

A table may change between preview and sending, and a sampled profile may differ the next time. So
the profiles of previews are cached for a while. A profile that is no longer cached is made again,
and sent only if its prompts are the same. The question may differ, as the person who sends has
written it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import instance
from ...access.snapshot import snapshot_of
from ...errors import ModelNotFoundError
from ...facade import LLM
from ..findings.find import Findings
from .consultation import (
    PURPOSE,
    ConsultationRequest,
    findings_of,
    profile_of,
    prompts_to_send,
)
from .types import Estimate, Prompts, estimate

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...calls.model import WrappedAsyncModel
    from ..table_access import Actor

OnMeasured = Callable[[Mapping[str, Any], Findings], Awaitable[None]]

# The previews that are cached; profiles take some hundred kilobytes at most.
MAX_PREVIEWS = 20
_NO_DEFAULT = (
    f"The purpose {PURPOSE} has no default model: choose one here, or have an administrator set "
    "default_model, or assign one"
)


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be sent.

    Attributes:
        request: the request for advice.
        profile: the profile of the table.
        prompts: both prompts, exactly as they would be sent.
        model_id: the model that they would be sent to; None where there is none.
        models: the ids of all models to choose from.
        problem: why there is no model, or no choice; or None.
        cost: the estimated cost.
        findings: what is remarkable about the table.
        digest: a hash of the model and of the prompts without the question.
        fallbacks: the ids of the models that they may be sent to when the first one fails.
    """

    request: ConsultationRequest
    profile: Mapping[str, Any]
    prompts: Prompts
    model_id: str | None
    models: tuple[str, ...]
    problem: str | None
    cost: Estimate
    findings: Findings
    digest: str
    fallbacks: tuple[str, ...] = ()

    def to_send(self, question: str | None) -> ConsultationRequest:
        """The request with a question, and the model that was shown: the default may change."""
        model_id = self.model_id or self.request.model_id
        return replace(self.request, question=question, model_id=model_id)


class PreviewCache:
    """The latest previews of a Datasette instance."""

    def __init__(self) -> None:
        self._previews: OrderedDict[tuple[ConsultationRequest, str], Preview] = OrderedDict()

    def __len__(self) -> int:
        return len(self._previews)

    def add(self, preview: Preview) -> None:
        """Add a preview; the oldest is dropped above `MAX_PREVIEWS`."""
        self._previews[_without_question(preview.request), preview.digest] = preview
        while len(self._previews) > MAX_PREVIEWS:
            self._previews.popitem(last=False)

    def get(self, request: ConsultationRequest, digest: str) -> Preview | None:
        """The preview of this request, with any question, if it is cached."""
        return self._previews.get((_without_question(request), digest))

    def clear(self) -> None:
        """Drop all previews."""
        self._previews.clear()


async def _no_wait(profile: Mapping[str, Any], findings: Findings) -> None:
    pass


async def make_preview(
    datasette: Datasette,
    request: ConsultationRequest,
    actor: Actor,
    on_measured: OnMeasured = _no_wait,
) -> Preview:
    """Make a preview, and cache it until it is sent.

    Args:
        datasette: the Datasette instance.
        request: what to ask.
        actor: who asks; the caller checks that they may analyze the table.
        on_measured: awaited with profile and findings, perhaps before the model is known.

    Raises:
        LLMError: the table is gone, or the configuration cannot be used.
    """
    (profile, findings), (model, models, problem) = await asyncio.gather(
        _measured(datasette, request, actor, on_measured), _choice(datasette, request, actor)
    )
    sent = partial(prompts_to_send, datasette, profile=profile, findings=findings, model=model)
    prompts, unasked = await sent(request), await sent(_without_question(request))
    model_id = model.model_id if model else None
    preview = Preview(
        request,
        profile,
        prompts,
        model_id,
        models,
        problem,
        await _estimate(datasette, request, prompts, model),
        findings,
        unasked.digest(model_id),
        await _fallbacks(datasette, model),
    )
    instance.of(datasette, PreviewCache).add(preview)
    return preview


def cached_preview(
    datasette: Datasette, request: ConsultationRequest, digest: str
) -> Preview | None:
    """The preview of this request with this digest, whatever its question, if it is cached."""
    return instance.of(datasette, PreviewCache).get(request, digest)


def _without_question(request: ConsultationRequest) -> ConsultationRequest:
    return replace(request, question=None)


async def _measured(
    datasette: Datasette, request: ConsultationRequest, actor: Actor, on_measured: OnMeasured
) -> tuple[Mapping[str, Any], Findings]:
    profile = await profile_of(datasette, request, actor)
    findings = await findings_of(datasette, request, actor, profile)
    await on_measured(profile, findings)
    return profile, findings


async def _estimate(
    datasette: Datasette,
    request: ConsultationRequest,
    prompts: Prompts,
    model: WrappedAsyncModel | None,
) -> Estimate:
    if model is None:
        return await estimate(prompts, request.kind.schema, None)
    target = model.route.target
    return await estimate(
        prompts, request.kind.schema, model.model_id, target.price, exact=target.exact_price
    )


async def _fallbacks(datasette: Datasette, model: WrappedAsyncModel | None) -> tuple[str, ...]:
    """The fallbacks that the configuration permits; plugins are asked when one is used."""
    snapshot = await snapshot_of(datasette)
    rules, known = snapshot.for_purpose(PURPOSE).rules, snapshot.catalog.entries
    ids = [each.model_id for each in model.route.target.call_policy.fallbacks] if model else []
    return tuple(model_id for model_id in ids if model_id in known and rules.permits(model_id))


async def _choice(
    datasette: Datasette, request: ConsultationRequest, actor: Actor
) -> tuple[WrappedAsyncModel | None, tuple[str, ...], str | None]:
    """The model that would be used, the ids to choose from, and what is wrong with either."""
    llm = LLM(datasette)
    problem, listed = None, []
    try:
        listed = await llm.models(actor, PURPOSE)
    except Exception as error:  # of a plugin's filter
        problem = f"The models cannot be listed: {error}"
    ids = tuple(model.model_id for model in listed)
    try:
        if request.model_id is None and not await llm.has_default(PURPOSE, actor):
            raise ModelNotFoundError(_NO_DEFAULT)
        return await llm.model(request.model_id, PURPOSE, actor), ids, problem
    except Exception as error:  # of a plugin, or there is no such model
        return None, ids, problem or str(error)

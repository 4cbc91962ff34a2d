"""The previews that people look at: what they then send is what they have seen.

A table may change between the two, and a profile that was sampled is another one the next time.
So the profile of a preview is kept for a while; where it is not there any more, it is made again,
and sent only if it makes the same prompts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ...access.snapshot import snapshot_of
from ...errors import ModelNotFoundError
from ...facade import LLM
from .consultation import PURPOSE, ConsultationRequest, profile_of, sent_prompts
from .types import Estimate, Prompts, estimate

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...calls.model import WrappedAsyncModel
    from ..table_access import Actor

# Profiles are some hundred kilobytes at the most.
KEPT = 20


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be sent.

    Attributes:
        asked: what somebody wants to know.
        profile: the profile of the table.
        prompts: both prompts, to the letter.
        model_id: whom they would be sent to; None where there is no such model.
        models: the ids of all that can be chosen.
        problem: why there is no model, or no choice; or None.
        fallbacks: the ids of the models that it may be sent to when that one fails.
    """

    asked: ConsultationRequest
    profile: Mapping[str, Any]
    prompts: Prompts
    model_id: str | None
    models: tuple[str, ...]
    problem: str | None
    cost: Estimate
    fallbacks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What tells it from every other preview."""
        return self.prompts.digest(self.model_id)

    @property
    def as_seen(self) -> ConsultationRequest:
        """What was asked for, of the model that was shown; the default may be another by now."""
        return replace(self.asked, model_id=self.model_id or self.asked.model_id)


_kept: WeakKeyDictionary[Datasette, OrderedDict[tuple[ConsultationRequest, str], Preview]] = (
    WeakKeyDictionary()
)


async def preview(datasette: Datasette, asked: ConsultationRequest, actor: Actor) -> Preview:
    """Make a preview, and keep it for who sends it.

    Raises:
        LLMError: the table is gone, or the configuration cannot be used.
    """
    profile, (model, models, problem) = await asyncio.gather(
        profile_of(datasette, asked), _choice(datasette, asked, actor)
    )
    prompts = await asyncio.to_thread(sent_prompts, asked, profile, model)
    made = Preview(
        asked,
        profile,
        prompts,
        model.model_id if model else None,
        models,
        problem,
        await _estimate(datasette, asked, prompts, model),
        await _fallbacks(datasette, model),
    )
    kept = _kept.setdefault(datasette, OrderedDict())
    kept[asked, made.digest] = made
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return made


def seen(datasette: Datasette, asked: ConsultationRequest, digest: str) -> Preview | None:
    """The preview with this digest, if it is of just this and still kept."""
    return _kept.get(datasette, OrderedDict()).get((asked, digest))


async def _estimate(
    datasette: Datasette,
    asked: ConsultationRequest,
    prompts: Prompts,
    model: WrappedAsyncModel | None,
) -> Estimate:
    if model is None:
        return await estimate(prompts, asked.kind.schema, None)
    target = model.route.target
    return await estimate(
        prompts, asked.kind.schema, model.model_id, target.price, exact=target.exact_price
    )


async def _fallbacks(datasette: Datasette, model: WrappedAsyncModel | None) -> tuple[str, ...]:
    """Those that the configuration allows; whether plugins do is asked when it comes to it."""
    view = await snapshot_of(datasette)
    rules, known = view.for_purpose(PURPOSE).rules, view.catalog.entries
    ids = [each.model_id for each in model.route.call_policy.fallbacks] if model else []
    return tuple(model_id for model_id in ids if model_id in known and rules.permits(model_id))


async def _choice(
    datasette: Datasette, asked: ConsultationRequest, actor: Actor
) -> tuple[WrappedAsyncModel | None, tuple[str, ...], str | None]:
    """The model that would be asked, those to choose from, and what is wrong with either."""
    models = LLM(datasette)
    problem, listed = None, []
    try:
        listed = await models.models(actor, PURPOSE)
    except Exception as error:  # a plugin's filter
        problem = f"The models cannot be listed: {error}"
    ids = tuple(model.model_id for model in listed)
    try:
        if asked.model_id is None and not await models.has_default(PURPOSE, actor):
            raise ModelNotFoundError(_NO_DEFAULT)
        return await models.model(asked.model_id, PURPOSE, actor), ids, problem
    except Exception as error:  # a plugin's, or there is no such model
        return None, ids, problem or str(error)


_NO_DEFAULT = (
    f"The purpose {PURPOSE} has no default model: choose one here, or have an administrator set "
    "default_model, or assign one"
)

"""Every model that a purpose may use, tried one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import policy
from ..keys import read_status
from ..state import state_of
from .explain import resolved_default
from .trial import Trial, try_model

if TYPE_CHECKING:
    from datasette.app import Datasette

    Actor = Mapping[str, Any] | None

AT_ONCE = 4
MOST_MODELS = 40
NOTHING_TO_TRY = (
    "There is no model to try: no default, no allowlist, and no model that needs no key or has "
    "one. Set default_model, or a key"
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The models that a trial of a purpose sends a prompt to.

    Attributes:
        model_ids: which, the default first.
        left_out: how many more there are.
        allowlist: whether an allowlist names them; without one they are the default and the
            models that need no key or have one.
        problem: why the default could not be found out, or why there is nothing to try; or None.
    """

    model_ids: tuple[str, ...]
    left_out: int
    allowlist: bool
    problem: str | None

    def payload(self) -> dict[str, Any]:
        """The candidates as JSON gives them."""
        return {
            "model_ids": list(self.model_ids),
            "left_out": self.left_out,
            "allowlist": self.allowlist,
            "problem": self.problem,
        }


async def candidates(datasette: Datasette, purpose: str, actor: Actor = None) -> Candidates:
    """The models to try for a purpose, `MOST_MODELS` at most.

    With an allowlist all that is on it, also without a key: somebody wanted it to work. The
    filters of plugins are left to the trial, which tells their refusals.

    Args:
        datasette: the Datasette instance.
        purpose: any name; one that nobody configured has the global rules.
        actor: who asks, on whom the default may depend.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    view = await state_of(datasette).view(datasette)
    default = await resolved_default(datasette, view, purpose, actor) or {}
    problem = default.get("error") and f"llm_default_model: {default['error']}"
    # Where a plugin failed to name the default, the others are worth trying all the same.
    configured = view.default(purpose) if problem else None
    name = configured.model_id if configured else default.get("model_id")
    rules = view.rules(purpose)
    first = [] if name is None else [view.catalog.canonical(name)]
    ids = policy.listing(rules, view.catalog, first[0] if first else None)
    if rules.allowed is None:
        ids = policy.with_key(ids, view.catalog, rules, await read_status(datasette))
    # What llm does not know, or policy refuses, was meant to work too: that is a finding.
    unknown = [name for name in rules.order if name not in view.catalog.entries]
    every = tuple(dict.fromkeys([*first, *ids, *unknown]))
    return Candidates(
        every[:MOST_MODELS],
        left_out=max(0, len(every) - MOST_MODELS),
        allowlist=rules.allowed is not None,
        problem=problem or (None if every else NOTHING_TO_TRY),
    )


async def try_purpose(
    datasette: Datasette,
    purpose: str,
    actor: Actor = None,
    told: Callable[[Trial], None] = lambda trial: None,
) -> dict[str, Any]:
    """Try the models that a purpose may use, each on its own, a few at once.

    Args:
        datasette: the Datasette instance.
        purpose: what they are for.
        actor: whose calls they are.
        told: called with each trial as it ends.

    Returns:
        `ok` (every model answered, there was one, and no problem), `purpose`, `results` in the
        order of the candidates, and their `left_out` and `problem`.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    wanted = await candidates(datasette, purpose, actor)
    room = asyncio.Semaphore(AT_ONCE)

    async def attempt(model_id: str) -> Trial:
        async with room:
            trial = await try_model(datasette, model_id, purpose, actor)
        told(trial)
        return trial

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(model_id)) for model_id in wanted.model_ids]
    trials = [task.result() for task in tasks]
    return {
        "ok": wanted.problem is None and all(trial.ok for trial in trials),
        "purpose": purpose,
        "results": [trial.payload() for trial in trials],
        "left_out": wanted.left_out,
        "problem": wanted.problem,
    }

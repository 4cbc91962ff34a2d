"""The page that explains why a model is, or is not, available to an actor for a purpose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..access.keys import read_status
from ..access.quoting import quoted, quoted_error
from ..access.snapshot import snapshot_of
from ..facade import LLM
from ..hooks import dispatch
from ..web import argument, refused
from .call_policies import CallPolicies
from .choices import purpose_names
from .figures import actors

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..access.snapshot import Snapshot
    from ..decision import Decision

    Actor = Mapping[str, Any] | None

FIELDS = ("model", "purpose", "actor")
# More than any actor needs; the JSON parser stops at some hundreds.
MAX_ACTOR_LEVELS = 50


class ActorError(Exception):
    """The text is not an actor; the message says why."""


def parse_actor(text: str) -> Actor:
    """Parse an actor: an id, or a JSON object; empty text and `null` mean no actor.

    Raises:
        ActorError: the text begins as JSON does, and is no JSON object.
    """
    text = text.strip()
    if text in ("", "null"):
        return None
    if not text.startswith(("{", "[", '"')):
        return {"id": text}
    try:
        actor = json.loads(text)
        _check(actor, MAX_ACTOR_LEVELS)
    except (ValueError, RecursionError) as error:
        raise ActorError(f"The actor is no JSON: {error}") from None
    if not isinstance(actor, dict):
        raise ActorError('The actor has to be an id, or a JSON object such as {"id": "ana"}')
    return actor


def _check(value: Any, levels: int) -> None:
    """Raise ValueError for values that Python parses but JSON cannot contain."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON's")
    parts: Iterable[Any] = ()
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
    if parts and not levels:
        raise ValueError("it is nested too deep")
    for part in parts:
        _check(part, levels - 1)


async def explained(
    datasette: Datasette, model_id: str | None, purpose: str | None, actor: Actor
) -> dict[str, Any]:
    """The decision about a model, as from `LLM.explain()`, its call policy, and the default.

    A plugin that fails, or takes too long, is a step that did not pass, where
    `LLM.explain()` would raise or wait.

    Args:
        datasette: the Datasette instance.
        model_id: an id or alias; None for the default.
        purpose: what the model would be for.
        actor: who would use it. Used for the decision only.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = await snapshot_of(datasette)
    default = await resolved_default(datasette, snapshot, purpose, actor)
    name = model_id or (default["model_id"] if default else None)
    decision = call_policy = None
    if name is not None:
        decision = await _decided(datasette, name, purpose, actor)
        snapshot = await snapshot_of(datasette)  # which may have got the model meanwhile
        if decision["model_id"] in snapshot.catalog.entries:
            call_policy = await _call_policy(
                datasette, snapshot, decision["model_id"], purpose, actor
            )
    return {
        "ok": True,
        "model": model_id,
        "purpose": purpose,
        "actor": actor,
        "default": default,
        "decision": decision,
        "plan": call_policy,
    }


async def _decided(
    datasette: Datasette, name: str, purpose: str | None, actor: Actor
) -> dict[str, Any]:
    ask = dispatch.try_filter_models
    return await _payload(datasette, await LLM(datasette).explain_with(ask, name, purpose, actor))


async def _call_policy(
    datasette: Datasette, snapshot: Snapshot, model_id: str, purpose: str | None, actor: Actor
) -> dict[str, Any]:
    """The call policy of a model; plugins may refuse its fallbacks too."""
    status = await read_status(datasette)
    call_policy = CallPolicies(datasette, snapshot, status).payload(purpose, model_id)
    for fallback in call_policy["fallbacks"]:
        decision = await _decided(datasette, fallback["model_id"], purpose, actor)
        if not decision["available"]:
            fallback["problem"] = decision["reason"]
    return call_policy


async def resolved_default(
    datasette: Datasette, snapshot: Snapshot, purpose: str | None, actor: Actor
) -> dict[str, Any] | None:
    """The default model and its rule: from hooks, then assignment, then configuration.

    Args:
        datasette: the Datasette instance.
        snapshot: the configuration and the assignments.
        purpose: what the model would be for.
        actor: who would use it.

    Returns:
        `model_id`, `rule` and, for the rule `hook`, the `plugin`. If the plugin failed, or took
        too long, `error` is set and `model_id` is None. None without a default.
    """
    result = await dispatch.try_default_model(datasette, purpose, actor)
    if result is not None:
        plugin, value = result
        error = await quoted_error(datasette, value) if isinstance(value, Exception) else None
        model_id = None if isinstance(value, Exception) else value
        return {"model_id": model_id, "rule": "hook", "plugin": plugin, "error": error}
    default = snapshot.for_purpose(purpose).default()
    if default is None:
        return None
    return {"model_id": default.model_id, "rule": default.rule, "plugin": None, "error": None}


async def _payload(datasette: Datasette, decision: Decision) -> dict[str, Any]:
    refusal = decision.refusal
    details = [
        # Quoted where it is a plugin's error: third-party text.
        await quoted(datasette, step.detail) if step.plugin and not step.passed else step.detail
        for step in decision.steps
    ]
    return {
        "model_id": decision.model_id,
        "available": decision.available,
        "listed": decision.listed,
        "reason": details[decision.steps.index(refusal)] if refusal else decision.reason,
        "refused_by": refusal.rule if refusal is not None else None,
        "steps": [
            {
                "rule": step.rule,
                "passed": step.passed,
                "detail": detail,
                "plugin": step.plugin,
            }
            for step, detail in zip(decision.steps, details, strict=True)
        ],
    }


async def explain_page(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The requested decision, or only the form."""
    given = {name: argument(request, name) for name in FIELDS}
    snapshot = await snapshot_of(datasette)
    purposes, problems = await purpose_names(datasette, snapshot)
    about: dict[str, Any] = {
        "form": given,
        "choices": {
            "model": list(snapshot.catalog.entries),
            "purpose": purposes,
            "actor": await actors(datasette, request.actor),
        },
        "problems": [*problems, *snapshot.catalog.problems],
    }
    if not any(given.values()) and not request.args:
        return {"ok": True, "asked": False} | about
    try:
        actor = parse_actor(given["actor"])
    except ActorError as error:
        return refused(str(error)) | about
    found = await explained(datasette, given["model"] or None, given["purpose"] or None, actor)
    return found | {"asked": True} | about

"""The form of a new evaluation: its fields, as a definition and as they are shown again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource
from itsdangerous import BadSignature

from ...access.snapshot import snapshot_of
from ...evaluation.cases import MAX_CANDIDATES
from ...evaluation.checks import CHECKS, DEFAULT_CHECKS
from ...evaluation.definition import Definition, EvaluationError
from ...evaluation.estimate import Estimate
from ...sanitize import new_id
from ..choices import purpose_names

if TYPE_CHECKING:
    from datasette.app import Datasette

_NAMESPACE = "datasette-llm-evaluation"
_NUMBERS = ("limit", "seed", "concurrency")
# By the source, the fields that it has.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "calls": ("limit", "seed", "model", "since", "until", "tag"),
    "table": ("database", "table", "template", "system", "expected", "limit"),
    "query": ("database", "sql", "template", "system", "expected", "limit"),
    "jsonl": ("text", "limit"),
}


def definition_of(fields: Mapping[str, str]) -> Definition:
    """The evaluation that a form defines.

    Args:
        fields: those of the form that are not empty.

    Raises:
        EvaluationError: it is invalid.
    """
    kind = fields.get("source", "calls")
    if kind not in SOURCES:
        raise EvaluationError(f"source: expected one of {', '.join(SOURCES)}")
    source = {name: _value(name, fields[name]) for name in SOURCES[kind] if name in fields}
    plain: dict[str, Any] = {name: fields[name] for name in ("name", "purpose") if name in fields}
    if "concurrency" in fields:
        plain["concurrency"] = _value("concurrency", fields["concurrency"])
    if "timeout" in fields:
        plain["timeout"] = _number("timeout", fields["timeout"])
    if "response_cache" in fields:
        plain["response_cache"] = True
    return Definition.of(
        plain
        | {"candidates": _candidates(fields), "checks": _checks(fields), "cases": {kind: source}}
    )


def _candidates(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for number in range(1, MAX_CANDIDATES + 1):
        model, options = fields.get(f"candidate{number}"), fields.get(f"options{number}")
        if model:
            found.append({"model": model.strip(), "options": _options(number, options)})
        elif options:
            raise EvaluationError(f"Candidate {number} has options, but no model")
    return found


def _options(number: int, text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"The options of candidate {number} are no JSON: {error}") from None
    if not isinstance(options, dict):
        raise EvaluationError(f'The options of candidate {number} have to be like {{"seed": 1}}')
    return options


def _checks(fields: Mapping[str, str]) -> list[Any]:
    found: list[Any] = []
    for name, kind in CHECKS.items():
        value = fields.get(f"check_{name}")
        if value is not None:
            found.append({name: _number(name, value)} if kind.takes_limit else name)
    return found


def _value(name: str, text: str) -> str | int:
    if name not in _NUMBERS:
        return text
    try:
        return int(text)
    except ValueError:
        raise EvaluationError(f"{name}: {text!r} is no whole number") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EvaluationError(f"{name}: {text!r} is no number") from None


def confirmation(datasette: Datasette, definition: Definition, found: Estimate, actor: Any) -> str:
    """What confirms an estimate, signed: its requests, who sees it, and the evaluation's new id."""
    signed = [found.requests, _digest(definition, actor), new_id()]
    return str(datasette.sign(signed, _NAMESPACE))


def confirmed_id(
    datasette: Datasette, given: str, definition: Definition, found: Estimate, actor: Any
) -> str | None:
    """The id of the evaluation that a confirmation starts.

    None if it is not for this evaluation and actor, or for fewer requests.
    """
    try:
        requests, digest, evaluation_id = datasette.unsign(given, _NAMESPACE)
    except BadSignature:
        return None
    fits = digest == _digest(definition, actor) and requests >= found.requests
    return evaluation_id if fits else None


def _digest(definition: Definition, actor: Any) -> str:
    text = definition.cases.jsonl.text if definition.cases.jsonl is not None else ""
    actor_id = (actor or {}).get("id")
    content = json.dumps([definition.stored(), text, actor_id], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(errors="replace"), digest_size=16).hexdigest()


async def choices(datasette: Datasette, actor: Any) -> dict[str, Any]:
    """What the form offers; of the databases those that the actor may view."""
    snapshot = await snapshot_of(datasette)
    purposes, problems = await purpose_names(datasette, snapshot)
    return {
        "purposes": purposes,
        "problems": problems,
        "models": list(snapshot.catalog.entries),
        "databases": [
            name
            for name in datasette.databases
            if await datasette.allowed(
                action="view-database", resource=DatabaseResource(name), actor=actor
            )
        ],
        "checks": [
            {"name": name, "description": kind.description, "takes_limit": kind.takes_limit}
            for name, kind in CHECKS.items()
            if name != "answered"
        ],
        "sources": list(SOURCES),
        "default_checks": [f"check_{each.name}" for each in DEFAULT_CHECKS],
    }

"""One consultation: profile, prompt, answer, checks and record, each once and in this order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3
from llm.utils import monotonic_ulid

from ..errors import (
    HookError,
    ModelNotAllowedError,
    NewerDatabaseError,
    NotRecordedError,
    ResponseCancelledError,
    StructuredOutputError,
)
from ..facade import LLM
from ..groups import Group
from ..log.rows import now
from ..log.values import brief
from ..purposes import Purpose
from ..redaction import without_keys
from ..state import state_of
from .access import Access
from .asking import Asked, profile_of, sent_prompts, table_facts
from .checks import check
from .prompting import Prompts
from .record import write

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls import Call

PURPOSE = "dataset-consultant"
PURPOSE_DESCRIPTION = "Advice about a table, from a profile of its columns"

# What blocks a call, whoever raises it.
_BLOCKS = (ModelNotAllowedError, NotRecordedError, HookError)

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Consultation:
    """What came of it.

    Attributes:
        row: its row of the record, with JSON columns as values.
        unrecorded: why the record does not have it; None where it has.
    """

    row: dict[str, Any]
    unrecorded: str | None = None


def purposes() -> list[Purpose]:
    """What the consultant uses models for."""
    return [Purpose(PURPOSE, PURPOSE_DESCRIPTION)]


async def consult(
    datasette: Datasette,
    asked: Asked,
    access: Access,
    *,
    profile: Mapping[str, Any] | None = None,
    told: Told = lambda step: None,
) -> Consultation:
    """Ask a model about a table, check what it says, and record all of it.

    What fails is the outcome of the consultation, and not raised.

    Args:
        datasette: the Datasette instance.
        asked: what somebody wants to know.
        access: what they may do; whether they may ask is for the caller to see to.
        profile: the profile that they have seen; without one it is made now.
        told: called with a sentence when the next step begins.

    Raises:
        CancelledError: the caller was cancelled; the consultation is on record as such.
    """
    run = _Run(datasette, asked, access, told, profile)
    try:
        await run.all_steps()
    except Exception as error:  # a provider's, a hook's, a table's that is gone: the outcome
        run.failed(error)
    except BaseException:  # whoever waited has gone
        run.failed(ResponseCancelledError("Whoever asked went away before the consultation ended"))
        await run.recorded()
        raise
    return await run.recorded()


class _Watched(Group):
    """A group that keeps its calls, so that it can be told what became of them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[Call] = []

    def _enter(self, call: Call) -> None:
        super()._enter(call)
        self.calls.append(call)


@dataclass(slots=True)
class _Run:
    """A consultation under way: what is known of it so far."""

    datasette: Datasette
    asked: Asked
    access: Access
    told: Told
    profile: Mapping[str, Any] | None
    outcome: str = "ok"
    error: BaseException | None = None
    prompts: Prompts | None = None
    raw_answer: str | None = None
    advice: dict[str, Any] | None = None
    rejected: Sequence[str] = ()
    checks: list[dict[str, Any]] = field(default_factory=list)
    latency_ms: float | None = None
    group: _Watched | None = None

    async def all_steps(self) -> None:
        asked = self.asked
        if self.profile is None:
            self.told("Profiling the table")
            self.profile = await profile_of(self.datasette, asked)
        self.prompts = sent_prompts(asked, self.profile, None)
        self.group = _Watched(LLM(self.datasette), asked.model_id, PURPOSE, self.access.actor)
        began = time.monotonic()
        try:
            answer = await self._answer(self.group)
        finally:
            self.latency_ms = round((time.monotonic() - began) * 1000, 1)
        await self._check(answer)

    async def _answer(self, group: _Watched) -> Any:
        assert self.profile is not None
        self.told("Looking for the model")
        async with group as model:
            self.prompts = sent_prompts(self.asked, self.profile, model)
            self.told(f"Waiting for the answer of {model.model_id}")
            text = self.asked.kind.prompts(self.profile, self.asked.question).user
            result = await model.structured(
                text, schema=self.asked.kind.schema, system=self.prompts.system
            )
            self.raw_answer = result.response.text_or_raise()
        return result.value

    async def _check(self, answer: Any) -> None:
        asked = self.asked
        facts = await table_facts(self.datasette, asked.database, asked.table)
        review = asked.kind.review(answer, facts)
        self.advice, self.rejected = review.advice, review.rejected
        claims, count = review.claims, len(review.claims)
        found = await check(
            self.datasette,
            asked.database,
            claims,
            self.access,
            lambda number: self.told(f"Checking claim {number + 1} of {count}"),
            await self._unwanted(),
        )
        self.checks = [each.payload() for each in found]

    async def _unwanted(self) -> list[str]:
        """The columns that no query may read: of this table, and the configured ones of others."""
        settings = (await state_of(self.datasette).settings(self.datasette)).consultant
        return [*settings.exclude, *(self.profile or {}).get("left_out", ())]

    def failed(self, error: Exception) -> None:
        """Note what the run ended with."""
        self.error, self.outcome = error, "error"
        if self.raw_answer is None:
            self.raw_answer = self._text_so_far()
        if isinstance(error, StructuredOutputError):
            self.raw_answer = error.text
            self.advice = self.asked.kind.unreadable(error.text, error.problems)
        elif isinstance(error, ResponseCancelledError):
            self.outcome = "cancelled"
        elif isinstance(error, _BLOCKS) or self._refused():
            self.outcome = "blocked"

    def _refused(self) -> bool:
        calls = self.group.calls if self.group is not None else []
        return bool(calls) and calls[-1].refused_by is not None

    def _text_so_far(self) -> str | None:
        """What there is of an answer that did not come to its end."""
        responses = self.group.responses if self.group is not None else []
        return ("".join(responses[-1]._chunks) or None) if responses else None

    async def recorded(self) -> Consultation:
        """Write the row; a database that cannot be written does not take the advice away."""
        row = self._row()
        try:
            await write(self.datasette, row)
        except (sqlite3.Error, NewerDatabaseError) as error:
            return Consultation(row, f"The consultation could not be recorded: {error}")
        return Consultation(row)

    def _row(self) -> dict[str, Any]:
        asked, prompts, group = self.asked, self.prompts, self.group
        actor_id = (self.access.actor or {}).get("id")
        row = {
            "id": str(monotonic_ulid()).lower(),
            "created_at": now(),
            "type": asked.kind.name,
            "database_name": asked.database,
            "table_name": asked.table,
            "actor_id": None if actor_id is None else brief(actor_id),
            "question": asked.question,
            "exclude": list(asked.exclude),
            "profile": self.profile,
            "system_prompt": prompts.system if prompts else None,
            "user_prompt": prompts.user if prompts else None,
            "model_id": _answered_by(group) if group else asked.model_id,
            "raw_answer": self.raw_answer,
            "advice": self.advice,
            "rejected": list(self.rejected),
            "checks": self.checks,
            "outcome": self.outcome,
            "error_type": type(self.error).__name__ if self.error else None,
            "error_message": brief(self.error) if self.error else None,
            "latency_ms": self.latency_ms,
            "call_id": _call_id(group.calls) if group else None,
        }
        keys = frozenset[str]().union(*(call.used_keys for call in group.calls)) if group else None
        return _without(row, keys) if keys else row


def _answered_by(group: _Watched) -> str | None:
    """The model of the last request, which may be a fallback; without one, that asked for."""
    return group.responses[-1].model.model_id if group.responses else group.model_id


def _call_id(calls: Sequence[Call]) -> str | None:
    """The id of the last request's row in the log; None where it has none."""
    if not calls or calls[-1].model._log is None:
        return None
    # One that a hook blocked has the id of the response that it did not get.
    return calls[-1].row_id or calls[-1].result.responses[-1].id


def _without(value: Any, keys: frozenset[str]) -> Any:
    """A value of JSON, with some keys taken out of each of its texts."""
    if isinstance(value, str):
        return without_keys(value, keys)
    if isinstance(value, Mapping):
        return {_without(k, keys): _without(v, keys) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_without(each, keys) for each in value]
    return value

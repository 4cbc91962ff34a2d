"""One consultation: profile, prompt, answer, checks and record, each once and in this order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3
from llm.utils import monotonic_ulid

from ...access.purposes import Purpose
from ...access.snapshot import settings_of
from ...calls.group import Group
from ...errors import (
    HookError,
    ModelNotAllowedError,
    NewerDatabaseError,
    NotRecordedError,
    ResponseCancelledError,
    StructuredOutputError,
)
from ...facade import LLM
from ...redaction import without_keys
from ...sanitize import brief, now
from ...structured import prompt_text
from ..profile.profile import make_profile
from ..table_access import Access
from .claims import check
from .dataset import TableFacts
from .store import write
from .types import DATASET_ANALYSIS, ConsultationType, Prompts

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...calls.call import Call
    from ...calls.model import WrappedAsyncModel


@dataclass(frozen=True, slots=True)
class ConsultationRequest:
    """What somebody wants to know.

    Attributes:
        database: the name of the database.
        table: the name of the table or view.
        model_id: an id or alias; None for the default.
        question: what they want to know in particular, or None.
        exclude: the columns to leave out of the profile.
        kind: the type of consultation.
    """

    database: str
    table: str
    model_id: str | None = None
    question: str | None = None
    exclude: tuple[str, ...] = ()
    kind: ConsultationType = DATASET_ANALYSIS


async def profile_of(datasette: Datasette, asked: ConsultationRequest) -> dict[str, Any]:
    """The profile of a table, by the configuration's rules.

    Raises:
        LLMError: the table is gone.
    """
    settings = (await settings_of(datasette)).consultant
    return await make_profile(
        datasette, asked.database, asked.table, exclude=asked.exclude, settings=settings
    )


def sent_prompts(
    asked: ConsultationRequest, profile: Mapping[str, Any], model: WrappedAsyncModel | None
) -> Prompts:
    """What a model is sent, to the letter; it depends on whether the model takes schemas."""
    prompts = asked.kind.prompts(profile, asked.question)
    if model is None:
        return prompts
    return Prompts(prompts.system, prompt_text(model, prompts.user, asked.kind.schema) or "")


async def table_facts(datasette: Datasette, database: str, table: str) -> TableFacts:
    """What advice about a table is held against."""
    db = datasette.get_database(database)
    sortable = (await datasette.table_config(database, table)).get("sortable_columns")
    return TableFacts(
        columns=tuple(await db.table_columns(table)),
        primary_keys=tuple(await db.primary_keys(table)),
        sortable=None if sortable is None else frozenset(sortable),
        is_view=bool(await db.view_exists(table)),
    )


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
    asked: ConsultationRequest,
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


@dataclass(slots=True)
class _Run:
    """A consultation under way: what is known of it so far."""

    datasette: Datasette
    asked: ConsultationRequest
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
    group: Group[WrappedAsyncModel] | None = None
    calls: list[Call] = field(default_factory=list)

    async def all_steps(self) -> None:
        asked = self.asked
        if self.profile is None:
            self.told("Profiling the table")
            self.profile = await profile_of(self.datasette, asked)
        self.prompts = sent_prompts(asked, self.profile, None)
        self.group = LLM(self.datasette).group(asked.model_id, PURPOSE, self.access.actor)
        self.group.on_call = self.calls.append
        began = time.monotonic()
        try:
            answer = await self._answer(self.group)
        finally:
            self.latency_ms = round((time.monotonic() - began) * 1000, 1)
        await self._check(answer)

    async def _answer(self, group: Group[WrappedAsyncModel]) -> Any:
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
        settings = (await settings_of(self.datasette)).consultant
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
        return bool(self.calls) and self.calls[-1].refused_by is not None

    def _text_so_far(self) -> str | None:
        """What there is of an answer that did not come to its end."""
        responses = self.group.responses if self.group is not None else []
        return (responses[-1].text_so_far or None) if responses else None

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
            "call_id": _call_id(self.calls),
        }
        keys = frozenset[str]().union(*(call.used_keys for call in self.calls))
        return _without(row, keys) if keys else row


def _answered_by(group: Group[WrappedAsyncModel]) -> str | None:
    """The model of the last request, which may be a fallback; without one, that asked for."""
    return group.responses[-1].model.model_id if group.responses else group.model_id


def _call_id(calls: Sequence[Call]) -> str | None:
    """The id of the last request's row in the log; None where it has none."""
    if not calls or calls[-1].route.recorder is None:
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

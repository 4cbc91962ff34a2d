"""One consultation: profile the table, ask the model, check the answer, store the row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3
from llm.utils import monotonic_ulid

from ... import instance
from ...access.purposes import Purpose
from ...access.snapshot import settings_of
from ...errors import (
    HookError,
    ModelNotAllowedError,
    NewerDatabaseError,
    NotRecordedError,
    ResponseCancelledError,
    StructuredOutputError,
)
from ...facade import LLM
from ...lifecycle import UnfinishedTasks
from ...redaction import without_keys
from ...sanitize import brief, now
from ...structured import prompt_text
from ..findings.dismissals import with_dismissals
from ..findings.find import Findings, find
from ..profile.profile import make_profile
from ..table_access import viewable_tables
from .answers import MAX_ANSWER_CHARS, Answer, taken_answer
from .claims import check_claims
from .dataset import SuggestedConfig, TableFacts, reviewed_config
from .progress import ClaimRead, OnProgress, Step, ignored
from .store import has_findings, write
from .types import DATASET_ANALYSIS, ConsultationType, Prompts
from .verdicts import uncounted

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...calls.call import Call
    from ...calls.group import Group
    from ...calls.model import WrappedAsyncModel
    from ..table_access import Actor
    from .verdicts import Check

PURPOSE = "dataset-consultant"
PURPOSE_DESCRIPTION = "Advice about a table, from a profile of its columns"

# The errors of a blocked call, besides what a plugin raises before the request.
_BLOCKS = (ModelNotAllowedError, NotRecordedError, HookError)

# Findings take their time after the profile, as many times as its limit.
FINDINGS_TIME = 1.5
UNCOUNTED = "The consultation ended before it was counted"


@dataclass(frozen=True, slots=True)
class ConsultationRequest:
    """A request for advice about a table.

    Attributes:
        database: the name of the database.
        table: the name of the table or view.
        model_id: an id or alias; None for the default.
        question: a question about the table, or None.
        exclude: the columns to leave out of the profile.
        kind: the type of consultation.
        unrestricted: whether who asks may view all tables, as in a command.
    """

    database: str
    table: str
    model_id: str | None = None
    question: str | None = None
    exclude: tuple[str, ...] = ()
    kind: ConsultationType = DATASET_ANALYSIS
    unrestricted: bool = False


@dataclass(frozen=True, slots=True)
class Consultation:
    """The result of a consultation.

    Attributes:
        row: its row, with JSON columns as values.
        unrecorded: why the row could not be stored; None where it was.
    """

    row: dict[str, Any]
    unrecorded: str | None = None


def purposes() -> list[Purpose]:
    """The purposes of the consultant."""
    return [Purpose(PURPOSE, PURPOSE_DESCRIPTION)]


async def consult(
    datasette: Datasette,
    request: ConsultationRequest,
    actor: Actor,
    *,
    profile: Mapping[str, Any] | None = None,
    findings: Findings | None = None,
    with_model: bool = True,
    on_progress: OnProgress = ignored,
) -> Consultation:
    """Look for findings, ask a model, check its answer, and store the consultation.

    A failure is the outcome of the consultation, and not raised.

    Args:
        datasette: the Datasette instance.
        request: what to ask.
        actor: who asks; the caller checks that they may analyze the table.
        profile: the profile of the preview; without one it is made now.
        findings: those of the preview; without them they are looked for now.
        with_model: whether to ask a model; otherwise the findings are all.
        on_progress: called with what happens.

    Raises:
        CancelledError: the caller was cancelled; the consultation is stored as cancelled.
    """
    run = _Run(datasette, request, actor, on_progress, profile, findings)
    with instance.of(datasette, UnfinishedTasks).current():
        try:
            await run.all_steps(with_model)
        except Exception as error:  # of a provider, a hook, or the table is gone: the outcome
            run.fail(error)
        except BaseException:  # the caller was cancelled
            run.fail(
                ResponseCancelledError(
                    "The client went away, or Datasette stopped, before the consultation ended"
                )
            )
            await run.stored()
            raise
        return await run.stored()


async def profile_of(
    datasette: Datasette,
    request: ConsultationRequest,
    actor: Actor,
    on_progress: OnProgress = ignored,
) -> dict[str, Any]:
    """The profile of the table, by the configured settings.

    Args:
        datasette: the Datasette instance.
        request: which table, and what to leave out.
        actor: who asks; of the other tables only those that they may view are named.
        on_progress: called when it has to wait for other profiles.

    Raises:
        LLMError: the table is gone.
    """
    settings = (await settings_of(datasette)).consultant
    return await make_profile(
        datasette,
        request.database,
        request.table,
        exclude=request.exclude,
        settings=settings,
        other_tables=await viewable_tables(datasette, actor, request.database),
        on_wait=lambda sentence: on_progress(Step(sentence)),
    )


async def findings_of(
    datasette: Datasette, request: ConsultationRequest, actor: Actor, profile: Mapping[str, Any]
) -> Findings:
    """What is remarkable about the table, by the configured settings.

    Raises:
        LLMError: the table is gone.
    """
    settings = (await settings_of(datasette)).consultant
    findings = await find(
        datasette,
        request.database,
        profile,
        actor,
        exclude=settings.exclude,
        limit_s=FINDINGS_TIME * settings.time_limit_ms / 1_000,
        unrestricted=request.unrestricted,
    )
    if findings.config is not None:
        facts = await table_facts(datasette, request.database, request.table)
        config, _ = reviewed_config(SuggestedConfig.model_validate(findings.config), facts)
        findings = replace(findings, config=config.model_dump())
    return await with_dismissals(datasette, request.database, request.table, findings)


async def record_findings(
    datasette: Datasette,
    request: ConsultationRequest,
    actor: Actor,
    profile: Mapping[str, Any],
    findings: Findings,
) -> str | None:
    """Store findings as a consultation without a model, unless the last one has the same.

    Returns:
        Why they could not be stored; None where they are.
    """
    run = _Run(datasette, replace(request, question=None, model_id=None), actor, ignored)
    run.profile, run.findings = profile, findings
    row = run.row()
    try:
        if not await has_findings(datasette, row):
            await write(datasette, row)
    except (sqlite3.Error, NewerDatabaseError) as error:
        return f"The findings could not be recorded: {error}"
    return None


async def prompts_to_send(
    datasette: Datasette,
    request: ConsultationRequest,
    profile: Mapping[str, Any],
    findings: Findings,
    model: WrappedAsyncModel | None,
) -> Prompts:
    """The exact prompts, within the configured budget.

    For a model without schemas they include the schema.
    """
    budget = (await settings_of(datasette)).consultant.max_prompt_tokens

    def made() -> Prompts:
        prompts = request.kind.prompts(profile, request.question, findings.found, budget)
        if model is None or model.supports_schema:
            return prompts
        sent = prompt_text(model, prompts.user, request.kind.schema) or ""
        return replace(prompts, user=sent, text=prompts.user)

    # In a thread, since a table may have thousands of columns.
    return await asyncio.to_thread(made)


async def table_facts(datasette: Datasette, database: str, table: str) -> TableFacts:
    """The facts about a table that advice is checked against."""
    db = datasette.get_database(database)
    sortable = (await datasette.table_config(database, table)).get("sortable_columns")
    return TableFacts(
        columns=tuple(await db.table_columns(table)),
        primary_keys=tuple(await db.primary_keys(table)),
        sortable=None if sortable is None else frozenset(sortable),
        is_view=bool(await db.view_exists(table)),
    )


@dataclass(slots=True)
class _Run:
    """A running consultation, with its results so far."""

    datasette: Datasette
    request: ConsultationRequest
    actor: Actor
    on_progress: OnProgress
    profile: Mapping[str, Any] | None = None
    findings: Findings | None = None
    outcome: str = "ok"
    error: BaseException | None = None
    prompts: Prompts | None = None
    raw_answer: str | None = None
    advice: dict[str, Any] | None = None
    rejected: Sequence[str] = ()
    checks: Sequence[Check] = ()
    latency_ms: float | None = None
    group: Group[WrappedAsyncModel] | None = None
    calls: list[Call] = field(default_factory=list)

    async def all_steps(self, with_model: bool) -> None:
        request = self.request
        if self.profile is None:
            self._begin("Profiling the table")
            self.profile = await profile_of(self.datasette, request, self.actor, self.on_progress)
        if self.findings is None:
            self._begin("Looking for findings")
            self.findings = await findings_of(self.datasette, request, self.actor, self.profile)
        if with_model:
            await self._advise(self.profile, self.findings)

    def _begin(self, step: str) -> None:
        self.on_progress(Step(step))

    async def _advise(self, profile: Mapping[str, Any], findings: Findings) -> None:
        self.group = LLM(self.datasette).group(self.request.model_id, PURPOSE, self.actor)
        self.group.on_call = self.calls.append
        self.prompts = await self._prompts(profile, findings, None)
        started = time.monotonic()
        try:
            answer = await self._ask(self.group, profile, findings)
        finally:
            self.latency_ms = round((time.monotonic() - started) * 1000, 1)
        await self._review(answer, profile)

    async def _ask(
        self, group: Group[WrappedAsyncModel], profile: Mapping[str, Any], findings: Findings
    ) -> Answer:
        schema = self.request.kind.schema
        self._begin("Looking for the model")
        async with group as model:
            self.prompts = prompts = await self._prompts(profile, findings, model)
            self._begin(f"Waiting for the answer of {model.model_id}")
            asking = model.structured(prompts.unschemed, schema=schema, system=prompts.system)
            answer = await taken_answer(asking, group, schema, self.on_progress)
            self.raw_answer = answer.raw
        return answer

    async def _prompts(
        self, profile: Mapping[str, Any], findings: Findings, model: WrappedAsyncModel | None
    ) -> Prompts:
        return await prompts_to_send(self.datasette, self.request, profile, findings, model)

    async def _review(self, answer: Answer, profile: Mapping[str, Any]) -> None:
        request = self.request
        facts = await table_facts(self.datasette, request.database, request.table)
        review = await asyncio.to_thread(request.kind.review, answer.value, facts)
        self.advice = review.advice
        self.rejected = (*((answer.rest,) if answer.rest else ()), *review.rejected)
        for index, _ in enumerate(review.claims):
            self.on_progress(ClaimRead(index, review.advice["risk_flags"][index]))
        self.checks = [uncounted(claim, UNCOUNTED) for claim in review.claims]
        self.checks = await check_claims(
            self.datasette,
            review.claims,
            profile,
            self.actor,
            unrestricted=request.unrestricted,
            on_progress=self.on_progress,
        )

    def fail(self, error: Exception) -> None:
        """Set the error and the outcome."""
        self.error, self.outcome = error, "error"
        if self.raw_answer is None:
            self.raw_answer = self._partial_answer()
        if isinstance(error, StructuredOutputError):
            self.raw_answer = error.text[:MAX_ANSWER_CHARS]
            self.advice = self.request.kind.unreadable(self.raw_answer, error.problems)
        elif isinstance(error, ResponseCancelledError):
            self.outcome = "cancelled"
        elif isinstance(error, _BLOCKS) or self._is_refused():
            self.outcome = "blocked"

    def _is_refused(self) -> bool:
        calls = self.calls
        return bool(calls) and calls[-1].refused_by is not None

    def _partial_answer(self) -> str | None:
        responses = self.group.responses if self.group is not None else []
        return (responses[-1].text_so_far[:MAX_ANSWER_CHARS] or None) if responses else None

    async def stored(self) -> Consultation:
        """Write the row; if that fails, the advice is returned all the same."""
        row = self.row()
        try:
            await write(self.datasette, row)
        except (sqlite3.Error, NewerDatabaseError) as error:
            return Consultation(row, f"The consultation could not be recorded: {error}")
        return Consultation(row)

    def row(self) -> dict[str, Any]:
        """The row of the table of consultations."""
        request, prompts, group = self.request, self.prompts, self.group
        keys = frozenset[str]().union(*(call.used_keys for call in self.calls))
        actor_id = (self.actor or {}).get("id")
        row = {
            "id": str(monotonic_ulid()).lower(),
            "created_at": now(),
            "type": request.kind.name,
            "database_name": request.database,
            "table_name": request.table,
            "actor_id": None if actor_id is None else brief(actor_id),
            "question": request.question,
            "exclude": list(request.exclude),
            "profile": self.profile,
            "system_prompt": prompts.system if prompts else None,
            "user_prompt": prompts.user if prompts else None,
            "model_id": _answering_model_id(group) if group else request.model_id,
            "raw_answer": self.raw_answer,
            "advice": self.advice,
            "rejected": list(self.rejected),
            "checks": self.checks,
            "outcome": self.outcome,
            "error_type": type(self.error).__name__ if self.error else None,
            "error_message": brief(self.error, keys) if self.error else None,
            "latency_ms": self.latency_ms,
            "call_id": _call_id(self.calls),
            "findings": list(self.findings.found) if self.findings else None,
            "suggested_config": self.findings.config if self.findings else None,
            "findings_note": self.findings.note if self.findings else None,
        }
        return _redacted(row, keys) if keys else row


def _answering_model_id(group: Group[WrappedAsyncModel]) -> str | None:
    """The model of the last request, which may be a fallback; without one, the requested model."""
    return group.responses[-1].model.model_id if group.responses else group.model_id


def _call_id(calls: Sequence[Call]) -> str | None:
    """The id of the last request's row in the call log; None where it has none."""
    if not calls or calls[-1].route.recorder is None:
        return None
    # The row of a call that a hook blocked has the id of the response that it never got.
    return calls[-1].row_id or calls[-1].result.responses[-1].id


def _redacted(value: Any, keys: frozenset[str]) -> Any:
    """A JSON value with API keys removed from each of its texts."""
    if isinstance(value, str):
        return without_keys(value, keys)
    if isinstance(value, Mapping):
        return {_redacted(k, keys): _redacted(v, keys) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_redacted(each, keys) for each in value]
    return value

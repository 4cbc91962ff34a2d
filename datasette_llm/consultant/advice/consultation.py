"""One consultation: profile the table, ask the model, check the answer, store the row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from .dataset import SuggestedConfig, TableFacts, reviewed_config
from .store import has_findings, write
from .types import DATASET_ANALYSIS, ConsultationType, Prompts

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ...calls.call import Call
    from ...calls.group import Group
    from ...calls.model import WrappedAsyncModel
    from ..table_access import Actor

PURPOSE = "dataset-consultant"
PURPOSE_DESCRIPTION = "Advice about a table, from a profile of its columns"

# The errors of a blocked call, besides what a plugin raises before the request.
_BLOCKS = (ModelNotAllowedError, NotRecordedError, HookError)

# Findings take their time after the profile, as many times as its limit.
FINDINGS_TIME = 1.5

OnStep = Callable[[str], None]


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
    on_step: OnStep = lambda _: None,
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
        on_step: called with a sentence when the next step begins.

    Raises:
        CancelledError: the caller was cancelled; the consultation is stored as cancelled.
    """
    run = _Run(datasette, request, actor, on_step, profile, findings)
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
    on_step: OnStep = lambda step: None,
) -> dict[str, Any]:
    """The profile of the table, by the configured settings.

    Args:
        datasette: the Datasette instance.
        request: which table, and what to leave out.
        actor: who asks; of the other tables only those that they may view are named.
        on_step: called with a sentence when it has to wait for other profiles.

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
        on_wait=on_step,
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
    run = _Run(datasette, replace(request, question=None, model_id=None), actor, _no_step)
    run.profile, run.findings = profile, findings
    row = run.row()
    try:
        if not await has_findings(datasette, row):
            await write(datasette, row)
    except (sqlite3.Error, NewerDatabaseError) as error:
        return f"The findings could not be recorded: {error}"
    return None


def prompts_to_send(
    request: ConsultationRequest,
    profile: Mapping[str, Any],
    findings: Findings,
    model: WrappedAsyncModel | None,
) -> Prompts:
    """The exact prompts; for a model without schemas they include the schema."""
    prompts = request.kind.prompts(profile, request.question, findings.found)
    if model is None:
        return prompts
    return Prompts(prompts.system, prompt_text(model, prompts.user, request.kind.schema) or "")


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


def _no_step(step: str) -> None:
    pass


@dataclass(slots=True)
class _Run:
    """A running consultation, with its results so far."""

    datasette: Datasette
    request: ConsultationRequest
    actor: Actor
    on_step: OnStep
    profile: Mapping[str, Any] | None = None
    findings: Findings | None = None
    outcome: str = "ok"
    error: BaseException | None = None
    prompts: Prompts | None = None
    raw_answer: str | None = None
    advice: dict[str, Any] | None = None
    rejected: Sequence[str] = ()
    latency_ms: float | None = None
    group: Group[WrappedAsyncModel] | None = None
    calls: list[Call] = field(default_factory=list)

    async def all_steps(self, with_model: bool) -> None:
        request = self.request
        if self.profile is None:
            self.on_step("Profiling the table")
            self.profile = await profile_of(self.datasette, request, self.actor, self.on_step)
        if self.findings is None:
            self.on_step("Looking for findings")
            self.findings = await findings_of(self.datasette, request, self.actor, self.profile)
        if with_model:
            await self._advise(self.profile, self.findings)

    async def _advise(self, profile: Mapping[str, Any], findings: Findings) -> None:
        request = self.request
        self.prompts = prompts_to_send(request, profile, findings, None)
        self.group = LLM(self.datasette).group(request.model_id, PURPOSE, self.actor)
        self.group.on_call = self.calls.append
        started = time.monotonic()
        try:
            answer = await self._ask(self.group, profile, findings)
        finally:
            self.latency_ms = round((time.monotonic() - started) * 1000, 1)
        await self._review(answer)

    async def _ask(
        self, group: Group[WrappedAsyncModel], profile: Mapping[str, Any], findings: Findings
    ) -> Any:
        kind = self.request.kind
        self.on_step("Looking for the model")
        async with group as model:
            self.prompts = prompts_to_send(self.request, profile, findings, model)
            self.on_step(f"Waiting for the answer of {model.model_id}")
            text = kind.prompts(profile, self.request.question, findings.found).user
            result = await model.structured(text, schema=kind.schema, system=self.prompts.system)
            self.raw_answer = result.response.text_or_raise()
        return result.value

    async def _review(self, answer: Any) -> None:
        request = self.request
        facts = await table_facts(self.datasette, request.database, request.table)
        review = request.kind.review(answer, facts)
        self.advice, self.rejected = review.advice, review.rejected

    def fail(self, error: Exception) -> None:
        """Set the error and the outcome."""
        self.error, self.outcome = error, "error"
        if self.raw_answer is None:
            self.raw_answer = self._partial_answer()
        if isinstance(error, StructuredOutputError):
            self.raw_answer = error.text
            self.advice = self.request.kind.unreadable(error.text, error.problems)
        elif isinstance(error, ResponseCancelledError):
            self.outcome = "cancelled"
        elif isinstance(error, _BLOCKS) or self._is_refused():
            self.outcome = "blocked"

    def _is_refused(self) -> bool:
        calls = self.calls
        return bool(calls) and calls[-1].refused_by is not None

    def _partial_answer(self) -> str | None:
        responses = self.group.responses if self.group is not None else []
        return (responses[-1].text_so_far or None) if responses else None

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
            "checks": [],
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

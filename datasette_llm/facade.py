"""LLM: what a plugin author starts from."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .access import policy
from .access.call_policy import Fallback
from .access.hook_failures import noted
from .access.keys import KeyStatus, read_status
from .access.snapshot import ModelRoute, PurposeSnapshot, Snapshot, find_model, snapshot_of
from .calls.group import Group
from .calls.model import WrappedAsyncModel
from .calls.route import GroupRegister, Route
from .decision import Decision, Step
from .errors import HookError, ModelNotAllowedError, ModelNotFoundError
from .events import Outcome, RequestStarted, never_sent, unsent
from .hooks import dispatch
from .log.queries import Filter
from .log.recorder import Recorder
from .log.records import CallRecord, call_record, call_records
from .permissions import VIEW_LOG
from .tags.source import call_tags
from .tags.values import NO_TAGS, Tags, checked
from .telemetry.spans import note_unsent

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .providers.registry import AsyncLLM

    Actor = Mapping[str, Any] | None
    Answers = Sequence[tuple[str, frozenset[str] | Exception]]
    AskFilters = Callable[[Datasette, Sequence[AsyncLLM], str | None, Actor], Awaitable[Answers]]

_T = TypeVar("_T")

# What the call log has for a model where the plugin that names the default failed.
UNKNOWN_DEFAULT = "(default)"


class LLM:
    """The models that a Datasette instance offers to its plugins.

    Cheap to make: make one where you need it, for example one a request.

    Args:
        datasette: the Datasette instance.
    """

    def __init__(self, datasette: Datasette) -> None:
        self.datasette = datasette
        # Only here is it surely a plugin's: a prompt may run in a task of its own.
        self._caller: str | None = sys._getframe(1).f_globals.get("__name__")  # noqa: SLF001  # CPython's

    async def model(
        self,
        model_id: str | None = None,
        purpose: str | None = None,
        actor: Actor = None,
        *,
        tags: Tags | None = None,
    ) -> WrappedAsyncModel:
        """A model, ready to prompt.

        Args:
            model_id: an id or alias; without one the default for the purpose and actor.
            purpose: what it is for. Any name will do; administrators configure by it.
            actor: Datasette's actor dictionary, `request.actor`; None without one.
            tags: what its prompts are tied to, such as `{"job": 12}`: up to 20 texts and numbers.

        Returns:
            The model. Whether it has a key shows when it is prompted.

        Raises:
            ModelNotFoundError: no model has this id, or there is no default.
            ModelNotAllowedError: policy keeps the model from this actor for this purpose.
            ConfigError: the configuration cannot be used.
            TagError: a tag is invalid, or there are too many.
        """
        return await self._model_for(model_id, purpose, actor, None, checked(tags))

    async def models(
        self, actor: Actor = None, purpose: str | None = None
    ) -> list[WrappedAsyncModel]:
        """The models that an actor may use for a purpose.

        Args:
            actor: Datasette's actor dictionary, or None.
            purpose: what they are for.

        Returns:
            The models, ready to prompt: the default first, then those of the purpose's list,
            then those of the global list, then the rest in llm's order. With `require_keys`
            (the default) only those that need no key or have one.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        held = await self._for_purpose(purpose)
        default = await self._resolved_default(held, purpose, actor)
        ids = await self._listed(held, default)
        answers = await self._filter_answers(held, ids, purpose, actor)
        return [
            self._wrapped(held.route(model_id), purpose, actor, None, NO_TAGS)
            for model_id in policy.narrowed(ids, answers)
        ]

    def group(
        self,
        model_id: str | None = None,
        purpose: str | None = None,
        actor: Actor = None,
        *,
        tags: Tags | None = None,
    ) -> Group[WrappedAsyncModel]:
        """Prompts that belong together: `async with llm.group(purpose="x") as model: ...`

        Args:
            model_id: an id or alias; without one the default for the purpose and actor.
            purpose: what it is for.
            actor: Datasette's actor dictionary, or None.
            tags: what its prompts are tied to; as for `model()`.

        Returns:
            An async context manager that gives the model. Leaving it waits for every
            response; leaving it by an exception stops them.

        Raises:
            TagError: a tag is invalid, or there are too many.
        """
        return Group(self.datasette, self._open_group, model_id, purpose, actor, checked(tags))

    async def has_default(self, purpose: str | None = None, actor: Actor = None) -> bool:
        """Whether `model()` without an id would find a name to look up.

        Args:
            purpose: what it would be for.
            actor: who would use it.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        held = await self._for_purpose(purpose)
        return await self._resolved_default(held, purpose, actor) is not None

    async def explain(
        self,
        model_id: str,
        purpose: str | None = None,
        actor: Actor = None,
    ) -> Decision:
        """Why a model is, or is not, available.

        Args:
            model_id: an id or alias, of an unknown model too.
            purpose: what it would be for.
            actor: who would use it.

        Returns:
            The decision that `model()` makes, with every rule that was asked.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        return await self.explain_with(dispatch.filter_models, model_id, purpose, actor)

    async def call(self, call_id: str, *, actor: Actor) -> CallRecord | None:
        """A call of the call log, once what waits to be written is.

        Args:
            call_id: its id, such as that of a response, or `PromptResult.call_id`.
            actor: who reads it; None for an anonymous visitor. What a plugin reads on its own
                behalf it reads inside Datasette's `SkipPermissions()`.

        Returns:
            The call; None if there is none, or no longer.

        Raises:
            datasette.Forbidden: the actor has no `view-llm-log`.
            sqlite3.Error: the internal database cannot be read.
        """
        await self.datasette.ensure_permission(action=VIEW_LOG, actor=actor)
        return await call_record(self.datasette, call_id)

    async def calls(
        self,
        *,
        actor: Actor,
        tag: str | Sequence[str] = (),
        model_id: str | None = None,
        purpose: str | None = None,
        group: str | None = None,
        outcome: str | None = None,
        since: str | None = None,
        until: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[CallRecord]:
        """Calls of the call log, the newest first, once what waits to be written is.

        Args:
            actor: who reads them; as for `call()`.
            tag: a tag that they have, such as `job:12`, or several, all of which they have.
            model_id: the model that was asked.
            purpose: what they were for; an empty text for calls without a purpose.
            group: the id of their group.
            outcome: how they ended, or `running`.
            since: the start, inclusive; an ISO 8601 date or time, in UTC unless it has a zone.
            until: the end, exclusive; likewise.
            before: the id of the last call of the page before; None for the first page.
            limit: the maximum number, up to 10,000.

        Raises:
            datasette.Forbidden: the actor has no `view-llm-log`.
            LLMError: a filter is invalid; the message says which, and why.
            sqlite3.Error: the internal database cannot be read.
        """
        await self.datasette.ensure_permission(action=VIEW_LOG, actor=actor)
        log_filter = Filter(
            model=model_id,
            purpose=purpose,
            group=group,
            outcome=outcome,
            since=since,
            until=until,
            tag=(tag,) if isinstance(tag, str) else tuple(tag),
        )
        return await call_records(self.datasette, log_filter, before=before, limit=limit)

    async def explain_with(
        self, ask: AskFilters, model_id: str, purpose: str | None, actor: Actor
    ) -> Decision:
        """As `explain()`, with the filter hooks asked in another way.

        Args:
            ask: asks the filter hooks.
            model_id: an id or alias, of an unknown model too.
            purpose: what it would be for.
            actor: who would use it.
        """
        try:
            snapshot, entry = await find_model(self.datasette, model_id)
        except ModelNotFoundError as error:
            steps = (Step("known", False, str(error)),)
            return Decision(model_id, purpose, actor, steps)
        held = snapshot.for_purpose(purpose)
        return await self._decide(held, entry.model_id, purpose, actor, ask)

    async def _model_for(
        self,
        model_id: str | None,
        purpose: str | None,
        actor: Actor,
        group: Group[Any] | None,
        tags: Tags,
    ) -> WrappedAsyncModel:
        if model_id is not None and not isinstance(model_id, str):
            raise ModelNotFoundError(f"A model id is text, not {type(model_id).__name__}")
        name = model_id
        try:
            name = name or await self._default_name(purpose, actor)
            held, canonical = await self._allowed(name, purpose, actor)
        except (ModelNotAllowedError, HookError) as error:
            refused = never_sent(
                await self._name_on_record(name, purpose),
                purpose,
                actor,
                group.id if group else None,
                tags=call_tags(self.datasette, self._caller, tags),
            )
            await self._record_refusal(refused, error)
            raise
        return self._wrapped(held.route(canonical), purpose, actor, group, tags)

    async def _open_group(self, group: Group[Any]) -> WrappedAsyncModel:
        return await self._model_for(group.model_id, group.purpose, group.actor, group, group.tags)

    async def _allowed(
        self, name: str, purpose: str | None, actor: Actor
    ) -> tuple[PurposeSnapshot, str]:
        """What holds for the purpose, and the id of a model that is allowed."""
        snapshot, entry = await find_model(self.datasette, name)
        held, model_id = snapshot.for_purpose(purpose), entry.model_id
        if self._has_filters() or not held.permits(model_id):
            decision = await self._decide(held, model_id, purpose, actor, dispatch.filter_models)
            if not decision.available:
                raise ModelNotAllowedError(decision)
        return held, model_id

    async def _resolve_fallback(self, route: Route, fallback: Fallback) -> WrappedAsyncModel:
        """The model of a fallback, by the policy of the model that it stands in for."""
        held, model_id = await self._allowed(fallback.model_id, route.purpose, route.actor)
        target = held.fallback_route(fallback, model_id)
        return self._wrapped(target, route.purpose, route.actor, route.group, route.tags)

    async def _default_name(self, purpose: str | None, actor: Actor) -> str:
        name = await self._resolved_default(await self._for_purpose(purpose), purpose, actor)
        if name is None:
            suffix = "" if purpose is None else f" for purpose {purpose!r}"
            raise ModelNotFoundError(
                f"No model was named{suffix} and there is no default. Name one, or set "
                "default_model in the configuration of datasette-llm"
            )
        return name

    async def _resolved_default(
        self, held: PurposeSnapshot, purpose: str | None, actor: Actor
    ) -> str | None:
        """The default by hooks, by assignment, then by configuration; None without any."""
        answer = await self._answered(dispatch.default_model(self.datasette, purpose, actor))
        if answer is not None:
            return answer[1]
        default = held.default()
        return default.model_id if default is not None else None

    async def _decide(
        self,
        held: PurposeSnapshot,
        model_id: str,
        purpose: str | None,
        actor: Actor,
        ask: AskFilters,
    ) -> Decision:
        rules = held.rules
        steps = [Step("known", True, f"Model {model_id!r} is known to llm")]
        steps += rules.steps(model_id, purpose)
        if all(step.passed for step in steps):
            status = await read_status(self.datasette)
            entry, require_keys = held.catalog.entries[model_id], held.settings.require_keys
            steps.append(policy.key_step(entry, rules, status, require_keys))
            # Only the order of the list depends on the default, so no hook is asked for it.
            default = held.default()
            first = default.model_id if default is not None else None
            ids = await self._listed(held, first, status)
            models = _models(held, list(dict.fromkeys([*ids, model_id])))
            answers = await self._answered(ask(self.datasette, models, purpose, actor))
            steps += policy.filter_steps(model_id, purpose, answers)
        return Decision(model_id, purpose, actor, tuple(steps))

    async def _listed(
        self, held: PurposeSnapshot, default: str | None, status: KeyStatus | None = None
    ) -> list[str]:
        """The ids that configuration and keys leave, in the order of `models()`."""
        ids = held.listing(default)
        if not held.settings.require_keys:
            return ids
        status = status or await read_status(self.datasette)
        return policy.with_key(ids, held.catalog, held.rules, status)

    async def _filter_answers(
        self, held: PurposeSnapshot, ids: list[str], purpose: str | None, actor: Actor
    ) -> list[tuple[str, frozenset[str]]]:
        if not self._has_filters():
            return []
        models = _models(held, ids)
        return await self._answered(dispatch.filter_models(self.datasette, models, purpose, actor))

    async def _answered(self, hooks: Awaitable[_T]) -> _T:
        """What hooks answer; a failure is noted for the administrator before it is raised."""
        try:
            return await hooks
        except HookError as error:
            raise await noted(self.datasette, error) from error.__cause__

    def _has_filters(self) -> bool:
        return dispatch.implemented(self.datasette, "llm_filter_models")

    async def _snapshot(self) -> Snapshot:
        return await snapshot_of(self.datasette)

    async def _for_purpose(self, purpose: str | None) -> PurposeSnapshot:
        return (await self._snapshot()).for_purpose(purpose)

    async def _name_on_record(self, name: str | None, purpose: str | None) -> str:
        """The id of a model that was not given; a placeholder where not even a name is known."""
        snapshot = await self._snapshot()
        default = snapshot.for_purpose(purpose).default()
        name = name or (default.model_id if default is not None else UNKNOWN_DEFAULT)
        return snapshot.catalog.canonical(name)

    async def _record_refusal(
        self, refused: RequestStarted, error: ModelNotAllowedError | HookError
    ) -> None:
        settings = (await self._snapshot()).settings
        if isinstance(error, HookError):
            blocked_by = error.plugin
        elif error.decision.refusal is not None:
            step = error.decision.refusal
            blocked_by = step.plugin or f"configuration ({step.rule})"
        else:
            blocked_by = None
        finished = unsent(refused, Outcome.BLOCKED, error, blocked_by=blocked_by)
        if settings.log is not None:
            Recorder.of(self.datasette).never_sent(refused, finished)
            error.call_id = refused.id
        note_unsent(refused, finished, settings.telemetry)

    def _wrapped(
        self,
        target: ModelRoute,
        purpose: str | None,
        actor: Actor,
        group: GroupRegister | None,
        tags: Tags,
    ) -> WrappedAsyncModel:
        recorder = Recorder.of(self.datasette) if target.log is not None else None
        route = Route(
            self.datasette,
            target,
            purpose,
            actor,
            group,
            recorder,
            self._resolve_fallback,
            tags,
            self._caller,
        )
        return WrappedAsyncModel(route)


def _models(held: PurposeSnapshot, ids: list[str]) -> list[AsyncLLM]:
    """llm's own model objects, as filter hooks get them."""
    entries = held.catalog.entries
    return [entries[model_id].model for model_id in ids]

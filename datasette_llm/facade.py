"""LLM: what a plugin author starts from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .access import policy
from .access.call_policy import Fallback, fallback_call_policy
from .access.keys import KeyStatus, read_status
from .access.snapshot import Snapshot, find_model, snapshot_of
from .calls.group import Group
from .calls.model import WrappedAsyncModel
from .decision import Decision, Step
from .errors import ModelNotAllowedError, ModelNotFoundError
from .hooks import dispatch
from .log.recorder import ModelLog, Recorder
from .providers.catalog import Entry

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .providers.registry import AsyncLLM

    Actor = Mapping[str, Any] | None
    Answers = Sequence[tuple[str, frozenset[str] | Exception]]
    AskFilters = Callable[[Datasette, Sequence[AsyncLLM], str | None, Actor], Awaitable[Answers]]


class LLM:
    """The models that a Datasette instance offers to its plugins.

    Cheap to make: make one where you need it, for example one a request.

    Args:
        datasette: the Datasette instance.
    """

    def __init__(self, datasette: Datasette) -> None:
        self.datasette = datasette

    async def model(
        self,
        model_id: str | None = None,
        purpose: str | None = None,
        actor: Actor = None,
    ) -> WrappedAsyncModel:
        """A model, ready to prompt.

        Args:
            model_id: an id or alias; without one the default for the purpose and actor.
            purpose: what it is for. Any name will do; administrators configure by it.
            actor: Datasette's actor dictionary, `request.actor`; None for nobody.

        Returns:
            The model. Whether it has a key shows when it is prompted.

        Raises:
            ModelNotFoundError: no model has this id, or there is no default.
            ModelNotAllowedError: policy keeps the model from this actor for this purpose.
            ConfigError: the configuration cannot be used.
        """
        return await self._model_for(model_id, purpose, actor, None)

    async def models(
        self, actor: Actor = None, purpose: str | None = None
    ) -> list[WrappedAsyncModel]:
        """The models that an actor may use for a purpose.

        Args:
            actor: Datasette's actor dictionary, or None for nobody.
            purpose: what they are for.

        Returns:
            The models, ready to prompt: the default first, then those of the purpose's list,
            then those of the global list, then the rest in llm's order. With `require_keys`
            (the default) only those that need no key or have one.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        view = await self._view()
        default = await self._resolved_default(view, purpose, actor)
        shown = await self._shown(view, purpose, default)
        answers = await self._filter_answers(view, shown, purpose, actor)
        return [
            self._wrapped(view, view.catalog.entries[model_id], purpose, actor, None)
            for model_id in policy.narrowed(shown, answers)
        ]

    def group(
        self,
        model_id: str | None = None,
        purpose: str | None = None,
        actor: Actor = None,
    ) -> Group:
        """Prompts that belong together: `async with llm.group(purpose="x") as model: ...`

        Args:
            model_id: an id or alias; without one the default for the purpose and actor.
            purpose: what it is for.
            actor: Datasette's actor dictionary, or None for nobody.

        Returns:
            An async context manager that gives the model. Leaving it waits for every
            response; leaving it by an exception stops them.
        """
        return Group(self, model_id, purpose, actor)

    async def has_default(self, purpose: str | None = None, actor: Actor = None) -> bool:
        """Whether `model()` without an id would find a name to look up.

        Args:
            purpose: what it would be for.
            actor: who would use it.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        return await self._resolved_default(await self._view(), purpose, actor) is not None

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
        return await self._explained(model_id, purpose, actor, dispatch.filter_models)

    async def _explained(
        self, model_id: str, purpose: str | None, actor: Actor, ask: AskFilters
    ) -> Decision:
        try:
            view, entry = await find_model(self.datasette, model_id)
        except ModelNotFoundError as error:
            steps = (Step("known", False, str(error)),)
            return Decision(model_id, purpose, actor, steps)
        return await self._decide(view, entry, purpose, actor, ask)

    async def _model_for(
        self, model_id: str | None, purpose: str | None, actor: Actor, group: Group | None
    ) -> WrappedAsyncModel:
        if model_id is not None and not isinstance(model_id, str):
            raise ModelNotFoundError(f"A model id is text, not {type(model_id).__name__}")
        name = model_id or await self._default_name(purpose, actor)
        try:
            view, entry = await self._allowed(name, purpose, actor)
        except ModelNotAllowedError as error:
            self._note_refusal(await self._view(), error.decision, group, error)
            raise
        return self._wrapped(view, entry, purpose, actor, group)

    async def _allowed(
        self, name: str, purpose: str | None, actor: Actor
    ) -> tuple[Snapshot, Entry]:
        view, entry = await find_model(self.datasette, name)
        if self._has_filters() or not view.for_purpose(purpose).rules.permits(entry.model_id):
            decision = await self._decide(view, entry, purpose, actor, dispatch.filter_models)
            if not decision.available:
                raise ModelNotAllowedError(decision)
        return view, entry

    async def _standing_in(self, asked: WrappedAsyncModel, fallback: Fallback) -> WrappedAsyncModel:
        """The model of a fallback, by the policy of the model that it stands in for."""
        purpose, actor = asked.purpose, asked.actor
        view, entry = await self._allowed(fallback.model_id, purpose, actor)
        model = self._wrapped(view, entry, purpose, actor, asked._group)
        model._play(
            fallback.reference,
            fallback_call_policy(view.settings, view.catalog, purpose, fallback, model._plan),
        )
        return model

    async def _default_name(self, purpose: str | None, actor: Actor) -> str:
        view = await self._view()
        name = await self._resolved_default(view, purpose, actor)
        if name is None:
            wanted = "" if purpose is None else f" for purpose {purpose!r}"
            raise ModelNotFoundError(
                f"No model was named{wanted} and there is no default. Name one, or set "
                "default_model in the configuration of datasette-llm"
            )
        return name

    async def _resolved_default(
        self, view: Snapshot, purpose: str | None, actor: Actor
    ) -> str | None:
        """The default by hooks, by assignment, then by configuration; None without any."""
        answer = await dispatch.default_model(self.datasette, purpose, actor)
        if answer is not None:
            return answer[1]
        default = view.for_purpose(purpose).default()
        return default.model_id if default is not None else None

    async def _decide(
        self, view: Snapshot, entry: Entry, purpose: str | None, actor: Actor, ask: AskFilters
    ) -> Decision:
        model_id = entry.model_id
        rules = view.for_purpose(purpose).rules
        steps = [Step("known", True, f"Model {model_id!r} is known to llm")]
        steps += rules.steps(model_id, purpose)
        if all(step.passed for step in steps):
            status = await read_status(self.datasette)
            steps.append(policy.key_step(entry, rules, status, view.settings.require_keys))
            # Only the order of the list depends on the default, so no hook is asked for it.
            default = view.for_purpose(purpose).default()
            first = default.model_id if default is not None else None
            shown = await self._shown(view, purpose, first, status)
            asked = list(dict.fromkeys([*shown, model_id]))
            models = [view.catalog.entries[each].model for each in asked]
            answers = await ask(self.datasette, models, purpose, actor)
            steps += policy.filter_steps(model_id, purpose, answers)
        return Decision(model_id, purpose, actor, tuple(steps))

    async def _shown(
        self,
        view: Snapshot,
        purpose: str | None,
        default: str | None,
        status: KeyStatus | None = None,
    ) -> list[str]:
        """The ids that configuration and keys leave, in the order of `models()`."""
        rules = view.for_purpose(purpose).rules
        first = view.catalog.canonical(default) if default else None
        ids = policy.listing(rules, view.catalog, first)
        if not view.settings.require_keys:
            return ids
        status = status or await read_status(self.datasette)
        return policy.with_key(ids, view.catalog, rules, status)

    async def _filter_answers(
        self, view: Snapshot, ids: list[str], purpose: str | None, actor: Actor
    ) -> list[tuple[str, frozenset[str]]]:
        if not self._has_filters():
            return []
        models = [view.catalog.entries[model_id].model for model_id in ids]
        return await dispatch.filter_models(self.datasette, models, purpose, actor)

    def _has_filters(self) -> bool:
        return dispatch.implemented(self.datasette, "llm_filter_models")

    async def _view(self) -> Snapshot:
        return await snapshot_of(self.datasette)

    def _note_refusal(
        self, view: Snapshot, decision: Decision, group: Group | None, error: Exception
    ) -> None:
        step = decision.refusal
        if view.settings.log is None or step is None:
            return
        recorder = Recorder.of(self.datasette)
        row = recorder.started_row(decision.model_id, decision.purpose, decision.actor)
        row["group_id"] = group.id if group else None
        recorder.refused(row, step.plugin or f"configuration ({step.rule})", error)

    def _wrapped(
        self, view: Snapshot, entry: Entry, purpose: str | None, actor: Actor, group: Group | None
    ) -> WrappedAsyncModel:
        rules = view.for_purpose(purpose).rules
        return WrappedAsyncModel(
            self.datasette,
            entry.model,
            purpose=purpose,
            actor=actor,
            options=rules.options(entry.model_id),
            secret_names=rules.secret_names(entry.model_id),
            group=group,
            log=self._log_of(view, entry.model_id, purpose),
            plan=view.for_purpose(purpose).call_policy(entry.model_id),
            facade=self,
        )

    def _log_of(self, view: Snapshot, model_id: str, purpose: str | None) -> ModelLog | None:
        settings = view.settings.log
        if settings is None:
            return None
        own = view.settings.purposes.get(purpose) if purpose is not None else None
        content = own.log.content if own is not None else None
        return ModelLog(
            Recorder.of(self.datasette),
            content=settings.content if content is None else content,
            required=settings.required,
            price=view.price(model_id),
        )

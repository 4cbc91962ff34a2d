"""Groups: prompts that belong together, and a block that ends when they have."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar
from ulid import ULID

from .. import instance
from ..access.hook_failures import HookFailures
from ..access.quoting import keys_of_site
from ..errors import GroupClosedError, GroupError, HookError
from ..hooks import dispatch
from ..log.cost import Cost
from ..redaction import redact
from ..tags.values import NO_TAGS, Tags
from .ended_requests import EndedRequests
from .response import PromptResponse
from .route import RoutedModel
from .task import FATAL

if TYPE_CHECKING:
    from datasette.app import Datasette

_Model = TypeVar("_Model", bound=RoutedModel, default=Any)

# How long each llm_group_exit hook may take once the caller was cancelled.
EXIT_HOOKS_S = 5.0


class GroupState(enum.Enum):
    """The life of a group, which only goes forward."""

    NEW = "new"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"


class GroupMember(Protocol):
    """A call of a group, as the group knows it.

    Attributes:
        closed: set when everything is over.
    """

    closed: asyncio.Event

    def cancel(self, reason: str) -> None:
        """Stop it."""

    def drain(self, reason: str) -> None:
        """Let what was sent finish, and nothing more be sent."""


class Group(Generic[_Model]):
    """The block that `LLM.group()` opens, and what `llm_group_exit` gets.

    Attributes:
        id: a ULID.
        model_id: the id of the model; before the block is entered, the one asked for.
        purpose: the purpose, or None.
        actor: Datasette's actor dictionary, or None.
        responses: every response whose prompt was sent, in that order; a step of a chain is
            one.
        error: what the block ends with; None while it runs, and after a success.
        on_call: called with each call that begins, or None.
        tags: those that every prompt of the group has.
        ended: its requests that were sent and have ended (filled by datasette-llm).
    """

    def __init__(
        self,
        datasette: Datasette,
        open_model: Callable[[Group[Any]], Awaitable[_Model]],
        model_id: str | None,
        purpose: str | None,
        actor: Mapping[str, Any] | None,
        tags: Tags = NO_TAGS,
    ) -> None:
        """
        Args:
            datasette: the Datasette instance.
            open_model: gives the model of a group that is entered.
            model_id: an id or alias; None for the default.
            purpose: what it is for, or None.
            actor: Datasette's actor dictionary, or None.
            tags: those that every prompt of the group has.
        """
        self.id = str(ULID())
        self.model_id = model_id
        self.purpose = purpose
        self.actor = actor
        self.tags = tags
        self.responses: list[PromptResponse] = []
        self.error: BaseException | None = None
        self.ended = EndedRequests()
        self.on_call: Callable[[Any], None] | None = None
        self._datasette = datasette
        self._open_model = open_model
        self._state = GroupState.NEW
        self._calls: set[GroupMember] = set()
        self._exit_hooks_task: asyncio.Task[list[Exception]] | None = None
        self._hurried = asyncio.Event()

    @property
    def calls(self) -> int:
        """How many requests were sent and have ended: retries, fallbacks and steps count."""
        return len(self.ended)

    @property
    def input_tokens(self) -> int | None:
        """The sum of what providers reported; None where none did."""
        return self.ended.input_tokens

    @property
    def output_tokens(self) -> int | None:
        """The sum of what providers reported; None where none did."""
        return self.ended.output_tokens

    async def cost(self) -> Cost | None:
        """What the requests that have ended cost; None where no price is known."""
        return await self.ended.cost()

    @property
    def _responses(self) -> list[PromptResponse]:
        return self.responses

    def __repr__(self) -> str:
        return f"<Group {self.id} {self.model_id!r} {self._state.value}>"

    async def __aenter__(self) -> _Model:
        """Enter the block.

        Returns:
            The model, whose prompts belong to the group.

        Raises:
            GroupClosedError: the group was entered before.
            ModelNotFoundError: as `LLM.model()`.
        """
        if self._state is not GroupState.NEW:
            raise GroupClosedError("A group can be entered once; make another with llm.group()")
        model = await self._open_model(self)
        self.model_id = model.model_id
        self._state = GroupState.OPEN
        return model

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the block: wait for every response, or stop them if an exception leaves it.

        Raises:
            GroupError: responses failed, and no caller had seen it.
            Exception: what an `llm_group_exit` hook raised, if nothing else was.
        """
        self._state = GroupState.LEAVING
        self.error = error
        try:
            if error is None:
                await self._complete()
            else:
                await self._stop(f"The group was left by {type(error).__name__}")
        except BaseException as left:
            # A GroupError, or the caller was cancelled while it waited.
            self.error = left
            if not isinstance(left, GroupError):
                await self._stop("The caller was cancelled while it left the group")
            raise
        finally:
            await self._close()

    async def _complete(self) -> None:
        for call in list(self._calls):
            call.drain("The group was left before the chain ended")
        await self._ended()
        unseen = [
            (response, response.failure)
            for response in self.responses
            if response.failure is not None and not response.failure_seen
        ]
        if unseen:
            raise GroupError(unseen)

    async def _ended(self) -> None:
        if self._calls:
            await asyncio.gather(*[call.closed.wait() for call in list(self._calls)])

    async def _stop(self, reason: str) -> None:
        for call in list(self._calls):
            call.cancel(reason)
        await self._ended()

    async def _close(self) -> None:
        """Run the exit hooks, exactly once, also if the caller is cancelled meanwhile."""
        if not self._calls and not dispatch.implemented(self._datasette, "llm_group_exit"):
            self._state = GroupState.CLOSED  # no hook to run: most groups are cheap
            return
        self._exit_hooks_task = asyncio.create_task(self._run_exit_hooks())
        try:
            errors = await asyncio.shield(self._exit_hooks_task)
        except asyncio.CancelledError:
            self._hurried.set()
            await asyncio.wait([self._exit_hooks_task])
            raise
        finally:
            self._state = GroupState.CLOSED
        if errors and self.error is None:
            self.error = errors[0]
            raise errors[0]
        for hook_error in errors:
            assert self.error is not None
            self.error.add_note(f"An llm_group_exit hook failed too: {hook_error!r}")

    async def _run_exit_hooks(self) -> list[Exception]:
        await self._ended()
        errors: list[Exception] = []
        for plugin, work in dispatch.group_exits(self._datasette, self):
            try:
                await self._bounded(asyncio.create_task(work()), plugin)
            except asyncio.CancelledError as error:
                who = f"llm_group_exit of plugin {plugin!r}"
                errors.append(await self._noted(plugin, dispatch.not_ours(error, who)))
            except FATAL:
                raise
            except BaseException as error:  # third-party code, also a panic of a library in Rust
                errors.append(await self._noted(plugin, error))
        return errors

    async def _noted(self, plugin: str, error: BaseException) -> Exception:
        """What a hook raised, for the caller, after it is noted."""
        keys = await keys_of_site(self._datasette)
        who = f"llm_group_exit of plugin {plugin!r}"
        failure = redact(error, keys)
        if not isinstance(failure, Exception):
            failure = HookError(f"{who} raised {failure!r}", "llm_group_exit", plugin)
        failure.add_note(f"Raised by {who}")
        instance.of(self._datasette, HookFailures).note("llm_group_exit", plugin, failure, keys)
        return failure

    async def _bounded(self, hook: asyncio.Task[object], plugin: str) -> None:
        """Wait for a hook; only for a while once the caller was cancelled."""
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            waits_s = dispatch.page_waits_s()
            await asyncio.wait(
                [hook, hurried], return_when=asyncio.FIRST_COMPLETED, timeout=waits_s
            )
            if hurried.done():
                await asyncio.wait([hook], timeout=EXIT_HOOKS_S)
        finally:
            hurried.cancel()
        if not hook.done():
            hook.cancel()
            raise HookError(f"llm_group_exit of plugin {plugin!r} did not finish in time")
        hook.result()

    # Called by the group's calls

    def enter(self, member: GroupMember) -> None:
        """Take in a call that begins (called by datasette-llm).

        Raises:
            GroupClosedError: the group has been left.
        """
        if self._state is not GroupState.OPEN:
            raise GroupClosedError(
                "The group of this model has been left; prompt inside the block, or get a "
                "model with llm.model()"
            )
        self._calls.add(member)
        if self.on_call is not None:
            self.on_call(member)

    def leave(self, member: GroupMember) -> None:
        """Let go of a call that has ended (called by datasette-llm)."""
        self._calls.discard(member)

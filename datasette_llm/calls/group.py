"""Groups: prompts that belong together, and a block that ends when they have."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ulid import ULID

from ..errors import GroupClosedError, GroupError, HookError
from ..hooks import dispatch

if TYPE_CHECKING:
    from ..facade import LLM
    from .call import Call
    from .model import WrappedAsyncModel
    from .response import PromptResponse

# How long each llm_group_exit hook may take once the caller was cancelled.
EXIT_HOOKS_S = 5.0


class GroupState(enum.Enum):
    """The life of a group, which only goes forward."""

    NEW = "new"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"


class Group:
    """The block that `LLM.group()` opens, and what `llm_group_exit` is told about it.

    Attributes:
        id: a ULID.
        model_id: the id of the model; before the block is entered, the one asked for.
        purpose: the purpose, or None.
        actor: Datasette's actor dictionary, or None.
        responses: every response whose prompt was sent, in that order; a step of a chain is
            one.
        error: what the block ends with; None while it runs, and after a success.
    """

    def __init__(
        self,
        llm: LLM,
        model_id: str | None,
        purpose: str | None,
        actor: Mapping[str, Any] | None,
    ) -> None:
        self.id = str(ULID())
        self.model_id = model_id
        self.purpose = purpose
        self.actor = actor
        self.responses: list[PromptResponse] = []
        self.error: BaseException | None = None
        self._llm = llm
        self._state = GroupState.NEW
        self._calls: set[Call] = set()
        self._telling: asyncio.Task[list[Exception]] | None = None
        self._hurried = asyncio.Event()

    @property
    def _responses(self) -> list[PromptResponse]:
        return self.responses

    def __repr__(self) -> str:
        return f"<Group {self.id} {self.model_id!r} {self._state.value}>"

    async def __aenter__(self) -> WrappedAsyncModel:
        """Enter the block.

        Returns:
            The model, whose prompts belong to the group.

        Raises:
            GroupClosedError: the group was entered before.
            ModelNotFoundError: as `LLM.model()`.
        """
        if self._state is not GroupState.NEW:
            raise GroupClosedError("A group can be entered once; make another with llm.group()")
        model = await self._llm._model_for(self.model_id, self.purpose, self.actor, self)
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
            GroupError: responses failed, and nobody had seen it.
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
            (response, response._failure)
            for response in self.responses
            if response._failure is not None and not response._failure_seen
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
        """Tell the plugins, exactly once, also if the caller is cancelled meanwhile."""
        if not self._calls and not dispatch.implemented(self._llm.datasette, "llm_group_exit"):
            self._state = GroupState.CLOSED  # nobody to tell: most groups are cheap
            return
        self._telling = asyncio.create_task(self._tell())
        try:
            errors = await asyncio.shield(self._telling)
        except asyncio.CancelledError:
            self._hurried.set()
            await asyncio.wait([self._telling])
            raise
        finally:
            self._state = GroupState.CLOSED
        if errors and self.error is None:
            self.error = errors[0]
            raise errors[0]
        for hook_error in errors:
            assert self.error is not None
            self.error.add_note(f"An llm_group_exit hook failed too: {hook_error!r}")

    async def _tell(self) -> list[Exception]:
        await self._ended()
        errors: list[Exception] = []
        for plugin, work in dispatch.group_exits(self._llm.datasette, self):
            try:
                await self._bounded(asyncio.create_task(work()), plugin)
            except asyncio.CancelledError as error:
                errors.append(dispatch.not_ours(error, f"llm_group_exit of plugin {plugin!r}"))
            except Exception as error:
                errors.append(error)
        return errors

    async def _bounded(self, hook: asyncio.Task[object], plugin: str) -> None:
        """Wait for a hook; only for a while once the caller was cancelled."""
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait([hook, hurried], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([hook], timeout=EXIT_HOOKS_S)
        finally:
            hurried.cancel()
        if not hook.done():
            hook.cancel()
            raise HookError(f"llm_group_exit of plugin {plugin!r} did not finish in time")
        hook.result()

    # Called by the group's calls

    def _enter(self, call: Call) -> None:
        if self._state is not GroupState.OPEN:
            raise GroupClosedError(
                "The group of this model has been left; prompt inside the block, or get a "
                "model with llm.model()"
            )
        self._calls.add(call)

    def _leave(self, call: Call) -> None:
        self._calls.discard(call)

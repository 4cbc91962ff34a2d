"""The models and conversations that plugin authors hold."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import StreamEvent

from .. import instance
from ..access.call_policy import DEFAULT_CALL_POLICY, CallPolicy
from ..errors import ConversationBusyError, LLMError
from ..providers.openai_clients import Clients
from ..providers.sync_adapter import ThreadedModel
from ..structured import AsksForObjects
from .call import Call, RunningCalls
from .chain import WrappedChain
from .response import PromptResponse

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..config.settings import FallbackReference
    from ..facade import LLM
    from ..log.recorder import ModelLog
    from ..providers.registry import AsyncLLM
    from .group import Group

_CHAIN_PARAMETERS = frozenset(inspect.signature(llm.AsyncConversation.chain).parameters)


class WrappedAsyncModel(AsksForObjects, llm.AsyncKeyModel):
    """A model that an actor may use for a purpose, as `LLM.model()` gives it.

    It is an `llm.AsyncKeyModel` with the attributes of the model it stands for. Every way to
    prompt it leads through the hooks and uses the key that was found for it.

    Attributes:
        purpose: the purpose it was asked for, or None.
        actor: Datasette's actor dictionary, or None.
    """

    def __init__(
        self,
        datasette: Datasette,
        model: AsyncLLM,
        *,
        purpose: str | None = None,
        actor: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        secret_names: Sequence[str] = (),
        group: Group | None = None,
        log: ModelLog | None = None,
        plan: CallPolicy = DEFAULT_CALL_POLICY,
        facade: LLM | None = None,
    ) -> None:
        self.model_id = model.model_id
        self.can_stream = model.can_stream
        self.attachment_types = model.attachment_types
        self.supports_schema = model.supports_schema
        self.supports_tools = model.supports_tools
        self.supports_conversation = model.supports_conversation
        self.needs_key = model.needs_key
        self.key_env_var = model.key_env_var
        self.Options = model.Options
        self.purpose = purpose
        self.actor = actor
        self._model = model
        self._datasette = datasette
        self._options = options or {}
        self._secret_names = tuple(secret_names)
        self._group = group
        self._log = log
        self._plan = plan
        self._facade = facade  # where a fallback's model comes from

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        """The server-side tools that llm's model accepts."""
        return self._model.supported_server_side_tools

    async def prompt(self, prompt: str | None = None, **kwargs: Any) -> PromptResponse:  # type: ignore[override]  # llm's is not a coroutine
        """Send a prompt, and return as soon as the provider's first event is there.

        Args:
            prompt: the text; optional.
            **kwargs: everything that llm's `prompt()` takes, `key` and option keywords
                included. Options given here win over configured ones.

        Returns:
            The response, still streaming. A model that does not stream returns at the end.

        Raises:
            Exception: what llm raises for arguments that the model does not take, before any
                hook runs; what a hook raises to block the call; what the provider raises
                before its first event.
            llm.NeedsKeyException: there is no key for the model.
            GroupClosedError: the model belongs to a group that has been left.
        """
        build = partial(super().prompt, prompt, **self._arguments(kwargs))
        return await _begun(self, prompt, await _built(build, kwargs))

    def conversation(
        self, tools: list[Any] | None = None, *args: Any, **kwargs: Any
    ) -> WrappedConversation:
        """Start a conversation; takes what llm's `conversation()` takes."""
        plain = super().conversation(tools, *args, **kwargs)
        return WrappedConversation(**{f.name: getattr(plain, f.name) for f in fields(plain)})

    def chain(self, prompt: str | None = None, **kwargs: Any) -> WrappedChain:
        """Prompt, run the tools that the model calls, and so on until it calls no more.

        Args:
            prompt: the text of the first prompt; optional.
            **kwargs: everything that llm's `chain()` takes, and option keywords.

        Returns:
            The chain. Nothing is sent, and no hook runs, before it is read.
        """
        return self.conversation().chain(prompt, **kwargs)

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None = None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """The one door to the provider; called by a call, with its contexts open."""
        flight = response._flight if isinstance(response, PromptResponse) else None
        if flight is None:
            raise LLMError(
                "This response was not made by datasette-llm, so its prompt would pass by the "
                "hooks; use prompt(), conversation() or chain() of the model"
            )
        arguments: dict[str, Any] = {"stream": stream, "response": response}
        found = await flight.call.key(self, key)
        if isinstance(self._model, llm.AsyncKeyModel):
            arguments["key"] = found
        if isinstance(self._model, ThreadedModel) and flight.turn is not None:
            arguments["ended"] = flight.turn.hand_over()
        source = self._model.execute(prompt, conversation=conversation, **arguments)
        # llm asks for no more than an async iterator, which need not have aclose().
        closing = aclosing(source) if hasattr(source, "aclose") else nullcontext()
        async with Clients(), closing:
            async for chunk in source:
                yield chunk

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key as llm alone would find it: explicit, in keys.json, in the environment.

        Reads files. Prompts do not use it: they look into datasette-secrets first.
        """
        return self._model.get_key(explicit_key)

    def __str__(self) -> str:
        return str(self._model)

    def __repr__(self) -> str:
        return f"<WrappedAsyncModel {self.model_id!r} purpose={self.purpose!r}>"

    def _arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's arguments, with the configured options as defaults."""
        arguments = dict(kwargs)
        defaults = {k: v for k, v in self._options.items() if k not in kwargs}
        if defaults:
            arguments["options"] = defaults | (kwargs.get("options") or {})
        if not self.can_stream:
            arguments["stream"] = False  # llm passes on what it is told; its CLI checks this
        return arguments

    def _play(self, reference: FallbackReference, plan: CallPolicy) -> None:
        """Stand in for another model, with the key and the options of that role."""
        self._options = {**self._options, **reference.plain_options()}
        if reference.key is not None:
            self._secret_names = (reference.key, *self._secret_names)
        self._plan = plan

    def _ask_once(self) -> None:
        """Make one request for each prompt, to this model and to no other."""
        self._plan = replace(self._plan, retries=0, fallbacks=())

    # The registers of who is in flight

    def _enter(self, call: Call) -> None:
        if self._group is not None:
            self._group._enter(call)
        instance.of(self._datasette, RunningCalls).add(call)

    def _sent(self, response: PromptResponse) -> None:
        if self._group is not None:
            self._group.responses.append(response)

    def _leave(self, call: Call) -> None:
        if self._group is not None:
            self._group._leave(call)
        instance.of(self._datasette, RunningCalls).discard(call)


class WrappedConversation(AsksForObjects, llm.AsyncConversation):
    """An `llm.AsyncConversation` whose turns go through the hooks.

    Turns come one after the other: each has the ones before it as its history, so a turn
    that starts while another is under way is refused.
    """

    model: WrappedAsyncModel
    _turn: Call | None = None

    async def prompt(self, prompt: str | None = None, **kwargs: Any) -> PromptResponse:  # type: ignore[override]  # llm's is not a coroutine
        """Send the next turn; as `WrappedAsyncModel.prompt`.

        Raises:
            ConversationBusyError: the previous turn is still under way.
        """
        self._refuse_while_busy()
        arguments = self.model._arguments(kwargs)
        if self.tools and not arguments.get("tools"):
            arguments = arguments | {"tools": self.tools}
        response = await _built(partial(super().prompt, prompt, **arguments), kwargs)
        self._refuse_while_busy()
        return await _begun(self.model, prompt, response, self)

    def chain(self, prompt: str | None = None, **kwargs: Any) -> WrappedChain:
        """The next turn as a chain; as `WrappedAsyncModel.chain`.

        Raises:
            ConversationBusyError: the previous turn is still under way.
        """
        self._refuse_while_busy()
        arguments = self.model._arguments(_options_apart(kwargs))
        return WrappedChain.adopt(super().chain(prompt, **arguments), self.model)

    def _begin_turn(self, call: Call, turns_before: int) -> None:
        self._refuse_while_busy()
        if len(self.responses) != turns_before:
            raise ConversationBusyError(
                "The conversation has gone on since this chain was made, so that it would miss "
                "what was said; make the chain when it is its turn"
            )
        self._turn = call

    def _refuse_while_busy(self) -> None:
        if self._turn is not None and self._turn.running:
            raise ConversationBusyError(
                "The previous turn of this conversation has not ended; read its response to "
                "the end first, for example with 'await response.text()'"
            )


async def _built(
    build: Callable[[], llm.AsyncResponse], kwargs: Mapping[str, Any]
) -> llm.AsyncResponse:
    """llm's response, not yet begun; built in a thread where llm has to look at a file or URL."""
    attachments = kwargs.get("attachments") or ()
    if any(not item.type and (item.path or item.url) for item in attachments):
        return await asyncio.to_thread(build)
    return build()


async def _begun(
    model: WrappedAsyncModel,
    text: str | None,
    response: llm.AsyncResponse,
    conversation: WrappedConversation | None = None,
) -> PromptResponse:
    """Start the call of a response, and wait for its first event."""
    call = Call(model, text, is_chain=False)
    ours = PromptResponse.adopt(response, call)
    call.start()
    if conversation is not None:
        conversation._turn = call
    await ours._first_event()
    return ours


def _options_apart(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for llm's `chain()`, which takes options only as a mapping."""
    named = {k: v for k, v in kwargs.items() if k in _CHAIN_PARAMETERS}
    keywords = {k: v for k, v in kwargs.items() if k not in _CHAIN_PARAMETERS}
    options = named.get("options") or {}
    twice = sorted(options.keys() & keywords.keys())
    if twice:
        raise TypeError(f"These options were given twice, in options= and by keyword: {twice}")
    return named | {"options": {**options, **keywords}}

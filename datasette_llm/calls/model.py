"""The models and conversations that plugin authors hold."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import llm
from llm.parts import StreamEvent

from ..errors import ConversationBusyError, LLMError
from ..structured import AsksForObjects, taken_answer
from ..tags.values import NO_TAGS, Tags, checked
from .cache_mode import response_cache
from .call import Call
from .chain import WrappedChain
from .history import answered, system_of, under_system, with_history
from .pace import SLICE, pace
from .response import PromptResponse
from .route import RoutedModel

_CHAIN_PARAMETERS = frozenset(
    ["key_name", "response_cache", *inspect.signature(llm.AsyncConversation.chain).parameters]
)


class WrappedAsyncModel(AsksForObjects, RoutedModel):
    """A model that an actor may use for a purpose, as `LLM.model()` gives it.

    It is an `llm.AsyncKeyModel` with the attributes of the model it stands for. Every way to
    prompt it leads through the hooks and uses the key that was found for it.

    Attributes:
        purpose: the purpose it was asked for, or None.
        actor: Datasette's actor dictionary, or None.
    """

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        """The server-side tools that llm's model accepts."""
        return self._model.supported_server_side_tools

    async def prompt(self, prompt: str | None = None, **kwargs: Any) -> PromptResponse:  # type: ignore[override]  # llm's is not a coroutine
        """Send a prompt, and return as soon as the provider's first event is there.

        Args:
            prompt: the text; optional.
            **kwargs: everything that llm's `prompt()` takes, `key` and option keywords
                included; `key_name`, the name of a stored key; `tags`, a mapping of texts
                and numbers; and `response_cache`, False to go past the response cache or
                `"refresh"` to renew what it keeps. Options given here win over configured ones.

        Returns:
            The response, still streaming. A model that does not stream returns at the end.

        Raises:
            Exception: what llm raises for arguments that the model does not take, before any
                hook runs; what a hook raises to block the call; what the provider raises
                before its first event.
            llm.NeedsKeyException: there is no key for the model.
            GroupClosedError: the model belongs to a group that has been left.
            TagError: a tag is invalid, or there are too many.
        """
        tags = self.route.tags_of(kwargs.get("tags"))
        arguments = with_history(self, prompt, self.arguments(kwargs))
        build = partial(super().prompt, **arguments)
        return await _begin(self, prompt, await _build(build, kwargs), tags, kwargs)

    def conversation(
        self, tools: list[Any] | None = None, *args: Any, tags: Tags | None = None, **kwargs: Any
    ) -> WrappedConversation:
        """Start a conversation; takes what llm's `conversation()` takes, and tags for its turns.

        Raises:
            TagError: a tag is invalid, or there are too many.
        """
        own = checked(tags)
        plain = super().conversation(tools, *args, **kwargs)
        ours = WrappedConversation(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        ours.tags = own
        return ours

    def chain(self, prompt: str | None = None, **kwargs: Any) -> WrappedChain:
        """Prompt, run the tools that the model calls, and so on until it calls no more.

        Args:
            prompt: the text of the first prompt; optional.
            **kwargs: everything that llm's `chain()` takes, option keywords, and `tags`.

        Returns:
            The chain. Nothing is sent, and no hook runs, before it is read.

        Raises:
            TagError: a tag is invalid, or there are too many.
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
        """Refuse: a request goes to the provider from its call, with the contexts open.

        Raises:
            LLMError: always.
        """
        raise LLMError(
            "This response was not made by datasette-llm, so its prompt would pass by the "
            "hooks; use prompt(), conversation() or chain() of the model"
        )
        yield  # what makes this the generator that llm expects

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key as llm alone would find it: explicit, in keys.json, in the environment.

        Reads files. Prompts do not use it: they look into datasette-secrets first.
        """
        return self._model.get_key(explicit_key)

    def __str__(self) -> str:
        return str(self._model)

    def __repr__(self) -> str:
        return f"<WrappedAsyncModel {self.model_id!r} purpose={self.purpose!r}>"


class WrappedConversation(AsksForObjects, llm.AsyncConversation):
    """An `llm.AsyncConversation` whose turns go through the hooks.

    Turns come one after the other: each has the ones before it as its history, so a turn
    that starts while another is running is refused. A turn that fails or is cancelled is no part
    of the history. One that is paused is, until a turn with a new text comes.

    Attributes:
        call: the call of the newest turn, or None.
        tags: those of every turn.
    """

    model: WrappedAsyncModel
    call: Call | None = None
    tags: Tags = NO_TAGS
    _begun_with: list[Any] | None = None  # what llm has read from storage

    async def prompt(self, prompt: str | None = None, **kwargs: Any) -> PromptResponse:  # type: ignore[override]  # llm's is not a coroutine
        """Send the next turn; as `WrappedAsyncModel.prompt`.

        Raises:
            ConversationBusyError: the previous turn is still running.
        """
        self._refuse_while_busy()
        tags = self.model.route.tags_of(kwargs.get("tags"), self.tags)
        arguments = self._with_history(prompt, self.model.arguments(kwargs))
        if self.tools and not arguments.get("tools"):
            arguments = arguments | {"tools": self.tools}
        response = await _build(partial(super().prompt, **arguments), kwargs)
        self._refuse_while_busy()
        return await _begin(self.model, prompt, response, tags, kwargs, self)

    def chain(self, prompt: str | None = None, **kwargs: Any) -> WrappedChain:
        """The next turn as a chain; as `WrappedAsyncModel.chain`.

        Raises:
            ConversationBusyError: the previous turn is still running.
        """
        self._refuse_while_busy()
        tags = self.model.route.tags_of(kwargs.pop("tags", None), self.tags)
        arguments = self.model.arguments(_with_options_apart(kwargs))
        arguments = self._with_history(prompt, arguments)
        return WrappedChain.adopt(super().chain(**arguments), self.model, prompt, tags)

    def begin_turn(self, call: Call, turns_before: int) -> None:
        """Begin the turn of a chain (called by the chain).

        Args:
            call: the chain's.
            turns_before: how many turns there were when the chain was made.

        Raises:
            ConversationBusyError: the previous turn is still running, or there was another.
        """
        self._refuse_while_busy()
        if len(self.responses) != turns_before:
            raise ConversationBusyError(
                "The conversation has gone on since this chain was made, so that it would miss "
                "what was said; make the chain when it is its turn"
            )
        self.take_part(call)

    def take_part(self, call: Call) -> None:
        """Have a call as the newest turn; if it fails, the history is what it was before."""
        turns, loaded = len(self.responses), self.loaded_messages

        def end(error: BaseException | None) -> None:
            if error is not None:
                del self.responses[turns:]
                self.loaded_messages = loaded

        self.call = call
        call.at_end.append(end)
        if not self.responses:
            self._begun_with = loaded

    def pause_turn(self, results: list[llm.ToolResult]) -> None:
        """Keep the results of tools that ran beside the one that paused: they do not run again."""
        if results and self.responses:
            last: Any = self.responses[-1]
            history = self.loaded_messages or [*last.prompt.messages, *last.messages_so_far()]
            found = llm.Prompt(None, self.model, tool_results=results).messages
            self.loaded_messages = [*history, *found]

    def _with_history(self, prompt: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        news = prompt or arguments.get("fragments") or arguments.get("attachments")
        history = arguments.get("messages"), arguments.get("tool_results")
        count = answered(self.responses)
        if news and history == (None, None) and count < len(self.responses):
            del self.responses[count:]
            self.loaded_messages = None if count else self._begun_with
        if arguments.get("messages") is None and not arguments.get("system_fragments"):
            arguments = {**arguments, "system": arguments.get("system") or self._system()}
        return with_history(self.model, prompt, arguments)

    def _system(self) -> str | None:
        """The system prompt of the turns so far; some plugins read it of the newest prompt only."""
        if self.responses:
            return self.responses[-1].prompt.system or None
        return system_of(self.loaded_messages or ())

    def _build_full_chain(self, **arguments: Any) -> list[Any]:  # type: ignore[override]  # llm calls it so
        """llm's messages of a turn, with the system prompt of a later turn, which it leaves out."""
        messages = super()._build_full_chain(**arguments)
        system, fragments = arguments["system"], arguments["system_fragments"]
        if system or fragments:
            return under_system(self.model, messages, system, fragments)
        return messages

    def _refuse_while_busy(self) -> None:
        if self.call is not None and self.call.running:
            raise ConversationBusyError(
                "The previous turn of this conversation has not ended; read its response to "
                "the end first, for example with 'await response.text()'"
            )


async def _build(
    build: Callable[[], llm.AsyncResponse], kwargs: Mapping[str, Any]
) -> llm.AsyncResponse:
    """llm's response, not yet begun; built in a thread where llm has to look at a file or URL."""
    if pace.begun >= SLICE:
        await pace.turn()
    attachments = kwargs.get("attachments")
    if attachments and any(not item.type and (item.path or item.url) for item in attachments):
        return await asyncio.to_thread(build)
    return build()


async def _begin(
    model: WrappedAsyncModel,
    text: str | None,
    response: llm.AsyncResponse,
    tags: Tags,
    kwargs: Mapping[str, Any],
    conversation: WrappedConversation | None = None,
) -> PromptResponse:
    """Start the call of a response, and wait for its first event."""
    call = Call(model, text, tags, is_chain=False)
    if model.route.target.call_policy.cache is not None:
        call.response_cache = response_cache(kwargs.get("response_cache"))
    ours = PromptResponse.adopt(response, call)
    call.add(ours)
    answer = taken_answer()
    if answer is not None:
        ours.answer = answer
    if conversation is not None:
        conversation.take_part(call)
    call.start()
    await ours.first_event()
    return ours


def _with_options_apart(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for llm's `chain()`, which takes options only as a mapping."""
    named = {k: v for k, v in kwargs.items() if k in _CHAIN_PARAMETERS}
    keywords = {k: v for k, v in kwargs.items() if k not in _CHAIN_PARAMETERS}
    options = named.get("options") or {}
    twice = sorted(options.keys() & keywords.keys())
    if twice:
        raise TypeError(f"These options were given twice, in options= and by keyword: {twice}")
    return named | {"options": {**options, **keywords}}

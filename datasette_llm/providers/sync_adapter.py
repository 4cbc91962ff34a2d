"""Async adapters for models without an async version: each request runs in its own thread.

Many llm plugins for local models have only sync models.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import llm
from llm.parts import StreamEvent

from .chunks import well_formed_call
from .openai_clients import Clients
from .threads import LOOP_CHECK_S, ThreadStream

SyncLLM = llm.Model | llm.KeyModel
AnyLLM = SyncLLM | llm.AsyncModel | llm.AsyncKeyModel

# What callers and llm read of a model, apart from its key.
MIRRORED_ATTRIBUTES = (
    "model_id",
    "can_stream",
    "attachment_types",
    "supports_schema",
    "supports_tools",
    "supports_conversation",
    "needs_key",
    "key_env_var",
    "Options",
)
# What a model sets on its response, apart from chunks and events.
_RESPONSE_ATTRIBUTES = (
    "input_tokens",
    "output_tokens",
    "token_details",
    "response_json",
    "resolved_model",
    "_prompt_json",
)

# The models that wait for the code that runs, so that it does not wait for them.
_asked: ContextVar[frozenset[ThreadedModel]] = ContextVar(
    "datasette_llm_asked", default=frozenset()
)

_mirrored = attrgetter(*MIRRORED_ATTRIBUTES)


def mirror_attributes(model: AnyLLM, target: llm.AsyncKeyModel) -> None:
    """Give a model that stands for another one the other's attributes, except for its key.

    Args:
        model: llm's own model.
        target: the model that stands for it.
    """
    vars(target).update(zip(MIRRORED_ATTRIBUTES, _mirrored(model), strict=True))


class ThreadedModel(llm.AsyncKeyModel):
    """An async model that stands for one without an async version.

    Args:
        model: llm's own model.

    Attributes:
        sync_model: the same.
        turn: held by the thread of a request that may be the only one, in whatever event loop.
        registered_attributes: the attributes that the model had when it was registered.
    """

    def __init__(self, model: SyncLLM) -> None:
        self.sync_model = model
        self.turn = threading.Lock()
        self.key = model.key
        self.registered_attributes = dict(getattr(model, "__dict__", {}))
        mirror_attributes(model, self)

    def same_as(self, other: object) -> bool:
        """Whether the other stands for a model that was registered with equal attributes.

        Args:
            other: any model, whose attributes may have changed since.
        """
        if not isinstance(other, ThreadedModel):
            return False
        if type(self.sync_model) is not type(other.sync_model):
            return False
        mine, theirs = self.registered_attributes, other.registered_attributes
        return mine.keys() == theirs.keys() and all(map(_alike, mine.values(), theirs.values()))

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        """The server-side tools that the model accepts."""
        return self.sync_model.supported_server_side_tools

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key as the model itself finds it."""
        return self.sync_model.get_key(explicit_key)

    def __str__(self) -> str:
        return str(self.sync_model)

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None = None,
        ended: Callable[[], None] | None = None,
        alone: bool = False,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Run the model in a thread; if the generator is closed, it stops at its next chunk.

        Args:
            prompt: as llm's.
            stream: as llm's.
            response: gets the attributes that the model set on its own, also when it fails.
            conversation: as llm's.
            key: as llm's; a plain `llm.Model` does not get it.
            ended: called in the event loop when the thread has ended.
            alone: whether to wait for the thread of another request.
        """
        stopped = threading.Event()
        turns: list[Any] = list(conversation.responses) if conversation else []
        alone = alone and self not in _asked.get()
        request = _Request(self, prompt, stream, conversation, turns, key, stopped, alone)
        try:
            # Not `response`, since an abandoned thread may go on writing to it.
            sync_response = llm.Response(prompt, self.sync_model, stream)
            sync_response.id = response.id
            chunks = ThreadStream(partial(request.in_turn, sync_response), ended or _ignore_end)
            chunks.start(f"datasette-llm {self.model_id}")
        except BaseException:
            if ended is not None:
                ended()
            raise
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            stopped.set()
            chunks.stop()
            _carry_over(sync_response, response)


@dataclass(frozen=True, slots=True)
class _Request:
    """The arguments of one request to a model."""

    threaded: ThreadedModel
    prompt: llm.Prompt
    stream: bool
    conversation: llm.AsyncConversation | None
    turns: list[Any]
    key: str | None
    stopped: threading.Event
    alone: bool

    @property
    def model(self) -> SyncLLM:
        return self.threaded.sync_model

    def in_turn(self, response: llm.Response) -> Iterator[str | StreamEvent]:
        """Call the model, when no other request runs if it has to be alone."""
        if not self.alone:
            yield from self.execute(response)
            return
        # Limiters let one through, but each event loop has its own.
        while not self.threaded.turn.acquire(timeout=LOOP_CHECK_S):
            if self.stopped.is_set():
                return
        try:
            _asked.set(_asked.get() | {self.threaded})
            if not self.stopped.is_set():
                yield from self.execute(response)
        finally:
            self.threaded.turn.release()

    def execute(self, response: llm.Response) -> Iterator[str | StreamEvent]:
        """Call the model; in the thread, since converting a long history takes time."""
        response.conversation = self._conversation()
        arguments: dict[str, Any] = {"stream": self.stream, "response": response}
        if isinstance(self.model, llm.KeyModel):
            arguments["key"] = self.key
        with Clients():
            yield from self.model.execute(
                self.prompt, conversation=response.conversation, **arguments
            )

    def _conversation(self) -> llm.Conversation | None:
        given = self.conversation
        if given is None:
            return None
        # llm's to_sync_conversation() leaves out the responses, which many plugins read. There
        # is no public way to convert one.
        turns = [
            turn._to_sync_response() if isinstance(turn, llm.AsyncResponse) else turn  # noqa: SLF001
            for turn in self.turns
        ]
        return llm.Conversation(
            self.model, given.id, given.name, turns, given.tools, given.chain_limit
        )


def _alike(one: object, other: object) -> bool:
    """Whether two attributes are equal, or of one type that compares by identity."""
    # By identity: for example a lock that each model creates for itself.
    if type(one) is type(other) and type(one).__eq__ is object.__eq__:
        return True
    try:
        return bool(one == other)
    except Exception:  # a third-party __eq__
        return False


def _carry_over(sync_response: llm.Response, response: llm.AsyncResponse) -> None:
    for name in _RESPONSE_ATTRIBUTES:
        value = getattr(sync_response, name)
        if value is not None:
            setattr(response, name, value)
    # Copies, since the thread may go on. llm has no public list of them before the end.
    calls = list(sync_response._tool_calls)  # noqa: SLF001
    response._tool_calls = [well_formed_call(call) for call in calls]  # noqa: SLF001
    response.attachments = list(sync_response.attachments)


def _ignore_end() -> None:
    pass

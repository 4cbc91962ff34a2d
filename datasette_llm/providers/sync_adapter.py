"""Models that have no async version: each of their requests runs in a thread of its own.

Many llm plugins for models that run on one's own machine are of this kind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import llm
from llm.parts import StreamEvent

from .openai_clients import Clients
from .threads import ThreadStream

SyncLLM = llm.Model | llm.KeyModel

# What a model leaves with its response, apart from chunks and events.
_LEFT_WITH_RESPONSE = (
    "input_tokens",
    "output_tokens",
    "token_details",
    "response_json",
    "resolved_model",
    "_prompt_json",
)


class ThreadedModel(llm.AsyncKeyModel):
    """An async model that stands for one which has no async version.

    Args:
        model: llm's own model.

    Attributes:
        sync_model: the same.
    """

    def __init__(self, model: SyncLLM) -> None:
        self.sync_model = model
        self.model_id = model.model_id
        self.can_stream = model.can_stream
        self.attachment_types = model.attachment_types
        self.supports_schema = model.supports_schema
        self.supports_tools = model.supports_tools
        self.supports_conversation = model.supports_conversation
        self.needs_key = model.needs_key
        self.key = model.key
        self.key_env_var = model.key_env_var
        self.Options = model.Options
        self._registered_with = dict(getattr(model, "__dict__", {}))

    def same_as(self, other: object) -> bool:
        """Whether the other one stands for a model that was registered with the same attributes.

        Args:
            other: any model, whose attributes may have changed since.
        """
        if not isinstance(other, ThreadedModel) or type(self.sync_model) is not type(
            other.sync_model
        ):
            return False
        mine, theirs = self._registered_with, other._registered_with
        return mine.keys() == theirs.keys() and all(map(_alike, mine.values(), theirs.values()))

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        """The server-side tools that the model accepts."""
        return self.sync_model.supported_server_side_tools

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key as the model itself would find it."""
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
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Run the model in a thread, chunk by chunk; left early, it stops at its next chunk.

        Args:
            prompt: as llm's.
            stream: as llm's.
            response: gets what the model leaves with its response, also when it fails.
            conversation: as llm's.
            key: as llm's; a plain `llm.Model` does not get it.
            ended: called in the event loop when the thread has ended.
        """
        turns: list[Any] = list(conversation.responses) if conversation else []
        request = _Request(self.sync_model, prompt, stream, conversation, turns, key)
        try:
            # Of its own, since a thread that was left may go on to write to it.
            stand_in = llm.Response(prompt, self.sync_model, stream)
            stand_in.id = response.id
            chunks = ThreadStream(partial(request.execute, stand_in), ended or _nobody_waits)
            chunks.start(f"datasette-llm {self.model_id}")
        except BaseException:
            if ended is not None:
                ended()
            raise
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            chunks.stop()
            _carry_over(stand_in, response)


@dataclass(frozen=True, slots=True)
class _Request:
    """What a model is asked, as its thread needs it."""

    model: SyncLLM
    prompt: llm.Prompt
    stream: bool
    conversation: llm.AsyncConversation | None
    turns: list[Any]
    key: str | None

    def execute(self, response: llm.Response) -> Iterator[str | StreamEvent]:
        """Call the model; in the thread, so that a long history is no burden on the loop."""
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
        # llm's own to_sync_conversation() has no responses, and many plugins read these.
        turns = [
            turn._to_sync_response() if isinstance(turn, llm.AsyncResponse) else turn
            for turn in self.turns
        ]
        return llm.Conversation(
            self.model, given.id, given.name, turns, given.tools, given.chain_limit
        )


def _alike(one: object, other: object) -> bool:
    """Whether two attributes are equal; of what equals nothing but itself, of the same kind."""
    # A lock, for example, which two models that are the same each make for themselves.
    if type(one) is type(other) and type(one).__eq__ is object.__eq__:
        return True
    try:
        return bool(one == other)
    except Exception:  # a stranger's objects, which may not like to be compared
        return False


def _carry_over(stand_in: llm.Response, response: llm.AsyncResponse) -> None:
    for name in _LEFT_WITH_RESPONSE:
        value = getattr(stand_in, name)
        if value is not None:
            setattr(response, name, value)
    # Copies, since the thread may go on.
    response._tool_calls = list(stand_in._tool_calls)
    response.attachments = list(stand_in.attachments)


def _nobody_waits() -> None:
    pass

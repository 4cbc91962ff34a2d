"""A past that is played in seconds: models that move a clock, and a recorder that follows it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import llm
from ulid import ULID

from ..events import RequestFinished, RequestStarted
from ..log.recorder import Recorder
from ..log.rows import Content
from ..sanitize import timestamp

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..config.settings import PriceSettings

_RANDOM_BITS = 80  # of a ULID


class Reply(NamedTuple):
    """What a scripted model does when it is asked.

    Attributes:
        text: its answer.
        input_tokens: as it reports them.
        output_tokens: as it reports them.
        first_s: until its first chunk, in seconds.
        seconds: until its end, in seconds.
        finish_reason: why its answer ended, as it reports it.
        tools: the tools that it calls, and their arguments.
        error: what it raises instead of an answer, or None.
        pause_s: after a failure, until it is asked again, in seconds.
        hangs: whether it stops after its first chunk.
    """

    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    first_s: float = 0.0
    seconds: float = 0.0
    finish_reason: str = "stop"
    tools: Mapping[str, Mapping[str, Any]] = {}
    error: Exception | None = None
    pause_s: float = 0.0
    hangs: bool = False


NO_REPLY = Reply()


@dataclass(slots=True)
class Scene:
    """A time of the past, and what the models do then; of a task and of the tasks it starts.

    Attributes:
        now: the time, which whatever takes time moves on.
        random: makes its ids.
        queued_s: how long its requests wait for a concurrency limit, in seconds.
        replies: what the models will do.
        reply: what the model did that was asked last.
        hanging: set when a model hangs.
    """

    now: datetime
    random: Random
    queued_s: float = 0.0
    replies: deque[Reply] = field(default_factory=deque)
    reply: Reply = NO_REPLY
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        """Be the scene of the current task, and of the tasks that it starts."""
        _current.set(self)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def part(self, number: int) -> Scene:
        """A scene that begins at this time, beside others."""
        return Scene(self.now, Random(f"{self.random.random()} {number}"))

    def next_reply(self) -> Reply:
        """What the model does that is asked now."""
        self.reply = self.replies.popleft()
        self.wait(self.reply.seconds)
        return self.reply

    def new_id(self) -> str:
        """A ULID of this time, in lower case as llm's."""
        milliseconds = int(self.now.timestamp() * 1000)
        tail = self.random.getrandbits(_RANDOM_BITS)
        return str(ULID.from_int((milliseconds << _RANDOM_BITS) + tail)).lower()


_current: ContextVar[Scene] = ContextVar("datasette_llm_demo_scene")


def current_scene() -> Scene:
    """The scene of the current task."""
    return _current.get()


class SceneModel(llm.AsyncModel):
    """A model that does what the current scene says."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str, None]:
        """Play the next reply, without its pauses."""
        scene = current_scene()
        reply = scene.next_reply()
        if reply.error is not None:
            raise reply.error
        yield reply.text
        if reply.hangs:
            scene.hanging.set()
            await asyncio.Event().wait()
        for number, (name, arguments) in enumerate(reply.tools.items()):
            call_id = f"call_{scene.new_id()[-8:]}{number}"
            response.add_tool_call(llm.ToolCall(name, dict(arguments), tool_call_id=call_id))
        response.set_usage(input=reply.input_tokens, output=reply.output_tokens)
        response.response_json = {"finish_reason": reply.finish_reason}


class PastRecorder(Recorder):
    """A recorder whose rows have the times, ids and durations of the scenes."""

    def __init__(self, datasette: Datasette) -> None:
        super().__init__(datasette, lambda: timestamp(current_scene().now))
        self._ids: dict[str, str] = {}
        self._began: dict[str, datetime] = {}

    async def commit(self, request: RequestStarted) -> bool:
        """As the recorder's."""
        scene = current_scene()
        waited_s = None if request.waited_s is None else scene.queued_s
        scene.wait(waited_s or 0)
        self._began[request.id] = scene.now
        return await super().commit(self._dated(request)._replace(waited_s=waited_s))

    def finish(
        self,
        request: RequestFinished,
        *,
        model_id: str,
        price: PriceSettings | None,
        exact_price: bool,
        content: Content | None = None,
        started: RequestStarted | None = None,
    ) -> None:
        """As the recorder's."""
        scene = current_scene()
        first_s = None if request.first_chunk_s is None else scene.reply.first_s
        finished = request._replace(
            id=self._id(request.id),
            duration_s=(scene.now - self._began.pop(request.id, scene.now)).total_seconds(),
            first_chunk_s=first_s,
        )
        if content is not None:
            content = _of_call(finished.id, content)
        super().finish(
            finished,
            model_id=model_id,
            price=price,
            exact_price=exact_price,
            content=content,
            started=started and self._dated(started),
        )
        scene.wait(scene.reply.pause_s)

    def never_sent(self, started: RequestStarted, finished: RequestFinished) -> None:
        """As the recorder's."""
        dated = self._dated(started)
        super().never_sent(dated, finished._replace(id=dated.id))

    def _dated(self, request: RequestStarted) -> RequestStarted:
        return request._replace(
            id=self._id(request.id),
            group_id=request.group_id and self._id(request.group_id),
            chain_id=request.chain_id and self._id(request.chain_id),
            conversation_id=request.conversation_id and self._id(request.conversation_id),
            prompt_id=request.prompt_id and self._id(request.prompt_id),
        )

    def _id(self, given: str) -> str:
        """The id of the past that stands for one of the present."""
        if given not in self._ids:
            self._ids[given] = current_scene().new_id()
        return self._ids[given]


def _of_call(call_id: str, content: Content) -> Content:
    def statements() -> list[tuple[str, Mapping[str, Any]]]:
        return [(sql, {**values, "call_id": call_id}) for sql, values in content.statements()]

    return Content(statements, content.weight)

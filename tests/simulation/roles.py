"""The callers and the readers of a scenario."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from datasette_llm import GroupClosedError

from .facts import Actor, Run
from .scenarios import Reader
from .trace import Trace

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


# The key that callers pass, which is for the requested model only.
KEY = "the key of the caller"


class BodyError(RuntimeError):
    """An error of the body of a group."""


def begin(trace: Trace, model: Any) -> None:
    """Start every interaction of the scenario."""
    trace.model = model
    for run in list(trace.runs):
        trace.act(f"caller {run.number}", "caller", run, _Caller(trace, run, model).act)


class _Caller:
    def __init__(self, trace: Trace, run: Run, model: Any) -> None:
        self._trace = trace
        self._run = run
        self._model = model
        self._text = f"interaction {run.number}"

    async def act(self, actor: Actor) -> Any:
        interaction = self._run.interaction
        if interaction.late:
            await self._trace.pauses.wait(f"{actor.name} begins")
        return await getattr(self, f"_{interaction.kind}")(actor)

    async def _prompt(self, actor: Actor) -> Any:
        response = await self._prompted(actor, self._model.prompt)
        self._share(response)
        return response

    async def _reply(self, actor: Actor) -> Any:
        response = await self._prompted(actor, self._model.prompt)
        actor.response, actor.began = response, self._trace.moment()
        try:
            reply = await response.reply("and then?", stream=self._run.interaction.stream)
        finally:
            actor.response = None
        self._share(reply)
        return reply

    async def _turns(self, actor: Actor) -> Any:
        conversation = self._model.conversation()
        response = await self._prompted(actor, conversation.prompt)
        self._share(response)
        await self._trace.pauses.wait(f"the second turn of {actor.name}")
        actor.turn_busy = self._run.calls[-1].running
        return await conversation.prompt("and then?", stream=self._run.interaction.stream)

    async def _structured(self, actor: Actor) -> Any:
        return await self._model.structured(self._text, schema=SCHEMA)

    async def _chain(self, actor: Actor) -> Any:
        interaction, wait = self._run.interaction, self._trace.pauses.wait

        def sync() -> str:
            """A tool."""
            return "sync"

        def fails() -> str:
            """A tool."""
            raise ValueError("the tool failed")

        async def waits() -> str:
            """A tool."""
            await wait("a tool")
            return "waited"

        async def at_once() -> str:
            """A tool."""
            return "async"

        at_once.__name__ = "async"
        self._run.chain = chain = self._model.chain(
            self._text,
            tools=[sync, fails, waits, at_once],
            stream=interaction.stream,
            chain_limit=interaction.limit or None,
        )
        self._share(chain)

    async def _prompted(self, actor: Actor, prompt: Any) -> Any:
        """Prompt; until the first event the actor is busy with that call."""
        before = len(self._run.calls)
        coroutine = prompt(self._text, stream=self._run.interaction.stream, key=KEY)
        self._trace.loop.call_soon(self._note_call, actor, before)
        try:
            return await coroutine
        finally:
            actor.busy_with = None

    def _note_call(self, actor: Actor, before: int) -> None:
        if len(self._run.calls) > before and actor.outcome == "running":
            actor.busy_with = self._run.calls[before]

    def _share(self, subject: Any) -> None:
        for number, reader in enumerate(self._run.interaction.readers):
            name = f"reader {self._run.number}.{number} ({reader.how})"
            role = _Reading(self._trace, self._run, reader, subject)
            self._trace.act(name, reader.how, self._run, role.read)


class _Reading:
    def __init__(self, trace: Trace, run: Run, reader: Reader, subject: Any) -> None:
        self._trace = trace
        self._run = run
        self._reader = reader
        self._subject = subject

    async def read(self, actor: Actor) -> Any:
        if self._reader.late:
            await self._trace.pauses.wait(f"{actor.name} begins")
        if self._subject is not self._run.chain:
            actor.response = self._subject
        actor.began = self._trace.moment()
        if self._reader.how == "text":
            return await self._subject.text()
        if self._reader.how == "usage":
            return await self._subject.usage()
        return await self._followed(actor)

    async def _followed(self, actor: Actor) -> str | None:
        pieces = self._pieces()
        if self._reader.stops_after == 0 and self._reader.how != "anext":
            return None  # it reads nothing
        async for piece in pieces:
            actor.pieces.append(piece)
            if len(actor.pieces) == self._reader.stops_after:
                actor.dropped = True
                break
            if self._reader.slow:
                actor.pausing = True
                await self._trace.pauses.wait(f"{actor.name} reads on")
                actor.pausing = False
        if actor.dropped and self._reader.closes:
            await pieces.aclose()
        return None if actor.dropped else "".join(actor.pieces)

    async def _pieces(self) -> AsyncIterator[str]:
        """The texts, by the reader's method."""
        subject, how = self._subject, self._reader.how
        if how == "for":
            async with contextlib.aclosing(subject.__aiter__()) as chunks:
                async for chunk in chunks:
                    yield chunk
        elif how == "events":
            async with contextlib.aclosing(subject.astream_events()) as events:
                async for event in events:
                    yield event.chunk if event.type == "text" else ""
        elif how == "anext":
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    yield await anext(subject)
        else:
            async with contextlib.aclosing(subject.responses()) as responses:
                async for response in responses:
                    yield await response.text() if how == "responses" else ""


async def in_group(trace: Trace, actor: Actor, group: Any) -> None:
    """The body of a group around the interactions."""
    trace.group = group
    try:
        async with group as model:
            begin(trace, model)
            try:
                await trace.pauses.wait("the end of the group's body")
                if trace.scenario.group.body == "raises":
                    raise BodyError("the body failed")
            finally:
                trace.group_left = trace.moment()
                trace.in_flight = [call for call in trace.calls if call.running]
    finally:
        trace.group_state = {
            "open calls": [call for call in trace.calls if call.running],
            "moment": trace.moment(),
        }
        try:
            await model.prompt("too late")
        except GroupClosedError:
            trace.group_state["closed"] = True

"""A local server with OpenAI's protocol for chats and completions that plays scripts.

    async with OpenAIServer() as server:
        write_model(llm_folder, server.url)  # llm now knows the model "wire"
        server.play(["Hel", gate, "lo", llm.Usage(5, 2)], [Refuse(429, "Slow down")])
        ...
        request = await server.received()  # waits for the first request
        assert request.key == "sk-..."
        assert await request.end() == "complete"

It lives in the event loop of the test. A script is
played from first to last, and holds
    strings: chunks of the text; bytes: sent as they are, an event of your own making;
    numbers: delays in seconds; events: waited for (one that is never set makes it hang);
    `llm.ToolCall`; `llm.Usage`, sent at the end, and in a stream only if it was asked for;
    `Refuse`, `Drop.CLOSE` and `Drop.RESET`, which end it;
    `Raw`: bytes in the place of an HTTP answer, after which nothing is added to it;
    `Cut`: so many bytes of the HTTP answer are sent, and no more, before it is dropped;
    `Trickle`: every byte of the HTTP answer is sent by itself.
The last two hold for the whole answer, and stand first.
"""

import asyncio
import json
import math
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus

import llm
import pytest

from .waiting import BOUND_S

KEPT_BYTES = 10_000  # of an answer that was sent

# The connection goes down: by a close before the answer's end, or with a reset.
Drop = Enum("Drop", ["CLOSE", "RESET"])


@dataclass
class Refuse:
    """An HTTP error; once the answer streams, an error event. `{key}` becomes the key sent."""

    status: int
    message: str = "No"
    # openai's client would try again by itself after a 429 or 500.
    headers: dict = field(default_factory=lambda: {"x-should-retry": "false"})


@dataclass
class Raw:
    """Bytes that are sent in place of an HTTP answer."""

    data: bytes


@dataclass
class Cut:
    """Only the first bytes of the HTTP answer are sent, its status line and headers included."""

    size: int
    how: Drop = Drop.CLOSE


@dataclass
class Trickle:
    """The HTTP answer comes byte by byte, with so many seconds between them."""

    pause_s: float


class _CutHere(Exception):  # noqa: N818  # no error, but the end of a script
    """The end of a `Cut`."""


@dataclass
class Received:
    """A request. The outcome is complete, refused, dropped or client gone; else running.

    What was `sent` is the HTTP answer from its first byte on, of a long one the beginning.
    """

    headers: dict
    body: dict
    outcome: str = "running"
    sent: bytes = field(default=b"", repr=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def key(self):
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def text(self):
        """The first message or the prompt."""
        if "messages" in self.body:
            return self.body["messages"][0]["content"]
        return self.body.get("prompt")

    @property
    def is_completion(self):
        """Whether it came to the older endpoint for completions."""
        return "prompt" in self.body

    async def end(self):
        """Wait for the answer's end; returns its outcome."""
        async with asyncio.timeout(BOUND_S):
            await self.ended.wait()
        return self.outcome


class OpenAIServer:
    """The server: `url` goes into llm's `api_base`, `requests` has all that came, in order.

    With `lingers` a connection stays open after a whole answer, and carries further requests.
    `connections` says how many there were, `open` how many are open, and `busy` how many of them
    carry a request that has not been answered.
    """

    def __init__(self, *, lingers=False):
        self.requests = []
        self.open = self.busy = 0
        self._lingers = lingers
        self._scripts_for = {}
        self._scripts = (["Hello"],)
        self._arrival = asyncio.Condition()
        self._connections = []

    def play(self, *scripts):
        """Set what is answered: a script for each request in turn, the last for all others."""
        self._scripts = scripts

    def play_for(self, text, *scripts):
        """As `play`, for the requests whose conversation begins with this text."""
        self._scripts_for[text] = scripts

    def requests_for(self, text):
        """The requests whose conversation begins with a text."""
        return [request for request in self.requests if request.text == text]

    async def received(self, number=0, text=None):
        """A request by its number, from 0, of all or of a text; waits until it is there."""

        def those():
            return self.requests if text is None else self.requests_for(text)

        async with asyncio.timeout(BOUND_S), self._arrival:
            await self._arrival.wait_for(lambda: len(those()) > number)
        return those()[number]

    @property
    def connections(self):
        return len(self._connections)

    async def idle(self):
        """Wait until no connection carries a request."""
        async with asyncio.timeout(BOUND_S), self._arrival:
            await self._arrival.wait_for(lambda: not self.busy)

    async def closed(self):
        """Wait until no connection is open."""
        async with asyncio.timeout(BOUND_S), self._arrival:
            await self._arrival.wait_for(lambda: not self.open)

    async def __aenter__(self):
        def connected(*streams):
            self._connections.append(asyncio.create_task(self._serve(*streams)))

        self._server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        for end in await asyncio.gather(*self._connections, return_exceptions=True):
            if isinstance(end, Exception):
                raise end  # a mistake in a script, or in here
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                    while head is not None:
                        head = await self._serve_one(head, reader, writer)
                finally:
                    writer.close()
                    await writer.wait_closed()
        finally:
            self.open -= 1
            async with self._arrival:
                self._arrival.notify_all()

    async def _serve_one(self, head, reader, writer):
        """Answer a request; returns the head of the next one on the connection, or None."""
        self.busy += 1
        try:
            request = await _read(head, reader)
            script = self._script_for(request)
            async with self._arrival:
                self.requests.append(request)
                self._arrival.notify_all()
            following = await _answer(request, script, reader, writer, self._lingers)
        finally:
            self.busy -= 1
            async with self._arrival:
                self._arrival.notify_all()
        return await following if following is not None else None

    def _script_for(self, request):
        scripts, before = self._scripts, len(self.requests)
        if request.text in self._scripts_for:
            scripts, before = self._scripts_for[request.text], len(self.requests_for(request.text))
        return scripts[min(before, len(scripts) - 1)]


async def _read(head, reader):
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:-2])}
    return Received(headers, json.loads(await reader.readexactly(int(headers["content-length"]))))


async def _answer(request, script, reader, writer, lingers):
    """Play a script; what comes next on the connection, or None where it ends."""
    playing = asyncio.create_task(_Answer(request, writer, lingers).play(script))
    # The client sends no more before it has the answer, so this is its end or its next request.
    following = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    goes_on = False
    try:
        await asyncio.wait([playing, following], return_when=asyncio.FIRST_COMPLETED)
        request.outcome = await playing if playing.done() else "client gone"
        goes_on = lingers and request.outcome in ("complete", "refused")
    except ConnectionError:
        request.outcome = "client gone"
    finally:
        playing.cancel()
        if not goes_on:
            following.cancel()
            await asyncio.gather(playing, following, return_exceptions=True)
        request.ended.set()
    return following if goes_on else None


class _Answer:
    """The answer to one request: sent piece by piece if it streams, else put together."""

    def __init__(self, request, writer, lingers):
        self.request, self.writer = request, writer
        self.connection = "keep-alive" if lingers else "close"
        self.pending, self.cut, self.left, self.trickle = bytearray(), None, math.inf, None
        self.raw = False
        self.streams, self.began = request.body.get("stream", False), False
        self.texts, self.calls, self.usage = [], [], None

    async def play(self, script):
        try:
            outcome = await self.played(script)
            await self.flush()
        except _CutHere:
            outcome = self.drop(self.cut.how)
        return outcome

    async def played(self, script):
        for item in script:
            match item:
                case str():
                    self.texts.append(item)
                    self.delta({"content": item})
                case bytes():
                    self.send(item)
                case asyncio.Event():
                    await item.wait()
                case int() | float():
                    await asyncio.sleep(item)
                case llm.ToolCall():
                    self.call(item.tool_call_id, item.name, json.dumps(item.arguments))
                case llm.Usage(input=given, output=made):
                    counts = {"prompt_tokens": given, "completion_tokens": made}
                    self.usage = counts | {"total_tokens": given + made} | (item.details or {})
                case Refuse():
                    return self.refuse(item)
                case Raw():
                    self.raw = True
                    self.write(item.data)
                case Cut():
                    self.cut, self.left = item, item.size
                case Trickle():
                    self.trickle = item
                case Drop():
                    return self.drop(item)
                case _:
                    raise TypeError(f"A script cannot hold {item!r}")
            await self.flush()
        return "dropped" if self.raw else self.finish("tool_calls" if self.calls else "stop")

    def drop(self, how):
        if how is Drop.RESET:
            raw = self.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "dropped"

    def write(self, data):
        self.pending += data

    async def flush(self):
        data = bytes(self.pending)
        self.pending.clear()
        if self.cut is not None:
            data = data[: self.left]
            self.left -= len(data)
        if len(self.request.sent) < KEPT_BYTES:
            self.request.sent += data
        for piece in (
            [data] if self.trickle is None else [data[n : n + 1] for n in range(len(data))]
        ):
            self.writer.write(piece)
            await self.writer.drain()
            if self.trickle is not None:
                await asyncio.sleep(self.trickle.pause_s)
        if not self.left:
            raise _CutHere

    def call(self, call_id, name, arguments):
        index, call = len(self.calls), {"id": call_id, "type": "function"}
        self.calls.append(call | {"function": {"name": name, "arguments": arguments}})
        self.delta({"tool_calls": [call | {"index": index, "function": {"name": name}}]})
        for part in (arguments[:5], arguments[5:]):
            self.delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]})

    def refuse(self, item):
        message = item.message.replace("{key}", self.request.key)
        error = {"error": {"message": message, "code": str(item.status)}}
        if self.began:
            self.event(error)
            self.send(b"")
        else:
            self.whole(error, item.status, item.headers)
        return "refused"

    def finish(self, reason):
        if self.streams:
            self.delta({}, reason)
            if self.usage and self.request.body.get("stream_options", {}).get("include_usage"):
                self.event({"choices": [], "usage": self.usage})
            self.send(b"data: [DONE]\n\n")
            self.send(b"")
        elif self.began:
            self.send(b"")  # the script's own bytes are all of it
        else:
            text = "".join(self.texts)
            message = {"role": "assistant", "content": text, "tool_calls": self.calls or None}
            answer = {"text": text} if self.request.is_completion else {"message": message}
            choices = [answer | {"index": 0, "finish_reason": reason}]
            uncounted = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
            self.whole({"choices": choices, "usage": self.usage or uncounted})
        return "complete"

    def delta(self, delta, reason=None):
        if self.streams:
            completion = {"text": delta.get("content", "")}
            chunk = completion if self.request.is_completion else {"delta": delta}
            self.event({"choices": [chunk | {"index": 0, "finish_reason": reason}]})

    def event(self, content):
        self.send(b"data: %s\n\n" % json.dumps(content).encode())

    def send(self, data):
        if not self.began:
            self.began = True
            self.head({"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        self.write(b"%x\r\n%s\r\n" % (len(data), data))

    def whole(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.head({"content-length": len(body)} | (headers or {}), status)
        self.write(body)

    def head(self, headers, status=200):
        headers = {"content-type": "application/json", "connection": self.connection} | headers
        known = status in set(HTTPStatus)  # 529 is not
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase if known else 'Unknown'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.write("\r\n".join([*lines, "", ""]).encode())


def write_model(folder, url, **settings):
    """Add a model of this server to llm's extra-openai-models.yaml, by default "wire".

    The settings are those of an entry of that file.
    """
    path = folder / "extra-openai-models.yaml"
    models = json.loads(path.read_text("utf-8")) if path.exists() else []
    model = {"model_id": "wire", "model_name": "gpt-wire", "api_base": url, "api_key_name": "wire"}
    models.append(model | {"supports_tools": True, "supports_schema": True} | settings)
    path.write_text(json.dumps(models), "utf-8")  # which is YAML too


@pytest.fixture
async def server(monkeypatch):
    """A server that no model of llm uses yet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with OpenAIServer() as server:
        yield server

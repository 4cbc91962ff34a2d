"""The models of the soak, which speak HTTP to its provider over connections that they keep.

llm's own OpenAI models make a client for each request, which takes longer than all the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import llm


class ProviderError(Exception):
    """An HTTP error of the provider's client."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.response = httpx2.Response(status, headers=headers)


class Connections:
    """The connections to the provider that are open and not in use.

    Attributes:
        seen: events by name of a prompt, set once the provider has it.
    """

    def __init__(self, port: int) -> None:
        self.seen: dict[str, asyncio.Event] = {}
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def count(self) -> int:
        """The number of requests that the provider received."""
        reader, writer = await self.take()
        writer.write(b"GET /count HTTP/1.1\r\n\r\n")
        _, headers = await _head(reader)
        number = int(await reader.readexactly(int(headers["content-length"])))
        self.keep(reader, writer)
        return number

    async def take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._idle:
            return self._idle.pop()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._idle.append((reader, writer))

    async def close(self) -> None:
        """Close those that are not in use."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            await writer.wait_closed()


class Wire(llm.AsyncModel):
    """A model of the provider."""

    can_stream = True
    supports_tools = True

    def __init__(self, model_id: str, connections: Connections) -> None:
        self.model_id = model_id
        self._connections = connections

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[str, None]:
        text = _first_text(prompt)
        steps = text.split()
        if self.model_id == "spare":
            text = "spare ok"
        elif "tool" in steps:  # it calls the tool, and then does what comes after the word
            done = bool(prompt.tool_results)
            text = " ".join([steps[0], *steps[steps.index("tool") + 1 :]]) if done else "first ok"
            if not done:
                response.add_tool_call(llm.ToolCall(name="look", arguments={}))
        async for chunk in self._request(text):
            yield chunk

    async def _request(self, text: str) -> AsyncGenerator[str, None]:
        body = json.dumps({"prompt": text})
        reader, writer = await self._connections.take()
        whole = False
        try:
            writer.write(f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            status, headers = await _head(reader)
            seen = self._connections.seen.get(text.split()[0])
            if seen is not None:
                seen.set()
            if status != 200:
                await reader.readexactly(int(headers["content-length"]))
                whole = True
                raise ProviderError(status, headers)
            while chunk := await _chunk(reader):
                yield chunk
            whole = True
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("The provider has gone") from error
        finally:
            if whole:
                self._connections.keep(reader, writer)
            else:
                writer.transport.abort()


def _first_text(prompt: Any) -> str:
    first = prompt.messages[0].parts[0]
    return str(first.text)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers


async def _chunk(reader: asyncio.StreamReader) -> str:
    """The next chunk; empty at the end."""
    size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
    return (await reader.readexactly(size + 2))[:-2].decode()

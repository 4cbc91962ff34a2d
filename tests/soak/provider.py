"""A provider in a process of its own, which counts its HTTP requests.

    python -m tests.soak.provider

prints its port, and serves until its input ends. A prompt is a unique name and words, one for each
request of that name in turn; the last word is for all further requests.

    ok      three chunks                  again    an error 500
    busy    an error 429 that asks for a millisecond
    gone    the connection is closed      torn     the same after the first chunk
    mute    no chunk, for ever            half     one chunk, and no more

`GET /count` returns the number of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter

CHUNKS = (b"Hello ", b"from the ", b"provider")
END = b"0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(status: bytes, body: bytes, header: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + header + length + body


ANSWERS = {
    "ok": HEAD + b"".join(map(framed, CHUNKS)) + END,
    "again": plain(b"500 Internal Server Error", b"no"),
    "busy": plain(b"429 Too Many Requests", b"no", b"retry-after-ms: 1\r\n"),
    "gone": b"",
    "torn": HEAD + framed(CHUNKS[0]),
    "mute": HEAD,
    "half": HEAD + framed(CHUNKS[0]),
}
ENDS_CONNECTION = {"gone", "torn"}


class Provider:
    """Counts and answers."""

    def __init__(self) -> None:
        self.requests = 0
        self._before: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while await self._answer(reader, writer):
                    pass
            finally:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if head.startswith("GET /count"):
            writer.write(plain(b"200 OK", json.dumps(self.requests).encode()))
            return True
        length = next(line for line in head.split("\r\n") if line.startswith("Content-Length: "))
        body = json.loads(await reader.readexactly(int(length.split()[1])))
        what = self._next(body["prompt"])
        writer.write(ANSWERS[what])
        await writer.drain()
        return what not in ENDS_CONNECTION

    def _next(self, prompt: str) -> str:
        self.requests += 1
        name, *steps = prompt.split()
        number = 0
        if len(steps) > 1:
            number = self._before[name]
            self._before[name] += 1
        return steps[min(number, len(steps) - 1)]


async def main() -> None:
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, backlog=1_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())

"""A server with OpenAI's protocol in a process of its own, for measuring clients.

    python -m tests.benchmarks.wire_server [CERTIFICATE KEY]

prints its port, answers every request on a kept connection with the same stream, tells at
`GET /connections` how many connections there were, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

CHUNKS = 40
_CHOICE = {"index": 0, "finish_reason": None}
_EVENTS = [
    {"choices": [_CHOICE | {"delta": {"content": f"chunk {number} "}}]} for number in range(CHUNKS)
]
_EVENTS.append({"choices": [_CHOICE | {"delta": {}, "finish_reason": "stop"}]})
_EVENTS.append(
    {
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 9},
    }
)
_ABOUT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_SENT = [b"data: %s\n\n" % json.dumps(_ABOUT | event).encode() for event in _EVENTS]
_SENT.append(b"data: [DONE]\n\n")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def main() -> None:
    connections = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    connections -= 1  # which asks for it
                    body = str(connections).encode()
                    size = b"content-length: %d\r\n\r\n" % len(body)
                    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + size + body)
                    break
                sizes = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
                await reader.readexactly(int(sizes[0].partition(b":")[2]))
                writer.write(_HEAD)
                for event in _SENT:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    tls = None
    if len(sys.argv) > 1:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*sys.argv[1:])
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, backlog=200)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())

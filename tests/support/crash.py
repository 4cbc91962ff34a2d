"""A program that prompts until it is killed, for the tests of what is left of it then.

    python -m tests.support.crash

reads commands, each a line of JSON, and answers each with a line of JSON:

    {"do": "start", "internal": path, "port": 1, "name": "r1", "prompts": 8, "at_once": 4}
        → {"pid": 123}
    {"do": "kill", "pid": 123} → {"killed": 123}
    {"do": "wait", "pid": 123} → {"status": 0}

`start` is a process of its own, forked from this one, which has already imported what takes
long. It starts a Datasette, makes the prompts (`name` and a number are text and purpose of
each), stops the Datasette, and ends. Only what was started here can be killed here.

Its model speaks to the provider at that port without llm's HTTP client, which takes a third of
a second for the first request of a process and 40 ms for each: the sooner a request leaves, the
more moments there are to be killed at.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncGenerator
from typing import Any

import genai_prices.data_snapshot
import llm
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.testing import registered


class Wire(llm.AsyncModel):
    """A model of the provider at a port of 127.0.0.1."""

    model_id = "wire"
    can_stream = True

    def __init__(self, port: int) -> None:
        self._port = port

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncGenerator[str, None]:
        body = json.dumps(
            {"stream": True, "messages": [{"role": "user", "content": prompt.prompt}]}
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write((head + body).encode())
            async for line in reader:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        finally:
            writer.close()


async def prompts(internal: str, port: int, name: str, count: int, at_once: int) -> None:
    with registered(Wire(port)):
        await _prompts(internal, name, count, at_once)


async def _prompts(internal: str, name: str, count: int, at_once: int) -> None:
    datasette = Datasette(memory=True, internal=internal)
    await datasette.invoke_startup()
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            text = f"{name}-{number}"
            model = await LLM(datasette).model("wire", purpose=text)
            await (await model.prompt(text)).text()

    await asyncio.gather(*[some() for _ in range(at_once)])
    await datasette.invoke_shutdown()


def start(command: dict[str, Any]) -> dict[str, Any]:
    pid = os.fork()
    if pid:
        return {"pid": pid}
    status = 1
    try:
        settings = [command[name] for name in ("internal", "port", "name", "prompts", "at_once")]
        asyncio.run(prompts(*settings))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # the commands that come next are not for this process


def main() -> None:
    llm.get_async_models()  # imports what the forked ones need
    genai_prices.data_snapshot.get_snapshot()
    children: set[int] = set()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "start":
                answer = start(command)
                children.add(answer["pid"])
            else:
                pid = command["pid"]
                children.remove(pid)
                if command["do"] == "kill":
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                answer = {"killed": pid} if command["do"] == "kill" else {"status": status}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

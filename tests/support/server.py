"""A Datasette in a process of its own, which tests speak to over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import sys

import httpx2

from .openai_server import BOUND_S


def alone(llm_folder):
    """The environment of a Datasette with our plugins alone, and without any key."""
    foreign = ("DATASETTE_", "LLM_", "OPENAI_")
    names = [n for n in os.environ if not n.startswith(foreign) and not n.endswith("_API_KEY")]
    return {name: os.environ[name] for name in names} | {
        "DATASETTE_LOAD_PLUGINS": "datasette-llm,datasette-secrets",
        "LLM_LOAD_PLUGINS": "",
        "LLM_USER_PATH": str(llm_folder),
        "NO_PROXY": "127.0.0.1",
    }


class Served:
    """A Datasette process; `url` is known once it takes requests."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self._url = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, environment, *options):
        """Start `datasette serve` on a free port; `ready()` waits for it, `kill()` ends it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "datasette", "serve", "--port", "0", *options),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process)

    @property
    def output(self):
        return "".join(self.lines)

    async def ready(self):
        async with asyncio.timeout(BOUND_S):
            self.url = await asyncio.shield(self._url)

    async def ended(self):
        """Wait for the process to end by itself."""
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait([self._reading])
            return await self.process.wait()

    async def kill(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    def client(self):
        return httpx2.AsyncClient(base_url=self.url, timeout=BOUND_S, trust_env=False)

    async def _read(self):
        async for line in self.process.stdout:
            self.lines.append(line.decode())
            running = re.search(r"Uvicorn running on (http://127\.0\.0\.1:\d+)", self.lines[-1])
            if running:
                self._url.set_result(running[1])
        if not self._url.done():
            self._url.set_exception(AssertionError(f"Datasette did not start:\n{self.output}"))


async def log_in(client, served):
    """Follow the link that `--root` prints for the administrator."""
    link = re.search(r"/-/auth-token\?token=\w+", served.output)
    response = await client.get(link[0])
    assert response.status_code == 302
    assert "ds_actor" in client.cookies

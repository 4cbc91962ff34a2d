"""The kinds of calls that a soak makes, and the expected counts of each."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasette_llm import LLM, ResponseCancelledError, ResponseTimeoutError, instance
from datasette_llm.calls.call import RunningCalls

from .account import Counts
from .provider import CHUNKS
from .wire import Connections, ProviderError

TEXT = b"".join(CHUNKS).decode()
# A tenth of the calls meet a fault, or are abandoned.
FAULTY = 0.1

CONFIG: dict[str, Any] = {
    "log": {"content": True},
    "default_model": "wire",
    "purposes": {
        "bare": {"log": {"content": False}},
        "limited": {"max_concurrency": 20},
        "held": {"max_concurrency": 1},
        "timed": {"idle_timeout": 2, "retries": 0},
        "fallback": {"fallbacks": ["spare"]},
    },
}


class WrongAnswerError(Exception):
    """A call returned an unexpected answer."""


@dataclass(frozen=True)
class World:
    """What calls need: the models and the connections to the provider."""

    models: LLM
    connections: Connections

    async def prompt(self, text: str, purpose: str | None = None) -> Any:
        return await (await self.models.model(purpose=purpose)).prompt(text)

    async def sent(self, name: str) -> None:
        """Wait until the provider has a prompt."""
        await self.connections.seen.setdefault(name, asyncio.Event()).wait()
        del self.connections.seen[name]

    async def queued(self, text: str) -> None:
        """Wait until a call waits at its concurrency limit."""
        calls = instance.of(self.models.datasette, RunningCalls)
        while not any(call._text == text and call.admitted.is_set() for call in calls):  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)


Run = Callable[[World, str], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of call: how it is made, and its expected counts."""

    name: str
    run: Run
    counts: Counts


def counts(
    requests: int, settled: int = 0, released: int = 0, unsent: int = 0, **rows: int
) -> Counts:
    return Counts(requests, Counter(rows), unsent, settled, released)


def reading(steps: str, purpose: str | None = None, error: type[Exception] | None = None) -> Run:
    """A prompt that is read; it has to return the text, or raise this error."""

    async def run(world: World, name: str) -> None:
        async def read() -> str:
            return str(await (await world.prompt(f"{name} {steps}", purpose)).text())

        await _check(read(), error)

    return run


def chaining(steps: str, error: type[Exception] | None = None) -> Run:
    def look() -> str:
        return "seen"

    async def run(world: World, name: str) -> None:
        model = await world.models.model()
        chain = model.chain(f"{name} tool {steps}", tools=[look])
        await _check(chain.text(), error, f"{TEXT} {TEXT}")

    return run


async def grouping(world: World, name: str) -> None:
    async with world.models.group() as model:
        prompts = [model.prompt(f"{name}-{number} ok") for number in range(3)]
        responses = await asyncio.gather(*prompts)
    for response in responses:
        await _check(response.text(), None)


async def leaving_a_group(world: World, name: str) -> None:
    try:
        async with world.models.group() as model:
            await asyncio.gather(*[model.prompt(f"{name}-{number} half") for number in range(2)])
            raise KeyError(name)
    except KeyError:
        pass


async def dropping(world: World, name: str) -> None:
    response = await world.prompt(f"{name} half")
    call = response.stream_state.producer
    chunks = aiter(response)
    await anext(chunks)
    await chunks.aclose()
    await call.closed.wait()
    await _check(response.text(), ResponseCancelledError)


async def cancelling_before_its_first_chunk(world: World, name: str) -> None:
    call = asyncio.create_task(world.prompt(f"{name} mute"))
    await world.sent(name)
    await _cancelled(call)


async def cancelling_its_reader(world: World, name: str) -> None:
    response = await world.prompt(f"{name} half")
    reader = asyncio.create_task(response.text())
    await asyncio.sleep(0)
    await _cancelled(reader)


async def cancelling_in_the_queue(world: World, name: str) -> None:
    text = f"{name} ok"
    call = asyncio.create_task(world.prompt(text, "held"))
    await world.queued(text)
    await _cancelled(call)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        raise WrongAnswerError("it was cancelled, and still running")


async def _check(
    reading: Awaitable[str], error: type[Exception] | None, expected: str = TEXT
) -> None:
    try:
        text = await reading
    except Exception as raised:
        if error is None or not isinstance(raised, error):
            raise
        return
    if error is not None or text != expected:
        raise WrongAnswerError(text)


GOOD = {
    Kind("read", reading("ok"), counts(1, settled=1, ok=1)): 50,
    Kind("read, without content", reading("ok", "bare"), counts(1, settled=1, ok=1)): 15,
    Kind("read, limited", reading("ok", "limited"), counts(1, settled=1, ok=1)): 20,
    Kind("chain", chaining("ok"), counts(2, settled=1, ok=2)): 10,
    Kind("group of three", grouping, counts(3, settled=3, ok=3)): 5,
}
FAULTS = (
    Kind("500, then well", reading("again ok"), counts(2, settled=1, error=1, ok=1)),
    Kind("429 twice, then well", reading("busy busy ok"), counts(3, settled=1, error=2, ok=1)),
    Kind("500", reading("again", error=ProviderError), counts(3, released=1, error=3)),
    Kind("drops, then well", reading("gone ok"), counts(2, settled=1, error=1, ok=1)),
    Kind("drops", reading("gone", error=ConnectionError), counts(3, released=1, error=3)),
    Kind("drops half-way", reading("torn", error=ConnectionError), counts(1, released=1, error=1)),
    Kind("500, fallback", reading("again", "fallback"), counts(4, settled=1, error=3, ok=1)),
    Kind("chain, 500", chaining("again", ProviderError), counts(4, released=1, ok=1, error=3)),
    Kind("hangs", reading("mute", "timed", ResponseTimeoutError), counts(1, released=1, error=1)),
    Kind(
        "hangs half-way",
        reading("half", "timed", ResponseTimeoutError),
        counts(1, released=1, error=1),
    ),
    Kind("cancelled", cancelling_before_its_first_chunk, counts(1, released=1, cancelled=1)),
    Kind("reader cancelled", cancelling_its_reader, counts(1, released=1, cancelled=1)),
    Kind("dropped", dropping, counts(1, released=1, cancelled=1)),
    Kind("group left", leaving_a_group, counts(2, released=2, cancelled=2)),
    Kind(
        "cancelled in the queue",
        cancelling_in_the_queue,
        counts(0, released=1, unsent=1, cancelled=1),
    ),
)
# Holds the only place of a limit while other calls wait for it.
HOLDER = Kind("holder", cancelling_its_reader, counts(1, released=1, cancelled=1))


def drawn(number: int, seed: int) -> Iterator[Kind]:
    """A number of random calls; the same for the same seed."""
    chance = random.Random(seed)
    good, weights = list(GOOD), list(GOOD.values())
    for _ in range(number):
        if chance.random() < FAULTY:
            yield chance.choice(FAULTS)
        else:
            yield chance.choices(good, weights)[0]

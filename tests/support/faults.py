"""Faults of providers, and checks that all sides agree about them.

A `Fault` is what the server does, and each of the `WAYS` is how a caller reads. The checks
compare what the caller, the hooks, the call log, the spans, the accountant and the provider saw of
a call, and look for leftovers. `tests/system/test_faults.py` combines them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm
import openai
import pytest
from datasette import hookimpl

from datasette_llm import (
    LLM,
    GroupError,
    IncompleteAnswerError,
    ProviderError,
    ResponseCancelledError,
    ResponseTimeoutError,
    WrappedAsyncModel,
    instance,
)
from datasette_llm.access.snapshot import SnapshotSource
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.limiter import LimiterRegistry

from .openai_server import BOUND_S, Cut, Drop, Raw, Received, Refuse, Trickle
from .plugins import Accountant, Observer
from .waiting import until

TEXT = "Hello you"
DOWN = openai.APIConnectionError
UNREADABLE = ProviderError
INCOMPLETE = IncompleteAnswerError
AGAIN: dict[str, str] = {}  # an HTTP error that the client may retry


NEVER_S = 3600  # longer than any test


@dataclass(frozen=True)
class Fault:
    """A fault of a provider.

    Attributes:
        scripts: its answers, one for each attempt; the last for all further ones.
        error: the error that the caller gets.
        retried: whether it is retried.
        begins: whether there is an event before it, in a stream.
        hangs: whether it never ends; then a timeout ends it, or else the caller.
        model: the model; "closed" is at a closed port.
        pauses: how long is waited before each further attempt, in seconds; None where it does
            not matter.
    """

    scripts: tuple[list[Any], ...]
    error: Any = DOWN
    retried: bool = True
    begins: bool = False
    hangs: bool = False
    model: str = "wire"
    pauses: tuple[float, ...] | None = None

    def attempts(self, retries: int, *, streams: bool) -> int:
        """The number of requests."""
        if not self.retried or (self.begins and streams):
            return 1
        return min(len(self.scripts), retries + 1) if self.heals else retries + 1

    @property
    def heals(self) -> bool:
        """Whether its last script is an answer."""
        return self.scripts[-1] == [TEXT]


ABORT = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}\n\n'
HOUR = {"retry-after": "3600"}
MID = {"begins": True}
LASTING = {"retried": False}
FAULTS = {
    "is not there": Fault(([],), model="closed"),
    "closes at once": Fault(([Cut(0)],)),
    "resets at once": Fault(([Cut(0, Drop.RESET)],)),
    "drops in its headers": Fault(([Cut(40)],)),
    "drops in the middle": Fault((["Hello", Drop.CLOSE],), **MID),
    "resets in the middle": Fault((["Hello", Drop.RESET],), **MID),
    "speaks no HTTP": Fault(([Raw(b"SSH-2.0-OpenSSH_9.2\r\n")],)),
    "sends no JSON": Fault(([b'data: {"choices"\n\n'],), UNREADABLE, **LASTING),
    "sends no JSON later": Fault((["Hello", b"data: {\n\n"],), UNREADABLE, **LASTING, **MID),
    "sends no UTF-8": Fault(([b"data: \xff\n\n"],), UNREADABLE, **LASTING),
    "gives up": Fault(([ABORT],), INCOMPLETE),
    "gives up later": Fault((["Hello", ABORT],), INCOMPLETE, **MID),
    "is done before it begins": Fault(([b"data: [DONE]\n\n", Drop.CLOSE],), INCOMPLETE),
    "sends an error in its stream": Fault(
        (["Hello", Refuse(500)],), openai.APIError, **LASTING, **MID
    ),
    "answers 401": Fault(([Refuse(401)],), openai.AuthenticationError, **LASTING),
    "answers 429": Fault(([Refuse(429, "No", AGAIN)],), openai.RateLimitError),
    "answers 429 for a second": Fault(
        ([Refuse(429, "No", {"retry-after": "1"})], [TEXT]), openai.RateLimitError, pauses=(1,)
    ),
    "answers 429 for an hour": Fault(
        ([Refuse(429, "No", HOUR)],), openai.RateLimitError, **LASTING, pauses=()
    ),
    "answers 500": Fault(([Refuse(500, "No", AGAIN)],), openai.InternalServerError),
    "answers 500 once": Fault(([Refuse(500, "No", AGAIN)], [TEXT]), openai.InternalServerError),
    "answers 529 twice": Fault(
        ([Refuse(529, "No", AGAIN)], [Refuse(529, "No", AGAIN)], [TEXT]),
        openai.InternalServerError,
    ),
    "hangs before": Fault(([NEVER_S],), hangs=True),
    "hangs in its headers": Fault(([Raw(b"HTTP/1.1 200 OK\r\n"), NEVER_S],), hangs=True),
    "hangs in the middle": Fault((["Hello", NEVER_S],), hangs=True, **MID),
    "trickles": Fault(([Trickle(0.02), TEXT],), hangs=True),
}


class Witnesses:
    """A plugin that has a recorder and an accountant for each text that is prompted."""

    __name__ = "witnesses"

    def __init__(self) -> None:
        self.recorders: dict[str | None, Observer] = defaultdict(Observer)
        self.accountants: dict[str | None, Accountant] = defaultdict(Accountant)

    @hookimpl
    def llm_prompt_context(self, model_id, prompt, purpose, actor):
        recorder = self.recorders[prompt].llm_prompt_context(model_id, prompt, purpose, actor)
        accountant = self.accountants[prompt].llm_prompt_context()

        @asynccontextmanager
        async def context(result):
            async with recorder(result), accountant(result):
                yield

        return context


@dataclass
class Sides:
    """A call as hooks, call log and traces see it; of spans the outcome and the error."""

    rows: list[dict[str, Any]]
    spans: list[tuple[str, str | None]]
    hook: Observer
    accountant: Accountant
    requests: list[Received]
    pauses: list[float]


@dataclass(frozen=True)
class Caller:
    """A caller of a model, known by the text of its prompt."""

    models: LLM
    model_id: str
    purpose: str
    text: str

    @property
    def who(self) -> dict[str, Any]:
        return {"purpose": self.purpose, "actor": {"id": self.text}}

    async def model(self) -> WrappedAsyncModel:
        return await self.models.model(self.model_id, **self.who)

    async def prompt(self, **kwargs: Any) -> Any:
        return await (await self.model()).prompt(self.text, **kwargs)


# How callers read. Each returns the text, or raises the error.


async def read_text(caller: Caller) -> str:
    return await again(await caller.prompt())


async def read_chunks(caller: Caller) -> str:
    response = await caller.prompt()
    try:
        text = "".join([chunk async for chunk in response])
    except Exception as error:
        await check_fails_again(response.text(), error)
        raise
    assert text == await response.text()
    return text


async def read_whole(caller: Caller) -> str:
    return await again(await caller.prompt(stream=False))


async def read_chain(caller: Caller) -> str:
    chain = (await caller.model()).chain(caller.text)
    try:
        return await chain.text()
    except Exception as error:
        await check_fails_again(chain.text(), error)
        raise


async def read_group(caller: Caller) -> str:
    """The response is not read, so that the group raises its failure."""
    response = None
    try:
        async with caller.models.group(caller.model_id, **caller.who) as model:
            response = await model.prompt(caller.text)
    except GroupError as error:
        assert response is not None
        [only] = error.exceptions
        await check_fails_again(response.text(), only)
        raise only from None
    return await response.text()


async def read_and_drop(caller: Caller) -> str:
    response = await caller.prompt()
    chunks = aiter(response)
    await anext(chunks)
    await chunks.aclose()
    if response.stream_state is not None:
        await response.stream_state.producer.closed.wait()
    return await again(response)


WAYS = (read_text, read_chunks, read_whole, read_chain, read_group, read_and_drop)


async def again(response: llm.AsyncResponse) -> str:
    """The text, read twice: a failure has to stay the same one (C5)."""
    try:
        text = await response.text()
    except Exception as error:
        await check_fails_again(response.text(), error)
        raise
    assert await response.text() == text
    return text


async def check_fails_again(reading: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        await reading
    assert caught.value is error


# All sides agree


def check_agreement(sides: Sides, text: str | None, error: BaseException | None) -> None:
    """All sides agree about a call.

    Args:
        sides: what each side saw.
        text: what the caller got; None if it failed.
        error: the caller's error; for a cancelled caller its CancelledError.
    """
    last = sides.rows[-1]
    assert [row["attempt"] for row in sides.rows] == [*range(1, len(sides.rows) + 1)]
    assert all(row["outcome"] and row["finished_at"] for row in sides.rows)
    assert all(row["outcome"] == "error" and row["error_type"] for row in sides.rows[:-1])
    assert sides.spans == [
        (row["outcome"], row["error_type"] if row["outcome"] == "error" else None)
        for row in sides.rows
    ]
    assert sides.accountant.reserved == 1
    if error is None:
        assert text == TEXT
        assert (last["outcome"], last["error_type"]) == ("ok", None)
        assert sides.hook.errors == []
        assert (sides.accountant.settled, sides.accountant.released) == (1, 0)
        return
    [seen] = sides.hook.errors
    if isinstance(error, asyncio.CancelledError):
        assert isinstance(seen, ResponseCancelledError)
    else:
        assert seen is error
    cancelled = isinstance(seen, ResponseCancelledError)
    assert last["outcome"] == ("cancelled" if cancelled else "error")
    assert last["error_type"] == type(seen).__name__
    assert (sides.accountant.settled, sides.accountant.released) == (0, 1)


def check_expectations(
    fault: Fault, setting: str, way: Any, sides: Sides, error: BaseException | None
) -> None:
    """The call went as the fault, the settings and the way of reading require."""
    dropped = way is read_and_drop and isinstance(error, ResponseCancelledError)
    streams = way is not read_whole
    begun = fault.begins and streams
    retries = 0 if setting == "no-retries" else 2
    attempts = fault.attempts(retries, streams=streams)
    if fault.hangs and setting != "timed":
        attempts = 1
        assert isinstance(error, asyncio.CancelledError) or dropped
    elif error is not None and not dropped:
        assert isinstance(error, ResponseTimeoutError if fault.hangs else fault.error)
    healed = fault.heals and attempts == len(fault.scripts)
    falls_back = setting == "fallback" and not begun and not fault.hangs and not healed
    assert (error is None) == (healed or falls_back) or dropped
    assert len(sides.rows) == attempts + falls_back
    models = [row["model_id"] for row in sides.rows]
    assert models == [fault.model] * attempts + ["spare"] * falls_back
    sent = 0 if fault.model == "closed" else attempts
    assert len(sides.requests) == sent + falls_back
    if fault.pauses is not None:
        assert sides.pauses == list(fault.pauses[: attempts - 1])


def open_sockets() -> set[str]:
    """The sockets of this process, servers and all; none are known off Linux."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return set()
    files = set()
    for each in folder.iterdir():
        with suppress(OSError):  # the one that this reads with
            files.add(str(each.readlink()))
    return {file for file in files if file.startswith("socket:")}


async def check_nothing_is_left(
    datasette: Any, servers: Any, before: tuple[set[Any], set[str]]
) -> None:
    """No task, call, connection, limiter permit or timer is left.

    Args:
        datasette: where the calls were made.
        servers: the providers.
        before: the tasks and the sockets before the calls.
    """
    tasks_before, sockets_before = before
    for server in servers:
        await server.idle()  # no connection is left in use
    await instance.of(datasette, SnapshotSource).catalogs.connections.aclose()
    for server in servers:
        await server.closed()
    async with asyncio.timeout(BOUND_S):
        while tasks := asyncio.all_tasks() - tasks_before - {asyncio.current_task()}:
            await asyncio.wait(tasks)
    # The thread that writes for event loops that have ended may just have one of its own.
    with contextlib.suppress(TimeoutError):
        await until(lambda: open_sockets() <= sockets_before)
    assert open_sockets() <= sockets_before
    assert instance.of(datasette, RunningCalls) == set()
    assert instance.of(datasette, LimiterRegistry).all_idle()
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
    ours = ("Deadline", "_cut_short", "cancel_unless_read")
    assert not [timer for timer in timers if any(name in repr(timer) for name in ours)]

"""The rows of the table: for each the work, done by llm alone and through datasette-llm."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from statistics import median
from typing import Any

import llm
from cryptography.fernet import Fernet
from datasette.app import Datasette
from datasette_secrets import get_database

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel, registered

from .measuring import Grid, Row, measured, timed

ROWS: dict[str, Callable[[bool], Awaitable[Row | Grid]]] = {}


def settle() -> None:
    """Import llm's plugins, and keep the garbage collector from going through what they brought.

    It does so at any time in a program of this size, for longer than most work here takes.
    """
    llm.get_async_models()
    gc.collect()
    gc.freeze()


def row(name: str) -> Callable[[Any], Any]:
    def add(measure: Callable[[str, bool], Awaitable[Row | Grid]]) -> object:
        ROWS[name] = lambda quick: measure(name, quick)
        return measure

    return add


@row("first-chunk")
async def first_chunk(name: str, quick: bool) -> Row:
    streaming = scripted("streaming", [0.05, "chunk "] * 5)

    async def raw() -> float:
        begun = time.perf_counter()
        return await first_and_rest(streaming.prompt("x"), begun)

    async def ours(datasette: Datasette) -> float:
        begun = time.perf_counter()
        model = await LLM(datasette).model("streaming")
        return await first_and_rest(await model.prompt("x"), begun)

    rounds = 2 if quick else 12
    async with running() as datasette, running(log=True) as recorded:
        with known(40, streaming):
            pair = await measured(raw, lambda: ours(datasette), rounds)
            await ours(recorded)  # not counted: the first row imports the table of prices
            recorded_s = median([await ours(recorded) for _ in range(rounds)])
    work = "time to first chunk of 5, 50 ms apart"
    beside = {"ours with the log on disk, ms": recorded_s * 1e3}
    return Row(name, work, pair, "ratio", 1.05, "ms", beside=beside)


async def first_and_rest(response: llm.AsyncResponse, begun: float) -> float:
    chunks = aiter(response)
    await anext(chunks)
    first_s = time.perf_counter() - begun
    async for _ in chunks:
        pass
    return first_s


@row("model")
async def model_by_id(name: str, quick: bool) -> Row:
    async with running() as datasette:
        with known(40, scripted()) as count:
            times = 20 if quick else 100
            pair = await measured(
                timed(_raw_model_and_text, times),
                timed(lambda: _model_and_text(datasette), times),
                5 if quick else 15,
            )
    work = f"model(id) + prompt + text, {count} models known"
    return Row(name, work, pair, "ratio", 0.5, "ms")


@row("many-models")
async def model_of_many(name: str, quick: bool) -> Row:
    times, rounds = (20, 5) if quick else (100, 20)
    async with running() as datasette:

        async def at(count: int) -> float:
            with known(count, scripted()):
                return await timed(lambda: _model_and_text(datasette), times)()

        pair = await measured(lambda: at(40), lambda: at(2_000), rounds)
    with known(2_000, scripted()):
        raw_s = await timed(_raw_model_and_text, 5)()
    return Row(
        name,
        "the same with 2,000 models known",
        pair,
        "ratio",
        1.2,
        "ms",
        raw_is="ours with 40 models known",
        beside={"raw llm with 2,000 models known, ms": raw_s * 1e3},
    )


async def _raw_model_and_text() -> str:
    return await llm.get_async_model("scripted").prompt("x").text()


async def _model_and_text(datasette: Datasette) -> str:
    model = await LLM(datasette).model("scripted")
    return await (await model.prompt("x")).text()


@row("prompt")
async def prompt(name: str, quick: bool) -> Row:
    raw = scripted()
    async with running() as datasette:
        with known(40, raw):
            model = await LLM(datasette).model("scripted")

        async def ours() -> str:
            return await (await model.prompt("x")).text()

        pair = await measured(
            timed(lambda: raw.prompt("x").text(), 100),
            timed(ours, 100),
            10 if quick else 150,
        )
    work = "added to one prompt, no hooks, no record"
    return Row(name, work, pair, "added", 60, "µs")


@row("models")
async def listing(name: str, quick: bool) -> Row:
    """The providers of llm's own models have a key, and so has each of the models added."""
    encryption_key = Fernet.generate_key()
    config = {"plugins": {"datasette-secrets": {"encryption-key": encryption_key.decode()}}}
    async with running(config) as datasette:
        with known(42, filler=lambda name: ScriptedModel(name, needs_key=name)) as count:
            everything = llm.get_models_with_aliases()
            providers = {(each.async_model or each.model).needs_key for each in everything} - {None}
            await _store_keys(datasette, sorted(providers), Fernet(encryption_key))
            listed = await LLM(datasette).models()
            if len(listed) != count:
                raise RuntimeError(f"models() shows {len(listed)}, which is not all of them")
            changes = await _changes(datasette)
            times = 20 if quick else 100
            pair = await measured(
                timed(_raw_models, times),
                timed(LLM(datasette).models, times),
                5 if quick else 25,
            )
            writes = await _changes(datasette) - changes
    return Row(
        name,
        f"models(), {count} models, keys in the encrypted table",
        pair,
        "median",
        0.4,
        "ms",
        raw_is="llm.get_async_models(), which does not look for keys",
        holds=writes == 0,
        beside={"writes": writes},
    )


async def _raw_models() -> None:
    llm.get_async_models()


async def _store_keys(datasette: Datasette, providers: list[str], fernet: Fernet) -> None:
    await get_database(datasette).execute_write_many(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, '')",
        [(_secret(name), fernet.encrypt(b"secret-key")) for name in providers],
    )


def _secret(needs_key: str) -> str:
    return needs_key.upper().replace("-", "_") + "_API_KEY"


async def _changes(datasette: Datasette) -> int:
    """The rows that were ever inserted, updated or deleted; all writing is by one connection."""
    database = get_database(datasette)
    changes: int = await database.execute_write_fn(lambda connection: connection.total_changes)
    return changes


@row("stall")
async def stall(name: str, quick: bool) -> Row:
    listing_s = 0.2 if quick else 5.0

    async def side(which: str) -> float:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.stall", which, str(listing_s)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), listing_s + 60)
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"The program that measures {which!r} failed; see above")
        return float(output)

    pair = await measured(lambda: side("raw"), lambda: side("ours"), 1 if quick else 3)
    started_s = await side("started")
    return Row(
        name,
        f"longest stall while a plugin needs {listing_s:g} s to list",
        pair,
        "longest",
        50,
        "ms",
        beside={"ours, in a Datasette that has started, ms": started_s * 1e3},
    )


@row("group")
async def group(name: str, quick: bool) -> Row:
    slow = scripted("slow", [0.05, "chunk "] * 5)
    async with running() as datasette:

        async def raw() -> None:
            await asyncio.gather(*[slow.prompt("x").text() for _ in range(20)])

        async def ours() -> None:
            async with LLM(datasette).group("slow") as model:
                await asyncio.gather(*[model.prompt("x") for _ in range(20)])

        with known(40, slow):
            pair = await measured(timed(raw), timed(ours), 2 if quick else 8)
    work = "20 responses of 250 ms in a group, under gather"
    return Row(name, work, pair, "median", 0.35, "s")


@row("memory")
async def memory(name: str, quick: bool) -> Row:
    prompts, rounds = (100, 2) if quick else (500, 3)
    whole = scripted("whole", FreshText(chunks=1))
    chunked = scripted("chunked", FreshText(chunks=64))
    async with running() as datasette:
        with known(40, whole, chunked):
            pair = await measured(
                lambda: _kept_by_llm(whole, prompts),
                lambda: _kept_by_group(datasette, whole, prompts),
                rounds,
            )
            raw_chunked = await _kept_by_llm(chunked, prompts)
            ours_chunked = await _kept_by_group(datasette, chunked, prompts)
    return Row(
        name,
        "kept per finished prompt in a group, 1 KB in and out",
        pair,
        "median",
        6,
        "KB",
        beside={
            "raw, the same text in 64 chunks, KB": raw_chunked / 1024,
            "ours, the same text in 64 chunks, KB": ours_chunked / 1024,
        },
    )


class FreshText:
    """A script of 1 KB that is new for each response, as a provider's is."""

    def __init__(self, chunks: int) -> None:
        self.repeats = 128 // chunks
        self.chunks = chunks
        self.numbers = itertools.count()

    def __iter__(self) -> Iterator[str]:
        for _ in range(self.chunks):
            yield f"{next(self.numbers):08d}" * self.repeats


async def _kept_by_llm(model: ScriptedModel, prompts: int) -> float:
    responses = []

    async def one(text: str) -> None:
        response = model.prompt(text)
        await response.text()
        responses.append(response)

    return await _kept(one, prompts)


async def _kept_by_group(datasette: Datasette, model: ScriptedModel, prompts: int) -> float:
    async with LLM(datasette).group(model.model_id) as wrapped:

        async def one(text: str) -> None:
            await (await wrapped.prompt(text)).text()

        return await _kept(one, prompts)


async def _kept(one: Callable[[str], Awaitable[None]], prompts: int) -> float:
    """The bytes that each prompt leaves behind."""
    tracemalloc.start()
    try:
        await one("warm up")
        before = _traced()
        for number in range(prompts):
            await one(f"{number:08d}" * 128)
        return (_traced() - before) / prompts
    finally:
        tracemalloc.stop()


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@asynccontextmanager
async def running(
    config: dict[str, Any] | None = None, log: bool = False
) -> AsyncIterator[Datasette]:
    """A Datasette that has started, until the block is left; what a log costs has its own rows."""
    given = config or {}
    plugins = given.get("plugins", {})
    ours = {"log": log} | plugins.get("datasette-llm", {})
    everything = given | {"plugins": plugins | {"datasette-llm": ours}}
    datasette = Datasette(memory=True, config=everything)
    await datasette.invoke_startup()
    try:
        yield datasette
    finally:
        await datasette.invoke_shutdown()


def scripted(model_id: str = "scripted", *scripts: Any) -> ScriptedModel:
    """A model that forgets its calls, which would else be part of what is measured."""
    model = ScriptedModel(model_id, *scripts)
    model.calls = deque(maxlen=1)  # type: ignore[assignment]  # all it does is append
    return model


@contextmanager
def known(
    count: int, *models: ScriptedModel, filler: Callable[[str], ScriptedModel] = ScriptedModel
) -> Iterator[int]:
    """Have llm know these models, and others beside its own until it knows `count`.

    Yields:
        How many it knows, which is more than `count` when llm alone brings more.
    """
    missing = count - len(llm.get_models_with_aliases()) - len(models)
    with registered(*models, *[filler(f"filler-{number}") for number in range(missing)]):
        yield len(llm.get_models_with_aliases())

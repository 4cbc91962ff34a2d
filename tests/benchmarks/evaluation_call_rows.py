"""The rows about evaluations: their throughput, and the first chunk in the playground."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from urllib.parse import urlencode

import uvicorn
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.console.navigation import PLAYGROUND
from datasette_llm.evaluation import run, store
from datasette_llm.evaluation.definition import Definition
from datasette_llm.evaluation.sources import read_cases
from datasette_llm.web import NDJSON

from .log_rows import on_disk, written
from .measuring import Pair, Row, Sample, measured, sampled
from .rows import first_and_rest, known, row, scripted

MODELS = ("scripted", "other")
AT_ONCE = 64
ROOT = {"id": "root"}
FIRST_CHUNK_S = 0.05
# The bar is 0.7 times the calls a second.
MOST_TIME = round(1 / 0.7, 2)


@row("evaluation-throughput")
async def evaluation_throughput(name: str, quick: bool) -> Row:
    cases = 200 if quick else 1_000
    texts = [f"Case {number}: is it a bird, a fish or a mammal?" for number in range(cases)]
    async with on_disk() as datasette:
        with known(40, *[scripted(each, [0, "It is a mammal"]) for each in MODELS]):
            sides = {"raw": _prompts_s, "ours": _evaluation_s}
            works = {side: partial(work, datasette, texts) for side, work in sides.items()}
            await sampled(works, 1)  # not counted: the first row imports the table of prices
            pair = await measured(works["raw"], works["ours"], 2 if quick else 15)
    ratios = [ours / raw for raw, ours in zip(pair.raw, pair.ours, strict=True)]
    return Row(
        name,
        f"{cases:,} cases by {len(MODELS)} models, {AT_ONCE} at once, the log on disk",
        pair,
        "ratio",
        MOST_TIME,
        "s",
        raw_is="prompts of the same texts, actor and tags without a group, the log on disk, too",
        beside={
            "calls a second, ours": len(MODELS) * cases / median(pair.ours),
            "calls a second, prompts": len(MODELS) * cases / median(pair.raw),
            "calls a second, ours to prompts": 1 / median(ratios),
        },
    )


async def _prompts_s(datasette: Datasette, texts: list[str]) -> float:
    """The seconds of prompts alone, until their rows are written."""
    llm, tags = LLM(datasette), {"evaluation": "01jd8x0000000000000000000"}
    models = [await llm.model(each, None, ROOT, tags=tags) for each in MODELS]
    left = iter([(model, text) for model in models for text in texts])

    async def some() -> None:
        for model, text in left:
            await (await model.prompt(text)).text()

    gc.collect()
    begun = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(AT_ONCE)])
    await written(datasette)
    return time.perf_counter() - begun


async def _evaluation_s(datasette: Datasette, texts: list[str]) -> float:
    """The seconds of a stored evaluation, until its answers and its calls' rows are written."""
    lines = "\n".join(json.dumps({"prompt": text}) for text in texts)
    raw = {"candidates": list(MODELS), "cases": {"jsonl": {"text": lines}}, "concurrency": AT_ONCE}
    definition, left_out = Definition.of(raw), Counter[str]()
    cases = read_cases(datasette, definition, left_out)
    evaluation = await store.create(datasette, definition, cases, left_out, ROOT)
    gc.collect()
    begun = time.perf_counter()
    await _run(datasette, evaluation)
    return time.perf_counter() - begun


async def _run(datasette: Datasette, evaluation: store.Evaluation) -> None:
    """Run an evaluation, until its answers and its calls' rows are written."""
    running = run.start(datasette, evaluation, ROOT)
    await running.ended()
    await written(datasette)
    if running.answered != evaluation.request_count:
        raise RuntimeError(f"{running.answered} answers are stored: {running.failure}")


@row("playground-first-chunk")
async def playground_first_chunk(name: str, quick: bool) -> Row:
    streaming = scripted("streaming", [FIRST_CHUNK_S, "chunk ", *[0.01, "chunk "] * 4])
    config = {"permissions": {"manage-llm": ROOT}}
    async with on_disk(config=config) as datasette, _served(datasette) as port:
        client = await Client.connected(datasette, port)
        with known(40, streaming):

            async def raw() -> float:
                return await first_and_rest(streaming.prompt("x"), time.perf_counter())

            async def called() -> float:
                begun = time.perf_counter()
                model = await LLM(datasette).model("streaming")
                return await first_and_rest(await model.prompt("x"), begun)

            async def after_the_last_row(sample: Sample) -> float:
                await written(datasette)  # a person waits for longer before the next prompt
                return await sample()

            sides = {
                "raw": raw,
                "called": partial(after_the_last_row, called),
                "ours": partial(after_the_last_row, partial(client.first_chunk_s, "streaming")),
            }
            await sampled(sides, 2)  # not counted: the first row imports the table of prices
            samples = {
                side: tuple(each)
                for side, each in (await sampled(sides, 3 if quick else 40)).items()
            }
        client.close()
    pair = Pair(samples["raw"], samples["ours"])
    return Row(
        name,
        f"first chunk in the playground, over HTTP, of a model that needs {FIRST_CHUNK_S:g} s",
        pair,
        "ratio",
        1.1,
        "ms",
        beside={
            "added, ms": pair.figure("added") * 1e3,
            "added by LLM(datasette) with the log on disk, without HTTP, ms": Pair(
                samples["raw"], samples["called"]
            ).figure("added")
            * 1e3,
        },
    )


class Client:
    """A browser's connection; what a client's library does would count as the server's time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cookie: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._cookie = cookie

    @classmethod
    async def connected(cls, datasette: Datasette, port: int) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return cls(reader, writer, datasette.client.actor_cookie(ROOT))

    async def first_chunk_s(self, model: str) -> float:
        """The seconds until the first chunk is there; reads the whole answer."""
        body = urlencode({"prompt": "x", "model": model})
        lines = (
            f"POST {PLAYGROUND} HTTP/1.1",
            "host: 127.0.0.1",
            f"cookie: ds_actor={self._cookie}",
            f"accept: {NDJSON}",
            "content-type: application/x-www-form-urlencoded",
            f"content-length: {len(body)}",
        )
        begun = time.perf_counter()
        self._writer.write("\r\n".join([*lines, "", body]).encode())
        await self._reader.readuntil(b'{"text": "chunk ')
        first_s = time.perf_counter() - begun
        answer = await self._reader.readuntil(b"\r\n0\r\n\r\n")
        if b'"ok": true' not in answer:
            raise RuntimeError(f"The playground ends with {answer.decode()}")
        return first_s

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def _served(datasette: Datasette) -> AsyncIterator[int]:
    """The port of a server with this Datasette."""
    server = uvicorn.Server(
        uvicorn.Config(datasette.app(), host="127.0.0.1", port=0, log_level="warning")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving

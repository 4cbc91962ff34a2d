"""Providers that fail over HTTP, in every way that they do: all sides see the same of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import socket
import ssl
import weakref
from collections import defaultdict
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from datasette_llm import (
    LLM,
    IncompleteAnswerError,
    ProviderError,
    ResponseCancelledError,
    ResponseTimeoutError,
)
from datasette_llm.calls import retry, task
from datasette_llm.log.recorder import Recorder
from datasette_llm.telemetry import registry as names
from datasette_llm.telemetry import spans as telemetry

from ..support.faults import (
    FAULTS,
    TEXT,
    WAYS,
    Caller,
    Fault,
    Sides,
    Witnesses,
    check_agreement,
    check_expectations,
    check_nothing_is_left,
    open_sockets,
    read_and_drop,
    read_chain,
    read_text,
)
from ..support.openai_server import BOUND_S, Cut, Drop, OpenAIServer, Raw, Refuse, Trickle


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """llm makes a client for each request, which reads all certificates of the machine: 40 ms."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **kwargs: context)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def pauses(monkeypatch):
    """The waits before retries, by prompt text; none takes any time."""
    made = defaultdict(list)

    async def sleep(delay, *args):
        made[task._current.get()._text].append(round(delay, 3))
        await asyncio.sleep(0)

    monkeypatch.setattr("datasette_llm.calls.retry.sleep", sleep)
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0)
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0.01)
    return made


@pytest.fixture
def spans(monkeypatch):
    """The spans that ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer(telemetry.SCOPE))
    monkeypatch.setattr(telemetry, "is_traced", lambda: True)
    return exporter.get_finished_spans


@contextmanager
def note_on_failure(*what):
    """Add a note to an assertion that fails."""
    try:
        yield
    except AssertionError as error:
        error.add_note(", ".join(map(str, what)))
        raise


class Site:
    """A Datasette with three endpoints: a failing server, a working one, and a closed port."""

    def __init__(self, datasette, server, spare, witnesses, spans, pauses):
        self.datasette, self.server, self.spare = datasette, server, spare
        self.models = LLM(datasette)
        self.witnesses, self.spans, self.pauses = witnesses, spans, pauses
        self._numbers = itertools.count()

    async def run(self, fault, setting, ways=WAYS):
        """Make a call in each of the ways against a fault, concurrently, and check all sides."""
        before = asyncio.all_tasks(), open_sockets()
        number = next(self._numbers)
        callers = {
            way: Caller(self.models, fault.model, setting, f"{number} {way.__name__}")
            for way in ways
        }
        ends = await asyncio.gather(*[self.meet(fault, way, callers[way]) for way in ways])
        await self.flush()
        for way, (text, error) in zip(ways, ends, strict=True):
            sides = await self.sides(callers[way].text)
            with note_on_failure(setting, way.__name__):
                check_agreement(sides, text, error)
                check_expectations(fault, setting, way, sides, error)
        await check_nothing_is_left(self.datasette, (self.server, self.spare), before)

    async def break_off(self, faults):
        """Have calls meet some faults at once, each of which cuts the answer off somewhere."""
        before = asyncio.all_tasks(), open_sockets()
        callers = [
            Caller(self.models, "wire", "no-retries", str(fault.scripts)) for fault in faults
        ]
        pairs = zip(faults, callers, strict=True)
        met = [self.meet(fault, read_text, caller) for fault, caller in pairs]
        ends = await asyncio.gather(*met)
        await self.flush()
        for caller, (text, error) in zip(callers, ends, strict=True):
            check_agreement(await self.sides(caller.text), text, error)
        await check_nothing_is_left(self.datasette, (self.server, self.spare), before)
        return ends

    async def meet(self, fault, way, caller):
        """Make a call; where it would not end, the caller cancels it once it has been sent."""
        self.server.play_for(caller.text, *fault.scripts)
        call = asyncio.create_task(way(caller))
        if (
            fault.hangs
            and caller.purpose != "timed"
            and not (way is read_and_drop and fault.begins)
        ):
            await self.server.received(text=caller.text)
            call.cancel()
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait([call])
        if call.cancelled():
            return None, asyncio.CancelledError()
        return (None, call.exception()) if call.exception() else (call.result(), None)

    async def sides(self, text):
        rows = await self.rows(text)
        telemetry.flush()
        requests = [span for span in self.spans() if span.name.startswith(names.CHAT)]
        spans = {span.attributes[names.CALL_ID]: span for span in requests}
        attributes = [spans[row["id"]].attributes for row in rows if row["id"] in spans]
        return Sides(
            rows,
            [(each[names.OUTCOME], each.get(names.ERROR_TYPE)) for each in attributes],
            self.witnesses.recorders[text],
            self.witnesses.accountants[text],
            self.server.requests_for(text) + self.spare.requests_for(text),
            self.pauses[text],
        )

    async def flush(self):
        """Flush the call log."""
        await Recorder.of(self.datasette).writer.flush()

    async def rows(self, text):
        internal = self.datasette.get_internal_database()
        query = "select * from llm_calls where actor_id = ? order by id"
        return [dict(row) for row in (await internal.execute(query, [text])).rows]


@pytest.fixture
async def site(make_datasette, plugin, spans, pauses, caplog):
    """A function that makes a Site whose purposes are the settings."""
    async with OpenAIServer(lingers=True) as server, OpenAIServer(lingers=True) as spare:
        server.play([TEXT])
        spare.play([TEXT])
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # and never listens
            port = closed.getsockname()[1]

            async def make(idle_timeout=10):
                urls = {"wire": server.url, "spare": spare.url}
                urls["closed"] = f"http://127.0.0.1:{port}/v1"
                config = {
                    "log": {"content": True},
                    "max_answer_chars": 60_000_000,
                    "endpoints": [{"model": name, "api_base": urls[name]} for name in urls],
                    "purposes": {
                        "no-retries": {"retries": 0},
                        "timed": {"timeout": 20, "idle_timeout": idle_timeout},
                        "short": {"timeout": 0.5},
                        "bounded": {"max_answer_chars": 1_000_000},
                        "fallback": {"fallbacks": ["spare"]},
                        "queued": {"max_concurrency": 1},
                    },
                }
                datasette = make_datasette(config)
                await datasette.invoke_startup()
                await (await (await LLM(datasette).model("spare")).prompt("warm")).text()
                return Site(datasette, server, spare, plugin(Witnesses()), spans, pauses)

            yield make
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


# A call in a queue of one has others before and behind it, each of which meets the fault.
SETTINGS = ("plain", "no-retries", "timed", "fallback", "queued")


@pytest.mark.parametrize("name", FAULTS)
async def test_all_sides_agree_and_nothing_is_left(site, name):
    fault = FAULTS[name]
    idle_timeout = 1.0 if fault.hangs else 10
    run = (await site(idle_timeout)).run
    for setting in SETTINGS:
        await run(fault, setting)


# Every byte of an answer may be the last

ANSWER = ["Hel", "lo", " you"]


@pytest.mark.parametrize("how", Drop)
async def test_truncated_answer_is_never_a_success(site, how):
    site = await site()
    site.server.play_for("whole", ANSWER)
    await Caller(site.models, "wire", "no-retries", "whole").prompt()
    [whole] = site.server.requests_for("whole")
    await whole.end()
    end = whole.sent.index(b'"stop"}]}') + len(b'"stop"}]}')  # the reason to finish is enough
    faults = [Fault(([Cut(size, how), *ANSWER],)) for size in range(len(whole.sent))]
    for first in range(0, len(faults), 60):
        some = faults[first : first + 60]
        for size, (_, error) in enumerate(await site.break_off(some), first):
            # With a reset the system may throw away what has arrived.
            assert error is not None or size >= end
            assert error is None or size < end or how is Drop.RESET


def delta(text, reason=None):
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]
    return b"data: %s\n\n" % json.dumps({"choices": choices}).encode()


# Nothing says how long the body is: it ends with the connection.
UNFRAMED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


async def test_truncated_chunked_answer_is_no_success(site):
    site = await site()
    whole = UNFRAMED + delta("Hello ") + delta("you", "stop") + DONE
    end = whole.index(DONE) - len(b"\n\n")  # the reason to finish is enough
    faults = [Fault(([Raw(whole[:size])],)) for size in range(len(whole) + 1)]
    for first in range(0, len(faults), 60):
        some = await site.break_off(faults[first : first + 60])
        for size, (_, error) in enumerate(some, first):
            assert (error is None) == (size >= end)


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (delta(TEXT, "stop") + DONE, True),
        (delta(TEXT, "stop"), True),
        (delta(TEXT) + DONE, True),  # there are servers that never give a reason,
        (delta(TEXT, "") + DONE, True),  # or an empty one from the beginning on
        (delta(TEXT, ""), False),
        (delta(TEXT), False),
        (b"", False),
        (b"<html>Please log in</html>", False),
    ],
)
async def test_stream_needs_one_mark_of_its_end(site, body, complete):
    site = await site()
    [(text, error)] = await site.break_off([Fault(([Raw(UNFRAMED + body)],))])
    if complete:
        assert text == TEXT
    else:
        assert isinstance(error, IncompleteAnswerError)
        assert ("broke off" in str(error)) == (TEXT.encode() in body)


async def test_answer_sent_byte_by_byte(site):
    site = await site()
    site.server.play_for("slowly", [Trickle(0), *ANSWER])
    assert await read_text(Caller(site.models, "wire", "plain", "slowly")) == "Hello you"
    await site.flush()
    check_agreement(await site.sides("slowly"), TEXT, None)


# What is long


LONG = ["x" * 65_536] * 800  # 50 MB


async def test_answer_of_50_mb_does_not_block_others(site):
    site = await site()
    site.server.play_for("long", LONG)
    before = asyncio.all_tasks(), open_sockets()
    response = await Caller(site.models, "wire", "plain", "long").prompt()
    for number in range(3):
        assert await read_text(Caller(site.models, "wire", "plain", f"{number}")) == TEXT
    assert response.running
    assert len(await response.text()) == 800 * 65_536
    await site.flush()
    [row] = (await site.sides("long")).rows
    assert row["outcome"] == "ok"
    contents = await site.datasette.get_internal_database().execute(
        "select max(length(content)) from llm_call_content"
    )
    assert contents.single_value() < 2_000_000
    site.witnesses.recorders.clear()
    there = weakref.ref(response)
    del response
    await check_nothing_is_left(site.datasette, (site.server, site.spare), before)
    gc.collect()
    assert there() is None


async def test_e12_answer_ends_at_its_bound(site):
    site = await site()
    site.server.play_for("long", LONG)
    before = asyncio.all_tasks(), open_sockets()
    with pytest.raises(ProviderError, match="max_answer_chars"):
        await read_text(Caller(site.models, "wire", "bounded", "long"))
    await site.flush()
    [row] = (await site.sides("long")).rows
    assert (row["outcome"], row["error_type"]) == ("error", "ProviderError")
    site.witnesses.recorders.clear()
    await check_nothing_is_left(site.datasette, (site.server, site.spare), before)


@pytest.mark.parametrize("way", [read_text, read_and_drop, read_chain])
async def test_endless_answer_ends_by_timeout_or_reader(site, way):
    site = await site()
    site.server.play_for("long", [item for _ in range(4_000) for item in ("x" * 65_536, 0.01)])
    before = asyncio.all_tasks(), open_sockets()
    call = asyncio.create_task(way(Caller(site.models, "wire", "short", "long")))
    await asyncio.wait([call])
    expected = ResponseCancelledError if way is read_and_drop else ResponseTimeoutError
    assert type(call.exception()) is expected
    await site.flush()
    sides = await site.sides("long")
    check_agreement(sides, None, call.exception())
    assert await sides.requests[0].end() == "client gone"
    await check_nothing_is_left(site.datasette, (site.server, site.spare), before)


# Retry-After


def sent(value):
    """A header's value; of a time from now on its date."""
    if not isinstance(value, timedelta):
        return value
    return format_datetime(datetime.now(UTC) + value, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({}, 0.5, 0.5),
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after-ms": "1500"}, 1.5, 1.5),
        ({"retry-after": timedelta(seconds=30)}, 1, 31),
        ({"retry-after": timedelta(hours=-1)}, 0.5, 0.5),
        ({"retry-after": "3600"}, None, None),
        ({"retry-after": timedelta(hours=1)}, None, None),
        ({"retry-after": "7", "x-should-retry": "false"}, None, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 529])
async def test_retry_after_is_read_from_the_wire(site, status, headers, low, high):
    site = await site()
    headers = {name: sent(value) for name, value in headers.items()}
    site.server.play_for("hi", [Refuse(status, "Slow down", headers)], [TEXT])
    caller = Caller(site.models, "wire", "plain", "hi")
    if low is None:
        with pytest.raises(openai.APIStatusError):
            await read_text(caller)
        assert site.pauses["hi"] == []
    else:
        assert await read_text(caller) == TEXT
        [pause] = site.pauses["hi"]
        assert low <= pause <= high
    assert len(site.server.requests_for("hi")) == 1 + (low is not None)

"""K2: the trees of spans, as a backend gets them from a real exporter over the wire."""

from __future__ import annotations

import asyncio
import json
import threading

import llm
import pytest
from datasette.telemetry_testing import otel_meter_provider, otel_provider
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode

from datasette_llm import LLM, ModelNotAllowedError, tagged
from datasette_llm.calls import retry
from datasette_llm.telemetry import spans as telemetry
from datasette_llm.testing import ScriptedModel

from ..support.openai_server import OpenAIServer
from ..support.otlp_receiver import OTLPReceiver
from ..support.plugins import Observer, raises

SDK_FIXTURES = (otel_provider, otel_meter_provider)

KEY = "sk-planted-0123456789"
USAGE = llm.Usage(
    input=1_000_000,
    output=100_000,
    details={
        "prompt_tokens_details": {"cached_tokens": 400_000},
        "completion_tokens_details": {"reasoning_tokens": 60_000},
    },
)
FIRST_CHUNK = b'data: {"id": "chatcmpl-1", "choices": []}\n\n'
PRICES = {"prices": {"scripted": {"input": 2, "output": 10, "cached_input": 1}}}
# 600,000 at 2 dollars a million, 400,000 at 1, and 100,000 at 10
DOLLARS = 1.2 + 0.4 + 1


@pytest.fixture
def backend(monkeypatch):
    """A backend that gets all spans; `await backend.all()` waits for those that have ended."""
    with OTLPReceiver() as receiver:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer(telemetry.SCOPE)
        monkeypatch.setattr(telemetry, "tracer", tracer)

        async def arrived():
            await asyncio.to_thread(telemetry.flush)
            await asyncio.to_thread(provider.force_flush)
            return receiver.tree()

        receiver.all = arrived
        receiver.tracer = tracer
        yield receiver
        provider.shutdown()


@pytest.fixture
def site(make_datasette, register_models, monkeypatch):
    """Datasette with scripted models, and the facade."""
    monkeypatch.setattr(retry, "WAIT_INITIAL_S", 0)
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0)

    def make(*models, **config):
        register_models(*models)
        return LLM(make_datasette({"log": False} | config))

    return make


async def test_k2_prompt(backend, site):
    """A prompt is a span below the caller's, with its tokens, its cost and its tags."""
    llms = site(ScriptedModel("scripted", ["a", USAGE]), log=PRICES)
    with backend.tracer.start_as_current_span("row"), tagged(job=12):
        response = await (await llms.model("scripted")).prompt("x", tags={"row": 5})
        await response.text()
    assert await backend.all() == ["row", "  chat scripted"]
    (span,) = backend.named("chat scripted")
    assert {name: span[name] for name in span.attributes if "usage" in name} == {
        "gen_ai.usage.input_tokens": 1_000_000,
        "gen_ai.usage.cache_read.input_tokens": 400_000,
        "gen_ai.usage.output_tokens": 100_000,
        "gen_ai.usage.reasoning.output_tokens": 60_000,
        "gen_ai.usage.cost": DOLLARS,
    }
    assert span["datasette_llm.cost"] == DOLLARS
    assert (span["datasette_llm.tags.job"], span["datasette_llm.tags.row"]) == (12, 5)


async def test_k2_public_price_comes_a_moment_later(backend, site):
    """A price of the public table ends the span later, at the time when the request ended."""
    llms = site(ScriptedModel("gpt-4o-mini", ["a", USAGE], needs_key="openai"))
    with backend.tracer.start_as_current_span("row"):
        await (await (await llms.model("gpt-4o-mini")).prompt("x", key=KEY)).text()
    await backend.all()
    (span,), (row,) = backend.named("chat gpt-4o-mini"), backend.named("row")
    assert span["datasette_llm.cost"] == span["gen_ai.usage.cost"] > 0
    assert span.ended_ns < row.ended_ns


def two_tools():
    calls = [
        llm.ToolCall(name="add", arguments={"a": 1}, tool_call_id="t1"),
        llm.ToolCall(name="fail", arguments={"a": 2}, tool_call_id="t2"),
    ]

    def add(a: int) -> int:
        return a + 1

    async def fail(a: int) -> int:
        raise LookupError("planted-error")

    return calls, [add, fail]


async def test_k2_chain_with_two_tools(backend, site):
    """The steps and the tools of a chain are children of its span, wherever they run."""
    calls, tools = two_tools()
    llms = site(ScriptedModel("scripted", calls, ["done"]))
    with backend.tracer.start_as_current_span("row"):
        chain = (await llms.model("scripted", purpose="sums")).chain(
            "x", tools=tools, tags={"n": 1}
        )
        await chain.text()
    assert await backend.all() == [
        "row",
        "  invoke_agent",
        "    chat scripted",
        "    execute_tool add",
        "    execute_tool fail",
        "    chat scripted",
    ]
    (agent,) = backend.named("invoke_agent")
    first, second = backend.named("chat scripted")
    (add,), (fail,) = backend.named("execute_tool add"), backend.named("execute_tool fail")
    chain_id = first["datasette_llm.call.id"]
    assert {each["datasette_llm.chain.id"] for each in (agent, first, second)} == {chain_id}
    assert agent["datasette_llm.chain.steps"] == 2
    assert (agent["datasette_llm.purpose"], agent["datasette_llm.tags.n"]) == ("sums", 1)
    assert first.ended_ns <= add.began_ns <= add.ended_ns <= second.began_ns
    assert (add["gen_ai.tool.call.id"], add["datasette_llm.outcome"]) == ("t1", "ok")
    assert (fail["gen_ai.tool.call.id"], fail["error.type"]) == ("t2", "LookupError")
    assert fail.status == StatusCode.ERROR.value
    assert "planted" not in str(backend.spans)


async def test_k2_retry_links_to_the_attempt_before(backend, site):
    llms = site(ScriptedModel("scripted", [ConnectionError("no")], ["a"]))
    response = await (await llms.model("scripted")).prompt("x")
    await response.text()
    assert await backend.all() == ["chat scripted", "chat scripted"]
    first, second = backend.named("chat scripted")
    assert second.links == [(first.id, {"datasette_llm.link": "retry"})]
    assert second["datasette_llm.prompt.id"] == response.id == first["datasette_llm.call.id"]
    assert second["datasette_llm.attempt"] == 2


async def test_k2_fallback_links_to_the_attempt_before(backend, site):
    failing, other = ScriptedModel("scripted", [ValueError("no")]), ScriptedModel("other", ["a"])
    llms = site(failing, other, fallbacks=["other"])
    await (await (await llms.model("scripted")).prompt("x")).text()
    assert await backend.all() == ["chat scripted", "chat other"]
    (first,), (second,) = backend.named("chat scripted"), backend.named("chat other")
    assert second.links == [(first.id, {"datasette_llm.link": "fallback"})]


async def test_k2_prompts_of_a_group(backend, site):
    llms = site(ScriptedModel("scripted", ["a"]))
    with backend.tracer.start_as_current_span("batch"):
        async with llms.group("scripted", tags={"job": 7}) as model:
            await model.prompt("x")
            await model.prompt("y")
            group_id = model.route.group_id
    assert await backend.all() == ["batch", "  chat scripted", "  chat scripted"]
    ties = {
        (span["datasette_llm.group.id"], span["datasette_llm.tags.job"])
        for span in backend.named("chat scripted")
    }
    assert ties == {(group_id, 7)}


@pytest.mark.parametrize("kind", ["prompt", "chain"])
async def test_k2_call_that_a_hook_blocks(backend, site, plugin, kind):
    """A blocked call is a span without length, which names who blocked it."""
    plugin(Observer("budget", before=raises(PermissionError("planted"))))
    model = await site(ScriptedModel("scripted", ["a"])).model("scripted")
    with backend.tracer.start_as_current_span("row"), pytest.raises(PermissionError):
        await (model.prompt("x") if kind == "prompt" else model.chain("x").text())
    assert await backend.all() == ["row", "  chat scripted"]
    (span,) = backend.named("chat scripted")
    assert span.began_ns == span.ended_ns
    assert span["datasette_llm.blocked_by"] == "budget"
    assert (span["datasette_llm.outcome"], span["error.type"]) == ("blocked", "PermissionError")
    assert (span.status, "planted" in str(span)) == (StatusCode.ERROR.value, False)


async def test_k2_call_that_the_configuration_blocks(backend, site):
    llms = site(ScriptedModel("scripted", ["a"]), blocked_models=["scripted"])
    with pytest.raises(ModelNotAllowedError):
        await llms.model("scripted")
    assert await backend.all() == ["chat scripted"]
    (span,) = backend.spans
    assert span["datasette_llm.blocked_by"].startswith("configuration (")


async def test_k2_cancelled_stream(backend, site, plugin, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0)
    observer = plugin(Observer())
    model = await site(ScriptedModel("scripted", ["a", asyncio.Event()])).model("scripted")
    async for _ in await model.prompt("x"):
        break
    await observer.left.wait()
    assert await backend.all() == ["chat scripted"]
    (span,) = backend.spans
    assert (span["datasette_llm.outcome"], span.status) == ("cancelled", 0)


async def test_k2_cancelled_chain(backend, site, plugin):
    """A chain whose reader leaves while a tool runs ends its span, as its tool does."""
    calls = [llm.ToolCall(name="wait", arguments={}, tool_call_id="t1")]
    waiting = asyncio.Event()

    async def wait() -> str:
        waiting.set()
        await asyncio.Event().wait()

    model = await site(ScriptedModel("scripted", calls)).model("scripted")
    reading = asyncio.create_task(model.chain("x", tools=[wait]).text())
    await waiting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await backend.all()
    (agent,) = backend.named("invoke_agent")
    assert agent["datasette_llm.outcome"] == "cancelled"


async def test_k2_endpoint_has_address_and_provider(backend, site):
    async with OpenAIServer() as server:
        server.play([FIRST_CHUNK, "a", llm.Usage(5, 2)])
        llms = site(endpoints=[{"model": "ours", "api_base": server.url}])
        await (await (await llms.model("ours")).prompt("x")).text()
    await backend.all()
    (span,) = backend.spans
    assert span["gen_ai.provider.name"] == "openai"
    assert f"http://{span['server.address']}:{span['server.port']}" in server.url
    assert span["gen_ai.response.id"] == "chatcmpl-1"


CONTENT = ("gen_ai.input.messages", "gen_ai.output.messages")


async def test_k2_content_and_actor_only_if_asked_for(backend, site):
    """Messages, tool arguments and the actor are in spans where the configuration says so."""
    calls, tools = two_tools()
    model = ScriptedModel("scripted", calls, [f"the key is {KEY}"], needs_key="openai")
    llms = site(model, telemetry={"content": True, "actor": True})
    wrapped = await llms.model("scripted", actor={"id": "root"})
    await wrapped.chain(f"Use {KEY}", tools=tools, system="Be brief", key=KEY).text()
    await backend.all()
    (agent,), (add,) = backend.named("invoke_agent"), backend.named("execute_tool add")
    asked, said = (json.loads(backend.named("chat scripted")[1][name]) for name in CONTENT)
    assert agent["user.id"] == "root"
    assert json.loads(add["gen_ai.tool.call.arguments"]) == {"a": 1}
    assert json.loads(add["gen_ai.tool.call.result"]) == 2
    assert asked == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief"}]},
        {"role": "user", "parts": [{"type": "text", "content": "Use [key removed]"}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "tool_call", "id": "t1", "name": "add", "arguments": {"a": 1}},
                {"type": "tool_call", "id": "t2", "name": "fail", "arguments": {"a": 2}},
            ],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t1", "response": "2"}]},
        {
            "role": "tool",
            "parts": [
                {"type": "tool_call_response", "id": "t2", "response": "Error: planted-error"}
            ],
        },
    ]
    assert said == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "the key is [key removed]"}],
            "finish_reason": "stop",
        }
    ]
    assert KEY not in str(backend.spans)


async def test_k2_content_is_bounded(backend, site):
    """A long text is cut; of many messages the newest are kept; what is sent is still JSON."""
    llms = site(ScriptedModel("scripted", ["b" * 50_000]), telemetry={"content": True})
    history = [llm.user(f"{number} " + "c" * 15_000) for number in range(20)]
    model = await llms.model("scripted")
    await (await model.prompt(messages=[*history, llm.user("x")])).text()
    await backend.all()
    (span,) = backend.spans
    asked, said = (json.loads(span[name]) for name in CONTENT)
    assert asked[-1]["parts"][0]["content"] == "x"
    assert asked[0]["parts"][0]["content"].startswith("14 ")
    assert len(said[0]["parts"][0]["content"]) < 21_000


async def test_k2_odd_texts_reach_the_backend(backend, site):
    """Half characters, texts that are none and ids of a provider break no export."""
    half = "\ud800"
    call = llm.ToolCall(
        name="tool", arguments={half: [half, {1, 2}]}, tool_call_id=KEY + "i" * 9999
    )

    def tool(**arguments):
        return {half: float("nan"), "bytes": b"x"}

    model = ScriptedModel("scripted", [call], [f"{half} done"], needs_key="openai")
    llms = site(model, telemetry={"content": True, "actor": True})
    wrapped = await llms.model("scripted", actor={"id": half}, purpose=half)
    tools = [llm.Tool("tool", implementation=tool)]
    await wrapped.chain(half, tools=tools, tags={"t": half}, key=KEY).text()
    assert len(await backend.all()) == 4
    (span,) = backend.named("execute_tool tool")
    assert span["gen_ai.tool.call.id"].startswith("[key removed]iii")
    assert len(span["gen_ai.tool.call.id"]) <= 2_000
    for name in ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result"):
        json.loads(span[name])


async def test_k2_backend_that_blocks_stops_no_call(backend, site, monkeypatch):
    """Where spans wait for a blocked exporter, only so many do; the others end without a cost."""
    go_on = threading.Event()
    monkeypatch.setattr(telemetry, "MAX_LATE", 2)
    telemetry._late_ends.put(go_on.wait)  # noqa: SLF001  # as an exporter does
    model = await site(ScriptedModel("gpt-4o-mini", ["a", USAGE])).model("gpt-4o-mini")
    for _ in range(4):
        assert await (await model.prompt("x")).text() == "a"
    go_on.set()
    await backend.all()
    costs = ["datasette_llm.cost" in span.attributes for span in backend.named("chat gpt-4o-mini")]
    assert costs in ([True, True, False, False], [True, True, True, False])

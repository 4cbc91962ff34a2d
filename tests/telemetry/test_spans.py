"""Traces and metrics: one span and one set of measurements for each request to a provider."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib.metadata
import re
import tomllib
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import llm
import pytest
from datasette import hookimpl
from datasette.telemetry_registry import Attribute, SpanName
from datasette.telemetry_testing import (
    assert_metrics_conform,
    assert_metrics_covered,
    assert_no_forbidden_values,
    assert_package_never_imports_sdk,
    assert_spans_conform,
    assert_spans_covered,
    otel_meter_provider,
    otel_metrics,
    otel_provider,
    otel_spans,
)
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, SpanKind, StatusCode
from packaging.requirements import Requirement

from datasette_llm import LLM
from datasette_llm.calls import retry
from datasette_llm.calls.attempt import Attempt
from datasette_llm.calls.call import Call
from datasette_llm.calls.response import PromptResponse
from datasette_llm.console.docs import FOLDER
from datasette_llm.errors import ModelNotAllowedError, NotRecordedError
from datasette_llm.log.writer import Writer
from datasette_llm.providers.names import ISSUERS
from datasette_llm.telemetry import spans as telemetry
from datasette_llm.telemetry.registry import (
    LINK,
    METRICS,
    PROVIDERS,
    SCHEMA_URL,
    SPANS,
    TAGS,
)
from datasette_llm.testing import ScriptedModel

from ..support.plugins import Observer, raises
from ..support.response_json import PlainModel

# Pytest finds the fixtures of a module by its names: these two install the SDK, once.
SDK_FIXTURES = (otel_provider, otel_meter_provider, otel_spans, otel_metrics)

ROOT = Path(__file__).parents[2]
KEY = "sk-planted-0123456789"
USAGE = llm.Usage(input=12, output=3)
outer = trace.get_tracer("the caller")


class ProviderDownError(Exception):
    """What a provider's client raises: it has an HTTP status, and quotes the request."""

    status_code = 422


class Tracing(ScriptedModel):
    """A provider whose HTTP client is traced, as it is by OpenTelemetry's instrumentation."""

    async def execute(self, *args, **kwargs):
        with outer.start_as_current_span("POST", kind=SpanKind.CLIENT):
            pass
        async for chunk in super().execute(*args, **kwargs):
            yield chunk


@pytest.fixture
def spans(otel_spans):
    """A function that gives our finished spans, in the order of their ends."""

    def finished():
        telemetry.flush()
        found = otel_spans.get_finished_spans()
        return [s for s in found if s.instrumentation_scope.name == telemetry.SCOPE]

    return finished


@pytest.fixture
def span(spans):
    """A function that gives our only finished span."""

    def only():
        (found,) = spans()
        return found

    return only


@pytest.fixture
def points(otel_metrics):
    """A function that collects what was measured since it was last called, by name."""

    def collected():
        telemetry.flush()
        otel_metrics.collect()
        ours = [m for scope, m in otel_metrics.collected if scope == telemetry.SCOPE]
        return {metric.name: list(metric.data.data_points) for metric in ours}

    return collected


@pytest.fixture
def model_of(make_datasette, register_models):
    """Register a scripted model, and get it through the facade."""

    async def get(*scripts, model_class=ScriptedModel, config=None, scripted=None, **kwargs):
        plan = model_class("scripted", *scripts, **(scripted or {}))
        register_models(plan)
        datasette = make_datasette({"log": False} if config is None else config)
        return plan, await LLM(datasette).model("scripted", **kwargs)

    return get


def endless():
    return ["One ", asyncio.Event()]


async def first_of(response):
    """Read one chunk, then stop reading."""
    async for _ in response:
        return


# What a span says


async def test_prompt_is_a_client_span(model_of, span):
    """A prompt is a client span with all that is known of it."""
    _, model = await model_of(
        ["a", "b", USAGE],
        scripted={"needs_key": "openai"},
        purpose="chat",
    )
    conversation = model.conversation()
    response = await conversation.prompt("x", key=KEY, temperature=0, max_tokens=50)
    await response.text()
    attributes = dict(span().attributes)
    first_chunk_s = attributes.pop("gen_ai.response.time_to_first_chunk")
    assert (span().name, span().kind) == ("chat scripted", SpanKind.CLIENT)
    assert span().status.status_code is StatusCode.UNSET
    assert isinstance(first_chunk_s, float)
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.conversation.id": conversation.id,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "datasette_llm.call.id": response.id,
        "datasette_llm.purpose": "chat",
        "datasette_llm.outcome": "ok",
    }


async def test_r3_span_says_that_the_answer_is_cached(model_of, spans):
    _, model = await model_of(["a", USAGE], config={"cache": True})
    for _ in range(2):
        await (await model.prompt("x")).text()
    first, hit = (dict(each.attributes) for each in spans())
    assert "datasette_llm.cached" not in first
    assert (hit["datasette_llm.cached"], hit["gen_ai.usage.input_tokens"]) == (True, 0)


async def test_unknown_attributes_are_left_out(model_of, span):
    _, model = await model_of(["a"], scripted={"can_stream": False})
    response = await model.prompt("x")
    await response.text()
    assert dict(span().attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "scripted",
        "datasette_llm.call.id": response.id,
        "datasette_llm.outcome": "ok",
    }


async def test_the_span_names_the_model_that_answered(model_of, span):
    class Resolving(ScriptedModel):
        async def execute(self, prompt, stream, response, *args, **kwargs):
            response.set_resolved_model("scripted-2026-01-31")
            async for chunk in super().execute(prompt, stream, response, *args, **kwargs):
                yield chunk

    _, model = await model_of(["a"], model_class=Resolving)
    await (await model.prompt("x")).text()
    assert span().attributes["gen_ai.request.model"] == "scripted"
    assert span().attributes["gen_ai.response.model"] == "scripted-2026-01-31"


async def test_w3_the_span_says_why_the_answer_ended(register_models, make_datasette, span):
    register_models(PlainModel("plain", ["a"], response_json={"stop_reason": "max_tokens"}))
    model = await LLM(make_datasette({"log": False})).model("plain")
    await (await model.prompt("x")).text()
    assert span().attributes["gen_ai.response.finish_reasons"] == ("length",)


@pytest.mark.parametrize(
    ("needs_key", "provider"),
    [
        ("openai", "openai"),
        ("claude", "anthropic"),
        ("gemini", "gcp.gemini"),
        ("openrouter", "openrouter"),
        ("our-proxy", None),
        (None, None),
    ],
)
async def test_provider_is_derived_from_the_key_name(model_of, span, needs_key, provider):
    """The provider is derived from the name of the key, or left out."""
    _, model = await model_of(["a"], scripted={"needs_key": needs_key})
    await (await model.prompt("x", key=KEY)).text()
    assert span().attributes.get("gen_ai.provider.name") == provider


def test_every_provider_with_keys_has_a_name():
    assert PROVIDERS.keys() == ISSUERS.keys()


async def test_chain_steps_are_children_of_its_span(model_of, spans):
    call = llm.ToolCall(name="add", arguments={"a": 1, "b": 2}, tool_call_id="t1")
    _, model = await model_of([call], ["3"])

    def add(a: int, b: int) -> int:
        return a + b

    with outer.start_as_current_span("request") as request:
        await model.chain("1 + 2?", tools=[add]).text()
    first, tool, second, agent = spans()
    assert [s.attributes["datasette_llm.chain.step"] for s in (first, second)] == [1, 2]
    conversations = {s.attributes["gen_ai.conversation.id"] for s in (first, second, agent)}
    assert len(conversations) == 1
    assert first.parent == tool.parent == second.parent == agent.context
    assert agent.parent == request.get_span_context()
    assert first.end_time <= tool.start_time <= tool.end_time <= second.start_time


async def test_k2_tool_runs_inside_its_span(model_of, spans, otel_spans):
    """What a tool does, in a thread or in the event loop, is below its span."""
    names = ["plain", "slow", "here"]
    calls = [llm.ToolCall(name=name, arguments={}, tool_call_id=name) for name in names]
    _, model = await model_of(calls, ["done"])

    def plain() -> None:
        with outer.start_as_current_span("plain"):
            pass

    async def slow() -> None:
        with outer.start_as_current_span("slow"):
            pass

    def here() -> None:
        with outer.start_as_current_span("here"):
            pass

    here.run_in_thread = False
    await model.chain("x", tools=[plain, slow, here]).text()
    inner = {s.name: s.parent for s in otel_spans.get_finished_spans() if s.name in names}
    tools = {s.name.partition(" ")[2]: s.context for s in spans() if s.name.startswith("execute")}
    assert inner == tools
    assert tools.keys() == set(names)


async def test_k2_tool_takes_its_call_as_with_llm(model_of):
    """A tool with a parameter for its call gets it, and one without is not given it."""
    calls = [llm.ToolCall(name=name, arguments={"a": 1}, tool_call_id=name) for name in "xyz"]
    got = []

    def x(a: int, llm_tool_call: llm.ToolCall) -> None:
        got.append((a, llm_tool_call.tool_call_id))

    async def y(a: int, *, llm_tool_call=None) -> None:
        got.append((a, llm_tool_call.tool_call_id))

    def z(**arguments) -> None:
        got.append(arguments)

    _, model = await model_of(calls, ["done"])
    tools = [llm.Tool(tool.__name__, implementation=tool) for tool in (x, y, z)]
    await model.chain("x", tools=tools).text()
    assert sorted(got, key=str) == [(1, "x"), (1, "y"), {"a": 1}]


@pytest.mark.parametrize(
    ("raised", "outcome", "status"),
    [
        (llm.PauseChain("wait"), "paused", StatusCode.UNSET),
        (KeyError("planted"), "error", StatusCode.ERROR),
    ],
    ids=["paused", "error"],
)
async def test_k2_how_a_tool_ends(model_of, spans, raised, outcome, status):
    call = llm.ToolCall(name="tool", arguments={}, tool_call_id="t1")
    _, model = await model_of([call], ["done"])

    def tool() -> None:
        raise raised

    with contextlib.suppress(llm.PauseChain):
        await model.chain("x", tools=[tool]).text()
    (span,) = [s for s in spans() if s.name == "execute_tool tool"]
    assert (span.attributes["datasette_llm.outcome"], span.status.status_code) == (outcome, status)
    assert (span.status.description, span.events) == (
        "KeyError" if outcome == "error" else None,
        (),
    )


async def test_k2_tools_of_a_response_have_spans(model_of, spans):
    """Tools that a caller runs outside of a chain are below the caller's span."""
    call = llm.ToolCall(name="tool", arguments={}, tool_call_id="t1")
    _, model = await model_of([call])

    def tool() -> None:
        return

    response = await model.prompt("x", tools=[tool])
    with outer.start_as_current_span("request") as request:
        await response.execute_tool_calls()
    assert spans()[-1].parent == request.get_span_context()


async def test_the_prompts_of_a_group_carry_its_id(make_datasette, register_models, spans):
    register_models(ScriptedModel("scripted", ["a"]))
    async with LLM(make_datasette({"log": False})).group("scripted") as model:
        await model.prompt("x")
        await model.prompt("y")
        group_id = model.route.group.id
    assert [s.attributes["datasette_llm.group.id"] for s in spans()] == [group_id] * 2


# Where it stands in the trace


async def test_span_is_current_while_provider_runs(model_of, span, otel_spans):
    _, model = await model_of(["a"], model_class=Tracing)
    await (await model.prompt("x")).text()
    (sent,) = [s for s in otel_spans.get_finished_spans() if s.name == "POST"]
    assert sent.parent == span().context


async def test_parent_is_the_callers_span(model_of, span):
    """The parent is the caller's span, which stays current for the caller."""
    _, model = await model_of(["a", "b"])
    with outer.start_as_current_span("request") as request:
        response = await model.prompt("x")
        assert trace.get_current_span() is request
        await response.text()
        assert trace.get_current_span() is request
    assert span().parent == request.get_span_context()


async def test_parent_is_the_span_that_a_hook_opened(model_of, plugin, span):
    opened = []

    class Hook:
        @hookimpl
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                with outer.start_as_current_span("hook") as current:
                    opened.append(current)
                    yield
                    assert trace.get_current_span() is current

            return context

    plugin(Hook())
    _, model = await model_of(["a"])
    with outer.start_as_current_span("request") as request:
        await (await model.prompt("x")).text()
    assert span().parent == opened[0].get_span_context()
    assert opened[0].parent == request.get_span_context()


async def test_concurrent_prompts_have_their_own_spans(model_of, spans):
    go_on = asyncio.Event()
    plan, model = await model_of(["a", go_on, "b"])

    async def ask(name):
        with outer.start_as_current_span(name) as request:
            response = await model.prompt(name)
            await response.text()
            return response.id, request.get_span_context()

    asking = asyncio.gather(ask("one"), ask("two"))
    await plan.received(2)
    go_on.set()
    parents = dict(await asking)
    assert {s.attributes["datasette_llm.call.id"]: s.parent for s in spans()} == parents


async def test_span_does_not_cover_writing_the_log(model_of, span, otel_spans):
    _, model = await model_of(["a"], config={})
    await (await model.prompt("x")).text()
    await model.route.recorder.writer.flush()
    inside = [s.name for s in otel_spans.get_finished_spans() if s.parent == span().context]
    assert inside == []


# How it ends: always, and once


@pytest.mark.parametrize("before", [[], ["a"]], ids=["before", "after"])
async def test_failure_is_an_error(model_of, span, before):
    """A failure before or after the first chunk is an error."""
    error = ProviderDownError("no")
    _, model = await model_of([*before, error])
    with pytest.raises(ProviderDownError):
        await (await model.prompt("x")).text()
    assert span().attributes["datasette_llm.outcome"] == "error"
    assert span().attributes["error.type"] == "ProviderDownError"
    assert span().status.status_code is StatusCode.ERROR
    assert span().status.description == "ProviderDownError (HTTP 422)"
    assert ("gen_ai.response.time_to_first_chunk" in span().attributes) == bool(before)


async def test_a_missing_key_is_an_error(model_of, span):
    _, model = await model_of(scripted={"needs_key": "openai"})
    with pytest.raises(llm.NeedsKeyException):
        await model.prompt("x")
    assert span().status.description == "NeedsKeyException"


async def test_hostile_error_is_named_by_its_class(model_of, span):
    """An error whose properties raise is named by its class."""

    class HostileError(Exception):
        @property
        def status_code(self):
            raise RuntimeError("ask me nothing")

    _, model = await model_of([HostileError("no")])
    with pytest.raises(HostileError):
        await model.prompt("x")
    assert span().status.description == "HostileError"


async def test_cancelled_reader_is_cancelled_not_error(model_of, span):
    plan, model = await model_of(endless())
    response = await model.prompt("x")
    reading = asyncio.create_task(response.text())
    await plan.received()
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert_cancelled(span())


async def test_dropped_response_is_cancelled(model_of, plugin, span, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0)
    recorder = plugin(Observer())
    _, model = await model_of(endless())
    await first_of(await model.prompt("x"))
    await recorder.left.wait()
    assert_cancelled(span())


async def test_request_of_aborted_group_is_cancelled(make_datasette, register_models, span):
    register_models(ScriptedModel("scripted", endless()))
    with pytest.raises(KeyError):
        async with LLM(make_datasette({"log": False})).group("scripted") as model:
            await model.prompt("x")
            raise KeyError
    assert_cancelled(span())


async def test_plugin_timeout_is_cancelled(model_of, plugin, span):
    class Hurried:
        @hookimpl
        def llm_prompt_context(self):
            @asynccontextmanager
            async def context(result):
                async with asyncio.timeout(0.01):
                    yield

            return context

    plugin(Hurried())
    _, model = await model_of(endless())
    response = await model.prompt("x")
    with pytest.raises(TimeoutError):
        await response.text()
    assert_cancelled(span())


def assert_cancelled(ended):
    assert ended.attributes["datasette_llm.outcome"] == "cancelled"
    assert "error.type" not in ended.attributes
    assert ended.status.status_code is StatusCode.UNSET


async def test_tokens_before_a_failure_are_reported(model_of, span):
    _, model = await model_of(["a", USAGE, ProviderDownError("no")])
    with pytest.raises(ProviderDownError):
        await (await model.prompt("x")).text()
    assert span().attributes["gen_ai.usage.input_tokens"] == 12


async def test_zero_tokens_count_and_text_does_not(model_of, span, points):
    """A count of tokens may be zero; what is no number is left out."""
    _, model = await model_of(["a", llm.Usage(input=0, output="several")])
    assert await (await model.prompt("x")).text() == "a"
    (tokens,) = points()["gen_ai.client.token.usage"]
    assert span().attributes["gen_ai.usage.input_tokens"] == 0
    assert "gen_ai.usage.output_tokens" not in span().attributes
    assert tokens.attributes["gen_ai.token.type"] == "input"


@pytest.mark.parametrize("odd", [True, -1, 2**70, 1.5, "12"])
async def test_odd_token_count_is_left_out(model_of, span, points, odd):
    _, model = await model_of(["a", llm.Usage(input=odd, output=3)])
    await (await model.prompt("x")).text()
    (tokens,) = points()["gen_ai.client.token.usage"]
    assert tokens.attributes["gen_ai.token.type"] == "output"
    assert "gen_ai.usage.input_tokens" not in span().attributes


async def test_values_invalid_in_export_are_left_out(model_of, span):
    _, model = await model_of(["a"], purpose="\ud800" + "p" * 10_000)
    await (await model.prompt("x", max_tokens=2**70)).text()
    assert "gen_ai.request.max_tokens" not in span().attributes
    assert len(span().attributes["datasette_llm.purpose"].encode()) < 3_000


async def test_keys_are_removed_from_attributes(model_of, otel_spans):
    """A key that a provider or a caller repeats is removed."""

    class Leaking(ScriptedModel):
        async def execute(self, prompt, stream, response, conversation, key=None):
            response.set_resolved_model(f"model-{key}")
            yield "a"

    _, model = await model_of(model_class=Leaking, purpose=f"for {KEY}")
    conversation = model.conversation()
    conversation.id = f"about {KEY}"
    await (await conversation.prompt("x", key=KEY)).text()
    (span,) = otel_spans.get_finished_spans()
    assert span.attributes["gen_ai.response.model"] == "model-[key removed]"
    assert_no_forbidden_values({KEY}, [span], None)


async def test_k2_blocked_call_is_counted(model_of, plugin, points):
    """A blocked call is counted, and no request is measured."""
    plugin(Observer(before=raises(PermissionError("no budget"))))
    _, model = await model_of(["a"])
    with pytest.raises(PermissionError):
        await model.prompt("x")
    measured = points()
    (counted,) = measured.pop("datasette_llm.calls")
    assert counted.value == 1
    assert counted.attributes["datasette_llm.outcome"] == "blocked"
    assert measured == {}


async def test_k2_refused_id_is_no_time_series(model_of, points):
    """What was asked for, perhaps in a form, is not in the count of a call that was refused."""
    with pytest.raises(ModelNotAllowedError):
        await model_of(["a"], config={"log": False, "blocked_models": ["scripted"]})
    (counted,) = points()["datasette_llm.calls"]
    assert dict(counted.attributes) == {
        "gen_ai.operation.name": "chat",
        "datasette_llm.outcome": "blocked",
        "error.type": "ModelNotAllowedError",
    }


async def test_k2_call_refused_by_the_log_is_blocked(model_of, span, points, monkeypatch):
    async def refuse(self, statement, weight):
        return False

    monkeypatch.setattr(Writer, "commit", refuse)
    _, model = await model_of(["a"], config={"log": {"required": True}})
    with pytest.raises(NotRecordedError):
        await model.prompt("x")
    assert span().attributes["datasette_llm.blocked_by"] == "configuration (log.required)"
    assert points().keys() == {"datasette_llm.calls"}


async def test_task_of_a_closed_loop_ends_its_span(model_of, spans, points, caplog, monkeypatch):
    """A task that its loop left behind ends its span without a log message."""
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    await response.text()

    async def wait(self, events):
        await asyncio.Event().wait()

    monkeypatch.setattr(PromptResponse, "fill", wait)
    call = Call(model, "x", {}, is_chain=False)
    unfilled = PromptResponse.adopt(llm.AsyncResponse(response.prompt, model, True), call)
    left_behind = Attempt(call, unfilled, model).run(None)
    contextvars.copy_context().run(left_behind.send, None)
    left_behind.close()
    assert [s.attributes["datasette_llm.outcome"] for s in spans()] == ["ok", "cancelled"]
    assert caplog.records == []


# The log beside it


@pytest.mark.parametrize(
    ("script", "outcome"),
    [(["a"], "ok"), ([ProviderDownError("no")], "error"), (endless(), "cancelled")],
    ids=["ok", "error", "cancelled"],
)
async def test_log_row_has_id_and_outcome_of_the_span(
    model_of, plugin, span, monkeypatch, script, outcome
):
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0)
    recorder = plugin(Observer())
    _, model = await model_of(script, config={})
    if outcome == "error":
        with pytest.raises(ProviderDownError):
            await model.prompt("x")
    else:
        await first_of(await model.prompt("x"))
    await recorder.left.wait()
    await model.route.recorder.writer.flush()
    internal = model.route.datasette.get_internal_database()
    (row,) = (await internal.execute("select id, outcome from llm_calls")).rows
    assert row["id"] == span().attributes["datasette_llm.call.id"]
    assert row["outcome"] == span().attributes["datasette_llm.outcome"] == outcome


# What is measured


async def test_metrics_have_few_attributes(model_of, points):
    _, model = await model_of(["a", USAGE], scripted={"needs_key": "openai"}, purpose="chat")
    for _ in range(2):
        await (await model.prompt("x", key=KEY)).text()
    measured = points()
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "scripted",
    }
    (duration,) = measured["gen_ai.client.operation.duration"]
    (first_chunk,) = measured["gen_ai.client.operation.time_to_first_chunk"]
    tokens = {p.attributes["gen_ai.token.type"]: p for p in measured["gen_ai.client.token.usage"]}
    assert duration.attributes == asked | {"datasette_llm.outcome": "ok"}
    assert first_chunk.attributes == asked
    assert duration.count == first_chunk.count == 2
    assert 0 <= first_chunk.sum <= duration.sum
    assert {name: (p.count, p.sum) for name, p in tokens.items()} == {
        "input": (2, 24),
        "output": (2, 6),
    }
    for name, point in tokens.items():
        assert point.attributes == asked | {"gen_ai.token.type": name}


async def test_r3_kept_answers_are_counted_without_their_time(model_of, points):
    _, model = await model_of(["a", USAGE], config={"cache": True})
    for _ in range(3):
        await (await model.prompt("x")).text()
    measured = points()
    assert [each.value for each in measured["datasette_llm.calls"]] == [3]
    for name in ("operation.duration", "operation.time_to_first_chunk"):
        assert [each.count for each in measured[f"gen_ai.client.{name}"]] == [1]


async def test_unreported_values_are_not_measured(model_of, points):
    _, model = await model_of(["a"], scripted={"can_stream": False})
    await (await model.prompt("x")).text()
    assert points().keys() == {"gen_ai.client.operation.duration", "datasette_llm.calls"}


async def test_outcomes_are_measured_separately(model_of, points, plugin, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0)
    _, model = await model_of(["a"], [ProviderDownError("no")], endless())
    await (await model.prompt("x")).text()
    with pytest.raises(ProviderDownError):
        await model.prompt("x")
    recorder = plugin(Observer())
    await first_of(await model.prompt("x"))
    await recorder.left.wait()
    measured = [
        (p.attributes["datasette_llm.outcome"], p.attributes.get("error.type"), p.count)
        for p in points()["gen_ai.client.operation.duration"]
    ]
    assert sorted(measured, key=str) == [
        ("cancelled", None, 1),
        ("error", "ProviderDownError", 1),
        ("ok", None, 1),
    ]


async def test_histograms_have_conventional_buckets(model_of, points):
    _, model = await model_of(["a", USAGE])
    await (await model.prompt("x")).text()
    measured = points()
    histograms = [metric for metric in METRICS if metric.buckets]
    assert [measured[m][0].explicit_bounds for m in histograms] == [m.buckets for m in histograms]
    assert METRICS[2].buckets[-1] == 67_108_864


async def test_k2_cost_is_measured(model_of, points):
    prices = {"prices": {"scripted": {"input": 1, "output": 10}}}
    _, model = await model_of(["a", USAGE], config={"log": prices})
    for _ in range(2):
        await (await model.prompt("x")).text()
    (cost,) = points()["datasette_llm.cost"]
    assert cost.value == pytest.approx(2 * (12 + 30) / 1e6)
    assert cost.attributes == {"gen_ai.operation.name": "chat", "gen_ai.request.model": "scripted"}


# What it costs where nothing is collected


async def test_without_a_provider_nothing_is_computed(model_of, monkeypatch):
    """Without an SDK there is no span, and none of its attributes is computed."""
    _, model = await model_of(["a"])
    monkeypatch.setattr(telemetry.trace, "get_tracer_provider", NoOpTracerProvider)
    monkeypatch.setattr(telemetry.metrics, "get_meter_provider", NoOpMeterProvider)
    monkeypatch.setattr(telemetry, "tracer", NoOpTracer())
    monkeypatch.setattr(telemetry.otel_context, "attach", not_to_be_called)
    monkeypatch.setattr(telemetry, "request_attributes", not_to_be_called)
    assert await (await model.prompt("x")).text() == "a"


async def test_unsampled_trace_is_still_measured(model_of, monkeypatch, points):
    """A trace that is not sampled costs no attributes, and is measured all the same."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer(telemetry.SCOPE)
    monkeypatch.setattr(telemetry, "tracer", unsampled)
    monkeypatch.setattr(telemetry, "request_attributes", not_to_be_called)
    seen = []

    class Looking(ScriptedModel):
        async def execute(self, *args, **kwargs):
            seen.append(trace.get_current_span().get_span_context())
            async for chunk in super().execute(*args, **kwargs):
                yield chunk

    _, model = await model_of(["a"], model_class=Looking)
    await (await model.prompt("x")).text()
    assert seen[0].is_valid
    assert not seen[0].trace_flags.sampled
    assert points()["gen_ai.client.operation.duration"][0].count == 1


def not_to_be_called(*args, **kwargs):
    raise AssertionError("this costs time, and nothing collects it")


def test_the_package_does_not_import_the_sdk():
    assert_package_never_imports_sdk("datasette_llm", "datasette_llm.telemetry.spans")


def test_api_requirement_matches_datasettes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ours = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    datasettes = {
        r.name: r.specifier for r in map(Requirement, importlib.metadata.requires("datasette"))
    }
    assert ours["opentelemetry-api"] == datasettes["opentelemetry-api"]


# The registry and what is emitted


async def everything(register_models, datasette, plugin):
    """Every kind of request, with planted values in all of them that must not be exported."""
    call = llm.ToolCall(name="tool", arguments={"text": "planted-argument"}, tool_call_id="t1")
    error = ProviderDownError(f"planted-fault of planted-prompt with {KEY}")
    error.response = SimpleNamespace(headers={"x-litellm-call-id": "gateway-1"})
    details = {
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    done = ["planted-answer", llm.Usage(input=12, output=3, details=details)]

    class Full(ScriptedModel):
        api_base = "https://planted-user:planted-password@llm.example/v1?planted"

        async def execute(self, prompt, stream, response, *args, **kwargs):
            response.set_resolved_model("full-2026")
            response.response_json = {"id": "r1", "finish_reason": "stop", "content": "planted"}
            async for chunk in super().execute(prompt, stream, response, *args, **kwargs):
                yield chunk

    register_models(
        Full("full", done, [error], ["planted-answer", asyncio.Event()], needs_key="openai"),
        Full("grouped", done, needs_key="openai"),
        Full("chained", [call], done, [call], [error], needs_key="openai"),
        Full("unsteady", [ConnectionError(f"planted-prompt {KEY}")], done, needs_key="openai"),
    )
    who = {"purpose": "chat", "actor": {"id": "planted-actor"}, "tags": {"job": 12}}
    secret = {"key": KEY, "system": "planted-system", "temperature": 0.5, "max_tokens": 9}
    model = await LLM(datasette).model("full", **who)
    await (await model.conversation().prompt("planted-prompt", **secret)).text()
    with pytest.raises(ProviderDownError):
        await model.prompt("planted-prompt", **secret)
    recorder = plugin(Observer())
    await first_of(await model.prompt("planted-prompt", **secret))
    await recorder.left.wait()
    async with LLM(datasette).group("grouped", **who) as model:
        await model.prompt("planted-prompt", **secret)
        tool = llm.Tool.function(planted_tool, name="tool")
        model = await LLM(datasette).model("chained", **who)
        await model.chain("planted-prompt", tools=[tool], key=KEY).text()
    async with LLM(datasette).group("chained", **who) as model:
        with pytest.raises(ProviderDownError):
            await model.chain("planted-prompt", tools=[failing], key=KEY).text()
    model = await LLM(datasette).model("unsteady", **who)
    await (await model.prompt("planted-prompt", **secret)).text()
    plugin(Observer("refusing", before=raises(PermissionError("planted"))))
    with pytest.raises(PermissionError):
        await model.prompt("planted-prompt", **secret)


def planted_tool(text: str) -> str:
    return "planted-result"


def failing_tool(text: str) -> str:
    raise ValueError("planted-error")


failing = llm.Tool.function(failing_tool, name="tool")


@pytest.fixture
def work(register_models, make_datasette, plugin, monkeypatch, spans, points):
    """Do all kinds of work, with a configuration."""
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0)
    monkeypatch.setattr(retry, "WAIT_INITIAL_S", 0)
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0)

    async def do(**telemetry_settings):
        price = {"input": 1, "output": 2}
        config = {
            "log": {"prices": dict.fromkeys(["full", "grouped", "chained", "unsteady"], price)},
            "max_concurrency": 9,
            "telemetry": telemetry_settings,
            "purposes": {"cached": {"cache": True}},
        }
        datasette = make_datasette(config)
        register_models(ScriptedModel("cached"))
        model = await LLM(datasette).model("cached", purpose="cached")
        for _ in range(2):
            await (await model.prompt("x")).text()
        await everything(register_models, datasette, plugin)

    return do


@pytest.fixture
async def workload(work):
    """All kinds of work, and all that spans can hold."""
    await work(content=True, actor=True)


def with_tags(span_name):
    """A registered span with a tag of the workload in the place of the beginning of all tags."""
    names = [Attribute(f"{a}job", a.description) if a is TAGS else a for a in span_name.attributes]
    return SpanName(span_name, "", names, prefix=span_name.prefix, kind=span_name.kind)


REGISTERED = [with_tags(span_name) for span_name in SPANS]


async def test_every_emitted_span_is_registered(workload, spans):
    """Every emitted span and attribute is registered."""
    assert_spans_conform(REGISTERED, spans(), telemetry.SCOPE)


async def test_every_registered_span_is_emitted(workload, spans):
    """Every registered span and attribute is emitted."""
    assert_spans_covered(REGISTERED, spans(), telemetry.SCOPE)
    for name in REGISTERED:
        emitted = {key for each in spans() if each.name.startswith(name) for key in each.attributes}
        assert emitted == set(name.attributes), name  # the optional ones too
    links = [dict(link.attributes) for each in spans() for link in each.links]
    assert links == [{LINK: "retry"}]


async def test_every_emitted_metric_is_registered(workload, otel_metrics):
    telemetry.flush()
    otel_metrics.collect()
    assert_metrics_conform(METRICS, otel_metrics, telemetry.SCOPE)


async def test_every_registered_metric_is_emitted(workload, otel_metrics):
    telemetry.flush()
    otel_metrics.collect()
    assert_metrics_covered(METRICS, otel_metrics, telemetry.SCOPE)
    for metric in METRICS:
        emitted = {key for p in otel_metrics.points(metric) for key in p.attributes}
        assert emitted == set(metric.attributes), metric


@pytest.mark.parametrize(
    ("settings", "planted"),
    [({}, {"planted"}), ({"content": True, "actor": True}, {"planted-fault", "planted-password"})],
    ids=["as it is", "with content"],
)
async def test_telemetry_has_no_personal_data(work, otel_spans, otel_metrics, settings, planted):
    """No prompt, answer, error message, key or actor is in spans or metrics.

    With content there are prompts and answers; what a provider's error says is never there.
    """
    await work(**settings)
    telemetry.flush()
    otel_metrics.collect()
    spans = otel_spans.get_finished_spans()
    ours = [span for span in spans if span.instrumentation_scope.name == telemetry.SCOPE]
    assert_no_forbidden_values({*planted, KEY}, ours, otel_metrics)


async def test_failure_adds_no_event_with_its_message(workload, spans):
    assert [each.events for each in spans()] == [()] * len(spans())


async def test_scope_has_name_version_and_schema(workload, spans):
    scope = spans()[0].instrumentation_scope
    version = importlib.metadata.version("datasette-llm")
    assert (scope.name, scope.version, scope.schema_url) == ("datasette_llm", version, SCHEMA_URL)


def test_documentation_has_every_signal():
    section = (FOLDER / "telemetry.md").read_text("utf-8")
    signals = [*SPANS, *METRICS]
    registered = {LINK, *(a for signal in signals for a in signal.attributes)}
    tables = dict(re.findall(r"^\| (span|attribute|metric) \|.*\n((?:\|.*\n)+)", section, re.M))
    documented = {
        kind: {
            name
            for row in rows.splitlines()
            for name in re.findall(r"`([^`]+)`", row.split("|")[1])
        }
        for kind, rows in tables.items()
    }
    assert documented["attribute"] == registered
    assert documented["metric"] == set(METRICS)
    assert {name.partition("{")[0] for name in documented["span"]} == set(SPANS)
    assert SCHEMA_URL.rpartition("/")[2] in section

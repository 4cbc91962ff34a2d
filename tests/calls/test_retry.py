"""Retries and fallbacks: what is asked again, and what callers, hooks and the log see of it."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import llm
import pytest
from datasette import hookimpl

from datasette_llm import LLM, ModelNotAllowedError, ResponseTimeoutError
from datasette_llm.calls import retry
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.plugins import Accountant, Observer, raises


class StatusError(Exception):
    """What a provider's client raises after an HTTP error."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"the server answered {status}")
        self.status_code = status
        self.response = httpx2.Response(status, headers=headers)


def down() -> ConnectionError:
    """A failure that passes."""
    return ConnectionError("refused")


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that are made, none of which takes any time."""
    made = []

    async def sleep(delay, *args):
        made.append(delay)

    monkeypatch.setattr("datasette_llm.calls.retry.sleep", sleep)
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0)
    return made


# Which failures are retried


@pytest.mark.parametrize(
    "error",
    [
        down(),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("the server went away"),
        *(StatusError(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529, 599)),
    ],
    ids=repr,
)
async def test_transient_failure_is_retried(site, error):
    """A transient failure before the first event is retried."""
    model = ScriptedModel("m", [error], [error], ["Hello"])
    response = await (await site(model).model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    assert len(model.calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ValueError("bad"),
        llm.ModelError("no"),
        FileNotFoundError("keys"),
        *(StatusError(status) for status in (400, 401, 403, 404, 413, 422)),
        StatusError(429, {"x-should-retry": "false"}),
    ],
    ids=repr,
)
async def test_permanent_failure_is_not_retried(site, error):
    model = ScriptedModel("m", [error], ["Hello"])
    with pytest.raises(type(error)):
        await (await site(model).model("m")).prompt("Hi")
    assert len(model.calls) == 1


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (2, 3), (4, 5)])
async def test_retries_setting_counts_further_attempts(site, retries, asked):
    model = ScriptedModel("m", [down()])
    with pytest.raises(ConnectionError, match="refused"):
        await (await site(model, retries=retries).model("m")).prompt("Hi")
    assert len(model.calls) == asked


async def test_two_retries_by_default(site):
    model = ScriptedModel("m", [down()])
    with pytest.raises(ConnectionError):
        await (await site(model).model("m")).prompt("Hi")
    assert len(model.calls) == 3


async def test_no_retry_after_the_first_event(site):
    model = ScriptedModel("m", ["Hel", down()], ["Hello"])
    response = await (await site(model, fallbacks=["m2"]).model("m")).prompt("Hi")
    with pytest.raises(ConnectionError):
        await response.text()
    assert len(model.calls) == 1


@pytest.mark.parametrize("event", ["reasoning", "tool_call_name"])
async def test_an_event_without_text_is_an_event(site, event):
    first = llm.parts.StreamEvent(type=event, chunk="x", tool_call_id="t")
    model = ScriptedModel("m", [first, down()], ["Hello"])
    response = await (await site(model).model("m")).prompt("Hi")
    with pytest.raises(ConnectionError):
        await response.text()
    assert len(model.calls) == 1


def chain_of(model, ran):
    """A chain of two steps, with a tool that says how often it ran."""
    tool = llm.Tool.function(lambda: ran.append(1) or "seen", name="look")
    return model.chain("Hi", tools=[tool])


LOOK = llm.ToolCall(name="look", arguments={}, tool_call_id="t1")


async def test_c9_later_step_is_retried_without_its_tools(site, plugin):
    """A later step is retried like the first, with the same history; its tools ran once."""
    accountant, observer, ran = plugin(Accountant()), plugin(Observer()), []
    model = ScriptedModel("m", [down()], [LOOK], [down()], [StatusError(503)], ["Hello"])
    llms = site(model, log=True)
    chain = chain_of(await llms.model("m"), ran)
    steps = [step async for step in chain.responses()]
    assert await steps[-1].text() == "Hello"
    assert ran == [1]
    histories = [call.request.messages for call in model.calls[2:]]
    assert [message.role for message in histories[0]] == ["user", "assistant", "tool"]
    assert histories[1] == histories[0]
    assert histories[2] == histories[0]
    assert observer.events == ["hook opens", "hook succeeds"]
    assert (accountant.reserved, accountant.settled, accountant.released) == (1, 1, 0)
    first, second = steps[0].id, steps[1].id
    assert [
        (row["chain_step"], row["attempt"], row["prompt_id"], row["chain_id"], row["outcome"])
        for row in await flushed_rows(llms.datasette)
    ] == [
        (1, 1, None, first, "error"),
        (1, 2, first, first, "ok"),
        (2, 1, None, first, "error"),
        (2, 2, second, first, "error"),
        (2, 3, second, first, "ok"),
    ]


async def test_c9_later_step_falls_back_then_asks_again(site):
    """A later step falls back; the one after it asks the model that the chain is of."""
    ran, again = [], llm.ToolCall(name="look", arguments={}, tool_call_id="t2")
    first = ScriptedModel("first", [LOOK], [down()], ["Done"])
    plain = ScriptedModel("plain", ["no"], supports_tools=False)
    second = ScriptedModel("second", [again])
    llms = site(first, plain, second, log=True, retries=0, fallbacks=["plain", "second"])
    chain = chain_of(await llms.model("first"), ran)
    steps = [step async for step in chain.responses()]
    assert [step.model.model_id for step in steps] == ["first", "second", "first"]
    assert await steps[-1].text() == "Done"
    assert ran == [1, 1]
    assert plain.calls == []
    assert second.calls[0].request.messages == first.calls[1].request.messages
    assert [message.role for message in first.calls[2].request.messages] == [
        "user",
        *["assistant", "tool"] * 2,
    ]
    assert [
        (row["model_id"], row["chain_step"], row["attempt"])
        for row in await flushed_rows(llms.datasette)
    ] == [("first", 1, 1), ("first", 2, 1), ("second", 2, 2), ("first", 3, 1)]


async def test_c9_step_that_was_read_is_not_retried(site):
    ran = []
    model = ScriptedModel("m", [LOOK], ["Hel", down()], ["Hello"])
    with pytest.raises(ConnectionError):
        await chain_of(await site(model, fallbacks=["other"]).model("m"), ran).text()
    assert (len(model.calls), ran) == (2, [1])


async def test_c9_reply_to_a_tool_call_is_retried(site):
    model = ScriptedModel("m", [LOOK], [down()], ["Hello"])
    tool = llm.Tool.function(lambda: "seen", name="look")
    response = await (await site(model).model("m")).prompt("Hi", tools=[tool])
    assert await (await response.reply()).text() == "Hello"
    assert len(model.calls) == 3


# How long is waited


async def test_the_pauses_grow_and_have_jitter(site, pauses, monkeypatch):
    model = ScriptedModel("m", [down()])
    wrapped = await site(model, retries=6).model("m")
    with pytest.raises(ConnectionError):
        await wrapped.prompt("Hi")
    assert pauses == [0.5, 1, 2, 4, 8, 8]
    monkeypatch.setattr(retry, "WAIT_JITTER_S", 0.25)
    pauses.clear()
    with pytest.raises(ConnectionError):
        await wrapped.prompt("Hi")
    assert all(
        low <= pause <= low + 0.25
        for pause, low in zip(pauses, [0.5, 1, 2, 4, 7.75, 7.75], strict=True)
    )
    assert pauses != [0.5, 1, 2, 4, 8, 8]


def written(after: str | timedelta) -> str:
    """The value of a header Retry-After: a text as it is, a time from now as a date."""
    if isinstance(after, str):
        return after
    return format_datetime(datetime.now(UTC) + after, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.25"}, 0.25, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5, 1.5),
        ({"retry-after": timedelta(seconds=30)}, 15, 31),
        # No time at all, the past and nonsense are the pause that there is without the header.
        ({"retry-after": "0"}, 0.5, 0.5),
        ({"retry-after": "-3"}, 0.5, 0.5),
        ({"retry-after": "nan"}, 0.5, 0.5),
        ({"retry-after": timedelta(hours=-1)}, 0.5, 0.5),
        ({"retry-after": "Wed, 99 Foo 2026"}, 0.5, 0.5),
        ({"retry-after": ""}, 0.5, 0.5),
    ],
)
async def test_retry_after_is_waited_for(site, pauses, headers, low, high):
    headers = {name: written(value) for name, value in headers.items()}
    model = ScriptedModel("m", [StatusError(429, headers)], ["Hello"])
    response = await (await site(model).model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    [pause] = pauses
    assert low <= pause <= high


@pytest.mark.parametrize("after", ["3600", "inf", timedelta(hours=1), "61"])
async def test_long_retry_after_is_not_waited_for(site, pauses, after):
    model = ScriptedModel("m", [StatusError(429, {"retry-after": written(after)})], ["Hello"])
    with pytest.raises(StatusError):
        await (await site(model).model("m")).prompt("Hi")
    assert pauses == []
    assert len(model.calls) == 1


async def test_no_pause_longer_than_the_time_left(site, pauses):
    model = ScriptedModel("m", [StatusError(429, {"retry-after": "40"})], ["Hello"])
    with pytest.raises(StatusError):
        await (await site(model, timeout=30).model("m")).prompt("Hi")
    assert pauses == []


async def test_retries_of_the_client_count(site):
    error = StatusError(500)
    error.request = httpx2.Request("POST", "http://x/", headers={"x-stainless-retry-count": "2"})
    model = ScriptedModel("m", [error], ["Hello"])
    with pytest.raises(StatusError):
        await (await site(model).model("m")).prompt("Hi")
    assert len(model.calls) == 1


# What a failed attempt leaves behind


class Leaving(ScriptedModel):
    """Leaves traces on the response of an attempt that then fails."""

    async def execute(self, prompt, stream, response, *args, **kwargs):
        if not self.calls:
            response.set_usage(input=99, output=99, details={"bad": True})
            response.set_resolved_model("broken")
            response.add_tool_call(llm.ToolCall(name="bad", arguments={}))
            response.response_json = {"bad": True}
        async for chunk in super().execute(prompt, stream, response, *args, **kwargs):
            yield chunk


async def test_failed_attempt_leaves_no_trace(site, plugin):
    recorder = plugin(Observer())
    model = Leaving("m", [down()], ["Hello"])
    wrapped = await site(model, log={"content": True}).model("m")
    response = await wrapped.prompt("Hi")
    before = response.id
    assert await response.text() == "Hello"
    assert response.id == before
    assert await response.usage() == llm.Usage()
    assert await response.tool_calls() == []
    assert await response.json() is None
    assert response.resolved_model is None
    assert recorder.results[0].responses == [response]
    first, second = await flushed_rows(wrapped.route.datasette)
    assert (first["outcome"], second["outcome"]) == ("error", "ok")
    assert (first["input_tokens"], second["input_tokens"]) == (99, None)
    assert (first["resolved_model"], second["resolved_model"]) == ("broken", None)
    contents = {
        (row["call_id"], row["part"]): json.loads(row["content"])
        for row in await flushed_rows(wrapped.route.datasette, "llm_call_content")
    }
    said = [contents[row["id"], "response"]["messages"] for row in (first, second)]
    assert "Hello" not in json.dumps(said[0])
    assert "Hello" in json.dumps(said[1])


async def test_the_log_has_a_row_for_every_attempt(site):
    model = ScriptedModel("m", [down()], [StatusError(503)], ["Hello", llm.Usage(3, 2)])
    llms = site(model, log=True)
    response = await (await llms.model("m", purpose="chat")).prompt("Hi")
    await response.text()
    first, second, third = await flushed_rows(llms.datasette)
    assert first["id"] == response.id
    assert [row["prompt_id"] for row in (first, second, third)] == [None, response.id, response.id]
    assert [row["attempt"] for row in (first, second, third)] == [1, 2, 3]
    assert [row["error_type"] for row in (first, second, third)] == [
        "ConnectionError",
        "StatusError",
        None,
    ]
    assert [row["output_tokens"] for row in (first, second, third)] == [None, None, 2]
    assert first["id"] < second["id"] < third["id"]


async def test_one_context_spans_all_attempts(site, plugin):
    accountant, recorder = plugin(Accountant()), plugin(Observer())
    model = ScriptedModel("m", [down()], [down()], ["Hello"])
    response = await (await site(model).model("m")).prompt("Hi")
    await response.text()
    await recorder.left.wait()
    assert recorder.events == ["hook opens", "hook succeeds"]
    assert (accountant.reserved, accountant.settled, accountant.released) == (1, 1, 0)


async def test_h4_only_last_failure_raised_at_yield(site, plugin):
    accountant, recorder = plugin(Accountant()), plugin(Observer())
    last = ConnectionError("the last one")
    model = ScriptedModel("m", [down()], [down()], [last])
    with pytest.raises(ConnectionError, match="the last one"):
        await (await site(model).model("m")).prompt("Hi")
    assert recorder.errors == [last]
    assert (accountant.reserved, accountant.settled, accountant.released) == (1, 0, 1)


async def test_cancel_in_a_pause_ends_the_attempts(site, monkeypatch):
    pausing = asyncio.Event()

    async def sleep(delay, *args):
        pausing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("datasette_llm.calls.retry.sleep", sleep)
    model = ScriptedModel("m", [down()], ["Hello"])
    prompt = asyncio.create_task((await site(model).model("m")).prompt("Hi"))
    await pausing.wait()
    prompt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prompt
    assert len(model.calls) == 1


async def test_hook_error_is_not_retried(site, plugin):
    plugin(Observer(before=raises(ConnectionError("the hook's own"))))
    model = ScriptedModel("m")
    with pytest.raises(ConnectionError, match="own"):
        await (await site(model, fallbacks=["other"]).model("m")).prompt("Hi")
    assert model.calls == []


# Fallbacks


async def test_fallback_answers_after_the_last_retry(site, plugin):
    recorder = plugin(Observer())
    first, second = ScriptedModel("first", [down()]), ScriptedModel("second", ["Hello"])
    llms = site(first, second, log=True, retries=1, fallbacks=["second"])
    response = await (await llms.model("first")).prompt("Hi")
    assert await response.text() == "Hello"
    assert response.model.model_id == "second"
    assert (len(first.calls), len(second.calls)) == (2, 1)
    assert recorder.events == ["hook opens", "hook succeeds"]
    rows = await flushed_rows(llms.datasette)
    assert [(row["model_id"], row["attempt"], row["outcome"]) for row in rows] == [
        ("first", 1, "error"),
        ("first", 2, "error"),
        ("second", 3, "ok"),
    ]


async def test_permanent_failure_goes_to_fallback(site):
    first = ScriptedModel("first", [StatusError(401)])
    second = ScriptedModel("second", ["Hello"])
    response = await (await site(first, second, fallbacks=["second"]).model("first")).prompt("Hi")
    assert await response.text() == "Hello"
    assert len(first.calls) == 1


async def test_fallback_answers_for_a_model_without_key(site):
    first = ScriptedModel("first", needs_key="unset")
    second = ScriptedModel("second", ["Hello"])
    response = await (await site(first, second, fallbacks=["second"]).model("first")).prompt("Hi")
    assert await response.text() == "Hello"


async def test_fallbacks_in_order_with_own_retries(site):
    a, b, c = (ScriptedModel(name, [down()]) for name in "abc")
    d = ScriptedModel("d", [down()], ["Hello"])
    llms = site(a, b, c, d, retries=0, fallbacks=["b", {"model": "c", "retries": 2}, "d"])
    with pytest.raises(ConnectionError) as caught:
        await (await llms.model("a")).prompt("Hi")
    assert [len(model.calls) for model in (a, b, c, d)] == [1, 1, 3, 1]
    assert caught.value.__notes__ == [
        f"Fallback {name!r} failed too: ConnectionError: refused" for name in "bcd"
    ]


async def test_all_failed_response_has_requested_model(site, plugin):
    """When all have failed, the response is of the model that was requested."""
    recorder = plugin(Observer())
    first, second = ScriptedModel("first", [down()]), ScriptedModel("second", [StatusError(500)])
    llms = site(first, second, retries=0, fallbacks=["second"])
    with pytest.raises(ConnectionError, match="refused"):
        await (await llms.model("first")).prompt("Hi", temperature=0.5)
    response = recorder.results[0].response
    assert response.model.model_id == "first"
    assert response.prompt.options.temperature == 0.5


async def test_fallback_failing_mid_stream_is_final(site):
    """A fallback that fails after its first event fails the call."""
    third = ScriptedModel("third")
    first = ScriptedModel("first", [down()])
    second = ScriptedModel("second", ["Hel", StatusError(500)])
    llms = site(first, second, third, retries=0, fallbacks=["second", "third"])
    response = await (await llms.model("first")).prompt("Hi")
    with pytest.raises(StatusError) as caught:
        await response.text()
    assert response.model.model_id == "second"
    assert caught.value.__notes__ == ["Model 'first' had failed before: ConnectionError: refused"]
    assert third.calls == []


async def test_a_fallback_has_its_own_key_and_options(site, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_FIRST_KEY", "key-of-the-first")
    monkeypatch.setenv("DATASETTE_SECRETS_SECOND_KEY", "key-of-the-second")
    first = ScriptedModel("first", [down()], needs_key="first")
    second = ScriptedModel("second", ["Hello"], needs_key="second")
    llms = site(
        first,
        second,
        retries=0,
        default_model={"model": "first", "key": "FIRST_KEY", "options": {"temperature": 0.1}},
        fallbacks=[{"model": "second", "key": "SECOND_KEY", "options": {"max_tokens": 7}}],
    )
    model = await llms.model()
    response = await model.prompt("Hi", key="given by the caller")
    assert await response.text() == "Hello"
    assert (first.calls[0].key, second.calls[0].key) == ("given by the caller", "key-of-the-second")
    options = second.calls[0].request.options
    assert (options.temperature, options.max_tokens) == (None, 7)
    response = await model.prompt("Hi", temperature=1.5)
    assert first.calls[1].key == "key-of-the-first"
    options = second.calls[1].request.options
    assert (options.temperature, options.max_tokens) == (1.5, 7)
    assert response.prompt is second.calls[1].request


async def test_coerced_option_is_not_the_fallbacks(site):
    """A configured option that the model converts is not sent to the fallback."""
    first, second = ScriptedModel("first", [down()]), ScriptedModel("second", ["Hello"])
    reference = {"model": "first", "options": {"temperature": "0.1", "max_tokens": 7}}
    llms = site(first, second, retries=0, default_model=reference, fallbacks=["second"])
    await (await llms.model()).prompt("Hi", max_tokens=8)
    assert first.calls[0].request.options.temperature == 0.1
    options = second.calls[0].request.options
    assert (options.temperature, options.max_tokens) == (None, 8)


class Plain(ScriptedModel):
    """Takes no options."""

    class Options(llm.Options):
        pass


async def test_options_unknown_to_fallback_are_left_out(site):
    first, second = ScriptedModel("first", [down()]), Plain("second", ["Hello"])
    llms = site(first, second, retries=0, fallbacks=["second"])
    response = await (await llms.model("first")).prompt("Hi", temperature=1.5)
    assert await response.text() == "Hello"


def tool() -> str:
    """A tool."""
    return "done"


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("needs", "lacks", "why"),
    [
        ({"schema": {"type": "object"}}, {"supports_schema": False}, "schemas"),
        ({"tools": [tool]}, {"supports_tools": False}, "tools"),
        (
            {"attachments": [llm.Attachment(type="image/png", content=PNG)]},
            {"attachment_types": ()},
            "attachments",
        ),
        (
            {"attachments": [llm.Attachment(type="image/png", content=PNG)]},
            {"attachment_types": ("audio/wav",)},
            "attachments of type 'image/png'",
        ),
    ],
)
async def test_fallback_without_the_feature_is_skipped(site, needs, lacks, why):
    everything = {"attachment_types": ("image/png",)}
    first = ScriptedModel("first", [down()], [ConnectionError("again")], **everything)
    second = ScriptedModel("second", **(everything | lacks))
    third = ScriptedModel("third", ["Hello"], **everything)
    llms = site(first, second, third, retries=0, fallbacks=["second", "third"])
    model = await llms.model("first")
    response = await model.prompt("Hi", **needs)
    assert await response.text() == "Hello"
    assert (len(second.calls), len(third.calls)) == (0, 1)
    llms.datasette.config["plugins"]["datasette-llm"]["fallbacks"] = ["second"]
    with pytest.raises(ConnectionError, match="again") as caught:
        await (await llms.model("first")).prompt("Hi", **needs)
    [note] = caught.value.__notes__
    assert note.startswith("Fallback 'second' was not asked: ValueError: ")
    assert f"does not support {why}" in note


async def test_fallback_that_does_not_stream(site):
    first = ScriptedModel("first", [down()])
    second = ScriptedModel("second", ["Hel", "lo"], can_stream=False)
    response = await (await site(first, second, fallbacks=["second"]).model("first")).prompt("Hi")
    assert await response.text() == "Hello"
    assert second.calls[0].stream is False


async def test_a_fallback_passes_the_same_policy(site, plugin, caplog):
    class OnlyFirst:
        __name__ = "only-first"

        @hookimpl
        def llm_filter_models(self, models, actor, purpose):
            if (actor or {}).get("id") == "guest":
                return [model for model in models if model.model_id != "second"]
            return None

    plugin(OnlyFirst())
    first, second = ScriptedModel("first", [down()]), ScriptedModel("second", ["Hello"])
    llms = site(first, second, retries=0, fallbacks=["second"])
    with pytest.raises(ConnectionError) as caught:
        await (await llms.model("first", actor={"id": "guest"})).prompt("Hi")
    assert second.calls == []
    [note] = caught.value.__notes__
    assert note.startswith("Fallback 'second' was not asked: ModelNotAllowedError: ")
    assert "only-first" in note
    assert note in caplog.text
    response = await (await llms.model("first", actor={"id": "root"})).prompt("Hi")
    assert await response.text() == "Hello"
    with pytest.raises(ModelNotAllowedError):
        await llms.model("second", actor={"id": "guest"})


@pytest.mark.parametrize("name", ["blocked", "unknown"])
async def test_forbidden_fallback_is_skipped(site, name):
    first, blocked = ScriptedModel("first", [down()]), ScriptedModel("blocked")
    third = ScriptedModel("third", ["Hello"])
    llms = site(
        first, blocked, third, retries=0, blocked_models=["blocked"], fallbacks=[name, "third"]
    )
    response = await (await llms.model("first")).prompt("Hi")
    assert await response.text() == "Hello"
    assert blocked.calls == []


async def test_fallbacks_of_fallbacks_run_once_each(site):
    """The fallbacks of a fallback follow it, and no model is asked twice."""
    models = [ScriptedModel(name, [down()]) for name in "abcd"]
    llms = site(
        *models,
        retries=0,
        purposes={
            "chat": {
                "models": [{"model": "b", "fallbacks": ["c"]}, "a", "d", "c"],
                "fallbacks": ["a", "b", "d", "b"],
            }
        },
    )
    with pytest.raises(ConnectionError) as caught:
        await (await llms.model("a", purpose="chat")).prompt("Hi")
    assert [len(model.calls) for model in models] == [1, 1, 1, 1]
    assert [note.split()[1] for note in caught.value.__notes__] == ["'b'", "'c'", "'d'"]


async def test_next_chain_step_asks_requested_model(site):
    call = llm.ToolCall(name="tool", arguments={}, tool_call_id="t1")
    first = ScriptedModel("first", [down()], ["Done"])
    second = ScriptedModel("second", [call])
    llms = site(first, second, retries=0, fallbacks=["second"])
    chain = (await llms.model("first")).chain("Hi", tools=[tool])
    answers = [(await step.text(), step.model.model_id) async for step in chain.responses()]
    assert answers == [("", "second"), ("Done", "first")]


async def test_conversation_keeps_turn_of_fallback(site):
    first = ScriptedModel("first", [down()], ["Two"])
    second = ScriptedModel("second", ["One"])
    conversation = (
        await site(first, second, retries=0, fallbacks=["second"]).model("first")
    ).conversation()
    await (await conversation.prompt("1")).text()
    await (await conversation.prompt("2")).text()
    assert [message.role for message in first.calls[1].request.messages] == [
        "user",
        "assistant",
        "user",
    ]


async def test_reply_goes_to_the_model_that_answered(site):
    first = ScriptedModel("first", [down()], ["no"])
    second = ScriptedModel("second", ["One"], ["Two"])
    llms = site(first, second, retries=0, fallbacks=["second"])
    response = await (await llms.model("first")).prompt("1")
    reply = await response.reply("2")
    assert await reply.text() == "Two"


async def test_reply_to_fallback_has_timeout_fallbacks(site):
    """A reply to a fallback has the timeout and the fallbacks of any prompt."""
    first = ScriptedModel("first", [down()])
    second = ScriptedModel("second", ["One"], [down()], [asyncio.Event()])
    third = ScriptedModel("third", ["Two"])
    llms = site(first, second, third, retries=0, timeout=0.05, fallbacks=["second", "third"])
    response = await (await llms.model("first")).prompt("1")
    reply = await response.reply("2")
    assert await reply.text() == "Two"
    assert [message.role for message in third.calls[0].request.messages] == [
        "user",
        "assistant",
        "user",
    ]
    async with asyncio.timeout(1):
        with pytest.raises(ResponseTimeoutError):
            await response.reply("3")


async def test_error_contains_no_key_of_any_attempt(site, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_FIRST_API_KEY", "sk-of-the-first-model")
    monkeypatch.setenv("DATASETTE_SECRETS_SECOND_API_KEY", "sk-of-the-second-model")
    first = ScriptedModel("first", [ConnectionError("sk-of-the-first-model")], needs_key="first")
    second = ScriptedModel(
        "second", [ConnectionError("sk-of-the-second-model")], needs_key="second"
    )
    llms = site(first, second, log=True, retries=1, fallbacks=["second"])
    with pytest.raises(ConnectionError) as caught:
        await (await llms.model("first")).prompt("Hi")
    said = (
        repr(caught.value) + repr(caught.value.__notes__) + repr(await flushed_rows(llms.datasette))
    )
    assert "[key removed]" in said
    assert "sk-of" not in said


async def test_timeout_covers_all_attempts(site):
    first = ScriptedModel("first", [down()])
    second = ScriptedModel("second", [asyncio.Event()])
    llms = site(first, second, retries=0, fallbacks=["second"], timeout=0.05)
    with pytest.raises(ResponseTimeoutError) as caught:
        await (await llms.model("first")).prompt("Hi")
    assert caught.value.setting == "timeout"
    assert caught.value.__notes__ == ["Model 'first' had failed before: ConnectionError: refused"]
    assert second.calls[0].outcome == "cancelled"


@pytest.mark.parametrize("script", [[down()], [asyncio.Event()]], ids=["failed", "hung"])
async def test_idle_timeout_ends_with_its_attempt(site, script):
    first = ScriptedModel("first", script)
    second = ScriptedModel("second", ["Hel", 0.05, "lo"])
    reference = {"model": "first", "idle_timeout": 0.02, "fallbacks": ["second"]}
    llms = site(first, second, retries=0, default_model=reference)
    response = await (await llms.model()).prompt("Hi")
    assert await response.text() == "Hello"


@pytest.mark.parametrize("needs_key", ["second", None])
async def test_fallback_key_does_not_replace_steps_key(site, monkeypatch, needs_key):
    """The key of a fallback is not taken for that of the next step."""
    monkeypatch.setenv("DATASETTE_SECRETS_FIRST_API_KEY", "sk-of-the-first-model")
    monkeypatch.setenv("DATASETTE_SECRETS_SECOND_API_KEY", "sk-of-the-second-model")
    call = llm.ToolCall(name="tool", arguments={}, tool_call_id="t1")
    refused = ConnectionError("sk-of-the-first-model is refused")
    first = ScriptedModel("first", [down()], [refused], needs_key="first")
    second = ScriptedModel("second", [call], [down()], needs_key=needs_key)
    llms = site(first, second, log=True, retries=0, fallbacks=["second"])
    with pytest.raises(ConnectionError) as caught:
        await (await llms.model("first")).chain("Hi", tools=[tool]).text()
    said = repr(caught.value) + repr(await flushed_rows(llms.datasette))
    assert "[key removed] is refused" in said
    assert "sk-of" not in said


async def test_timeout_covers_fallback_filters(site, plugin):
    """The timeout covers the filters that a fallback has to pass."""

    class Slow:
        __name__ = "slow"
        asked = 0

        @hookimpl
        async def llm_filter_models(self, models):
            self.asked += 1
            if self.asked > 1:
                await asyncio.Event().wait()
            return models

    plugin(Slow())
    failure = down()
    first, second = ScriptedModel("first", [failure]), ScriptedModel("second")
    llms = site(first, second, retries=0, fallbacks=["second"], timeout=0.05)
    with pytest.raises(ResponseTimeoutError) as caught:
        await (await llms.model("first")).prompt("Hi")
    assert caught.value.__cause__ is failure
    assert second.calls == []


class Swallowing:
    """A filter that does not let itself be cancelled once it is asked about a fallback."""

    __name__ = "swallowing"

    def __init__(self, model):
        self.model = model
        self.asked = asyncio.Event()

    @hookimpl
    async def llm_filter_models(self):
        if self.model.calls:
            self.asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


async def test_no_fallback_after_the_call_was_cancelled(site, plugin):
    first, second = ScriptedModel("first", [StatusError(401)]), ScriptedModel("second")
    swallowing = plugin(Swallowing(first))
    model = await site(first, second, fallbacks=["second"]).model("first")
    prompt = asyncio.create_task(model.prompt("Hi"))
    await swallowing.asked.wait()
    prompt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prompt
    assert second.calls == []


async def test_no_fallback_after_the_timeout(site, plugin):
    first, second = ScriptedModel("first", [StatusError(401)]), ScriptedModel("second")
    plugin(Swallowing(first))
    llms = site(first, second, fallbacks=["second"], timeout=0.05)
    with pytest.raises(ResponseTimeoutError):
        await (await llms.model("first")).prompt("Hi")
    assert second.calls == []


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
async def test_fallback_is_recorded_by_current_log(make_datasette, register_models, before, after):
    """The setting `log` may change between the first model and its fallback."""

    class Switching(ScriptedModel):
        async def execute(self, *args, **kwargs):
            datasette.config["plugins"]["datasette-llm"]["log"] = after
            raise down()
            yield

    register_models(Switching("first"), ScriptedModel("second", ["Hello"]))
    datasette = make_datasette({"log": before, "retries": 0, "fallbacks": ["second"]})
    response = await (await LLM(datasette).model("first")).prompt("Hi")
    assert await response.text() == "Hello"
    models = [row["model_id"] for row in await flushed_rows(datasette)]
    assert models == (["first"] if before else ["second"])


async def test_retry_is_one_bounded_log_line(site, caplog):
    error = StatusError(503)
    error.args = (f"busy\n\x1b[31m{'x' * 100_000}",)
    model = ScriptedModel("m", [error], ["Hello"])
    response = await (await site(model).model("m")).prompt("Hi")
    assert await response.text() == "Hello"
    [message] = [each.getMessage() for each in caplog.records if "Retrying" in each.getMessage()]
    assert message.startswith("Retrying model 'm' in 0.5 s after StatusError: busy  [31mxxx")
    assert len(message) < 400
    assert message.isprintable()

"""Answers in the dialects of real servers, over HTTP: what callers, log and provider get."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import threading
from typing import Any

import llm
import openai
import pytest

from datasette_llm import LLM, IncompleteAnswerError, ProviderError, ResponseTimeoutError
from datasette_llm.log.recorder import Recorder
from datasette_llm.providers import activity, chat_completions, chat_reader

from ..support.dialects import (
    CALLED,
    DONE,
    STOP,
    USAGE,
    calls,
    delta,
    document,
    events,
    http,
    piece,
    sse,
    text,
    whole,
)
from ..support.exceptions import all_texts
from ..support.openai_server import Cut, Drop, Raw, write_model
from ..support.waiting import soon

HEAD = Raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
TEXT = "Hello you"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_INITIAL_S", 0)
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_JITTER_S", 0)


@pytest.fixture
def model(make_datasette, server):
    """A function that gives the endpoint's model; its settings, and those of all, may be given."""

    async def model(config: dict[str, Any] | None = None, **settings: Any) -> Any:
        endpoint = {"model": "local", "api_base": server.url, "supports_tools": True} | settings
        datasette = make_datasette({"endpoints": [endpoint]} | (config or {}))
        await datasette.invoke_startup()
        return await LLM(datasette).model("local")

    return model


async def read(model, **kwargs):
    return await soon((await soon(model.prompt("Hi", **kwargs))).text())


async def rows(model):
    datasette = model.route.datasette
    await Recorder.of(datasette).writer.flush()
    internal = datasette.get_internal_database()
    return [dict(row) for row in (await internal.execute("select * from llm_calls")).rows]


ENDED = b'{"choices": [{"finish_reason": "stop"}]}'
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}


@pytest.mark.parametrize(
    "answer",
    [
        sse(b": ping\n\n", text("Hello "), b"data: null\n\n", text("you"), STOP),
        sse(text(TEXT), {"choices": [{"index": 0, "content_filter_results": {}}]}, STOP),
        sse({"prompt_filter_results": []}, text(TEXT), STOP),
        sse(text(TEXT), STOP, {"choices": None, "usage": USAGE}),
        sse(text(TEXT), STOP, done=False),
        sse(text(TEXT), {"choices": [{"delta": None, "finish_reason": "stop"}]}),
        sse({"choices": {"index": 0, "delta": {"content": TEXT}}}, STOP),
        sse(delta({"content": [THINKING]}), text(TEXT), STOP),
        sse(text([{"type": "text", "text": "Hello "}, "you"]), STOP),
        sse({"choices": [{"index": 1, "delta": {"content": "no"}}]}, text(TEXT), STOP),
        sse({"choices": [{"index": 0, "text": TEXT, "finish_reason": "stop"}]}),
        sse(text(TEXT), {"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}]}),
        sse(text(TEXT), STOP, {"error": "after the end"}, b"data: {\n\n"),
        sse(text(TEXT), delta({}, {"type": "stop"})),
        http(b"\n\n\n" + events({"choices": [{"message": {"content": TEXT}}]}, done=False)),
        whole(TEXT),
        whole(TEXT, None),
        whole([{"type": "text", "text": TEXT}]),
        http(events({"choices": [{"message": {"content": TEXT}}]}, done=False)),
        http(json.dumps({"choices": [{"message": {"content": TEXT}}]}, indent=2).encode()),
        http(gzip.compress(events(text(TEXT), STOP)), "content-encoding: gzip"),
        http(
            b"\xef\xbb\xbf" + events(text(TEXT)) + b'data: {"choices": [{"finish_reason": "stop"}]}'
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_w1_w2_complete_answer_is_an_answer(answer, stream, server, model):
    server.play([answer])
    model = await model({"retries": 0})
    assert await read(model, stream=stream) == TEXT
    [row] = await rows(model)
    assert row["outcome"] == "ok"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (sse(text("Hel"), delta({}, "abort")), "The answer broke off.*abort"),
        (sse(delta({}, "error")), "gave up before its answer.*error"),
        (whole("", "error"), "gave up before its answer.*error"),
        (whole("Hel", "abort"), "The answer broke off.*abort"),
        (sse(text("Hel"), delta({}, "insufficient_system_resource")), "broke off.*insufficient"),
        (sse(delta({}, "function_call_filter: MALFORMED_FUNCTION_CALL")), "MALFORMED"),
        (sse(delta({}, {"type": "abort", "message": "No room"})), "abort.: No room"),
        (sse(text("Hel"), delta({}, "load")), "load"),
        (sse(text("Hel"), done=False), "The answer broke off: .*no .finish_reason"),
        (sse(done=False), "before it had said anything; its own log"),
        (sse(), r"\[DONE\].*before it had said anything.*set max_concurrency: 1"),
        (sse(b": ping\n\n"), "before it had said anything"),
        (document(b""), "before it had said anything"),
        (document(b"<title>Log in</title>"), "no answer, but a page of HTML, 'Log in'"),
        (http(b"Internal Server Error"), "no answer, but Internal Server Error"),
        (document({"message": "Unexpected endpoint"}), "no answer, but Unexpected endpoint"),
    ],
)
async def test_w2_incomplete_answer_is_a_failure(answer, told, server, model):
    """It is tried again, since nothing was read, and it is on record as what it is."""
    server.play([answer], [sse(text(TEXT), STOP)])
    model = await model()
    begun = b"Hel" in answer.data
    if not begun:
        assert await read(model) == TEXT
        assert [row["outcome"] for row in await rows(model)] == ["error", "ok"]
        server.requests.clear()
    server.play([answer])
    with pytest.raises(IncompleteAnswerError, match=told) as caught:
        await read(model)
    assert isinstance(caught.value, ConnectionError)
    assert len(server.requests) == (1 if begun else 3)
    assert (await rows(model))[-1]["outcome"] == "error"
    assert ("broke off" in str(caught.value)) == begun


async def test_w2_done_without_a_reason_may_be_complete(server, model):
    """Some servers never give a reason; of one that does, an answer without is not complete."""
    model = await model({"retries": 0})
    server.play([sse(text(TEXT))])
    assert await read(model) == TEXT
    server.play([sse(text(TEXT), STOP)])
    assert await read(model) == TEXT
    server.play([sse(text(TEXT))])
    with pytest.raises(IncompleteAnswerError, match=r"this model have had\. If the server"):
        await read(model)


async def test_w2_reasons_are_recalled_at_the_start(server, make_datasette, tmp_path):
    """A process that has just started knows from the call log that the model gives reasons."""
    config = {"endpoints": [{"model": "local", "api_base": server.url}], "retries": 0}
    for answer, fails in ((sse(text(TEXT), STOP), False), (sse(text("Hel")), True)):
        server.play([answer])
        datasette = make_datasette(config, internal=str(tmp_path / "internal.db"))
        await datasette.invoke_startup()
        model = await LLM(datasette).model("local")
        if fails:
            with pytest.raises(IncompleteAnswerError):
                await read(model)
        else:
            assert await read(model) == TEXT
        await datasette.invoke_shutdown()


async def test_w2_whole_answer_needs_no_reason(server, model):
    model = await model({"retries": 0})
    server.play([sse(text(TEXT), STOP)], [whole(TEXT, None)])
    assert await read(model) == TEXT
    assert await read(model) == TEXT


@pytest.mark.parametrize("reason", ["stop", "null"])
async def test_w2_reason_with_every_part(reason, server, model):
    """As of Gemini behind some gateways: the answer goes on."""
    parts = [(Raw(events(text("word ", reason), done=False)), 0.3) for _ in range(5)]
    end = Raw(events(delta({}, "length")))
    server.play([HEAD, *(item for part in parts for item in part), end])
    response = await soon((await model()).prompt("Hi"))
    assert await response.text() == "word " * 5
    assert response.finish_reason == "length"


async def test_w2_failure_after_a_part_with_a_reason(server, model):
    """Of a server that gives a reason with every part, it may have been any part."""
    server.play([sse(text("Hel", "stop"), text("lo", "stop"), {"error": "died"}, done=False)])
    with pytest.raises(openai.APIError, match="broke off: died"):
        await read(await model({"retries": 0}))


async def test_w2_finished_answer_waits_less_than_idle(server, model):
    """A complete answer is no timeout."""
    server.play([HEAD, Raw(events(text(TEXT), STOP, done=False)), asyncio.Event()])
    assert await read(await model({"retries": 0}, idle_timeout=0.4)) == TEXT


async def test_w2_finished_answer_ends_soon(server, model):
    """Whether or not the connection closes, and whatever is sent on it."""
    pings = [item for _ in range(1_000) for item in (0.01, Raw(b": ping\n\n"))]
    server.play([HEAD, Raw(events(text(TEXT), STOP, done=False)), *pings])
    model = await model()
    async with asyncio.timeout(5):
        assert await read(model) == TEXT
    assert await server.requests[0].end() == "client gone"


# The idle timeout


async def test_w1_reasoning_is_a_sign_of_life(server, model):
    thoughts = [
        part
        for _ in range(20)
        for part in (0.1, Raw(events(delta({"reasoning": "hm "}), done=False)))
    ]
    server.play([HEAD, *thoughts, Raw(events(text(TEXT), STOP))])
    model = await model(idle_timeout=1)
    response = await soon(model.prompt("Hi"))
    seen = [(event.type, event.chunk) async for event in response.astream_events()]
    assert seen == [("reasoning", "hm ")] * 20 + [("text", TEXT)]
    assert len(server.requests) == 1


async def test_w1_events_without_an_answer_are_signs_of_life(server, model):
    nothing = [part for _ in range(20) for part in (0.1, Raw(b'data: {"choices": []}\n\n'))]
    server.play([HEAD, *nothing, Raw(events(text(TEXT), STOP))])
    assert await read(await model(idle_timeout=1)) == TEXT


@pytest.mark.parametrize(
    "ping", [b": ping\n\n", b"data: null\n\n", b"event: ping\ndata: {}\n\n", b":"]
)
async def test_w1_keep_alives_alone_end_a_call(ping, server, model, monkeypatch):
    monkeypatch.setattr(activity, "QUIET_IDLE_TIMEOUTS", 2)
    pings = [part for _ in range(1_000) for part in (0.05, Raw(ping))]
    server.play([HEAD, *pings])
    model = await model({"retries": 0}, idle_timeout=0.3)
    with pytest.raises((ProviderError, ResponseTimeoutError), match=r"0\.[36] seconds"):
        await read(model)
    assert await server.requests[0].end() == "client gone"


async def test_w1_headers_that_never_end_end_a_call(server, model, monkeypatch):
    monkeypatch.setattr(activity, "QUIET_S", 0.3)
    hints = [part for _ in range(1_000) for part in (0.05, Raw(b"HTTP/1.1 102 X\r\n\r\n"))]
    server.play(hints)
    with pytest.raises(openai.APITimeoutError, match="sent nothing for too long"):
        await read(await model({"retries": 0}))
    assert await server.requests[0].end() == "client gone"


async def test_w1_silence_ends_a_call_without_timeouts(server, model, monkeypatch):
    monkeypatch.setattr(activity, "QUIET_S", 0.3)
    server.play([HEAD, asyncio.Event()])
    with pytest.raises(openai.APITimeoutError, match="sent nothing for too long"):
        await read(await model({"retries": 0}))


# Why it ended, and what is on record


async def test_w3_refusal_is_the_answers_text(server, model):
    server.play([sse(delta({"refusal": "I cannot "}), delta({"refusal": "do that"}), STOP)])
    response = await soon((await model()).prompt("Hi"))
    assert await response.text() == "I cannot do that"
    summary = await response.json()
    assert summary["refusal"] == "I cannot do that"
    assert summary["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (USAGE, (3, 2)),
        ({"prompt_tokens": 3}, (3, None)),
        ({"input_tokens": 3, "output_tokens": 2}, (3, 2)),
        ({"prompt_tokens": "many", "completion_tokens": -1}, (None, None)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_w7_usage_of_any_shape(usage, counted, stream, server, model):
    server.play([sse(text(TEXT), STOP, {"choices": [], "usage": usage})])
    if not stream:
        server.play([whole(TEXT, usage=usage)])
    model = await model()
    response = await soon(model.prompt("Hi", stream=stream))
    assert await response.text() == TEXT
    assert (response.input_tokens, response.output_tokens) == counted


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [], "x_groq": {"usage": USAGE}},
        {"choices": [{"index": 0, "delta": {}, "usage": USAGE}]},
        {"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": 2}},
    ],
)
async def test_w7_usage_in_other_places(event, server, model):
    early = {"usage": {"prompt_tokens": 3}}
    server.play([sse(text(TEXT) | early, event, STOP)])
    response = await soon((await model()).prompt("Hi"))
    await response.text()
    assert (response.input_tokens, response.output_tokens) == (3, 2)


async def test_w7_usage_counts_though_it_broke_off(server, model):
    server.play([sse(text("Hel") | {"usage": USAGE, "model": "m-2"}, delta({}, "abort"))])
    model = await model({"retries": 0})
    with pytest.raises(IncompleteAnswerError):
        await read(model)
    [row] = await rows(model)
    assert (row["input_tokens"], row["output_tokens"], row["resolved_model"]) == (3, 2, "m-2")


async def test_w7_model_is_what_the_server_says(server, model):
    server.play([sse(text(TEXT) | {"model": "qwen-3:8b"}, STOP)])
    model = await model()
    await read(model)
    assert [row["resolved_model"] for row in await rows(model)] == ["qwen-3:8b"]


# Errors


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (document({"error": "Unexpected endpoint"}), "failed: Unexpected endpoint"),
        (document({"error": {"message": "No", "code": 502}}), "failed: No"),
        (sse({"error": {"message": "CUDA out of memory"}}), "failed: CUDA out of memory"),
        (
            document({"choices": [{"error": {"message": "No", "code": 502}, "message": {}}]}),
            "failed: No",
        ),
        (sse(text("Hel"), {"error": "CUDA out of memory"}), "broke off: CUDA out of memory"),
        (sse(b"event: error\ndata: out of memory\n\n"), "failed: out of memory"),
        (sse(text("Hel"), b'{"error": {"message": "unframed"}}\n'), "broke off: unframed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_w4_error_in_a_200_is_told(answer, told, stream, server, model):
    server.play([answer])
    model = await model({"retries": 0})
    with pytest.raises(openai.APIError, match=told):
        await read(model, stream=stream)
    [row] = await rows(model)
    assert told.partition(": ")[2] in row["error_message"]


async def test_w4_stream_options_are_left_out_if_refused(server, model):
    """Asked once without, and from then on."""
    no = {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}
    server.play([document(no, 422)], [sse(text(TEXT), STOP)])
    model = await model()
    assert await read(model) == TEXT
    assert await read(model) == TEXT
    sent = ["stream_options" in request.body for request in server.requests]
    assert sent == [True, False, False]
    assert [row["outcome"] for row in await rows(model)] == ["ok", "ok"]


async def test_w4_refusal_that_hangs_is_told(server, model):
    """Its body never ends."""
    no = http(b'{"error": "No such key"}', "content-length: 500", status=401)
    server.play([no, asyncio.Event()])
    with pytest.raises(openai.AuthenticationError, match="No such key"):
        await read(await model(idle_timeout=9))


async def test_w4_no_exception_holds_the_request(server, model):
    """Its headers hold the key."""
    server.play([Cut(0)])
    with pytest.raises(openai.APIConnectionError) as caught:
        await read(await model({"retries": 0}))
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "authorization" not in caught.value.request.headers


KEY = "sk-" + "0a1B2c3D4e5F6g7H8"
# How a server may repeat a key, at the places where a text is cut.
REPEATED = {
    "a reason": (500, lambda text: document({"error": {"message": text + "z" * 600}}, 400)),
    "no JSON": (500, lambda text: sse(text.encode() + b"z" * 600 + b"\n\n", done=False)),
    "an event": (500, lambda text: sse({"error": text + "z" * 600})),
    "a long body": (64 * 1024, lambda text: http(f"{text} {'z' * 9}".encode(), status=500)),
    "a call": (100, lambda text: sse(calls(piece("count", text + "z" * 99)), CALLED)),
}


@pytest.mark.parametrize("spell", [str, lambda key: base64.b64encode(key.encode()).decode()])
@pytest.mark.parametrize("place", REPEATED)
async def test_s4_no_cut_leaves_a_part_of_a_key(place, spell, server, model):
    limit, answer = REPEATED[place]
    asked, form = await model({"retries": 0}), spell(KEY)
    parts = [form[n : n + 6] for n in range(3, len(form) - 9)]
    for at in range(limit - len(form) - 5, limit + 2):
        start = "data: {" if place == "no JSON" else ""
        server.play([answer(start + "x " * (at // 2) + "-" * (at % 2) + form)])
        with pytest.raises((openai.APIError, ProviderError)) as caught:
            await read(asked, key=KEY)
        found = all_texts(caught.value) + repr(getattr(caught.value, "response", None))
        found += getattr(getattr(caught.value, "response", None), "text", "")
        assert not [part for part in parts if part in found], (at, found)
    found = repr(await rows(asked))
    assert not [part for part in parts if part in found]


@pytest.mark.parametrize("sent", [10, 17, 25])
async def test_s4_broken_off_body_leaves_no_part(sent, server, model):
    body = f"Bad key {KEY} in your request".encode()
    head = f"HTTP/1.1 401 X\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    server.play([Raw(head + body[:sent]), Drop.CLOSE])
    with pytest.raises(
        openai.AuthenticationError, match="answered 401 Unauthorized: Bad"
    ) as caught:
        await read(await model({"retries": 0}), key=KEY)
    found = all_texts(caught.value) + caught.value.response.text
    assert KEY[:6] not in found


async def test_c8_llms_own_models_read_no_keys(server, llm_folder, make_datasette, monkeypatch):
    """keys.json is read in a thread, once a prompt, and not by llm on the event loop."""
    write_model(llm_folder, server.url, api_key_name="openai")
    (llm_folder / "keys.json").write_text('{"openai": "sk-of-the-file"}')
    asked = await LLM(make_datasette()).model("wire")
    threads = []
    load_keys = llm.load_keys

    def noted():
        threads.append(threading.get_ident())
        return load_keys()

    monkeypatch.setattr(llm, "load_keys", noted)
    server.play(["Hello"])
    await read(asked)
    assert [request.key for request in server.requests] == ["sk-of-the-file"]
    assert threads
    assert threading.get_ident() not in threads


# Tools


def count(table: str) -> int:
    """The rows of a table"""
    return 20


async def chain_requests(model, server, *answers):
    server.play(*([answer] for answer in answers))
    chain = model.chain("How many?", tools=[count], chain_limit=5)
    assert await soon(chain.text()) == TEXT
    return [request.body["messages"] for request in server.requests]


SHIPS = '{"table": "ships"}'


async def test_w5_history_has_each_call_with_one_id(server, model):
    pieces = calls(piece("count", SHIPS), piece("count", SHIPS, index=1))
    model = await model({"retries": 0})
    _, messages = await chain_requests(model, server, sse(pieces, CALLED), sse(text(TEXT), STOP))
    made = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert made == answered
    assert len(set(made)) == 2


async def test_w5_old_function_call_is_a_tool_call(server, model):
    old = {"function_call": {"name": "count", "arguments": SHIPS}}
    first = sse(delta(old), delta({}, "function_call"))
    _, messages = await chain_requests(await model(), server, first, sse(text(TEXT), STOP))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]


async def test_w5_whole_answer_has_its_calls(server, model):
    message = {"content": None, "tool_calls": [piece("count", SHIPS, index=None, call_id="a")]}
    first = document({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    model = await model(can_stream=False)
    _, messages = await chain_requests(model, server, first, whole(TEXT))
    assert messages[-1] == {"role": "tool", "tool_call_id": "a", "content": "20"}


async def test_w5_signature_and_reasoning_go_back(server, model):
    """Gemini's signatures for good, reasoning until the user's next turn."""
    extra = {"google": {"thought_signature": "SIG"}}
    first = sse(
        delta({"reasoning_content": "Let me "}),
        delta({"reasoning_content": "count", "reasoning_details": [{"type": "x"}]}),
        calls(piece("count", SHIPS, call_id="a", extra_content=extra)),
        CALLED,
    )
    conversation = (await model()).conversation(tools=[count])
    server.play([first], [sse(text(TEXT), STOP)])
    await soon(conversation.chain("How many?").text())
    await soon((await soon(conversation.prompt("Thanks"))).text())
    _, second, third = (request.body["messages"] for request in server.requests)
    [now] = [message for message in second if message["role"] == "assistant"]
    later = next(message for message in third if message.get("tool_calls"))
    assert now["reasoning_content"] == "Let me count"
    assert now["reasoning_details"] == [{"type": "x"}]
    assert "reasoning_content" not in later
    assert [m["tool_calls"][0]["extra_content"] for m in (now, later)] == [extra, extra]


async def test_w5_cut_off_call_does_not_run(server, model):
    ran = []

    def note(table: str) -> str:
        """Notes"""
        ran.append(table)
        return ""

    server.play([sse(calls(piece("note", '{"table": "sh', call_id="a")), delta({}, "length"))])
    with pytest.raises(ProviderError, match=r"of the tool 'note'.*\"length\""):
        await soon((await model()).chain("Note", tools=[note]).text())
    assert ran == []


# Bounds


async def test_flood_of_comments_is_ended(server, model, monkeypatch):
    monkeypatch.setattr(chat_completions, "MAX_EMPTY_BYTES", 100_000)
    server.play([HEAD, *[Raw(b": x\n" * 1_000)] * 1_000])
    with pytest.raises(ProviderError, match="without a part of its answer"):
        await read(await model({"retries": 0}))
    assert await server.requests[0].end() == "client gone"


async def test_false_compression_is_told(server, model):
    server.play([http(events(text(TEXT), STOP), "content-encoding: gzip")])
    with pytest.raises(openai.APIConnectionError, match="cannot be decompressed"):
        await read(await model({"retries": 0}))


# llm's own models


async def test_llms_own_models_understand_dialects(server, llm_folder, make_datasette, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", "sk-wire-0123456789")
    write_model(llm_folder, server.url)
    server.play([sse(b"data: null\n\n", text(TEXT), {"choices": [{"index": 0}]}, STOP)])
    datasette = make_datasette()
    assert await read(await LLM(datasette).model("wire")) == TEXT
    assert server.requests[0].key == "sk-wire-0123456789"


async def test_options_and_extras_of_a_model_are_sent(server, llm_folder, make_datasette):
    """A subclass of llm's, as other plugins have them, whose options go beside the body."""
    from llm.default_plugins.openai_models import AsyncChat  # imports openai

    class Routed(AsyncChat):
        def build_kwargs(self, prompt, stream):
            extra = {"extra_body": {"provider": "x"}, "extra_headers": {"X-Title": "y"}}
            return super().build_kwargs(prompt, stream) | extra

    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            routed = Routed("routed", api_base=server.url)
            routed.needs_key = None
            register(routed, routed)

    llm.plugins.pm.register(Plugin(), "routed")
    try:
        server.play([sse(text(TEXT), STOP)])
        assert await read(await LLM(make_datasette()).model("routed"), temperature=0.5) == TEXT
    finally:
        llm.plugins.pm.unregister(name="routed")
    [request] = server.requests
    assert (request.body["provider"], request.body["temperature"]) == ("x", 0.5)
    assert request.headers["x-title"] == "y"
    assert "extra_body" not in request.body


def test_w2_broken_reasons_are_no_ordinary_ones():
    assert not chat_reader.BROKEN_REASONS & {"stop", "length", "tool_calls", "content_filter"}
    assert DONE

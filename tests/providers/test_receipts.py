"""K3: what a provider and a gateway call a request, and what the gateway says that it cost."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import httpx2
import llm
import pytest
from datasette.app import Datasette
from llm.default_plugins.openai_models import AsyncResponses

from datasette_llm import LLM, instance, tagged
from datasette_llm.access.pseudonyms import pseudonym
from datasette_llm.calls.cache import Cache
from datasette_llm.events import MAX_ID_CHARS, Receipt
from datasette_llm.providers.receipts import receipt_of
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.dialects import STOP, USAGE, events, http, text
from ..support.openai_server import OpenAIServer, Raw, Refuse
from ..support.response_json import PlainModel
from ..support.waiting import soon, until

ANA = {"id": "ana"}
KEY = "sk-gateway-0123456789"
CREDENTIAL = "s3cret-of-the-gateway"
IDS = ("response_id", "request_id", "gateway_call_id", "gateway_model_id")
COST = ("gateway_cost_nanodollars", "cost_nanodollars", "price_source")
# As a LiteLLM proxy sends them.
LITELLM = ("x-litellm-call-id: call-1", "x-litellm-model-id: gpu-1")
NAMES = ("chatcmpl-1", "req-1", "call-1", "gpu-1")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_INITIAL_S", 0)
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_JITTER_S", 0)


@pytest.fixture
def start(make_datasette: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a Datasette with one endpoint, "team", which may have settings."""
    monkeypatch.setenv("DATASETTE_SECRETS_TEAM_KEY", KEY)

    async def start(config: dict[str, Any] | None = None, **settings: Any) -> Datasette:
        endpoint = {"model": "team", "api_base": server.url, "retries": 0, "key": "TEAM_KEY"}
        more = {"model": "plain", "api_base": server.url, "retries": 0, "key": "TEAM_KEY"}
        datasette = make_datasette({"endpoints": [endpoint | settings, more]} | (config or {}))
        datasette.config["permissions"] = {"view-llm-log": ANA}
        await datasette.invoke_startup()
        return datasette

    return start


def whole(*headers: str, usage: Any = USAGE, **more: Any) -> Raw:
    """A whole answer with headers."""
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-1", "choices": [choice], "usage": usage} | more
    return http(json.dumps(answer).encode(), *headers, kind="application/json")


def stream(*headers: str, usage: Any = USAGE) -> Raw:
    """A stream with headers, and with its usage at the end."""
    first = text("Hi") | {"id": "chatcmpl-1"}
    return http(events(first, STOP, {"choices": [], "usage": usage}), *headers)


async def ask(datasette: Datasette, model_id: str = "team", **kwargs: Any) -> str:
    model = await LLM(datasette).model(model_id, actor=ANA)
    return await (await model.prompt("Hello", **kwargs)).text()


async def recorded(datasette: Datasette, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in await flushed_rows(datasette)]


# Pure: headers, answers, exceptions


class ClientError(Exception):
    """As clients of providers raise them."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("answer", "response_id"),
    [
        ({"id": "chatcmpl-1", "choices": [{"index": 0}]}, "chatcmpl-1"),
        ({"id": "resp_1", "object": "response", "output": [{"id": "msg_1"}]}, "resp_1"),
        ({"id": "msg_1", "type": "message", "content": []}, "msg_1"),
        ({"type": "message_start", "message": {"id": "msg_1"}}, "msg_1"),
        ({"responseId": "gem-1", "candidates": [{"index": 0}]}, "gem-1"),
        ({"chunks": [{"id": "cmpl-1"}, {"id": "cmpl-1"}]}, "cmpl-1"),
        ({"response_id": "co-1", "generation_id": "co-2"}, "co-1"),
        ({"response": {"id": "co-1"}}, "co-1"),
        ({"id": 7, "generation_id": "co-2"}, "co-2"),
        *((odd, None) for odd in ({}, [], 7, "x", {"id": None}, {"id": ""}, {"id": ["x"]})),
    ],
)
def test_k3_response_id_in_answers_of_plugins(answer: Any, response_id: Any) -> None:
    found = receipt_of((), answer, None, streamed=True)
    assert found == Receipt(response_id)


@pytest.mark.parametrize(
    ("error", "request_id"),
    [
        (ClientError(response=httpx2.Response(500, headers={"X-Request-Id": "req-1"})), "req-1"),
        (ClientError(response=httpx2.Response(500, headers={"request-id": "req-1"})), "req-1"),
        (ClientError(headers={"x-request-id": "req-1"}), "req-1"),
        (
            ClientError(
                response={"ResponseMetadata": {"HTTPHeaders": {"x-amzn-requestid": "req-1"}}}
            ),
            "req-1",
        ),
        (ClientError(response=httpx2.Response(500, headers={"apim-request-id": "req-1"})), "req-1"),
        # A gateway passes on the provider's, and has its own.
        (ClientError(headers={"x-request-id": "x", "llm_provider-x-request-id": "req-1"}), "req-1"),
        (ClientError(headers={"x-request-id": 7}), None),
        (ClientError(headers=7), None),
        (ValueError("x"), None),
    ],
)
def test_k3_request_id_in_exceptions_of_clients(error: Exception, request_id: Any) -> None:
    outer = RuntimeError("failed")
    outer.__cause__ = error
    for each in (error, outer):
        assert receipt_of((), None, each, streamed=True) == Receipt(None, request_id)


# Over HTTP


@pytest.mark.parametrize("streaming", [True, False])
async def test_k3_ids_of_provider_and_gateway_are_on_record(
    server: Any, start: Any, streaming: bool
) -> None:
    """They are in the row, on the call's page, in its JSON, in the list's and in the CSV."""
    answer = stream if streaming else whole
    server.play([answer("x-request-id: req-1", *LITELLM, usage=USAGE | {"cost": 0.0005})])
    datasette = await start()
    assert await ask(datasette, stream=streaming) == "Hi"
    assert await recorded(datasette, *IDS, *COST) == [(*NAMES, 500_000, 500_000, "gateway")]
    [(call_id,)] = await recorded(datasette, "id")
    get = datasette.client.get
    page = (await get(f"/-/llm/log/{call_id}", actor=ANA)).text
    assert [name for name in (*NAMES, "$0.0005", "gateway") if f"<dd>{name}</dd>" not in page] == []
    one = (await get(f"/-/llm/log/{call_id}.json", actor=ANA)).json()["call"]
    [listed] = (await get("/-/llm/log.json", actor=ANA)).json()["rows"]
    [cells] = csv.DictReader(io.StringIO((await get("/-/llm/log.csv", actor=ANA)).text))
    for row in (one, listed, cells):
        assert tuple(row[name] for name in IDS) == NAMES
        assert int(row["gateway_cost_nanodollars"]) == 500_000
    assert one["gateway_cost_dollars"] == listed["gateway_cost_dollars"] == 0.0005


# Header, cost in the usage; nano-dollars of a stream and of another answer.
COSTS: list[tuple[Any, Any, int | None, int | None]] = [
    ("1.35e-05", None, 13_500, 13_500),
    (None, 1.35e-05, 13_500, 13_500),
    ("0.5", 1.35e-05, 13_500, 13_500),
    # The header of a stream is sent before there is a cost.
    ("0", None, None, 0),
    ("0.0", None, None, 0),
    ("0.0", 1.35e-05, 13_500, 13_500),
    (None, 0, 0, 0),
    (None, None, None, None),
    ("1000000", None, 10**15, 10**15),
    *(
        (odd, None, None, None)
        for odd in ("-1", "nan", "inf", "-inf", "1e300", "1000001", "None", "$1", "1,5", "")
    ),
    *(
        (None, odd, None, None)
        for odd in (-1, 10**400, 1e300, True, "a lot", {"total_cost": 1}, [1])
    ),
]


async def test_k3_gateways_cost_is_believed_if_plausible(server: Any, start: Any) -> None:
    scripts, expected = [], []
    for header, of_usage, *costs in COSTS:
        headers = [] if header is None else [f"x-litellm-response-cost: {header}"]
        usage = USAGE if of_usage is None else USAGE | {"cost": of_usage}
        scripts += [[stream(*headers, usage=usage)], [whole(*headers, usage=usage)]]
        expected += [
            (header, of_usage, cost, cost, None if cost is None else "gateway") for cost in costs
        ]
    server.play(*scripts)
    datasette = await start()
    for number in range(len(scripts)):
        assert await ask(datasette, stream=number % 2 == 0) == "Hi"
    rows = await recorded(datasette, *COST)
    given = [case[:2] for case in COSTS for _ in range(2)]
    assert [(*case, *row) for case, row in zip(given, rows, strict=True)] == expected


async def test_k3_configured_price_precedes_the_gateways(server: Any, start: Any) -> None:
    server.play([whole("x-litellm-response-cost: 0.5")])
    datasette = await start({"log": {"prices": {"team": {"input": 1, "output": 1}}}})
    await ask(datasette, stream=False)
    assert await recorded(datasette, *COST) == [(500_000_000, 5_000, "configuration")]


async def test_k3_failures_have_ids_each_attempt_its_own(server: Any, start: Any) -> None:
    """A refusal, a broken stream, one without an answer, and then the answer."""
    refused = {"x-request-id": "req-1", "x-litellm-call-id": "call-1"}
    refused |= {"x-litellm-response-cost": "0.5"}  # of no answer
    broken = http(events(text("") | {"id": "chatcmpl-2"}, done=False), "x-request-id: req-2")
    server.play(
        [Refuse(500, "No", refused)],
        [broken],
        [Raw(b"")],
        [whole("x-request-id: req-4")],
    )
    datasette = await start(retries=3)
    assert await ask(datasette) == "Hi"
    assert await recorded(datasette, *IDS[:3], "gateway_cost_nanodollars") == [
        (None, "req-1", "call-1", None),
        ("chatcmpl-2", "req-2", None, None),
        (None, None, None, None),
        ("chatcmpl-1", "req-4", None, None),
    ]


async def test_k3_names_are_those_of_the_answer(server: Any, start: Any) -> None:
    """Not of the refusal before it: the server does not know `stream_options`."""
    refused = {"x-request-id": "no", "x-litellm-call-id": "no"}
    server.play(
        [Refuse(400, "Unknown parameter: stream_options", refused)], [stream("x-request-id: req-1")]
    )
    datasette = await start()
    assert await ask(datasette) == "Hi"
    assert await recorded(datasette, *IDS) == [("chatcmpl-1", "req-1", None, None)]


async def test_k3_cancelled_stream_has_its_ids(server: Any, start: Any) -> None:
    first = events(text("Hi") | {"id": "chatcmpl-1"}, done=False)
    head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nx-request-id: req-1\r\n\r\n"
    server.play([Raw(head + first), asyncio.Event()])
    datasette = await start()
    with pytest.raises(ZeroDivisionError):
        async with LLM(datasette).group("team") as model:
            await model.prompt("Hello")
            raise ZeroDivisionError
    assert await (await server.received()).end() == "client gone"
    assert await recorded(datasette, "outcome", *IDS[:2]) == [("cancelled", "chatcmpl-1", "req-1")]


async def test_k3_hostile_names_are_cleaned(server: Any, start: Any) -> None:
    """Keys go, also those in configured headers; controls too; the rest is cut."""
    server.play(
        [
            whole(
                f"x-request-id: {KEY} {CREDENTIAL}\t\x9b31mred",
                f"x-litellm-call-id: {'c' * 5_000}",
                "x-litellm-model-id: <script>\x85=1+1",
                id=f"\u202eevil\n{CREDENTIAL} {KEY}",
                model=CREDENTIAL,
            )
        ]
    )
    datasette = await start(headers={"api-key": CREDENTIAL}, retries=0)
    await ask(datasette, stream=False)
    gone = "[key removed]"
    assert await recorded(datasette, *IDS, "resolved_model") == [
        (
            f"evil {gone} {gone}",
            f"{gone} {gone}  31mred",
            "c" * MAX_ID_CHARS,
            "<script> =1+1",
            gone,
        )
    ]
    [(call_id,)] = await recorded(datasette, "id")
    page = (await datasette.client.get(f"/-/llm/log/{call_id}", actor=ANA)).text
    assert "<script> =1+1" not in page
    assert "&lt;script&gt; =1+1" in page


async def test_k3_names_of_a_model_without_http(make_datasette: Any, register_models: Any) -> None:
    """A plugin's client keeps the headers to itself; a failure of it shows them."""
    error = ClientError(response=httpx2.Response(500, headers={"request-id": "req-1"}))
    plain = PlainModel("plain", ["Hi"], response_json={"id": "msg_1"})
    register_models(plain, ScriptedModel("failing", [error]), ScriptedModel("none", ["Hi"]))
    datasette = make_datasette({"retries": 0})
    assert await ask(datasette, "plain") == "Hi"
    with pytest.raises(ClientError):
        await ask(datasette, "failing")
    await ask(datasette, "none")
    rows = await recorded(datasette, *IDS)
    assert rows == [("msg_1", *[None] * 3), (None, "req-1", None, None), (None,) * 4]


async def test_k3_responses_api_has_its_ids(
    server: Any, make_datasette: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llm's models of OpenAI's Responses API, which openai's client reads."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5.5"}
    answer |= {"status": "completed", "parallel_tool_calls": True, "tool_choice": "auto"}
    answer |= {"tools": [], "output": []}
    body = json.dumps(answer).encode()
    server.play([http(body, "x-request-id: req-1", kind="application/json")])
    datasette = make_datasette()
    known = llm.get_async_models()
    name = next(each.model_id for each in known if isinstance(each, AsyncResponses))
    await ask(datasette, name, stream=False, key=KEY)
    assert await recorded(datasette, *IDS[:2]) == [("resp_1", "req-1")]


# What an endpoint is sent about its caller


def sent(request: Any) -> dict[str, Any]:
    return {name: request.body[name] for name in ("user", "metadata") if name in request.body}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, set()),
        ({"send_user": True}, {"user"}),
        ({"send_tags": True}, {"metadata"}),
        ({"send_user": True, "send_tags": True}, {"user", "metadata"}),
    ],
)
async def test_k3_endpoint_gets_what_it_is_set_to(
    server: Any, start: Any, settings: Any, fields: set[str]
) -> None:
    datasette = await start(**settings)
    about = {"user": pseudonym(datasette, ANA), "metadata": {"tags": ["job:12", "ratio:0.5"]}}
    with tagged(job=12, ratio=0.5):
        await ask(datasette)
        await ask(datasette, "plain")
    first, other = server.requests
    assert sent(first) == {name: value for name, value in about.items() if name in fields}
    assert sent(other) == {}
    assert "ana" not in json.dumps(first.body)


async def test_k3_neither_actor_nor_tags_sends_nothing(server: Any, start: Any) -> None:
    datasette = await start(send_user=True, send_tags=True)
    model = await LLM(datasette).model("team")
    await (await model.prompt("Hello")).text()
    assert sent(server.requests[0]) == {}


async def test_k3_callers_own_options_win(server: Any, start: Any) -> None:
    datasette = await start(send_user=True, send_tags=True)
    mine = {"user": "u-7", "metadata": {"tags": ["mine"], "trace_id": "t"}}
    with tagged(job=12):
        await ask(datasette, **mine)
        await ask(datasette, user="u-7")
    assert sent(server.requests[0]) == mine
    assert sent(server.requests[1]) == {"user": "u-7", "metadata": {"tags": ["job:12"]}}
    for model_id, name, value in (
        ("plain", "user", "u-7"),  # which other endpoints do not have
        ("team", "user", 7),
        ("team", "metadata", "job"),
        ("team", "metadata", {"job": object()}),
    ):
        with pytest.raises(ValueError, match=name):
            await ask(datasette, model_id, **{name: value})
    assert len(server.requests) == 2


async def test_k3_retries_fallbacks_and_steps_are_sent_it(server: Any, start: Any) -> None:
    """Each endpoint by its own settings: the fallback, which has none, gets nothing."""
    call = llm.ToolCall(name="count", arguments={}, tool_call_id="1")
    datasette = await start(
        send_user=True, send_tags=True, retries=1, fallbacks=["plain"], supports_tools=True
    )
    about = {"user": pseudonym(datasette, ANA), "metadata": {"tags": ["job:12"]}}
    failure = [Refuse(500, headers={})]
    server.play(failure, [call], ["Two"], failure, failure, ["Hi"])
    model = await LLM(datasette).model("team", actor=ANA, tags={"job": 12})
    assert await model.chain("How many?", tools=[llm.Tool("count", implementation=len)]).text()
    assert await (await model.prompt("Hello")).text() == "Hi"
    assert [sent(request) for request in server.requests] == [about] * 5 + [{}]


async def test_k3_redirect_elsewhere_leaks_nothing(server: Any, start: Any) -> None:
    """Neither are tags sent to another origin, nor is what its redirect calls itself recorded."""
    async with OpenAIServer() as other:
        location = f"location: {other.url}/chat/completions"
        server.play([http(b"", location, "x-request-id: req-1", status=307)])
        datasette = await start(send_user=True, send_tags=True)
        with tagged(job=12), pytest.raises(Exception, match="redirects to"):
            await ask(datasette)
        assert other.requests == []
    assert await recorded(datasette, "outcome", "request_id") == [("error", None)]


async def test_k3_after_a_redirect_the_answers_names_count(server: Any, start: Any) -> None:
    own = f"location: {server.url}/chat/completions"
    server.play([http(b"", own, "x-request-id: no", status=307)], [whole("x-request-id: req-1")])
    datasette = await start(send_user=True)
    await ask(datasette, stream=False)
    assert await recorded(datasette, *IDS[:2]) == [("chatcmpl-1", "req-1")]
    first, second = map(sent, server.requests)
    assert first == second == {"user": pseudonym(datasette, ANA)}


async def test_k3_calls_at_once_have_their_own_names(server: Any, start: Any) -> None:
    datasette = await start()
    for n in range(10):
        server.play_for(f"p{n}", [whole(f"x-request-id: req-{n}", id=f"chatcmpl-{n}")])
    model = await LLM(datasette).model("team")

    async def one(n: int) -> tuple[str, str, str]:
        response = await model.prompt(f"p{n}")
        await response.text()
        return response.id, f"chatcmpl-{n}", f"req-{n}"

    expected = await asyncio.gather(*map(one, range(10)))
    assert sorted(await recorded(datasette, "id", *IDS[:2])) == sorted(expected)


async def test_k3_receipt_is_the_riders_who_pays(server: Any, start: Any) -> None:
    """The one that began a shared request had gone when its answer came."""
    release = asyncio.Event()
    server.play([release, whole("x-litellm-response-cost: 0.5", "x-request-id: req-1")])
    datasette = await start({"cache": True})
    begun = asyncio.create_task(ask(datasette, stream=False))
    await server.received()
    (shared,) = instance.of(datasette, Cache).shared().values()
    rider = asyncio.create_task(ask(datasette, stream=False))
    await until(lambda: len(shared.riders) == 2)
    begun.cancel()
    await soon(asyncio.wait([begun]))
    release.set()
    assert await soon(rider) == "Hi"
    rows = await recorded(datasette, "outcome", "request_id", "gateway_cost_nanodollars")
    assert rows == [("cancelled", None, None), ("ok", "req-1", 500_000_000)]

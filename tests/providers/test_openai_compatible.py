"""Models of OpenAI-compatible servers, from the configuration, over HTTP."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import llm
import openai
import pytest
from datasette.app import Datasette

from datasette_llm import LLM, ConfigError, ModelNotAllowedError, instance
from datasette_llm.access.config_warnings import StartupCheck, warnings
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.config.parse import parse_settings
from datasette_llm.log.recorder import Recorder
from datasette_llm.providers.names import provider_of
from datasette_llm.testing import ScriptedModel

from ..support.exceptions import all_texts
from ..support.openai_server import Refuse
from ..support.plugins import Observer

KEY = "sk-gpu-0123456789abcdef"
CREDENTIAL = "s3cret-of-the-gateway"


@pytest.fixture
def start(make_datasette, server):
    """A function that makes a Datasette with one endpoint, "local", which may have settings."""

    async def start(config: dict[str, Any] | None = None, **settings: Any) -> Datasette:
        endpoint = {"model": "local", "api_base": server.url} | settings
        datasette = make_datasette({"endpoints": [endpoint]} | (config or {}))
        await datasette.invoke_startup()
        return datasette

    return start


def problems_of(*endpoints: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_settings({"endpoints": list(endpoints)})
    root = "plugins.datasette-llm.endpoints"
    assert all(problem.startswith(root) for problem in raised.value.problems)
    return [problem.removeprefix(root) for problem in raised.value.problems]


def endpoint(**settings: Any) -> dict[str, Any]:
    return {"model": "local", "api_base": "http://127.0.0.1:8000/v1"} | settings


async def answer(datasette: Datasette, prompt: str = "Hello", **kwargs: Any) -> str:
    response = await (await LLM(datasette).model("local")).prompt(prompt, **kwargs)
    return await response.text()


# What is sent


async def test_endpoint_streams_its_answer(server, start):
    server.play(["One, ", "two", llm.Usage(input=3, output=2)])
    model = await LLM(await start()).model("local")
    response = await model.prompt("Count", system="Be brief", temperature=0.5)
    assert [chunk async for chunk in response] == ["One, ", "two"]
    assert (await response.usage()).output == 2
    body = server.requests[0].body
    assert body["model"] == "local"
    assert body["stream"] is True
    assert body["temperature"] == 0.5
    assert [m["content"] for m in body["messages"]] == ["Be brief", "Count"]


async def test_server_gets_its_own_model_name(server, start):
    await answer(await start(model_name="Qwen/Qwen3-8B"))
    assert server.requests[0].body["model"] == "Qwen/Qwen3-8B"


async def test_endpoint_without_streaming(server, start):
    server.play(["One, ", "two"])
    assert await answer(await start(can_stream=False)) == "One, two"
    assert not server.requests[0].body.get("stream")


async def test_headers_are_sent_with_each_request(server, start):
    datasette = await start(headers={"X-Team": "pelicans", "api-key": CREDENTIAL})
    await answer(datasette)
    assert server.requests[0].headers["x-team"] == "pelicans"
    assert server.requests[0].headers["api-key"] == CREDENTIAL


async def test_schema_and_tools_are_sent_if_supported(server, start):
    def count_rows(table: str) -> str:
        "Count the rows of a table"
        return f"2 in {table}"

    call = llm.ToolCall(name="count_rows", arguments={"table": "ships"}, tool_call_id="1")
    server.play(['{"n": 1}'], [call], ["There are two."])
    datasette = await start(supports_schema=True, supports_tools=True)
    assert await answer(datasette, schema={"type": "object"}) == '{"n": 1}'
    assert server.requests[0].body["response_format"]["type"] == "json_schema"
    model = await LLM(datasette).model("local")
    assert await model.chain("How many?", tools=[count_rows]).text() == "There are two."
    assert server.requests[1].body["tools"][0]["function"]["name"] == "count_rows"
    assert server.requests[2].body["messages"][-1]["content"] == "2 in ships"


async def test_unsupported_schema_is_refused_unsent(server, start):
    with pytest.raises(ValueError, match="schema"):
        await answer(await start(), schema={"type": "object"})
    assert server.requests == []


async def test_attachments_and_options_follow_settings(start):
    model = await LLM(await start(vision=True, audio=True, reasoning=True)).model("local")
    assert {"image/png", "audio/wav"} <= set(model.attachment_types)
    assert "reasoning_effort" in model.Options.model_fields
    plain = await LLM(await start()).model("local")
    assert set(plain.attachment_types) == set()
    assert "reasoning_effort" not in plain.Options.model_fields


# Keys


@pytest.mark.parametrize("place", ["secret", "keys.json", "call"])
async def test_key_is_found_and_sent_as_bearer_token(place, server, start, llm_folder, monkeypatch):
    if place == "secret":
        monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", KEY)
    if place == "keys.json":
        (llm_folder / "keys.json").write_text(json.dumps({"VLLM_KEY": KEY}))
    await answer(await start(key="VLLM_KEY"), **({"key": KEY} if place == "call" else {}))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_key_of_a_purpose_precedes_the_endpoints(server, start, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", KEY)
    monkeypatch.setenv("DATASETTE_SECRETS_PETS_KEY", "sk-of-the-pets")
    pets = {"purposes": {"pets": {"model": {"model": "local", "key": "PETS_KEY"}}}}
    models = LLM(await start(pets, key="VLLM_KEY"))
    await (await models.model(purpose="pets")).prompt("x")
    await (await models.model("local")).prompt("x")
    assert [request.key for request in server.requests] == ["sk-of-the-pets", KEY]


async def test_missing_key_lists_its_places(server, start):
    """A missing key is an error that lists where it can be set; nothing is sent."""
    datasette = await start(key="VLLM_KEY")
    with pytest.raises(llm.NeedsKeyException) as raised:
        await answer(datasette)
    assert str(raised.value) == (
        "No key for model 'local'. Set one in any of: the secret VLLM_KEY at /-/secrets/VLLM_KEY, "
        "the environment variable DATASETTE_SECRETS_VLLM_KEY, 'llm keys set VLLM_KEY'"
    )
    assert server.requests == []


async def test_openai_account_is_not_sent_to_endpoint(server, start, monkeypatch, llm_folder):
    names = ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID")
    for name in [*(f"OPENAI_{each}" for each in names), "DATASETTE_SECRETS_OPENAI_API_KEY"]:
        monkeypatch.setenv(name, "of-openai-itself")
    (llm_folder / "keys.json").write_text(json.dumps({"openai": "of-openai-itself"}))
    custom = "Authorization: Bearer of-openai-itself\nX-Team: of-openai-itself"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    await answer(await start())
    with pytest.raises(llm.NeedsKeyException):
        await answer(await start(key="VLLM_KEY"))
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", KEY)
    await answer(await start(key="VLLM_KEY"))
    assert len(server.requests) == 2
    assert "of-openai-itself" not in str([request.headers for request in server.requests])


async def test_only_its_own_key_is_registered(start):
    """Only the endpoint's key is registered with datasette-secrets for it."""
    from datasette_secrets import get_secrets

    datasette = await start(key="VLLM_KEY")
    secrets = [secret.name for secret in await get_secrets(datasette)]
    assert secrets.count("VLLM_KEY") == 1
    assert "VLLM_KEY_API_KEY" not in secrets


async def test_endpoint_is_listed_if_it_has_its_key(start, monkeypatch):
    """An endpoint is listed if it needs no key or has one."""

    async def listed(datasette: Datasette) -> bool:
        return "local" in [model.model_id for model in await LLM(datasette).models()]

    assert await listed(await start())
    assert not await listed(await start(key="VLLM_KEY"))
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", KEY)
    assert await listed(await start(key="VLLM_KEY"))


async def test_header_credentials_are_never_shown(server, start, plugin):
    """Credentials in headers are in no repr and in no error."""
    hook = plugin(Observer())
    datasette = await start(headers={"Authorization": f"Basic {CREDENTIAL}", "X-Team": "pelicans"})
    server.play([Refuse(401, f"Basic {CREDENTIAL} is wrong: {CREDENTIAL} of pelicans")])
    with pytest.raises(openai.AuthenticationError) as raised:
        await answer(datasette)
    view = await snapshot_of(datasette)
    headers = raised.value.request.headers
    texts = [all_texts(raised.value), *headers.values(), repr(view), repr(hook.events)]
    assert CREDENTIAL not in "".join(texts)
    assert "[key removed] of pelicans" in str(raised.value)


async def test_endpoint_key_is_not_for_installed_models(start, register_models, monkeypatch):
    """An installed model that needs a key of the same name does not get it."""
    monkeypatch.setenv("DATASETTE_SECRETS_pelican", KEY)
    register_models(ScriptedModel("installed", needs_key="pelican"))
    models = await LLM(await start(key="pelican")).models()
    listed = {model.model_id for model in models}
    assert "local" in listed
    assert "installed" not in listed


async def test_a_header_can_come_from_the_environment(server, start, monkeypatch):
    monkeypatch.setenv("GATEWAY_TOKEN", f"Basic {CREDENTIAL}")
    datasette = await start(headers={"Authorization": {"$env": "GATEWAY_TOKEN"}})
    await answer(datasette)
    assert server.requests[0].headers["authorization"] == f"Basic {CREDENTIAL}"
    assert CREDENTIAL not in (await datasette.client.get("/-/config.json")).text


# What it costs, and who it is


@pytest.mark.parametrize("key", ["VLLM_KEY", None])
async def test_only_the_exact_public_name_has_a_price(key, server, start, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", KEY)
    server.play(["Hello", llm.Usage(input=1000, output=100)])
    names = ("deepseek-r1:8b", "gpt-4o-mini")  # the first differs from a public one only by a guess
    each = [
        {"model": name, "api_base": server.url} | ({"key": key} if key else {}) for name in names
    ]
    datasette = await start({"endpoints": each})
    for name in names:
        await (await (await LLM(datasette).model(name)).prompt("x")).text()
    await Recorder.of(datasette).writer.flush()
    rows = await datasette.get_internal_database().execute(
        "select model_id, price_source from llm_calls order by id"
    )
    assert [tuple(row) for row in rows] == [
        ("deepseek-r1:8b", None),
        ("gpt-4o-mini", "genai-prices openai/gpt-4o-mini"),
    ]


async def test_provider_is_the_host(server, start):
    datasette = await start(key="anthropic")
    view = await snapshot_of(datasette)
    assert provider_of(view.catalog.entries["local"].model) == server.url.split("/")[2]


# Policy


async def test_endpoint_obeys_the_same_rules(start):
    """An endpoint comes after llm's own models and obeys the same rules."""
    datasette = await start(
        {"models": ["fast"], "purposes": {"pets": {"blocked_models": ["local"]}}}, aliases=["fast"]
    )
    models = LLM(datasette)
    assert [model.model_id for model in await models.models()] == ["local"]
    assert await models.explain("fast")
    decision = await models.explain("local", purpose="pets")
    assert decision.refusal.rule == "blocklist"
    with pytest.raises(ModelNotAllowedError):
        await models.model("fast", purpose="pets")
    view = await snapshot_of(datasette)
    assert list(view.catalog.entries)[-1] == "local"
    assert warnings(view.settings, view.catalog) == []


async def test_endpoint_replaces_model_with_a_warning(server, start, register_models, caplog):
    installed = ScriptedModel("local", ["I am the installed one"])
    register_models(installed)
    with caplog.at_level(logging.WARNING):
        datasette = await start(aliases=["gpt-4o"])
    assert await answer(datasette) == "Hello"
    assert installed.calls == []
    assert (await LLM(datasette).explain("gpt-4o")).model_id == "local"
    replaced = [w for w in instance.of(datasette, StartupCheck).warnings if "also the name" in w]
    assert replaced == [
        f"plugins.datasette-llm.endpoints[0]: {name!r} is also the name of an installed model, "
        "and now refers to this endpoint"
        for name in ("gpt-4o", "local")
    ]
    assert set(replaced) <= {record.getMessage() for record in caplog.records}


async def test_changed_configuration_counts_at_once(server, start):
    datasette = await start()
    ours = datasette.config["plugins"]["datasette-llm"]
    ours["endpoints"] = [{"model": "other", "api_base": server.url}]
    models = LLM(datasette)
    assert (await models.model("other")).model_id == "other"
    assert not await models.explain("local")
    del ours["endpoints"]
    assert not await models.explain("other")


async def test_sites_have_their_own_endpoints(start, make_datasette):
    await start()
    other = make_datasette()
    await other.invoke_startup()
    assert not await LLM(other).explain("local")


async def test_nothing_is_contacted_before_a_prompt(make_datasette):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        datasette = make_datasette({"endpoints": [endpoint(api_base=f"http://127.0.0.1:{port}")]})
        await datasette.invoke_startup()
        assert await LLM(datasette).explain("local")
        with pytest.raises(BlockingIOError):
            listener.accept()


# Bad settings


A_URL = "expected an address such as http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("not a url", "it begins with http:// or https://"),
        ("127.0.0.1:8000/v1", "it begins with http:// or https://"),
        ("localhost:8000/v1", "it begins with http:// or https://"),
        ("ftp://gpu.example/v1", "it begins with http:// or https://"),
        (
            f"https://ana:{KEY}@gpu.example/v1",
            'it holds no user and no password; name a secret in "key"',
        ),
        ("http://", "its host or port cannot be read"),
        ("http://:8000/v1", "its host or port cannot be read"),
        ("http://[::1/v1", "its host or port cannot be read"),
        ("http://gpu.example:99999/v1", "its host or port cannot be read"),
        ("http://gpu.example/v 1", "its host or port cannot be read"),
        ("http://gpu.example/\nv1", "its host or port cannot be read"),
        (
            f"https://gpu.example/v1?key={KEY}",
            'nothing may follow its path; name a secret in "key", put others into "headers"',
        ),
        (
            "https://gpu.example/v1?",
            'nothing may follow its path; name a secret in "key", put others into "headers"',
        ),
        (
            "http://gpu.example/v1/chat/completions",
            "leave out /chat/completions, which is added for each request",
        ),
    ],
)
def test_invalid_address_is_explained(address, problem):
    assert problems_of(endpoint(api_base=address)) == [f"[0].api_base: {A_URL}; {problem}"]


@pytest.mark.parametrize(("address", "got"), [(8000, "a number"), (" ", "empty text")])
def test_an_address_is_a_text(address, got):
    assert problems_of(endpoint(api_base=address)) == [f"[0].api_base: {A_URL}, got {got}"]


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8000/v1/", "https://gpu.example", "http://[::1]:8000/v1", "HTTP://gpu/v1"],
)
def test_address_may_have_any_host(address):
    """An address may have any host, and loses the slash at its end."""
    parsed = parse_settings({"endpoints": [endpoint(api_base=f" {address} ")]})
    assert parsed.endpoints[0].api_base == address.rstrip("/")


def test_endpoint_problems_have_their_path():
    assert problems_of({"model": "x"}, {"api_base": "http://gpu/v1"}, "x") == [
        '[0]: needs "api_base"',
        '[1]: needs "model"',
        "[2]: expected a mapping such as {model: …}, got text",
    ]
    known = (
        "aliases, api_base, audio, ca_file, cache, can_stream, fallbacks, headers, idle_timeout, "
        "key, max_answer_chars, max_concurrency, model, model_name, proxy, reasoning, retries, "
        "send_tags, send_user, supports_schema, supports_tools, timeout, vision"
    )
    assert problems_of(endpoint(supports_tool=True, api_version="2024-10-21")) == [
        '[0].supports_tool: unknown setting (did you mean "supports_tools"?)',
        f"[0].api_version: unknown setting (known here: {known})",
    ]
    assert problems_of(endpoint(key=KEY)) == [
        "[0].key: expected the name of a secret, such as OPENAI_API_KEY; "
        "the key itself goes to /-/secrets or into DATASETTE_SECRETS_<NAME>"
    ]


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"X Y": "z"}, ": a name is not one that a header can have"),
        ({"": "z"}, ": a name is not one that a header can have"),
        ({"X": "a\r\nInjected: b"}, ": X: expected one line of ASCII text"),
        ({"{X}": "a"}, ": a name is not one that a header can have"),
        ({"X": "ä"}, ": X: expected one line of ASCII text"),
        ({"X": 1}, ".X: expected text, in quotes, got a number"),
        ({1: "x"}, ": names are text, got a number; put it in quotes"),
        ("X: y", ": expected a mapping, got text"),
    ],
)
def test_invalid_headers_do_not_show_their_values(headers, problem):
    assert problems_of(endpoint(headers=headers)) == [f"[0].headers{problem}"]


def test_header_from_a_file_loses_its_line_end():
    parsed = parse_settings({"endpoints": [endpoint(headers={"Authorization": " Basic x\n"})]})
    assert parsed.endpoints[0].headers == {"Authorization": "Basic x"}


@pytest.mark.parametrize("second", [{"model": "local"}, {"model": "x", "aliases": ["local"]}])
def test_two_endpoints_cannot_share_a_name(second):
    first = endpoint(aliases=["fast", "fast", "local"])
    assert problems_of(first, endpoint(**second)) == [
        ': expected each id and alias to stand for one model, got "local" for several'
    ]


async def test_a_bad_endpoint_stops_datasette(make_datasette):
    datasette = make_datasette({"endpoints": [endpoint(api_base="gpu:8000")]})
    with pytest.raises(ConfigError, match=r"endpoints\[0\]\.api_base"):
        await datasette.invoke_startup()

"""The examples and tables of `models.md`."""

from __future__ import annotations

import re
import shlex
from types import ModuleType

import llm
import pytest
import yaml

from datasette_llm import (
    LLM,
    ModelNotAllowedError,
    tagged,
)
from datasette_llm.access.config_warnings import warnings
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.config.parse import parse_settings
from datasette_llm.providers.threads import LOOK_AHEAD
from datasette_llm.testing import ScriptedModel

from ..support.openai_server import OpenAIServer
from .examples import (
    DOCS,
    between,
    ours,
    request_by,
    run,
    shows,
)


@shows(config="endpoints.yaml", llama="llama")
def test_e10_llama_server_has_the_flags_it_needs(config, llama):
    command = shlex.split(llama.split("\n", 1)[1].replace("\\\n", ""))
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert command[:3] == ["python", "-m", "llama_cpp.server"]
    assert flags["--interrupt_requests"] == "false"
    [tiny] = [each for each in ours(config)["endpoints"] if each["model"] == flags["--model_alias"]]
    assert tiny["api_base"] == f"http://{flags['--host']}:{flags['--port']}/v1"
    assert tiny["max_concurrency"] == 1


@shows(config="endpoints.yaml", litellm="litellm.yaml", vllm="vllm")
async def test_endpoints_are_requested_as_described(
    config, litellm, vllm, make_datasette, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_VLLM_KEY", "sk-vllm")
    monkeypatch.setenv("DATASETTE_SECRETS_LITELLM_KEY", "sk-litellm")
    async with OpenAIServer() as server:
        address = server.url.removesuffix("/v1")
        local = re.sub(r"http://[\w.-]+:\d+(?=/v1)", address, config)
        datasette = make_datasette(ours(local))
        models = LLM(datasette)
        for model_id, purpose in [(None, None), (None, "sql"), ("team", "stories")]:
            await (await models.model(model_id, purpose)).prompt("x")
        with pytest.raises(ModelNotAllowedError):
            await models.model("qwen", "stories")
    asked = [(request.body["model"], request.key) for request in server.requests]
    assert asked[1:] == [("Qwen/Qwen3-8B", "sk-vllm"), ("team", "sk-litellm")]
    assert asked[0][0] == "llama3.2"
    assert not asked[0][1].startswith("sk-")
    view = await snapshot_of(datasette)
    assert warnings(view.settings, view.catalog) == []
    assert {each["model_name"] for each in yaml.safe_load(litellm)["model_list"]} == {"team"}
    [team] = [each for each in ours(config)["endpoints"] if each["model"] == "team"]
    assert team["retries"] == 0  # LiteLLM retries
    addresses = [each["api_base"] for each in ours(config)["endpoints"]]
    served = [each["litellm_params"]["api_base"] for each in yaml.safe_load(litellm)["model_list"]]
    assert served[0] == addresses[0]
    assert shlex.split(vllm)[2] == ours(config)["endpoints"][0]["model_name"]


@shows(config="gateway.yaml")
async def test_k3_gateway_is_sent_who_asks(config, make_datasette, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATASETTE_SECRETS_LITELLM_KEY", "sk-litellm")
    async with OpenAIServer() as server:
        local = config.replace("http://litellm.internal:4000/v1", server.url)
        model = await LLM(make_datasette(ours(local))).model("team", actor={"id": "ana"})
        with tagged(job=12):
            await (await model.prompt("x")).text()
    body = server.requests[0].body
    assert re.fullmatch("[0-9a-f]{32}", body["user"])
    assert body["metadata"] == {"tags": ["job:12"]}
    assert '`metadata: {"tags": ["job:12"]}`' in DOCS["models"]


@shows(source="llm_parrot.py", usage="parrot", config="threads.yaml")
async def test_model_without_async_version(source, usage, config, make_datasette, capsys):
    plugin = ModuleType("llm_parrot")
    exec(source, plugin.__dict__)
    llm.plugins.pm.register(plugin)
    try:
        datasette = make_datasette(ours(config))
        await run(usage, datasette=datasette)
        default = await LLM(datasette).model()
    finally:
        llm.plugins.pm.unregister(plugin)

    assert capsys.readouterr().out == "Pieces! \nof! \neight! \n"
    assert (default.model_id, ours(config)["threads"]) == ("parrot", 3)
    section = between("models", "## Models without an async version", "\n## ")
    assert f"`threads`, otherwise {parse_settings({}).threads}," in section
    assert f"waits while {LOOK_AHEAD} of them" in section


@shows(source="purposes.py", listing="get_purposes")
async def test_registered_purposes_are_listed(source, listing, site, capsys):
    await run(listing, datasette=site(None, purposes=source))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["sql - Writes queries from questions", "pets - Invents pets"]


@shows(source="explain", output="explain output", config="datasette.yaml")
async def test_explain_gives_the_reasons_shown(
    source, output, config, make_datasette, register_models, capsys
):
    register_models(*map(ScriptedModel, ("gemini-2.5-flash", "claude-haiku-4.5")))
    await run(source, datasette=make_datasette(ours(config)), request=request_by(None))
    assert capsys.readouterr().out == output

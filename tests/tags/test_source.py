"""The tags of our own: the path of the request and the plugin that called."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from datasette.plugins import pm

from datasette_llm import LLM, tagged
from datasette_llm.tags.source import with_path
from datasette_llm.tags.values import NO_TAGS
from datasette_llm.testing import ScriptedModel

SOURCE = """
import asyncio
from datasette import Response, hookimpl
from datasette_llm import LLM

late = []

async def ask(datasette, request):
    model = await LLM(datasette).model(tags={"job": 1})
    responses = await asyncio.gather(model.prompt("a"), model.prompt("b"))
    late.append(asyncio.create_task(after(model)))
    return Response.json([dict(each.tags) for each in responses])

async def after(model):
    await asyncio.sleep(0)
    return dict((await model.prompt("c")).tags)

async def outer(datasette, request):
    inner = await datasette.client.get("/-/ask/inner?key=secret")
    model = await LLM(datasette).model()
    return Response.json([inner.json()[0], dict((await model.prompt("d")).tags)])

@hookimpl
def register_routes():
    return [(r"^/-/ask.*$", ask), (r"^/-/outer$", outer)]
"""


@pytest.fixture
async def site(make_datasette, register_models, tmp_path):
    """A site with a plugin of the plugins folder that prompts, and its module."""
    register_models(ScriptedModel("pelican"))
    (tmp_path / "asking.py").write_text(SOURCE, "utf-8")
    before = pm.get_plugins()
    datasette = make_datasette({"default_model": "pelican"}, plugins_dir=str(tmp_path))
    [plugin] = pm.get_plugins() - before
    yield datasette, plugin
    pm.unregister(plugin)


async def test_k1_request_and_plugin_are_tags(site) -> None:
    datasette, plugin = site
    expected = {"job": 1, "source.path": "/-/ask/birds", "source.plugin": "asking.py"}

    found = await datasette.client.get("/-/ask/birds?key=secret", actor=None)

    assert found.json() == [expected, expected]
    assert await plugin.late[0] == expected  # a task that the request has started


async def test_k1_inner_request_is_the_cause(site) -> None:
    datasette, _ = site
    inner, outer = (await datasette.client.get("/-/outer")).json()
    assert inner["source.path"] == "/-/ask/inner"
    assert outer == {"source.path": "/-/outer", "source.plugin": "asking.py"}


async def test_k1_without_a_request_there_is_no_source(site) -> None:
    datasette, _ = site
    await datasette.client.get("/-/ask")
    model = await LLM(datasette).model()
    assert (await model.prompt("x")).tags is NO_TAGS
    with tagged(job=2):
        assert (await model.prompt("x")).tags == {"job": 2}


async def test_k1_long_path_is_cut(site) -> None:
    datasette, _ = site
    path = "/-/ask/" + "x" * 300
    [found, _] = (await datasette.client.get(path)).json()
    assert found["source.path"] == path[:200]


async def test_k1_package_names_the_plugin(make_datasette, register_models) -> None:
    """By its distribution, as at /-/plugins; the code may stand in another module of it."""
    register_models(ScriptedModel("pelican"))
    datasette = make_datasette({"default_model": "pelican"})
    await datasette.invoke_startup()
    found = []
    for module in ("datasette_llm.console.anything", "unknown", "datasette_llmother"):
        names: dict[str, Any] = {"__name__": module, "LLM": LLM}
        exec("def make(datasette): return LLM(datasette)", names)
        llm = names["make"](datasette)

        async def app(scope: Any, receive: Any, send: Any, llm: LLM = llm) -> None:
            found.append((await (await llm.model()).prompt("x")).tags)

        await with_path(app)({"type": "http", "path": "/view"}, None, None)
        await with_path(app)({"type": "lifespan"}, None, None)
    view = {"source.path": "/view"}
    assert found == [view | {"source.plugin": "datasette-llm"}, {}, view, {}, view, {}]


async def test_c8_plugin_is_found_without_files(make_datasette, register_models) -> None:
    """The name of a distribution stands in a file."""
    register_models(ScriptedModel("pelican"))
    datasette = make_datasette({"default_model": "pelican"})
    await datasette.invoke_startup()
    names: dict[str, Any] = {"__name__": "datasette_secrets.anything", "LLM": LLM}
    exec("def make(datasette): return LLM(datasette)", names)
    model = await names["make"](datasette).model()
    loop, opened, listening = threading.get_ident(), [], [True]

    def hook(event: str, arguments: Any) -> None:
        if event == "open" and listening and threading.get_ident() == loop:
            opened.append(arguments[0])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        opened.append((await model.prompt("x")).tags["source.plugin"])

    sys.addaudithook(hook)  # for good
    await with_path(app)({"type": "http", "path": "/view"}, None, None)
    listening.clear()
    assert opened == ["datasette-secrets"]

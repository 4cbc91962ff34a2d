"""What a hook learns of its call: its id, its attempts, its cost and its tags."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import llm
import pytest

from datasette_llm import LLM, Cost, ResponseCancelledError
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.plugins import Observer

PRICES = {"pelican": {"input": 1, "output": 2}, "heron": {"input": 10, "output": 20}}
CONFIG: dict[str, Any] = {"default_model": "pelican", "log": {"prices": PRICES}}
USAGE = llm.Usage(input=1_000, output=100)


def lookup(name: str) -> str:
    """A tool."""
    return name


async def test_k4_hook_knows_id_attempts_cost_and_tags(
    make_datasette, register_models, plugin
) -> None:
    register_models(ScriptedModel("pelican", ["Hi", USAGE]))
    datasette = make_datasette(CONFIG)
    seen: list[Any] = []

    async def before(result: Any) -> None:
        seen.append((result.call_id, result.attempts, await result.cost(), dict(result.tags)))

    async def after(result: Any) -> None:
        seen.append((result.call_id, result.attempts, await result.cost(), dict(result.tags)))

    plugin(Observer(before=before, after=after))
    model = await LLM(datasette).model(tags={"job": 12})
    response = await model.prompt("x")
    await response.text()
    [row] = await flushed_rows(datasette)

    assert seen == [
        (response.id, 0, None, {"job": 12}),
        (row["id"], 1, Cost(0.0012, "configuration"), {"job": 12}),
    ]
    assert row["cost_nanodollars"] == 1_200_000


@pytest.mark.parametrize("log", [True, False])
async def test_k4_fallback_counts_and_is_the_call(
    make_datasette, register_models, plugin, log: bool
) -> None:
    """The id is that of the attempt that answered, and finds its row."""
    register_models(
        ScriptedModel("pelican", [ConnectionError("gone")]), ScriptedModel("heron", ["Hi", USAGE])
    )
    config = {**CONFIG, "fallbacks": ["heron"], "retries": 0}
    datasette = make_datasette(config if log else {**config, "log": False})
    observer = plugin(Observer())
    async with LLM(datasette).group(tags={"job": 12}) as model:
        response = await model.prompt("x")
        await response.text()
    [result] = observer.results

    assert result.attempts == 2
    assert result.call_id != response.id
    assert await result.cost() == (Cost(0.012, "configuration") if log else None)
    if log:
        rows = {row["id"]: row for row in await flushed_rows(datasette)}
        assert rows[result.call_id]["model_id"] == "heron"
        assert {row["tags"] for row in rows.values()} == {'{"job": 12}'}
        assert len(rows) == 2


async def test_k4_group_has_the_sums(make_datasette, register_models, plugin) -> None:
    """Of all of its requests, when llm_group_exit runs; what has no price is counted apart."""
    call = llm.ToolCall(name="lookup", arguments={"name": "a"}, tool_call_id="1")
    register_models(
        ScriptedModel("pelican", [USAGE, call], [USAGE, "done"], ["no usage"], ["x", USAGE])
    )
    datasette = make_datasette(CONFIG)
    observer = plugin(Observer())
    group = LLM(datasette).group(tags={"job": 12})
    assert (group.calls, group.input_tokens, await group.cost()) == (0, None, None)
    async with group as model:
        await model.chain("x", tools=[lookup], tags={"row": 1}).text()
        await (await model.prompt("y")).text()
        await (await model.prompt("z")).text()

    assert (group.calls, group.input_tokens, group.output_tokens) == (4, 3_000, 300)
    assert await group.cost() == Cost(0.0036, "configuration")
    chain = observer.results[0]
    assert (chain.attempts, chain.call_id) == (2, chain.responses[1].id)
    assert chain.tags == {"job": 12, "row": 1}
    assert await chain.cost() == Cost(0.0024, "configuration")


async def test_k4_unknown_prices_are_counted(make_datasette, register_models) -> None:
    register_models(ScriptedModel("pelican", ["x", USAGE], [ConnectionError("gone")]))
    register_models(ScriptedModel("own", ["x", USAGE]))
    datasette = make_datasette({**CONFIG, "fallbacks": ["own"], "retries": 0})
    group = LLM(datasette).group()
    async with group as model:
        await (await model.prompt("x")).text()
        await (await model.prompt("y")).text()

    assert await group.cost() == Cost(0.0012, "configuration", unpriced=1)


async def test_k4_blocked_call_has_its_tags(make_datasette, register_models, plugin) -> None:
    register_models(ScriptedModel("pelican"))
    datasette = make_datasette(CONFIG | {"blocked_models": ["heron"]})

    def refuse(_: Any) -> None:
        raise PermissionError("over budget")

    observer = plugin(Observer(before=refuse))
    register_models(ScriptedModel("heron"))
    model = await LLM(datasette).model(tags={"job": 12})
    with pytest.raises(PermissionError):
        await model.prompt("x", tags={"row": 5})
    with pytest.raises(PermissionError):
        await model.chain("x", tags={"row": 6}).text()
    with suppress(llm.UnknownModelError):
        await LLM(datasette).model("heron", tags={"job": 13})

    rows = await flushed_rows(datasette)
    assert [row["outcome"] for row in rows] == ["blocked"] * 3
    assert [row["tags"] for row in rows] == [
        '{"job": 12, "row": 5}',
        '{"job": 12, "row": 6}',
        '{"job": 13}',
    ]
    assert observer.results[0].call_id == rows[0]["id"]
    assert observer.results[0].attempts == 0


async def test_k1_key_in_a_tag_is_not_recorded(
    make_datasette, register_models, monkeypatch
) -> None:
    """A stored key, which is looked up before the row, or a given one; in a key of tags, too."""
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "sk-stored-secret")
    register_models(ScriptedModel("pelican", needs_key="bird"))
    datasette = make_datasette(CONFIG)
    model = await LLM(datasette).model()
    for arguments in ({}, {"key": "sk-given-secret"}):
        key = arguments.get("key", "sk-stored-secret")
        await (await model.prompt("x", tags={"note": f"my {key}!", key: 1}, **arguments)).text()
    await Recorder.of(datasette).writer.flush()
    dump = "".join(str(row) for row in await flushed_rows(datasette))
    assert "secret" not in dump
    index = await datasette.get_internal_database().execute("select * from llm_call_tags")
    assert len(index.rows) == 4
    assert "secret" not in str([tuple(row) for row in index.rows])


async def test_k4_cancelled_call_tells_its_id(make_datasette, register_models, plugin) -> None:
    register_models(ScriptedModel("pelican", ["a", "b", "c"]))
    observer = plugin(Observer())
    model = await LLM(make_datasette(CONFIG)).model()
    with suppress(RuntimeError):
        async with LLM(model.route.datasette).group() as model:
            response = await model.prompt("x")
            raise RuntimeError
    [result] = observer.results
    assert result.call_id == response.id
    assert all(isinstance(error, ResponseCancelledError) for error in observer.errors)

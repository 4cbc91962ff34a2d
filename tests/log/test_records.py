"""Calls of the log as typed values, with permissions asked for an actor."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import llm
import pytest
from datasette import Forbidden
from datasette.permissions import SkipPermissions

from datasette_llm import LLM, CallRecord, Cost, LLMError
from datasette_llm.events import FinishReason, Outcome
from datasette_llm.testing import ScriptedModel

from ..support.call_log import add, call_row

ANA = {"id": "ana"}
NOW = datetime.datetime(2026, 2, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
async def site(make_datasette, register_models):
    register_models(ScriptedModel("pelican", ["Hi", llm.Usage(input=1_000, output=100)]))
    prices = {"pelican": {"input": 1, "output": 2}}
    datasette = make_datasette({"log": {"prices": prices, "content": True}})
    datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
    await datasette.invoke_startup()
    return datasette


@pytest.mark.parametrize("limit", [-1, 0, 10_001, 10**30])
async def test_k4_limit_of_calls_is_bounded(site, limit) -> None:
    with pytest.raises(LLMError, match=f"limit: from 1 to 10,000 calls, not {limit}"):
        await LLM(site).calls(actor=ANA, limit=limit)


async def test_k1_filter_takes_no_more_tags_than_a_call(site) -> None:
    assert await LLM(site).calls(actor=ANA, tag=["a:1"] * 22) == []
    with pytest.raises(LLMError, match="tag: up to 22 at once, not 600"):
        await LLM(site).calls(actor=ANA, tag=["a:1"] * 600)


async def test_k4_odd_texts_are_looked_up_as_stored(site) -> None:
    model = await LLM(site).model("pelican")
    response = await model.prompt("x", tags={"row": "\ud800"})
    await response.text()
    [found] = await LLM(site).calls(actor=ANA, tag="row:\ud800")
    assert (found.id, found.tags) == (response.id, {"row": "\ufffd"})
    assert await LLM(site).call("\ud800", actor=ANA) is None


async def test_k4_call_is_a_typed_value(site) -> None:
    model = await LLM(site).model("pelican", purpose="chat", actor=ANA, tags={"job": 12})
    response = await model.prompt("secret of the prompt")
    await response.text()

    call = await LLM(site).call(response.id, actor=ANA)

    assert isinstance(call, CallRecord)
    assert (call.id, call.model_id, call.purpose, call.actor_id) == (
        *(response.id, "pelican", "chat"),
        "ana",
    )
    assert call.outcome is Outcome.OK
    assert call.cost == Cost(0.0012, "configuration")
    assert (call.input_tokens, call.output_tokens, call.attempt) == (1_000, 100, 1)
    assert call.tags == {"job": 12}
    # Not by the time of the id: llm's ids go on from the latest, whatever the clock says.
    assert call.finished_at is not None
    assert call.started_at.tzinfo is datetime.UTC
    assert "secret of the prompt" not in repr(call)
    with pytest.raises(dataclasses.FrozenInstanceError):
        call.cost = None  # type: ignore[misc]
    with pytest.raises(TypeError):
        call.tags["job"] = 13  # type: ignore[index]
    assert await LLM(site).call("no-such-call", actor=ANA) is None


@pytest.mark.parametrize("actor", [None, {"id": "ben"}])
async def test_k4_actor_needs_the_permission(site, actor: Any) -> None:
    """An actor is asked for in any case; a plugin skips that on its own behalf."""
    plugin = LLM(site)
    for ask in (lambda: plugin.call("x", actor=actor), lambda: plugin.calls(actor=actor)):
        with pytest.raises(Forbidden):
            await ask()
        with SkipPermissions():
            assert await ask() in (None, [])
    with pytest.raises(TypeError):
        await plugin.calls()  # type: ignore[call-arg]


async def test_k4_calls_are_filtered_and_paged(site) -> None:
    await (await (await LLM(site).model("pelican")).prompt("x")).text()  # which makes the tables
    plugin = LLM(site)
    [first] = await plugin.calls(actor=ANA)
    rows = [
        call_row(NOW, tags='{"job": 12, "row": 5}', purpose="chat"),
        call_row(NOW, tags='{"job": 12}', outcome=None, finish_reason="odd", finished_at="odd"),
        call_row(NOW, tags='{"job": 13}', group_id="g", finish_reason="length"),
    ]
    await site.get_internal_database().execute_write_fn(lambda connection: add(connection, *rows))
    ids = [row["id"] for row in rows]
    for filters, places in (
        ({"tag": "job:12"}, [1, 0]),
        ({"tag": ["job:12", "row:5"]}, [0]),
        ({"tag": "job:12", "limit": 1}, [1]),
        ({"tag": "job:12", "before": ids[1]}, [0]),
        ({"group": "g"}, [2]),
        ({"purpose": "chat"}, [0]),
        ({"outcome": "running"}, [1]),
        ({"until": "2026-02-02"}, [2, 1, 0]),
        ({"until": "2026-02-02", "since": "2026-02-01T13:00"}, []),
    ):
        found = await plugin.calls(actor=ANA, **filters)
        assert [call.id for call in found] == [ids[place] for place in places], filters
    assert (await plugin.calls(actor=ANA, limit=1))[0].id == first.id
    [_, running, _] = [await plugin.call(call_id, actor=ANA) for call_id in ids]
    assert running is not None
    assert (running.outcome, running.finish_reason, running.finished_at) == (None, None, None)
    [odd] = await plugin.calls(actor=ANA, group="g")
    assert odd.finish_reason is FinishReason.LENGTH


async def test_k4_invalid_filter_is_an_error(site) -> None:
    """Also before there is anything on record."""
    for filters in ({"tag": "job"}, {"outcome": "great"}, {"since": "then"}):
        with pytest.raises(LLMError, match=next(iter(filters))):
            await LLM(site).calls(actor=ANA, **filters)

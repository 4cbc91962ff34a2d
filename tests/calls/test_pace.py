"""Many calls at once leave the event loop to others in between."""

import asyncio

import llm
import pytest

from datasette_llm.calls.pace import SLICE, pace
from datasette_llm.testing import ScriptedModel

COUNT = 20 * SLICE


class Others:
    """Something else in the event loop: counts the requests that begin between two of its steps."""

    def __init__(self, model):
        self.model = model
        self.most = 0

    async def run(self):
        before = 0
        while True:
            await asyncio.sleep(0)
            count = len(self.model.calls)
            self.most, before = max(self.most, count - before), count


@pytest.fixture
async def others():
    """Start it for a model; stopped at the end of the test."""
    tasks = []

    def start(model):
        others = Others(model)
        tasks.append(asyncio.create_task(others.run()))
        return others

    yield start
    for task in tasks:
        task.cancel()


async def test_e11_many_prompts_begin_in_slices(site, others):
    model = ScriptedModel("m")
    wrapped = await site(model).model("m")
    seen = others(model)
    responses = await asyncio.gather(*[wrapped.prompt(str(n)) for n in range(COUNT)])
    assert [await response.text() for response in responses] == ["Hello"] * COUNT
    assert [call.prompt for call in model.calls] == [str(n) for n in range(COUNT)]  # in order
    assert seen.most <= SLICE


async def test_e11_many_chains_begin_in_slices(site, others):
    model = ScriptedModel("m")
    wrapped = await site(model).model("m")
    seen = others(model)
    tool = llm.Tool.function(lambda: "seen", name="look")
    chains = [wrapped.chain("x", tools=[tool]) for _ in range(COUNT)]
    assert await asyncio.gather(*[chain.text() for chain in chains]) == ["Hello"] * COUNT
    assert seen.most <= SLICE


async def test_e11_lone_calls_do_not_wait(site, monkeypatch):
    async def refuse():
        raise AssertionError("a call has waited")

    monkeypatch.setattr(pace, "turn", refuse)
    model = await site(ScriptedModel("m")).model("m")
    for _ in range(2 * SLICE):
        assert await (await model.prompt("x")).text() == "Hello"
    assert len(await asyncio.gather(*[model.prompt("x") for _ in range(SLICE)])) == SLICE


async def test_e11_cancelled_call_takes_no_turn():
    waiting = [asyncio.create_task(pace.turn()) for _ in range(4 * SLICE)]
    await asyncio.sleep(0)
    for task in waiting[SLICE : 3 * SLICE]:
        task.cancel()
    for _ in range(4):  # the turns are given, and taken
        await asyncio.sleep(0)
    assert all(task.done() for task in waiting)
    assert sum(task.cancelled() for task in waiting) == 2 * SLICE

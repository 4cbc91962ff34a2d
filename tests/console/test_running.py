"""Calls that run: seconds, place in the queue, and who stopped them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.console import running
from datasette_llm.errors import ResponseCancelledError
from datasette_llm.testing import ScriptedModel

from ..support.call_log import add, call_row, flushed_rows
from ..support.console import ANA, BEN, HOSTILE, Page, Start, assert_harmless
from ..support.plugins import Observer
from ..support.waiting import soon

RUNNING = "/-/llm/log/running"
BOTH = ("manage-llm", "view-llm-log")
BROWSER = {"accept": "text/html"}


async def get(datasette: Datasette, path: str, status: int = 200) -> Any:
    response = await datasette.client.get(path, actor=ANA)
    assert response.status_code == status, response.text
    return response


async def calls(datasette: Datasette) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await get(datasette, f"{RUNNING}.json")).json()["calls"]
    return found


def stops(page: Page) -> list[str]:
    """The addresses of the buttons that stop a call."""
    return [form["action"] or "" for form in page.all("form") if "/stop" in (form["action"] or "")]


@asynccontextmanager
async def asked(datasette: Datasette, model: ScriptedModel, count: int = 1) -> AsyncIterator[Any]:
    """Ben prompts a model that never answers, so often at once."""
    ours = await LLM(datasette).model(model.model_id, "chat", BEN)
    prompts = [asyncio.create_task(ours.prompt("Hello")) for _ in range(count)]
    try:
        await soon(model.received())
        yield prompts
    finally:
        for prompt in prompts:
            prompt.cancel()
        await asyncio.wait(prompts)


@pytest.fixture
def slow(register_models: Callable[..., None]) -> ScriptedModel:
    model = ScriptedModel("slow", [asyncio.Event()])
    register_models(model)
    return model


async def test_p6_place_in_the_queue_is_shown(start: Start, slow: ScriptedModel) -> None:
    datasette = await start({"purposes": {"chat": {"max_concurrency": 1}}}, may=BOTH)
    async with asked(datasette, slow, 3):
        found = await calls(datasette)
        page = Page((await get(datasette, RUNNING)).text)

    assert [(each["state"], each["queue"]) for each in found] == [
        ("asked", None),
        ("queued", {"place": 1, "waiting": 2, "purpose": "chat"}),
        ("queued", {"place": 2, "waiting": 2, "purpose": "chat"}),
    ]
    assert {(each["model_id"], each["actor_id"], each["purpose"]) for each in found} == {
        ("slow", "ben", "chat")
    }
    assert all(each["seconds"] >= 0 for each in found)
    assert "waits for a concurrency limit, number 2 of 2" in page.text
    assert [f"/-/llm/log/{found[0]['id']}"] == [
        link for link in page.links() if link.startswith("/-/llm/log/0")
    ]
    assert stops(page) == [f"/-/llm/log/{each['id']}/stop" for each in found]
    assert await calls(datasette) == []
    assert "No call runs or waits now" in (await get(datasette, RUNNING)).text


@pytest.mark.parametrize("place", [0, 1], ids=["sent", "queued"])
async def test_p6_stopped_call_is_recorded_with_who(
    start: Start, slow: ScriptedModel, place: int
) -> None:
    datasette = await start({"purposes": {"chat": {"max_concurrency": 1}}}, may=BOTH)
    async with asked(datasette, slow, 2) as prompts:
        call_id = (await calls(datasette))[place]["id"]
        address = f"/-/llm/log/{call_id}"

        response = await datasette.client.post(f"{address}/stop", actor=ANA, headers=BROWSER)

        with pytest.raises(ResponseCancelledError, match="Stopped by ana"):
            await soon(prompts[place])
        assert (response.status_code, response.headers["location"]) == (303, address)
        (row,) = [each for each in await flushed_rows(datasette) if each["id"] == call_id]
        assert (row["outcome"], row["error_message"]) == ("cancelled", "Stopped by ana")
        assert "Stopped by ana" in (await get(datasette, address)).text


async def test_p6_stop_over_json_and_once_only(start: Start, slow: ScriptedModel) -> None:
    datasette = await start(may=BOTH)
    async with asked(datasette, slow):
        (call,) = await calls(datasette)
        path = f"/-/llm/log/{call['id']}/stop"
        first = await datasette.client.post(path, actor=ANA)
        second = await datasette.client.post(path, actor=ANA)

    assert first.json() == {"ok": True, "id": call["id"]}
    assert second.status_code == 409
    assert "has ended, or another process" in second.json()["error"]


async def test_p6_stopping_needs_manage_llm(start: Start, slow: ScriptedModel) -> None:
    """One who may only read the log sees no button, and a POST is refused."""
    datasette = await start(may=("view-llm-log",))
    async with asked(datasette, slow):
        (call,) = await calls(datasette)
        path = f"/-/llm/log/{call['id']}"
        for page in (RUNNING, path):
            assert not stops(Page((await get(datasette, page)).text))
        for actor in (None, BEN, ANA):
            assert (await datasette.client.post(f"{path}/stop", actor=actor)).status_code == 403
        assert len(await calls(datasette)) == 1
        crossing = {"sec-fetch-site": "cross-site", "origin": "https://elsewhere.example"}
        datasette.config["permissions"]["manage-llm"] = ANA
        refused = await datasette.client.post(f"{path}/stop", actor=ANA, headers=crossing)
        assert refused.status_code == 403
        assert (await datasette.client.get(f"{path}/stop", actor=ANA)).status_code == 405
        assert len(await calls(datasette)) == 1


@pytest.mark.parametrize("actor", [None, BEN])
@pytest.mark.parametrize("path", [RUNNING, f"{RUNNING}.json", "/-/llm/log/follow"])
async def test_p6_what_runs_is_gated(
    start: Start, slow: ScriptedModel, actor: dict[str, str] | None, path: str
) -> None:
    datasette = await start(may=BOTH)
    async with asked(datasette, slow):
        response = await datasette.client.get(path, actor=actor)

    assert response.status_code == 403
    assert "slow" not in response.text


async def test_p6_call_of_another_process_cannot_be_stopped(start: Start) -> None:
    datasette = await start(may=BOTH)
    row = call_row(outcome=None, duration_ms=None, model_id=HOSTILE, actor_id=HOSTILE)
    await datasette.get_internal_database().execute_write_fn(lambda c: add(c, row))

    running_page = Page((await get(datasette, RUNNING)).text)
    call = Page((await get(datasette, f"/-/llm/log/{row['id']}")).text)
    refused = await datasette.client.post(f"/-/llm/log/{row['id']}/stop", actor=ANA)

    assert "in another process, or ending" in running_page.text
    assert "runs in another process" in call.text
    for page in (running_page, call):
        assert not stops(page)
        assert_harmless(page)
    assert refused.status_code == 409


async def test_p6_retried_call_is_stopped_by_its_first_id(
    start: Start, register_models: Callable[..., None]
) -> None:
    """A page that was loaded before a retry stops the call all the same."""
    model = ScriptedModel("slow", [ConnectionError("gone")], [asyncio.Event()])
    register_models(model)
    datasette = await start({"retries": 1}, may=BOTH)
    async with asked(datasette, model) as (prompt,):
        await soon(model.received(2))
        rows = await flushed_rows(datasette)
        first, second = sorted(rows, key=lambda row: row["attempt"])
        page = Page((await get(datasette, f"/-/llm/log/{second['id']}")).text)

        await datasette.client.post(f"/-/llm/log/{first['id']}/stop", actor=ANA)

        assert stops(page)
        with pytest.raises(ResponseCancelledError, match="Stopped by ana"):
            await soon(prompt)


async def test_p6_states_of_a_call(
    start: Start, register_models: Callable[..., None], plugin: Callable[..., Any]
) -> None:
    """It waits for plugins, for the first chunk, for the end, and for plugins again."""
    gates = {name: asyncio.Event() for name in ("plugins", "asked", "answering", "ending")}
    model = ScriptedModel("slow", [gates["asked"], "text", gates["answering"]])
    register_models(model)
    plugin(
        Observer(
            before=lambda result: gates["plugins"].wait(),
            after=lambda result: gates["ending"].wait(),
        )
    )
    datasette = await start(may=BOTH)
    ours = await LLM(datasette).model("slow")
    prompt = asyncio.create_task(ours.prompt("Hello"))
    seen = []
    for gate in gates.values():
        while (state := (await calls(datasette))[0]["state"]) in seen:
            pass  # what is under way goes on while the page is made
        seen.append(state)
        gate.set()
    await soon(await soon(prompt))

    assert seen == list(gates)


async def test_p6_many_calls_are_counted(
    start: Start, slow: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MAX_SHOWN", 2)
    datasette = await start(may=BOTH)
    async with asked(datasette, slow, 5):
        payload = (await get(datasette, f"{RUNNING}.json")).json()

    assert (len(payload["calls"]), payload["more"]) == (2, 3)

"""The page of a conversation: all its turns, what each adds, and who may read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import llm
import pytest
from datasette.app import Datasette

from datasette_llm import LLM
from datasette_llm.console.log import conversation_page
from datasette_llm.console.log.conversation_page import count_repeated
from datasette_llm.consultant.advice.consultation import PURPOSE
from datasette_llm.testing import ScriptedModel

from ...support.call_log import add, call_row
from ...support.console import ANA, BEN, HOSTILE, Page, Start, assert_harmless

LOG = "/-/llm/log"
CONTENT = {"log": {"content": True}}


async def get(datasette: Datasette, path: str, status: int = 200) -> Any:
    response = await datasette.client.get(path, actor=ANA)
    assert response.status_code == status, response.text
    return response


async def record(datasette: Datasette, *rows: dict[str, Any], **content: Any) -> None:
    """Add rows of calls, all with this content."""

    def write(connection: Any) -> None:
        add(connection, *rows)
        sql = "insert into llm_call_content values (?, ?, ?)"
        for row in rows:
            texts = {part: json.dumps(each) for part, each in content.items()}
            connection.executemany(sql, [(row["id"], *each) for each in texts.items()])

    await datasette.get_internal_database().execute_write_fn(write)


@pytest.fixture
async def site(start: Start, register_models: Callable[..., None]) -> Datasette:
    """Ana has talked five times, and the fourth time failed."""
    scripts = [["One"], ["Two"], ["Three"], [llm.ModelError("no")], ["Five"]]
    register_models(ScriptedModel("talker", *scripts, attachment_types=["image/png"]))
    datasette = await start(CONTENT, may=("view-llm-log",))
    talk = (await LLM(datasette).model("talker", actor=ANA)).conversation()
    for number in range(1, 6):
        attached = [llm.Attachment(type="image/png", content=b"\x89PNG")] if number == 1 else []
        try:
            await (await talk.prompt(f"Q{number}", system="Be kind", attachments=attached)).text()
        except llm.ModelError:
            assert number == 4
    return datasette


async def conversation_of(datasette: Datasette) -> str:
    (row,) = (await get(datasette, f"{LOG}.json?limit=1")).json()["rows"]
    return f"{LOG}/conversation/{row['conversation_id']}"


async def test_p5_conversation_has_each_message_once(site: Datasette) -> None:
    payload = (await get(site, f"{await conversation_of(site)}.json")).json()

    texts = [
        [part.get("text", part["type"]) for each in turn["messages"] for part in each["parts"]]
        for turn in payload["turns"]
    ]
    assert texts[:4] == [
        ["Be kind", "Q1", "attachment", "One"],
        ["Q2", "Two"],
        ["Q3", "Three"],
        ["Q4"],
    ]
    assert texts[4][-2:] == ["Q5", "Five"]
    assert [turn["call"]["outcome"] for turn in payload["turns"]].count("error") == 1
    assert payload["next"] is None


async def test_p5_conversation_page_reads_from_top_to_end(site: Datasette) -> None:
    address = await conversation_of(site)

    page = Page((await get(site, address)).text)

    places = [
        page.text.index(text) for text in ("Be kind", "Q1", "image/png, 4 bytes", "One", "Q5")
    ]
    assert places == sorted(places)
    assert page.text.count("Q2") == 1
    ids = {turn["call"]["id"] for turn in (await get(site, f"{address}.json")).json()["turns"]}
    assert {f"{LOG}/{call_id}" for call_id in ids} <= set(page.links())
    call = Page((await get(site, f"{LOG}/{min(ids)}")).text)
    assert address in call.links()


@pytest.mark.parametrize("actor", [None, BEN])
async def test_p5_conversation_is_gated(site: Datasette, actor: dict[str, str] | None) -> None:
    address = await conversation_of(site)
    (call_id,) = [row["id"] for row in (await get(site, f"{LOG}.json?limit=1")).json()["rows"]]
    for path in (address, f"{address}.json", f"{address}?next=x", f"{LOG}/{call_id}/text/1"):
        response = await site.client.get(path, actor=actor)
        assert response.status_code == 403
        assert "Q1" not in response.text


async def test_p5_unknown_conversation_is_404(site: Datasette) -> None:
    for path in ("nothing", "~3Cb~3E", "nothing.json"):
        assert "<b>" not in (await get(site, f"{LOG}/conversation/{path}", 404)).text
    address = await conversation_of(site)
    assert "not a cursor" in (await get(site, f"{address}.json?next=x", 400)).json()["error"]
    assert "not a cursor" in (await get(site, f"{address}?next=x", 400)).text


async def test_p5_whole_text_is_plain_text(start: Start) -> None:
    datasette = await start(may=("view-llm-log",))
    long, row = "é" * 1_000_000, call_row()
    parts = [{"type": "text", "text": f"<b>{long}"}]
    await record(datasette, row, request={"messages": [{"role": "user", "parts": parts}]})

    page = Page((await get(datasette, f"{LOG}/{row['id']}")).text)

    address = f"{LOG}/{row['id']}/text/1"
    assert address in page.links()
    whole = await get(datasette, address)
    assert whole.text == f"<b>{long}"
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.headers["x-content-type-options"] == "nosniff"
    for number in (0, 2, 999_999_999):
        await get(datasette, f"{LOG}/{row['id']}/text/{number}", 404)
    await get(datasette, f"{LOG}/no-such-call/text/1", 404)


async def test_p5_later_turns_have_a_page_of_their_own(site: Datasette, monkeypatch: Any) -> None:
    monkeypatch.setattr(conversation_page, "MAX_TURNS", 2)
    address = await conversation_of(site)

    first = (await get(site, f"{address}.json")).json()
    second = (await get(site, f"{address}.json?next={first['next']}")).json()

    assert f"{address}?next={first['next']}" in Page((await get(site, address)).text).links()
    assert first["next"] == first["turns"][-1]["call"]["id"]
    # Without what the first page has.
    assert [each["parts"][0]["text"] for each in second["turns"][0]["messages"]] == ["Q3", "Three"]


async def test_p5_large_contents_end_the_page(site: Datasette, monkeypatch: Any) -> None:
    monkeypatch.setattr(conversation_page, "MAX_READ_CHARS", 10)

    payload = (await get(site, f"{await conversation_of(site)}.json")).json()

    assert len(payload["turns"]) == 1
    assert payload["next"] == payload["turns"][0]["call"]["id"]


async def test_s8_consultation_in_a_conversation_stays_hidden(start: Start) -> None:
    """Content about a table is for those who may view it; no consultation says which it is."""
    datasette = await start(may=("view-llm-log",))
    secret = [{"role": "user", "parts": [{"type": "text", "text": "our salaries"}]}]
    row = call_row(conversation_id="c1", purpose=PURPOSE)
    await record(datasette, row, request={"messages": secret})

    for path in ("", ".json"):
        assert "salaries" not in (await get(datasette, f"{LOG}/conversation/c1{path}")).text
    await get(datasette, f"{LOG}/{row['id']}/text/1", 404)


async def test_p5_hostile_conversation_is_harmless(start: Start) -> None:
    datasette = await start(may=("view-llm-log",))
    row = call_row(
        conversation_id=HOSTILE, model_id=HOSTILE, error_message=HOSTILE, outcome="error"
    )
    part = {"type": HOSTILE, "name": HOSTILE, "text": HOSTILE, "exception": HOSTILE}
    every = [part | {"type": kind} for kind in ("text", "tool_call", "tool_result", "reasoning")]
    messages = [{"role": HOSTILE, "parts": [part, *every]}, HOSTILE]
    await record(
        datasette, row, request={"messages": messages, "tools": [HOSTILE]}, response=HOSTILE
    )

    call = Page((await get(datasette, f"{LOG}/{row['id']}")).text)

    (address,) = [link for link in call.links() if "/conversation/" in link]
    for page in (call, Page((await get(datasette, address)).text)):
        assert_harmless(page)
        assert page.text.count(HOSTILE) >= 5


def said(role: str, text: str, *more: Any) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "text": text}, *more]}


THOUGHT = {"type": "reasoning", "text": "hm"}
EARLIER = [said("system", "s"), said("user", "q"), said("assistant", "a")]


@pytest.mark.parametrize(
    ("later", "repeated"),
    [
        ([*EARLIER, said("user", "q")], 3),
        (EARLIER[1:], 2),
        ([said("system", "other"), *EARLIER[1:]], 0),
        ([*EARLIER[:2], said("assistant", "a", THOUGHT), said("user", "next")], 3),
        ([said("user", "a summary"), said("user", "next")], 0),
        ([], 0),
        ([7, None], 0),
        (EARLIER, 3),
    ],
)
def test_p5_history_is_left_out(later: list[Any], repeated: int) -> None:
    assert count_repeated(EARLIER, later) == repeated
    assert count_repeated([], later) == 0

"""The Analyze page and its advice as a person uses them: a real browser on a real Datasette."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from datasette.utils.sqlite import sqlite3

from ...support import consultant as consulting
from ...support.browser import browser, fits, needs_browser, picture, visit
from ...support.openai_server import BOUND_S, OpenAIServer, write_model
from ...support.server import Served, alone

pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
PAGE = "/prefix/data/pets/-/llm-analyze"
LIST = "/prefix/-/llm/consultations"
NASTY = '<img src=x onerror=alert(1)> {{7*7}} "&amp;\u202e'


@pytest.fixture
async def advised(tmp_path: Path, llm_folder: Path) -> AsyncIterator[tuple[Served, OpenAIServer]]:
    """A Datasette below a prefix with a table, and two models that answer over HTTP."""
    database = tmp_path / "data.db"
    connection = sqlite3.connect(database)
    connection.executescript(consulting.SCHEMA)
    connection.execute("update pets set owner = ? where id = 3", [NASTY])
    connection.execute('create table "<b>odd</b> {{7*7}}" ("<i>column</i>" text)')
    cells = [f"{NASTY} ", "b", "c", "d"]
    connection.execute('insert into "<b>odd</b> {{7*7}}" values (?), (?), (?), (?)', cells)
    connection.commit()
    connection.close()
    config = tmp_path / "datasette.json"
    settings = {"default_model": "wire", "consultant": {"values": "sample"}}
    plugins = {"plugins": {"datasette-llm": settings}, "settings": {"base_url": "/prefix/"}}
    config.write_text(json.dumps(plugins))
    (llm_folder / "keys.json").write_text(json.dumps({"wire": "sk-" + "0123456789abcdef"}))
    async with OpenAIServer() as server:
        write_model(llm_folder, server.url)
        write_model(llm_folder, server.url, model_id="other")
        internal = str(tmp_path / "internal.db")
        options = (str(database), "--root", "--internal", internal, "--config", str(config))
        served = await Served.start(alone(llm_folder), *options)
        try:
            await served.ready()
            yield served, server
        finally:
            await served.kill()


async def log_in(page, site):
    await page.goto(re.search(r"/prefix/-/auth-token\?token=\w+", site.output)[0])


async def sent_to(server, number=0):
    return (await server.received(number)).body["messages"][-1]["content"]


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
async def test_a8_question_is_typed_and_sent(advised, javascript):
    """From the table's menu to the advice: by keyboard, in one go, and asked again beside it."""
    site, server = advised
    gate = asyncio.Event()
    reasons = "Weights are **far** apart [x](javascript:alert(1)) ![y](https://example.com/y.png)"
    answer = consulting.answer(reasoning_summary=reasons)
    server.play([gate, json.dumps(answer)], [json.dumps(answer)])
    async with (
        browser() as chromium,
        visit(chromium, site.url, java_script_enabled=javascript) as page,
    ):
        await log_in(page, site)
        await page.goto("/prefix/data/pets")
        await page.locator(".actions-menu-links summary").click()
        await page.get_by_role("menuitem", name="Analyze").click()
        await page.get_by_role("heading", name="Findings").wait_for()
        await page.get_by_role("heading", name="What is sent").wait_for()
        await picture(page, "consultant-preview")
        await page.locator("summary", has_text="User prompt").click()
        seen = await page.get_by_role("region", name="User prompt").inner_text()
        question = page.get_by_label("Question")
        await question.fill("Which are too heavy?")
        pressing = asyncio.create_task(question.press("Enter"))
        prompt = await sent_to(server)
        if javascript:
            await page.get_by_text("Waiting for the answer of wire").wait_for()
            await page.get_by_text(re.compile(r"^\d+ s")).wait_for()
            await picture(page, "consultant-waiting")
        gate.set()
        await pressing
        await page.get_by_role("heading", name="Advice about pets").wait_for()
        line, _, rest = prompt.partition("\n\n")
        assert "Which are too heavy?" in line
        assert rest.strip() == seen.strip()
        await picture(page, "consultant-advice")
        assert await page.locator(".llm-markdown strong").inner_text() == "far"
        assert await page.locator("img, [href^='javascript']").count() == 0
        yaml = await page.get_by_role("region", name="datasette.yaml").inner_text()
        assert "sort_desc: weight" in yaml

        await page.get_by_role("link", name="Ask another model").click()
        assert await page.get_by_label("Question").input_value() == "Which are too heavy?"
        await page.get_by_label("Model", exact=True).select_option("other")
        if not javascript:
            await page.get_by_role("button", name="Show what would be sent").click()
        await page.locator("#llm-size").get_by_text("other", exact=True).wait_for()
        await page.get_by_role("button", name="Send", exact=True).click()
        await page.get_by_role("article", name="other").wait_for()
        assert await page.get_by_role("article").count() == 2
        await picture(page, "consultant-beside")


async def test_a8_preview_follows_what_is_chosen(advised):
    """The page stays, with what was typed; what is shown then is what is sent, and copied."""
    site, server = advised
    server.play([json.dumps(consulting.answer())])
    clipboard = ["clipboard-read", "clipboard-write"]
    async with browser() as chromium, visit(chromium, site.url, permissions=clipboard) as page:
        await log_in(page, site)
        await page.goto(PAGE)
        await page.get_by_label("Question").fill("Why?")
        await page.get_by_text("Columns to leave out").click()
        await page.get_by_label("owner").check()
        await page.get_by_text("Columns to leave out: 1 of 5").wait_for()
        assert await page.get_by_label("owner").evaluate("each => each === document.activeElement")
        await page.locator("summary", has_text="User prompt").click()
        seen = await page.get_by_role("region", name="User prompt").inner_text()
        assert '"left_out":["owner"]' in seen
        assert page.url.endswith(PAGE)
        await page.get_by_role("button", name="Copy User prompt").click()
        await page.get_by_text("Copied", exact=True).wait_for()
        assert await page.evaluate("navigator.clipboard.readText()") == seen
        await page.get_by_role("button", name="Send", exact=True).click()
        await page.get_by_role("heading", name="Advice about pets").wait_for()
        assert (await sent_to(server)).partition("\n\n")[2].strip() == seen.strip()
        await page.get_by_role("button", name="Copy the advice").click()
        await page.get_by_text("Copied", exact=True).wait_for()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert "Look at the negative weight" in copied


async def test_a8_claims_turn_to_verdicts(advised, tmp_path):
    """Live, and they stay where the consultation cannot be stored; hostile claims are text."""
    site, server = advised
    wrong = consulting.flag(consulting.rows_where("weight", expected=3), claim="They are 3")
    gate = asyncio.Event()
    advice = consulting.answer(consulting.flag(claim=NASTY), wrong)
    server.play([gate, json.dumps(advice)])
    async with browser() as chromium, visit(chromium, site.url) as page:
        await log_in(page, site)
        await page.goto(PAGE)
        question = page.get_by_label("Question")
        await question.press("Enter")
        await server.received()
        with closing(sqlite3.connect(tmp_path / "internal.db")) as connection:
            connection.execute("begin immediate")  # as a backup does
            gate.set()
            live = page.get_by_role("list", name="Claims").get_by_role("listitem")
            await live.filter(has_text="Contradicted").wait_for()
            assert await live.count() == 2
            assert "Said 3; counted 1" in await live.last.inner_text()
            assert "onerror=alert(1)> {{7*7}}" in await live.first.inner_text()
            assert await page.locator("img").count() == 0
            assert await question.evaluate("each => each === document.activeElement")
            await picture(page, "consultant-live")
            await page.get_by_text("No advice: The consultation could not be recorded").wait_for()
            assert await live.count() == 2
            assert await page.get_by_role("button", name="Send", exact=True).is_enabled()


async def test_a8_cancel_stops_and_is_recorded(advised):
    """The request ends, the page can send again, and the consultation says cancelled."""
    site, server = advised
    server.play(['{"suggested_action": "Half', asyncio.Event()], [json.dumps(consulting.answer())])
    async with browser() as chromium, visit(chromium, site.url, may_fail=PAGE) as page:
        await log_in(page, site)
        await page.goto(PAGE)
        await page.get_by_label("Question").press("Enter")
        request = await server.received()
        await page.get_by_text("Waiting for the answer").wait_for()
        cancel = page.get_by_role("button", name="Cancel")
        await cancel.focus()
        await cancel.press("Enter")
        await page.get_by_text("Cancelled.").wait_for()
        send = page.get_by_role("button", name="Send", exact=True)
        assert await send.evaluate("each => each === document.activeElement")
        await request.end()
        async with asyncio.timeout(BOUND_S):
            while (outcomes := await asked_outcomes(page)) == []:
                pass
        assert outcomes == ["cancelled"]
        await send.click()
        await page.get_by_role("heading", name="Advice about pets").wait_for()


async def asked_outcomes(page):
    answer = await (await page.context.request.get(f"{LIST}.json")).json()
    return [row["outcome"] for row in answer["consultations"] if row["model_id"]]


async def test_a8_evidence_leads_to_rows(advised):
    """From a finding to its rows, to one of them, without JavaScript."""
    site, _ = advised
    async with (
        browser() as chromium,
        visit(chromium, site.url, java_script_enabled=False) as page,
    ):
        await log_in(page, site)
        await page.goto("/prefix/data/~3Cb~3Eodd~3C~2Fb~3E~20~7B~7B7~2A7~7D~7D/-/llm-analyze")
        await page.get_by_role("heading", name="What is sent").wait_for()
        assert await page.locator("img, section b, section i").count() == 0
        assert "{{7*7}}" in await page.get_by_role("heading", level=1).inner_text()
        await page.get_by_role("link", name="First rows").first.click()
        await page.get_by_role("heading", name="Rows of").wait_for()
        await page.get_by_role("cell").get_by_role("link").first.click()
        await page.get_by_role("heading", level=1).wait_for()
        assert "/1" in page.url


async def test_a8_pages_fit_a_phone_in_the_dark(advised):
    site, server = advised
    server.play([json.dumps(consulting.answer())], [json.dumps(consulting.answer())])
    async with browser() as chromium, visit(chromium, site.url, **PHONE) as page:
        await log_in(page, site)
        await page.goto(PAGE)
        await picture(page, "consultant-preview-phone-dark")
        assert await fits(page)
        for name in ("advice", "beside"):
            await page.get_by_role("button", name="Send", exact=True).click()
            await page.get_by_role("heading", name="Advice about pets").wait_for()
            await picture(page, f"consultant-{name}-phone-dark")
            assert await fits(page), name
            if name == "advice":
                await page.get_by_role("link", name="Ask again").click()
        await page.goto(LIST)
        await picture(page, "consultant-list-phone-dark")
        assert await fits(page)

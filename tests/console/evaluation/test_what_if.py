"""The page What if, its part of a purpose's page, and its command."""

from __future__ import annotations

import asyncio
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from datasette import hookimpl
from datasette.cli import cli

from datasette_llm.testing import ScriptedModel

from ...support.answered import answered, counted
from ...support.call_log import add, call_row
from ...support.console import ANA, BEN, HOSTILE, Page, Start, assert_harmless, get, get_json

ALL = ("manage-llm", "view-llm-log")
NOW = datetime.datetime.now(datetime.UTC)
MILLION = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}


async def site(start: Start, register_models: Any, **more: Any) -> Any:
    """With a call for a purpose that has cost a dollar and a half."""
    register_models(ScriptedModel("gpt-4o-mini"), ScriptedModel("priceless"))
    datasette = await start({"purposes": {"chat": {}, HOSTILE: {}}}, may=ALL, **more)
    rows = [
        call_row(NOW, model_id="pelican", purpose=purpose, cost_nanodollars=10**9, **MILLION)
        for purpose in ("chat", HOSTILE)
    ]
    await datasette.get_internal_database().execute_write_fn(lambda c: add(c, *rows))
    return datasette


@pytest.mark.parametrize("path", ["what-if", "what-if.json"])
@pytest.mark.parametrize("missing", ALL)
async def test_v2_needs_both_permissions(
    start: Start, register_models: Any, path: str, missing: str
) -> None:
    datasette = await site(start, register_models)
    assert "gpt-4o-mini" in (await get(datasette, path)).text
    datasette.config["permissions"][missing] = {"id": "ben"}
    for actor in (None, ANA, BEN):
        refused = await datasette.client.get(f"/-/llm/{path}?since=soon", actor=actor)
        assert refused.status_code == 403
        assert "gpt-4o-mini" not in refused.text
    assert (await datasette.client.post(f"/-/llm/{path}", actor=ANA)).status_code in (403, 405)


async def test_v2_page_and_json_of_a_filter(start: Start, register_models: Any) -> None:
    datasette = await site(start, register_models, settings={"base_url": "/prefix/"})
    for purpose in ("chat", HOSTILE):
        found = await get_json(datasette, "what-if", purpose=purpose)
        assert found["recorded"]["cost_dollars"] == 1
        costs = {row["model_id"]: (row["cost_dollars"], row["ratio"]) for row in found["models"]}
        assert costs["gpt-4o-mini"] == (0.75, 0.75)
        assert costs["priceless"] == (None, None)
        page = Page((await get(datasette, "what-if", purpose=purpose)).text)
        assert_harmless(page)
        assert {"$0.75", "75 %", "unknown price"} <= set(page.cells)
        assert page.text.count("Models count tokens differently") == 1
    assert (await get_json(datasette, "what-if", purpose="(none)"))["calls"] == 0
    assert "nothing to compare" in (await get(datasette, "what-if", purpose="none")).text


async def test_v2_factor_on_page_and_in_terminal(
    start: Start, register_models: Any, tmp_path: Path
) -> None:
    """The cost with a model's own tokens, and from how many cases, beside the other."""
    internal = tmp_path / "internal.db"
    datasette = await site(start, register_models, internal=str(internal))
    await answered(datasette, 12, counted("pelican", 100), counted("gpt-4o-mini", 114))
    for path in ("what-if?purpose=chat", "purposes/chat"):
        text = Page((await datasette.client.get(f"/-/llm/{path}", actor=ANA)).text).text
        factor = "about 1.14\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN} the input and 1.14"
        assert f"$0.855 with its own tokens: {factor}" in text
        assert "in 12 cases of evaluations" in text
    words = ["llm", "what-if", "-p", "chat", "--internal", str(internal)]
    printed = await asyncio.to_thread(CliRunner().invoke, cli, words)
    assert "$0.855; about 1.14" in printed.stdout
    assert "of pelican in 12 cases" in printed.stdout


async def test_v2_page_keeps_every_tag(start: Start, register_models: Any) -> None:
    """In its form, and in its links to the calls and to the JSON."""
    datasette = await site(start, register_models)
    query = "tag=job%3A1&tag=row%3A2&outcome=ok&since=2020-01-01"
    page = Page((await datasette.client.get(f"/-/llm/what-if?{query}", actor=ANA)).text)
    tags = [each["value"] for each in page.all("input") if each["name"] == "tag"]
    assert tags == ["job:1", "row:2"]
    assert any(link.endswith(f"what-if.json?{query}") for link in page.links())


@pytest.mark.parametrize("bad", [{"since": "soon"}, {"nonsense": "1"}, {"outcome": "x"}])
async def test_v2_bad_filter_is_refused(start: Start, register_models: Any, bad: Any) -> None:
    datasette = await site(start, register_models)
    (value,) = bad
    assert value in (await get_json(datasette, "what-if", 400, **bad))["error"]
    assert value in (await get(datasette, "what-if", 400, **bad)).text


async def test_v2_on_the_page_of_a_purpose(start: Start, register_models: Any) -> None:
    """Beside its figures and in its menu; without the permission for the log, nowhere."""
    datasette = await site(start, register_models)
    page = Page((await get(datasette, "purposes/chat")).text)
    assert "gpt-4o-mini ($0.15 / $0.60, these calls: $0.75)" in page.text
    assert "As recorded" in page.text
    datasette.config["permissions"]["view-llm-log"] = {"id": "ben"}
    hidden = (await get(datasette, "purposes/chat")).text
    assert "As recorded" not in hidden
    assert "these calls" not in hidden


async def test_v2_failing_plugin_is_named(start: Start, register_models: Any, plugin: Any) -> None:
    class Failing:
        @hookimpl
        def llm_filter_models(self) -> None:
            raise ValueError("out of order")

    datasette = await site(start, register_models)
    plugin(Failing())
    assert "out of order" in (await get_json(datasette, "what-if", 503))["error"]
    assert "out of order" in (await get(datasette, "purposes/chat")).text


async def test_v2_command(start: Start, register_models: Any, tmp_path: Path) -> None:
    """A table for people, the page's JSON for programs; it says what is missing."""
    internal = tmp_path / "internal.db"
    datasette = await site(start, register_models, internal=str(internal))
    shown = await get_json(datasette, "what-if", purpose="chat")

    async def run(*words: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, cli, ["llm", "what-if", *words])

    arguments = ("-p", "chat", "--internal", str(internal))
    printed = await run(*arguments, "--json")
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == shown
    table = (await run(*arguments)).stdout
    (line,) = [line for line in table.splitlines() if line.startswith("gpt-4o-mini ")]
    assert line.split() == ["gpt-4o-mini", "$0.75", "75", "%"]
    assert "unknown price" in table
    assert (await run("-p", "chat")).exit_code == 2
    bad = await run(*arguments, "--since", "soon")
    assert (bad.exit_code, "soon" in bad.output) == (1, True)

"""What the pages and the command have of the response cache, and clearing it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import click.testing
import llm
import pytest
import yaml
from datasette.cli import cli

from datasette_llm import LLM
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows

ROOT = {"id": "root"}
CLEAR = "/-/llm/cache/clear"
FORM = {"accept": "text/html", "content-type": "application/x-www-form-urlencoded"}
SECRET = "what was said"
HOSTILE = "<img src=x onerror=alert(1)>"
CONFIG = {
    "cache": {"scope": "purpose"},
    "log": {"prices": {"m": {"input": 1, "output": 2}}},
}


@pytest.fixture
def datasette(make_datasette: Any, register_models: Any, tmp_path: Any) -> Any:
    register_models(ScriptedModel("m", [SECRET]))
    datasette = make_datasette(
        CONFIG, internal=str(tmp_path / "internal.db"), plugins={}, settings={}
    )
    datasette.root_enabled = True
    return datasette


async def prompted(datasette: Any, *asked: tuple[str, str | None]) -> None:
    for text, purpose in asked:
        model = await LLM(datasette).model("m", purpose=purpose, actor=ROOT)
        await (await model.prompt(text)).text()
    await Recorder.of(datasette).writer.flush()


async def get(datasette: Any, path: str, actor: Any = ROOT) -> Any:
    return await datasette.client.get(f"/-/llm/{path}", actor=actor)


async def post(datasette: Any, fields: dict[str, str], actor: Any = ROOT, **kwargs: Any) -> Any:
    return await datasette.client.post(
        CLEAR, content=urlencode(fields), headers=FORM, actor=actor, **kwargs
    )


async def test_r5_purposes_shows_and_clears(datasette: Any) -> None:
    """How much is kept, by purpose; a POST clears one or all, and no page shows an answer."""
    await prompted(datasette, ("a", "p"), ("b", "p"), ("c", HOSTILE), ("d", None))
    page = (await get(datasette, "purposes")).text
    listed = (await get(datasette, "purposes.json")).json()
    assert [(each["purpose"], each["answers"]) for each in listed["cache"]] == [
        (None, 1),
        (HOSTILE, 1),
        ("p", 2),
    ]
    assert "answers kept for 7 days, 500 MB, shared by its actors" in page
    assert SECRET not in page
    assert HOSTILE not in page
    response = await post(datasette, {"purpose": "p"})
    assert (response.status_code, response.headers["location"]) == (303, "/-/llm/purposes")
    assert len(await flushed_rows(datasette, "llm_cache")) == 2
    payload = (await datasette.client.post(CLEAR, json={}, actor=ROOT)).json()
    assert payload == {"ok": True, "purpose": None, "removed": 2}
    assert "Response cache" not in (await get(datasette, "purposes")).text


@pytest.mark.parametrize("actor", [None, {"id": "ana"}])
async def test_r5_clearing_needs_manage_llm(datasette: Any, actor: Any) -> None:
    await prompted(datasette, ("a", "p"))
    assert (await post(datasette, {}, actor)).status_code == 403
    assert (await get(datasette, "cache/clear")).status_code == 405
    assert len(await flushed_rows(datasette, "llm_cache")) == 1


async def test_r5_other_sites_cannot_clear(datasette: Any) -> None:
    """Datasette refuses a POST that another site's page has sent."""
    await prompted(datasette, ("a", "p"))
    headers = FORM | {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    response = await datasette.client.post(
        CLEAR,
        content="",
        headers=headers,
        cookies={"ds_actor": datasette.sign({"a": ROOT}, "actor")},
    )
    assert response.status_code == 403
    assert len(await flushed_rows(datasette, "llm_cache")) == 1


async def test_r5_clearing_what_was_never_kept(datasette: Any) -> None:
    await datasette.invoke_startup()
    payload = (await datasette.client.post(CLEAR, json={}, actor=ROOT)).json()
    assert payload == {"ok": True, "purpose": None, "removed": 0}


async def test_r5_usage_shows_hits_and_savings(make_datasette: Any, register_models: Any) -> None:
    register_models(ScriptedModel("m", ["x", llm.Usage(input=1_000_000, output=0)]))
    datasette = make_datasette(CONFIG)
    datasette.root_enabled = True
    await prompted(datasette, ("a", "p"), ("a", "p"), ("a", "p"), ("a", "q"), ("a", "q"))
    found = (await get(datasette, "usage.json")).json()["cache"]
    assert found == {"calls": 3, "saved_nanodollars": 3 * 10**9, "saved_dollars": 3.0}
    page = (await get(datasette, "usage")).text
    assert "From the cache" in page
    assert "$3.00 saved" in page
    assert (await get(datasette, "usage.json?purpose=p")).json()["cache"]["calls"] == 2


async def test_r3_call_page_says_how_old(datasette: Any) -> None:
    await prompted(datasette, ("a", "p"), ("a", "p"))
    first, hit = await flushed_rows(datasette)
    page = (await get(datasette, f"log/{hit['id']}")).text
    assert f"answer of call {first['id']}, about a minute old" in page
    assert "response cache" not in (await get(datasette, f"log/{first['id']}")).text


def test_r5_command_shows_and_clears(datasette: Any, tmp_path: Any) -> None:
    async def prepare() -> None:
        await prompted(datasette, ("a", "p"), ("b", None))
        await datasette.invoke_shutdown()

    asyncio.run(prepare())
    config = tmp_path / "datasette.yaml"
    config.write_text(yaml.safe_dump({"plugins": {"datasette-llm": CONFIG}}))

    def run(*arguments: str) -> click.testing.Result:
        given = ["llm", "cache", *arguments, "--internal", str(tmp_path / "internal.db")]
        return click.testing.CliRunner().invoke(cli, [*given, "-c", str(config)])

    shown = run().output
    assert "(no purpose): 1 answers, 0.0 MB (plugins.datasette-llm.cache)" in shown
    assert SECRET not in shown
    (size,) = json.loads(run("--json", "--purpose", "p").output)["sizes"]
    assert (size["purpose"], size["answers"]) == ("p", 1)
    assert run("--purpose", "p", "--clear").output == "1 answer removed from the response cache.\n"
    assert json.loads(run("--clear", "--json").output)["removed"] == 1
    assert run().output == "Nothing is kept\n"
    assert click.testing.CliRunner().invoke(cli, ["llm", "cache"]).exit_code == 2

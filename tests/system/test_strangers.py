"""Whatever a stranger says: every page, JSON, CSV and command shows it, and none obeys it.

Strangers name models, purposes, actors, tables and columns, fill cells, write answers and errors.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from datasette import hookimpl
from datasette.cli import cli
from datasette.utils import tilde_encode

from datasette_llm import LLM, Purpose
from datasette_llm.testing import ScriptedModel
from tests.support.console import Page, client
from tests.support.consultant import answer, flag, rows_where

ROOT = {"id": "root"}
PIECES = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(2)</script>",
    "</pre></title></textarea><!--",
    "{{7*7}}{% raw %}&amp;&#x41;",
    "javascript:alert(3)",
    "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b31m\x7f",
    "\x00\x01\x08\x0b\x0c\x1f",
    "\r\n\t\u2028\u2029\x85",
    "\ud800 \udfff \ud83d",
    "\u202egnp.exe\u2066\u200f שלום \u061c",
    "=cmd|'/c calc'!A0",
    ';"=1+1\t@SUM(1)\n-2\uff1d3',
    "../../%2e%2e/~2F?a=b&c#d;%00",
    "'; drop table llm_calls; --",
    "a" * 3_000,
    "\U0001f469\u200d\U0001f680 e\u0301 \ufeff\U000e0001",
    "",
)
# What no terminal may get: controls but newline and tab, and what reorders a line.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def said(seed: int) -> str:
    """Something that a stranger says; the first are each piece alone."""
    if seed < len(PIECES):
        return PIECES[seed]
    return "".join(random.Random(seed).sample(PIECES, 5))


def storable(text: str) -> str:
    """A name that SQLite can have."""
    return text.encode("utf-8", "replace").decode().replace("\0", "") or "empty"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Stranger:
    """A plugin with one purpose, whose context refuses one prompt."""

    def __init__(self, text: str) -> None:
        self.text = text

    @hookimpl
    def register_llm_purposes(self):
        return [Purpose(f"p {self.text}", self.text)]

    @hookimpl
    def llm_prompt_context(self, prompt):
        if prompt == "refuse":
            raise RuntimeError(self.text)


@pytest.fixture
async def site(request, make_datasette, register_models, plugin, tmp_path):
    """A site in which a stranger has said something wherever they can."""
    text = said(request.param)
    plugin(Stranger(text), f"plugin {text}")
    advice = answer(
        flag(rows_where(text, "=", text), column=text, claim=text),
        suggested_action=text,
        reasoning_summary=text,
    )
    register_models(
        ScriptedModel(f"m {text}", [text, text], [f"refuse {text}"]),
        ScriptedModel("failing", *[[RuntimeError(text)]] * 20),
        ScriptedModel("advising", *[[json.dumps(advice)]] * 9),
    )
    table = storable(text)
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        connection.execute(f"create table {quoted(table)} ({quoted(table)} text)")
        sql = f"insert into {quoted(table)} values (?), (?)"
        connection.execute(sql, [storable(text)] * 2)
        connection.commit()
    ours = {"default_model": "advising", "retries": 0, "log": {"content": True}}
    permissions = {name: {"id": "root"} for name in ("manage-llm", "view-llm-log", "analyze-table")}
    config = {"plugins": {"datasette-llm": ours}}
    (tmp_path / "datasette.json").write_text(json.dumps(config))
    datasette = make_datasette(
        ours, files=[str(tmp_path / "data.db")], internal=str(tmp_path / "internal.db")
    )
    datasette.config["permissions"] = permissions
    await datasette.invoke_startup()
    for model_id, prompt in ((f"m {text}", text), ("failing", "x"), (f"m {text}", "refuse")):
        try:
            model = await LLM(datasette).model(model_id, f"p {text}", {"id": f"a {text}"})
            await (await model.prompt(prompt)).text()
        except Exception:  # it is on record
            pass
    datasette.said, datasette.table, datasette.folder = text, table, tmp_path
    return datasette


async def pages(datasette, asking) -> list[str]:
    """The address of every page about it, without `.json`."""
    text = datasette.said
    calls = (await asking.get("/-/llm/log.json")).json()["rows"]
    table = f"/data/{tilde_encode(datasette.table)}/-/llm-analyze"
    made = (await asking.post(f"{table}.json", content="{}")).json()
    return [
        *("/-/llm", "/-/llm/models", "/-/llm/purposes", "/-/llm/keys", "/-/llm/test"),
        *("/-/llm/log", "/-/llm/log?by=model", "/-/llm/consultations", "/-/llm/explain"),
        *(f"/-/llm/log/{row['id']}" for row in calls),
        f"/-/llm/consultations/{made['consultation']['id']}",
        table,
        *(
            f"{page}?{query(text, *names)}"
            for page, names in (
                ("/-/llm/models", ("q",)),
                ("/-/llm/models", ("purpose", "provider")),
                ("/-/llm/test", ("model_id", "purpose")),
                ("/-/llm/explain", ("model", "purpose")),
                ("/-/llm/explain", ("actor",)),
                ("/-/llm/log", ("purpose", "model", "actor", "group")),
                ("/-/llm/log", ("since",)),
                (table, ("question",)),
                (table, ("model_id",)),
            )
        ),
    ]


def query(text: str, *names: str) -> str:
    return urlencode(dict.fromkeys(names, text), errors="replace")


SEEDS = range(len(PIECES) + 8)
on_all = pytest.mark.parametrize("site", SEEDS, indirect=True)


@on_all
async def test_strangers_on_every_page(site):
    async with client(site, ROOT) as asking:
        for address in await pages(site, asking):
            await check(asking, address)


async def check(asking, address):
    response = await asking.get(address)
    assert response.status_code in (200, 400), (address, response.text)
    page = Page(response.text)
    assert not page.all("img"), address
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (address, tag)
    for script in re.findall(r"(?is)<script[^>]*>(.*?)</script", response.text):
        assert "alert(" not in script, address
    for link in page.links():
        assert not link.lower().strip().startswith("javascript:"), address
    assert "49{%" not in response.text, address
    path, _, arguments = address.partition("?")
    twin = await asking.get(f"{path}.json?{arguments}")
    assert twin.status_code == response.status_code, address
    json.loads(twin.content)


@on_all
async def test_strangers_in_csv(site):
    exported = (await site.client.get("/-/llm/log.csv", actor=ROOT)).text
    names = next(csv.reader([exported.splitlines()[0]]))
    rows = list(csv.DictReader(io.StringIO(exported, newline="")))
    assert len(rows) >= 2
    assert all(set(row) == set(names) for row in rows)
    for delimiter in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(exported, newline=""), delimiter=delimiter):
            for cell in row:
                assert not cell.lstrip(' \r\n\t"').startswith(FORMULA), cell


@on_all
def test_strangers_in_every_command(site):
    text, folder = site.said, site.folder
    model, purpose = f"m {text}", f"p {text}"
    given = ["-c", str(folder / "datasette.json"), "--internal", str(folder / "internal.db")]
    log = ["--internal", str(folder / "internal.db")]
    table = [str(folder / "data.db"), site.table]
    for command in (
        ["models", *given],
        ["models", *given, "--json"],
        ["purposes", *given],
        ["purposes", *given, "--json"],
        ["explain", model, "-p", purpose, "--actor", json.dumps({"id": text}), *given],
        ["explain", model, *given, "--json"],
        ["test", "failing", *given],
        ["test", model, *given],
        ["prompt", text or "x", "-m", model, "-p", purpose, *given],
        ["prompt", "x", "-m", "failing", *given],
        ["prompt", "x", "-m", f"unknown {text}", *given],
        ["assign", purpose, model, *given],
        ["assign", f"unknown {text}", model, *given],
        ["log", *log],
        ["log", *log, "--json"],
        ["log", *log, "--since", text],
        ["log", *log, "--model", model],
        ["analyze", *table, "--preview", *given],
        ["analyze", *table, "-q", text, *given],
        ["analyze", *table, "--json", *given],
        ["analyze", table[0], f"unknown {text}", *given],
        ["analyze", *table, "--exclude", f"unknown {text}", *given],
    ):
        result = CliRunner().invoke(cli, ["llm", *command])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            command,
            result.exception,
        )
        assert not CONTROLS.search(result.output), (command, result.output)
        if "--json" in command and result.exit_code == 0:
            json.loads(result.stdout)
    assert Path(folder / "internal.db").exists()

"""The examples of `ties.md`."""

from __future__ import annotations

import sqlite3

import pytest
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from .examples import run, shows

ANA = {"id": "ana"}
PERMISSIONS = {"view-llm-log": ANA, "update-row": ANA}


@pytest.fixture
def animals(tmp_path):
    connection = sqlite3.connect(tmp_path / "zoo.db")
    connection.executescript(
        "create table animals (name, description);insert into animals (name) values ('Ada'), ('Bo')"
    )
    connection.close()
    return str(tmp_path / "zoo.db")


@shows(source="descriptions.py", address="tags json")
async def test_k5_cell_leads_to_its_call(source, address, site, register_models, animals):
    register_models(ScriptedModel("pelican", ["A bird."], ["A dog."]))
    datasette = site({"default_model": "pelican"}, descriptions=source)
    datasette.config["permissions"] = PERMISSIONS
    await datasette.invoke_startup()
    datasette.add_database(Database(datasette, animals, is_mutable=True), "zoo")
    for method, actor, status in (("post", None, 403), ("get", ANA, 405)):
        refused = await getattr(datasette.client, method)("/-/describe", actor=actor)
        assert refused.status_code == status

    job = (await datasette.client.post("/-/describe", actor=ANA)).json()["job"]

    cell = await datasette.get_database("zoo").execute("select description from animals")
    assert [text for (text,) in cell.rows] == ["A bird.", "A dog."]
    origin = await datasette.client.get("/-/origin/2", actor=ANA)
    assert origin.json()["tags"] == {
        "source.path": "/-/describe",
        "table": "animals",
        "job": job,
        "row": 2,
        "source.plugin": "descriptions.py",
    }
    assert origin.json()["model"] == "pelican"
    assert (await datasette.client.get(origin.json()["call"], actor=ANA)).status_code == 200
    assert (await datasette.client.get("/-/origin/2")).status_code == 403
    assert (await datasette.client.get("/-/origin/3", actor=ANA)).status_code == 404
    listed = (await datasette.client.get(address.strip(), actor=ANA)).json()
    assert [row["tags"]["row"] for row in listed["rows"]] == [2]
    assert origin.json()["call"].endswith(listed["rows"][0]["id"])


@shows(source="tagged.py")
async def test_k5_tagged_reaches_other_code(source, scripted_model):
    _, _, model = await scripted_model()
    seen = []

    async def enrich_row(row):
        seen.append((await model.prompt(row["name"])).tags)

    enrich = (await run(source))["enrich"]
    await enrich([{"id": 5, "name": "Ada"}, {"id": 6, "name": "Bo"}], enrich_row)
    assert seen == [{"job": 12, "row": 5}, {"job": 12, "row": 6}]


@shows(source="ledger.py")
async def test_k5_ledger_links_to_the_calls(source, site, register_models):
    register_models(ScriptedModel("pelican"))
    datasette = site(ledger=source)
    datasette.config["permissions"] = PERMISSIONS
    await datasette.invoke_startup()
    model = await LLM(datasette).model("pelican", tags={"job": "a"})
    response = await model.prompt("Hi")
    await response.text()
    await Recorder.of(datasette).writer.flush()

    found = await datasette.get_internal_database().execute("select * from ledger")
    [(call_id, job, attempts, dollars)] = map(tuple, found.rows)
    assert (call_id, job, attempts, dollars) == (response.id, "a", 1, None)
    call = await LLM(datasette).call(call_id, actor=ANA)
    assert call is not None
    assert call.tags == {"job": "a"}

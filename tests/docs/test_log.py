"""The examples and tables of `log.md`."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3

import llm
import yaml

from datasette_llm import (
    LLM,
)
from datasette_llm.console.log.running_page import event_of
from datasette_llm.console.usage.request import ARGUMENTS, BYS, MEASURES, PERIODS
from datasette_llm.log.feed import Changes
from datasette_llm.log.queries import RUNNING, Filter, calls
from datasette_llm.log.schema import OUTCOMES
from datasette_llm.testing import ScriptedModel

from .examples import (
    DOCS,
    ours,
    shows,
)


def test_outcomes_table_is_complete():
    assert tuple(re.findall(r"^\| `(\w+)` \|", DOCS["log"], re.M)) == OUTCOMES
    assert f"`{RUNNING}`" in DOCS["log"]


def test_filters_are_documented():
    filters = re.search(r"takes the filters(.*?); `", DOCS["log"], re.S)
    assert set(re.findall(r"`(\w+)`", filters[1])) == set(Filter.names())


@shows(config="record.yaml")
async def test_log_is_kept_as_configured(config, make_datasette, register_models, tmp_path):
    ids = ("our-own-model", "another-model")
    register_models(*[ScriptedModel(i, ["Hm.", llm.Usage(input=1000, output=100)]) for i in ids])
    datasette = make_datasette(ours(config), internal=str(tmp_path / "internal.db"))
    await datasette.start_background_tasks()
    names = [task.name for task in datasette._background_tasks.tasks()]  # noqa: SLF001  # Datasette's
    for model_id, purpose in zip(ids, ("sql", "pets"), strict=True):
        model = await LLM(datasette).model(model_id, purpose=purpose)
        await (await model.prompt("Which pet?")).text()
    await datasette.invoke_shutdown()

    with contextlib.closing(sqlite3.connect(tmp_path / "internal.db")) as connection:
        another, own = calls(connection, Filter(), limit=10)
        sql = "select call_id, part, content from llm_call_content order by part"
        contents = connection.execute(sql).fetchall()
    assert "datasette-llm retention" in names
    assert ours(config)["log"]["required"] is True
    assert own["cost_nanodollars"] == 1000 * 500 + 100 * 2000
    assert another["cost_nanodollars"] is None
    assert [(i, part) for i, part, _ in contents] == [
        (another["id"], "request"),
        (another["id"], "response"),
    ]
    assert "Which pet?" in contents[0][2]
    assert "Hm." in contents[1][2]


@shows(address="usage json")
async def test_usage_arguments(address, make_datasette):
    """The address that is shown, and each argument that is named."""
    datasette = make_datasette({})
    datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
    await datasette.invoke_startup()
    found = await datasette.client.get(address.strip(), actor={"id": "ana"})
    assert found.json()["by"] == ["purpose", "day"]
    section = DOCS["log"].partition("## Usage")[2]
    for name in (*ARGUMENTS, *BYS, *PERIODS, *MEASURES):
        assert f"`{name}`" in section, name


@shows(permission="log permission", address="log json")
async def test_pages_open_with_the_permission_shown(
    permission, address, make_datasette, register_models
):
    register_models(ScriptedModel("scripted"), ScriptedModel("broken", [llm.ModelError("no")]))
    datasette = make_datasette({})
    datasette.config.update(yaml.safe_load(permission))
    await datasette.invoke_startup()
    for name in ("scripted", "broken"):
        model = await LLM(datasette).model(name, purpose="pets")
        with contextlib.suppress(llm.ModelError):
            await (await model.prompt("x")).text()
    anonymous = await datasette.client.get(address.strip())
    assert anonymous.status_code == 403
    ana = await datasette.client.get(address.strip(), actor={"id": "ana"})
    [row] = ana.json()["rows"]
    assert (row["model_id"], row["outcome"]) == ("broken", "error")
    for other in ("", ".json", ".csv", f"/{row['id']}", f"/{row['id']}.json"):
        found = await datasette.client.get(f"/-/llm/log{other}", actor={"id": "ana"})
        assert found.status_code == 200


@shows(event="log event")
def test_events_of_the_stream(event):
    (call_id,) = re.findall(r'"id": "(\w+)"', event)

    assert event == f"data: {json.dumps(event_of(Changes({call_id: RUNNING})))}\n"

"""The examples and tables of `console.md`."""

from __future__ import annotations

import json
import re

import llm
import yaml

from datasette_llm import (
    LLM,
)
from datasette_llm.console import probe
from datasette_llm.providers.failures import LABELS
from datasette_llm.testing import ScriptedModel

from .examples import (
    between,
    claude,
    ours,
    shows,
)


@shows(permission="manage permission", posted="assign json", answer="assign json output")
async def test_post_assigns_with_the_permission_shown(
    permission, posted, answer, make_datasette, register_models
):
    register_models(ScriptedModel("claude-haiku-4.5"))
    datasette = make_datasette({"purposes": {"pets": {}}})
    datasette.config.update(yaml.safe_load(permission))
    await datasette.invoke_startup()
    headers = {"content-type": "application/json"}
    for actor, status in ((None, 403), ({"id": "ana"}, 200)):
        response = await datasette.client.post(
            "/-/llm/assign", content=posted, headers=headers, actor=actor
        )
        assert response.status_code == status
    assert response.json() == json.loads(answer)
    assert (await LLM(datasette).model(purpose="pets")).model_id == "claude-haiku-4.5"
    text = (await datasette.client.get("/", actor={"id": "ana"})).text
    assert "LLM overview" in text


@shows(sent="test json", output="test json output", config="datasette.yaml")
async def test_post_tests_a_model_with_answer_shown(
    sent, output, config, make_datasette, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", [llm.ModelError("Too many requests")]))
    datasette = make_datasette(ours(config))
    datasette.config["permissions"] = {"manage-llm": True}
    await datasette.invoke_startup()
    answer = (await datasette.client.post("/-/llm/test", json=json.loads(sent))).json()
    shown = json.loads(output)
    changing = ("latency_ms", "call_id")
    assert all(type(answer[name]) is type(shown[name]) for name in changing)
    assert answer | {name: shown[name] for name in changing} == shown


def test_failure_kinds_table_is_complete():
    section = between("console", "\n## Test\n", "\n## ")
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(LABELS)
    section = " ".join(section.split())
    assert f"At most {probe.MAX_MODELS} are" in section
    assert f"Each model has {probe.LIMIT_S:g} seconds" in section

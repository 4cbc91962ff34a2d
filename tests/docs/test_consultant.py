"""The examples and tables of `consultant.md`."""

from __future__ import annotations

import json
import re
from typing import get_args

import yaml

from datasette_llm import web
from datasette_llm.consultant.advice import answers, claims, dataset, prompt, types
from datasette_llm.consultant.advice.consultation import FINDINGS_TIME
from datasette_llm.consultant.advice.verdicts import Status
from datasette_llm.consultant.evidence import ClaimEvidence
from datasette_llm.consultant.findings.find import KINDS

from ..support.consultant import answer as advice_answer
from .examples import (
    DOCS,
    ZOO_FLAG,
    claude,
    ours,
    shows,
)


@shows(permission="analyze permission", sent="analyze json", config="datasette.yaml")
async def test_post_gets_advice_with_permission_shown(
    permission, sent, config, zoo, make_datasette, register_models, anthropic_key
):
    register_models(claude("claude-haiku-4.5", [json.dumps(advice_answer(ZOO_FLAG))]))
    datasette = make_datasette(ours(config), files=["zoo.db"])
    datasette.config |= yaml.safe_load(permission)
    await datasette.invoke_startup()
    address = "/zoo/animals/-/llm-analyze.json"
    statuses = {}
    for actor in ("ana", "cid"):
        response = await datasette.client.post(address, json=json.loads(sent), actor={"id": actor})
        statuses[actor] = response.status_code
        if actor == "ana":
            found = response.json()["consultation"]
    assert statuses == {"ana": 201, "cid": 403}
    assert (found["outcome"], found["exclude"]) == ("ok", ["keeper"])
    assert [check["status"] for check in found["checks"]] == ["counted"]
    assert "Timothy" not in found["user_prompt"]


def test_a1_documented_kinds_are_those_of_the_code():
    section = DOCS["consultant"].split("## Findings")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == KINDS
    assert FINDINGS_TIME == 1.5
    assert "one and a half times `consultant.time_limit_ms`" in " ".join(section.split())


def test_a3_documented_evidence_is_that_of_the_code():
    section = DOCS["consultant"].split("## How advice is checked")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    union, _ = get_args(ClaimEvidence)
    kinds = [each.model_fields["kind"].default for each in get_args(union)]
    assert named == [*kinds, *get_args(Status)]


def test_bounds_are_those_of_the_code():
    section = " ".join(DOCS["consultant"].split())
    assert f"`limit` is {web.DEFAULT_LIMIT} by default" in section
    assert f"and {web.MAX_LIMIT} at most" in section
    assert f"the first {dataset.MAX_CLAIMS} claims" in section
    assert f"the first {answers.MAX_ANSWER_CHARS:,} characters" in section
    assert claims.CHECKS_TIME == 2
    assert "twice `consultant.time_limit_ms`" in section
    assert f"The {prompt.MAX_FINDINGS} most severe findings" in section
    assert f"every {prompt.BYTES_PER_TOKEN} bytes" in section
    assert f"{types.ANSWER_TOKENS:,} tokens of answer" in section

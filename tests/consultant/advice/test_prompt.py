"""A prompt within its budget."""

from __future__ import annotations

import json

import pytest

from datasette_llm.consultant.advice.prompt import BYTES_PER_TOKEN, user_prompt
from datasette_llm.consultant.advice.types import DATASET_ANALYSIS, input_tokens
from tests.support.consultant import answer, answering

BUDGET = 8_000


def column(name, number=0, **more):
    return {
        "name": name,
        "declared_type": "REAL",
        "null_fraction": 0.0,
        "description": None,
        "primary_key": False,
        "observed_types": {"real": 100},
        "distinct": {"count": 50 + number, "exact": True},
        "min": number + 0.123456789,
        "max": number + 100.0,
        "top_values": [{"value": n + number, "count": 9} for n in range(10)],
        "masks": {"counts": [{"mask": "9" * 40, "count": 1}] * 5},
        "exact": True,
        "rows": 100,
        "grouped": {"rows": 100, "exact": True},
    } | more


def profile(*columns, **more):
    return {"table": "t", "rows": {"count": 100, "exact": True}, "columns": columns} | more


def data(prompt):
    return json.loads(prompt.text.split("<profile>")[1].split("</profile>")[0])


def test_a6_empty_keys_are_dropped():
    made = data(user_prompt(profile(column("a"), checks=[], description=""), None))
    assert made.keys() == {"table", "rows", "columns"}
    (only,) = made["columns"]
    kept = ("name", "declared_type", "observed_types", "distinct", "min", "max", "top_values")
    assert only.keys() == {*kept, "masks"}
    assert (only["distinct"], only["top_values"][0]) == (50, [0, 9])


def test_a6_sampled_figures_say_so():
    sampled = column("a", exact=False, grouped={"rows": 5, "exact": False})
    (only,) = data(user_prompt(profile(sampled), None))["columns"]
    assert (only["exact"], only["rows"], only["grouped"]["rows"]) == (False, 100, 5)


def test_a6_like_columns_are_one_entry():
    named = [column(name) for name in ("a", "s008", "s009", "s010", "s011", "s11", "b")]
    (only,) = data(user_prompt(profile(*named), None))["columns"]
    assert only["names"] == ["a", "s008 … s011", "s11", "b"]


@pytest.mark.parametrize(
    ("count", "prefix"),
    [
        (10, "sensor_"),
        (40, "sensor_"),
        (150, "sensor_"),
        (1_500, "sensor_"),
        (1_500, "\u00e9<" * 9),
    ],
)
def test_a6_prompt_keeps_its_budget(count, prefix):
    """The least telling figures go first, and what was cut is said."""
    columns = [column(f"{prefix}{number * 7919 % 10007}", number) for number in range(count)]
    findings = [{"kind": "outliers", "sentence": "x" * 500, "examples": ["y"]}] * 40
    prompts = DATASET_ANALYSIS.prompts(profile(*columns), "Why?" * 500, findings, BUDGET)
    assert input_tokens(prompts, DATASET_ANALYSIS.schema) <= BUDGET
    assert prompts == DATASET_ANALYSIS.prompts(profile(*columns), "Why?" * 500, findings, BUDGET)
    fitted = user_prompt(profile(*columns), None, (), 15_000)
    made = data(fitted)
    assert made.get("cut", []) == list(fitted.cut)
    assert any("findings of less severity" in sentence for sentence in prompts.cut)
    if count >= 40:
        assert "masks" in made["cut"][0]
        assert "quartiles" in made["cut"][0] or "top_values" in made["columns"][0]
    if count == 1_500:
        assert "columns are not named" in made["cut"][-1]
    else:
        assert sum(len(each.get("names", "1")) for each in made["columns"]) == count


async def test_a6_preview_says_what_was_cut(start_site, register_models):
    register_models(answering(answer()))
    names = ", ".join(f"measured_value_{number * 7919 % 10007} text" for number in range(1_500))
    site = await start_site(schema=f"create table wide ({names}); create table secrets (ssn);")
    shown = await site.preview("wide")
    assert shown["input_tokens"] <= BUDGET
    assert shown["cut"]
    assert (await site.preview("secrets", actor={"id": "eve"}))["cut"] == []


async def test_a6_schema_counts_once(start_site, register_models):
    """Also where it is part of the prompt."""
    schemas = answering(answer(), model_id="with")
    register_models(schemas, answering(answer(), model_id="without", supports_schema=False))
    site = await start_site({"default_model": "with"})
    first = await site.preview()
    second = await site.preview(query="?model_id=without")
    assert first["input_tokens"] == second["input_tokens"]
    assert len(second["user_prompt"]) > len(first["user_prompt"]) + BYTES_PER_TOKEN * 2_000

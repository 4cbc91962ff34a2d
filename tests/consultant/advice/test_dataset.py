"""Advice, checked against a table's columns, and the configuration made of it."""

from __future__ import annotations

import json
import shlex

import pydantic
import pytest
import yaml
from datasette.utils import _table_config_keys

from datasette_llm.consultant.advice import dataset as advice
from datasette_llm.consultant.advice import suggested_config as configuration
from datasette_llm.consultant.advice.dataset import (
    MALFORMED,
    MAX_TEXT_CHARS,
    DatasetAdvice,
    TableFacts,
    review,
    unreadable,
)
from datasette_llm.structured import closed_schema
from tests.support.consultant import CONFIG, answer, flag, rows_where

COLUMNS = ("id", "name", "kind", "weight", "owner")
FACTS = TableFacts(COLUMNS, ("id",))


def reviewed(facts=FACTS, **config):
    whole = answer(suggested_config=CONFIG | config)
    return review(DatasetAdvice.model_validate(whole), facts)


def test_good_advice_is_unchanged():
    result = reviewed()
    assert result.advice == answer()
    assert result.rejected == ()


@pytest.mark.parametrize("name", ["facets", "full_text_columns", "hidden_columns"])
def test_unknown_column_of_list_is_rejected(name):
    result = reviewed(**{name: ["kind", "nmae", "Kind", "kind", ""]})
    assert result.advice["suggested_config"][name] == ["kind"]
    assert result.rejected == (f"{name}: no such column: nmae", f"{name}: no such column: Kind")


@pytest.mark.parametrize("name", ["sort", "sort_desc", "label_column"])
def test_unknown_column_of_setting_is_rejected(name):
    result = reviewed(**{"sort": None, "sort_desc": None, "label_column": None, name: "nmae"})
    assert result.advice["suggested_config"][name] is None
    assert result.rejected == (f"{name}: no such column: nmae",)


def test_unknown_described_column_is_rejected():
    described = [
        {"column": "ghost", "description": "Boo", "unit": None},
        {"column": "name", "description": "First", "unit": None},
        {"column": "name", "description": "Second", "unit": None},
    ]
    result = reviewed(columns=described)
    assert [c["description"] for c in result.advice["suggested_config"]["columns"]] == ["First"]
    assert result.rejected == ("columns: no such column: ghost",)


def test_what_datasette_refuses_is_rejected():
    facts = TableFacts(COLUMNS, ("id",), sortable=frozenset({"name"}))
    result = reviewed(facts, sort="weight", sort_desc=None, hidden_columns=["id", "owner"])
    assert result.advice["suggested_config"]["hidden_columns"] == ["owner"]
    assert result.rejected == (
        "sort: sortable_columns does not have it: weight",
        "hidden_columns: a column of the primary key is always shown: id",
    )


def test_second_sort_order_is_rejected():
    result = reviewed(sort="name", sort_desc="weight")
    assert result.advice["suggested_config"]["sort"] == "name"
    assert result.advice["suggested_config"]["sort_desc"] is None
    assert result.rejected == ("sort_desc: only one of sort and sort_desc can be set: weight",)


def test_view_has_no_label_and_no_search():
    config = reviewed(TableFacts(COLUMNS, is_view=True)).advice["suggested_config"]
    assert config["label_column"] is None
    assert config["full_text_columns"] == []


def test_claim_about_unknown_column_is_rejected():
    whole = answer(flag(rows_where("nmae"), column="ghost"), flag(column=None))
    result = review(DatasetAdvice.model_validate(whole), FACTS)
    assert result.advice["risk_flags"][0]["column"] is None
    assert result.rejected == (
        "risk flag outliers: no such column: ghost",
        "risk flag outliers: no such column: nmae",
    )


@pytest.mark.parametrize(
    ("evidence", "problem"),
    [
        (None, "Input should be a valid dictionary"),
        ({"kind": "sql", "sql": "select 1"}, "Input tag 'sql'"),
        ({"kind": "rows"}, "any_of: Field required"),
        (rows_where("id", "=="), "any_of.0.0.op: Input should be"),
        (rows_where("id") | {"sql": "select 1"}, "sql: Extra inputs"),
        (rows_where("id", "=", {"a": 1}), "any_of.0.0.value"),
    ],
)
def test_a3_unreadable_evidence_loses_only_itself(evidence, problem):
    whole = answer(flag() | {"evidence": evidence}, flag())
    (bad, good) = review(DatasetAdvice.model_validate(whole), FACTS).claims
    assert problem in bad.evidence.problem
    assert good.evidence.kind == "rows"


def test_s0_endless_answer_is_cut():
    ghosts = CONFIG | {"facets": [f"ghost{number}" for number in range(20_000)]}
    whole = answer(*[flag()] * 20_000, suggested_config=ghosts)
    result = review(DatasetAdvice.model_validate(whole), FACTS)
    assert len(result.advice["risk_flags"]) == advice.MAX_CLAIMS == len(result.claims)
    assert len(result.rejected) == advice.MAX_REJECTED
    assert result.rejected[0] == "risk_flags: 19,970 more than the 30 that are kept"


def test_s0_shown_evidence_is_what_is_counted():
    evidence = rows_where("name", "=", "a\tb\u202e")
    result = review(DatasetAdvice.model_validate(answer(flag(evidence))), FACTS)
    assert result.advice["risk_flags"][0]["evidence"] == evidence
    assert result.claims[0].evidence.any_of[0][0].value == "a\tb\u202e"


def test_control_characters_are_removed():
    turned = "safe\u202egnihton\x07 \x9b31m\ud83d done"
    result = review(DatasetAdvice.model_validate(answer(suggested_action=turned)), FACTS)
    assert result.advice["suggested_action"] == "safegnihton\ufffd \ufffd31m\ufffd done"
    endless = review(DatasetAdvice.model_validate(answer(reasoning_summary="x" * 99_999)), FACTS)
    assert len(endless.advice["reasoning_summary"]) == MAX_TEXT_CHARS + 1


def test_column_names_are_not_changed():
    odd = "\u202e a\tb"
    result = reviewed(TableFacts((odd,)), facets=[odd], sort_desc=odd, label_column=odd)
    config = result.advice["suggested_config"]
    assert [config["facets"], config["sort_desc"], config["label_column"]] == [[odd], odd, odd]


def test_unreadable_answer_becomes_flagged_advice():
    advice = unreadable('{"sugg', ["it is cut off"])
    assert advice["reasoning_summary"] == '{"sugg'
    (only,) = advice["risk_flags"]
    assert only["kind"] == MALFORMED
    assert only["claim"] == "The model's answer could not be read: it is cut off"


def test_model_cannot_set_malformed_flag():
    with pytest.raises(pydantic.ValidationError):
        DatasetAdvice.model_validate(answer(flag(kind=MALFORMED)))


def test_schema_is_strict():
    schema = closed_schema(DatasetAdvice)
    objects = [schema, *schema["$defs"].values()]
    assert len(objects) == 12
    assert len(json.dumps(schema, separators=(",", ":"))) < 7_500
    for each in objects:
        assert each["additionalProperties"] is False
        assert sorted(each["required"]) == sorted(each["properties"])


# Configuration to copy

ODD_DATABASE, ODD_TABLE = "my: data", "o'pets \U0001f436\n- x: y"


def test_yaml_round_trip():
    config = CONFIG | {"facets": ["a: b", "- c", "yes", "1", "#d", "'", "\U0001f408"]}
    read = yaml.safe_load(configuration.datasette_yaml(ODD_DATABASE, ODD_TABLE, config))
    assert read["databases"][ODD_DATABASE]["tables"][ODD_TABLE] == {
        "facets": config["facets"],
        "sort_desc": "weight",
        "label_column": "name",
    }
    metadata = yaml.safe_load(configuration.metadata_yaml(ODD_DATABASE, ODD_TABLE, config))
    assert metadata["databases"][ODD_DATABASE]["tables"][ODD_TABLE] == {
        "columns": {"weight": "How heavy it is (kg)"}
    }


def test_suggested_keys_are_those_of_datasette(make_datasette):
    """The keys are those that Datasette itself moves into its configuration."""
    written = configuration.datasette_yaml("d", "t", CONFIG | {"sort": "name"})
    settings = yaml.safe_load(written)["databases"]["d"]["tables"]["t"]
    assert set(settings) == {"facets", "sort", "sort_desc", "label_column"}
    assert set(settings) <= set(_table_config_keys)


def test_empty_suggestion_has_nothing_to_copy():
    nothing = {name: [] if isinstance(value, list) else None for name, value in CONFIG.items()}
    assert configuration.datasette_yaml("d", "t", nothing) == ""
    assert configuration.metadata_yaml("d", "t", nothing) == ""
    assert configuration.search_command("d", "t", nothing) == ""
    assert configuration.hiding_query(nothing) == ""


def test_command_and_query_escape_names():
    config = CONFIG | {
        "full_text_columns": ["--x", "a b; rm -rf"],
        "hidden_columns": ["a&b", "c d"],
    }
    words = shlex.split(configuration.search_command("my data", "o'pets", config))
    assert words[-4:] == ["my data.db", "o'pets", "--x", "a b; rm -rf"]
    assert configuration.hiding_query(config) == "_nocol=a%26b&_nocol=c+d"


def test_advice_is_plain_json():
    assert json.loads(json.dumps(reviewed().advice)) == reviewed().advice


def test_long_text_is_read_up_to_its_limit():
    class Watched(str):
        seen = 0

        def __iter__(self):
            for each in str.__iter__(self):
                Watched.seen += 1
                yield each

    text = advice.plain(Watched("x" * 50_000))
    assert len(text) == advice.MAX_TEXT_CHARS + 1
    assert Watched.seen <= advice.MAX_TEXT_CHARS + 1

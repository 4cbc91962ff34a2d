"""Links of evidence to pages of Datasette show the rows that it counts, or there are none."""

from __future__ import annotations

import json
import sqlite3

import pytest

from datasette_llm.console.advice.evidence_links import sql_of, table_query
from datasette_llm.consultant import evidence as counting

SCHEMA = """
create table t (
    id integer primary key, name text, weight real, anything, "odd ""name__x" text, _hid text,
    mixed real
);
insert into t values (1, 'Cleo', 12.5, 1, 'a*b', 'x', 1), (2, 'cleo', 13, '1', 'aXb', 'y', 2),
    (3, '', -1, 'NA', 'x', 'x', 'NA'), (4, null, null, 2.5, null, null, null),
    (5, '5', 5, x'00', '[', 'x', 3);
"""


def where(*any_of, **more):
    conditions = [
        [dict(zip(("column", "op", "value"), each, strict=False)) for each in all_of]
        for all_of in any_of
    ]
    return {"kind": "rows", "any_of": conditions, "expected": None} | more


SAID = [
    where([("name", "=", "Cleo")]),
    where([("name", "=", "5")]),
    where([("name", "!=", "Cleo")]),
    where([("name", "is null")]),
    where([("name", "is not null")]),
    where([("name", "is empty")]),
    where([("name", "is null")], [("name", "=", "")]),
    where([("name", "in", ["Cleo", "", "no"])]),
    where([("name", "=", "Cleo")], [("name", "=", "5")]),
    where([("name", "contains", "leo")]),
    where([("name", "like", "cl%")]),
    where([("name", "not like", "cl%")]),
    where([("name", ">", "Cleo")]),
    where([("weight", ">", 12.5)]),
    where([("weight", ">=", 12.5), ("name", "=", "Cleo")]),
    where([("weight", "<", 0)]),
    where([("weight", "!=", 5)]),
    where([("weight", "=", 13)]),
    where([("anything", "=", 1)]),
    where([("anything", "=", "NA")]),
    where([('odd "name__x', "contains", "a*b")]),
    where([('odd "name__x', "contains", "[")]),
    where([("_hid", "=", "x")]),
]
UNSAID = [
    where([("anything", ">", 1)]),  # texts and blobs are greater than any number
    where([("mixed", ">", 1)]),
    where([("name", "=", 5)]),  # Datasette would find the text
    where([("name", ">", "5")]),  # and compare with a number
    where([("weight", "=", "5")]),
    where([("name", "mask is", "9")]),
    where([("weight", "<", 0)], [("weight", ">", 12)]),
    where([("name", "=", "Cleo")], [("weight", "=", 5)]),
    where([("ghost", "is null")]),
    where(),
    {"kind": "duplicates", "columns": ["name"], "ignoring_case": False, "expected": 1},
    {"kind": "opinion"},
    None,
]


@pytest.fixture
async def site(start_site):
    return await start_site({}, schema=SCHEMA, databases={})


async def profile_of(site):
    return (await site.preview("t"))["profile"]


def counted(path, evidence):
    connection = sqlite3.connect(path)
    counting.prepare(connection)
    found = counting.count(connection, counting.Rows.model_validate(evidence), "t")
    connection.close()
    return found


async def test_a8_filters_show_what_is_counted(site):
    """Each link to the table's page has as many rows as we count."""
    profile = await profile_of(site)
    for evidence in SAID:
        query = table_query(evidence, profile)
        assert query is not None, evidence
        page = (await site.get(f"/data/t.json?{query}&_extra=count")).json()
        assert page["count"] == counted(site.path, evidence) > 0, (evidence, query)


async def test_a8_no_filter_that_says_something_else(site):
    profile = await profile_of(site)
    for evidence in UNSAID:
        assert table_query(evidence, profile) is None, evidence
    other = where([("name", "=", None)])
    other["any_of"][0][0]["other_column"] = "weight"
    assert table_query(other, profile) is None


async def test_a8_sql_page_counts_the_same(site):
    for evidence in (*SAID, UNSAID[0], UNSAID[6]):
        sql = sql_of(evidence, "t")
        answer = await site.get("/data/-/query.json", params={"sql": sql})
        (row,) = answer.json()["rows"]
        assert list(row.values()) == [counted(site.path, evidence)], sql
    assert sql_of(UNSAID[5], "t") is None  # Datasette lacks the function
    assert sql_of({"kind": "sql"}, "t") is sql_of(None, "t") is None


async def rows_of(site, evidence, status=200, table="t", **more):
    text = evidence if isinstance(evidence, str) else json.dumps(evidence)
    address = f"/data/{table}/-/llm-analyze/rows"
    page = await site.get(address, status, params={"evidence": text}, **more)
    answer = await site.get(f"{address}.json", status, params={"evidence": text}, **more)
    return page.text, answer.json()


async def test_a8_first_rows_link_to_their_pages(site):
    text, found = await rows_of(site, where([("weight", ">", 12)]))
    assert [(row["key"], row["values"]) for row in found["rows"]] == [("1", [12.5]), ("2", [13.0])]
    assert found["more"] is False
    for row in found["rows"]:
        assert f'href="{row["path"]}"' in text
        await site.get(row["path"])
    pattern = {"kind": "pattern", "column": "name", "of": "shape", "usual": ["Aa", "a"]}
    assert [row["key"] for row in (await rows_of(site, pattern))[1]["rows"]] == ["5"]


async def test_a8_first_rows_are_bounded_and_checked(start_site):
    schema = """
    create table pets (a text, b text, primary key (a, b)) without rowid;
    create table secrets (ssn text); insert into secrets values ('111-22');
    create view seen as select * from pets;
    create view names as select b as name, a from pets;
    """ + "".join(f"insert into pets values ('x/{at}', 'y,{at}');" for at in range(30))
    config = {"consultant": {"exclude": ["pets.b"]}}
    site = await start_site(config, schema=schema)
    text, found = await rows_of(site, where([("a", "is not null")]), table="pets")
    assert (len(found["rows"]), found["more"], found["keys"]) == (20, True, ["a", "b"])
    assert "the first 20" in text
    await site.get(found["rows"][3]["path"])
    orphans = {"kind": "orphans", "column": "a", "other_table": "secrets", "other_column": "ssn"}
    for evidence, table, reason in (
        (where([("b", "=", "y,1")]), "pets", "consultant.exclude"),
        (where([("ghost", "=", 1)]), "pets", "no column"),
        (orphans, "pets", "you may view"),
        (orphans | {"other_table": "SECRETS"}, "pets", "you may view"),
        (orphans | {"other_table": "sqlite_master"}, "pets", "you may view"),
        (orphans | {"other_table": "names", "other_column": "name"}, "pets", "left out"),
        (orphans | {"other_table": "seen", "other_column": "rowid"}, "pets", "no column"),
        (where([("a", "=", "x")]), "seen", "view has no rows"),
        ({"kind": "opinion"}, "pets", "not about single rows"),
        (where(), "pets", "no condition"),
        ("{", "pets", "evidence"),
        ("", "pets", "evidence"),
    ):
        text, answer = await rows_of(site, evidence, 400, table)
        assert reason in answer["error"], (evidence, answer)
        assert "111-22" not in text
    assert (await rows_of(site, orphans, table="pets", actor={"id": "eve"}))[1]["ok"]
    for actor in (None, {"id": "ben"}):
        await site.get("/data/pets/-/llm-analyze/rows?evidence={}", 403, actor=actor)
    site.datasette.config["plugins"]["datasette-llm"] = {"consultant": {"values": "none"}}
    assert "none" in (await rows_of(site, orphans, 400, "pets"))[1]["error"]

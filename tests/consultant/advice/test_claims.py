"""Claims are confirmed only where they are true."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from datasette_llm.consultant.advice import claims as checking
from datasette_llm.consultant.advice.claims import Scope, check_claims, count_all
from datasette_llm.consultant.advice.dataset import Claim
from datasette_llm.consultant.advice.objections import Counted
from datasette_llm.consultant.advice.progress import ClaimChecked
from datasette_llm.consultant.advice.verdicts import verdict
from datasette_llm.consultant.evidence import ClaimEvidence
from datasette_llm.consultant.findings.time_limit import TimeLimit
from tests.support.consultant import ANA
from tests.support.consultant import SCHEMA as PETS

READ = TypeAdapter(ClaimEvidence).validate_python

# 40 trips; 1 age is missing, 5 notes are NA, 2 emails repeat one, 1 port is unknown.
SCHEMA = """
create table ports (code text primary key);
insert into ports values ('S'), ('C');
create table secrets (password text);
insert into secrets values ('TOPSECRET');
create table trips (id integer primary key, ship text, fare real, age integer, port text,
    email text, note text, ssn text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 40)
insert into trips select i,
    case when i <= 20 then 'Mauretania' when i <= 30 then 'Titanic' else 'Olympic' end,
    case when i <= 20 then 100.5 when i <= 30 then 50 when i < 40 then 10 else -1 end,
    case when i < 40 then 19 + i end, case when i = 7 then 'X' else 'S' end,
    case when i <= 3 then 'a1@x' else 'a' || i || '@x' end,
    case when i % 8 = 0 then 'NA' else 'ok' end, '111-22-' || i from n;
"""


def rows(*conditions, expected=None, **more):
    any_of = [[dict(zip(("column", "op", "value"), each, strict=False))] for each in conditions]
    return {"kind": "rows", "any_of": any_of, "expected": expected} | more


def figure(function, column, expected=None, **more):
    return {
        "kind": "aggregate",
        "function": function,
        "column": column,
        "expected": expected,
    } | more


def most(expected=None, **more):
    whole = {"kind": "top", "group_by": "ship", "function": "mean", "column": "fare"}
    return whole | {"expected": expected} | more


def orphans(table, column, expected=1):
    other = {"other_table": table, "other_column": column}
    return {"kind": "orphans", "column": "port", "expected": expected} | other


def repeats(*columns, expected=None):
    return {"kind": "duplicates", "columns": columns, "expected": expected}


NO_AGE = ("age", "is null")
AGED = ("age", "is not null")

TRUE = [
    ("1 of 40 ages is missing, 2.5 %", rows(NO_AGE, expected=1)),
    ("Some fares are negative", rows(("fare", "<", 0), expected=1)),
    ("The note is NA in 5 rows", rows(("note", "=", "NA"), expected=5)),
    ("Two rows repeat the email of another", repeats("email", expected=2)),
    ("Every id is unique", repeats("id", expected=0)),
    ("No id is repeated", repeats("id", expected=0)),
    ("10 of 40 ships are neither Olympic nor Mauretania", {"kind": "rows", "expected": 10,
     "any_of": [[{"column": "ship", "op": "!=", "value": "Olympic"},
                 {"column": "ship", "op": "!=", "value": "Mauretania"}]]}),
    ("One port leads nowhere", orphans("ports", "code")),
    ("The average fare is 65", figure("mean", "fare", 65)),
    ("The median age is 39", figure("median", "age", 39)),
    ("About 2.5 % of the ages are missing", figure("share", None, 2.5, any_of=[[
        {"column": "age", "op": "is null"}]])),
    ("The Mauretania pays most, a fare of 100.5 on average", most("Mauretania")),
    ("All 40 fares are numbers", rows(("fare", "type is", "real"), expected=40)),
    ("Fares go up to 100.5", figure("max", "fare", 100.5)),
    ("A quarter of the ships are Titanic", rows(("ship", "=", "Titanic"), expected=10)),
    ("`fare` has no missing values", rows(("fare", "is null"), expected=0)),
    ("Every row has an email", rows(("email", "is null"), expected=0)),
    ("There are 3 different ships", figure("distinct", "ship", 3)),
    ("30 fares are above 10", rows(("fare", ">", 10), expected=30)),
    ("The Mauretania is the most common ship, with 20 rows", {
        "kind": "top", "group_by": "ship", "function": "count", "column": None,
        "expected": "Mauretania"}),
]  # fmt: skip

FALSE = [
    # A number in the sentence that was not counted
    ("99 % of the ages are missing", rows(NO_AGE, expected=1), "counted"),
    ("99 % of the ages are missing", rows(NO_AGE), "counted"),
    ("Ninety-nine percent of the ages are missing", rows(NO_AGE, expected=1), "counted"),
    ("The age is missing in 40 rows", rows(NO_AGE, expected=1), "counted"),
    ("40 ages are missing, of those that are not 40", rows(NO_AGE, expected=1), "counted"),
    ("Half of the notes are NA", rows(("note", "in", ["NA"]), expected=5), "counted"),
    ("30 notes are NA", rows(("note", "=", "NA"), ("id", "=", 30), expected=6), "counted"),
    # Words for a number
    ("All ages are missing", rows(NO_AGE, expected=1), "counted"),
    ("All ages are missing", figure("share", None, 2.5, any_of=[[
        {"column": "age", "op": "is null"}]]), "counted"),
    ("No email is repeated", repeats("email", expected=2), "counted"),
    ("Most ships are Olympic", rows(("ship", "=", "Olympic"), expected=10), "counted"),
    # Another figure than was said
    ("39 of 40 ages are missing", rows(NO_AGE, expected=39), "contradicted"),
    ("The average fare is 99", figure("mean", "fare", 99), "contradicted"),
    ("The Titanic pays most", most("Titanic"), "contradicted"),
    ("Ages are up to 99", figure("max", "age", 99), "contradicted"),
    # Evidence of something else
    ("39 ages are missing", rows(AGED, expected=39), "counted"),
    ("97.5 % of the ages are missing", figure("share", "age", 97.5, any_of=[[
        {"column": "id", "op": ">", "value": 0}]]), "counted"),
    ("40 emails are duplicates", rows(("email", "is not null"), expected=40), "counted"),
    ("1 row has an age", rows(NO_AGE, expected=1), "counted"),
    ("10 ships are Titanic", rows(("ship", "=", "Olympic"), expected=10), "counted"),
    ("The Titanic pays most", most("Mauretania"), "counted"),
    ("The Mauretania pays least", most("Mauretania"), "counted"),
    ("The average fare is 100.5", figure("max", "fare", 100.5), "counted"),
    ("All 40 fares are texts", rows(("fare", "type is", "real"), expected=40), "counted"),
    ("39 fares are above 0", rows(("fare", "<", 1e9), expected=40), "counted"),
    # A denial
    ("The emails have no duplicates", repeats("email", expected=2), "counted"),
    ("The ages are not missing", rows(NO_AGE, expected=1), "counted"),
    ("Fares aren't below 0", rows(("fare", "<", 0), expected=1), "counted"),
    ("The average fare is not 65", figure("mean", "fare", 65), "counted"),
    # What every row meets, or none
    ("All fares are negative", rows(("fare", "<", 1e12), expected=40), "counted"),
    ("Some fares are absurd", rows(("fare", ">", 1e9), expected=0), "counted"),
    ("Fares are doubtful", rows(("fare", ">", -1e9), expected=40), "counted"),
    ("All ages are null", rows(NO_AGE, AGED, expected=40), "not_checkable"),
    ("The trips are not insured", rows(expected=0), "not_checkable"),
    ("The trips are not insured", {"kind": "rows", "any_of": [[]], "expected": 40},
     "not_checkable"),
    ("All ships are the same", {"kind": "rows", "expected": 40, "any_of": [[
        {"column": "ship", "op": "=", "other_column": "ship"}]]}, "not_checkable"),
    # What may not be read, or is not there
    ("A password is a port", orphans("secrets", "password", 40), "not_checkable"),
    ("A password is a port", orphans("SECRETS", "password", 40), "not_checkable"),
    ("A port is no ghost", orphans("ports", "ghost", 40), "not_checkable"),
    ("All are insured", rows(("insured", "=", "insured"), expected=40), "not_checkable"),
    ("1 of 40 ages is missing", rows(("AGE", "is null"), expected=1), "not_checkable"),
    ("All have an ssn", rows(("ssn", "is not null"), expected=40), "not_checkable"),
    # What would take long
    ("A note is long", rows(("note", "contains", "x" * 7_000_000), expected=0), "not_checkable"),
    ("All are ok", rows(*[("note", "=", "ok")] * 5_000, expected=35), "not_checkable"),
    ("99 % of the ages are wrong", {"kind": "opinion"}, "opinion"),
]  # fmt: skip


AGES, NAS = rows(NO_AGE, expected=1), rows(("note", "=", "NA"), expected=5)
UNDER, OVER = rows(("fare", "<", 0), expected=1), rows(("fare", ">", 0), expected=39)
HIGHEST, SHIPS = figure("max", "fare", 100.5), figure("distinct", "ship", 3)
RANK = {"kind": "top", "group_by": "ship", "function": "count", "column": None}
RANK |= {"expected": "Mauretania"}
ABSENT, REPEATS = rows(("note", "is null"), expected=0), repeats("ship", expected=37)
LOST = orphans("ports", "code")
ALIKE = {"kind": "pattern", "column": "email", "of": "shape", "usual": ["a9@a"], "expected": 0}

# The figure is as expected, and the sentence says something else.
MISREAD = [
    *[(each, AGES) for each in (
        "1 fare is missing", "1 price is missing", "1 age is 1", "1 M ages are missing",
        "1M ages are missing", "1.000 ages are missing", "1 \u2030 of the ages is missing",
        "The 1st age is missing", "Fewer than 1 age is missing", "More than 1 age is missing",
        "1 of 1 ages is missing", "Not one of the ages is missing", "1 age is not unknown",
        "An age of 1 dollar is missing", "The ages of 1 woman are missing", "Ages are missing",
        "The age column is empty", "Age has nothing but nulls", "Age is a null column",
        "A couple of ages are missing", "Ages are missing throughout", "Any age is missing",
        "Fast alle Alter fehlen (missing)", "Casi todos los valores de age faltan (null)",
        "The bulk of ages has missing values", "Age is hardly ever missing: 1 row",
        "Age is missing in 1 row, twice as many as present", "\u2468\u2468 ages are missing",
    )],
    *[(each, NAS) for each in (
        "5 ages are NA", "5 notes are not NA", "5 notes are NA since 2020", "All 5 notes are NA",
        "Notes are NA",
    )],
    ("40 notes are NA", rows(("note", "=", "NA"), ("note", "=", "ok"), expected=40)),
    ("35 notes are missing (ok)", rows(("note", "=", "ok"), expected=35)),
    *[(each, UNDER) for each in (
        "Fares are negative", "Many fares are negative", "Fares are generally negative",
        "Only negative fares are there", "1 fare is zero", "1 fare is below 1",
        "1 fare is negative, the rest below 10", "1 negative fare is a refund",
    )],
    *[(each, OVER) for each in (
        "39 fares are above 10", "39 fares are 0", "39 fares are at least 0",
        "39 fares are more than double",
    )],
    *[(each, HIGHEST) for each in (
        "All fares are 100.5", "Fares exceed 100.5", "Fares are at least 100.5",
        "The first fare is 100.5", "The typical fare is 100.5", "The highest fare is 100.5 cents",
        "Fares are up to 100.5 %", "The highest average fare is 100.5",
        "The fare is 100.5 in most rows", "Fares rise by 100.5 percent",
    )],
    *[(each, SHIPS) for each in (
        "There are 3 rows", "3 ships sank", "3 ships are duplicates", "3 ships are unique",
    )],
    *[(each, RANK) for each in (
        "The Mauretania pays most", "The Mauretania has the highest fare",
        "The Mauretania comes last", "The Mauretania is second after the Olympic",
        "All but the Mauretania have most rows", "The Mauretania has most accidents",
        "Most rows are Mauretania", "The Mauretania has 20 rows",
    )],
    ("The Titanic has most rows", RANK | {"expected": "Titanic", "any_of": [[
        {"column": "ship", "op": "=", "value": "Titanic"}]]}),
    ("The Titanic has most rows", RANK | {"expected": "Titanic", "any_of": [[
        {"column": "id", "op": ">", "value": 20}]]}),
    ("The Mauretania has the highest average fare", most("Mauretania", function="sum")),
    ("The Mauretania has the highest fare", most("Mauretania")),
    *[(each, ABSENT) for each in (
        "All notes are missing", "Every note is null", "No row has a note", "0 notes are there",
        "0 notes are not missing", "No note is not missing", "All ages are missing",
    )],
    *[(each, REPEATS) for each in (
        "Ships are unique", "The ship is a key", "Rows are duplicated", "37 ships are different",
        "37 rows repeat",
    )],
    *[(each, repeats("id", expected=0)) for each in (
        "All ids are duplicates", "Every id repeats another", "All ids are the same",
    )],
    *[(each, LOST) for each in (
        "Ports lead nowhere", "1 port is in ports", "1 port matches", "Every port leads nowhere",
        "One port of the country leads nowhere",
    )],
    *[(each, ALIKE) for each in (
        "No email is well-formed", "All emails are odd", "No email has this pattern",
    )],
    ("All emails are malformed", ALIKE | {"usual": ["x"], "expected": 40}),
    ("All emails are invalid numbers", rows(
        ("email", "does not parse as", "json"), expected=40)),
    ("All notes are dates", rows(("note", "does not parse as", "json"), expected=40)),
    ("0 ships are duplicates", repeats("ship", expected=0) | {"ignoring_case": True}),
    ("All fares are negative", figure("share", None, 0, any_of=[[
        {"column": "fare", "op": "<", "value": -5}]])),
    ("1 age is above the fare", {"kind": "rows", "expected": 10, "any_of": [[
        {"column": "fare", "op": ">", "other_column": "age"}]]}),
]  # fmt: skip


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        yield connection


def scope(columns=("id", "ship", "fare", "age", "port", "email", "note"), **more):
    others = frozenset({"ports"})
    given = {"left_out": frozenset({"ssn"}), "others": others} | more
    return Scope("data", "trips", frozenset(columns), **given)


def claim(sentence, evidence, kind="other", column=None):
    return Claim(kind, column, sentence, READ(evidence))


def checked(connection, *claims, seconds=60, clock=lambda: 0.0, **more):
    limit = TimeLimit(connection, seconds, clock)
    return count_all(connection, [claim(*each) for each in claims], scope(**more), limit)


def test_a4_true_claims_are_confirmed(connection):
    for said, check in zip(TRUE, checked(connection, *TRUE), strict=True):
        assert (check["status"], check["reason"]) == ("confirmed", None), (said, check)
        assert check["unheld_numbers"] == []


def test_a4_no_false_claim_is_confirmed(connection):
    assert len(FALSE) >= 18
    found = checked(connection, *[each[:2] for each in FALSE])
    for (*said, status), check in zip(FALSE, found, strict=True):
        assert check["status"] == status, (said, check)
        assert check["reason"] or status in ("contradicted",), (said, check)


def test_a4_misread_sentence_is_not_confirmed(connection):
    """A sentence with a word that is not about what was counted says more than that."""
    for said, check in zip(MISREAD, checked(connection, *MISREAD), strict=True):
        assert check["status"] != "confirmed", (said, check)


SENTENCES = (
    "{n} ages are missing",
    "Age is missing in {n} rows",
    "In {n} of 40 rows the age is missing",
    "{n} % of the ages are missing",
    "There are {n} rows without an age, about 1 in 40",
    "At most one row of {n} lacks its age",
    "More than {n} rows lack their age",
)


@given(st.sampled_from(SENTENCES), st.integers(2, 10**6), st.sampled_from((None, 1, 2, 39)))
def test_a4_wrong_number_is_never_confirmed(sentence, number, expected):
    evidence = READ(rows(NO_AGE, expected=expected))
    said = claim(sentence.format(n=f"{number:,}"), evidence)
    check = verdict(said, evidence, Counted(1, 40), ("id", "age", "fare"))
    assert check["status"] != "confirmed" or (number == 40 and "of" in sentence)


PIECES = ("1e99", "1e999", "-", "99", " %", ".5", ",", "1,000", "half", "one", " ", "`", "'", "age")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_a4_any_sentence_gets_a_verdict(sentence):
    said = claim(sentence, rows(NO_AGE, expected=1))
    check = verdict(said, said.evidence, Counted(1, 40), ("id", "age", "fare"))
    json.dumps(check, allow_nan=False, ensure_ascii=False).encode()


def test_a4_infinity_is_no_json(connection):
    connection.execute("update trips set fare = 9e999 where id = 1")
    connection.commit()
    claims = [("Fares are high", each) for each in (figure("max", "fare", 5), most(limit=1))]
    for check in checked(connection, *claims):
        json.dumps(check, allow_nan=False)
        assert "inf" in check["sentence"]
        assert check["status"] != "confirmed"


def test_a4_verdicts_say_what_was_counted(connection):
    missing, said, ranked, plain = checked(
        connection,
        ("99 % of the ages are missing", rows(NO_AGE)),
        ("8 notes are NA", rows(("note", "=", "NA"), expected=8)),
        ("Which ship pays most?", most(limit=2)),
        ("The oldest is 58", figure("max", "age")),
    )
    assert missing["sentence"] == "1 of 40 rows, 2.5 % (rows where `age` is null)"
    assert missing["reason"] == "The sentence says 99 %, which is not what was counted"
    assert missing["unheld_numbers"] == ["99 %"]
    assert [missing[name] for name in ("expected", "counted", "of", "share")] == [
        None,
        1,
        40,
        0.025,
    ]
    assert missing["sql"] == 'select count(*) from main."trips" as t where (t."age" is null)'
    assert said["sentence"] == ("Said 8; counted 5 of 40 rows, 12.5 % (rows where `note` = 'NA')")
    assert said["expected"] == 8
    assert ranked["result"] == [["Mauretania", 100.5], ["Titanic", 50.0]]
    assert ranked["sentence"] == (
        "`ship` with the largest mean of `fare`: Mauretania (100.5), Titanic (50)"
    )
    assert (plain["sentence"], plain["of"]) == ("58, the max of `age`", None)


def test_a4_evidence_about_another_column(connection):
    sentence, evidence = "1 of 40 ages is missing", rows(NO_AGE, expected=1)
    right, wrong = checked(
        connection,
        (sentence, evidence, "missing_values", "age"),
        (sentence, evidence, "missing_values", "fare"),
    )
    assert right["status"] == "confirmed"
    assert (wrong["status"], wrong["reason"]) == (
        "counted",
        "The evidence is not about `fare`",
    )


def test_a4_sampled_figures_are_named(connection):
    (check,) = checked(
        connection, ("3 ages are missing", rows(NO_AGE, expected=3)), sampled=frozenset({"age"})
    )
    assert check["status"] == "contradicted"
    assert check["reason"] == "The figures that the model saw are of a sample"


def test_a4_values_are_kept_back(connection):
    asked = [most("Mauretania"), figure("max", "fare", 100.5), figure("distinct", "ship", 3)]
    claims = [("It is so", each) for each in asked]
    top, highest, distinct = checked(connection, *claims, shows_values=False)
    assert {(each["status"], each["reason"]) for each in (top, highest)} == {
        ("not_checkable", checking.HIDDEN)
    }
    assert distinct["counted"] == 3


def test_a7_claims_share_a_time_limit(connection):
    """One that never ends leaves time to the others."""
    connection.execute(
        "create view endless as with recursive n(i) as (select 1 union all select i + 1 from n) "
        "select i from n"
    )
    ticks = iter(range(10**9))
    limit = TimeLimit(connection, 1_000, lambda: float(next(ticks)))
    endless = claim("It ends", rows(("i", "<", 0), expected=0))
    heard = []
    found = count_all(
        connection,
        [endless, claim("It is so", {"kind": "opinion"}), endless],
        Scope("data", "endless", frozenset({"i"})),
        limit,
        lambda index, check: heard.append((index, check["status"])),
    )
    assert [each["status"] for each in found] == ["not_checkable", "opinion", "not_checkable"]
    assert {found[0]["reason"], found[2]["reason"]} == {checking.LATE}
    assert heard == [(0, "not_checkable"), (1, "opinion"), (2, "not_checkable")]
    assert next(ticks) < 1_100


@pytest.mark.parametrize(("actor", "status"), [("ana", "not_checkable"), ("eve", "counted")])
async def test_a3_other_tables_need_permission(start_site, actor, status):
    site = await start_site({"default_model": "scripted"})
    evidence = {"kind": "orphans", "column": "owner", "other_table": "secrets"}
    asked = claim("Owners have secrets", evidence | {"other_column": "owner"})
    columns = [{"name": "owner", "exact": True, "grouped": None}]
    profile = {"database": "data", "table": "pets", "columns": columns, "left_out": []}
    events = []
    (check,) = await check_claims(
        site.datasette,
        [asked],
        profile | {"values": "top"},
        {"id": actor},
        on_progress=events.append,
    )
    assert check["status"] == status
    assert events == [ClaimChecked(0, check)]


async def test_a3_excluded_columns_of_other_tables(start_site):
    """Also of a view that may have them."""
    ours = {"consultant": {"exclude": ["secrets.ssn"]}}
    view = "create view numbers as select ssn as number from secrets;"
    site = await start_site(ours, schema=PETS + view, databases={})
    columns = [{"name": "owner", "exact": True, "grouped": None}]
    profile = {"database": "data", "table": "pets", "columns": columns, "left_out": []}
    asked = [
        claim(
            "Some owners are not there",
            {"kind": "orphans", "column": "owner", "other_table": table, "other_column": name},
        )
        for table, name in (("secrets", "ssn"), ("secrets", "owner"), ("numbers", "number"))
    ]
    found = await check_claims(site.datasette, asked, profile | {"values": "top"}, ANA)
    assert [each["reason"] for each in found] == [
        "`secrets`.`ssn` is left out",
        None,
        "`numbers`.`number` is left out",
    ]

"""Each fault is found by its kind, and tables without faults are left alone."""

from __future__ import annotations

import datetime
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from datasette_llm.consultant import evidence as counting
from datasette_llm.consultant.findings import find
from datasette_llm.consultant.findings.column_values import read_values
from datasette_llm.consultant.findings.find import KINDS, Findings, search
from datasette_llm.consultant.findings.references import OtherTable
from datasette_llm.consultant.findings.time_limit import TimeLimit

from . import tables

EVIDENCE: TypeAdapter[counting.Evidence] = TypeAdapter(counting.Evidence)


def profile_of(connection: sqlite3.Connection, name: str, values: str = "sample") -> dict[str, Any]:
    """As much of a profile as findings need."""
    keys = {
        row[3]: {"table": row[2], "column": row[4]}
        for row in connection.execute(f"pragma foreign_key_list({name})")
    }
    columns = [
        {
            "name": row[1],
            "declared_type": row[2],
            "primary_key": bool(row[5]),
            "foreign_key": keys.get(row[1]),
        }
        for row in connection.execute(f"pragma table_xinfo({name})")
    ]
    count = connection.execute(f"select count(*) from {name}").fetchone()[0]
    rows = {"count": count, "exact": True}
    return {"table": name, "columns": columns, "values": values, "rows": rows}


def found_in(
    connection: sqlite3.Connection, name: str, values: str = "sample", **more: Any
) -> Findings:
    budget = TimeLimit(connection, 30, time.perf_counter)
    others = [OtherTable("customers", "id")]
    today = datetime.date(2024, 6, 1)
    profile = profile_of(connection, name, values) | more
    return search(connection, profile, others, budget, today)


def kinds(findings: Findings) -> set[tuple[str, str]]:
    return {(each["kind"], ", ".join(each["columns"])) for each in findings.found}


FAULTY: list[tuple[Callable[[], sqlite3.Connection], dict[tuple[str, str], int | None]]] = [
    (tables.fighters, {("numbers_as_text", "height"): 25, ("numbers_as_text", "power"): 24}),
    (tables.games, {("mixed_date_formats", "released"): 16}),
    (
        tables.orders,
        {
            ("numbers_as_text", "price"): 40,
            ("dates_as_text", "day"): 40,
            ("orphans", "customer_id"): 1,
        },
    ),
    (tables.visits, {("likely_foreign_key", "customer_id"): 0}),
    (
        tables.weather,
        {
            ("disguised_missing", "temperature"): 6,
            ("disguised_missing", "rain"): 2,
            ("gaps", "day"): None,
        },
    ),
    (
        tables.flights,
        {
            ("impossible_values", "departs"): 2,
            ("impossible_values", "sched_dep_time"): 1,
            ("rare_patterns", "flight"): 1,
        },
    ),
    (
        tables.penguins,
        {
            ("disguised_missing", "body_mass_g"): 3,
            ("disguised_missing", "sex"): 3,
            ("case_variants", "species"): 2,
        },
    ),
    (
        tables.addresses,
        {
            ("lost_leading_zeros", "zip"): 10,
            ("edge_spaces", "city"): 10,
            ("mojibake", "city"): 1,
        },
    ),
    (
        tables.events,
        {
            ("invalid_json", "payload"): 1,
            ("constant", "source"): 30,
            ("mostly_missing", "note"): 30,
        },
    ),
    (
        tables.members,
        {
            ("candidate_key", "member_id"): 60,
            ("duplicate_keys", "email"): 1,
            ("identical_columns", "age, years"): 60,
            ("impossible_values", "age"): 1,
            ("impossible_values", "birth_date"): 7,
        },
    ),
    (tables.sales, {("duplicate_rows", ""): 3, ("outliers", "amount"): 1}),
    (tables.readings, {("mixed_types", "value"): 2}),
]


@pytest.mark.parametrize(
    ("make", "expected"), FAULTY, ids=lambda each: getattr(each, "__name__", "")
)
def test_a1_faults_are_found_by_kind(make, expected):
    with closing(make()) as connection:
        findings = found_in(connection, make.__name__)
    rows = {(each["kind"], ", ".join(each["columns"])): each["rows"] for each in findings.found}
    assert rows == expected


@pytest.mark.parametrize(
    "make",
    [tables.iris, tables.gapminder, tables.staff, tables.countries],
    ids=lambda f: f.__name__,
)
def test_a1_clean_tables_are_left_alone(make):
    with closing(make()) as connection:
        findings = found_in(connection, make.__name__)
    assert findings.found == ()
    assert findings.note is None


@pytest.mark.parametrize("make", [make for make, _ in FAULTY], ids=lambda make: make.__name__)
def test_a1_evidence_counts_what_was_said(make):
    """The SQL from the evidence agrees with what Python has counted."""
    with closing(make()) as connection:
        for each in found_in(connection, make.__name__).found:
            evidence = EVIDENCE.validate_python(each["evidence"])
            found = counting.count(connection, evidence, make.__name__)
            assert found == evidence.expected, each
            if each["rows"] and evidence.kind not in ("aggregate", "orphans"):
                assert found == each["rows"], each


def test_a1_every_family_has_a_fixture():
    shown = {kind for _, expected in FAULTY for kind, _ in expected}
    assert shown == set(KINDS)


CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["NA", "?", "", " ", "Paris", "paris ", "PARIS", "12", "1,234.50", "$5"]),
    st.sampled_from(["5'9\"", ">9000", "2024-01-31", "2024-02-30", "31/12/2024", "24:00", "07:30"]),
    st.sampled_from(["{}", "{", "02134", "2134", "\x00", "a\x00", "Z\u00c3\u00bcrich", "{0} %s"]),
    st.sampled_from(["'; drop table t; --", "\ufffd", "\u0130", "x" * 201, "[" + "1," * 400]),
    st.sampled_from([-999, 9999, 230, 91.5, 2400, float("inf"), -float("inf")]),
)
NAMES = st.sampled_from(
    ["id", "zip", "age", "latitude", "dep_time", "birth_date", "t", 'a"b', "{x}", "`", "%s", "o'p"]
)


@settings(max_examples=150, deadline=None)
@given(
    name=NAMES,
    declared=st.sampled_from(["", "text", "integer", "real", "blob"]),
    cells=st.lists(CELLS, min_size=1, max_size=8).flatmap(
        lambda few: st.lists(st.sampled_from(few), max_size=40)
    ),
    grouped=st.booleans(),
)
def test_a1_any_column_agrees_with_its_evidence(name, declared, cells, grouped):
    """Whatever is in a column, SQLite counts as many rows as Python."""
    with closing(sqlite3.connect(":memory:")) as connection:
        quoted = '"' + name.replace('"', '""') + '"'
        connection.execute(f"create table t ({quoted} {declared}, other)")
        connection.executemany("insert into t values (?, 1)", [(cell,) for cell in cells])
        before = connection.total_changes
        columns = profile_of(connection, "t")["columns"]
        if grouped:  # as where the profile has seen few values in many rows
            columns = [each | {"rows": 1_000, "distinct": {"count": 1}} for each in columns]
        findings = found_in(connection, "t", columns=columns)
        json.dumps(findings.found, allow_nan=False)
        assert findings.note is None
        for each in findings.found:
            evidence = EVIDENCE.validate_python(each["evidence"])
            found = counting.count(connection, evidence, "t")
            assert found == evidence.expected, each
            if evidence.kind in ("rows", "pattern", "duplicates") and each["kind"] != "gaps":
                assert found == each["rows"] > 0, each
        assert connection.total_changes == before


def test_a1_large_tables_are_counted_whole(monkeypatch):
    """Some rows show what there is, and all rows are counted."""
    monkeypatch.setattr(find, "MAX_ROWS", 640)
    rows = [(at, "NA" if at % 5 == 0 else at * 7 % 1000) for at in range(5_000)]
    with closing(tables.table("big", "id integer primary key, size", rows)) as connection:
        findings = found_in(connection, "big")
    (missing,) = findings.found
    assert (missing["kind"], missing["rows"], missing["exact"]) == ("disguised_missing", 1000, True)
    assert missing["share"] == 0.2
    assert findings.note == "of some columns not all rows were looked at, but at most 640"


def test_a1_sparse_rowids_are_read_too(monkeypatch):
    monkeypatch.setattr(find, "MAX_ROWS", 640)
    rows = [(at * 2**45 % (2**62 - 1), "NA" if at % 5 == 0 else at) for at in range(1_000)]
    with closing(tables.table("big", "id integer primary key, size", rows)) as connection:
        (missing,) = found_in(connection, "big").found
    assert (missing["kind"], missing["rows"]) == ("disguised_missing", 200)


def test_a1_no_time_is_said():
    """And a column that cannot be read leaves the others as they are."""
    with closing(tables.weather()) as connection:
        profile = profile_of(connection, "weather")
        late = search(connection, profile, [], TimeLimit(connection, 0, time.perf_counter))
        assert (late.found, late.rows) == ((), None)
        assert "not looked at" in late.note
        connection.execute("create view v as select day, abs(-9223372036854775808) x from weather")
        findings = found_in(connection, "v")
    assert findings.unread == ("x",)
    assert ("gaps", "day") in kinds(findings)


def test_a1_text_that_is_not_well_formed_is_read():
    with closing(tables.weather()) as connection:
        connection.execute("update weather set temperature = cast(x'ff4e' as text) where rain > 8")
        findings = found_in(connection, "weather")
    assert ("mixed_types", "temperature") in kinds(findings)
    assert ("disguised_missing", "temperature") in kinds(findings)


def test_a1_long_text_with_nul_is_long():
    """SQLite's functions of texts end at NUL, so that it could be taken for a short one."""
    texts = ["ab", "ab\0" + "x" * 900, "{\0" + "y" * 900, "ab\0c", "z" * 201]
    with closing(tables.table("t", "c", [(text,) for text in texts])) as connection:
        budget = TimeLimit(connection, 30, time.perf_counter)
        with budget.until(1):
            values = read_values(
                connection, "t", {"name": "c"}, "", exact=True, unique=False, budget=budget
            )
    assert values.counts == {"ab": 1, "ab\0c": 1}
    assert (values.long_texts, values.long_json) == (3, 1)


def test_a1_a_broken_table_beside_it_does_not_matter():
    with closing(tables.orders()) as connection:
        connection.executescript("""
            pragma writable_schema = on;
            insert into sqlite_master values
                ('table', 'broken', 'broken', 0, 'create virtual table broken using gone(a)');
            pragma writable_schema = reset;
        """)
        others = find.other_tables("data", (), connection)
    assert others == [OtherTable("customers", "id"), OtherTable("orders", "id")]


def test_a1_so_many_findings_are_kept(monkeypatch):
    monkeypatch.setattr(find, "MAX_FINDINGS", 2)
    with closing(tables.members()) as connection:
        findings = found_in(connection, "members")
    assert len(findings.found) == 2
    assert findings.note == "3 findings more, of less severity, are left out"

"""Each fault is found by its kind, and tables without faults are left alone."""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from pydantic import TypeAdapter

from datasette_llm.consultant import evidence as counting
from datasette_llm.consultant.findings.find import KINDS, Findings, search
from datasette_llm.consultant.findings.references import OtherTable
from datasette_llm.consultant.profile.time_budget import TimeBudget

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
    budget = TimeBudget(connection, 30, time.perf_counter)
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

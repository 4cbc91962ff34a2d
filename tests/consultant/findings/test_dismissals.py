"""A dismissal is of one finding, and stays when the data changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from datasette.app import Datasette
from sqlite_utils import Database

from datasette_llm.consultant.findings.dismissals import (
    Dismissed,
    dismiss,
    m001_dismissals,
    restore,
    with_dismissals,
)
from datasette_llm.consultant.findings.find import Findings

from . import tables
from .test_find import found_in

KIND, COLUMNS = "impossible_values", '["born"]'
NONE, FUTURE = (
    "born does not parse as | born mask is",
    "born < | born > | born mask is | born parses as",
)
NO_DAYS = Dismissed(KIND, COLUMNS, NONE)


def found(days: dict[int, str]) -> Findings:
    rows = [
        (at, days.get(at, f"19{at % 60 + 30}-0{at % 9 + 1}-{at % 19 + 10}")) for at in range(60)
    ]
    with closing(tables.table("t", "id integer primary key, born text", rows)) as connection:
        findings = found_in(connection, "t")
    return replace(findings, found=tuple(each for each in findings.found if each["kind"] == KIND))


FAULTY = found({3: "1961-02-30", 9: "2971-01-10"})


@pytest.fixture
async def site(make_datasette: Callable[..., Datasette]) -> Datasette:
    site = make_datasette()
    await site.invoke_startup()
    return site


async def dismissed(site: Datasette, findings: Findings) -> dict[str, bool]:
    told = await with_dismissals(site, "data", "t", findings)
    return {each["which"]: each["dismissed"] is not None for each in told.found}


async def test_a1_dismissal_is_of_one_finding(site: Datasette) -> None:
    await dismiss(site, "data", "t", NO_DAYS, None, "ghosts")

    assert await dismissed(site, FAULTY) == {NONE: True, FUTURE: False}
    assert await dismissed(site, found({3: "1961-02-31", 7: "1962-04-31", 9: "2930-01-01"})) == {
        NONE: True,
        FUTURE: False,
    }

    await restore(site, "data", "t", NO_DAYS)
    assert await dismissed(site, FAULTY) == {NONE: False, FUTURE: False}


async def test_a1_dismissals_of_before_are_of_all(site: Datasette) -> None:
    """They had no word which; each of them may be restored."""

    def stored(connection: sqlite3.Connection) -> None:
        m001_dismissals(Database(connection))
        connection.execute(
            "insert into llm_dismissed_findings values "
            "('data', 't', 'impossible_values', '[\"born\"]', '2026-01-01', 'ana', 'why')"
        )
        Database(connection)["_sqlite_migrations"].insert(
            {
                "migration_set": "datasette_llm_findings",
                "name": "m001_dismissals",
                "applied_at": "2026-01-01",
            },
            alter=True,
        )

    await site.get_internal_database().execute_write_fn(stored)
    assert await dismissed(site, FAULTY) == {NONE: True, FUTURE: True}

    await dismiss(site, "data", "t", Dismissed("gaps", "[]"), None, "migrates")
    assert await dismissed(site, FAULTY) == {NONE: True, FUTURE: True}

    await restore(site, "data", "t", NO_DAYS._replace(which=FUTURE))
    assert await dismissed(site, FAULTY) == {NONE: False, FUTURE: False}

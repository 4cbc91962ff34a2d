"""The queries of claims: run read-only, within limits, on tables that the actor may view."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest
from datasette import hookimpl

from datasette_llm.consultant.advice import claims as checks
from datasette_llm.consultant.advice import sql_sandbox as queries
from datasette_llm.consultant.advice.claims import check, needed_tables
from datasette_llm.consultant.advice.dataset import Claim
from datasette_llm.consultant.advice.sql_sandbox import Read
from datasette_llm.consultant.table_access import Access
from tests.support.consultant import ANA, BEN, SCHEMA
from tests.support.openai_server import BOUND_S

EVE = {"id": "eve"}


@pytest.fixture
async def checked(start_site):
    """A function that checks queries, for ana by default."""
    site = await start_site()

    async def run(*queries, actor=ANA, unrestricted=False):
        access = Access(site.datasette, actor, unrestricted)
        claims = [each if isinstance(each, Claim) else Claim(each) for each in queries]
        return await check(site.datasette, "data", claims, access)

    run.site = site
    return run


async def test_claim_with_rows_is_supported(checked):
    (result,) = await checked("select id, weight from pets where weight < 0")
    assert result.status == "supported"
    assert (result.columns, result.rows, result.more) == (["id", "weight"], [[4, -1.0]], False)
    assert result.tables == ["pets"]


async def test_claim_without_rows_is_unsupported(checked):
    results = await checked(
        "select * from pets where weight > 1000",
        "select count(*) from pets where weight > 1000",
        "select max(weight), min(name) from pets where weight > 1000",
    )
    results = [(result.status, result.reason) for result in results]
    assert results == [("unsupported", "its query returned nothing")] * 3


REFUSED = [
    ("", "without a query"),
    ("not sql", "must be a SELECT"),
    ("select * from", "failed"),
    ("select * from ghosts", "failed: no such table"),
    ("select ghost from pets", "failed: no such column"),
    ("select 1; select 2", "one statement"),
    ("select 1; delete from pets", "one statement"),
    ("delete from pets", "must be a SELECT"),
    ("with x as (select 1) delete from pets", "failed"),
    ("with x as (select 1) insert into pets (name) select 'x'", "failed"),
    ("pragma table_info(pets)", "must be a SELECT"),
    ("select * from pragma_table_info('pets')", "failed"),
    ("select * from pragma_database_list", "failed"),
    ("attach database ':memory:' as x", "must be a SELECT"),
    ("explain select 1", "failed"),
    ("vacuum into '/tmp/stolen.db'", "must be a SELECT"),
    ("select load_extension('/tmp/x')", "failed"),
    ("select hex(randomblob(100000000))", "failed"),
    ("select zeroblob(1000000000)", "failed"),
    ("select printf('%1000000000d', 1)", "nothing"),
    ("select length(printf('%020000000d', 1))", "nothing"),
    ("select * from sqlite_master", "reads sqlite_master"),
    ("select name from sqlite_schema", "reads sqlite_master"),
    ("select * from pets where name = :name", "failed"),
    ("select '\0'", "failed"),
    ("select '\ud800'", "failed"),
    ("select " + ",".join(["1"] * 31), "more than 30 columns"),
    ("select 1 " + " " * 5000, "longer than 5,000 characters"),
]


async def test_forbidden_query_is_unsupported(checked):
    before = checked.site.path.read_bytes()
    for sql, reason in REFUSED:
        (result,) = await checked(sql)
        assert result.status == "unsupported", sql
        assert reason in result.reason, sql
        assert list(result.rows) == []
    assert checked.site.path.read_bytes() == before


HIDDEN = [
    "select ssn from secrets",
    "select count(*) from secrets",
    "select 1 from pets where exists (select 1 from secrets)",
    "select name from pets where owner in (select owner from secrets)",
    "with light as (select ssn from secrets) select ssn from light",
    "with half_open as (select ssn from secrets) select ssn from half_open",
    "with half_open as (select ssn from secrets limit 1) select count(*), ssn from half_open",
    "select * from (select ssn from secrets) as half_open",
    "select name from pets union select ssn from secrets",
    "SELECT ssn FROM main.SECRETS",
]


async def test_query_reads_viewable_tables_only(checked):
    for sql in HIDDEN:
        (hidden, shown) = (await checked(sql))[0], (await checked(sql, actor=EVE))[0]
        assert hidden.status == "unsupported", sql
        assert "reads secrets, which it may not" in hidden.reason, sql
        assert list(hidden.rows) == []
        assert shown.status == "supported", sql  # so it was the permission
        assert "secrets" in shown.tables


async def test_viewable_view_of_hidden_table_is_read(checked):
    results = await checked(
        "select owner from half_open", "select count(*) from light where weight < 5"
    )
    assert [result.status for result in results] == ["supported"] * 2
    assert results[0].tables == ["half_open"]


@pytest.mark.parametrize(
    ("reads", "has_with", "needed"),
    [
        ({Read("t", "a", None)}, False, {"t"}),
        ({Read("v", "a", None), Read("t", "a", "v")}, False, {"v"}),
        ({Read("v", "a", None), Read("t", "a", "v")}, True, {"v", "t"}),
        ({Read("t", "a", "alias")}, False, {"t"}),
        ({Read("t", "a", "")}, False, {"t"}),
        ({Read("json_each", "value", None)}, False, set()),
        ({Read("sqlite_master", "sql", None)}, False, {"sqlite_master"}),
        ({Read("sqlite_master", "", None)}, True, {"sqlite_master"}),
        ({Read("pragma_table_list", "", None)}, True, {"pragma_table_list"}),
        ({Read("dbstat", "", None)}, True, {"dbstat"}),
        ({Read("w", "", None)}, True, set()),
        ({Read("w", "", None)}, False, {"w"}),
        ({Read("w", "a", None)}, True, {"w"}),
    ],
)
def test_needed_tables(reads, has_with, needed):
    schema = {"t": "table", "v": "view", "dbstat": "module", "json_each": "module"}
    assert needed_tables(reads, schema, has_with=has_with) == needed


def test_table_with_name_of_a_function():
    reads = {Read("json_each", "value", None)}
    assert needed_tables(reads, {"json_each": "table"}, has_with=False) == {"json_each"}


async def test_without_execute_sql_no_query_is_run(start_site):
    site = await start_site(databases={"data": {"allow_sql": {"id": "ana"}}})
    claims = [Claim("select 1"), Claim(""), Claim("select 1", "no such column")]
    ben = await check(site.datasette, "data", claims, Access(site.datasette, BEN))
    assert [each.status for each in ben] == ["unchecked", "unsupported", "unsupported"]
    assert "execute-sql" in ben[0].reason
    ana = await check(site.datasette, "data", claims, Access(site.datasette, ANA))
    assert ana[0].status == "supported"


async def test_unrestricted_access_reads_everything(checked):
    (result,) = await checked("select ssn from secrets", actor=None, unrestricted=True)
    assert result.status == "supported"


async def test_endless_query_is_stopped(start_site):
    site = await start_site(settings={"sql_time_limit_ms": 50})
    endless = "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r"
    access = Access(site.datasette, ANA)
    first, second = await check(
        site.datasette, "data", [Claim(endless), Claim("select name from pets")], access
    )
    assert (first.status, first.reason) == ("unsupported", "its query took longer than 50 ms")
    assert second.status == "supported"


async def test_slow_preparation_is_abandoned(start_site, monkeypatch):
    monkeypatch.setattr(queries, "PREPARE_S", 0.05)
    site = await start_site(settings={"sql_time_limit_ms": 50})
    doubled = ", ".join(f"a{n + 1} as (select 1 as x from a{n} p, a{n} q)" for n in range(16))
    slow = f"with a0 as (select 1 as x), {doubled} select * from a16"
    (result,) = await check(site.datasette, "data", [Claim(slow)], Access(site.datasette, ANA))
    assert result.status == "unsupported"


async def test_event_loop_runs_during_queries(checked):
    endless = "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r"
    task = asyncio.create_task(checked(endless))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10


async def test_results_are_bounded_in_rows_and_cells(checked):
    connection = sqlite3.connect(checked.site.path)
    connection.execute("create table big (text, blob, huge, bad, number)")
    row = ("x" * 5_000, b"\x00" * 9, "y" * 10_000_000, "ok\x1b[31m", 9e999)
    connection.executemany("insert into big values (?, ?, ?, ?, ?)", [row] * 12)
    connection.execute("update big set bad = cast(x'ff41' as text)")
    connection.commit()
    connection.close()
    (result,) = await checked("select * from big")
    assert result.status == "supported"
    assert len(result.rows) == queries.MAX_ROWS
    assert result.more
    assert result.rows[0] == [
        "x" * 200 + "…",
        "<9 bytes>",
        "y" * 200 + "…",
        "\ufffdA",
        "inf",
    ]


async def test_checked_claims_are_limited(checked):
    queries = ["select 1 as x from pets"] * (checks.MAX_CLAIMS + 1)
    results = await checked(*queries)
    assert [result.status for result in results[-2:]] == ["supported", "unchecked"]


async def test_plugin_functions_are_unknown_to_queries(checked, plugin):
    called = []

    class Plugin:
        @hookimpl
        def prepare_connection(self, conn):
            conn.create_function("post_to_web", 1, called.append)

    plugin(Plugin())
    (result,) = await checked("select post_to_web(name) from pets")
    assert "no such function" in result.reason
    assert called == []


async def test_json_and_full_text_queries_work(checked):
    connection = sqlite3.connect(checked.site.path)
    connection.executescript(
        "create virtual table found using fts5(text); insert into found values ('a pelican');"
    )
    connection.close()
    results = await checked(
        "select value from json_each('[1, 2]')",
        "select text from found where found match 'pelican'",
    )
    assert [result.reason for result in results] == [None, None]


async def test_check_closes_its_connections(checked):
    db = checked.site.datasette.get_database("data")
    await checked("select 1 from pets")
    before = len(db._all_connections)  # noqa: SLF001  # Datasette's
    queries = ("select 1 from pets", "select * from ghosts", "select ssn from secrets")
    await checked(*queries * 4)
    # Each of Datasette's reading threads has one of its own from when it is first used.
    threads = checked.site.datasette.setting("num_sql_threads")
    assert len(db._all_connections) < before + threads < before + len(queries) * 4  # noqa: SLF001  # Datasette's


async def test_an_immutable_database_is_checked_too(start_site):
    site = await start_site(immutable=True)
    access = Access(site.datasette, ANA)
    (result,) = await check(site.datasette, "data", [Claim("select name from pets")], access)
    assert result.status == "supported"


def test_test_schema_has_a_hidden_table():
    assert "secrets" in SCHEMA


async def test_failed_query_names_the_tables_it_read(checked):
    """Its error message may quote a value of them."""
    (result,) = await checked("select json_extract('{}', ssn) from secrets", actor=EVE)
    assert (result.status, result.tables) == ("unsupported", ["secrets"])


async def test_long_like_pattern_is_refused(checked):
    (result,) = await checked("select 1 where 'a' like printf('%201c', 'a')")
    assert "pattern too complex" in result.reason


async def test_hanging_queries_are_limited(checked, monkeypatch):
    monkeypatch.setattr(queries, "PREPARE_S", -0.999)
    monkeypatch.setattr(queries, "MAX_HANGING", 1)
    go_on = threading.Event()
    monkeypatch.setattr(queries, "harden", lambda connection: go_on.wait())
    try:
        first, second = await checked("select 1", "select 1")
        (hanging,) = queries.hanging
    finally:
        go_on.set()
    assert (first.status, second.status) == ("unsupported", "unchecked")
    assert "still running" in second.reason
    monkeypatch.undo()
    async with asyncio.timeout(BOUND_S):
        while not hanging.ended:  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0)
    assert [each.status for each in await checked("select 1")] == ["supported"]
    assert not queries.hanging


async def test_cte_can_be_counted(checked):
    (result,) = await checked(
        "with twice as (select name from pets group by name having count(*) > 1) "
        "select count(*) from twice"
    )
    assert (result.status, result.tables) == ("supported", ["pets"])

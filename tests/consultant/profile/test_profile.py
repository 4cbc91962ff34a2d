"""The profile of a table: its statistics, of which rows, and what it never contains."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any
from unittest.mock import patch

import pytest
from datasette.app import Datasette
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from datasette_llm.config.parse import parse_settings
from datasette_llm.config.settings import ConsultantSettings
from datasette_llm.consultant.profile import measure as measuring
from datasette_llm.consultant.profile.measure import Measurement, measure
from datasette_llm.consultant.profile.profile import as_json, make_profile
from datasette_llm.consultant.profile.table import ColumnMetadata
from datasette_llm.errors import ProfileError, TableNotFoundError
from tests.support.openai_server import BOUND_S

Profile = Callable[..., Awaitable[dict[str, Any]]]


def settings_with(**settings: Any) -> ConsultantSettings:
    return parse_settings({"consultant": settings}).consultant


class Clock:
    """A clock that advances by a step at every reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.times = itertools.count(0, step) if step else itertools.repeat(0)

    def __call__(self) -> float:
        return next(self.times)


class LeapingClock:
    """A clock that stands still until it jumps to the end of the time limit."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = off")
        yield connection


@pytest.fixture
async def site(
    make_datasette: Callable[..., Datasette], path: Path, connection: sqlite3.Connection
) -> Datasette:
    site = make_datasette(files=[str(path)])
    await site.invoke_startup()
    return site


@pytest.fixture
def profile(site: Datasette) -> Profile:
    """A function that profiles a table without a time limit."""

    async def of(table: str = "t", exclude: Any = (), clock: Any = None, **settings: Any) -> Any:
        made = await make_profile(
            site,
            "data",
            table,
            exclude=exclude,
            settings=settings_with(**settings),
            clock=clock or Clock(),
        )
        json.dumps(made, allow_nan=False)
        return made

    return of


def columns_of(profile: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {column["name"]: column for column in profile["columns"]}


def measured_of(
    connection: sqlite3.Connection, clock: Any = None, exclude: Any = (), **settings: Any
) -> Measurement:
    return measure(
        [connection],
        database="data",
        name="t",
        exclude=exclude,
        settings=settings_with(**settings),
        clock=clock or Clock(),
    )


def rows_of(connection: sqlite3.Connection, count: int, start: int = 1) -> None:
    connection.execute("create table if not exists t (id integer primary key, name, size real)")
    numbers = range(start, start + count)
    rows = [(number, f"name {number % 7}", number / 2) for number in numbers]
    connection.execute("begin")
    connection.executemany("insert into t values (?, ?, ?)", rows)
    connection.execute("commit")


async def test_stats_of_a_small_table_match_plain_sql(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    rows_of(connection, 100)
    connection.execute("insert into t values (1000, null, null), (1001, 'name 1', -0.5)")

    made = await profile()

    assert made["rows"] == {"count": 102, "exact": True}
    assert (made["sample"], made["left_out"], made["kind"]) == (None, [], "table")
    columns = columns_of(made)
    assert list(columns) == ["id", "name", "size"]
    for name, column in columns.items():
        sql = f"""select count({name}), count(distinct {name}), min({name}), max({name}),
            1.0 - 1.0 * count({name}) / count(*) from t"""
        filled, distinct, low, high, empty = connection.execute(sql).fetchone()
        assert (column["min"], column["max"]) == (low, high)
        assert column["distinct"] == {"count": distinct, "exact": True}
        assert column["null_fraction"] == pytest.approx(empty)
        assert sum(column["observed_types"].values()) - filled == column["observed_types"].get(
            "null", 0
        )
        assert (column["exact"], column["rows"]) == (True, 102)
    averages = connection.execute("select avg(id), avg(size), avg(length(name)) from t").fetchone()
    means = (columns["id"]["mean"], columns["size"]["mean"], columns["name"]["length"]["mean"])
    assert means == pytest.approx(averages)
    sql = "select name, count(*) from t where name not null group by 1 order by 2 desc, 1"
    top = [(each["value"], each["count"]) for each in columns["name"]["top_values"]]
    assert top == connection.execute(sql).fetchall()
    assert columns["name"]["mean"] is None
    assert columns["size"]["length"] is None


INTEGERS = st.integers(-(2**63), 2**63 - 1)
CELLS = (
    st.none()
    | st.sampled_from([0, 1, 1.0, -1, "", "a", "A", b"", b"a", "1", "a\0b", "\0", "A1-é", " 7.5 "])
    | INTEGERS
    | st.floats(allow_nan=False)
    | st.floats(-1e6, 1e6).map(str)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=90)
    | st.binary(max_size=5)
)
NUMERIC = re.compile(r"[ \t\n\v\f\r]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t\n\v\f\r]*", re.ASCII)


def naive(cells: list[Any]) -> dict[str, Any]:
    """The statistics of a column, computed in Python."""
    kinds = {None: "null", int: "integer", float: "real", str: "text", bytes: "blob"}
    types = Counter(kinds[None if cell is None else type(cell)] for cell in cells)
    numbers = [cell for cell in cells if isinstance(cell, int | float)]
    texts = [cell for cell in cells if isinstance(cell, str)]
    # Others Python's quantiles() cannot interpolate.
    finite = all(abs(cell) < 1e300 for cell in numbers)
    blobs = [len(cell) for cell in cells if isinstance(cell, bytes)]
    counts = Counter(cell for cell in numbers + texts)
    ordered = [*sorted(numbers), *sorted(texts, key=str.encode)]
    often = [(count, value) for value, count in counts.items() if count > 1]
    return {
        "rows": len(cells),
        "observed_types": dict(types),
        "null_fraction": pytest.approx(types["null"] / len(cells)) if cells else None,
        "empty_texts": texts.count(""),
        "distinct": {"count": len({cell for cell in cells if cell is not None}), "exact": True},
        "min": cut(ordered[0]) if ordered else None,
        "max": cut(ordered[-1]) if ordered else None,
        "length": lengths_of([len(text) for text in texts]),
        "blob_size": lengths_of(blobs),
        "numeric_texts": numeric_of([float(text) for text in texts if NUMERIC.fullmatch(text)]),
        "quartiles": quartiles_of(sorted(numbers)) if finite else None,
        "often": sorted((count for count, _ in often), reverse=True)[:10],
        "of": {cut(value): count for count, value in often},
    }


def lengths_of(lengths: list[int]) -> dict[str, Any] | None:
    if not lengths:
        return None
    mean = pytest.approx(sum(lengths) / len(lengths))
    return {"min": min(lengths), "max": max(lengths), "mean": mean}


def numeric_of(numbers: list[float]) -> dict[str, Any] | None:
    if not numbers:
        return None
    low, high = (cut(end) for end in (min(numbers), max(numbers)))
    return {"count": len(numbers), "min": near(low), "max": near(high)}


def quartiles_of(numbers: list[float]) -> list[Any] | None:
    if not numbers:
        return None
    found = quantiles(numbers, method="inclusive") if len(numbers) > 1 else numbers * 3
    error = max(map(abs, numbers)) * 1e-12
    return [pytest.approx(each, rel=1e-9, abs=error) for each in found]


def near(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-9)


def cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > 80:
        return value[:80] + "…"
    return "-Infinity" if value == -math.inf else "Infinity" if value == math.inf else value


def profiled_of(connection: sqlite3.Connection, clock: Any = None, **settings: Any) -> Any:
    measured = measured_of(connection, clock, **settings)
    return as_json("data", measured, ColumnMetadata(None, {}, {}, {}), ())


@hypothesis_settings(max_examples=150)
@given(
    st.lists(CELLS, max_size=30),
    st.sampled_from(["", "collate nocase", "blob", "text", "real", "integer"]),
    st.booleans(),
)
def test_a5_stats_match_a_naive_profile(cells: list[Any], declared: str, wide: bool) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.text_factory = lambda value: str(value, "utf-8", "replace")
        connection.execute(f"create table t (c {declared})")
        # Each row is a chunk of its own, or all are one.
        rows = [(number * 1_000 if wide else number, cell) for number, cell in enumerate(cells)]
        connection.executemany("insert into t (rowid, c) values (?, ?)", rows)
        stored = [row[0] for row in connection.execute("select c from t")]
        with patch.object(measuring, "LOOK_ROWS", 1):  # so that others do not fit what it saw
            made = profiled_of(connection)

    expected, column = naive(stored), made["columns"][0]
    often, of = expected.pop("often"), expected.pop("of")
    if expected["quartiles"] is None and column["quartiles"] is not None:
        del expected["quartiles"]
    assert {name: column[name] for name in expected} == expected
    assert (column["exact"], made["rows"]) == (True, {"count": len(cells), "exact": True})
    top = [(each["value"], each["count"]) for each in column["top_values"]]
    assert [count for _, count in top] == often
    assert all(of[value] == count for value, count in top)
    numbers = [float(cell) for cell in stored if isinstance(cell, int | float)]
    if numbers and all(abs(number) < 1e100 for number in numbers):
        error = max(map(abs, numbers)) * 1e-7 + 1e-150
        assert column["mean"] == pytest.approx(fmean(numbers), abs=error)
        assert column["deviation"] == pytest.approx(pstdev(numbers), abs=error)


@hypothesis_settings(max_examples=40)
@given(st.lists(st.integers(-50, 50) | st.none(), max_size=40, unique=True))
def test_a5_unique_column_is_not_grouped(cells: list[int | None]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("create table t (id integer primary key, c unique)")
        connection.executemany("insert into t (c) values (?)", [(cell,) for cell in cells])
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        columns = columns_of(profiled_of(connection))

    for name, values in (("id", list(range(1, len(cells) + 1))), ("c", cells)):
        expected = naive(list(values))
        assert columns[name]["quartiles"] == expected["quartiles"]
        assert columns[name]["distinct"] == expected["distinct"]
    grouped = [sql for sql in statements if "group by" in sql and "json_each" not in sql]
    assert grouped == []


def stopped_after(connection: sqlite3.Connection, chunks: int) -> LeapingClock:
    """A clock whose time is over when so many chunks have been read."""
    clock, left = LeapingClock(), itertools.count(chunks, -1)

    def see(sql: str) -> None:
        if "count(1)" in sql and " between " in sql and next(left) < 0:
            clock.now = 1e9

    connection.set_trace_callback(see)
    return clock


def test_column_without_time_is_sampled(connection: sqlite3.Connection) -> None:
    rows_of(connection, 20_000)
    made = profiled_of(connection, stopped_after(connection, chunks=32))

    seen = made["sample"]["rows"]
    assert 0 < seen < 5_000
    assert made["sample"]["of"] == made["rows"]["count"] == pytest.approx(20_000, rel=0.01)
    columns = columns_of(made)
    assert {(column["exact"], column["rows"]) for column in columns.values()} == {(False, seen)}
    for column in columns.values():
        assert column["grouped"] == {"rows": 5_000, "exact": False}
    assert columns["name"]["distinct"] == {
        "count": 7,
        "exact": False,
        "at_least": 7,
        "at_most": 7,
        "estimator": "GEE (guaranteed-error estimator)",
    }
    size = columns["size"]["distinct"]
    assert size["at_least"] <= size["count"] <= 20_000 <= size["at_most"] * 1.01
    assert columns["id"]["mean"] == pytest.approx(10_000, rel=0.15)
    assert columns["id"]["quartiles"] == pytest.approx([5_000, 10_000, 15_000], rel=0.05)


@pytest.mark.parametrize("different", [1, 3, 500, 10_000, 20_000])
def test_a5_distinct_is_in_its_bracket(connection: sqlite3.Connection, different: int) -> None:
    rows_of(connection, 0)
    rows = [(f"name {number * 7_919 % different}",) for number in range(20_000)]
    connection.execute("begin")
    connection.executemany("insert into t (name) values (?)", rows)
    connection.execute("commit")

    distinct = columns_of(profiled_of(connection, stopped_after(connection, chunks=32)))["name"][
        "distinct"
    ]

    assert distinct["exact"] is False
    assert distinct["at_least"] <= different <= distinct["at_most"] * 1.01
    assert distinct["at_least"] <= distinct["count"] <= distinct["at_most"]


def test_whole_rows_need_no_time_that_is_left(connection: sqlite3.Connection) -> None:
    rows_of(connection, 20_000)

    made = profiled_of(connection, stopped_after(connection, chunks=1), values="sample")

    ids = [row["id"] for row in made["sample_rows"]]
    assert ids == pytest.approx([0, 4_000, 8_000, 12_000, 16_000], abs=200)


def test_cheap_columns_come_first(connection: sqlite3.Connection) -> None:
    rows_of(connection, 100)
    grouped: list[str] = []

    def see(sql: str) -> None:
        if "group by" in sql and "json_each" not in sql:
            grouped.append(sql.split("t.")[1].split(",")[0])

    connection.set_trace_callback(see)
    measured_of(connection)

    assert grouped == ['"name"', '"size"']


async def test_no_time_gives_columns_without_stats(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    rows_of(connection, 10)

    made = await profile(clock=Clock(step=10.0))

    assert made["rows"] == {"count": None, "exact": False}
    assert made["sample"] == {"rows": 0, "of": None}
    assert {(column["rows"], column["exact"]) for column in made["columns"]} == {(0, False)}
    assert {column["null_fraction"] for column in made["columns"]} == {None}
    assert [column["declared_type"] for column in made["columns"]] == ["INTEGER", "", "REAL"]


def test_count_is_estimated_without_gaps(connection: sqlite3.Connection) -> None:
    rows_of(connection, 20_000)
    connection.execute("delete from t where id between 5000 and 15000 or id % 4 = 0")

    made = profiled_of(connection, stopped_after(connection, chunks=32))

    count = connection.execute("select count(*) from t").fetchone()[0]
    assert made["rows"]["exact"] is False
    assert made["rows"]["count"] == pytest.approx(count, rel=0.05)


def test_endless_view_stops_in_time(connection: sqlite3.Connection) -> None:
    connection.execute(
        "create view t as with recursive n(i) as (select 1 union all select i + 1 from n) "
        "select i, i % 3 as third from n"
    )
    clock = LeapingClock()

    def see(sql: str) -> None:
        if "count(1)" in sql and "limit" not in sql:  # when it begins to read all
            clock.now = 1e9

    connection.set_trace_callback(see)
    made = profiled_of(connection, clock)

    assert (made["kind"], made["rows"]) == ("view", {"count": None, "exact": False})
    assert made["sample"]["rows"] == 5_000
    third = columns_of(made)["third"]
    assert (third["distinct"]["at_least"], third["grouped"]["rows"]) == (3, 5_000)


async def test_view_without_first_row_stops_in_time(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute(
        "create view t as with recursive n(i) as (select 1 union all select i + 1 from n) "
        "select i from n where i < 0"
    )

    made = await profile(clock=Clock(step=0.001))

    assert made["sample"] == {"rows": 0, "of": None}
    assert made["columns"][0]["rows"] == 0
    assert made["columns"][0]["error"] is None


async def test_connection_is_usable_after_a_stop(
    site: Datasette, connection: sqlite3.Connection, profile: Profile
) -> None:
    rows_of(connection, 5_000)

    await profile(clock=Clock(step=10.0))

    rows = await site.get_database("data").execute("select sum(id) from t, (values (1), (2))")
    assert rows.single_value() == 5_000 * 5_001


async def test_values_none_has_no_values(connection: sqlite3.Connection, profile: Profile) -> None:
    connection.execute("create table t (secret text, pay integer, b blob)")
    rows = [("hunter2", 424242, b"swordfish")] * 3
    connection.executemany("insert into t values (?, ?, ?)", rows)

    made = await profile(values="none")

    text = json.dumps(made)
    assert [word for word in ("hunter2", "424242", "swordfish") if word in text] == []
    for column in made["columns"]:
        assert (column["min"], column["max"], column["mean"]) == (None, None, None)
        assert column["top_values"] == []
    assert columns_of(made)["secret"]["length"] == {"min": 7, "max": 7, "mean": 7.0}
    assert columns_of(made)["pay"]["distinct"] == {"count": 1, "exact": True}


async def test_values_sample_has_a_few_whole_rows(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (id integer primary key, b, long)")
    rows = [(number, b"\x00\xff", "x" * 300) for number in range(10)]
    connection.executemany("insert into t values (?, ?, ?)", rows)

    made = await profile(values="sample", exclude=["t.B"])

    assert [row["id"] for row in made["sample_rows"]] == [0, 2, 4, 6, 8]
    assert made["sample_rows"][0] == {"id": 0, "long": "x" * 80 + "…"}
    assert "sample_rows" not in await profile(values="top")
    blobs = await profile(values="sample")
    assert blobs["sample_rows"][0]["b"] == {"blob_size": 2}


@pytest.mark.parametrize("name", ["secret", "SECRET", "t.secret", "Data.T.Secret"])
@pytest.mark.parametrize("where", ["configuration", "argument"])
async def test_excluded_column_is_named_and_not_read(
    site: Datasette, connection: sqlite3.Connection, profile: Profile, name: str, where: str
) -> None:
    connection.execute("create table t (id integer primary key, secret)")
    connection.execute("insert into t values (1, 'hunter2')")
    given = {"exclude": [name]} if where == "configuration" else {}
    made = await make_profile(
        site,
        "data",
        "t",
        exclude=() if given else [name],
        settings=settings_with(values="sample", **given),
    )

    assert made["left_out"] == ["secret"]
    assert [column["name"] for column in made["columns"]] == ["id"]
    assert "hunter2" not in json.dumps(made)


def test_excluded_column_is_in_no_query(connection: sqlite3.Connection) -> None:
    rows_of(connection, 6_000)
    read: set[str] = set()

    def see(action: int, table: Any, column: Any, *_: Any) -> int:
        if action == sqlite3.SQLITE_READ and table == "t":
            read.add(column)
        return sqlite3.SQLITE_OK

    connection.set_authorizer(see)
    measured_of(connection, exclude=["name"], values="sample")

    # The empty name is that of the row itself, which is counted.
    assert read - {""} == {"id", "size"}


async def test_exclude_of_other_tables_is_ignored(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (a, b)")

    made = await profile(exclude=["u.a", "other.t.b", "c"])

    assert made["left_out"] == []


HIDDEN = """
    create table people (id integer primary key, name text, ssn text);
    insert into people values (1, 'ana', '111-22'), (2, 'ben', '111-22');
    create table keyed (ssn text, name text, primary key (name, ssn)) without rowid;
    insert into keyed select ssn, name from people;
    create table made (ssn text, name text, part as (substr(ssn, 2)), copy as (ssn) stored);
    insert into made (ssn, name) select ssn, name from people;
    create table pets (name); insert into pets values ('111-22'), ('111-22');
    create index by_ssn on people (ssn);
    create view renamed as select p.id, p.name, p.ssn as number from people as p join pets;
    create view again as select number as other from [renamed];
    create view of_names as select name, length(name) as n from people;
    create view of_keyed as select name, ssn as code from keyed;
    create view of_made as select name, part as p from made;
    create view of_later as select name, 1 as one from people where id > 1;
    create view of_pets as select name from pets;
    create view found_by as select name from people where ssn = '111-22';
    create view joined as select a.name from people a full join people b using (ssn);
    create view both as select name from people union select ssn from people;
    create view of_index as select name, c1 from people_fts_content, pets;
    create virtual table people_fts using fts5(name, ssn);
    insert into people_fts (rowid, name, ssn) select id, name, ssn from people;
    create virtual table linked using fts5(name, number, content='renamed', content_rowid=id);
    create virtual table "found" using fts4(ssn, note);
    insert into found values ('111-22', 'a'), ('111-22', 'b');
    create virtual table words using fts5vocab(people_fts, row);
    create view of_words as select term from words;
    create virtual table of_pet_names using fts5(name, content=pets);
    create view broken as select ssn from gone;
    create virtual table of_broken using fts5(note, content=broken);
    create table people_fts_notes (note); insert into people_fts_notes values ('of ours');
"""


@pytest.mark.parametrize("exclude", ["ssn", "people.SSN", "data.people.ssn"])
@pytest.mark.parametrize(
    ("table", "columns"),
    {
        "people": ["id", "name"],
        "renamed": ["id", "name"],
        "again": None,
        "of_names": ["name", "n"],
        "of_pets": ["name"],
        "pets": ["name"],
        "found_by": None,
        "joined": None,
        "both": None,
        "people_fts": ["name"],
        "people_fts_content": ["id", "c0"],
        "people_fts_data": None,
        "people_fts_notes": ["note"],
        "found": ["note"],
        "found_content": ["docid", "c1note"],
        "found_segments": None,
        "words": None,
        "of_words": None,
        "of_pet_names": ["name"],
        "of_broken_config": ["k", "v"],
    }.items(),
)
async def test_a7_excluded_by_lineage(
    connection: sqlite3.Connection,
    site: Datasette,
    table: str,
    columns: list[str] | None,
    exclude: str,
) -> None:
    """Under whatever name an excluded column is read, it is left out or the table is refused."""
    connection.executescript(HIDDEN)
    profile = make_profile(
        site, "data", table, settings=settings_with(exclude=[exclude], values="sample")
    )
    if columns is None:
        with pytest.raises(ProfileError, match=f"'{table}' is not analyzed: each of its columns"):
            await profile
        return
    made = await profile
    assert list(columns_of(made)) == columns
    of_pets = table in ("pets", "of_pets", "of_pet_names")
    assert ("111-22" in json.dumps(made)) is of_pets


@pytest.mark.parametrize(
    ("table", "exclude", "left_out"),
    [
        ("keyed", "keyed.ssn", ["ssn"]),
        ("of_keyed", "keyed.ssn", ["code"]),
        ("of_keyed", "people.ssn", []),
        ("made", "made.ssn", ["ssn", "part", "copy"]),
        ("of_made", "made.ssn", ["p"]),
        ("linked", "people.ssn", ["number"]),
        ("linked", "people.name", ["name"]),
        ("of_later", "people.ssn", []),
        ("of_index", "people.ssn", ["c1"]),
    ],
)
async def test_a7_lineage_names_the_columns(
    connection: sqlite3.Connection, site: Datasette, table: str, exclude: str, left_out: list[str]
) -> None:
    connection.executescript(HIDDEN)
    made = await make_profile(site, "data", table, settings=settings_with(exclude=[exclude]))
    assert made["left_out"] == left_out


async def test_a7_two_profiles_at_once_and_others_wait(
    connection: sqlite3.Connection, site: Datasette
) -> None:
    rows_of(connection, 3)
    running: list[Clock] = []
    two_run, go_on = threading.Event(), threading.Event()

    class Waiting(Clock):
        def __call__(self) -> float:
            if self not in running:
                running.append(self)
                if len(running) == 2:
                    two_run.set()
                go_on.wait()
            return super().__call__()

    clocks, words = [Waiting() for _ in range(5)], list[str]()
    settings = settings_with()
    tasks = [
        asyncio.create_task(
            make_profile(site, "data", "t", settings=settings, clock=clock, on_wait=words.append)
        )
        for clock in clocks
    ]
    async with asyncio.timeout(BOUND_S):
        await asyncio.to_thread(two_run.wait)
        # Datasette's threads are for its pages, however many profiles there are.
        pages = [site.get_database("data").execute("select * from t") for _ in range(8)]
        assert {len(page.rows) for page in await asyncio.gather(*pages)} == {3}
    assert len(running) == 2
    go_on.set()
    await asyncio.gather(*tasks)
    assert len(running) == 5
    assert set(words) == {"Waiting for other profiles to end"}


async def test_a7_connections_are_closed(
    connection: sqlite3.Connection, site: Datasette, profile: Profile
) -> None:
    rows_of(connection, 3)
    source = site.get_database("data")
    opened: list[sqlite3.Connection] = []
    real = source.connect

    def connect(write: bool = False) -> sqlite3.Connection:
        made = real(write=write)
        if threading.current_thread().name.startswith("llm-profile"):
            opened.append(made)
        return made

    with patch.object(source, "connect", connect):
        await profile()

    assert len(opened) == 2
    for each in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            each.execute("select 1")
        assert not any(each is other for other in source._all_connections)  # noqa: SLF001


async def test_all_columns_may_be_excluded(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    rows_of(connection, 3)

    made = await profile(exclude=["id", "name", "size"], values="sample")

    assert (made["columns"], made["left_out"]) == ([], ["id", "name", "size"])
    assert made["rows"] == {"count": 3, "exact": True}
    assert made["sample_rows"] == []


async def test_empty_table_has_columns_without_stats(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (a text, b blob)")

    made = await profile(values="sample")

    assert made["rows"] == {"count": 0, "exact": True}
    for column in made["columns"]:
        assert column["observed_types"] == {}
        assert column["null_fraction"] is None
        assert (column["distinct"], column["exact"]) == ({"count": 0, "exact": True}, True)


@pytest.mark.parametrize("name", ["a b", 'a"b', "a'b", "ü😀", "[x]", "select", "a;--", "%", "`"])
async def test_odd_names_of_tables_and_columns(
    connection: sqlite3.Connection, profile: Profile, name: str
) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    connection.execute(f"create table {quoted} ({quoted} text, rowid, _rowid_)")
    connection.execute(f"insert into {quoted} values ('x', 1, 2)")

    made = await profile(name)

    assert columns_of(made)[name]["min"] == "x"
    assert made["table"] == name


@pytest.mark.parametrize("count", [500, 2_000])
async def test_table_with_very_many_columns(
    connection: sqlite3.Connection, profile: Profile, count: int
) -> None:
    names = [f"column {number}" for number in range(count)]
    connection.execute(f"create table t ({', '.join(json.dumps(name) for name in names)})")
    connection.execute(f"insert into t values ({', '.join('1' for _ in names)})")

    made = await profile(values="sample")

    assert [column["name"] for column in made["columns"]] == names
    assert {column["mean"] for column in made["columns"]} == {1.0}
    assert set(made["sample_rows"][0]) == set(names)


async def test_long_text_is_truncated_and_blob_hidden(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (long, b)")
    rows = [("y" * 10_000_000, b"SECRETBLOB" * 1_000_000)] * 2 + [("short", None)]
    connection.executemany("insert into t values (?, ?)", rows)

    made = await profile(values="sample")

    columns = columns_of(made)
    assert columns["long"]["max"] == "y" * 80 + "…"
    assert columns["long"]["top_values"] == [{"value": "y" * 80 + "…", "count": 2}]
    assert columns["long"]["length"]["max"] == 10_000_000
    b = columns["b"]
    assert b["blob_size"] == {"min": 10_000_000, "max": 10_000_000, "mean": 10_000_000}
    assert (b["min"], b["max"], b["top_values"], b["length"]) == (None, None, [], None)
    assert b["distinct"]["count"] == 1
    assert "SECRETBLOB" not in json.dumps(made)


async def test_column_too_large_to_sort_is_sampled(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (id integer primary key, long)")
    connection.executemany("insert into t (long) values (?)", [("z" * 1_000,)] * 20)

    with patch.object(measuring, "MAX_SORTED_BYTES", 10_000):
        columns = columns_of(await profile())

    assert (columns["id"]["exact"], columns["long"]["exact"]) == (True, True)
    assert columns["long"]["grouped"] == {"rows": 20, "exact": False}
    assert columns["long"]["distinct"]["at_least"] == 1


async def test_invalid_utf8_has_replacement_characters(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (c text)")
    connection.execute("insert into t values (cast(x'61ff62' as text)), (cast(x'61ff62' as text))")

    column = columns_of(await profile(values="sample"))["c"]

    assert column["observed_types"] == {"text": 2}
    assert column["top_values"] == [{"value": "a�b", "count": 2}]


async def test_large_sums_and_infinity_are_no_errors(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (big integer, inf real, both real)")
    connection.execute(f"insert into t values ({2**63 - 1}, 1e999, 1e999)")
    connection.execute(f"insert into t values ({2**63 - 1}, 1.5, -1e999)")

    columns = columns_of(await profile())

    assert columns["big"]["mean"] == pytest.approx(2**63)
    assert columns["big"]["top_values"] == [{"value": 2**63 - 1, "count": 2}]
    assert (columns["inf"]["min"], columns["inf"]["max"]) == (1.5, "Infinity")
    assert columns["inf"]["mean"] == "Infinity"
    assert (columns["both"]["min"], columns["both"]["mean"]) == ("-Infinity", None)


async def test_value_of_one_row_is_no_top_value(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (c)")
    connection.executemany("insert into t values (?)", [("a",), ("b",), ("b",), ("c",)])

    assert columns_of(await profile())["c"]["top_values"] == [{"value": "b", "count": 2}]


async def test_values_are_compared_by_bytes(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (c text collate nocase)")
    connection.executemany("insert into t values (?)", [("a",), ("A",), ("B",), ("B",)])

    column = columns_of(await profile())["c"]

    assert column["distinct"] == {"count": 3, "exact": True}
    assert (column["min"], column["max"]) == ("A", "a")
    assert column["top_values"] == [{"value": "B", "count": 2}]


async def test_generated_columns_are_profiled(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (a, twice as (a * 2), thrice as (a * 3) stored)")
    connection.executemany("insert into t values (?)", [(1,), (2,)])

    columns = columns_of(await profile())

    assert {name: column["max"] for name, column in columns.items()} == {
        "a": 2,
        "twice": 4,
        "thrice": 6,
    }


@pytest.mark.parametrize(
    ("create", "values"),
    [("fts5 (a, b)", "1, 2"), ("fts4 (a, b)", "1, 2"), ("rtree (a, b, c)", "null, 2, 2")],
)
async def test_virtual_tables_are_profiled(
    connection: sqlite3.Connection, profile: Profile, create: str, values: str
) -> None:
    connection.execute(f"create virtual table t using {create}")
    connection.execute(f"insert into t values ({values}), ({values})")

    made = await profile()

    assert made["rows"] == {"count": 2, "exact": True}
    assert list(columns_of(made))[:2] == ["a", "b"]
    assert all(column["exact"] for column in made["columns"])


async def test_metadata_is_in_the_profile(
    make_datasette: Callable[..., Datasette], connection: sqlite3.Connection, path: Path
) -> None:
    connection.executescript(
        """
        create table u (id integer primary key);
        create table t (id integer primary key, u references u (id), body text, mail text,
            at text, foreign key (at, mail) references v (x, y));
        create virtual table f using fts5 (body, content="t");
        """
    )
    of_t = {
        "description": "Letters",
        "columns": {"body": "What was written", "at": "When"},
        "units": {"id": "pieces"},
    }
    site = make_datasette(
        files=[str(path)], metadata={"databases": {"data": {"tables": {"t": of_t}}}}
    )
    await site.invoke_startup()
    await site.set_column_type("data", "t", "mail", "email")
    await site.set_column_metadata("data", "t", "at", "unit", "s")

    made = await make_profile(site, "data", "t", settings=settings_with())

    columns = columns_of(made)
    assert made["description"] == "Letters"
    assert [name for name, each in columns.items() if each["primary_key"]] == ["id"]
    assert columns["u"]["foreign_key"] == {"table": "u", "column": "id"}
    assert columns["at"]["foreign_key"] is None
    assert [name for name, each in columns.items() if each["full_text_search"]] == ["body"]
    assert {name: each["description"] for name, each in columns.items() if each["description"]} == {
        "body": "What was written",
        "at": "When",
    }
    assert (columns["id"]["unit"], columns["at"]["unit"]) == ("pieces", "s")
    assert columns["mail"]["column_type"] == "email"


async def test_a5_profile_is_deterministic(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    rows_of(connection, 6_000)

    made = [json.dumps(await profile(values="sample")) for _ in range(10)]

    assert len(set(made)) == 1


@pytest.mark.parametrize(("database", "table"), [("data", "gone"), ("gone", "t")])
async def test_missing_table_is_not_found(
    site: Datasette, connection: sqlite3.Connection, database: str, table: str
) -> None:
    with pytest.raises(TableNotFoundError, match=r"There is no table or view '.*gone"):
        await make_profile(site, database, table, settings=settings_with())


def test_table_dropped_meanwhile_is_not_found(connection: sqlite3.Connection) -> None:
    rows_of(connection, 10)

    with pytest.raises(TableNotFoundError):
        measured_of(connection, changing(connection, "drop table t"))


def changing(connection: sqlite3.Connection, sql: str) -> Callable[[], float]:
    """A clock that changes the table when it is first looked at for a query."""
    looks = itertools.count()

    def clock() -> float:
        if next(looks) == 1:
            connection.execute(sql)
        return 0.0

    return clock


async def test_view_of_a_missing_table_is_an_error(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.executescript("create table u (a); create view t as select a from u; drop table u")

    with pytest.raises(ProfileError, match="'t' cannot be read: no such table"):
        await profile()


@pytest.mark.parametrize("name", ["g", "G", "t", "cells", "main"])
async def test_table_named_like_a_part_of_our_queries(
    profile: Profile, connection: sqlite3.Connection, name: str
) -> None:
    connection.execute(f"create table {name} (v, n, t)")
    connection.execute(f"insert into {name} values (1, 2, 3)")

    made = await profile(name)

    assert [column["max"] for column in made["columns"]] == [1, 2, 3]


@pytest.mark.parametrize(
    "sql",
    [
        "create table t (c any) strict; insert into t values (1), (1.0), (1.0)",
        "create table a (c integer); insert into a values (1);"
        "create table b (c real); insert into b values (1), (1);"
        "create view t as select c from a union all select c from b",
    ],
)
def test_equal_integers_and_reals_are_counted(connection: sqlite3.Connection, sql: str) -> None:
    connection.executescript(sql)

    column = profiled_of(connection)["columns"][0]

    assert column["observed_types"] == {"integer": 1, "real": 2}


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1_700_000_000_123_456] * 2, 1_700_000_000_123_456),
        ([1e308] * 3, None),
        ([math.inf, 1.0], "Infinity"),
    ],
)
def test_mean_is_within_the_extremes(
    connection: sqlite3.Connection, values: list[float], mean: Any
) -> None:
    connection.execute("create table t (c)")
    connection.executemany("insert into t values (?)", [(value,) for value in values])

    assert profiled_of(connection)["columns"][0]["mean"] == mean


def test_a5_deviation_of_large_numbers_keeps_its_digits(connection: sqlite3.Connection) -> None:
    connection.execute("create table t (c)")
    numbers = [1_700_000_000_123_456 + number % 10 for number in range(1_000)]
    connection.executemany("insert into t values (?)", [(number,) for number in numbers])

    column = profiled_of(connection)["columns"][0]

    assert column["deviation"] == pytest.approx(pstdev(numbers), rel=1e-9)


def test_a5_column_dropped_meanwhile_is_its_error(connection: sqlite3.Connection) -> None:
    rows_of(connection, 3)

    made = profiled_of(connection, changing(connection, "alter table t drop column name"))

    errors = {name: column["error"] for name, column in columns_of(made).items()}
    assert errors == {"id": None, "name": "no such column: t.name", "size": None}
    assert columns_of(made)["size"]["max"] == 1.5


@pytest.mark.parametrize("first_bad", [0, 150])
async def test_a5_error_of_one_column_is_its_own(
    connection: sqlite3.Connection, profile: Profile, first_bad: int
) -> None:
    connection.execute("create table u (n, doc)")
    rows = [(n, "{" if n == first_bad else '{"a": 1}') for n in range(200)]
    connection.executemany("insert into u values (?, ?)", rows)
    connection.execute("create view t as select n, json_extract(doc, '$.a') as a, doc from u")
    connection.execute("create table v (n, doc, a as (json_extract(doc, '$.a')))")
    with pytest.raises(sqlite3.OperationalError, match="malformed JSON"):
        connection.execute("select sum(a) from t").fetchall()

    made = await profile()

    columns = columns_of(made)
    assert made["rows"] == {"count": 200, "exact": True}
    assert {name: each["error"] for name, each in columns.items()} == {
        "n": None,
        "a": "malformed JSON",
        "doc": None,
    }
    assert (columns["n"]["max"], columns["n"]["exact"]) == (199, True)
    assert (columns["a"]["rows"], columns["a"]["min"], columns["a"]["grouped"]) == (0, None, None)


def test_rows_of_megabytes_keep_the_time_limit(connection: sqlite3.Connection) -> None:
    clock = LeapingClock()

    def read(number: int) -> str:
        clock.now += 0.04
        return str(number) * 60_000

    connection.create_function("read", 1, read)
    connection.execute(
        "create view t as with recursive n(i) as (select 10 union all select i + 1 from n "
        "where i < 99) select read(i) as long, i from n"
    )

    made = profiled_of(connection, clock)

    assert clock.now <= 2.1
    assert made["rows"]["exact"] is False
    assert columns_of(made)["long"]["exact"] is False


async def test_cancelled_profile_is_stopped(
    site: Datasette, connection: sqlite3.Connection
) -> None:
    connection.execute(
        "create view t as with recursive n(i) as (select 1 union all select i + 1 from n) "
        "select i from n where i < 0"
    )
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    looks = itertools.count()
    left = threading.Event()

    def clock() -> float:
        loop.call_soon_threadsafe(begun.set)
        left.wait()  # so that what follows does not depend on which thread is the faster one
        return 0.0 if next(looks) < 20_000 else 1e9

    task = asyncio.create_task(
        make_profile(site, "data", "t", settings=settings_with(), clock=clock)
    )
    await begun.wait()
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    left.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(site.executor.shutdown, wait=True)
    assert next(looks) < 20_000


async def test_a5_schema_facts_are_in_the_profile(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("""
        create table t (
            id integer primary key, code text not null unique, kind text check (kind in ('a', ')')),
            size real, twice as (size * 2), secret text,
            check (size > 0), -- check (no)
            check (length(secret) < 9)
        )
    """)
    connection.execute("create index i on t (kind, size)")
    connection.execute("create unique index j on t (size) where kind = 'a'")

    made = await profile(exclude=["secret"])

    facts = ("not_null", "unique", "indexed", "generated")
    assert {c["name"]: [fact for fact in facts if c[fact]] for c in made["columns"]} == {
        "id": ["unique", "indexed"],
        "code": ["not_null", "unique", "indexed"],
        "kind": ["indexed"],
        "size": [],
        "twice": ["generated"],
    }
    assert made["checks"] == ["kind in ('a', ')')", "size > 0"]
    assert (await profile(values="none"))["checks"] == []


async def test_a5_numbers_in_text_have_their_range(
    connection: sqlite3.Connection, profile: Profile
) -> None:
    connection.execute("create table t (price text, day text)")
    rows = [("9", "2026-01-31"), ("10", "2026-02-28"), ("-2.5", "2026-02-31"), ("NA", "31/01/26")]
    connection.executemany("insert into t values (?, ?)", rows)

    columns = columns_of(await profile())

    # As text "9" is the greatest number.
    assert (columns["price"]["min"], columns["price"]["max"]) == ("-2.5", "NA")
    assert columns["price"]["numeric_texts"] == {"count": 3, "min": -2.5, "max": 10}
    assert columns["day"]["numeric_texts"] is None
    assert columns["day"]["masks"] == {
        "counts": [{"mask": "9999-99-99", "count": 3}, {"mask": "99/99/99", "count": 1}],
        "dates": 2,
        "texts": 4,
        "exact": True,
    }


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_a5_texts_of_any_encoding(encoding: str) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"pragma encoding = '{encoding}'")
        connection.execute("create table t (c text)")
        texts = ["a\0é", "ü" * 90, "ü" * 90, "7"]
        connection.executemany("insert into t values (?)", [(text,) for text in texts])
        column = profiled_of(connection)["columns"][0]

    assert column["top_values"] == [{"value": "ü" * 80 + "…", "count": 2}]
    assert (column["length"]["min"], column["length"]["max"]) == (1, 90)
    assert column["length"]["mean"] == pytest.approx((3 + 180 + 1) / 4)
    assert column["numeric_texts"] == {"count": 1, "min": 7, "max": 7}


@hypothesis_settings(max_examples=60)
@given(st.lists(CELLS, max_size=30), st.sampled_from(["", "collate nocase", "text"]), st.booleans())
def test_a5_distinct_without_values_is_exact(cells: list[Any], declared: str, few: bool) -> None:
    """Where no values may be shown, the different ones are counted by a shorter way."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"create table t (c {declared})")
        connection.executemany("insert into t values (?)", [(cell,) for cell in cells])
        with patch.object(measuring, "FEW_DISTINCT", 1_000 if few else -1):
            shown, hidden = (profiled_of(connection, values=each) for each in ("top", "none"))

    for name in ("distinct", "grouped", "exact", "null_fraction"):
        assert hidden["columns"][0][name] == shown["columns"][0][name]


async def test_memory_database_is_profiled_and_kept(site: Datasette) -> None:
    """Datasette forbids writing on connections to it; what is grouped is written elsewhere."""
    memory = site.add_memory_database("memory_for_profile")
    await memory.execute_write_script(
        "create table t (a); insert into t values (1), (2), (2), (null)"
    )

    made = await make_profile(site, memory.name, "t", settings=settings_with(time_limit_ms=60_000))

    column = made["columns"][0]
    assert (column["distinct"], column["quartiles"]) == ({"count": 2, "exact": True}, [1.5, 2, 2])
    assert await memory.table_names() == ["t"]

"""The rows about the profile of a table: of a million rows, and of ten million.

The reference for the million is what `sqlite-utils analyze-tables` does, by the function that it
calls for each column; it has no figures for types, extremes, means and lengths. Such a table has a
key, texts with few, some and many values, dates, integers, real numbers and a column with gaps;
one of twenty columns has these twice.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasette.app import Datasette
from sqlite_utils import Database

from datasette_llm.consultant.findings.find import find

from .measuring import Pair, Row, measured, timed
from .profiled import profiled
from .rows import row

TIME_LIMIT_MS = 2_000
UNLIMITED_MS = 10 * 60 * 1_000
FINDINGS_S = 3
STALL_S = 0.05
TEN = "id integer primary key, mail, city, status, day, amount, score, age, active, note"
FIVE = "id integer primary key, mail, city, status, day"
STATUS = ("open", "closed", "pending", "lost")
WORDS = "word " * 20


class Costs(NamedTuple):
    """What one profile took; see `profiled`."""

    seconds: float
    stall_s: float
    bytes: float
    rows: float
    exact: float
    idle_stall_s: float

    def columns(self, of: str) -> dict[str, float]:
        return {
            f"{of}, s": self.seconds,
            f"{of}, longest stall of the event loop, ms": self.stall_s * 1e3,
            f"{of}, longest stall with nothing to do, ms": self.idle_stall_s * 1e3,
            f"{of}, memory, MB": self.bytes / 1024**2,
            f"{of}, rows read": self.rows,
            f"{of}, columns of ten that are grouped exactly": self.exact,
        }


@row("profile")
async def profile(name: str, quick: bool) -> Row:
    return await _whole(name, quick, "top", 0.4)


@row("profile-no-values")
async def profile_no_values(name: str, quick: bool) -> Row:
    return await _whole(name, quick, "none", 0.3)


async def _whole(name: str, quick: bool, values: str, bar: float) -> Row:
    rows = 100_000 if quick else 1_000_000
    with table_of(rows) as path:
        async with serving(path) as datasette:
            pair = await measured(
                lambda: asyncio.to_thread(_seconds_of_reference, path, rows),
                timed(lambda: profiled(datasette, path, UNLIMITED_MS, values)),
                1 if quick else 3,
            )
        limited = [await _costs(path, TIME_LIMIT_MS) for _ in range(1 if quick else 10)]
        unlimited = await _costs(path, UNLIMITED_MS)
    worst = min(limited, key=lambda costs: costs.rows)
    return Row(
        name,
        f"profile of {rows:,} rows by ten columns, all exact, consultant.values: {values}",
        pair,
        "ratio",
        bar,
        "s",
        raw_is="sqlite-utils' analyze_column() for each of the columns",
        holds=worst.rows == rows and max(each.stall_s for each in limited) <= STALL_S,
        beside=worst.columns("the least of those in 2 s") | unlimited.columns("without a limit"),
    )


@row("profile-budget")
async def profile_budget(name: str, quick: bool) -> Row:
    rows, limit_ms = (200_000, 500) if quick else (10_000_000, TIME_LIMIT_MS)
    with table_of(rows, FIVE) as path:
        samples = [
            (await asyncio.to_thread(_seconds_to_count, path), await _costs(path, limit_ms))
            for _ in range(1 if quick else 5)
        ]
    costs = [each for _, each in samples]
    return Row(
        name,
        f"profile of {rows:,} rows by five columns in {limit_ms / 1e3:g} s",
        Pair(tuple(raw for raw, _ in samples), tuple(each.seconds for each in costs)),
        "longest",
        limit_ms / 1e3,
        "s",
        raw_is="counting the rows",
        holds=max(each.stall_s for each in costs) <= STALL_S
        and min(each.rows for each in costs) >= rows / 10,
        beside=min(costs, key=lambda each: each.rows).columns("the least of them"),
    )


@row("findings")
async def findings(name: str, quick: bool) -> Row:
    rows, twice = 100_000, [f"{each}_2" for each in TEN.split(", ")[1:]]
    with table_of(rows, ", ".join([TEN, "number", *twice])) as path:
        async with serving(path) as datasette:
            made = await profiled(datasette, path, UNLIMITED_MS)
            pair = await measured(
                lambda: asyncio.to_thread(_seconds_of_reference, path, rows),
                timed(lambda: find(datasette, path.stem, made, None, limit_s=60)),
                1 if quick else 5,
            )
    work = f"findings of {rows:,} rows by twenty columns"
    raw_is = "sqlite-utils' analyze_column() for each of the columns"
    return Row(name, work, pair, "median", FINDINGS_S, "s", raw_is=raw_is)


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Datasette]:
    datasette = Datasette([str(path)])
    await datasette.invoke_startup()
    try:
        yield datasette
    finally:
        await datasette.invoke_shutdown()


@contextmanager
def table_of(rows: int, columns: str = TEN) -> Iterator[Path]:
    """A table with so many rows, in a file that is gone when the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("pragma synchronous = off")
            connection.execute(f"create table t ({columns})")
            connection.execute("begin")
            width = len(columns.split(","))
            places = ", ".join("?" * width)
            made = ((values * 2)[:width] for values in _rows(rows))
            connection.executemany(f"insert into t values ({places})", made)
            connection.execute("commit")
        yield path


def _rows(count: int) -> Iterator[tuple[Any, ...]]:
    values = random.Random(count)
    for number in range(1, count + 1):
        fraction = values.random()
        many = int(fraction * count * 10)
        yield (
            *(number, f"user{many}@example.org", f"City {int(1 / (fraction + 1e-3))} of the North"),
            *(STATUS[many % 7 % 4], f"20{10 + many % 15}-{1 + many % 12:02}-{1 + many % 28:02}"),
            *(many % 100_000, fraction * 1e6, None if many % 10 < 3 else many % 120, many % 2),
            WORDS[: 5 * (2 + many % 18)] + str(many % 5_000),
        )


def _seconds_of_reference(path: Path, rows: int) -> float:
    database = Database(path)
    begun = time.perf_counter()
    for column in database["t"].columns:
        database["t"].analyze_column(column.name, value_truncate=80, total_rows=rows)
    database.close()
    return time.perf_counter() - begun


def _seconds_to_count(path: Path) -> float:
    with closing(sqlite3.connect(path)) as connection:
        begun = time.perf_counter()
        connection.execute("select count(*) from t").fetchone()
        return time.perf_counter() - begun


async def _costs(path: Path, time_limit_ms: int) -> Costs:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.profiled", str(path), str(time_limit_ms)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 10 * 60)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError("The program that measures a profile failed; see above")
    return Costs(*map(float, output.split()))

"""Ways in which the file of the call log fails; each is a context in which it does."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import asynccontextmanager, closing, suppress

from datasette.database import DatasetteClosedError

from .waiting import soon

LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("commit")
"""


@asynccontextmanager
async def locked(datasette, path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LOCKING, str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await soon(process.stdout.readline()) == b"locked\n"
        yield
        await soon(process.communicate(b"\n"))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def read_only(datasette, path):
    await pragma(datasette, "query_only = 1")
    yield
    await pragma(datasette, "query_only = 0")


@asynccontextmanager
async def full(datasette, path):
    await pragma(datasette, "max_page_count = 1")  # SQLite makes that the size that there is
    yield
    await pragma(datasette, "max_page_count = 1000000")


@asynccontextmanager
async def corrupt(datasette, path):
    whole = path.read_bytes()
    # One that stays open: closing any would let go of the locks of this whole process.
    file = os.open(path, os.O_RDWR)
    try:
        os.pwrite(file, b"not a database at all".ljust(len(whole), b"?"), 0)
        yield
        os.pwrite(file, whole, 0)
    finally:
        os.close(file)


async def pragma(datasette, statement):
    with suppress(DatasetteClosedError):  # it may have stopped meanwhile
        await datasette.get_internal_database().execute_write_fn(
            lambda connection: connection.execute(f"pragma {statement}").fetchall(),
            transaction=False,
        )


def kept(path):
    """A second name of the file, for what was in it before it was deleted or replaced."""
    other = path.with_name("kept.db")
    os.link(path, other)
    return other


@asynccontextmanager
async def deleted(datasette, path):
    kept(path)
    path.unlink()
    yield


@asynccontextmanager
async def replaced(datasette, path):
    """By a backup, as somebody does who does not know that Datasette runs."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(backup)) as new:
        old.backup(new)
    kept(path)
    backup.replace(path)
    yield

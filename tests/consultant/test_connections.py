"""The consultant's own connections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlite_utils
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_llm.consultant.connections import own_connections


async def test_s10_shutdown_closes_none_that_is_read(
    make_datasette: Callable[..., Datasette], tmp_path: Path
) -> None:
    """A thread that reads on when Datasette closes would crash the process."""
    path = tmp_path / "data.db"
    sqlite_utils.Database(path)["t"].insert({"a": 1})
    site = make_datasette(files=[str(path)])
    await site.invoke_startup()
    with own_connections(site.get_database("data"), 2) as connections:
        site.close()
        assert [each.execute("select a from t").fetchall() for each in connections] == [[(1,)]] * 2
    with pytest.raises(sqlite3.ProgrammingError):
        connections[0].execute("select 1")

"""What each test would have Datasette do anew is done once, or not at all; no test can see it."""

from __future__ import annotations

import functools
import importlib.metadata
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from email.message import Message
from typing import Any

import datasette.app
import datasette.handle_exception
import pytest
from datasette.database import Database
from jinja2 import BytecodeCache, Environment
from jinja2.bccache import Bucket

from datasette_llm.log import usage_upkeep


class CompiledTemplates(BytecodeCache):
    """The code of templates, by their name and source."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], Any] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key, bucket.checksum] = bucket.code


@pytest.fixture(autouse=True, scope="session")
def savings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Every Datasette compiles its templates: 20 ms each.
        environment = functools.partial(Environment, bytecode_cache=CompiledTemplates())
        patch.setattr(datasette.app, "Environment", environment)
        # With rich, which import-linter brings, Datasette prints the variables of every frame of
        # an error that it shows: one second each.
        patch.setattr(datasette.handle_exception, "rich", None)
        # For the versions of plugins, Datasette has this parsed for every request.
        patch.setattr(importlib.metadata.PathDistribution, "metadata", _metadata_once())
        patch.setattr(Database, "connect", _unsafe_without_power(Database.connect))
        # Between any two periods that are added up: here no call waits for its turn.
        patch.setattr(usage_upkeep, "PAUSE_S", 0.0)
        yield


def _metadata_once() -> property:
    read = importlib.metadata.PathDistribution.metadata.fget

    @functools.cache
    def read_once(path: Any) -> Message:
        return read(importlib.metadata.PathDistribution(path))

    return property(lambda distribution: read_once(distribution._path))


def _unsafe_without_power(connect: Any) -> Any:
    """What is written needs to survive the death of a process, and not that of the machine."""

    def connect_without_sync(database: Database, write: bool = False) -> sqlite3.Connection:
        connection = connect(database, write=write)
        if write:
            with suppress(sqlite3.Error):  # the next statement says so
                connection.execute("pragma synchronous = off")
        return connection

    return connect_without_sync

"""A started Datasette with the console."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from datasette.app import Datasette

from ...support.console import Start, starter


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    return starter(make_datasette)

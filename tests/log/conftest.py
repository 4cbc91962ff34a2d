"""The file of the call log."""

import pytest


@pytest.fixture
def path(tmp_path):
    """The file of the internal database."""
    return tmp_path / "internal.db"

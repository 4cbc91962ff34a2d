"""The rooms: the import contracts hold, and each room can be found."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import datasette_llm

ROOT = Path(__file__).parents[1]
PACKAGE = Path(datasette_llm.__file__).parent
MOST_TOP_MODULES = 14


def test_import_contracts_are_kept() -> None:
    """Types count, so that no arrow is left which exists only for them."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_every_package_is_in_a_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    ancestors = next(each["ancestors"] for each in contracts if "ancestors" in each)
    packages = {
        ".".join(("datasette_llm", *folder.parent.relative_to(PACKAGE).parts))
        for folder in PACKAGE.rglob("__init__.py")
    }
    assert packages == set(ancestors)


def test_top_of_package_stays_small() -> None:
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= MOST_TOP_MODULES, modules

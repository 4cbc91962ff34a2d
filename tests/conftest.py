"""Fixtures of all tests: an empty llm folder, no keys, a Datasette, plugins."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.plugins import pm
from hypothesis import settings

# The same examples in every run, and no deadline.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

pytest.register_assert_rewrite("tests.support.faults", "tests.support.waiting")
pytest_plugins = [
    "tests.support.savings",
    "datasette_llm.testing",
    "tests.support.consultant",
    "tests.support.openai_server",
]
# A process that a test starts would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as many tests wait: for a timer, a process or the disk."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """What is there for all tests is no garbage, and need not be looked through."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that take long, of whole systems and in a browser: a step of `.ci/run`."""
    for item in items:
        if "browser" in item.path.name or item.path.name == "test_accessibility.py":
            item.add_marker("browser")
        elif item.path.parent.name == "system":
            item.add_marker("system")


@pytest.fixture(autouse=True)
def llm_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """llm's own folder, empty at first; and no key anywhere in the environment."""
    folder = tmp_path / "llm"
    folder.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("DATASETTE_SECRETS_"):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture(autouse=True)
def no_wait_for_unknown_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id is looked for at once, however many were looked for before."""
    monkeypatch.setattr("datasette_llm.providers.catalog.LOOK_AGAIN_S", 0.0)


@pytest.fixture
def make_datasette() -> Iterator[Callable[..., Datasette]]:
    """A function that makes a Datasette with our configuration; closed at the end of the test.

    The first argument is what stands under `plugins: datasette-llm:`. Of the keyword arguments
    `plugins` holds the configuration of other plugins; the rest goes to Datasette.
    """
    with ExitStack() as stack:

        def make(
            config: object = None, *, plugins: dict[str, Any] | None = None, **kwargs: Any
        ) -> Datasette:
            ours = {} if config is None else config
            plugin_configs = {"datasette-llm": ours, **(plugins or {})}
            datasette = Datasette(memory=True, config={"plugins": plugin_configs}, **kwargs)
            stack.callback(datasette.close)
            return datasette

        yield make


@pytest.fixture
def plugin() -> Iterator[Callable[..., Any]]:
    """A function that registers a Datasette plugin until the end of the test, and returns it.

    The plugin is an object with `@hookimpl` methods; it is known by `name`, or by its class's.
    """
    with ExitStack() as stack:

        def register(implementations: Any, name: str | None = None) -> Any:
            name = name or getattr(implementations, "__name__", type(implementations).__name__)
            pm.register(implementations, name=name)
            stack.callback(pm.unregister, implementations)
            return implementations

        yield register


@pytest.fixture
def no_own_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The purposes of the consultant and the judge are not registered: a test lists its own."""
    monkeypatch.setattr("datasette_llm.consultant.advice.consultation.purposes", list)
    monkeypatch.setattr("datasette_llm.evaluation.judge.purposes", list)

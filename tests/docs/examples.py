"""The examples of README.md and of the documentation, and what their tests share.

An example is a code block under an HTML comment `<!-- example: NAME -->`. A test takes the
examples that it runs with `@shows(parameter="NAME")`.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from datasette import Request
from datasette.app import Datasette
from datasette.cli import cli
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.console.docs import FOLDER
from datasette_llm.testing import ScriptedModel

from ..support.consultant import flag

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {file.stem: file.read_text("utf-8") for file in sorted(FOLDER.glob("*.md"))}
EVERYTHING = "\n".join((README, *DOCS.values()))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOUND = re.findall(r"^<!-- example: (.+?) -->\n```(\w+)\n(.*?)^```$", EVERYTHING, re.M | re.S)
EXAMPLES = {name: text for name, _, text in FOUND}
COMMANDS = [line for _, kind, text in FOUND if kind == "bash" for line in text.splitlines()]
ZOO_FLAG = flag()
SHOWN: set[str] = set()


def shows(**examples: str) -> pytest.MarkDecorator:
    """The test runs these examples, which it gets as arguments."""
    SHOWN.update(examples.values())
    texts = tuple(EXAMPLES[name] for name in examples.values())
    values = [texts if len(texts) > 1 else texts[0]]
    return pytest.mark.parametrize(",".join(examples), values, ids=[next(iter(examples.values()))])


def between(subject: str, start: str, end: str) -> str:
    """What stands between two texts in the documentation of a subject."""
    return DOCS[subject].partition(start)[2].partition(end)[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


async def run(source: str, **names: Any) -> dict[str, Any]:
    """Run an example that awaits outside of a function, and return its names."""
    names.setdefault("LLM", LLM)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    # Not with this file's own annotations, which pydantic could not resolve there.
    code = compile(source, "documentation", "exec", flags=flags, dont_inherit=True)
    pending = eval(code, names)
    if inspect.isawaitable(pending):
        await pending
    return names


def commands() -> Iterator[tuple[str, click.Command]]:
    """The commands of `datasette llm`, with their names."""
    group = cli.commands["llm"]
    assert isinstance(group, click.Group)
    yield from group.commands.items()


def request_by(actor: dict[str, Any] | None, path: str = "/") -> Request:
    request = Request.fake(path)
    request.scope["actor"] = actor
    return request


async def fill_database(datasette: Datasette, path: Path, *statements: str) -> None:
    """Give a Datasette a database, which is its first one, and run some SQL in it."""
    datasette.remove_database("_memory")
    database = datasette.add_database(Database(datasette, str(path), is_mutable=True), "data")
    for statement in statements:
        await database.execute_write(statement)


def ours(text: str) -> Any:
    """What an example of datasette.yaml configures for us."""
    return yaml.safe_load(text)["plugins"]["datasette-llm"]


def claude(model_id: str, *scripts: Any) -> ScriptedModel:
    return ScriptedModel(model_id, *scripts, needs_key="anthropic")

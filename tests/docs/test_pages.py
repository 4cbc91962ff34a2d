"""README.md and the documentation as a whole: examples, links, names, configurations."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from datasette.cli import cli

import datasette_llm
from datasette_llm import (
    errors,
)
from datasette_llm.config.parse import parse_settings
from datasette_llm.console.docs import SUBJECTS, as_html, documents
from datasette_llm.console.navigation import LINKS

from .examples import (
    COMMANDS,
    DOCS,
    EVERYTHING,
    EXAMPLES,
    FOUND,
    README,
    SHOWN,
)


def test_every_code_block_is_run():
    """Each has a name, and a test that shows it."""
    for file in Path(__file__).parent.glob("test_*.py"):
        import_module(f"{__package__}.{file.stem}")
    assert len(re.findall(r"^```\w+$", EVERYTHING, re.M)) == len(FOUND)
    assert EXAMPLES.keys() == SHOWN


def test_example_shown_twice_is_the_same():
    for name, _, text in FOUND:
        assert text == EXAMPLES[name]


def test_every_exported_name_is_documented():
    missing = [name for name in datasette_llm.__all__ if f"`{name}`" not in EVERYTHING]
    # These are read in the tree of errors.
    assert [name for name in missing if not hasattr(errors, name)] == []
    assert [name for name in missing if name not in EXAMPLES["errors"]] == []


@pytest.mark.parametrize("subject", ["README", *SUBJECTS])
def test_every_link_leads_to_a_heading(subject):
    """Within the page, and to the pages of other subjects."""
    targets = re.findall(r"\]\(([^)]+)\)", {"README": README, **DOCS}[subject])
    for target in targets:
        address, _, anchor = target.partition("#")
        if not address.startswith("https://"):
            folder, _, name = (address or f"{subject}.md").rpartition("/")
            assert folder == ("datasette_llm/docs" if subject == "README" else ""), target
            assert name.removesuffix(".md") in DOCS, target
            assert not anchor or anchor in _anchors(name.removesuffix(".md")), target


def _anchors(subject: str) -> set[str]:
    html = as_html(DOCS[subject], "")
    return set(re.findall(r'<h\d id="([^"]+)"', html))


def test_the_files_are_the_subjects():
    assert DOCS.keys() == set(SUBJECTS)
    for each in documents():
        assert each.markdown.startswith(f"# {each.title}\n\n{each.summary}\n\n"), each.subject


def test_every_section_linked_from_a_page_exists():
    for section in (link.section for link in LINKS if link.section):
        subject, _, anchor = section.partition("#")
        assert not anchor or anchor in _anchors(subject), section


def _command_and_words(line: str) -> tuple[click.Command, list[str]]:
    words, command = shlex.split(line)[1:], cli
    while isinstance(command, click.Group):
        known = bool(words) and words[0] in command.commands
        command = command.commands[words.pop(0) if known else "serve"]
    return command, words


@pytest.mark.parametrize(
    "line",
    [part for line in COMMANDS for part in re.split(r" && | \| ", line) if "datasette " in part],
)
def test_commands_take_the_options_shown(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plugins").mkdir()
    Path("datasette.yaml").touch()
    Path("zoo.db").touch()
    Path("evaluation.yaml").touch()
    command, words = _command_and_words(re.sub(r"^\S*(uv run |/)(?=datasette )", "", line))
    context = command.make_context("datasette", words)
    assert context.params


def test_every_configuration_shown_is_valid():
    configs = {name: yaml.safe_load(text) for name, kind, text in FOUND if kind == "yaml"}
    good = [config for name, config in configs.items() if not name.startswith("bad ")]
    assert good
    for config in good:
        assert config.keys() <= {"plugins", "permissions", "databases"}
        parse_settings(config.get("plugins", {}).get("datasette-llm"))

"""`datasette llm ...`: the group of commands, and `datasette llm prompt`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import llm.utils

from ..errors import ModelNotFoundError
from ..facade import LLM
from .analyze import analyze_command
from .cache import cache_command
from .demo import demo_command
from .eval import eval_command
from .log import log_command
from .models import explain_command, models_command
from .probe import test_command
from .purposes import assign_command, purposes_command
from .site import Site, run, site_options
from .terminal import Commands, echo
from .what_if import what_if_command

# The model for prompts without any configuration; it needs no key and no network.
EMBEDDED_DEFAULT = "echo"


def register(cli: click.Group) -> None:
    """Add the commands to Datasette's."""
    cli.add_command(llm_group)


@click.group("llm", cls=Commands)
def llm_group() -> None:
    """Prompt the language models that Datasette's plugins use"""


@llm_group.command("prompt")
@click.argument("text", required=False)
@click.option("-m", "--model", "model_id", help="Model id or alias; otherwise the default")
@click.option("-p", "--purpose", help="The purpose to prompt for, as in datasette.yaml")
@click.option("-s", "--system", help="System prompt")
@click.option(
    "options",
    "-o",
    "--option",
    type=(str, str),
    multiple=True,
    metavar="NAME VALUE",
    help="An option of the model; can be given several times",
)
@click.option("--schema", help="JSON schema, the name of a file with one, or llm's short form")
@site_options
def prompt_command(
    text: str | None,
    model_id: str | None,
    purpose: str | None,
    system: str | None,
    options: tuple[tuple[str, str], ...],
    schema: str | None,
    site: Site,
) -> None:
    """Prompt a model as a plugin would, and stream its answer

    Without TEXT, the prompt is read from standard input.

    Policy, keys and plugins apply as in the site whose configuration, internal database and
    plugins folder are given. Without a default model the prompt goes to llm-echo, which
    repeats it.

    \b
    Example:
        datasette llm prompt 'Three names for a pelican' -m gpt-4o-mini -o temperature 1
    """
    if text is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("Give the prompt as an argument or on standard input")
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.ClickException(f"Standard input is not UTF-8 text: {error}") from None
    arguments: dict[str, Any] = {"options": dict(options)}
    if system is not None:
        arguments["system"] = system
    if schema is not None:
        arguments["schema"] = _schema(schema)
    run(_prompt(site, text, model_id, purpose, arguments))


async def _prompt(
    site: Site,
    text: str,
    model_id: str | None,
    purpose: str | None,
    arguments: dict[str, Any],
) -> None:
    async with site.started() as datasette:
        model = await _model(LLM(datasette), model_id, purpose)
        response = await model.prompt(text, **arguments)
        chunk = ""
        async for chunk in response:
            echo(chunk, nl=False)
        if not chunk.endswith("\n"):
            echo()


async def _model(models: LLM, model_id: str | None, purpose: str | None) -> Any:
    if model_id is None and not await models.has_default(purpose):
        try:
            return await models.model(EMBEDDED_DEFAULT, purpose)
        except ModelNotFoundError as error:
            raise click.ClickException(
                "There is no default model. Name one with -m, set default_model in the "
                f"configuration, or install llm-echo to try without a key ({error})"
            ) from None
    return await models.model(model_id, purpose)


def _schema(text: str) -> dict[str, Any]:
    """Parse a schema: JSON, the name of a file, or llm's short form."""
    content = _file_content(text)
    if content is None and (text.endswith(".json") or "/" in text):
        raise click.ClickException(f"--schema names a file that cannot be read: {text}")
    text = content or text
    try:
        is_json = text.lstrip().startswith("{")
        schema: dict[str, Any] = json.loads(text) if is_json else llm.utils.schema_dsl(text)
    except ValueError as error:
        raise click.ClickException(f"--schema cannot be read: {error}") from None
    return schema


def _file_content(name: str) -> str | None:
    """The text of a file; None if there is no such file."""
    try:
        return Path(name).read_text("utf-8")
    except (OSError, ValueError):
        return None


COMMANDS: tuple[click.Command, ...] = (
    models_command,
    purposes_command,
    explain_command,
    test_command,
    assign_command,
    cache_command,
    what_if_command,
    analyze_command,
    demo_command,
)


for command in (*COMMANDS, eval_command, log_command):
    llm_group.add_command(command)

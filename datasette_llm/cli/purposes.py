"""`datasette llm purposes` and `datasette llm assign`: the page of the purposes in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..console.call_policies import items
from ..console.call_policies import sentence as item_sentence
from ..console.purposes import assign, purposes, sentence
from .site import Site, as_json, run, site_options
from .terminal import echo, printable


@click.command("purposes")
@site_options
@click.option("--json", "wants_json", is_flag=True, help="All data as JSON, with allowed models")
def purposes_command(site: Site, wants_json: bool) -> None:
    """Show the purposes of models, and the model of each purpose

    With the rule by which it has the model, and its problem if there is one.

    \b
    Example:
        datasette llm purposes -c datasette.yaml --internal internal.db
    """
    run(_purposes(site, wants_json))


@click.command("assign")
@click.argument("purpose")
@click.argument("model", required=False)
@click.option("--reset", is_flag=True, help="Go back to the configuration")
@site_options
@click.option("--json", "wants_json", is_flag=True, help="The result as JSON")
def assign_command(
    purpose: str, model: str | None, reset: bool, site: Site, wants_json: bool
) -> None:
    """Assign a MODEL to a PURPOSE, as its default

    The choice is kept in the internal database. The configuration has to allow the model. A
    running site uses it within seconds.

    \b
    Example:
        datasette llm assign sql claude-sonnet-4.5 -c datasette.yaml --internal internal.db
        datasette llm assign sql --reset -c datasette.yaml --internal internal.db
    """
    if reset == (model is not None):
        raise click.UsageError("Give either a MODEL, or --reset")
    if site.internal is None:
        raise click.UsageError("Give --internal: without it the choice would be lost at once")
    new = "" if Path(site.internal).exists() else ", which is new"
    run(_assign(site, purpose, model, wants_json))
    if not wants_json:
        echo(f"Written to {printable(site.internal)}{new}.")


async def _purposes(site: Site, wants_json: bool) -> None:
    async with site.started() as datasette:
        payload = await purposes(datasette)
    if wants_json:
        as_json(payload)
        return
    for line in _lines(payload):
        echo(line)


async def _assign(site: Site, purpose: str, model: str | None, wants_json: bool) -> None:
    async with site.started() as datasette:
        payload = await assign(datasette, purpose, model, None)
    if wants_json:
        as_json(payload)
        return
    if not payload["ok"]:
        raise click.ClickException(printable(payload["error"]))
    echo(printable(sentence(payload)))


def _lines(payload: dict[str, Any]) -> Iterator[str]:
    for warning in payload["warnings"]:
        yield printable(f"Warning: {warning}")
    for row in payload["purposes"]:
        model = f"{row['resolves_to']} ({row['rule']})" if row["rule"] else "no model"
        yield printable(f"{row['purpose'] or '(no name)'}: {model}")
        for detail in (row["description"], _choice(row["assignment"]), row["problem"]):
            if detail:
                yield f"  {printable(detail)}"
        for item in items(row["plan"], payload["plan"]):
            yield f"  {printable(item_sentence(item))}"
    if payload["plan"]["settings"]:
        yield printable("All: " + "; ".join(map(item_sentence, items(payload["plan"]))))
    if not payload["purposes"]:
        yield "No plugin registers a purpose, and the configuration has none"


def _choice(assignment: dict[str, Any] | None) -> str | None:
    if assignment is None or not assignment["ignored_because"]:
        return None
    chosen = f"{assignment['model_id']}, which was chosen {assignment['assigned_at'][:10]}"
    return f"Ignores {chosen}: {assignment['ignored_because']}"

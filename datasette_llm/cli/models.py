"""`datasette llm models` and `datasette llm explain`: these pages in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..console.call_policies import differences, items, sentence
from ..console.explain import ActorError, explained, parse_actor
from ..console.models import SOURCES, STATES, matching, models
from ..hooks import dispatch
from .site import Site, as_json, run, site_options
from .terminal import echo, printable

if TYPE_CHECKING:
    Actor = Mapping[str, Any] | None

ABILITIES = ("streams", "schemas", "tools", "attachments")


def _actor(context: click.Context, option: click.Parameter, text: str) -> Actor:
    try:
        return parse_actor(text)
    except ActorError as error:
        raise click.BadParameter(str(error)) from None


@click.command("models")
@click.argument("search", required=False, default="")
@click.option("-p", "--purpose", help="The purpose, as in datasette.yaml")
@click.option("--provider", default="", help="Only models of this provider")
@click.option(
    "--availability",
    type=click.Choice(list(STATES)),
    default=None,
    help="Only models in this state",
)
@click.option("--key", type=click.Choice(list(SOURCES)), help="Only models with this key source")
@click.option("--json", "wants_json", is_flag=True, help="All data, as JSON")
@site_options
def models_command(
    search: str,
    purpose: str | None,
    provider: str,
    availability: str | None,
    key: str | None,
    wants_json: bool,
    site: Site,
) -> None:
    """List every model that llm knows, and whether it is available

    SEARCH: words that all have to occur in the id, an alias or the provider.

    \b
    Example:
        datasette llm models gpt -c datasette.yaml --availability no-key
    """

    async def work() -> None:
        async with site.started() as datasette:
            listed = await models(datasette, purpose)
        filters = {"provider": provider, "availability": availability or "", "key": key or ""}
        listed["models"] = matching(listed["models"], q=search, **filters)
        if wants_json:
            as_json(listed)
        else:
            _print_models(listed)

    run(work())


def _print_models(listed: dict[str, Any]) -> None:
    for row in listed["models"]:
        able = ", ".join(name for name in ABILITIES if row[name])
        state = STATES[row["state"]]
        why = row["refusal"]["detail"] if row["refusal"] else _key_of(row)
        default = " (default)" if row["default"] else ""
        echo(printable(f"{row['model_id']}{default}: {state}"))
        thread = "; runs in a thread" if row["threaded"] else ""
        echo(f"    {printable(row['provider'])}; {able or 'nothing more than text'}{thread}")
        echo(f"    {printable(why)}")
        for line in _own_call_policies(row, listed["plans"]):
            echo(f"    {printable(line)}")
    _print_common(listed["plans"])
    if listed["filter_hooks"]:
        echo(
            "Plugins may hide further models from some actors; 'datasette llm explain' asks them",
            err=True,
        )


def _print_common(call_policies: list[dict[str, Any]]) -> None:
    """Print the call policies of all models; nothing if they are the default."""
    if not call_policies[0]["settings"] and len(call_policies) == 1:
        return
    for purpose, common in differences(call_policies, []):
        scope = "All" if purpose is None else f"Purpose {purpose}"
        echo(printable(f"{scope}: {'; '.join(map(sentence, common))}"), err=True)


def _own_call_policies(row: dict[str, Any], common: list[dict[str, Any]]) -> Iterator[str]:
    """The items of a model's own call policies, and problems of its fallbacks."""
    for purpose, own in differences(row["plans"], common):
        prefix = "" if purpose is None else f"for {purpose}: "
        yield from (f"{prefix}{sentence(item)}" for item in own)


def _key_of(row: dict[str, Any]) -> str:
    key = row["key"]
    if key["source"] == "not-needed":
        return "needs no key"
    if key["place"]:
        return f"key: {key['place']}"
    return f"key: set {' or '.join(key['secrets'])}"


@click.command("explain")
@click.argument("model", required=False)
@click.option("-p", "--purpose", help="The purpose, as in datasette.yaml")
@click.option(
    "--actor",
    default="",
    metavar="JSON",
    callback=_actor,
    help="The actor, as Datasette's actor dictionary; without it no actor",
)
@click.option("--json", "wants_json", is_flag=True, help="The decision as JSON")
@site_options
def explain_command(
    model: str | None,
    purpose: str | None,
    actor: Mapping[str, Any] | None,
    wants_json: bool,
    site: Site,
) -> None:
    """Explain why a model is, or is not, available

    MODEL is an id or alias; without it the default is explained. The exit status is 1 if the
    model is not available.

    \b
    Example:
        datasette llm explain gpt-4o-mini -p chat --actor '{"id": "ana"}' -c datasette.yaml
    """

    async def work() -> None:
        async with site.started() as datasette:
            with dispatch.answered_in_time():
                found = await explained(datasette, model, purpose, actor)
        if wants_json:
            as_json(found)
        else:
            _print_decision(found)
        if not (found["decision"] or {}).get("available"):
            raise click.exceptions.Exit(1)

    run(work())


def _print_decision(found: dict[str, Any]) -> None:
    decision, default = found["decision"], found["default"]
    if decision is not None:
        for step in decision["steps"]:
            rule = f"{step['rule']} ({step['plugin']})" if step["plugin"] else step["rule"]
            echo(printable(f"{'yes' if step['passed'] else 'NO ':3}  {rule}: {step['detail']}"))
        echo("Available" if decision["available"] else "Not available")
    if decision is not None and decision["available"]:
        for item in items(found["plan"]):
            echo(printable(f"     {sentence(item)}"))
    if default is None:
        echo("There is no default")
    elif default["error"]:
        echo(printable(f"The default: plugin {default['plugin']!r} failed: {default['error']}"))
    else:
        by = f"plugin {default['plugin']!r}" if default["plugin"] else default["rule"]
        echo(printable(f"The default is {default['model_id']}, by {by}"))

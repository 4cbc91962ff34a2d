"""`datasette llm cache`: what the response cache keeps, and clearing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..console.cache import clear, kept, sentence
from .site import Site, as_json, run, site_options
from .terminal import echo, printable


@click.command("cache")
@click.option("-p", "--purpose", help="Only the answers for this purpose")
@click.option("--clear", "clears", is_flag=True, help="Remove them")
@site_options
@click.option("--json", "wants_json", is_flag=True, help="All data as JSON")
def cache_command(purpose: str | None, clears: bool, site: Site, wants_json: bool) -> None:
    """Show how much the response cache keeps, or clear it

    By purpose, and by the setting that keeps it; never what is in an answer.

    \b
    Example:
        datasette llm cache -c datasette.yaml --internal internal.db
        datasette llm cache --purpose enrichments --clear --internal internal.db
    """
    if site.internal is None:
        raise click.UsageError("Give --internal: that is where answers are kept")
    run(_cache(site, purpose, clears, wants_json))


async def _cache(site: Site, purpose: str | None, clears: bool, wants_json: bool) -> None:
    async with site.started() as datasette:
        payload = await (clear if clears else kept)(datasette, purpose)
    if wants_json:
        as_json(payload)
        return
    if not payload["ok"]:
        raise click.ClickException(printable(payload["error"]))
    if clears:
        echo(sentence(payload))
        return
    for line in _lines(payload):
        echo(printable(line))


def _lines(payload: dict[str, Any]) -> Iterator[str]:
    for each in payload["sizes"]:
        size = f"{each['answers']:,} answers, {each['bytes'] / 1_000_000:,.1f} MB"
        yield f"{each['purpose'] or '(no purpose)'}: {size} ({each['setting']})"
    if not payload["sizes"]:
        yield "Nothing is kept"
    if not payload["settings"]:
        yield "The configuration has no cache, so nothing will be kept"

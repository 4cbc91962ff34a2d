"""`datasette llm test`: the page's tests in a terminal."""

from __future__ import annotations

from typing import Any

import click

from ..console.log.formatting import duration
from ..console.probe import Probe, probe_model, probe_purpose
from ..providers.failures import LABELS
from .log_table import printable
from .site import Site, as_json, run, site_options


@click.command("test")
@click.argument("model_id", metavar="[MODEL]", required=False)
@click.option("-p", "--purpose", help="The purpose to test for; without MODEL all its models")
@click.option("--json", "json_wanted", is_flag=True, help="All that is known, as a JSON object")
@site_options
def test_command(model_id: str | None, purpose: str | None, json_wanted: bool, site: Site) -> None:
    """Send a tiny real prompt to a model, or to every model that a purpose may use

    It goes the way of a plugin's prompt, so that policy, keys, plugins, the record and the
    configured options take part. Each model has 30 seconds. The exit status is 1 when a test
    failed.

    \b
    Example:
        datasette llm test gpt-4o-mini -c datasette.yaml --internal internal.db
    """
    if not model_id and not purpose:
        raise click.UsageError("Name a model, a purpose with -p, or both")
    payload: dict[str, Any] = {}
    run(_test(site, model_id, purpose, payload, quiet=json_wanted))
    if json_wanted:
        as_json(payload)
    if not payload["ok"]:
        raise click.exceptions.Exit(1)


async def _test(
    site: Site, model_id: str | None, purpose: str | None, payload: dict[str, Any], *, quiet: bool
) -> None:
    async with site.started() as datasette:
        if model_id:
            trial = await probe_model(datasette, model_id, purpose)
            payload |= trial.payload()
            if not quiet:
                _tell(trial)
            return
        told = _ignore if quiet else _tell
        payload |= await probe_purpose(datasette, purpose or "", told=told)
        if not quiet:
            _tell_rest(payload)


def _ignore(trial: Probe) -> None:
    pass


def _tell(trial: Probe) -> None:
    """A line for a trial, as soon as it has ended; what was said stands below it."""
    outcome = "ok" if trial.error is None else LABELS[trial.error.kind]
    took = f"in {duration(trial.latency_ms)}"
    if trial.first_chunk_ms is not None:
        took += f", first chunk after {duration(trial.first_chunk_ms)}"
    who = f"{trial.model_id} ({trial.provider})" if trial.provider else trial.model_id
    click.echo(f"{printable(who)}: {outcome} {took}{_tokens(trial)}")
    for text in [trial.text, trial.error.message if trial.error else ""]:
        for line in text.splitlines():
            click.echo(f"    {printable(line)}")


def _tokens(trial: Probe) -> str:
    counts = [f"{n} {name}" for name, n in trial.usage.items() if n is not None]
    return f", tokens: {', '.join(counts)}" if counts else ""


def _tell_rest(payload: dict[str, Any]) -> None:
    if payload["problem"]:
        click.echo(printable(payload["problem"]), err=True)
    if payload["left_out"]:
        click.echo(f"{payload['left_out']} more models were not tested", err=True)
    good = sum(result["ok"] for result in payload["results"])
    click.echo(f"{good} of {len(payload['results'])} answered")

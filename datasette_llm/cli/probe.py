"""`datasette llm test`: probes of models in a terminal."""

from __future__ import annotations

from typing import Any

import click

from ..console.formatting import duration
from ..console.navigation import LOG
from ..console.probe import Probe, probe_model, probe_purpose
from ..providers.failures import LABELS
from .site import Site, as_json, run, site_options
from .terminal import echo, printable


@click.command("test")
@click.argument("model_id", metavar="[MODEL]", required=False)
@click.option("-p", "--purpose", help="The purpose; without MODEL all its models are tested")
@click.option("--json", "wants_json", is_flag=True, help="All data, as a JSON object")
@site_options
def test_command(model_id: str | None, purpose: str | None, wants_json: bool, site: Site) -> None:
    """Send a tiny real prompt to a model, or to every model that a purpose may use

    As for a plugin's prompt, policy, keys, plugins, call log and configured options apply. Each
    model has 30 seconds. The exit status is 1 if a test fails.

    \b
    Example:
        datasette llm test gpt-4o-mini -c datasette.yaml --internal internal.db
    """
    if not model_id and not purpose:
        raise click.UsageError("Name a model, a purpose with -p, or both")
    payload: dict[str, Any] = {}
    run(_test(site, model_id, purpose, payload, quiet=wants_json))
    if wants_json:
        as_json(payload)
    if not payload["ok"]:
        raise click.exceptions.Exit(1)


async def _test(
    site: Site, model_id: str | None, purpose: str | None, payload: dict[str, Any], *, quiet: bool
) -> None:
    async with site.started() as datasette:
        if model_id:
            probe = await probe_model(datasette, model_id, purpose)
            payload |= probe.payload()
            if not quiet:
                _print_probe(probe)
            return
        on_probe = _ignore if quiet else _print_probe
        payload |= await probe_purpose(datasette, purpose or "", on_probe=on_probe)
        if not quiet:
            _print_summary(payload)


def _ignore(probe: Probe) -> None:
    pass


def _print_probe(probe: Probe) -> None:
    """Print a probe as one line, with the answer or the error below."""
    outcome = "ok" if probe.error is None else LABELS[probe.error.kind]
    took = f"in {duration(probe.latency_ms)}"
    if probe.first_chunk_ms is not None:
        took += f", first chunk after {duration(probe.first_chunk_ms)}"
    name = f"{probe.model_id} ({probe.provider})" if probe.provider else probe.model_id
    echo(f"{printable(name)}: {outcome} {took}{_tokens(probe)}")
    for text in [probe.text, probe.error.message if probe.error else ""]:
        for line in text.splitlines():
            echo(f"    {printable(line)}")
    if probe.error and probe.call_id:
        echo(f"    call log: {LOG}/{probe.call_id}")


def _tokens(probe: Probe) -> str:
    counts = [f"{n} {name}" for name, n in probe.usage.items() if n is not None]
    return f", tokens: {', '.join(counts)}" if counts else ""


def _print_summary(payload: dict[str, Any]) -> None:
    if payload["problem"]:
        echo(printable(payload["problem"]), err=True)
    if payload["removed"]:
        removed = printable(", ".join(payload["removed"]))
        echo(f"Not tested, as policy removes them: {removed}", err=True)
    if payload["left_out"]:
        echo(f"{payload['left_out']} more models were not tested", err=True)
    good = sum(result["ok"] for result in payload["results"])
    echo(f"{good} of {len(payload['results'])} answered")

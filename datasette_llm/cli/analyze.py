"""`datasette llm analyze`: advice about a table, in a terminal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console.advice import payloads
from ..consultant.advice.consultation import ConsultationRequest, consult
from ..consultant.advice.previews import make_preview
from ..consultant.advice.progress import ClaimChecked, Progress, Step, ignored
from .site import Site, run, site_options
from .terminal import echo, echo_json, printable

if TYPE_CHECKING:
    from datasette.app import Datasette


@click.command("analyze")
@click.argument("database", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("table")
@click.option("-m", "--model", "model_id", help="Model id or alias; otherwise the default")
@click.option("-q", "--question", help="What you want to know in particular")
@click.option("--exclude", multiple=True, metavar="COLUMN", help="Leave a column out")
@click.option("--no-model", is_flag=True, help="Show what code finds, and ask no model")
@click.option("--preview", "preview_only", is_flag=True, help="Show what would be sent, only")
@click.option("--json", "as_json", is_flag=True, help="Everything, as a JSON object")
@site_options
def analyze_command(
    database: Path,
    table: str,
    model_id: str | None,
    question: str | None,
    exclude: tuple[str, ...],
    no_model: bool,
    preview_only: bool,
    as_json: bool,
    site: Site,
) -> None:
    """Find what is remarkable about a table, and ask a model for advice

    DATABASE is a SQLite file. No permissions are checked: a user who can read the file may analyze
    all of it. The consultation is stored in the internal database. The exit status is 1 when there
    was no advice.

    \b
    Example:
        datasette llm analyze pets.db pets --no-model
    """
    if no_model and (model_id or question or preview_only):
        raise click.UsageError("--no-model sends nothing: leave out -m, -q and --preview")
    fields = {"exclude": list(exclude)}
    fields |= {k: [v] for k, v in (("model_id", model_id), ("question", question)) if v}
    payload: dict[str, Any] = {}
    work = _preview if preview_only else partial(_consult, with_model=not no_model)
    run(_analyze(site, database, table, fields, partial(work, payload=payload, quiet=as_json)))
    if as_json:
        echo_json(payload, indent=2)
    if not preview_only and payload["consultation"]["outcome"] != "ok":
        raise click.exceptions.Exit(1)


Work = Callable[["Datasette", ConsultationRequest], Awaitable[None]]


async def _analyze(
    site: Site, path: Path, table: str, fields: dict[str, list[str]], work: Work
) -> None:
    async with site.started(str(path)) as datasette:
        database = await _database(datasette, path, table)
        request = await payloads.consultation_request(datasette, database, table, fields)
        await work(datasette, replace(request, unrestricted=True))


async def _preview(
    datasette: Datasette, request: ConsultationRequest, *, payload: dict[str, Any], quiet: bool
) -> None:
    preview = await make_preview(datasette, request, None)
    payload |= await payloads.preview_payload(datasette, preview)
    if not quiet:
        _echo_preview(payload)


async def _consult(
    datasette: Datasette,
    request: ConsultationRequest,
    *,
    with_model: bool,
    payload: dict[str, Any],
    quiet: bool,
) -> None:
    on_progress = ignored if quiet else _echo_progress
    done = await consult(datasette, request, None, with_model=with_model, on_progress=on_progress)
    payload |= await payloads.consultation_payload(done.row)
    if done.unrecorded is not None:
        echo(done.unrecorded, err=True)
    if not quiet:
        _echo_findings(payload["consultation"])
        _echo_consultation(payload["consultation"])


async def _database(datasette: Datasette, path: Path, table: str) -> str:
    """The name of the file's database; the table is in it."""
    name = next(n for n, db in datasette.databases.items() if db.path == str(path))
    db = datasette.get_database(name)
    if not (await db.table_exists(table) or await db.view_exists(table)):
        raise click.ClickException(f"{path} has no table or view {printable(table)}")
    return str(name)


def _echo_progress(event: Progress) -> None:
    match event:
        case Step(sentence):
            echo(f"{printable(sentence)}…", err=True)
        case ClaimChecked(index, check):
            echo(f"claim {index + 1}: {_status(check)}", err=True)


def _status(check: Mapping[str, Any]) -> str:
    return str(check["status"]).replace("_", " ")


def _echo_preview(payload: dict[str, Any]) -> None:
    for title in ("system_prompt", "user_prompt"):
        echo(f"{title.replace('_', ' ')}:")
        _echo_text(payload[title])
    cost = payload["cost_dollars"]
    price = "unknown" if cost is None else f"${cost:.4f}"
    echo(f"model: {printable(payload['model_id'] or 'none')}")
    if payload["fallbacks"]:
        echo(f"when that fails: {printable(', '.join(payload['fallbacks']))}")
    for sentence in payload["cut"]:
        echo(printable(sentence))
    echo(f"tokens: about {payload['input_tokens']:,}; cost: about {price}")
    if payload["problem"]:
        echo(printable(payload["problem"]), err=True)


def _echo_findings(consultation: dict[str, Any]) -> None:
    dismissed = [each for each in consultation["findings"] if each.get("dismissed")]
    for each in consultation["findings"]:
        if each in dismissed:
            continue
        echo(f"{each['severity']}: {printable(each['kind'])}: {printable(each['sentence'])}")
        if each["examples"]:
            echo(f"    such as {printable(', '.join(map(str, each['examples'])))}")
    if not consultation["findings"] and consultation["outcome"] == "ok":
        echo("Nothing remarkable was found")
    if dismissed:
        echo(f"({len(dismissed)} more were dismissed)")
    if consultation["findings_note"]:
        echo(printable(f"({consultation['findings_note']})"))


def _echo_consultation(consultation: dict[str, Any]) -> None:
    if consultation["outcome"] != "ok":
        echo(printable(f"{consultation['outcome']}: {consultation['error_message']}"))
        return
    advice = consultation["advice"] or {}
    for title in ("suggested_action", "reasoning_summary"):
        _echo_titled(title, advice.get(title))
    for title, text in (consultation["derived"] or {}).items():
        _echo_titled(title, text)
    for flag, check in zip(advice.get("risk_flags", ()), consultation["checks"], strict=True):
        _echo_flag(flag, check)
    for sentence in consultation["rejected"]:
        echo(f"rejected: {printable(sentence)}")


def _echo_titled(title: str, text: str | None) -> None:
    if text:
        echo(f"\n{title.replace('_', ' ')}:")
        _echo_text(text)


def _echo_flag(flag: Mapping[str, Any], check: Mapping[str, Any]) -> None:
    where = f" in {flag['column']}" if flag["column"] is not None else ""
    echo(f"\n{flag['kind']}{printable(where)}: {printable(flag['claim'])}")
    echo(f"    {_status(check)}: {printable(check['sentence'])}")
    if check["reason"]:
        echo(f"    ({printable(check['reason'])})")


def _echo_text(text: str) -> None:
    for line in text.splitlines():
        echo(f"    {line}")

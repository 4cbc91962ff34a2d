"""`datasette llm eval`: compare models on the same cases, in a terminal and in CI."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ..evaluation import results, run, store
from ..evaluation.definition import Definition, EvaluationError
from ..evaluation.estimate import Estimate, estimate, estimate_left
from ..evaluation.sources import read_cases
from ..evaluation.store import Evaluation
from .site import Site, site_options
from .site import run as run_command
from .terminal import echo, echo_json, printable

if TYPE_CHECKING:
    from datasette.app import Datasette

LISTED = 20


@click.group("eval")
def eval_command() -> None:
    """Compare models on the same cases"""


@eval_command.command("run")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("-p", "--purpose", help="Take the newest recorded calls for a purpose")
@click.option("-m", "--model", "models", multiple=True, help="A model to compare; up to four")
@click.option("--limit", type=int, help="How many cases")
@click.option("--resume", metavar="ID", help="Go on with an evaluation that was stopped")
@click.option("--dry-run", is_flag=True, help="Show what would be asked, and send nothing")
@click.option("-y", "--yes", is_flag=True, help="Send the requests without asking")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON")
@site_options
def run_eval_command(
    file: Path | None,
    purpose: str | None,
    models: tuple[str, ...],
    limit: int | None,
    resume: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    site: Site,
) -> None:
    """Ask models about cases, check the answers, and compare them

    The cases are those of a FILE in YAML, or the newest recorded calls for a purpose. Nothing is
    sent before you confirm the estimate; in CI, give --yes. No permissions are checked.

    The exit status is 1 if a threshold of the FILE is missed, or answers are missing. A run that
    was stopped goes on with --resume, and asks nothing twice.

    \b
    Example:
        datasette llm eval run evaluation.yaml --yes --internal internal.db
        datasette llm eval run -p summaries -m haiku -m mini --limit 60 --internal internal.db
    """
    if sum(each is not None for each in (file, purpose, resume)) != 1:
        raise click.UsageError("Give a FILE, --purpose, or --resume")
    if resume is not None and (models or limit is not None):
        raise click.UsageError("--resume goes on as it was made: leave out --model and --limit")
    if resume is not None and site.internal is None:
        raise click.UsageError("Give --internal: the evaluation is stored there")
    files: tuple[str, ...] = ()
    definition = None
    if resume is None:
        raw = {"purpose": purpose, "cases": {"calls": {}}} if file is None else _read(file)
        definition, files = _definition(raw, models, limit, file.parent if file else Path())
    run_command(_run(site, files, definition, resume, dry_run, yes, as_json))


@eval_command.command("show")
@click.argument("evaluation_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON")
@site_options
def show_command(evaluation_id: str, as_json: bool, site: Site) -> None:
    """Show what came of an evaluation

    The exit status is 1 if a threshold is missed, or answers are missing.

    \b
    Example:
        datasette llm eval show 01kc1q8wz3f8e9s0m2v4t6x8y0 --internal internal.db
    """
    run_command(_show(site, evaluation_id, as_json))


@eval_command.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=LISTED, help="How many")
@click.option("--json", "as_json", is_flag=True, help="As JSON")
@site_options
def list_command(limit: int, as_json: bool, site: Site) -> None:
    """List the evaluations, the newest first

    \b
    Example:
        datasette llm eval list --internal internal.db
    """
    run_command(_list(site, limit, as_json))


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.ClickException(f"{file} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise click.ClickException(f"{file} has to hold a mapping with candidates and cases")
    return raw


def _definition(
    raw: dict[str, Any], models: tuple[str, ...], limit: int | None, folder: Path
) -> tuple[Definition, tuple[str, ...]]:
    """The evaluation of a file and of options, and the database that it needs."""
    if models:
        raw = raw | {"candidates": list(models)}
    cases = raw.get("cases")
    source = dict(cases) if isinstance(cases, Mapping) else {}
    kind, content = next(iter(source.items()), ("", None))
    inner = dict(content) if isinstance(content, Mapping) else {}
    files: tuple[str, ...] = ()
    if isinstance(content, str) and kind == "jsonl":
        inner = {"file": content}
    if kind == "jsonl" and "file" in inner:
        inner = {**inner, "text": _text(folder / str(inner.pop("file")))}
    elif kind in ("table", "query") and isinstance(inner.get("database"), str):
        path = folder / inner["database"]
        files, inner["database"] = (str(path),), path.stem
    if limit is not None:
        inner["limit"] = limit
    if inner or content == {}:
        raw = raw | {"cases": source | {kind: inner}}
    try:
        return Definition.of(raw), files
    except EvaluationError as error:
        raise click.ClickException(str(error)) from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from None


async def _run(
    site: Site,
    files: tuple[str, ...],
    definition: Definition | None,
    resume: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    async with site.started(*files) as datasette:
        if definition is None:
            evaluation = await _known(datasette, resume or "")
            found = await estimate_left(datasette, evaluation, None)
        else:
            found = await estimate(datasette, definition, None)
        if dry_run or (found.requests and not as_json):
            _echo_estimate(found, as_json)
        if dry_run:
            return
        if found.requests and not _confirmed(f"{found.requests:,} requests", yes, as_json):
            return
        if definition is not None:
            left_out = Counter[str]()
            cases = read_cases(datasette, definition, left_out, found.cases)
            evaluation = await store.create(datasette, definition, cases, left_out, None)
        await _finish(datasette, evaluation)
        await _echo_result(datasette, evaluation, as_json)


def _confirmed(what: str, yes: bool, as_json: bool) -> bool:
    """Whether the requests may be sent."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{what} would be sent: give --yes to confirm, or --dry-run")
    return click.confirm(f"Send them? ({what})", err=as_json)


async def _finish(datasette: Datasette, evaluation: Evaluation) -> None:
    """Ask what has no answer; when it is interrupted, what has come is stored."""
    running = run.start(datasette, evaluation, None)
    try:
        await running.ended()
    finally:
        await running.stop()
        if await _answered(datasette, evaluation) < evaluation.request_count:
            echo(f"Go on with: datasette llm eval run --resume {evaluation.id}", err=True)
    if running.failure is not None:
        raise click.ClickException(printable(running.failure))


async def _answered(datasette: Datasette, evaluation: Evaluation) -> int:
    counts = await store.answer_counts(datasette, [evaluation.id])
    return counts.get(evaluation.id, 0)


async def _known(datasette: Datasette, evaluation_id: str) -> Evaluation:
    found = await store.evaluation(datasette, evaluation_id)
    if found is None:
        raise click.ClickException(f"There is no evaluation {printable(evaluation_id)}")
    return found


async def _show(site: Site, evaluation_id: str, as_json: bool) -> None:
    async with site.started() as datasette:
        await _echo_result(datasette, await _known(datasette, evaluation_id), as_json)


async def _list(site: Site, limit: int, as_json: bool) -> None:
    async with site.started() as datasette:
        found = await store.evaluations(datasette, None, limit)
    if as_json:
        rows = [_row(evaluation, answered) for evaluation, answered in found]
        echo_json({"ok": True, "evaluations": rows}, indent=2)
        return
    for evaluation, answered in found:
        state = "" if answered == evaluation.request_count else f" ({answered:,} answered)"
        echo(
            printable(
                f"{evaluation.id}  {evaluation.created_at[:16]}  {evaluation.name}: "
                f"{evaluation.request_count:,} requests{state}"
            )
        )
    if not found:
        echo("There are no evaluations")


def _row(evaluation: Evaluation, answered: int) -> dict[str, Any]:
    names = ("id", "created_at", "name", "purpose", "actor_id", "case_count", "request_count")
    return {name: getattr(evaluation, name) for name in names} | {"answered": answered}


def _echo_estimate(found: Estimate, as_json: bool) -> None:
    if as_json:
        echo_json({"ok": True, "estimate": found.payload()}, indent=2)
        return
    echo(f"{found.cases:,} cases, {found.requests:,} requests")
    for reason, count in found.left_out.items():
        echo(f"  left out {count:,}: {reason}")
    for each in found.candidates:
        cost = "price unknown" if each.cost_dollars is None else f"about ${each.cost_dollars:.4f}"
        tokens = f"{each.input_tokens:,} tokens in, {each.output_tokens:,} out"
        echo(printable(f"  {each.label}: about {tokens}, {cost}"))
    if found.seconds is not None:
        echo(f"  about {found.seconds:,.0f} s" if found.seconds >= 1 else "  less than a second")


async def _echo_result(datasette: Datasette, evaluation: Evaluation, as_json: bool) -> None:
    found = await results.summary(datasette, evaluation)
    problems = results.missed(found, evaluation, evaluation.definition.thresholds)
    judgings = await store.judgings(datasette, evaluation.id)
    if as_json:
        candidates = [each.payload() for each in found.candidates]
        row = _row(evaluation, found.answered) | {"left_out": dict(evaluation.left_out)}
        payload = {"evaluation": row, "candidates": candidates, "missed": problems}
        payload["judgings"] = list(map(asdict, judgings))
        echo_json({"ok": True} | payload, indent=2)
    else:
        echo(printable(f"{evaluation.id}  {evaluation.name}"))
        for each in found.candidates:
            _echo_candidate(each)
        for judging in judgings:
            echo(printable(f"judged by {judging.judge}, by the rubric: {judging.rubric}"))
        for problem in problems:
            echo(printable(f"missed: {problem}"), err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _echo_candidate(found: results.CandidateResult) -> None:
    cost = found.cost_nanodollars
    parts = [
        f"{found.answers:,} answers",
        f"{found.kept:,} kept" if found.kept else "",
        f"{found.failures:,} failed",
        f"{found.passed:,} passed",
        "cost unknown" if cost is None else f"${cost / 1e9:.4f}",
        "" if found.median_ms is None else f"median {found.median_ms:,.0f} ms",
    ]
    echo(printable(f"{found.label}: {', '.join(filter(None, parts))}"))
    if found.sentence:
        echo(printable(f"  {found.sentence}"))
    for name, count in found.failed_checks.items():
        echo(printable(f"  not {name}: {count:,}"))

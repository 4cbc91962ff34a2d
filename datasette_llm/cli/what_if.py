"""`datasette llm what-if`: the page What if in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..console.formatting import counted, dollars, duration, number, percent, times
from ..evaluation.what_if import what_if
from ..hooks import dispatch
from ..log.queries import Filter
from ..sanitize import well_formed
from .site import Site, as_json, run, site_options
from .terminal import echo, printable

_HEAD = (
    "MODEL",
    "COST",
    "OF RECORDED",
    "USED",
    "FAILURES",
    "MEDIAN",
    "95TH",
    "WITH ITS OWN TOKENS",
)


@click.command("what-if")
@click.option("-p", "--purpose", help="Only calls for this purpose, and its models")
@click.option("-m", "--model", help="Only calls of the model with this id")
@click.option("--actor", help="Only calls for the actor with this id")
@click.option("--tag", multiple=True, metavar="KEY:VALUE", help="Only calls with this tag")
@click.option("--since", metavar="TIME", help="Only calls from this date or time on, in UTC")
@click.option("--until", metavar="TIME", help="Only calls before this date or time")
@site_options
@click.option("--json", "wants_json", is_flag=True, help="All data as JSON")
def what_if_command(
    site: Site, wants_json: bool, tag: tuple[str, ...], **filters: str | None
) -> None:
    """Show what recorded calls would have cost with other models

    From their tokens and today's prices, beside what they did cost, with latency and failures of
    the models that were used. Without times, the calls of the last 30 days count.

    \b
    Example:
        datasette llm what-if -p chat -c datasette.yaml --internal internal.db
    """
    if site.internal is None:
        raise click.UsageError("Give --internal: Datasette's internal database has the call log")
    given: dict[str, Any] = {name: value and well_formed(value) for name, value in filters.items()}
    log_filter = Filter(**given, tag=tuple(map(well_formed, tag)))
    run(_what_if(site, log_filter, wants_json))


async def _what_if(site: Site, log_filter: Filter, wants_json: bool) -> None:
    async with site.started() as datasette:
        with dispatch.answered_in_time():
            payload = await what_if(datasette, log_filter, None)
    if wants_json:
        as_json(payload)
        return
    for line in _lines(payload):
        echo(line)


def _lines(payload: dict[str, Any]) -> Iterator[str]:
    days = payload["default_days"]
    yield counted(payload["calls"], "call") + (f" of the last {days} days" if days else "")
    if not payload["calls"]:
        return
    if payload["complete_since"]:
        yield f"Only those since {payload['complete_since']}: there are too many to add up"
    left_out = payload["calls_without_tokens"]
    yield (
        f"{number(payload['input_tokens'])} tokens in, "
        f"{number(payload['cache_read_tokens'])} of them cached, "
        f"{number(payload['output_tokens'])} out"
        + (f"; {number(left_out)} calls without token counts are left out" if left_out else "")
    )
    rows = [_HEAD, _recorded(payload), *map(_model, payload["models"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        *middle, last = rest
        cells += [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        cells.append(last)
        yield "  ".join(cells).rstrip()
    yield payload["caveat"]


def _recorded(payload: dict[str, Any]) -> tuple[str, ...]:
    recorded = payload["recorded"]
    cost = dollars(recorded["cost_dollars"]) or "unknown"
    if recorded["calls_without_cost"]:
        cost += f" and {number(recorded['calls_without_cost'])} calls of unknown cost"
    return ("(as recorded)", cost, "", *_figures(recorded | {"calls": payload["calls"]}), "")


def _model(row: dict[str, Any]) -> tuple[str, ...]:
    cost = dollars(row["cost_dollars"]) or "unknown price"
    ratio = "" if row["ratio"] is None else percent(row["ratio"])
    own = _own_tokens(row["own_tokens"])
    return (printable(row["model_id"]), cost, ratio, *_figures(row["used"]), own)


def _own_tokens(own: dict[str, Any] | None) -> str:
    if own is None:
        return ""
    factors = [
        f"about {times(each['input_tokens'])} in and {times(each['output_tokens'])} out of "
        f"{printable(each['model_id'])} in {counted(each['cases'], 'case')}"
        for each in own["factors"]
    ]
    left_out = own["calls_without_factor"]
    unknown = [f"unknown for {counted(left_out, 'call')}"] if left_out else []
    return "; ".join([*filter(None, [dollars(own["cost_dollars"])]), *factors, *unknown])


def _figures(used: dict[str, Any] | None) -> tuple[str, ...]:
    if used is None:
        return ("", "", "", "")
    elsewhere = " elsewhere" if used.get("elsewhere") else ""
    figures = (number(used["failures"]), duration(used["median_ms"]), duration(used["p95_ms"]))
    return (f"{number(used['calls'])}{elsewhere}", *figures)

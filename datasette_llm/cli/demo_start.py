"""The start page of the demo: what to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from markupsafe import Markup

from ..console.navigation import ADVICE, DOCS, EVALUATIONS, KEYS, LOG, MODELS, ROOT, USAGE
from .demo_advice import DATABASE, TABLE
from .demo_calls import MANIFESTS, PLANNING, QUESTIONS

if TYPE_CHECKING:
    from datasette.app import Datasette

TITLE = "A harbour, and what its models cost"
_NOTE = (
    "Log in with the link that the command printed. Everything here is an example: the calls, the "
    "evaluation and the advice about a table were made by scripted models. No provider was asked."
)
_NO_ARGUMENTS: Mapping[str, str] = MappingProxyType({})
_TURN = """
select id from llm_calls where purpose = ? and outcome = 'ok' and conversation_id in
    (select conversation_id from llm_calls group by conversation_id having count(*) > 3)
order by id desc limit 1
"""
_STEP = """
select id from llm_calls where purpose = ? and outcome = 'ok' and chain_step > 2
order by id desc limit 1
"""
_GROUP = "select group_id from llm_calls where purpose = ? order by id desc limit 1"


class Place(NamedTuple):
    """A place to look at.

    Attributes:
        path: its path, below `base_url`.
        label: the text of its link.
        text: what is seen there.
        arguments: of its address.
    """

    path: str
    label: str
    text: str
    arguments: Mapping[str, str] = _NO_ARGUMENTS

    @property
    def href(self) -> str:
        """Its address, relative to the start page."""
        query = f"?{urlencode(self.arguments)}" if self.arguments else ""
        return f"{self.path.removeprefix('/')}{query}"


async def start_page(
    datasette: Datasette, advice_id: str, evaluation_id: str, now: datetime
) -> dict[str, str]:
    """Title and description for the metadata of the demo's site.

    Args:
        datasette: it has been started, with the calls in its log.
        advice_id: the id of the consultation.
        evaluation_id: the id of the evaluation.
        now: when the calls end.
    """
    places = [place async for place in _places(datasette, now)]
    places += _made(advice_id, evaluation_id)
    items = Markup("\n").join(
        Markup('<li><a href="{}">{}</a>: {}</li>').format(each.href, each.label, each.text)
        for each in places
    )
    html = Markup("<p>{}</p>\n<ul>\n{}\n</ul>").format(_NOTE, items)
    return {"title": TITLE, "description_html": str(html)}


async def _places(datasette: Datasette, now: datetime) -> AsyncIterator[Place]:
    yield Place(ROOT, "Overview", "today, against last week, and what to do next")
    by = {"by": "purpose", "and": "model", "measure": "cost", "period": "90d"}
    yield Place(USAGE, "Usage", "who spends most, and on which model", by)
    today = now.date()
    yesterday = {"outcome": "error", "since": str(today - timedelta(days=1)), "until": str(today)}
    yield Place(LOG, "Yesterday's failures", "a server was overloaded for a while", yesterday)
    examples = (
        (_TURN, QUESTIONS, "A conversation", "of several turns"),
        (_STEP, PLANNING, "A chain", "the model calls tools before it answers"),
    )
    internal = datasette.get_internal_database()
    for sql, purpose, label, text in examples:
        for (call_id,) in (await internal.execute(sql, [purpose])).rows:
            yield Place(f"{LOG}/{call_id}", label, text)
    for (group_id,) in (await internal.execute(_GROUP, [MANIFESTS])).rows:
        yield Place(LOG, "A group", "the manifests of one ship, all at once", {"group": group_id})


def _made(advice_id: str, evaluation_id: str) -> Iterator[Place]:
    analyze = f"/{DATABASE}/{TABLE}/-/llm-analyze"
    yield Place(analyze, "Findings", "what is wrong in the table of arrivals, without a model")
    yield Place(f"{ADVICE}/{advice_id}", "Advice", "the claims of a model, each of them counted")
    evaluation = f"{EVALUATIONS}/{evaluation_id}"
    yield Place(evaluation, "An evaluation", "would a cheaper model answer as well?")
    yield Place(MODELS, "Models", "prices, speed and failures of each")
    yield Place(KEYS, "Keys", "where a key may stand; none is needed here")
    yield Place(DOCS, "Docs", "of the version that runs")

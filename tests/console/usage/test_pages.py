"""The Usage page: who may see it, its figures, its links, and what it makes of nonsense."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.console.usage import window
from datasette_llm.console.usage.chart import axis_steps
from datasette_llm.console.usage.figures import Usage
from datasette_llm.log.totals import Sums
from datasette_llm.log.usage_upkeep import Upkeep
from datasette_llm.testing import ScriptedModel

from ...support.call_log import add, call_row
from ...support.console import ANA, BEN, HOSTILE, Page, assert_framed, assert_harmless

USAGE = "/-/llm/usage"
LOG = "/-/llm/log"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Start = Callable[..., Awaitable[Datasette]]


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette whose call log has some rows, and which ana may view."""

    async def start(*rows: dict[str, Any], **kwargs: Any) -> Datasette:
        datasette = make_datasette({}, **kwargs)
        datasette.config["permissions"] = {"view-llm-log": {"id": "ana"}}
        await datasette.invoke_startup()
        database = datasette.get_internal_database()
        await database.execute_write_fn(lambda connection: add(connection, *rows))
        return datasette

    return start


async def get(datasette: Datasette, path: str = USAGE, status: int = 200, **arguments: Any) -> Any:
    response = await datasette.client.get(path, params=arguments, actor=ANA)
    assert response.status_code == status, response.text
    return response


async def get_json(datasette: Datasette, **arguments: Any) -> Any:
    return (await get(datasette, f"{USAGE}.json", **arguments)).json()


async def page_of(datasette: Datasette, **arguments: Any) -> Page:
    return Page((await get(datasette, **arguments)).text)


# Who may see it


@pytest.mark.parametrize("path", [USAGE, f"{USAGE}.json", f"{USAGE}.csv"])
async def test_p3_nonsense_or_not_only_with_permission(start: Start, path: str) -> None:
    datasette = await start(call_row(NOW, model_id="secret-model"))
    for actor in (None, BEN):
        for query in ("", "?by=nonsense"):
            refused = await datasette.client.get(path + query, actor=actor)
            assert refused.status_code == 403
            assert "secret-model" not in refused.text
    assert "secret-model" in (await get(datasette, path)).text
    posted = await datasette.client.post(path, actor=ANA)
    assert posted.status_code == 405


# Figures

KNOWN = {"input_tokens": 1_000, "output_tokens": 50, "cost_nanodollars": 2_000_000_000}


async def test_p3_figures_of_each_group(start: Start) -> None:
    datasette = await start(
        call_row(NOW, purpose="chat", duration_ms=100.0, first_chunk_ms=20.0, **KNOWN),
        call_row(NOW, purpose="chat", duration_ms=3_000.0),
        call_row(NOW, purpose="rows", outcome="error", failure_kind="timeout"),
        call_row(NOW - 40 * DAY, purpose="old"),
    )
    found = await get_json(datasette, by="purpose")
    chat, rows = found["rows"]
    assert chat | {
        "purpose": "chat",
        "calls": 2,
        "failures": 0,
        "input_tokens": 1_000,
        "cost_dollars": 2.0,
        "calls_without_cost": 1,
        "median_ms": 100,
        "p95_ms": 2_933,
        "first_chunk_median_ms": 20,
    } == {**chat}
    assert (rows["purpose"], rows["failures"], rows["cost_dollars"]) == ("rows", 1, None)
    assert (found["totals"]["calls"], found["totals"]["failures"]) == (3, 1)
    text = (await page_of(datasette, by="purpose")).text
    for shown in ("and 1 call at an unknown price", "1 unpriced", "$2.00", "2.93 s", "As of "):
        assert shown in text


BYS = {
    "model": ["pelican"],
    "purpose": ["chat", None],
    "actor": ["ana"],
    "provider": [None],
    "outcome": ["ok", "running", "error"],
    "failure_kind": [None, "timeout"],
    "day": [NOW.date().isoformat()],
    "month": [f"{NOW:%Y-%m}"],
}


@pytest.mark.parametrize("by", BYS)
async def test_p3_by_each_dimension_and_its_links(start: Start, by: str) -> None:
    """Each row opens its calls: as many as it counts."""
    base = {"actor_id": "ana"}
    moment = max(NOW.replace(hour=0, minute=0, second=0, microsecond=0), NOW - DAY / 24)
    datasette = await start(
        call_row(moment, purpose="chat", cost_nanodollars=7, **base),
        call_row(moment, purpose="chat", outcome=None, **base),
        call_row(moment, outcome="error", failure_kind="timeout", **base),
    )
    rows = (await get_json(datasette, by=by))["rows"]
    assert {row[by] for row in rows} == set(BYS[by])
    page = await page_of(datasette, by=by)
    calls = [link for link in page.links() if link.startswith(LOG)]
    counts = set()
    for link in dict.fromkeys(calls):
        response = await datasette.client.get(link, actor=ANA)
        assert response.status_code == 200, link
        counts.add(response.text.count('class="llm-started"') - 0)
    assert {row["calls"] for row in rows if row[by] is not None} <= counts


@pytest.mark.parametrize("pair", [("model", "actor"), ("purpose", "day"), ("hour", "outcome")])
async def test_p3_two_dimensions_together(start: Start, pair: tuple[str, str]) -> None:
    rows = [call_row(NOW, actor_id=actor, purpose="x") for actor in ("ana", "ben", "ben")]
    datasette = await start(*rows)
    await Upkeep(datasette).update(NOW + 3 * DAY)
    found = await get_json(datasette, by=pair[0], **{"and": pair[1]}, period="7d")
    assert sum(row["calls"] for row in found["rows"]) == 3
    assert all(set(pair) <= row.keys() for row in found["rows"])
    page = await page_of(datasette, by=pair[0], **{"and": pair[1]}, period="7d")
    assert [name for name in ("Actor", "Day", "Outcome") if name.lower() in pair]
    assert page.text.count("ben") >= (pair[1] == "actor")


async def test_p3_by_tag(start: Start) -> None:
    """Of a key; calls without it are a group, too."""
    datasette = await start(*(call_row(NOW) for _ in range(4)))
    sql = "insert into llm_calls select * from llm_calls where 0"
    await datasette.get_internal_database().execute_write(sql)

    def tagged(connection: Any) -> None:
        for number, job in enumerate(["12", "12", "7"]):
            row = call_row(NOW) | {"tags": f'{{"job": {job}, "n": {number}}}'}
            names = list(row)
            places = ", ".join(f":{name}" for name in names)
            connection.execute(f"insert into llm_calls ({', '.join(names)}) values ({places})", row)

    await datasette.get_internal_database().execute_write_fn(tagged)
    found = await get_json(datasette, by="tag", tag_key="job")
    assert [(row["tag"], row["calls"]) for row in found["rows"]] == [(None, 4), ("12", 2), ("7", 1)]
    page = await page_of(datasette, by="tag", tag_key="job")
    link = next(link for link in page.links() if "tag=job%3A12" in link)
    assert (await datasette.client.get(link, actor=ANA)).status_code == 200
    assert "tag job" in page.text


async def test_p3_by_provider(start: Start, register_models: Callable[..., None]) -> None:
    register_models(ScriptedModel("scripted"))
    datasette = await start(call_row(NOW, model_id="scripted"), call_row(NOW))
    rows = (await get_json(datasette, by="provider"))["rows"]
    (provider,) = {row["provider"] for row in rows} - {None}
    for name, count in ((provider, 1), ("(none)", 1), ("no such", 0)):
        assert (await get_json(datasette, provider=name))["totals"]["calls"] == count


# Time


async def test_p3_period_before_and_forecast(start: Start) -> None:
    row = {"cost_nanodollars": 1_000_000_000}
    datasette = await start(
        *(call_row(NOW - n * DAY, **row) for n in range(3)),
        *(call_row(NOW - n * DAY, **row) for n in (7, 8)),
        call_row(NOW - 20 * DAY),
    )
    found = await get_json(datasette, period="7d")
    assert (found["totals"]["calls"], found["before"]["totals"]["calls"]) in ((3, 2), (3, 1))
    month = found["month"]
    assert month["forecast_nanodollars"] >= month["cost_nanodollars"] > 0
    page = await page_of(datasette, period="7d")
    assert "Changes are against" in page.text
    for period in ("90d", "all"):
        found = await get_json(datasette, period=period)
        assert (found["before"] or {"totals": None})["totals"] is None
    text = (await page_of(datasette, period="90d")).text
    assert "There is nothing to compare with" in text


@pytest.mark.parametrize("name", window.PERIODS)
def test_p3_periods_are_as_long_as_before(name: Any) -> None:
    """Also at the end of a long month."""
    for now in (NOW, datetime.datetime(2026, 3, 31, 23, 59, tzinfo=datetime.UTC)):
        found = window.named(name, now, now - 400 * DAY)
        assert found.begin <= found.until(now)
        if found.before is not None:
            end = found.before_end(now)
            assert end is not None
            assert found.before < end <= found.begin


@pytest.mark.parametrize(
    "shown", [{"by": "hour"}, {"and": "hour", "period": "7d"}, {"period": "12-months"}]
)
async def test_p3_no_link_asks_for_too_many_hours(start: Start, shown: dict[str, str]) -> None:
    """A long time is offered by day, and hours only of a time that is short enough."""
    datasette = await start(call_row(NOW - 100 * DAY), call_row(NOW))
    for link in {link for link in (await page_of(datasette, **shown)).links() if USAGE in link}:
        await get(datasette, link)


async def test_p3_empty_log(start: Start) -> None:
    datasette = await start()
    page = await page_of(datasette)
    assert "There are no calls in this time" in page.text
    assert (await get_json(datasette))["rows"] == []
    await datasette.get_internal_database().execute_write("drop table llm_calls")
    assert (await get_json(datasette))["totals"]["calls"] == 0


async def test_p3_time_limit_is_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    datasette = await start(call_row(NOW))
    no_time = partial(Usage.__init__, limit_ms=0)
    monkeypatch.setattr(Usage, "__init__", lambda self, *given, **_: no_time(self, *given[:-1]))
    found = await get_json(datasette)
    assert found["complete_since"]
    assert "the time limit was reached" in (await page_of(datasette)).text


# Chart


async def test_p3_chart_bars_link_to_their_calls(start: Start) -> None:
    rows = [
        call_row(NOW - n * DAY / 3, purpose=f"p{n % 9}&x", cost_nanodollars=9) for n in range(40)
    ]
    datasette = await start(*rows)
    chart = (await get_json(datasette, by="purpose", measure="calls"))["chart"]
    assert (len(chart["begins"]), chart["bar"]) == (30, "day")
    assert len(chart["series"]) == 8 or chart["series"][-1]["is_rest"]
    sums = [sum(series["values"][bar] for series in chart["series"]) for bar in range(30)]
    assert sum(sums) == 40
    page = await page_of(datasette, by="purpose", measure="calls")
    bars = [each["href"] for each in page.all("a") if "data-text" in each]
    assert len(bars) == 30
    for bar in (-1, -2, -5):
        found = await datasette.client.get(bars[bar].replace("/log?", "/log.json?"), actor=ANA)
        assert len(found.json()["rows"]) == sums[bar]


@pytest.mark.parametrize(
    ("value", "measure", "steps"),
    [
        (0, "calls", [1, 0.5, 0]),
        (3, "calls", [3, 1.5, 0]),
        (0.165, "cost", [0.2, 0.1, 0]),
        (113, "calls", [120, 60, 0]),
        (0.0113, "cost", [0.012, 0.006, 0]),
        (9_100, "tokens", [10_000, 5_000, 0]),
    ],
)
def test_p3_axis_fits_its_data(value: float, measure: Any, steps: list[float]) -> None:
    assert axis_steps(value, measure) == pytest.approx(steps)


# Nonsense

NONSENSE = [
    ({"by": "words"}, "by: 'words' is none of model, purpose, actor"),
    ({"and": "words"}, "and: 'words' is none of model"),
    ({"by": "model", "and": "model"}, "and: 'model' is what by is, too"),
    ({"by": "day", "and": "hour"}, "cannot both be times"),
    ({"by": "hour", "period": "90d"}, "By hour, the time can have 31 days at most"),
    ({"by": "tag"}, "tag_key: name the tag to group by"),
    ({"period": "ever"}, "period: 'ever' is none of today, yesterday"),
    ({"measure": "words"}, "measure: 'words' is none of cost, calls"),
    ({"since": "soon"}, "since: 'soon' is no date or time"),
    ({"since": "2026-02-01", "until": "2026-01-01"}, "since is 2026-02-01, which is not before"),
    ({"outcome": "great"}, "There is no outcome 'great'; use one of ok"),
    ({"limit": "many"}, "limit: 'many' is no whole number"),
    ({"modle": "x"}, "There is no argument 'modle'; use one of model"),
    ({"model": ["a", "b"]}, "model is given 2 times; give it once"),
]


@pytest.mark.parametrize(("arguments", "message"), NONSENSE)
async def test_p3_nonsense_is_refused(start: Start, arguments: Any, message: str) -> None:
    """By a sentence; the rest of the form is kept."""
    datasette = await start(call_row(NOW))
    page = Page((await get(datasette, status=400, actor="zoë", **arguments)).text)
    assert message in page.text
    assert page.form()["actor"] == "zoë"
    for name, value in arguments.items():
        if name != "modle" and isinstance(value, str):
            assert page.form()[name] == value
    assert message in (await get(datasette, f"{USAGE}.json", 400, **arguments)).json()["error"]
    assert message in (await get(datasette, f"{USAGE}.csv", 400, **arguments)).text


ODD_TIMES = [
    {"since": "0001-01-01"},
    {"until": "0001-01-02"},
    {"until": "9999-12-31"},
    {"since": "9999-12-31T23:59"},
    {"since": "1969-12-31", "until": "9999-12-31"},
    {"since": f"{NOW:%Y-%m-%dT%H:%M}"},
]


@pytest.mark.parametrize("arguments", ODD_TIMES)
async def test_p3_odd_times(start: Start, arguments: dict[str, str]) -> None:
    datasette = await start(call_row(NOW - DAY), call_row(NOW - 500 * DAY))
    for by in ("model", "day", "month"):
        await get(datasette, by=by, **arguments)


async def test_p3_hostile_names(start: Start) -> None:
    rows = [
        call_row(NOW, model_id=HOSTILE, purpose=HOSTILE, actor_id=HOSTILE, cost_nanodollars=1),
        call_row(NOW, model_id="=cmd()", purpose="x" * 5_000, actor_id="\u202eabc\n\0"),
    ]
    datasette = await start(*rows)
    for by in ("model", "purpose", "actor"):
        page = await page_of(datasette, by=by, **{"model": HOSTILE})
        assert_harmless(page)
        assert HOSTILE in page.text
    table = csv.DictReader(io.StringIO((await get(datasette, f"{USAGE}.csv")).text))
    assert {row["model"] for row in table} == {HOSTILE, "'=cmd()"}


async def test_p3_many_groups(start: Start) -> None:
    """The rest of them is one row; CSV has all."""
    datasette = await start(*(call_row(NOW, purpose=f"purpose {n:04}") for n in range(3_000)))
    found = await get_json(datasette, by="purpose")
    assert (len(found["rows"]), found["more"]["count"], found["more"]["calls"]) == (
        50,
        2_950,
        2_950,
    )
    text = (await get(datasette, f"{USAGE}.csv", by="purpose")).text
    assert len(text.splitlines()) == 3_001
    assert "and 2,950 more" in (await page_of(datasette, by="purpose")).text


async def test_p3_below_a_base_url(start: Start) -> None:
    datasette = await start(call_row(NOW), settings={"base_url": "/prefix/"})
    await assert_framed(datasette, USAGE)


async def test_s5_sums_are_made_in_threads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[bool] = set()
    summary = Sums.summary

    def watched(self: Sums, **options: Any) -> Any:
        seen.add(threading.current_thread() is threading.main_thread())
        return summary(self, **options)

    monkeypatch.setattr(Sums, "summary", watched)
    datasette = await start(call_row(NOW))
    await get(datasette)
    await get(datasette, f"{USAGE}.csv")
    assert seen == {False}


async def test_p3_log_is_written_while_read(start: Start) -> None:
    """And added up; the totals never have less than was there before."""
    datasette = await start(call_row(NOW - DAY))
    database = datasette.get_internal_database()

    async def write() -> None:
        for _ in range(30):
            await database.execute_write_fn(lambda c: add(c, call_row(NOW - DAY)))

    async def add_up() -> None:
        for _ in range(3):
            await Upkeep(datasette).update(NOW + DAY)

    writing = asyncio.gather(write(), add_up())
    counts = [0]
    while not writing.done():
        counts.append((await get_json(datasette))["totals"]["calls"])
    await writing
    counts.append((await get_json(datasette))["totals"]["calls"])
    assert counts == sorted(counts)
    assert counts[-1] == 31

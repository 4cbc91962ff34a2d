"""The figures of the Usage page, for a reading thread."""

from __future__ import annotations

import datetime
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datasette.utils.sqlite import sqlite3

from ...log.queries import RUNNING, cached, tag_keys
from ...log.totals import Measure, Sums, choices, dollars, merged, totals
from ...log.usage import Key, Question, Reader
from ...log.usage_schema import DAY, Unit, floor, following
from ..log.list_request import NONE
from .chart import Chart, measured
from .request import TIMES, UsageRequest
from .window import Window, written

# How far back the forecast looks.
RECENT = 7 * DAY
Groups = dict[Key, Sums]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the page shows.

    Attributes:
        payload: all but the chart, as in JSON.
        chart: the chart.
        window: the time.
        groups: the rows of the table by key, the largest first, and what they add up to.
    """

    payload: dict[str, Any]
    chart: Chart
    window: Window
    groups: list[tuple[Key, Sums]]


class Usage:
    """Answers one request.

    Args:
        connection: a connection to the internal database.
        request: what is asked.
        now: the present.
        providers: the provider of each model.
        limit_ms: for reading calls.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        request: UsageRequest,
        now: datetime.datetime,
        providers: Mapping[str, str],
        limit_ms: float,
    ) -> None:
        self._connection = connection
        self._request = request
        self._now = now
        self._providers = providers
        self._reader = Reader(connection, now, limit_ms)
        self._first = self._reader.first()
        self._window = request.window(now, self._first)
        self._only = self._models_of_provider()

    def figures(self) -> Figures:
        """The figures."""
        window, now = self._window, self._now
        # The groups before the totals: where the time limit is reached, all are since then.
        month = self._month()
        groups = self._groups(window.begin, window.end, durations=True)
        total = self._sums(("outcome",), window.begin, window.end, durations=True)
        everything = merged(total.values())
        measure = self._request.measure or ("cost" if everything.cost_nanodollars else "calls")
        ranked = sorted(groups.items(), key=lambda each: _rank(self._request, measure, *each))
        chart = self._chart(measure, ranked)
        cut = self._reader.cut
        before, before_total = self._before()
        shown = ranked[: self._request.limit]
        rest = merged(sums for _, sums in ranked[self._request.limit :])
        payload = {
            "as_of": _iso(now),
            # None where all calls of the time are counted.
            "complete_since": _iso(cut) if cut else None,
            "period": {
                "name": self._request.period,
                "since": written(window.begin),
                "until": written(window.end) if window.end else None,
            },
            "filter": dict(self._request.given),
            "by": list(self._request.by),
            "tag_key": self._request.tag_key,
            "measure": measure,
            "totals": totals(total),
            "before": before_total,
            "month": month,
            "cache": self._cache(),
            "rows": [row(self._request, key, sums, before) for key, sums in shown],
            "more": {"count": len(ranked) - len(shown)} | rest.summary()
            if len(ranked) > len(shown)
            else None,
            "choices": choices(self._connection) | {"provider": self._provider_choices()},
            "tag_keys": tag_keys(self._connection),
        }
        return Figures(payload, chart, window, ranked)

    def _sums(
        self,
        by: tuple[str, ...],
        begin: datetime.datetime,
        end: datetime.datetime | None,
        *,
        unit: Unit | None = None,
        only: Mapping[str, frozenset[Any]] | None = None,
        durations: bool = False,
    ) -> Groups:
        tag = self._request.tag_key if "tag" in by else None
        allowed = {**self._only, **(only or {})}
        asked = Question(self._request.filter, by, unit, allowed, tag, durations)
        return self._reader.sums(asked, begin, end)

    def _groups(
        self, begin: datetime.datetime, end: datetime.datetime | None, *, durations: bool
    ) -> Groups:
        """The groups that were asked for."""
        unit, names = _split(self._request.by)
        by = tuple("model" if name == "provider" else name for name in names)
        found: Groups = {}
        for key, sums in self._sums(
            tuple(dict.fromkeys(by)), begin, end, unit=unit, durations=durations
        ).items():
            values = dict(zip(_keys(unit, by), key, strict=False))
            wanted = tuple(self._value(name, values) for name in self._request.by)
            _add(found, wanted, sums)
        return found

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name == "provider":
            return self._providers.get(values["model"])
        return values["time"] if name in TIMES else values[name]

    def _chart(self, measure: Measure, ranked: list[tuple[Key, Sums]]) -> Chart:
        """The bars by time, in series of what the calls are grouped by first."""
        window, now = self._window, self._now
        unit = _unit_of(window.until(now) - window.begin)
        kept: Unit = "day" if unit == "week" else unit
        total = self._sums((), window.begin, window.end, unit=kept)
        _, names = _split(self._request.by)
        series: Groups = {}
        sizes: Groups = {}
        if names:
            place = self._request.by.index(names[0])
            for key, sums in ranked:
                _add(sizes, (key[place],), sums)
        largest = Chart.largest(sizes, measure)
        if largest:
            column = "model" if names[0] == "provider" else names[0]
            only = {column: frozenset(self._of_series(names[0], largest))}
            found = self._sums((column,), window.begin, window.end, unit=kept, only=only)
            for (begin, value), sums in found.items():
                shown = self._providers.get(value) if names[0] == "provider" else value
                _add(series, (begin, shown), sums)
        begins = _begins(unit, window, now)
        return Chart.of(
            by=names[0] if names else None,
            measure=measure,
            unit=unit,
            begins=begins,
            total=_by_bar(begins, total),
            series=_by_bar(begins, series),
            names=largest,
            has_rest=len(sizes) > len(largest),
        )

    def _of_series(self, name: str, largest: list[Any]) -> Iterable[Any]:
        if name != "provider":
            return largest
        known = {model for model, provider in self._providers.items() if provider in largest}
        return known | (self._unknown_models() if None in largest else set())

    def _before(self) -> tuple[Groups, dict[str, Any] | None]:
        """The time before: by what was asked, and in all."""
        window = self._window
        begin, end = window.before, window.before_end(self._now)
        if begin is None or end is None:
            return {}, None
        shown = {"since": written(begin), "until": written(end)}
        if self._reader.cut is not None:
            return {}, shown | {"totals": None, "why": "the time limit was reached"}
        if self._first is None or self._first > begin:
            since = written(self._first) if self._first else "now"
            return {}, shown | {"totals": None, "why": f"the call log begins on {since[:10]}"}
        total = totals(self._sums(("outcome",), begin, end, durations=True))
        by_time = set(self._request.by) & set(TIMES)
        groups = {} if by_time else self._groups(begin, end, durations=False)
        if self._reader.cut is not None:
            return {}, shown | {"totals": None, "why": "the time limit was reached"}
        return groups, shown | {"totals": total, "why": None}

    def _month(self) -> dict[str, Any]:
        """What this month has cost, and will at the pace of the last days."""
        begin = floor("month", self._now)
        end = following("month", begin)
        spent = merged(self._sums((), begin, None).values())
        recent_begin = max(self._now - RECENT, self._first or self._now)
        recent = merged(self._sums((), recent_begin, None).values()).cost_nanodollars
        pace = max(self._now - recent_begin, datetime.timedelta(hours=1))
        more = recent * ((end - self._now) / pace) if recent is not None else 0
        known = None if self._reader.cut and self._reader.cut > begin else spent.cost_nanodollars
        forecast = None if known is None else round(known + more)
        return {
            "month": f"{begin:%Y-%m}",
            "cost_nanodollars": known,
            "cost_dollars": dollars(known),
            "calls_without_cost": spent.unpriced,
            "forecast_nanodollars": forecast,
            "forecast_dollars": dollars(forecast),
        }

    def _cache(self) -> dict[str, Any]:
        """How many calls the response cache has answered, and what that has saved."""
        begin, end = self._window.begin.isoformat(), self._window.end
        until = end.isoformat() if end is not None else None
        conditions, values = Question(only=self._only).allowed()
        log_filter = replace(self._request.filter, since=begin, until=until)
        hits, saved = cached(self._connection, log_filter, *conditions, **values)
        return {"calls": hits, "saved_nanodollars": saved, "saved_dollars": dollars(saved)}

    def _models_of_provider(self) -> dict[str, frozenset[Any]]:
        name = self._request.given.get("provider")
        if name is None:
            return {}
        if name == NONE:
            return {"model": frozenset(self._unknown_models())}
        return {"model": frozenset(m for m, each in self._providers.items() if each == name)}

    def _unknown_models(self) -> set[str | None]:
        """The models of the log that are not installed."""
        by_model = self._reader.sums(Question(by=("model",)), self._window.begin, self._window.end)
        return {model for (model,) in by_model} - self._providers.keys()

    def _provider_choices(self) -> dict[str, Any]:
        return {"values": sorted(set(self._providers.values())), "more": False, "none": True}


def row(request: UsageRequest, key: Key, sums: Sums, before: Groups) -> dict[str, Any]:
    """A row of the table, as in JSON."""
    found = sums.summary()
    earlier = before.get(key)
    if not set(request.by) & set(TIMES):
        found["before"] = earlier.summary(latencies=False) if earlier else None
    return named(request, key) | found


def named(request: UsageRequest, key: Key) -> dict[str, Any]:
    """The values of a key by the names of what the calls are grouped by."""
    return {name: _named(name, value) for name, value in zip(request.by, key, strict=True)}


def _named(name: str, value: Any) -> Any:
    if name in TIMES:
        return written(value) if name != "month" else f"{value:%Y-%m}"
    return (value or RUNNING) if name == "outcome" else value


def _split(by: tuple[str, ...]) -> tuple[Unit | None, list[str]]:
    """The time of what calls are grouped by, and the rest."""
    units: tuple[Unit, ...] = ("month", "day", "hour")
    unit = next((each for each in units if each in by), None)
    return unit, [name for name in by if name != unit]


def _keys(unit: Unit | None, by: tuple[str, ...]) -> tuple[str, ...]:
    return (*(["time"] if unit else []), *dict.fromkeys(by))


def _rank(request: UsageRequest, measure: Measure, key: Key, sums: Sums) -> Any:
    """The largest first; by time, the newest first."""
    unit, _ = _split(request.by)
    when = -key[request.by.index(unit)].timestamp() if unit else 0
    return when, -(measured(measure, sums) or 0), -sums.calls, str(key)


def _add(groups: Groups, key: Key, sums: Sums) -> None:
    groups.setdefault(key, Sums()).merge(sums)


def _unit_of(length: datetime.timedelta) -> Any:
    """What a bar of the chart is, so that there are 50 at most."""
    if length <= 2 * DAY:
        return "hour"
    if length <= 46 * DAY:
        return "day"
    return "week" if length <= 46 * 7 * DAY else "month"


def _begins(unit: Any, window: Window, now: datetime.datetime) -> list[datetime.datetime]:
    """The begins of the bars, also of those without calls."""
    first: Unit = "day" if unit == "week" else unit
    at = floor(first, window.begin)
    end = window.until(now)
    begins = [at]
    while (at := at + 7 * DAY if unit == "week" else following(first, at)) < end:
        begins.append(at)
    return begins


def _by_bar(begins: list[datetime.datetime], groups: Groups) -> Groups:
    """The groups by the number of the bar, instead of a time."""
    found: Groups = {}
    for (time, *rest), sums in groups.items():
        _add(found, (max(0, bisect_right(begins, time) - 1), *rest), sums)
    return found


def _iso(time: datetime.datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")

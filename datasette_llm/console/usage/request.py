"""The arguments of the Usage page's address, parsed and validated."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ...log.queries import BadFilterError, Filter
from ...log.totals import Measure
from ...web import DEFAULT_LIMIT, page_limit
from ..log.list_request import NONE
from . import window
from .window import DEFAULT, PERIODS, Window

# What calls are grouped by; `tag` takes the argument `tag_key` too.
BYS = (
    *("model", "purpose", "actor", "provider", "outcome", "failure_kind", "tag"),
    *("month", "day", "hour"),
)
TIMES = ("month", "day", "hour")
FILTERS = ("model", "purpose", "actor", "provider", "outcome", "failure_kind", "tag")
ARGUMENTS = (
    *FILTERS,
    *("period", "since", "until", "by", "and", "tag_key", "measure", "limit"),
)
_NULLABLE = ("purpose", "actor")
MEASURES: tuple[Measure, ...] = get_args(Measure)
MAX_HOURS = 31 * 24


@dataclass(frozen=True, slots=True)
class UsageRequest:
    """A request for the Usage page.

    Attributes:
        given: the filters and times of the address, by name.
        by: what the calls are grouped by, one or two of `BYS`.
        tag_key: the key of the tag, where that is one of them.
        measure: what the chart measures and the table is sorted by; None for the cost, where any is
            known, or else the calls.
        limit: the most rows of the table.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    by: tuple[str, ...] = ("model",)
    tag_key: str | None = None
    measure: Measure | None = None
    limit: int = DEFAULT_LIMIT

    @classmethod
    def of(cls, arguments: Mapping[str, list[str]]) -> UsageRequest:
        """Parse the arguments of an address.

        Args:
            arguments: each name with its values; names that begin with `_` are Datasette's.

        Raises:
            BadFilterError: an argument is unknown or invalid.
            ArgumentError: `limit` is invalid.
        """
        given = _single(arguments)
        by = [_one_of("by", BYS, given.get("by", "model"))]
        if "and" in given:
            by.append(_one_of("and", BYS, given["and"]))
        _check_by(by, given)
        _one_of("period", PERIODS, given.get("period", DEFAULT))
        measure = _one_of("measure", MEASURES, given["measure"]) if "measure" in given else None
        filters = {
            name: given[name] for name in (*FILTERS, "period", "since", "until") if name in given
        }
        if "since" in filters or "until" in filters:
            filters.pop("period", None)
        request = cls(
            filters, tuple(by), given.get("tag_key"), measure, page_limit(given.get("limit"))
        )
        request.filter.where()
        request.window(datetime.datetime.now(datetime.UTC), None)
        return request

    @property
    def filter(self) -> Filter:
        """Which calls, without the time and the provider."""
        names = set(FILTERS) - {"provider", "tag"}
        given: dict[str, Any] = {n: value for n, value in self.given.items() if n in names}
        given |= {name: "" for name in _NULLABLE if given.get(name) == NONE}
        tag = (self.given["tag"],) if "tag" in self.given else ()
        return Filter(**given, tag=tag)

    @property
    def period(self) -> str | None:
        """The name of the preset; None for dates."""
        dates = "since" in self.given or "until" in self.given
        return None if dates else self.given.get("period", DEFAULT)

    def window(self, now: datetime.datetime, first: datetime.datetime | None) -> Window:
        """The time that is asked for.

        Args:
            now: the present.
            first: when the first call of the log began.

        Raises:
            BadFilterError: a time is invalid, or too long for what is asked.
        """
        name = next((each for each in PERIODS if each == self.period), None)
        if name is not None:
            found = window.named(name, now, first)
        else:
            found = window.between(self.given.get("since"), self.given.get("until"), now)
        hours = (found.until(now) - found.begin) / datetime.timedelta(hours=1)
        if "hour" in self.by and hours > MAX_HOURS:
            raise BadFilterError(
                "By hour, the time can have 31 days at most; choose a shorter one, or by day"
            )
        return found

    def arguments(self, **changes: str | None) -> dict[str, str]:
        """The arguments for the same page.

        Args:
            **changes: arguments to set; None removes one. `and_` stands for `and`.
        """
        options = {
            "by": self.by[0],
            "and": self.by[1] if len(self.by) > 1 else None,
            "tag_key": self.tag_key,
            "measure": self.measure,
            "limit": str(self.limit),
        }
        defaults = {"by": "model", "limit": str(DEFAULT_LIMIT)}
        changed = {name.removesuffix("_"): value for name, value in changes.items()}
        return {
            name: value
            for name, value in (dict(self.given) | options | changed).items()
            if value is not None and value != defaults.get(name)
        }


def _single(arguments: Mapping[str, list[str]]) -> dict[str, str]:
    given = {}
    for name in arguments:
        if name.startswith("_"):
            continue
        if name not in ARGUMENTS:
            raise BadFilterError(
                f"There is no argument {name!r}; use one of {', '.join(ARGUMENTS)}"
            )
        values = arguments[name]
        if len(values) > 1:
            raise BadFilterError(f"{name} is given {len(values)} times; give it once")
        if values[0]:
            given[name] = values[0]
    return given


def _check_by(by: list[str], given: Mapping[str, str]) -> None:
    if len(set(by)) < len(by):
        raise BadFilterError(f"and: {by[1]!r} is what by is, too; choose another one")
    if len(set(by) & set(TIMES)) > 1:
        raise BadFilterError("by and and cannot both be times; choose one of them")
    if "tag" in by and "tag_key" not in given:
        raise BadFilterError("tag_key: name the tag to group by, such as tag_key=job")


def _one_of(name: str, known: Any, text: str) -> Any:
    if text not in known:
        raise BadFilterError(f"{name}: {text!r} is none of {', '.join(known)}")
    return text

"""What somebody asks of the list of calls: the arguments of its address, checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from ...log import queries, totals
from ...log.queries import BadFilterError, Filter
from .chart import Measure

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
# What stands in an address for "has none", as a form sends its empty fields too.
NONE = "(none)"
NULLABLE = ("purpose", "actor", "group")
OPTIONS = ("limit", "by", "measure", "next")

_CURSOR = re.compile("([0-9a-f]{12})-([0-9a-z]{26})")


@dataclass(frozen=True, slots=True)
class LogListRequest:
    """What a request asks of the list.

    Attributes:
        filter: which calls.
        limit: how many at the most.
        by: what makes the series of the chart.
        measure: what the chart measures.
        before: the id of the last call of the page before; None for the first page.
    """

    filter: Filter = field(default_factory=Filter)
    limit: int = DEFAULT_LIMIT
    by: totals.By = "purpose"
    measure: Measure = "calls"
    before: str | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, list[str]]) -> LogListRequest:
        """What the arguments of an address ask for.

        Args:
            arguments: each name with its values; those that begin with `_` are Datasette's.

        Raises:
            BadFilterError: they make no sense.
        """
        given = _single(arguments)
        wanted = Filter(**{name: given[name] for name in Filter.names() if name in given})
        for name in NULLABLE:
            if getattr(wanted, name) == NONE:
                wanted = replace(wanted, **{name: ""})
        _check(wanted)
        return cls(
            wanted,
            _limit(given.get("limit")),
            _one_of("by", totals.By, given.get("by", "purpose")),
            _one_of("measure", Measure, given.get("measure", "calls")),
            _before(given["next"], wanted) if "next" in given else None,
        )

    def arguments(self, **changes: str | None) -> dict[str, str]:
        """The arguments that ask for this again, from the first page on.

        Args:
            **changes: arguments to set, or to leave out where None.
        """
        filters = {name: value for name, value in asdict(self.filter).items() if value is not None}
        options = {"limit": str(self.limit), "by": self.by, "measure": self.measure}
        defaults = {"limit": str(DEFAULT_LIMIT), "by": "purpose", "measure": "calls"}
        changed = {name: value or NONE for name, value in filters.items()} | options | changes
        return {
            name: value
            for name, value in changed.items()
            if value is not None and value != defaults.get(name)
        }


def _single(arguments: Mapping[str, list[str]]) -> dict[str, str]:
    known = (*Filter.names(), *OPTIONS)
    given = {}
    for name in arguments:
        if name.startswith("_"):
            continue
        if name not in known:
            raise BadFilterError(f"There is no filter {name!r}; use one of {', '.join(known)}")
        values = arguments[name]
        if len(values) > 1:
            raise BadFilterError(f"{name} is given {len(values)} times; give it once")
        if values[0]:
            given[name] = values[0]
    return given


def _check(wanted: Filter) -> None:
    wanted.where()
    if wanted.since and wanted.until:
        since = queries.moment("since", wanted.since)
        if since >= queries.moment("until", wanted.until):
            raise BadFilterError(
                f"since is {wanted.since}, which is not before until, {wanted.until}"
            )


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= number <= MAX_LIMIT:
        raise BadFilterError(f"limit: {text!r} is no whole number from 1 to {MAX_LIMIT}")
    return number


def _one_of(name: str, kind: Any, text: str) -> Any:
    if text not in get_args(kind):
        raise BadFilterError(f"{name}: {text!r} is none of {', '.join(get_args(kind))}")
    return text


def _before(cursor: str, wanted: Filter) -> str:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise BadFilterError(f"next: {cursor!r} is no cursor that a page of this list gave")
    if match[1] != fingerprint(wanted):
        raise BadFilterError(
            "next: this cursor belongs to a list with other filters; leave it out, to begin "
            "with the newest call"
        )
    return match[2]


def fingerprint(wanted: Filter) -> str:
    """What tells the cursors of one filter from those of another."""
    text = json.dumps(asdict(wanted), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

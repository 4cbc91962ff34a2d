"""The arguments of the list's address, parsed and validated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...log.listing import SORTS, Cursor
from ...log.queries import VALUES, BadFilterError, Filter, moment, several
from ...log.search import match_of
from ...web import DEFAULT_LIMIT, ArgumentError, page_cursor, page_limit

# In an address, this stands for "has none", since a form sends empty fields too.
NONE = "(none)"
NULLABLE = ("purpose", "actor", "group", "conversation", "chain")
OPTIONS = ("search", "sort", "limit", "next", "previous", "follow")
DEFAULT_SORT = "-time"
MAX_VALUES = 100
_VALUE_CURSOR = re.compile("([0-9.e+-]{1,30})~([0-9a-z]{26})")

Arguments = dict[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class LogListRequest:
    """A request for a page of the list.

    Attributes:
        filter: which calls.
        limit: the maximum number of calls.
        search: words of their content; None for any.
        sort: one of `SORTS`, after a minus sign if the greatest come first.
        cursor: where the page begins; None for the first page.
    """

    filter: Filter = field(default_factory=Filter)
    limit: int = DEFAULT_LIMIT
    search: str | None = None
    sort: str = DEFAULT_SORT
    cursor: Cursor | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, list[str]]) -> LogListRequest:
        """Parse the arguments of an address.

        Args:
            arguments: each name with its values; names that begin with `_` are Datasette's.

        Raises:
            BadFilterError: an argument is unknown or invalid.
            ArgumentError: `limit`, `sort` or a cursor is invalid.
        """
        given = _given(arguments)
        log_filter = Filter(**{name: given[name] for name in Filter.names() if name in given})
        _check(log_filter)
        if "search" in given:
            match_of(given["search"])
        sort = _sort(given.get("sort", DEFAULT_SORT))
        return cls(
            log_filter,
            page_limit(given.get("limit")),
            given.get("search"),
            sort,
            _cursor(given, sort),
        )

    @property
    def sorted_by(self) -> str:
        """The name of its order, without the direction."""
        return self.sort.removeprefix("-")

    def arguments(self, **changes: str | Sequence[str] | None) -> Arguments:
        """The arguments for the same list, from its first page.

        Args:
            **changes: arguments to set; None removes one.
        """
        options = {"search": self.search, "sort": self.sort, "limit": str(self.limit)}
        defaults = {"sort": DEFAULT_SORT, "limit": str(DEFAULT_LIMIT)}
        filters = {name: _written(value) for name, value in self.filter.given().items()}
        changed: dict[str, Any] = filters | options | changes
        return {
            name: value
            for name, value in changed.items()
            if value not in (None, (), defaults.get(name))
        }


def cursor_text(cursor: Cursor | None) -> str | None:
    """A cursor as an argument."""
    if cursor is None or cursor.value is None:
        return cursor and cursor.id
    return f"{cursor.value:.17g}~{cursor.id}"


def _written(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value or NONE
    return tuple(each or NONE for each in value)


def _given(arguments: Mapping[str, list[str]]) -> dict[str, Any]:
    """The arguments that are not empty: a text, or several."""
    known = (*Filter.names(), *OPTIONS)
    given: dict[str, Any] = {}
    for name in arguments:
        if name.startswith("_"):
            continue
        if name not in known:
            raise BadFilterError(f"There is no filter {name!r}; use one of {', '.join(known)}")
        values = tuple(dict.fromkeys(filter(None, arguments[name])))
        if name in NULLABLE:
            values = tuple("" if value == NONE else value for value in values)
        if name == "tag" or (name in VALUES and len(values) > 1):
            given[name] = values
        elif len(arguments[name]) > 1 and name not in VALUES:
            raise BadFilterError(f"{name} is given {len(arguments[name])} times; give it once")
        elif values:
            given[name] = values[0]
    return given


def _sort(text: str) -> str:
    if text.removeprefix("-") not in SORTS:
        names = ", ".join(f"{name}, -{name}" for name in SORTS)
        raise ArgumentError(f"sort: {text!r} is none of {names}")
    return text


def _cursor(given: Mapping[str, str], sort: str) -> Cursor | None:
    if "next" in given and "previous" in given:
        raise ArgumentError("next and previous are both given; give one of them")
    for name in ("next", "previous"):
        if name not in given:
            continue
        if SORTS[sort.removeprefix("-")] is None:
            return Cursor(page_cursor(given[name], name) or "", newer=name == "previous")
        return _value_cursor(name, given[name])
    return None


def _value_cursor(name: str, text: str) -> Cursor:
    found = _VALUE_CURSOR.fullmatch(text)
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    if not found or not math.isfinite(value):
        raise ArgumentError(f"{name}: {text!r} is not a cursor from a page of this list")
    return Cursor(found[2], value, newer=name == "previous")


def _check(log_filter: Filter) -> None:
    log_filter.where()
    if sum(len(several(getattr(log_filter, name))) for name in VALUES) > MAX_VALUES:
        raise BadFilterError(f"At most {MAX_VALUES} values can be given in all")
    since, until = log_filter.since, log_filter.until
    if since and until and moment("since", since) >= moment("until", until):
        raise BadFilterError(f"since is {since}, which is not before until, {until}")

"""The arguments of the list's address, parsed and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...log.queries import BadFilterError, Filter, moment
from ...web import DEFAULT_LIMIT, page_cursor, page_limit

# In an address, this stands for "has none", since a form sends empty fields too.
NONE = "(none)"
NULLABLE = ("purpose", "actor", "group")
OPTIONS = ("limit", "next", "follow")


@dataclass(frozen=True, slots=True)
class LogListRequest:
    """A request for a page of the list.

    Attributes:
        filter: which calls.
        limit: the maximum number of calls.
        before: the id of the last call of the previous page; None for the first page.
    """

    filter: Filter = field(default_factory=Filter)
    limit: int = DEFAULT_LIMIT
    before: str | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, list[str]]) -> LogListRequest:
        """Parse the arguments of an address.

        Args:
            arguments: each name with its values; names that begin with `_` are Datasette's.

        Raises:
            BadFilterError: an argument is unknown or invalid.
            ArgumentError: `limit` or `next` is invalid.
        """
        given = _single(arguments)
        filters: dict[str, Any] = {name: given[name] for name in Filter.names() if name in given}
        filters |= {name: "" for name in NULLABLE if filters.get(name) == NONE}
        log_filter = Filter(**filters, tag=tuple(filter(None, arguments.get("tag", ()))))
        _check(log_filter)
        return cls(
            log_filter,
            page_limit(given.get("limit")),
            page_cursor(given.get("next")),
        )

    def arguments(self, **changes: str | None) -> dict[str, str | Sequence[str]]:
        """The arguments for the same list, from its first page.

        Args:
            **changes: arguments to set; None removes one.
        """
        options = {"limit": str(self.limit)}
        defaults = {"limit": str(DEFAULT_LIMIT)}
        filters = {name: value or NONE for name, value in self.filter.given().items()}
        changed = filters | options | changes
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
        if name == "tag":
            continue
        if len(values) > 1:
            raise BadFilterError(f"{name} is given {len(values)} times; give it once")
        if values[0]:
            given[name] = values[0]
    return given


def _check(log_filter: Filter) -> None:
    log_filter.where()
    since, until = log_filter.since, log_filter.until
    if since and until and moment("since", since) >= moment("until", until):
        raise BadFilterError(f"since is {since}, which is not before until, {until}")

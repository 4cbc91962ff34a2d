"""The form of the list's filters, and the filters that are set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...log.queries import CLOSED, RANGES, VALUES
from ..formatting import label_of
from .list_request import NONE, OPTIONS

Row = dict[str, Any]
Given = Mapping[str, str | Sequence[str]]

LABELS = {
    "model": "Model",
    "purpose": "Purpose",
    "actor": "Actor",
    "outcome": "Outcome",
    "finish_reason": "Finish reason",
    "failure_kind": "Failure",
    "tag": "Tag, such as job:12",
    "min_cost": "Cost from, in dollars",
    "max_cost": "Cost to",
    "min_tokens": "Tokens from, in and out",
    "max_tokens": "Tokens to",
    "min_duration": "Took from, in seconds",
    "max_duration": "Took to",
    "min_first_chunk": "First chunk from, in seconds",
    "max_first_chunk": "First chunk to",
    "since": "Since",
    "until": "Until, not including",
    "conversation": "Conversation",
    "chain": "Chain",
    "group": "Group",
    "prompt": "Prompt",
    "search": "Search",
}
_BOUNDS = tuple(f"{bound}_{name}" for name in RANGES for bound in ("min", "max"))
# What a filter is called where it is set.
_SHORT = {"tag": "Tag", "since": "Since", "until": "Until"}


def fields(given: Given, choices: Mapping[str, Row]) -> list[Row]:
    """The fields of the form.

    Args:
        given: the arguments of the address.
        choices: as in the payload.
    """
    made: list[Row] = []
    for name in choices:
        made += _repeated(name, given, lambda name, value: _choice(name, value, choices[name]))
    for name in CLOSED:
        made += _repeated(name, given, _closed)
    # And an empty one, since a call may have to have several.
    tags = [*_several(given, "tag"), ""]
    made += [_text("tag", value, f"tag-{number}") for number, value in enumerate(tags, 1)]
    made += [_text(name, _one(given, name)) | {"mode": "decimal"} for name in _BOUNDS]
    for name in ("since", "until"):
        value = _one(given, name)
        is_date = not value or re.fullmatch(r"\d{4}-\d\d-\d\d", value)
        made.append(_text(name, value) | {"kind": "date" if is_date else "text"})
    for name in ("conversation", "chain", "group", "prompt"):
        made += _repeated(name, given, _text)
    return made


def hidden(given: Given) -> dict[str, str]:
    """The arguments that the form keeps and has no field for."""
    kept = [name for name in OPTIONS if name not in ("search", "next", "previous")]
    return {name: _one(given, name) for name in kept if _one(given, name)}


def active(given: Given) -> list[tuple[str, str, Row]]:
    """The filters that are set: each name and value, and the arguments without it."""
    found = []
    for name in LABELS:
        for value in _several(given, name):
            rest = [each for each in _several(given, name) if each != value]
            label = _SHORT.get(name, LABELS[name])
            shown = "none" if value == NONE else label_of(name, value)
            found.append((f"{label}: {shown}", name, dict(given) | {name: rest}))
    return found


def _repeated(name: str, given: Given, make: Any) -> list[Row]:
    """A field for each value, and one for another value."""
    values = _several(given, name)
    if not values:
        return [make(name, "")]
    made = [make(name, value) for value in (*values, *([""] if name in VALUES else []))]
    for number, each in enumerate(made[1:], 2):
        each |= {"id": f"{name}-{number}", "label": f"or {each['label'].lower()}"}
    return made


def _choice(name: str, value: str, known: Row) -> Row:
    """A menu, or a text field with suggestions if there are too many values."""
    options = [(NONE, "none")] if known["none"] else []
    options += [(each, each) for each in known["values"]]
    if known["more"]:
        return _text(name, value) | {"options": options}
    return _select(name, value, options)


def _closed(name: str, value: str) -> Row:
    return _select(name, value, [(each, label_of(name, each)) for each in CLOSED[name]])


def _select(name: str, value: str, options: list[tuple[str, str]]) -> Row:
    options = [("", "any"), *options]
    if value not in dict(options):
        options.append((value, value))
    return _text(name, value) | {"kind": "select", "options": options}


def _text(name: str, value: str, field_id: str | None = None) -> Row:
    return {
        "id": field_id or name,
        "name": name,
        "label": LABELS[name],
        "kind": "text",
        "value": value,
        "options": [],
    }


def _several(given: Given, name: str) -> list[str]:
    values = given.get(name, ())
    return list(filter(None, [values] if isinstance(values, str) else values))


def _one(given: Given, name: str) -> str:
    return next(iter(_several(given, name)), "")

"""Prompt templates, in which `{{ column }}` stands for a row's value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_PLACE = re.compile(r"\{\{\s*(.+?)\s*\}\}")


def unknown_columns(template: str, columns: Iterable[str]) -> list[str]:
    """The columns of a template that there are not, each once."""
    known = _known(columns)
    return [name for name in dict.fromkeys(_PLACE.findall(template)) if name not in known]


def filled(template: str, row: Mapping[str, Any]) -> str:
    """A template with the values of a row, which has all of its columns."""
    known = _known(row)
    return _PLACE.sub(lambda place: shown(row[known[place[1]]]), template)


def _known(columns: Iterable[str]) -> dict[str, str]:
    """Columns by what stands in a place: without white space around, unless another is so named."""
    every = list(columns)
    return {name.strip(): name for name in every} | {name: name for name in every}


def shown(value: Any) -> str:
    """A value as in a prompt; of binary data its size only."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return "" if value is None else str(value)

"""How Datasette should show a table, by rules over its values: facets, label, order, search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .column_values import ColumnValues

MIN_ROWS = 10
MAX_FACETS = 4
# Values of a facet, and how often each occurs on average.
FACET_VALUES, FACET_ROWS = range(2, 31), 4
# From so many words on, people search a text.
SEARCHED_WORDS = 4
_LABEL_NAME = re.compile(r"(^|_)(name|title|label|headline|subject)$")
_ORDER_NAME = re.compile(r"(^|_)(date|day|time|timestamp|datetime|created|updated|published|at)$")


def suggested_config(columns: Sequence[ColumnValues], *, is_view: bool) -> dict[str, Any]:
    """What `datasette.yaml` should say, and which columns should be searchable.

    Args:
        columns: all columns that were read.
        is_view: whether it is a view, which can have neither a label nor an index for search.

    Returns:
        The same keys as a model's suggestion has.
    """
    measured = [each for each in columns if each.rows >= MIN_ROWS]
    facets = sorted(filter(_is_facet, measured), key=lambda each: each.distinct)[:MAX_FACETS]
    names = [each.name for each in facets]
    return {
        "facets": [each.name for each in columns if each.name in names],
        "sort": None,
        "sort_desc": next((each.name for each in measured if _tells_when(each)), None),
        "label_column": None if is_view else _label(measured),
        "columns": [],
        "full_text_columns": [] if is_view else [e.name for e in measured if _is_searched(e)],
        "hidden_columns": [],
    }


def _is_facet(column: ColumnValues) -> bool:
    if column.primary_key or column.unique or column.blobs or column.long_texts:
        return False
    if any(isinstance(value, float) for value in column.numbers):
        return False
    filled = column.rows - column.nulls
    return column.distinct in FACET_VALUES and filled >= FACET_ROWS * column.distinct


def _label(columns: Sequence[ColumnValues]) -> str | None:
    """The column whose text names a row, by its name."""
    named = (each for each in columns if _LABEL_NAME.search(each.name.casefold()))
    return next((each.name for each in named if 2 * len(each.texts) > each.rows), None)


def _tells_when(column: ColumnValues) -> bool:
    """True for dates that sort, in a column that is named as their time."""
    formats = column.date_formats
    if not _ORDER_NAME.search(column.name.casefold()) or len(formats) != 1:
        return False
    return next(iter(formats)).startswith("YYYY-") and 10 * formats.total() >= 9 * column.text_rows


def _is_searched(column: ColumnValues) -> bool:
    texts = column.text_rows + column.long_texts
    if 2 * texts < column.rows or column.long_json:
        return False
    if 2 * column.long_texts > texts:
        return True
    words = sum(rows * (text.count(" ") + 1) for text, rows in column.texts.items())
    return 2 * len(column.texts) > column.text_rows and words >= SEARCHED_WORDS * column.text_rows

"""The figures of many columns at once, by one pass over some rows.

What is asked of a column depends on what it holds, since a figure costs as much as reading it. A
query also says whether it fitted; where it did not, the rows are read again by the form that fits
everything. No blob leaves SQLite, and no more of a text than is displayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .rows import Rows
from .table import column_ref

if TYPE_CHECKING:
    from sqlite3 import Connection

# SQLite returns at most 2,000 values at once, and compares each aggregate with all others.
COLUMNS_PER_QUERY = 20
# The bytes of a text that are displayed, more than enough for `MAX_DISPLAY_CHARS` of any encoding.
SHOWN_BYTES = 324
# Whatever may begin a number, spaces included, sorts before it.
_AFTER_DIGITS = ":"
LENGTH_FUNCTION = "llm_text_length"

Run = Callable[[str, Sequence[Any]], Sequence[Any]]


class Form(IntEnum):
    """What to ask of a column; the later ones fit more values, and cost more."""

    INTEGERS = 0
    NUMBERS = 1
    WORDS = 2  # texts in ASCII that are neither empty nor begin like a number
    TEXTS = 3  # texts in ASCII that are neither empty nor a number
    ANY_TEXTS = 4  # texts without NUL
    ANYTHING = 5


@dataclass(slots=True)
class Figures:
    """What a column holds in some rows.

    Attributes:
        rows: the number of rows.
        integers, reals, texts, blobs: the number of values of each type; the rest is null.
        low, high: the extremes of the numbers.
        total, squares: of the numbers, each less the `shift` of the query.
        first, last: the beginnings of the extremes of the texts, in bytewise order.
        empty: the number of empty texts.
        shortest, longest, characters: the lengths of the texts, least, most and total.
        octets: the size of the texts in bytes; 0 where it is that in characters.
        numeric: the number of texts that are a number.
        numeric_low, numeric_high: the extremes of these.
        smallest, largest, bytes: the sizes of the blobs, least, most and total.
    """

    rows: int = 0
    integers: int = 0
    reals: int = 0
    texts: int = 0
    blobs: int = 0
    low: float | None = None
    high: float | None = None
    total: float | None = 0.0
    squares: float | None = 0.0
    first: bytes | None = None
    last: bytes | None = None
    empty: int = 0
    shortest: int | None = None
    longest: int | None = None
    characters: float = 0
    octets: float = 0
    numeric: int = 0
    numeric_low: float | None = None
    numeric_high: float | None = None
    smallest: int | None = None
    largest: int | None = None
    bytes: float = 0

    @property
    def numbers(self) -> int:
        """The number of integers and reals."""
        return self.integers + self.reals

    @property
    def filled(self) -> int:
        """The number of values that are not null."""
        return self.numbers + self.texts + self.blobs

    @property
    def form(self) -> Form:
        """The cheapest form that fits."""
        if self.blobs or (self.numbers and self.texts):
            return Form.ANYTHING
        if not self.texts:
            return Form.NUMBERS if self.reals else Form.INTEGERS
        if self.numeric or self.empty or self.octets > self.characters:
            return Form.ANY_TEXTS
        return Form.WORDS if (self.first or b"") >= _AFTER_DIGITS.encode() else Form.TEXTS

    @property
    def mean_size(self) -> float:
        """The mean size of a text or blob, over all rows."""
        return (self.characters + self.bytes) / self.rows if self.rows else 0.0


_LEAST = ("low", "first", "shortest", "numeric_low", "smallest")
_MOST = ("high", "last", "longest", "numeric_high", "largest")


def merged(parts: Sequence[Figures]) -> Figures:
    """The figures of the rows of all parts."""

    def value(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if name in ("total", "squares"):
            return exact_sum(values)
        if name not in _LEAST + _MOST:
            return sum(values)
        found = [each for each in values if each is not None]
        return (min if name in _LEAST else max)(found, default=None)

    return Figures(**{field.name: value(field.name) for field in fields(Figures)})


def exact_sum(values: Iterable[float | None]) -> float:
    """The sum, whatever the order of the values; NaN where it is none."""
    try:
        return math.fsum(math.nan if value is None else value for value in values)
    except (OverflowError, ValueError):  # of too large numbers, of both infinities
        return math.nan


def add_functions(connection: Connection, encoding: str) -> None:
    """Add what the queries of this module need to a connection."""

    def length(value: bytes) -> int:
        return len(decoded(value, encoding))

    connection.create_function(LENGTH_FUNCTION, 1, length, deterministic=True)


def decoded(value: bytes, encoding: str) -> str:
    """A text of the database."""
    return value.decode(encoding.replace("UTF-16", "UTF-16-"), "replace")


def scan(
    run: Run, rows: Rows, columns: Mapping[str, Form], shifts: Mapping[str, int]
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Read the figures of some columns.

    Args:
        run: executes a query with parameters, and returns its one row.
        rows: what to read.
        columns: the names of the columns, and how to read each.
        shifts: what to subtract from a column's numbers before they are added up and squared.

    Returns:
        The figures by column; and of those that cannot be read, why.

    Raises:
        OutOfTimeError: by `run`.
    """
    names, found, errors = list(columns), dict[str, Figures](), dict[str, str]()
    for at in range(0, len(names), COLUMNS_PER_QUERY):
        batch = {name: columns[name] for name in names[at : at + COLUMNS_PER_QUERY]}
        _scan_batch(run, rows, batch, shifts, found, errors)
    again = [name for name in columns if name not in found and name not in errors]
    if again:
        others = scan(run, rows, dict.fromkeys(again, Form.ANYTHING), shifts)
        return found | others[0], errors | others[1]
    return found, errors


def _scan_batch(
    run: Run,
    rows: Rows,
    columns: Mapping[str, Form],
    shifts: Mapping[str, int],
    found: dict[str, Figures],
    errors: dict[str, str],
) -> None:
    wanted = {name: _expressions(name, form, shifts[name]) for name, form in columns.items()}
    selected = [sql for expressions in wanted.values() for sql in expressions.values()]
    try:
        result = run(
            f"select count(1), {', '.join(selected)} from {rows.source(*columns)}", rows.parameters
        )
    except sqlite3.Error as error:
        names = list(columns)
        if len(names) == 1:
            if columns[names[0]] is Form.ANYTHING:
                errors[names[0]] = str(error)
            return
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            part = {name: columns[name] for name in half}
            _scan_batch(run, rows, part, shifts, found, errors)
        return
    at = 1
    for name, expressions in wanted.items():
        values = dict(zip(expressions, result[at : at + len(expressions)], strict=True))
        at += len(expressions)
        if values.pop("fits"):
            found[name] = Figures(rows=result[0], **values)


def _expressions(column: str, form: Form, shift: int) -> dict[str, str]:
    """SQL for each figure that a form has, and for `fits`: whether it has all that there are."""
    v = column_ref(column)
    real = f"count(*) filter (where typeof({v}) = 'real')"
    is_numeric = f"cast({v} as numeric) = {v}"
    if form in (Form.INTEGERS, Form.NUMBERS):
        # Numbers sort before the others. A list of three types would be an index, made each time.
        fits = f"coalesce(max({v}) < '', 1)"
        figures = _numbers(v, shift) | {"integers": f"count({v}) - {real}", "reals": real}
        if form is Form.INTEGERS:
            total = f"sum({v} - {shift})"  # an integer if all are; it may overflow, unlike total()
            fits += f" and typeof({total}) in ('integer', 'null')"
            figures |= {"integers": f"count({v})", "reals": "0", "total": f"coalesce({total}, 0)"}
        return {"fits": fits} | {
            k: f"case when {fits} then {sql} end" for k, sql in figures.items()
        }
    if form is Form.ANYTHING:
        types = {"integers": "integer", "texts": "text", "blobs": "blob"}
        counts = {k: f"count(*) filter (where typeof({v}) = '{t}')" for k, t in types.items()}
        # SQLite's own length() ends at NUL.
        length = f"iif({_nul(v)}, {LENGTH_FUNCTION}(cast({v} as blob)), length({v}))"
        numbers, text, blob = (
            f"typeof({v}) {t}" for t in ("in ('integer', 'real')", "= 'text'", "= 'blob'")
        )
        return {
            "fits": "1",
            "reals": real,
            **counts,
            **_numbers(v, shift, f" filter (where {numbers})"),
            **_texts(v, length, f" filter (where {text})"),
            **_special_texts(v, f"{text} and {is_numeric}"),
            **_extremes(f"length({v})", "smallest", "largest", "bytes", f" filter (where {blob})"),
        }
    least, most = f"min({v} collate binary)", f"max({v} collate binary)"
    fits = f"typeof({least}) in ('text', 'null') and typeof({most}) in ('text', 'null')"
    texts = _texts(v, f"length({v})") | {"texts": f"count({v})"}
    if form is Form.ANY_TEXTS:
        return {"fits": f"{fits} and not total({_nul(v)})"} | texts | _special_texts(v, is_numeric)
    fits += f" and total({_octets(v)}) = total(length({v})) and coalesce(min(length({v})), 1)"
    if form is Form.WORDS:
        return {"fits": f"{fits} and coalesce({least} >= '{_AFTER_DIGITS}', 1)"} | texts
    return {"fits": f"{fits} and not count(*) filter (where {is_numeric})"} | texts


def _numbers(v: str, shift: int, where: str = "") -> dict[str, str]:
    less = f"({v} - {shift})"
    sums = {"total": f"total{less}{where}", "squares": f"total({less} * {less}){where}"}
    return {"low": f"min({v}){where}", "high": f"max({v}){where}"} | sums


def _texts(v: str, length: str, where: str = "") -> dict[str, str]:
    first, last = (f"cast({end}({v} collate binary){where} as blob)" for end in ("min", "max"))
    return {
        "first": shown_sql(first),
        "last": shown_sql(last),
        **_extremes(length, "shortest", "longest", "characters", where),
    }


def _special_texts(v: str, condition: str) -> dict[str, str]:
    low, high = (
        f"{end}(cast({v} as numeric)) filter (where {condition})" for end in ("min", "max")
    )
    count = f"count(*) filter (where {condition})"
    return {
        "empty": f"count(*) filter (where {v} = '' collate binary)",
        "octets": f"total({_octets(v)}) filter (where typeof({v}) = 'text')",
        **{"numeric": count, "numeric_low": low, "numeric_high": high},
    }


def _extremes(value: str, low: str, high: str, total: str, where: str) -> dict[str, str]:
    return {
        low: f"min({value}){where}",
        high: f"max({value}){where}",
        total: f"total({value}){where}",
    }


def _octets(v: str) -> str:
    return f"length(cast({v} as blob))"


def _nul(v: str) -> str:
    return f"instr(cast({v} as blob), x'00') > 0"


def shown_sql(blob: str) -> str:
    """The beginning of a blob: of a text substr() ends at NUL, and of an empty blob it is NULL."""
    return f"coalesce(substr({blob}, 1, {SHOWN_BYTES}), {blob})"

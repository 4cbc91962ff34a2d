"""The call log as a table in a terminal: one line per call, fitted to its width."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..console.formatting import reason
from .terminal import printable

Row = dict[str, Any]

# The widths of the columns; columns of names share the rest of the terminal's width.
WIDTHS = {"started (UTC)": 14, "outcome": 9, "in": 5, "out": 5, "cost": 9, "took": 6}
NAME_SHARES = {"model": 2, "purpose": 1, "actor": 1}
ORDER = ("started (UTC)", "outcome", *NAME_SHARES, "in", "out", "cost", "took")
NUMBERS = frozenset({"in", "out", "cost", "took"})
MIN_DETAIL = 16


class Table:
    """Formats lines for the width of the terminal.

    Attributes:
        head: the header line.
    """

    def __init__(self, sample: list[Row], at_least: Mapping[str, int] | None = None) -> None:
        """
        Args:
            sample: rows from which the widths of the columns of names are computed.
            at_least: minimum widths of these columns, if there is room.
        """
        self._width = shutil.get_terminal_size().columns
        self._widths = WIDTHS | _name_widths(sample, self._width, at_least or {})
        self._detail_width = self._width - sum(self._widths.values()) - len(ORDER)
        self.head = self._joined({name: name for name in ORDER} | {"detail": "detail"})

    def line(self, row: Row) -> str:
        """A call as one line."""
        return self._joined(_cells(row))

    def _joined(self, cells: Mapping[str, str]) -> str:
        shown = [_padded(cells[name], self._widths[name], name in NUMBERS) for name in ORDER]
        if self._detail_width >= MIN_DETAIL:
            shown.append(_cut(cells["detail"], self._detail_width))
        return _cut(" ".join(shown).rstrip(), self._width)


def _name_widths(sample: list[Row], width: int, at_least: Mapping[str, int]) -> dict[str, int]:
    cells = [_cells(row) for row in sample]
    widths = {
        name: min(width, max(len(name), at_least.get(name, 0), *(_span(c[name]) for c in cells)))
        for name in NAME_SHARES
    }
    room = width - sum(WIDTHS.values()) - (len(ORDER) - 1)
    while sum(widths.values()) > max(room, len(widths)):
        widest = max(widths, key=lambda name: widths[name] / NAME_SHARES[name])
        widths[widest] -= 1
    return widths


def _cells(row: Row) -> dict[str, str]:
    """The text in each column."""
    attempt, waited = row["attempt"], row["waited_ms"]
    why = [
        f"attempt {attempt}" if attempt != 1 else None,
        f"waited {_seconds(waited)}" if waited and waited >= 5 else None,
        reason(row) if row["outcome"] != "cancelled" else None,
    ]
    return {
        "started (UTC)": row["started_at"][5:19].replace("T", " "),
        "outcome": row["outcome"],
        "model": printable(row["model_id"]),
        "purpose": printable(row["purpose"] or "-"),
        "actor": printable(row["actor_id"] or "-"),
        "in": _tokens(row["input_tokens"]),
        "out": _tokens(row["output_tokens"]),
        "cost": _dollars(row["cost_nanodollars"]),
        "took": _seconds(row["duration_ms"]),
        "detail": printable(": ".join(text for text in [*why, row["error_message"]] if text)),
    }


def _tokens(count: int | None) -> str:
    if count is None:
        return "-"
    return str(count) if count < 10_000 else f"{count // 1000}k"


def _dollars(nanodollars: int | None) -> str:
    if nanodollars is None:
        return "-"
    dollars = nanodollars / 1_000_000_000
    if 0 < dollars < 0.00001:
        return "<$0.00001"
    return f"${dollars:.5f}" if dollars < 10 else f"${dollars:.2f}"


def _seconds(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    seconds = milliseconds / 1000
    return f"{seconds:.2f}s" if seconds < 99 else f"{seconds:.0f}s"


def _span(text: str) -> int:
    """The number of terminal columns that a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _cut(text: str, width: int) -> str:
    if _span(text) <= width:
        return text
    shown = text[:width]
    while _span(shown) > width - 1:
        shown = shown[:-1]
    return f"{shown}…"


def _padded(text: str, width: int, to_the_right: bool) -> str:
    shown = _cut(text, width)
    space = " " * (width - _span(shown))
    return f"{space}{shown}" if to_the_right else f"{shown}{space}"
